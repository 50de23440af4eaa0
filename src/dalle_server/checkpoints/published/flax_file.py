"""Reading `flax_model.msgpack` without JAX and without loading it.

One pass over the file notes where each array's bytes lie; `Leaf.read` then fetches a slice of one.
A msgpack library would build every array in memory first (Mega in fp32 is 10 GB), hence the small
reader of msgpack headers here (https://github.com/msgpack/msgpack/blob/master/spec.md).

Flax writes a tree of maps whose leaves are extension type 1, itself msgpack: (shape, dtype, bytes).
A leaf over 1 GiB is a map instead: `__msgpack_chunked_array__`, its shape, and flat chunks.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from dalle_server.checkpoints.hub.damage import missing, unreadable
from dalle_server.checkpoints.tensor_file import Array
from dalle_server.errors import CheckpointError

_NDARRAY = 1  # flax's extension types: 1 array, 2 complex, 3 numpy scalar
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 16
_MAX_KEY_BYTES = 4096
_MAX_DIMENSIONS = 8
_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# First byte → (kind, layout of the length or value that follows).
_HEADERS = {
    0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I"),
    0xC7: ("ext", ">B"), 0xC8: ("ext", ">H"), 0xC9: ("ext", ">I"),
    0xCC: ("int", ">B"), 0xCD: ("int", ">H"), 0xCE: ("int", ">I"), 0xCF: ("int", ">Q"),
    0xD9: ("str", ">B"), 0xDA: ("str", ">H"), 0xDB: ("str", ">I"),
    0xDC: ("array", ">H"), 0xDD: ("array", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip
_FIXED = {0xC2: ("bool", 0), 0xC3: ("bool", 1), **{0xD4 + n: ("ext", 1 << n) for n in range(5)}}


@dataclass(frozen=True, slots=True)
class Leaf:
    """One array of the tree: what it is, and where its bytes lie in the file."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: tuple[tuple[int, int], ...]  # (offset, bytes) in order

    def read(self, index: int | None = None) -> Array:
        """The whole array, or `array[index]`. Raises CheckpointError when the file has become shorter."""
        shape = self.shape if index is None else self.shape[1:]
        wanted = prod(shape) * self.dtype.itemsize
        skip = 0 if index is None else index * wanted
        buffer = bytearray(wanted)
        view = memoryview(buffer)
        with self.path.open("rb") as file:
            for offset, num_bytes in self.pieces:
                if skip < num_bytes and view:
                    file.seek(offset + skip)
                    part = view[: num_bytes - skip]
                    if file.readinto(part) != len(part):
                        raise CheckpointError(f"{self.path} became shorter while it was read")
                    view = view[len(part) :]
                skip = max(0, skip - num_bytes)
        return np.frombuffer(buffer, self.dtype).reshape(shape)


def read_leaves(path: Path) -> dict[str, Leaf]:
    """Path in the tree, joined with "/" → leaf. Raises CheckpointError for a damaged or foreign file."""
    try:
        with path.open("rb") as file:
            walk = _Walk(path, file, path.stat().st_size)
            walk.tree("", 0)
            if file.tell() != walk.size:
                raise CheckpointError(f"{path}: {walk.size - file.tell()} bytes follow the end of the tree")
            return walk.leaves
    except FileNotFoundError:
        raise CheckpointError(missing(path)) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


class _Walk:
    """One pass over a file, jumping over the arrays' bytes."""

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.path, self.file, self.size = path, file, size
        self.leaves: dict[str, Leaf] = {}

    def damaged(self, what: str) -> CheckpointError:
        where = f"{what} at byte {self.file.tell()} of {self.size}"
        return CheckpointError(unreadable(self.path, "a whole Flax checkpoint", where))

    def tree(self, prefix: str, depth: int) -> None:
        kind, count = self.header()
        if kind != "map" or depth > _MAX_DEPTH:
            raise self.damaged(f"{kind} instead of a map of tensors")
        for number in range(count):
            key = self.text()
            if number == 0 and key == _CHUNKED:
                return self.chunked(prefix, count)
            self.node(f"{prefix}/{key}" if prefix else key, depth)
        return None

    def node(self, name: str, depth: int) -> None:
        start = self.file.tell()
        kind, length = self.header()
        if kind == "ext":
            self.add(name, [self.array(length)])
        elif kind == "map":
            self.file.seek(start)
            self.tree(name, depth + 1)
        else:
            raise self.damaged(f"{kind} instead of a tensor for {name}")

    def chunked(self, name: str, count: int) -> None:
        """The rest of a chunked leaf: the flag's value, `shape` and `chunks`, each {"0": …, "1": …}."""
        self.header()
        shape: tuple[int, ...] = ()
        chunks: list[Leaf] = []
        for _ in range(count - 1):
            key = self.text()
            kind, length = self.header()
            if kind != "map" or key not in ("shape", "chunks"):
                raise self.damaged(f"{key} in a chunked tensor")
            for number in range(length):
                if self.text() != str(number):
                    raise self.damaged(f"chunks of {name} out of order")
                if key == "shape":
                    shape += (self.expect("int"),)
                else:
                    chunks.append(self.array(self.expect("ext")))
        self.add(name, chunks, shape)

    def array(self, length: int) -> Leaf:
        """An extension's content: its type, then (shape, dtype, bytes)."""
        end = self.file.tell() + 1 + length
        if self.byte() != _NDARRAY or self.expect("array") != 3:
            raise self.damaged("an extension that is no tensor")
        num_dimensions = self.expect("array")
        if num_dimensions > _MAX_DIMENSIONS:
            raise self.damaged(f"{num_dimensions} dimensions")
        shape = tuple(self.expect("int") for _ in range(num_dimensions))
        dtype = self.text()
        if dtype not in _DTYPES:
            raise self.damaged(f"dtype {dtype!r}, which is none of {', '.join(_DTYPES)},")
        num_bytes = self.expect("bin")
        offset = self.file.tell()
        if offset + num_bytes != end or end > self.size or num_bytes != prod(shape) * _DTYPES[dtype].itemsize:
            raise self.damaged(f"{num_bytes} bytes for a {dtype}{list(shape)} tensor")
        self.file.seek(end)
        return Leaf(self.path, shape, _DTYPES[dtype], ((offset, num_bytes),))

    def add(self, name: str, chunks: Sequence[Leaf], shape: tuple[int, ...] | None = None) -> None:
        if name in self.leaves or not chunks or len({chunk.dtype for chunk in chunks}) != 1:
            raise self.damaged(f"{name} is there twice, empty or mixed")
        shape = chunks[0].shape if shape is None else shape
        if prod(shape) != sum(prod(chunk.shape) for chunk in chunks):
            raise self.damaged(f"the chunks of {name} do not add up to {list(shape)}")
        pieces = tuple(piece for chunk in chunks for piece in chunk.pieces)
        self.leaves[name] = Leaf(self.path, shape, chunks[0].dtype, pieces)

    def header(self) -> tuple[str, int]:
        """The next object's kind and its length (map, array: entries; str, bin, ext: bytes) or value."""
        first = self.byte()
        if first < 0x80:
            return "int", first
        if first < 0xC0:
            return (
                ("map", first & 15) if first < 0x90 else ("array", first & 15) if first < 0xA0 else ("str", first & 31)
            )
        if first in _FIXED:
            return _FIXED[first]
        if first not in _HEADERS:
            raise self.damaged(f"unexpected msgpack type {first:#x}")
        kind, layout = _HEADERS[first]
        (value,) = struct.unpack(layout, self.exactly(struct.calcsize(layout)))
        return kind, int(value)

    def expect(self, kind: str) -> int:
        found, value = self.header()
        if found != kind:
            raise self.damaged(f"{found} instead of {kind}")
        return value

    def text(self) -> str:
        length = self.expect("str")
        if length > _MAX_KEY_BYTES:
            raise self.damaged(f"a name of {length} bytes")
        try:
            return self.exactly(length).decode()
        except UnicodeDecodeError:
            raise self.damaged("a name that is not UTF-8") from None

    def byte(self) -> int:
        return self.exactly(1)[0]

    def exactly(self, num_bytes: int) -> bytes:
        data = self.file.read(num_bytes)
        if len(data) != num_bytes:
            raise self.damaged("the file ends")
        return data
