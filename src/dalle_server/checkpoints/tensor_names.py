"""Every tensor a model of a given config has: name → shape. Pure; used to load strictly and to convert.

Linear weights are (out, in), convolutions (out, in, height, width). Layer norms without a scale have
only a bias (dalle-mini drops the scale where a linear layer follows).
"""

from __future__ import annotations

from collections.abc import Iterator

from dalle_server.models.config import TransformerConfig, VQGANConfig

Shapes = dict[str, tuple[int, ...]]


def transformer_tensors(config: TransformerConfig) -> Shapes:
    """Name → shape of every DalleBart tensor, in the order they are stored."""
    d = config.d_model
    shapes: Shapes = {
        **_embedding("encoder", config.encoder_vocab_size, config.max_text_length, d),
        **_embedding("decoder", config.num_image_embeddings, config.image_length, d),
    }
    for i in range(config.encoder_layers):
        shapes |= _layer(f"encoder.layers.{i}", d, config.encoder_ffn_dim, cross_attention=False)
    for i in range(config.decoder_layers):
        shapes |= _layer(f"decoder.layers.{i}", d, config.decoder_ffn_dim, cross_attention=True)
    shapes |= {"encoder.final_ln.bias": (d,), "decoder.final_ln.bias": (d,)}
    return shapes | {"lm_head.weight": (config.num_image_embeddings, d)}


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


def _embedding(half: str, vocab_size: int, length: int, d: int) -> Shapes:
    return {
        f"{half}.embed_tokens.weight": (vocab_size, d),
        f"{half}.embed_positions.weight": (length, d),
        **_norm(f"{half}.layernorm_embedding", d),
    }


def _layer(prefix: str, d: int, ffn_dim: int, *, cross_attention: bool) -> Shapes:
    shapes = _attention(prefix, "self_attn", "pre_self_attn_layer_norm", d)
    if cross_attention:
        shapes |= _attention(prefix, "encoder_attn", "pre_encoder_attn_layer_norm", d)
    return shapes | {
        f"{prefix}.glu.ln0.bias": (d,),
        f"{prefix}.glu.fc0.weight": (ffn_dim, d),
        f"{prefix}.glu.fc1.weight": (ffn_dim, d),
        f"{prefix}.glu.ln1.bias": (ffn_dim,),
        f"{prefix}.glu.fc2.weight": (d, ffn_dim),
    }


def _attention(prefix: str, name: str, pre_norm: str, d: int) -> Shapes:
    projections: Shapes = {f"{prefix}.{name}.{p}_proj.weight": (d, d) for p in ("q", "k", "v", "out")}
    return {f"{prefix}.{pre_norm}.bias": (d,), **projections, **_norm(f"{prefix}.{name}_layer_norm", d)}


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
