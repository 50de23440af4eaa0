"""The stand-in for Janus-Pro-1B has the published names and shapes, and converts like the real one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.checkpoints.janus import SIZES, VQGAN, published_tensors, write_published
from dalle_server import DalleModel, ModelSize
from dalle_server.checkpoints import convert, open_checkpoint
from dalle_server.checkpoints.published.janus_names import is_left_out
from tests.families.janus_goldens import DATA
from tests.runners.cpu.cpu_runners import needs_compiled


def test_names_and_shapes_are_the_published_ones() -> None:
    published = json.loads((DATA / "manifests" / "hf-Janus-Pro-1B.json").read_text("utf-8"))["params"]
    assert published_tensors() == {name: tuple(entry[0]) for name, entry in published.items() if not is_left_out(name)}


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
