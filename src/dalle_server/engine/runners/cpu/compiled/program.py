"""Operations over feature maps, as a list that operations.h runs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from dalle_server.engine.runners.cpu.compiled.operations import Operation, ProgramPointers
from dalle_server.engine.runners.cpu.compiled.stack import aligned_zeros
from dalle_server.engine.runners.cpu.compiled.team import Team


class Program:
    """Operations in order, each with its number of chunks. `kept` is what they point into."""

    def __init__(self, library: Any, team: Team, operations: Sequence[tuple[ctypes.Structure, int]], kept: Any):
        self._run, self._team = library.run_operations, team
        self._kept = operations, kept
        self._operations = (Operation * len(operations))()
        for operation, (what, chunks) in zip(self._operations, operations, strict=True):
            kind = Operation.KINDS.index(type(what))
            operation.kind, operation.chunks, operation.what = kind, chunks, ctypes.addressof(what)
        self._phases = aligned_zeros((library.operation_phase_bytes(len(operations)),), np.uint8)
        address = ctypes.addressof(self._operations)
        self._program = ProgramPointers(address, self._phases.ctypes.data, len(operations))

    def run(self) -> None:
        self._team.run(self._run, self._program, self._program.phases, self._phases.nbytes)
