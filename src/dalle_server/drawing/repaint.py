"""Drawing over a given picture: its tokens, which of them are painted anew, and the way back into the picture.

While a token model fills a hole it sees what is kept before it in reading order, and not what is kept behind. So a hole
is filled several times, and the one counts that makes the kept tokens behind it likeliest (repainting.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dalle_server import checks
from dalle_server.errors import InvalidRequest
from dalle_server.generation import Generation
from dalle_server.models.config import PictureConfig
from dalle_server.pictures.canvas import (
    Picture,
    Weights,
    Window,
    fit_mask,
    free_tokens,
    mask_from_alpha,
    mask_from_file,
    paste,
    read_picture,
    reduced,
    to_model,
)
from dalle_server.pictures.codec import PaintedBy
from dalle_server.pictures.metadata import DrawnOver, PictureMetadata, find_metadata, pixels_sha256
from dalle_server.request import FREE, MAX_TOKEN_ID, GenerationRequest, ImageKey, Pixels, SamplingParams, Tokens

MAX_CANDIDATES = 16
MAX_DRAWN = 64  # pictures that one request draws, candidates included
INDEX_BITS = 24  # of a key's index: the rest numbers the candidates, 0 being the picture's own noise
MAX_GROW = 16  # tokens: all of Mini's grid
CANDIDATES = 4  # of an edit, where nobody says how many
EDIT_STRENGTH = 0.75  # of an edit without a mask
VARIATION_STRENGTH = 0.5
# Levels of 255 over a token's square. Of nano's pictures a third of the size or a quality of 30 changes 15 at most; an
# eighth turn, a crop or a dot over a fifth of the square more than 25.
SHOWN_WITHIN = 25
FULL_PULL = 20.0  # that of strength 1/e; found on the embedded model: docs/pictures-in.md


class DrawingEngine(PaintedBy, Protocol):
    """What drawing over a picture, or again, needs of an engine."""

    def submit(self, request: GenerationRequest) -> Generation: ...

    def tokenize(self, pixels: NDArray[np.uint8]) -> NDArray[np.int32]: ...

    def detokenize(self, tokens: Tokens, *, seamless: bool = False) -> Pixels: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaint:
    """What is asked for."""

    picture: Picture
    recipe: PictureMetadata | None = None  # what the picture's file says of itself, where it is one of ours
    mask: Weights | None = None  # (height, width), 1 = repaint; None: all of it, as far as `strength` says
    strength: float = 1.0  # of the free tokens: 0 gives the picture's own back, 1 ignores them
    candidates: int = 1
    keep_tokens: int = 0  # the first ones in reading order stay: the picture is drawn again from there
    grow: int = 0  # tokens around the mask that are painted too
    blend_px: int = 4  # over which the border inside the mask is blended
    context: float | None = None  # see the mask's surroundings only, so much of its side on each side; None: all

    @classmethod
    def read(
        cls,
        image: bytes | Image.Image,
        mask: bytes | Image.Image | None = None,
        *,
        strength: float | None = None,
        candidates: int | None = None,
        keep_tokens: int = 0,
        grow: int = 0,
    ) -> Self:
        """From files or opened pictures, as every API of ours but AUTOMATIC1111's understands them: a picture's own
        holes are a mask.

        Raises InvalidRequest, PayloadTooLarge.
        """
        picture = read_picture(image)
        weights = mask_from_alpha(picture) if mask is None else mask_from_file(read_picture(mask, "mask"))
        weights = None if weights is None else fit_mask(weights, picture.size_px)
        chosen = 1.0 if weights is not None or keep_tokens else EDIT_STRENGTH
        return cls(
            picture=picture,
            recipe=own_recipe(image),
            mask=weights,
            strength=chosen if strength is None else checks.number("strength", strength, 0.0, 1.0),
            candidates=checks.whole_number(
                "candidates", CANDIDATES if candidates is None else candidates, 1, MAX_CANDIDATES
            ),
            keep_tokens=keep_tokens,
            grow=checks.whole_number("grow", grow, 0, MAX_GROW),
        )

    @classmethod
    def variation(
        cls, image: bytes | Image.Image, *, strength: float | None = None, candidates: int | None = None
    ) -> Self:
        """All of a picture drawn anew, by half where nobody says how much. Raises as `read` does."""
        return cls(
            picture=read_picture(image),
            recipe=own_recipe(image),
            strength=VARIATION_STRENGTH if strength is None else checks.number("strength", strength, 0.0, 1.0),
            candidates=checks.whole_number("candidates", 1 if candidates is None else candidates, 1, MAX_CANDIDATES),
        )

    @property
    def is_seamless(self) -> bool:
        """A branch of a picture whose edges meet is one too."""
        return bool(self.keep_tokens and self.recipe and self.recipe.seamless)

    def words(
        self, prompt: str | None, negative_prompt: str | None, sampling: SamplingParams
    ) -> tuple[str, str, SamplingParams]:
        """What to draw: the given words, else those of the picture, if it is ours. Of a branch, the sampling too."""
        recipe = self.recipe
        if recipe is None:
            return prompt or "", negative_prompt or "", sampling
        if self.keep_tokens:
            negative_prompt = recipe.negative_prompt if negative_prompt is None else negative_prompt
            sampling = sampling.with_defaults(recipe.request().sampling)
        return prompt or recipe.prompt, negative_prompt or "", sampling


def keep_rows_of(grid: PictureConfig, rows: int) -> int:
    """`keep_tokens` for so many rows of the grid. Raises InvalidRequest."""
    return checks.whole_number("keep_rows", rows, 1, grid.grid_height - 1) * grid.grid_width


def own_recipe(image: bytes | Image.Image) -> PictureMetadata | None:
    """What one of our own pictures' files says of itself; of others, and of opened ones, nothing is known."""
    if isinstance(image, Image.Image):
        return None  # it may have been changed since it was read
    try:
        return find_metadata(image)
    except InvalidRequest:  # a GIF, or damaged words in a picture that is readable
        return None


@dataclass(frozen=True, slots=True)
class Holes:
    """A grid, which of its tokens may be painted anew, and how: all that the engine is asked with."""

    given: Tokens  # (I,)
    free: NDArray[np.bool_]  # (I,)
    strength: float
    candidates: int

    @property
    def forced(self) -> Tokens:
        """(I,) for GenerationRequest.forced_tokens."""
        return np.where(self.free & (self.strength > 0), np.int32(FREE), self.given).astype(np.int32)

    @property
    def pull(self) -> float:
        """How strongly the free tokens are drawn towards the given ones: a code at d has its odds times
        strength^(FULL_PULL · d²). Rounded, for a logarithm's last bit is not the same everywhere.
        """
        return round(-FULL_PULL * math.log(self.strength), 4) if 0 < self.strength < 1 else 0.0

    def requests(self, request: GenerationRequest) -> list[GenerationRequest]:
        """One for each picture of `request`, its candidates as images. Raises InvalidRequest when they are too many."""
        drawn = len(request.images) * self.candidates
        if drawn > MAX_DRAWN:
            raise InvalidRequest(
                f"candidates × n must be at most {MAX_DRAWN}, not {drawn}: one request draws no more",
                param="candidates",
            )
        return [self._request(request, key) for key in request.images]

    def _request(self, request: GenerationRequest, key: ImageKey) -> GenerationRequest:
        if key.index >= 2**INDEX_BITS:
            raise InvalidRequest(
                f"image_index must be below {2**INDEX_BITS} here, not {key.index}", param="image_index"
            )
        forced = self.forced
        near = np.where(forced == FREE, self.given, np.int32(FREE)).tolist() if self.pull else ()
        candidates = self.candidates if kept_behind(forced).any() else 1
        return replace(
            request,
            images=tuple(ImageKey(key.seed, key.index | (number << INDEX_BITS)) for number in range(candidates)),
            forced_tokens=tuple(forced.tolist()),
            near_tokens=tuple(near),
            pull=self.pull,
            logprobs=request.logprobs or candidates > 1,
            id=f"{request.id}-{key.index}-{key.seed}",
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; `from_dict` gives equal ones."""
        free = np.flatnonzero(self.free).tolist()
        return {
            "given": self.given.tolist(),
            "free": free,
            "strength": self.strength,
            "candidates": self.candidates,
        }

    @classmethod
    def from_dict(cls, wire: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises InvalidRequest, naming the field, for whatever else it is given."""
        checks.known_fields("holes", wire, ("given", "free", "strength", "candidates"))
        given = [
            checks.whole_number("given", token, 0, MAX_TOKEN_ID) for token in checks.sequence("given", wire["given"])
        ]
        free = np.zeros(len(given), bool)
        free[[checks.whole_number("free", i, 0, len(given) - 1) for i in checks.sequence("free", wire["free"])]] = True
        return cls(
            np.array(given, np.int32),
            free,
            checks.number("strength", wire["strength"], 0.0, 1.0),
            checks.whole_number("candidates", wire["candidates"], 1, MAX_CANDIDATES),
        )


def kept_behind(forced: Tokens) -> NDArray[np.bool_]:
    """(I,) the kept tokens behind the first free one: what says how well a hole was filled."""
    free = forced == FREE
    behind: NDArray[np.bool_] = np.logical_or.accumulate(free) & ~free
    return behind


@dataclass(frozen=True, slots=True)
class Frame:
    """Where in the picture the model's square lies: the way to it and back."""

    picture: Picture
    mask: Weights | None
    window: Window
    blend_px: int = 4

    @classmethod
    def of(cls, wanted: Repaint) -> Self:
        window = Window.around(wanted.mask, wanted.picture.size_px, wanted.context)
        return cls(wanted.picture, wanted.mask, window, wanted.blend_px)

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height)."""
        return self.picture.size_px

    def finished(self, painted: Pixels) -> Pixels:
        """The whole picture, with the model's square in its place."""
        return paste(self.picture.pixels, painted, self.window, self.mask, self.blend_px)

    def reduced(self, side_px: int) -> Frame:
        """The same for a picture whose longer side is no longer than `side_px`."""
        picture, mask, scale = reduced(self.picture, self.mask, side_px)
        x, y, side = (round(length * scale) for length in (self.window.x, self.window.y, self.window.side))
        return self if scale == 1.0 else replace(self, picture=picture, mask=mask, window=Window(x, y, max(1, side)))


@dataclass(frozen=True, slots=True)
class Plan:
    """A picture as the model sees it, and the way back."""

    frame: Frame
    holes: Holes
    told: DrawnOver  # what the result's file says of it

    @classmethod
    def of(cls, wanted: Repaint, engine: DrawingEngine) -> Plan:
        """Reads the picture's tokens. Raises InvalidRequest for a mask that frees none, NotSupported."""
        frame, config = Frame.of(wanted), engine.config.picture
        if wanted.mask is None:
            free = np.ones(config.num_tokens, bool)
        else:
            free = free_tokens(wanted.mask, frame.window, config.grid_width, wanted.grow)
        if not free.any():
            raise InvalidRequest(
                f"mask is too small: none of the {config.num_tokens} tokens of {config.px_per_token}x"
                f"{config.px_per_token} pixels has enough in it; make it larger",
                param="mask",
            )
        free[: checks.whole_number("keep_tokens", wanted.keep_tokens, 0, config.num_tokens - 1)] = False
        if not free.any():
            raise InvalidRequest(
                f"keep_tokens: {wanted.keep_tokens} leave nothing of the mask to paint; keep fewer", param="keep_tokens"
            )
        given = _told_tokens(wanted, frame, engine)
        if given is None:
            pixels = to_model(wanted.picture.pixels, frame.window, config.width_px)
            given = engine.tokenize(pixels[None])[0]
        told = DrawnOver.of(
            wanted.picture.size_px,
            (frame.window.x, frame.window.y, frame.window.side),
            mask=wanted.mask is not None,
            strength=wanted.strength,
            candidates=wanted.candidates,
            keep_tokens=wanted.keep_tokens,
        )
        return cls(frame, Holes(given, free, wanted.strength, wanted.candidates), told)


def _told_tokens(wanted: Repaint, frame: Frame, engine: DrawingEngine) -> Tokens | None:
    """The picture's own tokens, where its file tells them and they are what all of it shows: exact, and read by no
    encoder, which a checkpoint may lack.
    """
    recipe, config = wanted.recipe, engine.config.picture
    width, height = wanted.picture.size_px
    has_our_shape = width * config.height_px == height * config.width_px and frame.window.side == max(width, height)
    if recipe is None or recipe.weights_digest != engine.digest or not (recipe.shows_its_grid and has_our_shape):
        return None
    tokens = recipe.token_grid()
    is_ours = tokens.size == config.num_tokens and tokens.max() < config.codebook_size
    return tokens if is_ours and _still_shows(frame, recipe, engine) else None


def _still_shows(frame: Frame, recipe: PictureMetadata, engine: DrawingEngine) -> bool:
    """Whether the picture is what its tokens show, as far as a smaller size or compression leaves it, and upright:
    other programs keep what the file says while they turn or paint it. Its holes show white.
    """
    picture, config = frame.picture, engine.config.picture
    if pixels_sha256(picture.pixels) == recipe.pixels_sha256:
        return True
    shown = to_model(picture.pixels, frame.window, config.width_px).astype(np.float32)
    opaque = np.ones((1, 1, 1))
    if picture.alpha is not None:
        opaque = to_model(picture.alpha, frame.window, config.width_px)[:, :, None] / 255
    told = engine.detokenize(recipe.token_grid(), seamless=recipe.seamless)
    turned = [np.rot90(each, quarters) for each in (told, told[:, ::-1]) for quarters in range(4)]
    upright, *others = (np.abs(shown - (each * opaque + 255 * (1 - opaque))).mean(-1) for each in turned)
    squares = upright.reshape(config.grid_height, config.px_per_token, config.grid_width, config.px_per_token)
    is_upright = upright.mean() <= min(other.mean() for other in others)
    return bool(is_upright and squares.mean((1, 3)).max() <= SHOWN_WITHIN)
