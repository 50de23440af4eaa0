"""The golden checkpoints as a runner opens them, and the reference's answers to compare with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.base import Runner, StepRow, TextTokens
from dalle_server.models.config import ModelConfig
from dalle_server.request import ImageKey, SamplingParams
from tests.parity.loading import goldens, load_bart, load_vqgan

GREEDY = SamplingParams(temperature=1.0, top_k=1, top_p=1.0, condition_scale=10.0)

GOLDENS = {
    "tiny-mega": "tiny-mega/goldens_fp32.npz",
    "tiny-mega-fp16": "tiny-mega-fp16/goldens_compute_fp32_upcast.npz",
    "tiny-mini": "tiny-mini/goldens_fp32.npz",
    "vocab-true-fp16": "vocab-true-fp16/goldens_compute_fp32_upcast.npz",
}


def open_golden(name: str) -> Checkpoint:
    """A transformer of the goldens with the golden VQGAN, whose table grows to the transformer's vocabulary."""
    bart, vqgan = load_bart(name), load_vqgan()
    tensors = {key: value.numpy() for key, value in vqgan.state_dict().items()}
    num_codes = min(bart.config.image_vocab_size, 16384)
    table = tensors["quantize.embedding.weight"]
    tensors["quantize.embedding.weight"] = np.resize(table, (max(num_codes, len(table)), table.shape[1]))
    config = ModelConfig(
        name=name,
        transformer=bart.config,
        vqgan=replace(vqgan.config, n_embed=len(tensors["quantize.embedding.weight"])),
    )
    transformer = {key: value.numpy() for key, value in bart.state_dict().items()}
    return Checkpoint(Path(name), config, transformer, tensors, digest=name)


def golden_texts(golden: dict[str, np.ndarray], branch: str = "") -> list[TextTokens]:
    ids, masks = golden[f"input_ids{branch}"], golden[f"attention_mask{branch}"]
    return [TextTokens(row.astype(np.int32), int(mask.sum())) for row, mask in zip(ids, masks, strict=True)]


def admit_goldens(runner: Runner, golden: dict[str, np.ndarray]) -> int:
    """Image i of the goldens into slot i → number of images."""
    pairs = list(zip(golden_texts(golden), golden_texts(golden, "_uncond"), strict=True))
    for slot, pair in enumerate(pairs):
        runner.admit(slot, *runner.encode(pair))
    return len(pairs)


def force(runner: Runner, inputs: np.ndarray, sampling: SamplingParams = GREEDY) -> np.ndarray:
    """Guided logits (N, I, C) while the tokens after the start in `inputs` (N, I) are forced."""
    logits = []
    for position in range(inputs.shape[1]):
        following = inputs[:, position + 1] if position + 1 < inputs.shape[1] else np.zeros(len(inputs), int)
        rows = [StepRow(n, position, ImageKey(0, n), sampling, int(token)) for n, token in enumerate(following)]
        runner.step(rows).result()
        logits.append(runner.guided_logits().copy())
    return np.stack(logits, axis=1)


def generate(runner: Runner, num_images: int, sampling: SamplingParams) -> np.ndarray:
    """(N, I) ids."""
    length = runner.config.picture.num_tokens
    steps = [
        runner.step([StepRow(n, position, ImageKey(7, n), sampling) for n in range(num_images)]).result().tokens
        for position in range(length)
    ]
    return np.stack(steps, axis=1)


__all__ = ["GOLDENS", "GREEDY", "admit_goldens", "force", "generate", "golden_texts", "goldens", "open_golden"]
