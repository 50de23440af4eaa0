"""The compiled texts and step of each family, put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.cpu.compiled.layers import dalle_bart_layers, janus_layers
from dalle_server.engine.runners.cpu.compiled.stack import Memory
from dalle_server.engine.runners.cpu.compiled.step import CompiledStep
from dalle_server.engine.runners.cpu.compiled.team import Team
from dalle_server.engine.runners.cpu.compiled.texts import CompiledTexts
from dalle_server.engine.runners.cpu.embeddings import DalleBartEmbeddings, JanusEmbeddings
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.families.janus import JanusConfig

Parts = tuple[CompiledTexts, CompiledStep]


@dataclass(frozen=True, slots=True)
class Loading:
    """What both parts of any family are made with."""

    library: Any
    team: Team
    memory: Memory
    checkpoint: Checkpoint
    num_slots: int


def compiled_texts_and_step(loading: Loading) -> Parts:
    return _BY_FAMILY[loading.checkpoint.config.family](loading)


def _dalle_bart(loading: Loading) -> Parts:
    library, team, memory, checkpoint = loading.library, loading.team, loading.memory, loading.checkpoint
    sizes, tensors = checkpoint.config.sizes(DalleBartConfig), checkpoint.transformer
    embeddings = DalleBartEmbeddings(tensors, sizes)
    names = [f"decoder.layers.{index}.encoder_attn.kv" for index in range(sizes.decoder_layers)]
    texts = CompiledTexts(
        library, team, memory, tensors, dalle_bart_layers(sizes, "encoder"), embeddings.text,
        text_length=sizes.max_text_length,
        cross=[memory.products[name] for name in names],
        cross_heads=sizes.decoder_attention_heads,
    )  # fmt: skip
    step = CompiledStep(
        library, team, memory, tensors, dalle_bart_layers(sizes, "decoder"), embeddings.codes,
        codebook_size=checkpoint.config.picture.codebook_size,
        num_slots=loading.num_slots,
        num_positions=sizes.image_length,
        text_length=sizes.max_text_length,
        is_prefixed=False,
    )  # fmt: skip
    return texts, step


def _janus(loading: Loading) -> Parts:
    library, team, memory, checkpoint = loading.library, loading.team, loading.memory, loading.checkpoint
    sizes, tensors = checkpoint.config.sizes(JanusConfig), checkpoint.transformer
    embeddings, layers = JanusEmbeddings(tensors, sizes), janus_layers(sizes)
    texts = CompiledTexts(
        library, team, memory, tensors, layers, embeddings.text, text_length=sizes.max_text_length
    )  # fmt: skip
    step = CompiledStep(
        library, team, memory, tensors, layers, embeddings.codes,
        codebook_size=checkpoint.config.picture.codebook_size,
        num_slots=loading.num_slots,
        num_positions=sizes.image_length,
        text_length=sizes.max_text_length,
        is_prefixed=True,
    )  # fmt: skip
    return texts, step


_BY_FAMILY: dict[str, Callable[[Loading], Parts]] = {
    DalleBartConfig.family: _dalle_bart,
    JanusConfig.family: _janus,
}
