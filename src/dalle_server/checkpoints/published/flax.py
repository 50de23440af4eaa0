"""The published form: a dalle-mini Flax folder and, for the pixels, a vqgan-jax folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dalle_server.checkpoints.model_config import check_config, model_config, read_json, shards_of
from dalle_server.checkpoints.published.flax_file import Leaf, read_leaves
from dalle_server.checkpoints.published.flax_names import (
    stacked_prefix,
    to_native,
    to_native_shape,
    transformer_place,
    vqgan_place,
)
from dalle_server.checkpoints.published.source import PublishedSource
from dalle_server.checkpoints.published.tokenizer_files import find_tokenizer_files
from dalle_server.checkpoints.tensor_file import Array, LazyTensor
from dalle_server.checkpoints.tensor_names import vqgan_decoder_tensors, vqgan_encoder_tensors
from dalle_server.errors import CheckpointError
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.config import Shapes

WEIGHTS = "flax_model.msgpack"
_INDEX = "flax_model.msgpack.index.json"  # transformers splits files over 10 GB

# What dalle-mini's and vqgan-jax's config classes assume for a key that config.json leaves out.
_TRANSFORMER_DEFAULTS: dict[str, Any] = {
    "normalize_text": False, "scale_embedding": False, "d_model": 1024, "image_length": 256, "max_text_length": 64,
    "encoder_vocab_size": 50264, "image_vocab_size": 16384, "encoder_layers": 12, "decoder_layers": 12,
    "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "encoder_attention_heads": 16, "decoder_attention_heads": 16,
}  # fmt: skip
_VQGAN_DEFAULTS: dict[str, Any] = {
    "ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "z_channels": 256,
    "embed_dim": 256, "n_embed": 1024, "resolution": 256,
}  # fmt: skip
_SAMPLING = ("temperature", "top_k", "top_p")


def is_flax(directory: Path) -> bool:
    # Not Path.is_file, which raises for a folder that nobody may look into, such as lost+found.
    return os.path.isfile(directory / WEIGHTS) or os.path.isfile(directory / _INDEX)  # noqa: PTH113


def is_flax_vqgan(directory: Path) -> bool:
    return is_flax(directory) and "ch_mult" in _config_or_empty(directory)


def is_flax_dalle(directory: Path) -> bool:
    return is_flax(directory) and not is_flax_vqgan(directory)


def read_flax(directory: Path, vqgan_directory: Path, name: str) -> PublishedSource:
    """Raises CheckpointError naming a tensor that is missing, unknown or of another shape."""
    raw = _TRANSFORMER_DEFAULTS | read_json(directory / "config.json")
    raw_vqgan = _VQGAN_DEFAULTS | read_json(vqgan_directory / "config.json")
    sampling = {key: raw[key] for key in _SAMPLING if raw.get(key) is not None}
    where = f"{directory / 'config.json'} with {vqgan_directory / 'config.json'}"
    config = model_config(where, {"name": name, "transformer": raw, "vqgan": raw_vqgan, "sampling": sampling})
    check_config(where, config)

    leaves = _read_all(directory)
    stacked = {half: any(path.startswith(stacked_prefix(half)) for path in leaves) for half in ("encoder", "decoder")}
    transformer = _tensors(
        directory,
        leaves,
        config.transformer.tensors(),
        lambda name: transformer_place(name, stacked.get(name.split(".")[0], False)),
    )
    _check_layer_axis(directory, leaves, config.sizes(DalleBartConfig).encoder_layers, "encoder")
    _check_layer_axis(directory, leaves, config.sizes(DalleBartConfig).decoder_layers, "decoder")
    vqgan_leaves = _read_all(vqgan_directory)
    names = vqgan_decoder_tensors(config.vqgan)
    if any(path.startswith(("encoder/", "quant_conv/")) for path in vqgan_leaves):
        names |= vqgan_encoder_tensors(config.vqgan)
    vqgan = _tensors(vqgan_directory, vqgan_leaves, names, vqgan_place)
    return PublishedSource(config, transformer, vqgan, find_tokenizer_files(directory))


def _config_or_empty(directory: Path) -> dict[str, Any]:
    try:
        return read_json(directory / "config.json")
    except CheckpointError:
        return {}


def _read_all(directory: Path) -> dict[str, Leaf]:
    if (directory / WEIGHTS).is_file() or not (directory / _INDEX).is_file():
        return read_leaves(directory / WEIGHTS)
    leaves: dict[str, Leaf] = {}
    for shard in shards_of(directory / _INDEX):
        leaves |= read_leaves(directory / shard)
    return leaves


def _tensors(
    directory: Path, leaves: dict[str, Leaf], names: Shapes, place_of: Callable[[str], tuple[str, int | None]]
) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for name in names:
        place, layer = place_of(name)
        if place not in leaves:
            raise CheckpointError(f"{directory}: {place} is missing from the Flax weights ({name})")
        leaf = leaves[place]
        shape = to_native_shape(place, leaf.shape if layer is None else leaf.shape[1:])
        if shape != names[name]:
            raise CheckpointError(f"{directory}: {place} gives {name} {shape} instead of {names[name]}")
        tensors[name] = LazyTensor(shape, leaf.dtype, partial(_load, leaf, place, layer))
        used.add(place)
    unknown = sorted(leaves.keys() - used)
    if unknown:
        raise CheckpointError(f"{directory}: the Flax weights hold tensors unknown to config.json: {unknown[:5]}")
    return tensors


def _check_layer_axis(directory: Path, leaves: dict[str, Leaf], num_layers: int, half: str) -> None:
    for path, leaf in leaves.items():
        if path.startswith(stacked_prefix(half)) and leaf.shape[:1] != (num_layers,):
            raise CheckpointError(
                f"{directory}: {path} stacks {leaf.shape[:1]} layers, but config.json says {num_layers}"
            )


def _load(leaf: Leaf, place: str, layer: int | None) -> Array:
    return to_native(place, leaf.read(layer))
