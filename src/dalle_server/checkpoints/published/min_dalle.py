"""min-dalle's form: encoder.pt, decoder.pt, detoker.pt (PyTorch pickles), vocab.json and merges.txt.

It ships no config: sizes are read off the tensors' shapes. What shapes do not tell (heads, special
ids) follows the released models, or a `dims.json` or `config.json` (Mini: `config_mini.json`) beside the weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isqrt
from pathlib import Path
from typing import Any

from dalle_server.checkpoints.atomic import scratch_beside
from dalle_server.checkpoints.model_config import check_config, model_config, read_json
from dalle_server.checkpoints.published.pickles import unpickle
from dalle_server.checkpoints.published.source import PublishedSource, check_said, count, lazy, vqgan_sizes
from dalle_server.checkpoints.published.tokenizer_files import find_tokenizer_files
from dalle_server.checkpoints.tensor_file import Array, LazyTensor, Progress, open_tensors
from dalle_server.errors import CheckpointError

DETOKENIZER = "detoker.pt"
_SUFFIXES = ("", "_mini")  # the mirror keeps both models in one folder
_HEAD_SIZE = 64  # of both released models
_HINTS = (
    "encoder_attention_heads", "decoder_attention_heads", "decoder_start_token_id", "bos_token_id", "eos_token_id",
    "pad_token_id", "scale_embedding", "normalize_text",
)  # fmt: skip

Arrays = Mapping[str, Array]


def is_min_dalle(directory: Path) -> bool:
    return bool(_suffixes(directory))


def has_detokenizer(directory: Path) -> bool:
    return os.path.isfile(directory / DETOKENIZER)  # noqa: PTH113 – see flax.is_flax


@contextmanager
def read_min_dalle(
    directory: Path,
    vqgan_directory: Path,
    name: str,
    target: Path,
    suffix: str | None = None,
    progress: Progress | None = None,
) -> Iterator[PublishedSource]:
    """Unpickle into a temporary folder beside `target`, what is made of it (about as large as the .pt files), and map
    that.

    `suffix` says which of two models in the folder is meant: "" or "_mini". Raises CheckpointError;
    without PyTorch it says how to get it.
    """
    suffixes = _suffixes(directory) if suffix is None else [suffix]
    if len(suffixes) != 1:
        raise CheckpointError(f"{directory} holds two models: move {' and '.join(_names(suffixes[-1]))} elsewhere")
    paths = [*(directory / file for file in _names(suffixes[0])), vqgan_directory / DETOKENIZER]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(f"{missing[0]} is missing")
    tokenizer_files = find_tokenizer_files(directory, suffixes[0])
    with scratch_beside(target) as temporary:
        targets = [temporary / f"{path.stem}.safetensors" for path in paths]
        unpickle(paths, targets, progress)
        tensors: list[Arrays] = [open_tensors(target) for target in targets]
        yield _source(directory, name, tensors, tokenizer_files, suffixes[0])


def _names(suffix: str) -> tuple[str, str]:
    return f"encoder{suffix}.pt", f"decoder{suffix}.pt"


def _suffixes(directory: Path) -> list[str]:
    return [suffix for suffix in _SUFFIXES if all((directory / name).is_file() for name in _names(suffix))]


def _source(
    directory: Path,
    name: str,
    unpickled: list[Arrays],
    tokenizer_files: Mapping[str, Path | bytes],
    suffix: str = "",
) -> PublishedSource:
    encoder, decoder, detokenizer = unpickled
    transformer = {f"encoder.{key}": array for key, array in encoder.items()}
    transformer |= {key if key == "lm_head.weight" else f"decoder.{key}": array for key, array in decoder.items()}
    vqgan = {("quantize." if key == "embedding.weight" else "") + key: array for key, array in detokenizer.items()}
    try:
        sizes = _transformer_sizes(transformer)
        vqgan_sizes = _vqgan_sizes(vqgan, isqrt(sizes["image_length"]))
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{directory}: no min-dalle weights, a tensor is missing or misshapen ({error})"
        ) from error
    # Generation starts from the first id after the codebook: 16384 in both released models.
    first_free = vqgan_sizes["n_embed"]
    assumed = {
        "encoder_attention_heads": sizes["d_model"] // _HEAD_SIZE,
        "decoder_attention_heads": sizes["d_model"] // _HEAD_SIZE,
        "decoder_start_token_id": first_free,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), first_free + 1),
        "normalize_text": True,
    }
    raw = assumed | _hints(directory, sizes, suffix) | sizes
    if not raw["encoder_attention_heads"]:
        raise CheckpointError(
            f"{directory}: with d_model {sizes['d_model']} this is no released model; say the number of heads in a"
            f" dims.json beside the weights (encoder_attention_heads, decoder_attention_heads)"
        )
    config = model_config(str(directory), {"name": name, "transformer": raw, "vqgan": vqgan_sizes})
    check_config(str(directory), config)
    return PublishedSource(config, _lazy(transformer), _lazy(vqgan), tokenizer_files)


def _hints(directory: Path, sizes: Mapping[str, int], suffix: str) -> dict[str, Any]:
    # A clone of the mirror describes Mega in config.json and Mini in config_mini.json.
    for name in ("dims.json", f"config{suffix}.json"):
        if (directory / name).is_file():
            raw = read_json(directory / name)
            check_said(raw, sizes, directory / name)
            return {key: raw[key] for key in _HINTS if key in raw}
    return {}


def _transformer_sizes(tensors: Arrays) -> dict[str, int]:
    text, image = tensors["encoder.embed_tokens.weight"], tensors["lm_head.weight"]
    return {
        "d_model": text.shape[1],
        "encoder_vocab_size": text.shape[0],
        "image_vocab_size": image.shape[0] - 1,
        "max_text_length": tensors["encoder.embed_positions.weight"].shape[0],
        "image_length": tensors["decoder.embed_positions.weight"].shape[0],
        "encoder_layers": count(tensors, "encoder.layers."),
        "decoder_layers": count(tensors, "decoder.layers."),
        "encoder_ffn_dim": tensors["encoder.layers.0.glu.fc0.weight"].shape[0],
        "decoder_ffn_dim": tensors["decoder.layers.0.glu.fc0.weight"].shape[0],
    }


def _vqgan_sizes(tensors: Arrays, grid_side: int) -> dict[str, Any]:
    levels = range(count(tensors, "decoder.up."))
    sizes = vqgan_sizes(tensors, levels, grid_side)
    with_attention = [level for level in levels if f"decoder.up.{level}.attn.0.q.weight" in tensors]
    return {**sizes, "attn_resolutions": [sizes["resolution"] >> level for level in with_attention]}


def _lazy(tensors: Arrays) -> dict[str, LazyTensor]:
    return {name: lazy(array) for name, array in tensors.items()}
