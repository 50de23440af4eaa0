"""`python -m …published.unpickle SKIP IN.pt OUT.safetensors …`: the only place that opens pickles.

Runs in a process of its own, so that torch stays out of the server's and a hostile file has only
`weights_only` unpickling to work with. Errors are one line on stderr and exit status 1.
"""

from __future__ import annotations

import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dalle_server.checkpoints.hub.damage import instead
from dalle_server.checkpoints.tensor_file import Array, LazyTensor, write_tensors
from dalle_server.errors import CheckpointError

_MIN_TORCH = (2, 10)  # earlier `weights_only` loading could be made to run code
_DTYPES = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
MOST_SHARED = 2  # times its file that tensors may be large, since some share their numbers


def main(skip: str, *paths: str) -> None:
    """Pairs of a pickle to read and a safetensors file to write. Tensors are left out whose names begin as the pattern
    `skip` says, unless it is empty. Raises CheckpointError.
    """
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"reading {paths[0]} needs PyTorch, once: pip install 'dalle-server[torch]'"
            f" (the converted weights can then be served without it)"
        ) from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _MIN_TORCH:
        raise CheckpointError(f"PyTorch {torch.__version__} does not unpickle safely: install 2.10 or newer")
    for source, target in zip(paths[::2], paths[1::2], strict=True):
        wanted = {name: tensor for name, tensor in _load(source).items() if not (skip and re.match(skip, name))}
        _check_sizes(source, wanted)
        try:
            write_tensors(Path(target), {name: _lazy(source, name, tensor) for name, tensor in wanted.items()})
        except OSError as error:
            folder = Path(target).parents[1]
            raise CheckpointError(
                f"what {source} holds cannot be written to {folder}: {error.strerror or error}; make room there, or"
                f" name another place with --cache_dir"
            ) from error


def _load(source: str) -> dict[str, Any]:
    import torch

    if reason := instead(Path(source)):
        raise CheckpointError(f"{source} cannot be read as weights: {reason}")
    try:
        mapped = zipfile.is_zipfile(source)  # torch's older format cannot be mapped
        state = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:  # torch's own words advise to turn the protection off
        raise CheckpointError(
            f"{source} cannot be read as weights: it is damaged, or holds more than tensors, and then opening it could"
            f" run its code; get it again from where it is published"
        ) from error
    except Exception as error:  # torch raises what the damaged byte led it to
        first_line = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{source} cannot be read as weights ({type(error).__name__}: {first_line})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{source} is not a flat dictionary of tensors")
    return {str(name): tensor for name, tensor in state.items()}


def _check_sizes(source: str, tensors: Mapping[str, Any]) -> None:
    """A tensor may be a view that repeats a few numbers: a small file could ask for any amount of memory and disk."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    most = Path(source).stat().st_size
    if sizes and sizes[largest] > most:
        raise CheckpointError(f"{source}: tensor {largest} has {sizes[largest]} bytes, more than the file it is in")
    if sum(sizes.values()) > MOST_SHARED * most:
        raise CheckpointError(f"{source}: its tensors have {sum(sizes.values())} bytes, but the file only {most}")


def _lazy(source: str, name: str, tensor: Any) -> LazyTensor:
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in _DTYPES or str(tensor.layout) != "torch.strided":
        raise CheckpointError(
            f"{source}: cannot read {name}, {kind} and {tensor.layout}; expected one of {', '.join(_DTYPES)}, dense"
        )
    return LazyTensor(tuple(tensor.shape), _DTYPES[kind], partial(_to_numpy, tensor))


def _to_numpy(tensor: Any) -> Array:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return bits
    array: Array = tensor.numpy()
    return array


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except CheckpointError as error:
        sys.exit(str(error))
