"""safetensors files as numpy: memory-mapped reading, and writing one tensor at a time.

Reading leaves the validation of the header (no holes, no overlaps, nothing past the end) to the
safetensors library, then hands out views of one memory map: nothing is copied. Writing is ours,
because the library needs all tensors in memory at once and Mega in fp32 is 10 GB.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from dalle_server.checkpoints.hub.damage import missing, unreadable
from dalle_server.errors import CheckpointError
from dalle_server.models.config import Shapes

Array = NDArray[Any]
Progress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_ALIGNMENT_BYTES = 8


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is read only when it is written. `load` returns an array of this shape and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def open_tensors(
    path: Path,
    dtypes: Mapping[str, np.dtype[Any]] = DTYPES,
    skip: Callable[[str], bool] = lambda name: False,
) -> dict[str, Array]:
    """Name → read-only view of the mapped file, without the names to skip.

    Raises CheckpointError for a damaged file or a dtype that is not in `dtypes`.
    """
    try:
        with safe_open(path, framework="numpy"):  # validates the header against the size of the file
            pass
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError(missing(path)) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(unreadable(path, "a readable safetensors file", error)) from error
    header.pop("__metadata__", None)
    wanted = {name: entry for name, entry in header.items() if not skip(name)}
    return {name: _view(path, mapped, 8 + header_bytes, name, entry, dtypes) for name, entry in wanted.items()}


def _view(
    path: Path,
    mapped: mmap.mmap,
    data_start: int,
    name: str,
    entry: dict[str, Any],
    dtypes: Mapping[str, np.dtype[Any]],
) -> Array:
    if entry["dtype"] not in dtypes:
        raise CheckpointError(f"{path}: tensor {name} has dtype {entry['dtype']}; expected one of {', '.join(dtypes)}")
    start, end = entry["data_offsets"]
    dtype = dtypes[entry["dtype"]]
    array: Array = np.frombuffer(mapped, np.uint8)[data_start + start : data_start + end]
    if (data_start + start) % dtype.itemsize:  # another writer may not align; torch and the compiled code want it
        array = array.copy()
    shaped: Array = array.view(dtype).reshape(entry["shape"])
    return shaped


def check_tensors(where: str, found: Mapping[str, Array | LazyTensor], expected: Shapes) -> None:
    """Raises CheckpointError naming the tensors that are missing, unknown or of another shape."""
    faults = [f"{name} {expected[name]} is missing" for name in expected if name not in found]
    faults += [f"{name} {found[name].shape} is unknown" for name in found if name not in expected]
    faults += [
        f"{name} is {tuple(found[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{where} does not fit its config: {'; '.join(faults[:5])}{more}")


def release_pages(*tensors: Array) -> None:
    """Let the system take back the memory in which these views of a mapped file were read.

    They stay valid: what is read again comes from the file. Where the system has no such call, nothing happens.
    """
    for tensor in tensors:
        root: Any = tensor
        while isinstance(root, np.ndarray):
            root = root.base
        mapped = root.obj if isinstance(root, memoryview) else root
        if not isinstance(mapped, mmap.mmap) or not hasattr(mapped, "madvise"):
            continue
        begin = tensor.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
        first, last = -(-begin // mmap.PAGESIZE), (begin + tensor.nbytes) // mmap.PAGESIZE
        if last > first:
            mapped.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Array | LazyTensor],
    report: Callable[[int], None] = lambda done: None,
    dtypes: Mapping[str, np.dtype[Any]] = DTYPES,
) -> None:
    """Write in the mapping's order, one tensor in memory at a time, and flush to disk.

    `report` gets the bytes of each tensor written. Raises CheckpointError for a dtype that is not
    in `dtypes` (fp32, fp16, bf16). The file is deterministic: same tensors, same bytes.
    """
    with path.open("wb") as file:
        file.write(_header(path, tensors, {dtype: code for code, dtype in dtypes.items()}))
        for name, tensor in tensors.items():
            _write_tensor(file, name, tensor)
            report(tensor.nbytes)
        file.flush()
        os.fsync(file.fileno())


def _header(path: Path, tensors: Mapping[str, Array | LazyTensor], codes: Mapping[np.dtype[Any], str]) -> bytes:
    entries: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in codes:
            raise CheckpointError(f"{path.name}: cannot store {name} as {tensor.dtype}; use fp32, fp16 or bf16")
        shape = [int(size) for size in tensor.shape]
        entries[name] = {
            "dtype": codes[tensor.dtype],
            "shape": shape,
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: BinaryIO, name: str, tensor: Array | LazyTensor) -> None:
    array = tensor.load() if isinstance(tensor, LazyTensor) else tensor
    if tuple(array.shape) != tuple(tensor.shape) or array.dtype != tensor.dtype:
        raise CheckpointError(
            f"tensor {name} turned out as {array.dtype}{array.shape}, not {tensor.dtype}{tensor.shape}"
        )
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
