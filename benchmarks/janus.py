"""Janus-Pro-1B's true shape with random weights on a CPU: conversion, memory, a step, a picture; a peer beside them.

The peer is the transformers library's own generation (`JanusForConditionalGeneration.generate`), in bfloat16 as
published unless told otherwise. Both draw from a prompt of 12 ids at guidance 5, in processes of their own; the peer's
picture is its median step scaled to 576 steps, plus its prompt and its pixels, where fewer steps are measured.

    python -m benchmarks.janus [--images 1 4] [--dtype int8] [--peer_steps 12] [--steps 576] [--size 7b --layers 2]

Needs 10 GB of disk in benchmarks/work, and 8 GB of memory for the peer; 7B needs five times that, unless it has fewer
layers than its 30. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoints.janus import SIZES, SIZES_7B, write_published
from benchmarks.checkpoints.prepared import WORK
from benchmarks.conversion import CONVERT, measure
from benchmarks.decode_step import reader, step_bytes
from benchmarks.measuring import machine
from dalle_server.checkpoints import open_checkpoint
from dalle_server.engine.runners.base import StepRow, TextTokens
from dalle_server.engine.runners.choice import RunnerSettings
from dalle_server.engine.runners.select import choose_runner
from dalle_server.families.janus import DEFAULT_SAMPLING, JanusConfig
from dalle_server.request import ImageKey

SIZES_OF = {"1b": SIZES, "7b": SIZES_7B}
NUM_STEPS = SIZES.image_length
NUM_IDS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--dtype", choices=("int8", "fp32"), default="int8")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="of our own pictures")
    parser.add_argument("--peer_steps", type=int, default=12, help="of the peer's; 0: no peer")
    parser.add_argument("--peer_dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--size", choices=SIZES_OF, default="1b")
    parser.add_argument("--layers", type=int, help="fewer than the model's own")
    parser.add_argument("--contestant", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = SIZES_OF[arguments.size]
    sizes = replace(sizes, num_layers=arguments.layers or sizes.num_layers)
    folder = WORK / f"janus-{arguments.size}{f'-{arguments.layers}' if arguments.layers else ''}"
    if arguments.contestant == "ours":
        print(json.dumps(ours(folder / "native", arguments.images, arguments.dtype, arguments.steps)))
        return
    if arguments.contestant == "peer":
        print(json.dumps(peer(sizes, arguments.images, arguments.peer_dtype, arguments.peer_steps)))
        return
    answer: dict[str, Any] = {"benchmark": "janus", "dtype": arguments.dtype, "conversion": prepared(folder, sizes)}
    answer["ours"] = in_a_process("ours")
    if arguments.peer_steps:
        answer["peer"] = {"dtype": arguments.peer_dtype, "results": in_a_process("peer")["results"]}
        for found, other in zip(answer["ours"]["results"], answer["peer"]["results"], strict=True):
            found["times_faster"] = round(other["s_per_picture"] / found["s_per_picture"], 1)
            print(f"{found['num_images']} image(s): ×{found['times_faster']}", flush=True)
    print(json.dumps({**answer, **machine.describe()}))


def prepared(folder: Path, sizes: JanusConfig) -> dict[str, float]:
    """Seconds and memory of the conversion; empty where it was made before."""
    published, native = folder / "published", folder / "native"
    if (native / "config.json").exists():
        return {}
    if not (published / "config.json").exists():
        print(f"writing a random checkpoint of Janus-Pro's shape into {published} …", flush=True)
        write_published(published, sizes)
    found = measure(CONVERT.format(source=str(published), target=str(native)))
    found["largest_tensor_mib"] = max(a.nbytes for a in open_checkpoint(native).transformer.values()) >> 20
    print(f"conversion: {found}", flush=True)
    return found


def in_a_process(contestant: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.janus", *sys.argv[1:], "--contestant", contestant]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = ""
    for line in process.stdout:
        print(line, end="", flush=True)
    if process.wait():
        raise SystemExit(f"{contestant} ended with status {process.returncode}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def ours(native: Path, images: list[int], dtype: str, num_steps: int) -> dict[str, Any]:
    start = time.perf_counter()
    checkpoint = open_checkpoint(native)
    runner = choose_runner(
        checkpoint, RunnerSettings("compiled", dtype, device="cpu", num_slots=max(images), cache_dir=WORK)
    )
    answer: dict[str, Any] = {"load_s": round(time.perf_counter() - start, 1), "loaded_gb": resident_gb()}
    weight_bytes = step_bytes(checkpoint, dtype)
    read = reader(weight_bytes, runner.info.num_threads or 1)
    answer |= {"weight_mb": round(weight_bytes / 1e6, 1), "build": runner.info.build, "results": []}
    ids = np.arange(100, 100 + NUM_IDS, dtype=np.int32)
    for num_images in images:
        begun = time.perf_counter()
        encoded = runner.encode([TextTokens(ids, NUM_IDS), TextTokens(ids[::-1].copy(), NUM_IDS)])
        for slot in range(num_images):
            runner.admit(slot, *encoded)
        text_s = time.perf_counter() - begun
        tokens, steps, reads = np.zeros((num_images, NUM_STEPS), np.int32), [], []
        for position in np.linspace(0, NUM_STEPS - 1, num_steps).astype(int).tolist():
            rows = [StepRow(slot, position, ImageKey(7, slot), DEFAULT_SAMPLING) for slot in range(num_images)]
            begun = time.perf_counter()
            tokens[:, position] = runner.step(rows).result().tokens
            steps.append(time.perf_counter() - begun)
            if position % 48 == 0:  # among the steps: whatever else the machine does slows both
                reads.append(read())
        begun = time.perf_counter()
        runner.detokenize(tokens)
        pixels_s = time.perf_counter() - begun
        figure = summary(num_images, text_s, steps, pixels_s)
        figure |= {"limit_ms": round(1000 * statistics.median(reads), 2), "resident_gb": resident_gb(less=weight_bytes)}
        figure["ratio"] = round(figure["step_ms"] / figure["limit_ms"], 2)
        print(f"ours {num_images} image(s): {figure}", flush=True)
        answer["results"].append(figure)
    return answer


def summary(num_images: int, text_s: float, steps: list[float], pixels_s: float) -> dict[str, float]:
    decoding_s = sum(steps) if len(steps) == NUM_STEPS else NUM_STEPS * statistics.median(steps)
    return {
        "num_images": num_images,
        "text_s": round(text_s, 3),
        "step_ms": round(1000 * statistics.median(steps), 2),
        "best_step_ms": round(1000 * min(steps), 2),
        "pixels_s": round(pixels_s / num_images, 3),
        "s_per_picture": round((text_s + decoding_s + pixels_s) / num_images, 2),
    }


def peer(sizes: JanusConfig, images: list[int], dtype: str, num_steps: int) -> dict[str, Any]:
    """The library's own loop, with as many steps as asked for and a cache as long as a picture's."""
    import torch
    from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig

    text = LlamaConfig(
        hidden_size=sizes.d_model, intermediate_size=sizes.ffn_dim, num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads, num_key_value_heads=sizes.num_kv_heads, vocab_size=sizes.vocab_size,
        max_position_embeddings=16384,
    )  # fmt: skip
    # The half that reads pictures takes no part: one layer of it is enough.
    config = JanusConfig(text_config=text, vision_config={"num_hidden_layers": 1, "image_size": 384, "patch_size": 16})
    torch.set_default_dtype(getattr(torch, dtype))
    model: Any = JanusForConditionalGeneration(config)
    model.eval()
    model.config.vision_config.num_image_tokens = num_steps
    model.generation_config.update(
        bos_token_id=0, pad_token_id=1, eos_token_id=None, max_length=NUM_STEPS + NUM_IDS, guidance_scale=5.0,
        do_sample=True, top_k=0,
    )  # fmt: skip
    model.generation_config.generation_kwargs = {"boi_token_id": 2}
    times: list[float] = []
    model.model.generation_head.register_forward_hook(lambda *_: times.append(time.perf_counter()))
    answer = []
    for num_images in images:
        ids = torch.arange(3, 3 + NUM_IDS)[None].repeat(num_images, 1)
        times.clear()
        with torch.inference_mode():
            begun = time.perf_counter()
            tokens = model.generate(ids, attention_mask=torch.ones_like(ids), generation_mode="image")
            text_s = times[0] - begun
            steps = np.diff(times).tolist()
            grid = tokens.repeat(1, -(-NUM_STEPS // num_steps))[:, :NUM_STEPS]
            begun = time.perf_counter()
            model.decode_image_tokens(grid)
            pixels_s = time.perf_counter() - begun
        figure = summary(num_images, text_s, steps, pixels_s)
        print(f"peer {num_images} image(s): {figure}", flush=True)
        answer.append(figure)
    return {"results": answer}


def resident_gb(less: int = 0) -> float:
    """This process's own and mapped memory, `less` what the benchmark itself reads. Linux only."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round((int(fields["VmRSS"].split()[0]) * 1024 - less) / 1e9, 2)


if __name__ == "__main__":
    main()
