"""The pieces that the OpenVINO graphs share: normalisation, gated feed-forward, paged attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import op
from openvino import opset15 as ops

from dalle_server.engine.runners.cpu.openvino.weights import Weights

Node = Any  # openvino.Node: the bindings come without types

BLOCK = 32  # positions in one block of the CPU plugin's paged cache


def parameter(name: str, shape: list[int], dtype: ov.Type) -> Node:
    """An input of the graph, -1 for a length known at run time."""
    node = ops.parameter(ov.PartialShape(shape), dtype, name=name)
    node.output(0).set_names({name})
    return node


def result(name: str, value: Node) -> Node:
    node = ops.result(value)
    node.output(0).set_names({name})
    return node


def layer_norm(x: Node, bias: np.ndarray[Any, Any], scale: np.ndarray[Any, Any] | None = None) -> Node:
    """Over the last axis, eps 1e-5 inside the root, as flax does."""
    x = ops.mvn(x, np.array([-1], np.int32), True, 1e-5, "inside_sqrt")
    if scale is not None:
        x = ops.multiply(x, ops.constant(scale))
    return ops.add(x, ops.constant(bias))


def glu(x: Node, weights: Weights, prefix: str) -> Node:
    """Dense_2(LN(gelu(Dense_0 h) · Dense_1 h)), h = LN(x); exact (erf) GELU."""
    h = layer_norm(x, weights.vector(f"{prefix}.ln0.bias"))
    both = weights.multiply(h, f"{prefix}.gate_up")
    gate, up = ops.split(both, ops.constant(np.int32(-1)), 2).outputs()
    h = layer_norm(ops.multiply(ops.gelu(gate, "erf"), up), weights.vector(f"{prefix}.ln1.bias"))
    return weights.multiply(h, f"{prefix}.down")


@dataclass(frozen=True, slots=True)
class Pages:
    """Where each row's keys and values lie: the inputs that paged attention shares between layers.

    past_lens (R,) cells already written; begins (R+1,) 0…R, for each row is one query; block_indices, the blocks
    of every row, back to back; block_begins (R+1,) where each row's begin; max_len () the longest context.
    All int32.
    """

    past_lens: Node
    begins: Node
    block_indices: Node
    block_begins: Node
    max_len: Node

    @classmethod
    def parameters(cls, prefix: str, begins: Node) -> Pages:
        i32 = ov.Type.i32
        return cls(
            past_lens=parameter(f"{prefix}_past_lens", [-1], i32),
            begins=begins,
            block_indices=parameter(f"{prefix}_block_indices", [-1], i32),
            block_begins=parameter(f"{prefix}_block_begins", [-1], i32),
            max_len=parameter(f"{prefix}_max_len", [], i32),
        )

    def inputs(self) -> list[Node]:
        """Those of our own, without `begins`."""
        return [self.past_lens, self.block_indices, self.block_begins, self.max_len]


def cache_parameter(name: str, heads: int, head_size: int) -> Node:
    """A cache input whose type and layout the plugin settles: (blocks, H, 32, D)."""
    node = ops.parameter(ov.PartialShape.dynamic(), ov.Type.dynamic, name=name)
    node.output(0).set_names({name})
    _describe_heads(node, heads, head_size)
    return node


def paged_attention(
    query: Node, key: Node, value: Node, caches: tuple[Node, Node], pages: Pages, heads: int, *, write: bool
) -> Node:
    """One query a row against that row's cached keys and values; (R, H·D) → (R, H·D).

    The 1/√D must be in the query already. With `write`, key and value are first put at past_lens.
    """
    none_i32, none_f32 = np.zeros(0, np.int32), np.zeros(0, np.float32)
    zero = np.int32(0)
    arrays = [
        none_i32,  # score_aggregation_window
        *(none_i32, none_i32, none_f32),  # cache rotation: block indices, deltas, trigonometric table
        *(none_f32, np.int32(64), np.int32(8)),  # sparse attention: threshold (none), block size, stride
        none_f32,  # sinks
        *(zero, none_i32, none_i32, none_i32),  # adaptive eviction: start size, sizes, diversity indices, their begins
        *(none_i32, np.zeros(0, np.uint8), none_i32),  # token types, query-query bias, its begins
    ]
    node = op._PagedAttentionExtension(
        [
            *(x.output(0) if isinstance(x, ov.Node) else x for x in (query, key, value)),
            *(cache.output(0) for cache in caches),
            *(x.output(0) for x in (pages.past_lens, pages.begins, pages.block_indices, pages.block_begins)),
            ops.constant(np.float32(1)).output(0),  # scale
            ops.constant(zero).output(0),  # sliding window: none
            ops.constant(none_f32).output(0),  # alibi slopes: none
            pages.max_len.output(0),
            *(ops.constant(array).output(0) for array in arrays),
        ]
    )
    if not write:
        node.set_attribute("write_kv_cache", False)
    head_size = caches[0].get_rt_info()["k_head_size"].value
    _describe_heads(node, heads, head_size)
    return node.output(0)


def _describe_heads(node: Node, heads: int, head_size: int) -> None:
    info = node.get_rt_info()
    for kind in ("k", "v"):
        info[f"num_{kind}_heads"] = heads
        info[f"{kind}_head_size"] = head_size
