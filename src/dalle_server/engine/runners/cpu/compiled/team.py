"""The threads that compute together: each calls the same compiled function, and the function shares the work out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Team:
    """`num_threads` threads, the caller among them. Used by one caller at a time."""

    def __init__(self, num_threads: int):
        self.num_threads = num_threads
        self._helpers = ThreadPoolExecutor(max(1, num_threads - 1), thread_name_prefix="compiled")

    def run(self, function: Callable[..., Any], arguments: ctypes.Structure, phases: int, phase_bytes: int) -> None:
        """Call `function(&arguments)` on every thread; its phases begin as zeros. Returns when all have."""
        ctypes.memset(phases, 0, phase_bytes)
        pointer = ctypes.byref(arguments)
        others = [self._helpers.submit(function, pointer) for _ in range(self.num_threads - 1)]
        function(pointer)
        for other in others:
            other.result()  # until it has looked at the last phase, it reads these structures

    def close(self) -> None:
        self._helpers.shutdown()
