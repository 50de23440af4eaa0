"""Janus-Pro's tensor names, of both published forms, as ours; and those that make no picture.

The authors' names are those of deepseek-ai/Janus's modules, the others those of the transformers library's.
"""

from __future__ import annotations

import re

from dalle_server.errors import CheckpointError

# The understanding half, the head that writes text, and a training statistic.
LEFT_OUT = (
    r"(vision_model|aligner|model\.vision_model|model\.aligner)\."
    r"|language_model\.lm_head\.|lm_head\."
    r"|gen_vision_model\.quantize\.codebook_used$"
    r"|.*\.rotary_emb\.inv_freq$"
)

# Tried in turn on the whole name; `vqgan.` marks what goes into the other file.
_RENAMED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"language_model\.model\.(.+)", r"\1"),
        (r"model\.language_model\.(.+)", r"\1"),
        (r"gen_embed\.(.+)", r"gen_embed.\1"),
        (r"model\.generation_embeddings\.(.+)", r"gen_embed.\1"),
        (r"gen_aligner\.layers\.0\.(.+)", r"gen_aligner.fc1.\1"),
        (r"gen_aligner\.layers\.2\.(.+)", r"gen_aligner.fc2.\1"),
        (r"model\.generation_aligner\.fc1\.(.+)", r"gen_aligner.fc1.\1"),
        (r"model\.generation_aligner\.hidden_layers\.0\.(.+)", r"gen_aligner.fc2.\1"),
        (r"gen_head\.output_mlp_projector\.(.+)", r"head_proj.\1"),
        (r"model\.generation_head\.proj_out\.(.+)", r"head_proj.\1"),
        (r"gen_head\.vision_head\.(.+)", r"lm_head.\1"),
        (r"model\.generation_head\.vision_head\.(.+)", r"lm_head.\1"),
        (r"gen_vision_model\.(.+)", r"vqgan.\1"),
        (r"model\.vqmodel\.(.+)", r"vqgan.\1"),
    )
)
# Inside the VQGAN, the authors' words → taming-transformers', which the other form and ours use.
_VQGAN_WORDS = (
    (re.compile(r"^vqgan\.decoder\.conv_blocks\."), "vqgan.decoder.up."),
    (re.compile(r"^vqgan\.encoder\.conv_blocks\."), "vqgan.encoder.down."),
    (re.compile(r"\.res\."), ".block."),
    (re.compile(r"\.mid\.0\."), ".mid.block_1."),
    (re.compile(r"\.mid\.1\."), ".mid.attn_1."),
    (re.compile(r"\.mid\.2\."), ".mid.block_2."),
)


def is_left_out(name: str) -> bool:
    """Whether a published tensor takes no part in making pictures."""
    return re.match(LEFT_OUT, name) is not None


def native_name(name: str, where: str) -> str:
    """A published name as ours, the VQGAN's behind `vqgan.`. Raises CheckpointError for one that nobody knows."""
    for pattern, replacement in _RENAMED:
        if pattern.fullmatch(name):
            ours = pattern.sub(replacement, name)
            for word, ours_word in _VQGAN_WORDS if ours.startswith("vqgan.") else ():
                ours = word.sub(ours_word, ours)
            return ours
    raise CheckpointError(f"{where}: tensor {name} is unknown to Janus-Pro's forms; is this another model?")
