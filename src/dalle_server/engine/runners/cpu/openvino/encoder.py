"""The text encoder as a graph, and with it every decoder layer's keys and values over the text."""

from __future__ import annotations

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops

from dalle_server.engine.runners.base import TextTokens
from dalle_server.engine.runners.cpu.embeddings import Embeddings
from dalle_server.engine.runners.cpu.openvino.compile import PRECISIONS, Compiler, memory_errors
from dalle_server.engine.runners.cpu.openvino.ops import Node, glu, layer_norm, parameter, result
from dalle_server.engine.runners.cpu.openvino.weights import Weights
from dalle_server.engine.runners.cpu.parts import TextCache
from dalle_server.families.dalle_bart import DalleBartConfig

TEXT_BUCKET = 16  # texts are padded to a multiple of this: four shapes to prepare instead of 64


class OpenVINOTexts:
    """Implements `Texts` with the compiled graph."""

    def __init__(
        self, weights: Weights, config: DalleBartConfig, embeddings: Embeddings, compiler: Compiler, dtype: str
    ):
        precision, cache = PRECISIONS[dtype]
        compiled = compiler.compile(build_encoder(weights, config, cache), precision)
        self.num_threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self._request = compiled.create_infer_request()
        self._embeddings = embeddings
        self._max_length = config.max_text_length
        # int8 weights are rearranged in the first call of a graph, others when it is compiled.
        self.encode(TextTokens(np.zeros(TEXT_BUCKET, np.int32), 1))

    @memory_errors()
    def encode(self, text: TextTokens) -> TextCache:
        padded = min(-(-text.length // TEXT_BUCKET) * TEXT_BUCKET, self._max_length)
        mask = np.zeros(padded, np.float32)
        mask[text.length :] = -np.inf
        self._request.infer({"embeddings": self._embeddings.text(text.ids[:padded]), "mask": mask})
        # A copy: the request uses its output memory again.
        return TextCache(self._request.get_tensor("cross_kv").data.copy(), text.length)

    def states(self) -> NDArray[np.float32]:
        """(T, d) of the last text, padding included: for tests."""
        states: NDArray[np.float32] = self._request.get_tensor("states").data
        return states.copy()

    def close(self) -> None:
        """Dropping it is enough."""


def build_encoder(weights: Weights, config: DalleBartConfig, cache_dtype: ov.Type) -> ov.Model:
    """One text of T positions, padding included; a text is never batched with another, so no company can touch it.

    Inputs: embeddings (T, d), token plus position; mask (T,), 0 for a real position and −inf for padding.
    Outputs: states (T, d); cross_kv (L, 2, H, T, D) in the cache's type, what each decoder layer attends to.
    """
    embeddings = parameter("embeddings", [-1, config.d_model], ov.Type.f32)
    mask = parameter("mask", [-1], ov.Type.f32)
    norm = "encoder.layernorm_embedding"
    x = layer_norm(embeddings, weights.vector(f"{norm}.bias"), weights.vector(f"{norm}.weight"))
    for layer in range(config.encoder_layers):
        prefix = f"encoder.layers.{layer}"
        h = layer_norm(x, weights.vector(f"{prefix}.pre_self_attn_layer_norm.bias"))
        h = _self_attention(h, mask, weights, f"{prefix}.self_attn", config.encoder_attention_heads, config.d_model)
        after = f"{prefix}.self_attn_layer_norm"
        x = ops.add(x, layer_norm(h, weights.vector(f"{after}.bias"), weights.vector(f"{after}.weight")))
        x = ops.add(x, glu(x, weights, f"{prefix}.glu"))
    states = layer_norm(x, weights.vector("encoder.final_ln.bias"))
    outputs = [result("states", states), result("cross_kv", _cross_kv(states, weights, config, cache_dtype))]
    return ov.Model(outputs, [embeddings, mask], "text_encoder")


def _self_attention(h: Node, mask: Node, weights: Weights, prefix: str, heads: int, d_model: int) -> Node:
    head_size = d_model // heads
    qkv = ops.split(weights.multiply(h, f"{prefix}.qkv"), ops.constant(np.int32(1)), 3)
    query, key, value = (_split_heads(part, [heads, head_size], [1, 0, 2]) for part in qkv.outputs())
    scores = ops.add(ops.matmul(query, key, transpose_a=False, transpose_b=True), mask)
    mixed = ops.matmul(ops.softmax(scores, -1), value, transpose_a=False, transpose_b=False)
    joined = ops.reshape(ops.transpose(mixed, np.array([1, 0, 2], np.int32)), np.array([0, d_model]), special_zero=True)
    return weights.multiply(joined, f"{prefix}.out")


def _cross_kv(states: Node, weights: Weights, config: DalleBartConfig, cache_dtype: ov.Type) -> Node:
    heads = config.decoder_attention_heads
    head_size = config.d_model // heads
    layers = []
    for layer in range(config.decoder_layers):
        both = weights.multiply(states, f"decoder.layers.{layer}.encoder_attn.kv")
        kv = _split_heads(both, [2, heads, head_size], [1, 2, 0, 3])
        layers.append(ops.unsqueeze(kv, ops.constant(np.int32(0))))
    return ops.convert(ops.concat(layers, 0), cache_dtype)


def _split_heads(x: Node, shape: list[int], order: list[int]) -> Node:
    """(T, n) → (T, *shape), transposed by `order`."""
    return ops.transpose(ops.reshape(x, np.array([0, *shape]), special_zero=True), np.array(order, np.int32))
