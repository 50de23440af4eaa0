"""The CPU runner: the model as OpenVINO graphs. See docs/performance.md for how far it is from the machine's limit."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.checkpoints.tensor_file import release_pages
from dalle_server.engine.runners.base import RunnerInfo, StepRow, TextTokens
from dalle_server.engine.runners.cpu.openvino.compile import Compiler
from dalle_server.engine.runners.cpu.openvino.decoder import OpenVINODecoder, build_decoder
from dalle_server.engine.runners.cpu.openvino.encoder import build_encoder
from dalle_server.engine.runners.cpu.openvino.ranges import kept_ranges
from dalle_server.engine.runners.cpu.openvino.step import Decoder, StepInputs
from dalle_server.engine.runners.cpu.openvino.vqgan import build_vqgan
from dalle_server.engine.runners.cpu.openvino.vqgan_int8 import Ranges, build_int8_vqgan
from dalle_server.engine.runners.cpu.openvino.weights import Weights
from dalle_server.engine.runners.cpu.packing import Packed, kept_packed
from dalle_server.engine.sampling import gumbel_max, sample
from dalle_server.errors import CheckpointError, ConfigError
from dalle_server.models.config import TransformerConfig

logger = logging.getLogger(__name__)

# dtype → (precision of activations, precision of the caches)
PRECISIONS = {
    "int8": (ov.Type.f32, ov.Type.f16),
    "bf16": (ov.Type.bf16, ov.Type.bf16),
    "fp32": (ov.Type.f32, ov.Type.f32),
}
WORTH_KEEPING_BYTES = 200 << 20
TEXT_BUCKET = 16  # texts are padded to a multiple of this: four shapes to prepare instead of 64


@dataclass(frozen=True, slots=True)
class EncodedText:
    """`states` (T, d), and `cross_kv` (L, 2, H, T, D) of the cache's type; the first `length` positions are real."""

    states: NDArray[np.float32]
    cross_kv: ov.Tensor
    length: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The tokens of a step that is over."""

    tokens: NDArray[np.int32]

    def result(self) -> NDArray[np.int32]:
        return self.tokens


def _kept(checkpoint: Checkpoint, layout: str, cache_dir: Path | None) -> dict[str, Packed] | None:
    """Packed weights from the cache, where packing them anew would be felt at start."""
    size_bytes = sum(tensor.nbytes for tensor in checkpoint.transformer.values())
    if cache_dir is None or size_bytes < WORTH_KEEPING_BYTES:
        return None
    try:
        return kept_packed(checkpoint, layout, cache_dir)
    except (OSError, CheckpointError) as error:
        logger.warning("packed weights are not kept, so every start takes longer and more memory: %s", error)
        return None


def _ranges(checkpoint: Checkpoint, compiler: Compiler, cache_dir: Path) -> Ranges:
    """For int8 pixels; empty for bf16."""
    try:
        return kept_ranges(cache_dir, compiler, checkpoint)
    except (OSError, CheckpointError) as error:
        logger.warning("pixels stay bf16, which takes half as long again: %s", error)
        return {}


class _Embeddings:
    """Token plus position, looked up in the mapped checkpoint: a few rows of large tables that need no copy."""

    def __init__(self, tensors: Mapping[str, Any], config: TransformerConfig):
        self._tables = {
            part: [tensors[f"{part}.{kind}.weight"] for kind in ("embed_tokens", "embed_positions")]
            for part in ("encoder", "decoder")
        }
        self._scale = np.float32(math.sqrt(config.d_model) if config.scale_embedding else 1.0)
        self._start = config.decoder_start_token_id

    def text(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """(T,) ids → (T, d)."""
        return self._lookup("encoder", ids, np.arange(len(ids)))

    def codes(self, last_tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[np.float32]:
        """(N,) ids written before `positions` (N,) → (N, d); position 0 takes the start token."""
        return self._lookup("decoder", np.where(positions == 0, self._start, last_tokens), positions)

    def _lookup(self, part: str, ids: NDArray[Any], positions: NDArray[Any]) -> NDArray[np.float32]:
        tokens, places = self._tables[part]
        embedded: NDArray[np.float32] = tokens[ids].astype(np.float32) * self._scale
        embedded += places[positions].astype(np.float32)
        return embedded


class OpenVINORunner:
    """Implements `Runner` on CPU. A step is done when `step` returns.

    dtype "fp32" is exact; "bf16" and "int8" say how weights are stored and products computed.
    num_threads None means one for each physical core.
    """

    name = "openvino"
    dtypes: tuple[str, ...] = tuple(PRECISIONS)
    layout = ""  # what goes before the dtype to say how packed weights are laid out
    lookahead = 0
    _draw = staticmethod(gumbel_max)

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: str = "int8",
        num_slots: int = 8,
        num_threads: int | None = None,
        cache_dir: Path | None = None,
        reason: str = "chosen by the caller",
    ):
        if dtype not in self.dtypes:
            raise ConfigError(f"dtype {dtype!r} is not one of --runner {self.name}: {', '.join(self.dtypes)}")
        self.config = checkpoint.config
        self.num_slots = num_slots
        self._embeddings = _Embeddings(checkpoint.transformer, checkpoint.config.transformer)
        compiler = Compiler(num_threads)
        self._kept = _kept(checkpoint, self.layout + dtype, cache_dir)
        self._compile(checkpoint, dtype, compiler)
        self._compile_pixels(checkpoint, dtype, compiler, cache_dir)
        self.row_buckets = self._decoder.row_buckets
        self._last_tokens = np.zeros(num_slots + 1, np.int32)
        self._guided = np.zeros((0, self.config.codebook_size), np.float32)
        self._cores = threading.Lock()
        self._warm_up()
        self.info = RunnerInfo(
            runner=self.name,
            device="cpu",
            device_name=compiler.device_name,
            dtype=dtype,
            reason=reason,
            versions={"openvino": ov.__version__.partition("-")[0], "numpy": np.__version__},
        )

    def _compile(self, checkpoint: Checkpoint, dtype: str, compiler: Compiler) -> None:
        precision, cache = PRECISIONS[dtype]
        weights = Weights(checkpoint, dtype, self._kept)
        encoder = compiler.compile(build_encoder(weights, self.config.transformer, cache), precision)
        self.num_threads = int(encoder.get_property("INFERENCE_NUM_THREADS"))
        self._encoder = encoder.create_infer_request()
        self._release_kept()
        self._decoder = self._make_decoder(checkpoint, weights, dtype, compiler)
        self._release_kept()

    def _compile_pixels(self, checkpoint: Checkpoint, dtype: str, compiler: Compiler, cache_dir: Path | None) -> None:
        exact = dtype == "fp32" or not compiler.has_bf16
        self._vqgan_tensors = checkpoint.vqgan  # what the graph's constants point into
        if exact:
            vqgan = build_vqgan(self._vqgan_tensors, self.config)
        else:
            # A model whose weights are not worth keeping paints in no time anyway.
            ranges = _ranges(checkpoint, compiler, cache_dir) if dtype == "int8" and self._kept and cache_dir else {}
            vqgan = build_int8_vqgan(self._vqgan_tensors, self.config, ranges)
        self._vqgan = compiler.compile(vqgan, ov.Type.f32 if exact else ov.Type.bf16).create_infer_request()
        release_pages(*self._vqgan_tensors.values())

    def _make_decoder(self, checkpoint: Checkpoint, weights: Weights, dtype: str, compiler: Compiler) -> Decoder:
        compiled = compiler.compile(build_decoder(weights, self.config), *PRECISIONS[dtype])
        return OpenVINODecoder(compiled, self.config, self.num_slots)

    def _warm_up(self) -> None:
        """int8 weights are rearranged in the first call of a graph, others when it is compiled."""
        self.encode([TextTokens(np.zeros(TEXT_BUCKET, np.int32), 1)])
        self._release_kept()
        scratch = np.full(self.row_buckets[0], self.num_slots, np.int32)
        self._infer(scratch, np.zeros_like(scratch), np.ones(len(scratch), np.float32))
        self._release_kept()

    def _release_kept(self) -> None:
        """OpenVINO has an arrangement of its own by now and does not read the mapped weights again."""
        for packed in (self._kept or {}).values():
            release_pages(*packed.values())

    def encode(self, texts: Sequence[TextTokens]) -> list[EncodedText]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: TextTokens) -> EncodedText:
        padded = min(-(-text.length // TEXT_BUCKET) * TEXT_BUCKET, self.config.transformer.max_text_length)
        mask = np.zeros(padded, np.float32)
        mask[text.length :] = -np.inf
        with self._cores:
            self._encoder.infer({"embeddings": self._embeddings.text(text.ids[:padded]), "mask": mask})
            states, cross_kv = (self._encoder.get_tensor(name) for name in ("states", "cross_kv"))
            # The request uses its output memory again.
            kept = ov.Tensor(cross_kv.get_element_type(), cross_kv.get_shape())
            cross_kv.copy_to(kept)
            return EncodedText(states.data.copy(), kept, text.length)

    def admit(self, slot: int, conditional: EncodedText, unconditional: EncodedText) -> None:
        self._decoder.admit(slot, [(text.cross_kv, text.length) for text in (conditional, unconditional)])

    def step(self, rows: Sequence[StepRow]) -> Ready:
        padding = next((bucket for bucket in self.row_buckets if bucket >= len(rows)), len(rows)) - len(rows)
        slots = np.array([row.slot for row in rows] + [self.num_slots] * padding, np.int32)
        positions = np.array([row.position for row in rows] + [0] * padding, np.int32)
        scales = np.array([row.sampling.condition_scale for row in rows] + [1.0] * padding, np.float32)
        self._guided = self._infer(slots, positions, scales)[: len(rows)]
        tokens = sample(self._guided, rows, self._draw)
        self._last_tokens[slots[: len(rows)]] = tokens
        return Ready(tokens)

    def _infer(
        self, slots: NDArray[np.int32], positions: NDArray[np.int32], scales: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """(N,) each → (N, C) guided logits."""
        embedded = self._embeddings.codes(self._last_tokens[slots], positions)
        with self._cores:
            return self._decoder.logits(StepInputs(slots, positions, scales, embedded))

    def guided_logits(self) -> NDArray[np.float32]:
        return self._guided

    def drop_buckets_below(self, num_images: int) -> None:
        self.row_buckets = tuple(bucket for bucket in self.row_buckets if bucket >= num_images)

    def detokenize(self, grids: NDArray[np.int32]) -> NDArray[np.uint8]:
        return np.stack([self._paint(grid) for grid in grids])

    def _paint(self, grid: NDArray[np.int32]) -> NDArray[np.uint8]:
        with self._cores:
            self._vqgan.infer({"ids": np.ascontiguousarray(grid, np.int32)})
            pixels: NDArray[np.float32] = np.clip(self._vqgan.get_tensor("pixels").data, 0, 1)
        # Truncated, not rounded: the reference's own conversion.
        return (pixels * 255).astype(np.uint8)

    def close(self) -> None:
        # The engine holds this object until there is another, and two models may be more than fits.
        if "_decoder" in vars(self):
            self._decoder.close()
        for name in ("_decoder", "_encoder", "_vqgan", "_embeddings", "_kept"):
            vars(self).pop(name, None)
