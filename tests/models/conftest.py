from __future__ import annotations

import pytest

from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.config import VQGANConfig


@pytest.fixture
def transformer_config() -> DalleBartConfig:
    return DalleBartConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=22,
        decoder_ffn_dim=22,
        encoder_vocab_size=20,
        image_vocab_size=12,
        image_length=9,
        max_text_length=8,
        decoder_start_token_id=12,
        bos_token_id=13,
        eos_token_id=13,
        pad_token_id=13,
    )


@pytest.fixture
def vqgan_config() -> VQGANConfig:
    return VQGANConfig(
        ch=8,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(6,),
        z_channels=8,
        embed_dim=4,
        n_embed=12,
        resolution=12,
        num_groups=4,
    )
