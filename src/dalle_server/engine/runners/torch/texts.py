"""A text while the torch runner reads it, and afterwards."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from dalle_server.engine.runners.torch.step import StepModel


@dataclass(slots=True)
class TorchText:
    """`states` is the model's own: what a slot takes over of the first `num_read` of `ids` (T,)."""

    ids: Tensor
    states: Any = None
    num_read: int = 0

    @property
    def is_whole(self) -> bool:
        return self.states is not None and self.num_read == len(self.ids)

    @property
    def nbytes(self) -> int:
        if self.states is None:
            return 0
        tensors = (getattr(self.states, field.name) for field in fields(self.states))
        return sum(tensor.nbytes for tensor in tensors)

    def read_piece(self, model: StepModel) -> None:
        end = min(len(self.ids), self.num_read + (model.text_piece or len(self.ids)))
        self.states = model.read_text(self.ids[self.num_read : end], self.states)
        self.num_read = end
