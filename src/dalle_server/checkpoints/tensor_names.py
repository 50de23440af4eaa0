"""Every tensor of a VQGAN: name → shape. Pure; used to load strictly and to convert. Convolutions are (out, in, h, w).

A transformer's tensors: `FamilyConfig.tensors`.
"""

from __future__ import annotations

from collections.abc import Iterator

from dalle_server.models.config import Shapes, VQGANConfig


def vqgan_decoder_tensors(config: VQGANConfig) -> Shapes:
    """Name → shape of what turns tokens into pixels: always present."""
    top = config.ch * config.ch_mult[-1]
    shapes: Shapes = {
        "quantize.embedding.weight": (config.n_embed, config.embed_dim),
        **_conv("post_quant_conv", config.embed_dim, config.z_channels, 1),
        **_conv("decoder.conv_in", config.z_channels, top, 3),
        **_mid("decoder.mid", top),
    }
    channels = top
    for level in reversed(range(len(config.ch_mult))):
        out = config.ch * config.ch_mult[level]
        shapes |= _level(f"decoder.up.{level}", config, level, channels, out, config.num_res_blocks + 1)
        if level:
            shapes |= _conv(f"decoder.up.{level}.upsample.conv", out, out, 3)
        channels = out
    return shapes | _norm("decoder.norm_out", channels) | _conv("decoder.conv_out", channels, config.out_ch, 3)


def vqgan_encoder_tensors(config: VQGANConfig) -> Shapes:
    """Name → shape of what turns pixels into tokens: a checkpoint has all of it or nothing."""
    shapes = _conv("encoder.conv_in", config.in_channels, config.ch, 3)
    channels = config.ch
    last = len(config.ch_mult) - 1
    for level in range(last + 1):
        out = config.ch * config.ch_mult[level]
        shapes |= _level(f"encoder.down.{level}", config, level, channels, out, config.num_res_blocks)
        if level != last:
            shapes |= _conv(f"encoder.down.{level}.downsample.conv", out, out, 3)
        channels = out
    shapes |= _mid("encoder.mid", channels) | _norm("encoder.norm_out", channels)
    shapes |= _conv("encoder.conv_out", channels, config.z_channels, 3)
    return shapes | _conv("quant_conv", config.z_channels, config.embed_dim, 1)


def attention_levels(config: VQGANConfig) -> Iterator[int]:
    """Levels whose blocks are each followed by self-attention; level l works at resolution / 2^l."""
    for level in range(len(config.ch_mult)):
        if config.resolution >> level in config.attn_resolutions:
            yield level


def _level(prefix: str, config: VQGANConfig, level: int, channels: int, out: int, num_blocks: int) -> Shapes:
    shapes: Shapes = {}
    for j in range(num_blocks):
        shapes |= _resnet_block(f"{prefix}.block.{j}", channels if j == 0 else out, out)
        if level in attention_levels(config):
            shapes |= _attention_block(f"{prefix}.attn.{j}", out)
    return shapes


def _mid(prefix: str, channels: int) -> Shapes:
    return {
        **_resnet_block(f"{prefix}.block_1", channels, channels),
        **_attention_block(f"{prefix}.attn_1", channels),
        **_resnet_block(f"{prefix}.block_2", channels, channels),
    }


def _resnet_block(prefix: str, channels: int, out: int) -> Shapes:
    shapes = _norm(f"{prefix}.norm1", channels) | _conv(f"{prefix}.conv1", channels, out, 3)
    shapes |= _norm(f"{prefix}.norm2", out) | _conv(f"{prefix}.conv2", out, out, 3)
    return shapes if channels == out else shapes | _conv(f"{prefix}.nin_shortcut", channels, out, 1)


def _attention_block(prefix: str, channels: int) -> Shapes:
    shapes = _norm(f"{prefix}.norm", channels)
    for name in ("q", "k", "v", "proj_out"):
        shapes |= _conv(f"{prefix}.{name}", channels, channels, 1)
    return shapes


def _norm(prefix: str, channels: int) -> Shapes:
    return {f"{prefix}.weight": (channels,), f"{prefix}.bias": (channels,)}


def _conv(prefix: str, channels: int, out: int, kernel_px: int) -> Shapes:
    return {f"{prefix}.weight": (out, channels, kernel_px, kernel_px), f"{prefix}.bias": (out,)}
