"""SlotStates.advance as CUDA graphs, two per row bucket: a step is two small copies and one launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dalle_server.engine.runners.torch.inputs import StepInputs
from dalle_server.engine.runners.torch.step import SlotStates

WARM_UP_STEPS = 3


@dataclass(frozen=True, slots=True)
class _CapturedStep:
    graph: torch.cuda.CUDAGraph
    inputs: StepInputs
    tokens: Tensor
    logits: Tensor


class CudaGraphs:
    """Capture writes into the slots' caches: build it before the first image is admitted."""

    def __init__(self, states: SlotStates, buckets: tuple[int, ...]):
        self._steps: dict[tuple[int, bool], _CapturedStep] = {}  # by bucket, and whether all of it draw from few
        pool = torch.cuda.graph_pool_handle()
        for bucket in sorted(buckets, reverse=True):  # the largest first: the smaller ones fit into its memory
            for is_narrow in (False, True):
                inputs = StepInputs.empty(bucket, states.device, is_narrow=is_narrow)
                self._steps[bucket, is_narrow] = _capture(states, inputs, pool)

    def advance(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """Launch and do not wait. The answers are overwritten by the next step."""
        step = self._steps[inputs.integers.shape[1], inputs.is_narrow]
        step.inputs.copy_from(inputs)
        with torch.cuda.device(step.tokens.device):
            step.graph.replay()
        return step.tokens, step.logits


def _capture(states: SlotStates, inputs: StepInputs, pool: Any) -> _CapturedStep:
    stream = torch.cuda.Stream(states.device)
    stream.wait_stream(torch.cuda.current_stream(states.device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):  # libraries allocate their workspaces now, not in the graph
            states.advance(inputs)
    torch.cuda.current_stream(states.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: another thread (pictures being decoded) may use the device meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        tokens, logits = states.advance(inputs)
    return _CapturedStep(graph, inputs, tokens, logits)
