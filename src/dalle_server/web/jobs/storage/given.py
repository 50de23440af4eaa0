"""Pictures that jobs draw over: what a row keeps of them, and the files beside the job's own pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

from dalle_server import checks
from dalle_server.drawing.repaint import Frame, Holes, Plan, Repaint
from dalle_server.pictures.canvas import fit_mask, mask_from_alpha, mask_from_file, read_picture
from dalle_server.pictures.metadata import DrawnOver


@dataclass(frozen=True, slots=True)
class Over:
    """The tokens were read when the job was submitted: it goes on with the same ones after a restart."""

    holes: Holes
    told: DrawnOver
    has_mask_file: bool
    size_bytes: int  # of the files

    def to_json(self) -> str:
        told = self.told.model_dump()
        wire = {"holes": self.holes.to_dict(), "told": told, "mask_file": self.has_mask_file, "bytes": self.size_bytes}
        return json.dumps(wire)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError, TypeError, KeyError, InvalidRequest for what `to_json` never wrote."""
        wire: dict[str, Any] = json.loads(text)
        return cls(
            Holes.from_dict(wire["holes"]),
            DrawnOver.model_validate(wire["told"]),
            checks.true_or_false("mask_file", wire["mask_file"]),
            checks.whole_number("bytes", wire["bytes"], 0, 2**63 - 1),
        )


@dataclass(frozen=True, slots=True)
class Given:
    """The files, whole, as they were sent."""

    image: bytes
    mask: bytes | None = None

    def over(self, plan: Plan) -> Over:
        size = len(self.image) + len(self.mask or b"")
        return Over(plan.holes, plan.told, self.mask is not None, size)

    def frame(self) -> Frame:
        """Raises InvalidRequest when the files are damaged."""
        picture = read_picture(self.image)
        weights = mask_from_alpha(picture) if self.mask is None else mask_from_file(read_picture(self.mask, "mask"))
        mask = None if weights is None else fit_mask(weights, picture.size_px)
        return Frame.of(Repaint(picture=picture, mask=mask))
