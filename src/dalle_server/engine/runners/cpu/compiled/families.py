"""The compiled texts and step of each family, put together."""

from __future__ import annotations

from collections.abc import Callable

from dalle_server.engine.runners.cpu.compiled.layers import dalle_bart_layers, janus_layers
from dalle_server.engine.runners.cpu.compiled.stack import Loading
from dalle_server.engine.runners.cpu.compiled.step import CompiledStep
from dalle_server.engine.runners.cpu.compiled.texts import CompiledTexts
from dalle_server.engine.runners.cpu.embeddings import DalleBartEmbeddings, JanusEmbeddings
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.families.janus import JanusConfig

Parts = tuple[CompiledTexts, CompiledStep]


def compiled_texts_and_step(loading: Loading) -> Parts:
    return _BY_FAMILY[loading.checkpoint.config.family](loading)


def _dalle_bart(loading: Loading) -> Parts:
    sizes, tensors = loading.checkpoint.config.sizes(DalleBartConfig), loading.checkpoint.transformer
    embeddings, products = DalleBartEmbeddings(tensors, sizes), loading.memory.products
    cross = [products[f"decoder.layers.{index}.encoder_attn.kv"] for index in range(sizes.decoder_layers)]
    encoder, decoder = (dalle_bart_layers(sizes, part) for part in ("encoder", "decoder"))
    texts = CompiledTexts(loading, encoder, embeddings.text, cross=cross, cross_heads=sizes.decoder_attention_heads)
    return texts, CompiledStep(loading, decoder, embeddings.codes, is_prefixed=False)


def _janus(loading: Loading) -> Parts:
    sizes, tensors = loading.checkpoint.config.sizes(JanusConfig), loading.checkpoint.transformer
    embeddings, layers = JanusEmbeddings(tensors, sizes), janus_layers(sizes)
    texts = CompiledTexts(loading, layers, embeddings.text)
    return texts, CompiledStep(loading, layers, embeddings.codes, is_prefixed=True)


_BY_FAMILY: dict[str, Callable[[Loading], Parts]] = {
    DalleBartConfig.family: _dalle_bart,
    JanusConfig.family: _janus,
}
