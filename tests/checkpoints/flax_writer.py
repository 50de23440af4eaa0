"""Writes Flax checkpoints the way flax.serialization does, through the msgpack library."""

import json
from pathlib import Path

import msgpack
import numpy as np

from dalle_server.checkpoints.published.flax_names import transformer_place, vqgan_place


def pack_array(array: np.ndarray) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))


def pack_chunked(array: np.ndarray, chunk_size: int) -> dict:
    flat = array.reshape(-1)
    chunks = [flat[i : i + chunk_size] for i in range(0, flat.size, chunk_size)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): size for i, size in enumerate(array.shape)},
        "chunks": {str(i): pack_array(chunk) for i, chunk in enumerate(chunks)},
    }


def read_tree(path: Path) -> dict:
    """The whole tree at once, by the msgpack library."""

    def unpack(code: int, data: bytes) -> np.ndarray:
        assert code == 1
        shape, dtype, content = msgpack.unpackb(data)
        return np.frombuffer(content, dtype).reshape(shape)

    return msgpack.unpackb(path.read_bytes(), ext_hook=unpack)


def from_native(place: str, array: np.ndarray) -> np.ndarray:
    if not place.endswith("/kernel"):
        return array
    return array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)


def write_tree(path: Path, leaves: dict[str, object]) -> None:
    """`leaves`: path joined with "/" → packed leaf."""
    tree: dict = {}
    for place, leaf in leaves.items():
        *branches, last = place.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[last] = leaf
    path.write_bytes(msgpack.packb(tree, use_bin_type=True))


def write_flax(directory: Path, config, transformer: dict, vqgan: dict, *, stacked: bool) -> Path:
    """A Flax folder with its VQGAN inside, from native tensors."""
    (directory / "vqgan").mkdir(parents=True)
    leaves: dict[str, list[np.ndarray]] = {}
    for name, array in transformer.items():
        place, _layer = transformer_place(name, stacked)
        leaves.setdefault(place, []).append(from_native(place, array))
    joined = {
        place: np.stack(arrays) if stacked and "Layers/" in place else arrays[0] for place, arrays in leaves.items()
    }
    write_tree(directory / "flax_model.msgpack", {place: pack_array(array) for place, array in joined.items()})
    places = {vqgan_place(name)[0]: array for name, array in vqgan.items()}
    write_tree(
        directory / "vqgan" / "flax_model.msgpack",
        {place: pack_array(from_native(place, array)) for place, array in places.items()},
    )
    described = config.to_dict()
    (directory / "config.json").write_text(json.dumps(described["transformer"]))
    (directory / "vqgan" / "config.json").write_text(json.dumps(described["vqgan"]))
    (directory / "tokenizer.json").write_bytes(b'{"version": "1.0"}')
    return directory
