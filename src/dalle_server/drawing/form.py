"""How finished pictures are handed out: as which files, how large, and how another shape is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

from PIL import Image

from dalle_server import checks
from dalle_server.drawing.painting import Shape, paint
from dalle_server.drawing.sizes import parse_size
from dalle_server.drawn import Drawn
from dalle_server.errors import InvalidRequest
from dalle_server.generation import Generation
from dalle_server.models.config import PictureConfig
from dalle_server.pictures.codec import Fit, ImageFormat, encode_image, resized
from dalle_server.pictures.metadata import PictureMetadata
from dalle_server.request import GenerationRequest, Pixels

Way = Literal["paint", "crop", "stretch"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """`fit` None: paint, or stretch where no window can slide."""

    format: ImageFormat = ImageFormat.PNG
    size_px: tuple[int, int] | None = None  # (width, height); None: the model's own, or the given picture's
    quality: int | None = None  # of JPEG and WebP, 0–100
    fit: Way | None = None

    @classmethod
    def of(cls, size: str | None, fit: str | None, format: ImageFormat = ImageFormat.PNG) -> Self:
        """From words. Raises InvalidRequest."""
        try:
            size_px = parse_size(size)
        except ValueError as error:
            raise InvalidRequest(f"size must be {error}, not {checks.shown(size)}", param="size") from None
        found = next((way for way in WAYS if way == fit), None)
        if found is None and fit is not None:
            raise InvalidRequest(f"fit must be one of {', '.join(WAYS)}, not {checks.shown(fit)}", param="fit")
        return cls(format=format, size_px=size_px, fit=found)

    def shape(self, window: PictureConfig, *, seamless: bool) -> Shape | None:
        """What a sliding window is to paint; None where the model's own shape is. Raises InvalidRequest."""
        if seamless and self.fit == "paint":
            message = "seamless is for the model's own shape; use it with fit crop or stretch"
            raise InvalidRequest(message, param="seamless")
        if self.size_px is None or seamless or self.fit in ("crop", "stretch"):
            return None
        return Shape.of(self.size_px, window)

    def check_over(self) -> None:
        """That it can be had of drawings over a picture. Raises InvalidRequest."""
        if self.fit == "paint":
            message = "fit paint is for new pictures; over a given one, use stretch or crop"
            raise InvalidRequest(message, param="fit")

    def no_larger_than(self, longest_px: int) -> Form:
        """The same shape, in few pixels: for previews."""
        if self.size_px is None or max(self.size_px) <= longest_px:
            return self
        width, height = (max(1, round(side * longest_px / max(self.size_px))) for side in self.size_px)
        return replace(self, size_px=(width, height))

    def picture(self, pixels: Pixels, drawn: Drawn) -> Image.Image:
        """Finished pixels of `drawn` in the asked size."""
        return resized(pixels, self.size_px, self._fit_of(drawn))

    def file(
        self,
        pixels: Pixels,
        drawn: Drawn,
        metadata: PictureMetadata | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> bytes:
        """The same as a whole file. `texts` as for `encode_image`."""
        fit, size_px = self._fit_of(drawn), self.size_px
        return encode_image(
            pixels, self.format, metadata=metadata, size_px=size_px, quality=self.quality, texts=texts, fit=fit
        )

    def _fit_of(self, drawn: Drawn) -> Fit:
        """What is painted in the asked shape may be off by less than half a token: that is cut off."""
        return "crop" if drawn.grid_width or self.fit in ("crop", "paint") else "stretch"

    def to_dict(self) -> dict[str, Any]:
        """Size and way as plain JSON: what a job keeps beside its format; empty where nothing was said."""
        told = {"size_px": None if self.size_px is None else list(self.size_px), "fit": self.fit}
        return {name: value for name, value in told.items() if value is not None}

    @classmethod
    def from_dict(cls, wire: Mapping[str, Any], format: ImageFormat) -> Self:
        """Inverse of `to_dict`. Raises InvalidRequest for whatever else it is given."""
        checks.known_fields("form", wire, ("size_px", "fit"))
        form = cls.of(None, wire.get("fit"), format)
        if "size_px" not in wire:
            return form
        sides = [checks.whole_number("size_px", side, 1, 2**16) for side in checks.sequence("size_px", wire["size_px"])]
        if len(sides) != 2:
            raise InvalidRequest(f"size_px must be a width and a height, not {checks.shown(sides)}", param="size_px")
        return replace(form, size_px=(sides[0], sides[1]))


def draw_new(
    submit: Callable[[GenerationRequest], Generation], request: GenerationRequest, form: Form, window: PictureConfig
) -> Drawn:
    """New pictures, in the asked shape, with as many previews of all windows as there would be of one.

    Raises InvalidRequest, and what `submit` raises.
    """
    shape = form.shape(window, seamless=request.seamless)
    if shape is None:
        return submit(request)
    return paint(submit, shape, replace(request, preview_every=request.preview_every * len(shape.places)))
