"""The VQGAN's weights, laid out for the compiled code when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dalle_server.checkpoints.tensor_file import release_pages
from dalle_server.engine.runners.cpu.compiled.vqgan import convolution
from dalle_server.engine.runners.cpu.compiled.vqgan.convolution import AROUND, HERE, Convolution, Steps
from dalle_server.errors import CheckpointError
from dalle_server.models.config import VQGANConfig

T = TypeVar("T")
Ranges = Mapping[str, float]  # convolution → the largest input it is prepared for


class VQGANWeights:
    """Convolutions named in `ranges` are int8, all others float32. `lowered` is the library's.

    Raises CheckpointError for a weight that int8 cannot hold: NaN or infinite.
    """

    def __init__(self, tensors: Mapping[str, Any], config: VQGANConfig, ranges: Ranges, lowered: int):
        self.config = config
        self._tensors = tensors
        self._ranges = ranges
        self._lowered = lowered
        self._made: dict[str, Any] = {}

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self._tensors

    def array(self, name: str) -> NDArray[np.float32]:
        return np.array(self._tensors[name], np.float32)

    def convolution(self, name: str) -> Convolution:
        return self._once(name, lambda: self._convolution(name))

    def doubled(self, name: str) -> list[Convolution]:
        return self._once(name, lambda: convolution.doubled(*self._parts(name)))

    def codebook(self, num_codes: int) -> Convolution:
        """|e|² − 2 z·e for each of the first entries e, as a convolution of the embeddings z."""
        table = self.array("quantize.embedding.weight")[:num_codes]
        return convolution.exact(-2 * table[:, :, None], np.square(table).sum(axis=1), HERE)

    def codes(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """ids → their embeddings."""
        return np.asarray(self._tensors["quantize.embedding.weight"][ids], np.float32)

    def _parts(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        weight, bias = self.array(f"{name}.weight"), self.array(f"{name}.bias")
        release_pages(self._tensors[f"{name}.weight"])
        return weight, bias

    def _convolution(self, name: str) -> Convolution:
        weight, bias = self._parts(name)
        if name.endswith(".q"):  # attention's 1/√D
            scale = np.float32(1 / np.sqrt(len(bias)))
            weight, bias = weight * scale, bias * scale
        taps = AROUND if weight.shape[-1] == 3 else HERE
        weight = weight.reshape(*weight.shape[:2], -1)
        if name not in self._ranges:
            return convolution.exact(weight, bias, taps)
        try:
            return convolution.int8(weight, bias, taps, Steps.of_swish(self._ranges[name]), self._lowered)
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}; the weights are broken") from error

    def _once(self, name: str, make: Callable[[], T]) -> T:
        if name not in self._made:
            self._made[name] = make()
        made: T = self._made[name]
        return made
