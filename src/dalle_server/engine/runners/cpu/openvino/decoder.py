"""The decode step as a graph: one new position for every row, each row at a position of its own."""

from __future__ import annotations

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops

from dalle_server.engine.runners.cpu.embeddings import Embeddings
from dalle_server.engine.runners.cpu.openvino.compile import PRECISIONS, Compiler, memory_errors
from dalle_server.engine.runners.cpu.openvino.ops import (
    Node,
    Pages,
    cache_parameter,
    glu,
    layer_norm,
    paged_attention,
    parameter,
    result,
)
from dalle_server.engine.runners.cpu.openvino.slots import SlotCaches
from dalle_server.engine.runners.cpu.openvino.weights import Weights
from dalle_server.engine.runners.cpu.parts import StepBatch, TextCache
from dalle_server.families.dalle_bart import sizes
from dalle_server.models.config import ModelConfig


class OpenVINOStep:
    """Implements `Step` with the compiled graph."""

    def __init__(
        self,
        weights: Weights,
        config: ModelConfig,
        embeddings: Embeddings,
        compiler: Compiler,
        dtype: str,
        num_slots: int,
    ):
        compiled = compiler.compile(build_decoder(weights, config), *PRECISIONS[dtype])
        self._embeddings = embeddings
        self._request = compiled.create_infer_request()
        self._slots = SlotCaches(compiled, self._request, sizes(config), num_slots)
        self.row_buckets = row_buckets(int(compiled.get_property("INFERENCE_NUM_THREADS")), num_slots)
        self._warm_up(num_slots)

    def _warm_up(self, scratch_slot: int) -> None:
        """int8 weights are rearranged in the first call of a graph, others when it is compiled."""
        slots = np.full(self.row_buckets[0], scratch_slot, np.int32)
        nothing = np.zeros_like(slots)
        self.logits(StepBatch(slots, nothing, nothing, np.ones(len(slots), np.float32)))

    def admit(self, slot: int, conditional: TextCache, unconditional: TextCache) -> None:
        self._slots.admit(slot, (conditional, unconditional))

    @memory_errors()
    def logits(self, batch: StepBatch) -> NDArray[np.float32]:
        embedded = self._embeddings.codes(batch.last_tokens, batch.positions)
        self._request.infer(
            {
                "embeddings": np.concatenate([embedded, embedded]),
                "scales": batch.guidance,
                **self._slots.pages(batch.slots, batch.positions),
            }
        )
        logits: NDArray[np.float32] = self._request.get_tensor("logits").data
        return logits.copy()

    def close(self) -> None:
        """Dropping it is enough."""


def row_buckets(num_threads: int, num_slots: int) -> tuple[int, ...]:
    """Batch sizes that are prepared at start; a third more work at most than the images ask for.

    Rows, two an image, are never fewer than threads: paged attention would then share a row between threads
    and sum in another order.
    """
    smallest = -(-num_threads // 2)
    sizes = {size for power in range(12) for size in (1 << power, 3 << power)}
    between = {size for size in sizes if smallest < size < num_slots}
    return tuple(sorted({smallest, max(smallest, num_slots)} | between))


def build_decoder(weights: Weights, config: ModelConfig) -> ov.Model:
    """Inputs: embeddings (R, d), token plus position; scales (N,), the guidance of each image; the pages of the
    self- and cross-attention caches; the caches of every layer. R = 2N rows: N conditional, then N unconditional.
    Output: logits (N, C), guided and cut to the codebook.
    """
    bart = sizes(config)
    heads = bart.decoder_attention_heads
    embeddings = parameter("embeddings", [-1, bart.d_model], ov.Type.f32)
    scales = parameter("scales", [-1], ov.Type.f32)
    begins = parameter("begins", [-1], ov.Type.i32)
    own, text = Pages.parameters("self", begins), Pages.parameters("cross", begins)
    inputs = [embeddings, scales, begins, *own.inputs(), *text.inputs()]

    norm = "decoder.layernorm_embedding"
    x = layer_norm(embeddings, weights.vector(f"{norm}.bias"), weights.vector(f"{norm}.weight"))
    for layer in range(bart.decoder_layers):
        caches = [
            cache_parameter(f"{kind}_{layer}", heads, bart.d_model // heads)
            for kind in ("self_keys", "self_values", "cross_keys", "cross_values")
        ]
        inputs += caches
        x = _layer(x, weights, f"decoder.layers.{layer}", heads, (own, text), caches)
    x = layer_norm(x, weights.vector("decoder.final_ln.bias"))
    # lm_head has no bias, so mixing the hidden states gives the mixed logits at half the work.
    conditional, unconditional = ops.split(x, ops.constant(np.int32(0)), 2).outputs()
    strength = ops.unsqueeze(scales, ops.constant(np.int32(1)))
    mixed = ops.add(unconditional, ops.multiply(strength, ops.subtract(conditional, unconditional)))
    logits = weights.multiply(mixed, "lm_head")
    return ov.Model([result("logits", logits)], inputs, "decode_step")


def _layer(x: Node, weights: Weights, prefix: str, heads: int, pages: tuple[Pages, Pages], caches: list[Node]) -> Node:
    def attend(h: Node, block: str) -> Node:
        if block == "self_attn":
            qkv = weights.multiply(h, f"{prefix}.{block}.qkv")
            query, key, value = ops.split(qkv, ops.constant(np.int32(1)), 3).outputs()
            mixed = paged_attention(query, key, value, (caches[0], caches[1]), pages[0], heads, write=True)
        else:
            # The text's keys and values were written at admission; the node still wants some of the right shape.
            query = weights.multiply(h, f"{prefix}.{block}.q")
            mixed = paged_attention(query, query, query, (caches[2], caches[3]), pages[1], heads, write=False)
        return weights.multiply(mixed, f"{prefix}.{block}.out")

    for block, before in (("self_attn", "pre_self_attn_layer_norm"), ("encoder_attn", "pre_encoder_attn_layer_norm")):
        h = attend(layer_norm(x, weights.vector(f"{prefix}.{before}.bias")), block)
        after = f"{prefix}.{block}_layer_norm"
        x = ops.add(x, layer_norm(h, weights.vector(f"{after}.bias"), weights.vector(f"{after}.weight")))
    return ops.add(x, glu(x, weights, f"{prefix}.glu"))
