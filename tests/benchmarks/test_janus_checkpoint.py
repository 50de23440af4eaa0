"""The stand-in for Janus-Pro-1B has the published names and shapes, and converts like the real one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.checkpoints.janus import SIZES, SIZES_7B, VQGAN, published_tensors, write_published
from dalle_server import DalleModel, ModelSize
from dalle_server.checkpoints import convert, open_checkpoint
from dalle_server.checkpoints.published.janus_names import is_left_out
from dalle_server.checkpoints.tensor_names import vqgan_decoder_tensors, vqgan_encoder_tensors
from dalle_server.families.janus import JanusConfig
from dalle_server.variants import VARIANTS
from tests.families.janus_goldens import DATA
from tests.runners.cpu.cpu_runners import needs_compiled


@pytest.mark.parametrize(("size", "sizes"), [("1B", SIZES), ("7B", SIZES_7B)])
def test_names_and_shapes_are_the_published_ones(size: str, sizes: JanusConfig) -> None:
    published = json.loads((DATA / "manifests" / f"hf-Janus-Pro-{size}.json").read_text("utf-8"))["params"]
    kept = {name: tuple(entry[0]) for name, entry in published.items() if not is_left_out(name)}
    assert published_tensors(sizes) == kept
    variant = VARIANTS[ModelSize[f"JANUS_PRO_{size}"]]
    assert variant.published and variant.published.download_bytes == 2 * sum(
        math.prod(e[0]) for e in published.values()
    )
    tensors = sizes.tensors() | vqgan_decoder_tensors(VQGAN) | vqgan_encoder_tensors(VQGAN)
    folded = math.prod(tensors["image_embed.weight"])  # in float32
    ours = 2 * (folded + sum(map(math.prod, tensors.values())))
    assert variant.weights_bytes == pytest.approx(ours, rel=1e-3)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_it_converts(tmp_path: Path, kv_heads: int) -> None:
    sizes = replace(SIZES, d_model=32, num_layers=2, num_heads=2, num_kv_heads=kv_heads, ffn_dim=48, vocab_size=300)
    sizes = replace(sizes, image_vocab_size=64, image_length=16)
    vqgan = replace(VQGAN, ch=32, ch_mult=(1, 2), n_embed=64, z_channels=16, resolution=8, attn_resolutions=(4,))
    checkpoint = open_checkpoint(convert(write_published(tmp_path / "published", sizes, vqgan), tmp_path / "native"))
    assert checkpoint.config.transformer == sizes and checkpoint.has_encoder
    assert replace(checkpoint.config.vqgan, reads_signed=False) == vqgan


@needs_compiled
def test_it_draws(tmp_path: Path) -> None:
    """One published shape that no golden has, from its folder to a picture: other sizes, heads that share keys."""
    sizes = replace(SIZES, d_model=48, num_layers=2, num_heads=3, num_kv_heads=1, ffn_dim=70, vocab_size=290)
    sizes = replace(sizes, image_vocab_size=50, image_length=9)
    vqgan = replace(VQGAN, ch=32, ch_mult=(1, 1, 2), n_embed=50, z_channels=16, resolution=12, attn_resolutions=(3,))
    published = write_published(tmp_path / "published", sizes, vqgan)
    with DalleModel(ModelSize.MINI, model_dir=published, cache_dir=tmp_path / "cache", num_threads=1) as model:
        (picture,) = model.generate_images("a red apple", 1, seed=1)
        assert picture.size == (12, 12) and model.engine.info.runner == "compiled"
