"""Janus-Pro's published forms: the authors' folder (torch pickles or safetensors) and the transformers library's.

Only the half that makes pictures is read. What is left out is known by name; any other tensor is an error. What can be
folded is folded, in fp32: an image token's table through its aligner, the codebook's rows to unit length, and the
pixels' (x + 1)/2 into the last convolution.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dalle_server.checkpoints.atomic import scratch_beside
from dalle_server.checkpoints.model_config import check_config, model_config, read_json, shards_of
from dalle_server.checkpoints.published.janus_names import LEFT_OUT, is_left_out, native_name
from dalle_server.checkpoints.published.janus_tokens import BEGIN_OF_IMAGE, special_ids
from dalle_server.checkpoints.published.pickles import unpickle
from dalle_server.checkpoints.published.source import PublishedSource, check_said, count, lazy, vqgan_sizes
from dalle_server.checkpoints.published.tokenizer_files import TOKENIZER, find_tokenizer_files, open_tokenizer_file
from dalle_server.checkpoints.tensor_file import Array, LazyTensor, Progress, check_tensors, open_tensors
from dalle_server.errors import CheckpointError
from dalle_server.families.janus import DEFAULT_SAMPLING, JanusConfig
from dalle_server.models.config import Shapes

MODEL_TYPES = ("multi_modality", "janus")  # the authors' config.json, and the transformers library's
# What a config that names no value means: transformers' LlamaConfig. The published 7B leaves most of it out.
_LLAMA_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
}  # fmt: skip
MAX_TEXT_LENGTH = 640  # the model knows no limit, but slots do: about 2,000 letters of English
_ROWS_AT_ONCE = 1024  # of the table that is folded: 8 MB of the 1B's
_WEIGHTS = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")

Tensors = Mapping[str, Array]


def is_janus(directory: Path) -> bool:
    try:
        return read_json(directory / "config.json").get("model_type") in MODEL_TYPES
    except CheckpointError:
        return False


@contextmanager
def read_janus(directory: Path, name: str, target: Path, progress: Progress | None = None) -> Iterator[PublishedSource]:
    """Either form. Pickles are first unpickled into a temporary folder beside `target`, what is made of them, about as
    large as they are.

    Raises CheckpointError naming the file or tensor at fault; without PyTorch, pickles cannot be read and it says so.
    """
    with _opened(directory, target, progress) as published:
        yield _source(directory, name, published)


@contextmanager
def _opened(directory: Path, target: Path, progress: Progress | None) -> Iterator[dict[str, Array]]:
    """Published name → tensor of every shard."""
    files = _shards(directory)
    with scratch_beside(target) as temporary:
        pickles = [file for file in files if file.suffix == ".bin"]
        unpickled = [temporary / f"{file.stem}.safetensors" for file in pickles]
        if pickles:
            unpickle(pickles, unpickled, progress, skip=LEFT_OUT)
        opened: dict[str, Array] = {}
        for file in [*(file for file in files if file.suffix != ".bin"), *unpickled]:
            for name, tensor in open_tensors(file, skip=is_left_out).items():
                if name in opened:
                    raise CheckpointError(f"{directory}: two files hold a tensor {name}; which one counts?")
                opened[name] = tensor
        yield opened


def _shards(directory: Path) -> list[Path]:
    for name in _WEIGHTS:
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return [directory / name]
        if index.is_file():
            return [directory / shard for shard in shards_of(index)]
    raise CheckpointError(f"{directory} has no weights: none of {', '.join(_WEIGHTS)}, nor an index of one")


def _source(directory: Path, name: str, published: Tensors) -> PublishedSource:
    named: dict[str, Array] = {}
    for theirs, tensor in published.items():
        name_of_ours = native_name(theirs, str(directory))
        if name_of_ours in named:
            raise CheckpointError(
                f"{directory}: {theirs} stands there under another form's name, too; which one counts?"
            )
        named[name_of_ours] = tensor
    tokenizer_files = find_tokenizer_files(directory)
    start = _start_embedding(directory, tokenizer_files[TOKENIZER], named)
    raw = read_json(directory / "config.json")
    published_vqgan = {name.removeprefix("vqgan."): array for name, array in named.items() if name.startswith("vqgan.")}
    try:
        sizes = _sizes(raw, named, directory)
        grid_side, levels = isqrt(sizes["image_length"]), count(published_vqgan, "decoder.up.")
        # `decoder.up.0` is the deepest level, in both forms.
        found = vqgan_sizes(published_vqgan, reversed(range(levels)), grid_side)
        transformer, vqgan = _transformer(named, start), _vqgan(published_vqgan, levels)
        check_tensors(str(directory), _folded(named), _folded_shapes(named))
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(f"{directory}: no Janus weights, a tensor is missing or misshapen ({error})") from error
    found |= {"attn_resolutions": [grid_side], "reads_signed": True}
    described = {"family": JanusConfig.family, "name": name, "transformer": sizes, "vqgan": found}
    sampling = {key: getattr(DEFAULT_SAMPLING, key) for key in ("temperature", "top_k", "top_p", "condition_scale")}
    config = model_config(str(directory), {**described, "sampling": sampling})
    check_config(str(directory), config)
    return PublishedSource(config, transformer, vqgan, tokenizer_files)


def _sizes(raw: Mapping[str, Any], named: Tensors, directory: Path) -> dict[str, Any]:
    """Sizes as the tensors say; what shapes do not tell, as config.json says or leaves to LlamaConfig."""
    config = directory / "config.json"
    language = _part(raw, "language_config", config) or _part(raw, "text_config", config)
    given = {**_LLAMA_DEFAULTS, **{key: value for key, value in language.items() if value is not None}}
    theta = _part(given, "rope_parameters", config).get("rope_theta", given["rope_theta"])
    for key in ("rope_scaling", "attention_bias", "mlp_bias"):
        if given.get(key):
            raise CheckpointError(f"{config}: {key} {given[key]!r} is not supported")
    if given.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"{config}: hidden_act {given['hidden_act']!r} is not supported")
    d_model, num_heads = named["norm.weight"].shape[0], given["num_attention_heads"]
    sizes = {
        "hidden_size": d_model,
        "intermediate_size": named["layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": count(named, "layers."),
    }
    check_said(given, sizes, config)
    if not isinstance(num_heads, int) or num_heads < 1 or d_model % num_heads:
        raise CheckpointError(f"{config}: num_attention_heads {num_heads!r} do not share hidden_size {d_model} evenly")
    num_kv_heads = named["layers.0.self_attn.k_proj.weight"].shape[0] // (d_model // num_heads)
    check_said(given, {"num_key_value_heads": num_kv_heads}, config)
    return {
        "d_model": d_model,
        "num_layers": sizes["num_hidden_layers"],
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "ffn_dim": sizes["intermediate_size"],
        "vocab_size": named["embed_tokens.weight"].shape[0],
        "image_vocab_size": named["gen_embed.weight"].shape[0],
        "image_length": _image_length(raw, named, directory),
        "max_text_length": MAX_TEXT_LENGTH,
        "rms_norm_eps": _number(given["rms_norm_eps"], "rms_norm_eps", config),
        "rope_theta": _number(theta, "rope_theta", config),
    }


def _part(raw: Mapping[str, Any], key: str, where: Path) -> dict[str, Any]:
    part = raw.get(key) or {}
    if not isinstance(part, dict):
        raise CheckpointError(f"{where}: {key} holds {type(part).__name__}, not a JSON object")
    return part


def _number(value: object, key: str, where: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise CheckpointError(f"{where}: {key} must be a positive number, not {value!r}")
    return float(value)


def _image_length(raw: Mapping[str, Any], named: Tensors, directory: Path) -> int:
    """The authors' form writes the grid's size in processor_config.json only, or leaves it to the picture's size."""
    processor = directory / "processor_config.json"
    vision = _part(raw, "vision_config", directory / "config.json")
    known = vision.get("num_image_tokens") or (read_json(processor) if processor.is_file() else {}).get(
        "num_image_tokens"
    )
    if isinstance(known, int):
        return known
    image_px = (_part(vision, "params", directory / "config.json") or vision).get("image_size")
    if not isinstance(image_px, int):
        raise CheckpointError(f"{directory}: neither config.json nor {processor.name} tells the number of image tokens")
    return (image_px >> (count(named, "vqgan.decoder.up.") - 1)) ** 2


def _transformer(named: Tensors, start: NDArray[np.float32]) -> dict[str, LazyTensor]:
    kept = {
        name: array for name, array in named.items() if not name.startswith(("vqgan.", "gen_embed.", "gen_aligner."))
    }
    tensors = {name: lazy(array) for name, array in kept.items()}
    shape = (named["gen_embed.weight"].shape[0] + 1, len(start))
    return {
        **tensors,
        "image_embed.weight": LazyTensor(shape, np.dtype(np.float32), partial(_image_table, named, start)),
    }


def _folded(named: Tensors) -> dict[str, Array]:
    return {name: array for name, array in named.items() if name.startswith(("gen_embed.", "gen_aligner."))}


def _folded_shapes(named: Tensors) -> Shapes:
    """What the table of image tokens is folded from."""
    num_codes, code_width = named["gen_embed.weight"].shape
    d = named["norm.weight"].shape[0]
    shapes: Shapes = {"gen_embed.weight": (num_codes, code_width)}
    for layer, width in (("fc1", code_width), ("fc2", d)):
        shapes |= {f"gen_aligner.{layer}.weight": (d, width), f"gen_aligner.{layer}.bias": (d,)}
    return shapes


def _image_table(named: Tensors, start: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every image token's embedding, aligner(gen_embed): two linear layers, an exact GELU between. And the start's."""
    codes = named["gen_embed.weight"].astype(np.float32)
    (w1, b1), (w2, b2) = (
        (named[f"gen_aligner.{part}.weight"].astype(np.float32), named[f"gen_aligner.{part}.bias"].astype(np.float32))
        for part in ("fc1", "fc2")
    )
    table = np.empty((len(codes) + 1, len(start)), np.float32)
    for begin in range(0, len(codes), _ROWS_AT_ONCE):
        rows = slice(begin, min(begin + _ROWS_AT_ONCE, len(codes)))
        table[rows] = _gelu(codes[rows] @ w1.T + b1) @ w2.T + b2
    table[-1] = start
    return table


def _gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled = (x / math.sqrt(2)).ravel()
    erf = np.fromiter(map(math.erf, scaled.tolist()), np.float32, scaled.size).reshape(x.shape)
    return x * (1 + erf) * np.float32(0.5)


def _start_embedding(directory: Path, tokenizer: Path | bytes, named: Tensors) -> NDArray[np.float32]:
    """The text embedding of `<begin_of_image>`, which the first step feeds."""
    opened = Tokenizer.from_buffer(tokenizer) if isinstance(tokenizer, bytes) else open_tokenizer_file(tokenizer)
    where = directory / TOKENIZER if isinstance(tokenizer, bytes) else tokenizer
    if "embed_tokens.weight" not in named:
        raise CheckpointError(f"{directory}: no Janus weights, the embeddings of text tokens are missing")
    table = named["embed_tokens.weight"]
    if table.ndim != 2:
        raise CheckpointError(f"{directory}: the embeddings of text tokens are misshapen: {table.shape}")
    row: NDArray[np.float32] = table[special_ids(opened, len(table), where)[BEGIN_OF_IMAGE]].astype(np.float32)
    return row


def _vqgan(published: Tensors, num_levels: int) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for name, array in published.items():
        # Ours counts levels from the finest, as taming-transformers does.
        name = re.sub(r"^decoder\.up\.(\d+)", lambda found: f"decoder.up.{num_levels - 1 - int(found[1])}", name)
        fold = _FOLDED.get(name)
        if fold is None:
            tensors[name] = lazy(array)
        else:
            tensors[name] = LazyTensor(array.shape, np.dtype(np.float32), partial(fold, array))
    return tensors


def _unit_rows(array: Array) -> Array:
    codes = array.astype(np.float32)
    unit: Array = codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)
    return unit


def _halved(array: Array) -> Array:
    half: Array = array.astype(np.float32) / 2
    return half


def _halved_up(array: Array) -> Array:
    half: Array = array.astype(np.float32) / 2 + np.float32(0.5)
    return half


_FOLDED = {
    "quantize.embedding.weight": _unit_rows,
    "decoder.conv_out.weight": _halved,
    "decoder.conv_out.bias": _halved_up,
}
