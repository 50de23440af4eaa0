"""The VQGAN's layers as operations over feature maps, written down one after the other for operations.h."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.runners.cpu.compiled import operations
from dalle_server.engine.runners.cpu.compiled.stack import aligned_zeros
from dalle_server.engine.runners.cpu.compiled.tiles import LANES
from dalle_server.engine.runners.cpu.compiled.vqgan.convolution import HERE, Convolution, Steps, whole
from dalle_server.engine.runners.cpu.compiled.vqgan.weights import VQGANWeights

_SPARE = 16  # places that a block of sums may read past the end of a map

Bytes = NDArray[np.uint8]
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """(height, width, channels) in float32; zeros fill channels up to whole tiles of 16."""

    memory: Bytes
    moments: Bytes  # of each row and channel: mean and squares around it
    height: int
    width: int
    channels: int

    @property
    def places(self) -> int:
        return self.height * self.width

    @property
    def depth(self) -> int:
        return whole(self.channels)

    def array(self) -> NDArray[np.float32]:
        """Not copied."""
        floats = self.memory.view(np.float32)[: self.places * self.depth]
        return floats.reshape(self.height, self.width, self.depth)[:, :, : self.channels]


@dataclass(frozen=True, slots=True)
class _Source:
    """What a convolution reads: places a row, units a place, places from one output to the next, where it begins."""

    memory: Bytes
    width: int
    units: int
    stride: int = 1
    first: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a convolution writes: every `spread`-th row and column, from `first` on."""

    map: FeatureMap
    spread: int = 1
    first: tuple[int, int] = (0, 0)


@dataclass
class _Memory:
    """Maps come and go in the order of the operations, so that a few pieces of memory serve them all."""

    free: list[Bytes] = field(default_factory=list)

    def take(self, num_bytes: int) -> Bytes:
        fitting = [index for index, piece in enumerate(self.free) if piece.nbytes >= num_bytes]
        if not fitting:
            return aligned_zeros((num_bytes,), np.uint8)
        return self.free.pop(min(fitting, key=lambda index: self.free[index].nbytes))

    def give(self, piece: Bytes) -> None:
        self.free.append(piece)


class LayerWriter:
    """Each method appends to `operations` and says where the result will be. A map that it is given is used up.

    `largest` says of each convolution behind a norm where its inputs' largest values of each row will be.
    """

    def __init__(self, library: Any, weights: VQGANWeights):
        self.library = library
        self.weights = weights
        self.operations: list[tuple[ctypes.Structure, int]] = []
        self.kept: list[Any] = []
        self.largest: dict[str, Vector] = {}
        self._memory = _Memory()

    def new(self, height: int, width: int, channels: int) -> FeatureMap:
        depth_bytes = whole(channels) * 4
        memory = self._memory.take((height * width + _SPARE) * depth_bytes)
        return FeatureMap(memory, self._memory.take(height * 2 * depth_bytes), height, width, channels)

    def residual(self, x: FeatureMap, prefix: str) -> FeatureMap:
        h = self._normed_convolution(x, f"{prefix}.norm1", f"{prefix}.conv1")
        if self.weights.has(f"{prefix}.nin_shortcut"):
            x = self.convolution(x, f"{prefix}.nin_shortcut")
        self._normed_convolution(h, f"{prefix}.norm2", f"{prefix}.conv2", onto=x)
        self._give(h)
        return x

    def attention(self, x: FeatureMap, prefix: str) -> FeatureMap:
        """Over all places, in one head."""
        scale, shift = self._norm(x, f"{prefix}.norm")
        h = self.new(x.height, x.width, x.channels)
        self._frame(x, h.memory, scale=_at(scale), shift=_at(shift), is_exact=True)
        query, key, value = (self._product(h, self.weights.convolution(f"{prefix}.{part}")) for part in "qkv")
        scores = self._product(query, self._packed(key, is_keys=True))
        self.operations.append((operations.Softmax(_at(scores.memory), x.places, x.places, scores.depth), x.places))
        mixed = self._product(scores, self._packed(value, is_keys=False))
        self._product(mixed, self.weights.convolution(f"{prefix}.proj_out"), onto=x)
        for used in (h, query, key, value, scores, mixed):
            self._give(used)
        return x

    def output(self, x: FeatureMap, prefix: str) -> FeatureMap:
        """conv_out(swish(norm_out(x)))."""
        return self._replaced(x, self._normed_convolution(x, f"{prefix}.norm_out", f"{prefix}.conv_out"))

    def convolution(self, x: FeatureMap, name: str, *, is_kept: bool = False) -> FeatureMap:
        """`is_kept`: no other map may use the memory of x."""
        made = self.weights.convolution(name)
        y = self._product(x, made) if made.taps == HERE else self._framed_convolution(x, made, self._framed(x))
        return y if is_kept else self._replaced(x, y)

    def halved(self, x: FeatureMap, name: str) -> FeatureMap:
        """A 3×3 convolution at every second place, framed at the right and below only."""
        made, framed = self.weights.convolution(name), self._framed(x)
        y = self.new(x.height // 2, x.width // 2, made.outputs)
        # The first tap is the place itself, which stands at (1, 1) of the framed map.
        self._convolve(made, _Source(framed, x.width + 2, made.num_units, 2, (1, 1)), _Target(y), y)
        self._memory.give(framed)
        return self._replaced(x, y)

    def doubled(self, x: FeatureMap, name: str) -> FeatureMap:
        """Every place doubled in both directions, then a 3×3 convolution; computed as four of the map itself."""
        parts, framed = self.weights.doubled(name), self._framed(x)
        y = self.new(2 * x.height, 2 * x.width, parts[0].outputs)
        for index, made in enumerate(parts):
            self._convolve(made, _Source(framed, x.width + 2, made.num_units), _Target(y, 2, divmod(index, 2)), x)
        self._memory.give(framed)
        what = operations.Moments(_at(y.memory), _at(y.moments), y.height, y.width, y.depth)
        self.operations.append((what, y.height))
        return self._replaced(x, y)

    def distances(self, z: FeatureMap, num_codes: int) -> FeatureMap:
        """(h, w, E) → (h, w, C) squared distance from each of the codebook's first C entries, less |z|²."""
        return self._product(z, self.weights.codebook(num_codes))

    def _replaced(self, old: FeatureMap, new: FeatureMap) -> FeatureMap:
        self._give(old)
        return new

    def _give(self, x: FeatureMap) -> None:
        self._memory.give(x.memory)
        self._memory.give(x.moments)

    def _normed_convolution(self, x: FeatureMap, norm: str, name: str, onto: FeatureMap | None = None) -> FeatureMap:
        """conv(swish(norm(x))), added to `onto` if that is given. x can still be used."""
        made, largest = self.weights.convolution(name), np.zeros(x.height, np.float32)
        self.largest[name] = largest
        self.kept.append(largest)
        return self._framed_convolution(x, made, self._framed(x, made.steps, self._norm(x, norm), largest), onto)

    def _framed_convolution(
        self, x: FeatureMap, made: Convolution, framed: Bytes, onto: FeatureMap | None = None
    ) -> FeatureMap:
        y = onto or self.new(x.height, x.width, made.outputs)
        self._convolve(made, _Source(framed, x.width + 2, made.num_units), _Target(y), y, is_added=onto is not None)
        self._memory.give(framed)
        return y

    def _product(self, x: FeatureMap, made: Convolution, onto: FeatureMap | None = None) -> FeatureMap:
        """A 1×1 convolution, which reads the map itself."""
        y = onto or self.new(x.height, x.width, made.outputs)
        self._convolve(made, _Source(x.memory, x.width, x.depth), _Target(y), y, is_added=onto is not None)
        return y

    def _convolve(
        self, made: Convolution, source: _Source, target: _Target, size: FeatureMap, *, is_added: bool = False
    ) -> None:
        """At as many places as `size` has."""
        units, depth, spread = source.units, target.map.depth, target.spread
        offsets = [(source.first[0] + row, source.first[1] + column) for row, column in made.taps]
        at = _at(target.map.memory) + 4 * depth * (target.first[0] * target.map.width + target.first[1])
        what = operations.Convolve(
            units=_at(source.memory),
            weights=_at(made.weights),
            start=None if made.start is None else _at(made.start),
            scale=None if made.scale is None else _at(made.scale),
            bias=_at(made.bias),
            residual=at if is_added else None,
            to=at,
            moments=_at(target.map.moments) if spread == 1 else None,
            taps=(ctypes.c_int64 * 9)(*((row * source.width + column) * units for row, column in offsets)),
            unit_column=source.stride * units,
            unit_row=source.stride * source.width * units,
            float_column=spread * depth,
            float_row=spread * target.map.width * depth,
            num_taps=len(made.taps),
            num_units=made.num_units,
            tiles=len(made.weights),
            rows=size.height,
            columns=size.width,
            is_exact=made.steps is None,
        )
        self.kept += [made, source, target]
        self.operations.append((what, self.library.convolution_chunks(ctypes.byref(what))))

    def _norm(self, x: FeatureMap, name: str) -> tuple[Vector, Vector]:
        """→ what each channel is multiplied with and what is added, known once the operations until here are done."""
        sizes, groups = (x.height, x.width, x.depth), self.weights.config.num_groups
        scale, shift = aligned_zeros((2, x.depth), np.float32)
        weight, bias = (self.weights.array(f"{name}.{part}") for part in ("weight", "bias"))
        self.kept += [x, scale, shift, weight, bias]
        pointers = (_at(array) for array in (x.moments, weight, bias, scale, shift))
        self.operations.append((operations.Norm(*pointers, *sizes, groups, x.channels // groups), groups))
        return scale, shift

    def _framed(
        self,
        x: FeatureMap,
        steps: Steps | None = None,
        norm: tuple[Vector, Vector] | None = None,
        largest: Vector | None = None,
    ) -> Bytes:
        """The map as a 3×3 convolution reads it, through the norm and swish if there is one."""
        places = (x.height + 2) * (x.width + 2) + _SPARE
        framed = self._memory.take(places * x.depth * (1 if steps else 4))
        settings: dict[str, Any] = {"is_framed": True, "is_exact": steps is None}
        if norm:
            settings |= {"scale": _at(norm[0]), "shift": _at(norm[1]), "is_swish": True}
        if largest is not None:
            settings |= {"largest": _at(largest)}
        if steps:
            settings |= {"inverse_step": 1 / steps.step, "zero": steps.zero}
        self._frame(x, framed, **settings)
        return framed

    def _frame(self, x: FeatureMap, to: Bytes, **settings: Any) -> None:
        sizes = {"rows": x.height, "columns": x.width, "channels": x.depth}
        what = operations.Framing(source=_at(x.memory), to=_at(to), **sizes, **settings)
        self.kept += [x, to]
        self.operations.append((what, x.height + 2 * what.is_framed))

    def _packed(self, x: FeatureMap, *, is_keys: bool) -> Convolution:
        """x as the right side of a product: its outputs are the places (keys), or the channels (values)."""
        outputs, inputs = (x.places, x.depth) if is_keys else (x.channels, whole(x.places))
        tiles = aligned_zeros((whole(outputs) // LANES, 1, inputs, LANES), np.float32)
        self.kept += [x, tiles]
        self.operations.append((operations.Packing(_at(x.memory), _at(tiles), x.places, x.depth, is_keys), len(tiles)))
        return Convolution(tiles, aligned_zeros((whole(outputs),), np.float32), outputs, HERE)


def _at(array: NDArray[Any]) -> int:
    return array.ctypes.data
