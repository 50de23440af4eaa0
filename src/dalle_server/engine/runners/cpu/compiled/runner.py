"""The CPU runner with a decode step of our own: texts and pixels through OpenVINO, tokens through native/*.c."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dalle_server.checkpoints.checkpoint import Checkpoint
from dalle_server.engine.runners.base import StepRow
from dalle_server.engine.runners.cpu.compiled.library import load_library
from dalle_server.engine.runners.cpu.compiled.step import NativeDecoder
from dalle_server.engine.runners.cpu.layers import is_of_step, products
from dalle_server.engine.runners.cpu.openvino.compile import Compiler
from dalle_server.engine.runners.cpu.openvino.runner import OpenVINORunner
from dalle_server.engine.runners.cpu.openvino.step import Decoder
from dalle_server.engine.runners.cpu.openvino.weights import Weights
from dalle_server.engine.runners.cpu.packing import NATIVE, format_of, pack
from dalle_server.engine.sampling import Survivors


class NativeRunner(OpenVINORunner):
    """`OpenVINORunner` in int8 or fp32 whose step reads memory nearly as fast as the machine can.

    Raises OSError where the compiled step cannot run: `library.why_not` says so beforehand.
    """

    name = "native"
    dtypes = ("int8", "fp32")
    layout = NATIVE

    def _make_decoder(self, checkpoint: Checkpoint, weights: Weights, dtype: str, compiler: Compiler) -> Decoder:
        layout = self.layout + dtype
        tiles = {
            name: self._kept[name] if self._kept else pack(checkpoint.transformer, product, format_of(name, layout))
            for name, product in products(self.config).items()
            if is_of_step(name)
        }
        return NativeDecoder(
            self.config,
            {name: packed["tiles"] for name, packed in tiles.items()},
            checkpoint.transformer,
            is_exact=dtype == "fp32",
            num_slots=self.num_slots,
            num_threads=self.num_threads,
        )

    @staticmethod
    def _draw(rows: Sequence[StepRow], survivors: Sequence[Survivors]) -> list[int]:
        """`gumbel_max` in a twentieth of its time: with a whole codebook to draw from, it would outweigh the step."""
        library, drawn = load_library(), []
        for row, (ids, logits) in zip(rows, survivors, strict=True):
            ids, logits = np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(logits, np.float32)
            pointers = logits.ctypes.data, ids.ctypes.data, len(ids)
            drawn.append(int(ids[library.draw(*pointers, row.key.seed, row.key.index, row.position)]))
        return drawn
