"""The threads that run requests: started when they are first needed, never more than their limit."""

from __future__ import annotations

import logging
import time
from typing import Any

from waitress.task import ThreadedTaskDispatcher

from dalle_server.errors import DalleServerError

FIRST_THREADS = 4
HOLD_S = 0.1

NO_THREADS = DalleServerError(
    "the system gives this process no more threads: raise its limit (ulimit -u, a container's pids limit, "
    "TasksMax of a service) to 200 or more"
)

logger = logging.getLogger(__name__)


class Workers(ThreadedTaskDispatcher):  # type: ignore[misc]  # waitress has no types
    """waitress's dispatcher, which starts all of its threads at once; most servers need a few.

    Raises DalleServerError when the system gives it no thread at all. Later it goes on with those it has.
    """

    def __init__(self, most: int):
        super().__init__()
        self._most = most
        self._starting = 0  # of `threads`, those that have not yet looked at the queue
        self._held: list[Any] = []  # channels
        self._held_since = 0.0
        try:
            self.set_thread_count(min(FIRST_THREADS, most))
        except RuntimeError:
            raise NO_THREADS from None

    @property
    def num_waiting(self) -> int:
        """Requests that no thread has taken yet."""
        return len(self.queue) + len(self._held)

    @property
    def num_entering(self) -> int:
        """Of those, the ones that will ask for a place in the engine's queue."""
        waiting = (*self.queue, *self._held)  # copied at once: other threads take from the queue meanwhile
        return sum(request.verdict.enters for channel in waiting for request in channel.requests[:1])

    def hold(self, task: Any) -> None:
        """Add it at the next `release`. For the one thread that serves all connections, as these two are."""
        if not self._held:
            self._held_since = time.monotonic()
        self._held.append(task)

    @property
    def is_holding(self) -> bool:
        return bool(self._held)

    def release(self, *, is_quiet: bool) -> None:
        """Add what is held, unless there is more to read first, for HOLD_S at most."""
        if self._held and (is_quiet or time.monotonic() - self._held_since > HOLD_S):
            held, self._held = self._held, []
            for task in held:
                self.add_task(task)

    def add_task(self, task: object) -> None:
        with self.lock:
            self.queue.append(task)
            idle = len(self.threads) - self.stop_count - self.active_count
            if len(self.queue) > idle + self._starting and len(self.threads) < self._most:
                self._start_one()
            self.queue_cv.notify()

    def _start_one(self) -> None:
        number = next(n for n in range(self._most) if n not in self.threads)
        self.threads.add(number)
        self.active_count += 1
        self._starting += 1
        try:
            self.start_new_thread(self._run, number)
        except RuntimeError:
            self.threads.discard(number)
            self.active_count -= 1
            self._starting -= 1
            self._most = len(self.threads)
            logger.warning("the system gives this process no more threads; requests share %d", self._most)

    def _run(self, number: int) -> None:
        with self.lock:
            self._starting -= 1
        self.handler_thread(number)


def translated(error: Exception) -> DalleServerError:
    """Python's own words for a system without threads, as ours. Raises anything else."""
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return NO_THREADS
    if isinstance(error, DalleServerError):
        return error
    raise error
