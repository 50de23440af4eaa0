"""A checkpoint of true Mini or Mega shape with random weights, native or Flax, written tensor by tensor.

Speed and memory do not depend on what the weights say. The largest tensor is in memory, never the model.

    python -m benchmarks.checkpoints.dalle_bart mini DIR                      native, fp32
    python -m benchmarks.checkpoints.dalle_bart mega DIR --dtype float16 --form flax
"""

from __future__ import annotations

import argparse
import functools
import json
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from benchmarks.checkpoints.flax_writer import write_flax_leaves
from benchmarks.checkpoints.sizes import SIZES
from dalle_server.checkpoints import write_native
from dalle_server.checkpoints.published.flax_names import transformer_place, vqgan_place
from dalle_server.checkpoints.tensor_file import LazyTensor
from dalle_server.checkpoints.tensor_names import (
    vqgan_decoder_tensors,
    vqgan_encoder_tensors,
)
from dalle_server.models.config import ModelConfig, Shapes


def draw(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
    """Weights that keep activations near 1: normal/√fan_in, biases small, scales near 1. Keyed by name."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    values = generator.standard_normal(shape, dtype=np.float32)
    if name.endswith("bias"):
        values *= 0.1
    elif name.endswith("scale") or len(shape) == 1:
        values = 1 + 0.1 * values
    elif name.endswith("kernel"):  # Flax: the outputs come last, stacked layers first
        values /= np.sqrt(np.prod(shape[:-1]) / (shape[0] if len(shape) == 3 else 1))
    elif "embed" not in name:
        values /= np.sqrt(np.prod(shape[1:]))
    return values.astype(dtype)


def random_tensors(shapes: Shapes, dtype: DTypeLike) -> dict[str, LazyTensor]:
    return {
        name: LazyTensor(shape, np.dtype(dtype), functools.partial(draw, name, shape, dtype))
        for name, shape in shapes.items()
    }


def write_random_native(directory: Path, config: ModelConfig, dtype: DTypeLike = np.float32) -> Path:
    """The VQGAN is always fp32, as published."""
    transformer = random_tensors(config.transformer.tensors(), dtype)
    vqgan = random_tensors(vqgan_decoder_tensors(config.vqgan), np.float32)
    return write_native(directory, config, transformer, vqgan, {"tokenizer.json": byte_tokenizer()}, overwrite=True)


def write_random_flax(directory: Path, config: ModelConfig, dtype: DTypeLike = np.float32) -> Path:
    """The published layout: layers stacked on a leading axis, the VQGAN in a folder of its own."""
    described = config.to_dict()
    vqgan = vqgan_decoder_tensors(config.vqgan) | vqgan_encoder_tensors(config.vqgan)
    parts = {
        directory: (described["transformer"], transformer_leaves(config.transformer.tensors()), dtype),
        directory / "vqgan": (described["vqgan"], vqgan_leaves(vqgan), np.float32),
    }
    for folder, (sizes, leaves, leaf_dtype) in parts.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(sizes), "utf-8")
        write_flax_leaves(folder / "flax_model.msgpack", random_tensors(leaves, leaf_dtype))
    (directory / "tokenizer.json").write_bytes(byte_tokenizer())
    return directory


def transformer_leaves(shapes: Shapes) -> Shapes:
    """Native tensors → the Flax leaves that hold them, layers stacked: path → shape."""
    leaves: Shapes = {}
    for name, shape in shapes.items():
        place, layer = transformer_place(name, stacked=True)
        shape = shape[::-1] if place.endswith("kernel") else shape
        leaves[place] = shape if layer is None else (layer + 1, *shape)  # layers come in order: the last one counts
    return leaves


def vqgan_leaves(shapes: Shapes) -> Shapes:
    """Native tensors → Flax leaves: path → shape, kernels (height, width, in, out)."""
    leaves = {vqgan_place(name)[0]: shape for name, shape in shapes.items()}
    return {
        place: (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape for place, shape in leaves.items()
    }


def byte_tokenizer() -> bytes:
    """A byte-level BPE without merges: every text tokenises, one id per byte."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.add_special_tokens(special)
    return tokenizer.to_str().encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--form", choices=("native", "flax"), default="native")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    arguments = parser.parse_args()
    write = write_random_native if arguments.form == "native" else write_random_flax
    print(write(arguments.directory, SIZES[arguments.size], arguments.dtype))


if __name__ == "__main__":
    main()
