"""The threads that compute together: each calls the same compiled function, and the function shares the work out."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from dalle_server.errors import ConfigError


class Team:
    """`num_threads` threads, the caller among them. Used by one caller at a time.

    All are started here: one that could not be started later would leave the others inside the function. Raises
    ConfigError where the system allows fewer.
    """

    def __init__(self, num_threads: int):
        self.num_threads = num_threads
        self._helpers = ThreadPoolExecutor(max(1, num_threads - 1), thread_name_prefix="compiled")
        all_there = threading.Barrier(num_threads)  # a helper that waits here is not idle, so each gets its own thread
        try:
            for _ in range(num_threads - 1):
                self._helpers.submit(all_there.wait)
        except RuntimeError as error:
            all_there.abort()
            self._helpers.shutdown(cancel_futures=True)
            raise ConfigError(
                f"num_threads {num_threads}: the system allows this process fewer ({error}); lower num_threads, or"
                " raise the limit (ulimit -u, or the container's pids limit)",
                param="num_threads",
            ) from error
        all_there.wait()

    def run(self, function: Callable[..., Any], arguments: ctypes.Structure, phases: int, phase_bytes: int) -> None:
        """Call `function(&arguments)` on every thread; its phases begin as zeros. Returns when all have."""
        ctypes.memset(phases, 0, phase_bytes)
        pointer = ctypes.byref(arguments)
        others: list[Future[Any]] = []
        try:
            for _ in range(self.num_threads - 1):
                others.append(self._helpers.submit(function, pointer))
            function(pointer)
        finally:  # also when a key interrupts
            for other in others:
                other.result()  # until it has looked at the last phase, it reads these structures

    def close(self) -> None:
        self._helpers.shutdown()
