"""The configs of the released models, so that a benchmark can build their true shapes without their weights."""

from __future__ import annotations

from dataclasses import replace

from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.config import ModelConfig, VQGANConfig

MINI = DalleBartConfig(
    d_model=1024,
    encoder_layers=12,
    decoder_layers=12,
    encoder_attention_heads=16,
    decoder_attention_heads=16,
    encoder_ffn_dim=2730,
    decoder_ffn_dim=2730,
    encoder_vocab_size=50264,
    image_vocab_size=16384,
    image_length=256,
    max_text_length=64,
    decoder_start_token_id=16384,
    bos_token_id=16385,
    eos_token_id=16385,
    pad_token_id=16385,
)
MEGA = replace(
    MINI,
    d_model=2048,
    encoder_layers=24,
    decoder_layers=24,
    encoder_attention_heads=32,
    decoder_attention_heads=32,
    encoder_ffn_dim=4096,
    decoder_ffn_dim=4096,
    encoder_vocab_size=50272,
    image_vocab_size=16415,
)
VQGAN_F16_16384 = VQGANConfig(
    ch=128,
    ch_mult=(1, 1, 2, 2, 4),
    num_res_blocks=2,
    attn_resolutions=(16,),
    z_channels=256,
    embed_dim=256,
    n_embed=16384,
    resolution=256,
)
SIZES = {
    "mini": ModelConfig(name="random-mini", transformer=MINI, vqgan=VQGAN_F16_16384),
    "mega": ModelConfig(name="random-mega", transformer=MEGA, vqgan=VQGAN_F16_16384),
}
