"""A small model of random weights, as tensors and as a native checkpoint."""

import os
from pathlib import Path

import numpy as np
import pytest

from dalle_server.checkpoints import write_native
from dalle_server.checkpoints.tensor_names import vqgan_decoder_tensors
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.config import ModelConfig, Shapes, VQGANConfig

TOKENIZER_FILES = {"tokenizer.json": b'{"version": "1.0"}'}


def random_tensors(shapes: Shapes, dtype: type = np.float32) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    return {name: generator.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


@pytest.fixture(autouse=True)
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inodes given to os.fsync, which does nothing here: waiting for the disk a thousand times proves nothing."""
    inodes: list[int] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: inodes.append(os.fstat(descriptor).st_ino))
    return inodes


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    transformer = DalleBartConfig(
        d_model=8, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=4,
        encoder_ffn_dim=12, decoder_ffn_dim=20, encoder_vocab_size=40, image_vocab_size=32, image_length=4,
        max_text_length=6, decoder_start_token_id=32, bos_token_id=33, eos_token_id=33, pad_token_id=33,
    )  # fmt: skip
    vqgan = VQGANConfig(
        ch=4, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(2,), z_channels=6, embed_dim=5, n_embed=32,
        resolution=4, num_groups=2,
    )  # fmt: skip
    return ModelConfig(name="tiny", transformer=transformer, vqgan=vqgan)


@pytest.fixture(scope="session")
def transformer(tiny_config: ModelConfig) -> dict[str, np.ndarray]:
    return random_tensors(tiny_config.transformer.tensors())


@pytest.fixture(scope="session")
def vqgan(tiny_config: ModelConfig) -> dict[str, np.ndarray]:
    return random_tensors(vqgan_decoder_tensors(tiny_config.vqgan))


@pytest.fixture
def native_dir(tmp_path: Path, tiny_config: ModelConfig, transformer: dict, vqgan: dict) -> Path:
    return write_native(tmp_path / "native", tiny_config, transformer, vqgan, TOKENIZER_FILES)
