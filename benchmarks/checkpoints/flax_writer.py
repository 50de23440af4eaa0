"""Writing `flax_model.msgpack` without JAX, one array in memory at a time: flax_file.py backwards."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from dalle_server.checkpoints.tensor_file import LazyTensor

_EXT32, _BIN32, _NDARRAY = 0xC9, 0xC6, 1


def write_flax_leaves(path: Path, leaves: Mapping[str, LazyTensor]) -> None:
    """`leaves`: place in the tree, joined with "/" → array of up to 1 GiB (Flax splits larger ones)."""
    tree: dict[str, Any] = {}
    for place, leaf in leaves.items():
        *branches, last = place.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[last] = leaf
    with path.open("wb") as file:
        _write_node(file, tree)


def _write_node(file: BinaryIO, node: Any) -> None:
    if isinstance(node, LazyTensor):
        _write_array(file, node)
        return
    file.write(msgpack.Packer().pack_map_header(len(node)))
    for key, child in sorted(node.items()):
        file.write(msgpack.packb(key))
        _write_node(file, child)


def _write_array(file: BinaryIO, leaf: LazyTensor) -> None:
    # msgpack.packb of (shape, dtype, bytes), whose last element is a bin header and the raw bytes
    head = (
        b"\x93" + msgpack.packb(leaf.shape) + msgpack.packb(leaf.dtype.name) + struct.pack(">BI", _BIN32, leaf.nbytes)
    )
    file.write(struct.pack(">BIb", _EXT32, len(head) + leaf.nbytes, _NDARRAY) + head)
    file.write(np.ascontiguousarray(leaf.load()).reshape(-1).view(np.uint8).data)
