"""The torch runner's GPU form on true Mega shapes: ms per step and pictures per second against the memory's limit.

A step reads every decoder weight once, and each row's cached keys and values; the limit is those bytes ÷ the
read bandwidth that this run measures. Steps are launched as the engine does it, one ahead of the token that is
read. min-dalle then draws with the same shapes on the same GPU (its own loop, fp16).

    python -m benchmarks.gpu [--size mega] [--dtype fp16] [--images 1 4 8 16 32] [--no-peer]

Needs a CUDA device, about 7 GB of its memory for Mega, and the `bench` extra for the peer. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.checkpoints.dalle_bart import draw
from benchmarks.checkpoints.sizes import SIZES
from benchmarks.measuring import machine
from benchmarks.measuring.contestants import SAMPLING, MinDalleContestant, padded, text_ids
from dalle_server.checkpoints import Checkpoint
from dalle_server.checkpoints.tensor_names import vqgan_decoder_tensors
from dalle_server.engine.runners.base import PendingStep, StepRow
from dalle_server.engine.runners.torch.runner import TorchRunner
from dalle_server.engine.selftest import check_determinism
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.config import ModelConfig, Shapes
from dalle_server.request import ImageKey

PEER_IMAGES = (1, 9)


class RandomTensors(Mapping[str, Any]):
    """Weights that are drawn when they are read: no file, one tensor in memory."""

    def __init__(self, shapes: Shapes):
        self._shapes = shapes

    def __getitem__(self, name: str) -> Any:
        return draw(name, self._shapes[name], np.float16)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def random_checkpoint(config: ModelConfig) -> Checkpoint:
    transformer = RandomTensors(config.transformer.tensors())
    return Checkpoint(Path(), config, transformer, RandomTensors(vqgan_decoder_tensors(config.vqgan)), digest="random")


def read_bandwidth_bytes_per_s(num_bytes: int = 1 << 30) -> float:
    """The best of a few sums over a buffer far larger than the caches."""
    buffer = torch.ones(num_bytes // 4, device="cuda")
    times = []
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        buffer.sum()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return float(num_bytes / min(times))


def bytes_per_step(config: DalleBartConfig, num_images: int, value_bytes: int) -> int:
    """Decoder weights that a step multiplies by, and the whole static cache of 2·num_images rows."""
    shapes = config.tensors()
    cross_projections = ("encoder_attn.k_proj", "encoder_attn.v_proj")
    weights = sum(
        int(np.prod(shape)) * (4 if name.startswith("lm_head") else value_bytes)
        for name, shape in shapes.items()
        if name.startswith(("decoder.layers", "lm_head")) and not any(part in name for part in cross_projections)
    )
    positions = config.image_length + config.max_text_length
    return weights + 2 * num_images * 2 * config.decoder_layers * positions * config.d_model * value_bytes


def measure(runner: TorchRunner, num_images: int, bandwidth: float) -> dict[str, float]:
    conditional, unconditional = runner.encode([padded(text_ids()), padded([0, 2])])
    draw_pictures(runner, num_images, conditional, unconditional)  # warm
    start = time.perf_counter()
    steps_ms, tokens = draw_pictures(runner, num_images, conditional, unconditional)
    decoded = time.perf_counter()
    runner.detokenize(tokens)
    end = time.perf_counter()
    step_ms = statistics.median(steps_ms)
    value_bytes = 4 if runner.info.dtype == "fp32" else 2
    limit_ms = 1000 * bytes_per_step(runner.config.sizes(DalleBartConfig), num_images, value_bytes) / bandwidth
    return {
        "num_images": num_images,
        "ms_per_step": round(step_ms, 3),
        "limit_ms_per_step": round(limit_ms, 3),
        "share_of_limit": round(limit_ms / step_ms, 3),
        "pictures_per_s": round(num_images / (decoded - start), 2),
        "pictures_per_s_with_pixels": round(num_images / (end - start), 2),
        "pixels_ms_per_picture": round(1000 * (end - decoded) / num_images, 2),
    }


def draw_pictures(
    runner: TorchRunner, num_images: int, conditional: Any, unconditional: Any
) -> tuple[list[float], np.ndarray]:
    """→ ms between answers, tokens (N, I)."""
    for slot in range(num_images):
        runner.admit(slot, conditional, unconditional)
    times, tokens = [time.perf_counter()], []
    ahead: list[PendingStep] = []
    for position in range(runner.config.picture.num_tokens):
        ahead.append(runner.step([StepRow(s, position, ImageKey(7, s), SAMPLING) for s in range(num_images)]))
        if len(ahead) > runner.lookahead:
            tokens.append(ahead.pop(0).result().tokens)
            times.append(time.perf_counter())
    tokens += [pending.result().tokens for pending in ahead]
    return (1000 * np.diff(times)).tolist(), np.stack(tokens, axis=1)


def measure_peer(size: str, num_images: int) -> dict[str, float]:
    peer = MinDalleContestant(is_mega=size == "mega", dtype="fp16", device="cuda")
    peer.draw(num_images, 256, time.perf_counter)  # warm
    start = time.perf_counter()
    timing = peer.draw(num_images, 256, time.perf_counter)
    total_s = time.perf_counter() - start
    step_ms = round(1000 * statistics.median(timing.steps_s), 3)
    return {
        "num_images": num_images,
        "ms_per_step": step_ms,
        "pictures_per_s_with_pixels": round(num_images / total_s, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="mega")
    parser.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), default="fp16")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--no-peer", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA device; torch sees none here", file=sys.stderr)
        return 2
    bandwidth = read_bandwidth_bytes_per_s()
    checkpoint = random_checkpoint(SIZES[arguments.size])
    results: dict[str, Any] = {"ours": [], "peer": []}
    for num_images in arguments.images:  # a runner for each: no slot stands empty
        start = time.perf_counter()
        runner = TorchRunner(checkpoint, device="cuda", dtype=arguments.dtype, num_slots=num_images)
        load_s = round(time.perf_counter() - start, 1)
        figures = {**measure(runner, num_images, bandwidth), "load_s": load_s, "self_test": check_determinism(runner)}
        figures["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        print(figures, flush=True)
        results["ours"].append(figures)
        runner.close()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if not arguments.no_peer:
        results["peer"] = [measure_peer(arguments.size, num_images) for num_images in PEER_IMAGES]
    answer = {"benchmark": "gpu", "model": arguments.size, "dtype": arguments.dtype, **results}
    answer |= {"gpu": torch.cuda.get_device_name(), "read_gb_per_s": round(bandwidth / 1e9, 1), **machine.describe()}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
