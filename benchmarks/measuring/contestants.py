"""What can draw a picture of true Mini shape: our runners and the peer, behind one small interface.

Each is run in a process of its own (`python -m benchmarks.measuring.contestants NAME …`), because two thread
pools in one process fight for the cores and the peer sets torch's globals on import.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.checkpoints.prepared import WORK
from dalle_server.checkpoints import open_checkpoint
from dalle_server.engine.runners.base import Runner, StepRow, TextTokens
from dalle_server.engine.runners.choice import RunnerSettings
from dalle_server.engine.runners.select import choose_runner
from dalle_server.errors import ConfigError
from dalle_server.request import ImageKey, SamplingParams

NUM_TEXT_TOKENS = 12
SAMPLING = SamplingParams(temperature=1.0, top_k=256, top_p=1.0, condition_scale=16.0)  # min-dalle's defaults


NUM_STEPS = 256

Clock = Callable[[], float]
# Processor time, taken with one thread, stays comparable while others use the machine; waiting is not in it.
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True, slots=True)
class Timing:
    """One call for num_images pictures, text ids to pixels."""

    text_s: float
    steps_s: list[float]
    pixels_s: float


class Contestant(Protocol):
    def draw(self, num_images: int, num_steps: int, clock: Clock) -> Timing:
        """`num_steps` < 256: only so many steps, at positions spread evenly over the picture."""
        ...


Build = Callable[[Path, int, int | None], Contestant]  # native checkpoint, pictures at once, threads


def text_ids() -> list[int]:
    return [0, *range(100, 100 + NUM_TEXT_TOKENS - 2), 2]


class RunnerContestant:
    """One of our runners, driven the way the engine drives it."""

    def __init__(self, runner: Runner):
        self.runner = runner

    def draw(self, num_images: int, num_steps: int, clock: Clock) -> Timing:
        start = clock()
        conditional, unconditional = self.runner.encode([padded(text_ids()), padded([0, 2])])
        for slot in range(num_images):
            self.runner.admit(slot, conditional, unconditional)
        encoded = clock()
        times = [encoded]
        tokens = np.zeros((num_images, NUM_STEPS), np.int32)
        for position in np.linspace(0, NUM_STEPS - 1, num_steps).astype(int).tolist():
            rows = [StepRow(slot, position, ImageKey(7, slot), SAMPLING) for slot in range(num_images)]
            tokens[:, position] = self.runner.step(rows).result().tokens
            times.append(clock())
        self.runner.detokenize(tokens)
        return _timing(start, times, clock())


def padded(ids: list[int]) -> TextTokens:
    return TextTokens(np.array(ids + [1] * (64 - len(ids)), np.int32), len(ids))


def ours(runner: str, dtype: str, cpu_build: str = "auto") -> Build:
    def build(checkpoint: Path, num_images: int, num_threads: int | None) -> Contestant:
        weights = open_checkpoint(checkpoint)
        # With a cache, as the server has one: int8 keeps there what it needs to paint in int8, too.
        return RunnerContestant(
            choose_runner(
                weights,
                RunnerSettings(
                    runner,
                    dtype,
                    device="cpu",
                    num_slots=num_images,
                    num_threads=num_threads,
                    cpu_build=cpu_build,
                    cache_dir=WORK,
                ),
            )
        )

    return build


class MinDalleContestant:
    """The PyPI package's own generation loop; its modules are built with random weights, nothing is fetched.

    `dtype` fp16 is what its README measures GPUs with: fp16 weights under its own autocast.
    """

    def __init__(self, *, is_mega: bool = False, dtype: str = "fp32", device: str = "cpu") -> None:
        import min_dalle.min_dalle as package
        import torch

        from dalle_server.engine.runners.torch.weights import DTYPES

        class Tokenizer:
            def tokenize(self, text: str, is_verbose: bool = False) -> list[int]:
                return text_ids()

        class RandomMinDalle(package.MinDalle):  # type: ignore[misc]  # min_dalle has no types
            def init_tokenizer(self) -> None:
                self.tokenizer = Tokenizer()

            def init_encoder(self) -> None:
                self.encoder = package.DalleBartEncoder(
                    self.layer_count, self.embed_count, self.attention_head_count, self.text_vocab_count,
                    self.text_token_count, self.glu_embed_count, self.device,
                ).to(self.device, self.dtype).eval()  # fmt: skip

            def init_decoder(self) -> None:
                self.decoder = package.DalleBartDecoder(
                    self.image_vocab_count, self.embed_count, self.attention_head_count, self.glu_embed_count,
                    self.layer_count, self.device,
                ).to(self.device, self.dtype).eval()  # fmt: skip

            def init_detokenizer(self) -> None:
                self.detokenizer = package.VQGanDetokenizer().to(self.device).eval()

        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as empty:
            self.model = RandomMinDalle(
                empty, DTYPES[dtype], device=device, is_mega=is_mega, is_reusable=True, is_verbose=False
            )
        self.times: list[float] = []
        self.num_steps, self.clock = NUM_STEPS, time.perf_counter
        self.model.decoder.sample_tokens = self._timed(self.model.decoder.sample_tokens)

    def _timed(self, sample_tokens: Callable[..., Any]) -> Callable[..., Any]:
        """Note the time around the package's step; past `num_steps` answer the last tokens again."""
        answer: Any = None

        def timed(**arguments: Any) -> Any:
            nonlocal answer
            if not self.times:
                self.times.append(self.clock())  # the text is encoded
            if len(self.times) <= self.num_steps:
                answer = sample_tokens(**arguments)
                self.times.append(self.clock())
            return answer

        return timed

    def draw(self, num_images: int, num_steps: int, clock: Clock) -> Timing:
        self.times.clear()
        self.num_steps, self.clock = num_steps, clock
        start = self.clock()
        self.model.generate_images("", seed=1, grid_size=round(num_images**0.5), top_k=256, supercondition_factor=16)
        return _timing(start, self.times, self.clock())


def min_dalle(_checkpoint: Path, _num_images: int, num_threads: int | None) -> Contestant:
    contestant = MinDalleContestant()
    if num_threads:
        import torch

        torch.set_num_threads(num_threads)
    return contestant


def _timing(start: float, times: list[float], end: float) -> Timing:
    """`times`: when the text was encoded, then when each step was done."""
    return Timing(times[0] - start, np.diff(times).tolist(), end - times[-1])


CONTESTANTS: dict[str, Build] = {
    "min-dalle fp32": min_dalle,
    "torch fp32": ours("torch", "fp32"),
    "torch bf16": ours("torch", "bf16"),
    "compiled fp32": ours("compiled", "fp32"),
    "compiled int8": ours("compiled", "int8"),
    "compiled int8 avx2": ours("compiled", "int8", "avx2"),  # what a processor without AVX-512 and VNNI runs
}


class PeakMemory:
    """Largest resident set of this process while it is watched, in bytes (Linux; 0 elsewhere)."""

    def __enter__(self) -> PeakMemory:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        status = Path("/proc/self/statm")
        while status.exists() and not self._stop.wait(0.05):
            self.peak_bytes = max(self.peak_bytes, int(status.read_text().split()[1]) * 4096)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("num_images", type=int)
    parser.add_argument("num_steps", type=int)
    parser.add_argument("clock", choices=CLOCKS)
    arguments = parser.parse_args()
    with PeakMemory() as memory:
        start = time.perf_counter()
        num_threads = 1 if arguments.clock == "processor" else None
        try:
            contestant = CONTESTANTS[arguments.name](arguments.checkpoint, arguments.num_images, num_threads)
        except ConfigError as error:  # this processor has not what it needs
            print(json.dumps({"cannot": str(error)}))
            return
        load_s = time.perf_counter() - start
        processor = time.process_time()
        timing = contestant.draw(arguments.num_images, arguments.num_steps, CLOCKS[arguments.clock])
        processor_s = time.process_time() - processor
    measured = {"load_s": load_s, "processor_s": processor_s, "peak_bytes": memory.peak_bytes}
    print(json.dumps(measured | asdict(timing)))


if __name__ == "__main__":
    main()
