"""How often something may happen: a sliding window for each name."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

MAX_NAMES = 10_000  # what an attacker with many addresses can make us remember


class SlidingWindow:
    """At most `limit` events of one name within `window_s` seconds."""

    def __init__(self, limit: int, window_s: float = 60.0, clock: Callable[[], float] = time.monotonic):
        self._limit, self._window_s, self._clock = limit, window_s, clock
        self._events: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, name: str) -> float:
        """Count an event if it is allowed: 0, or the seconds to wait."""
        with self._lock:  # once: two requests must not both see the last place free
            wait = self._wait_s(name)
            if wait == 0:
                self._add(name)
            return wait

    def _wait_s(self, name: str) -> float:
        events = self._recent(name)
        if events is None or len(events) < self._limit:
            return 0.0
        return max(0.001, events[0] + self._window_s - self._clock())

    def _add(self, name: str) -> None:
        events = self._events.setdefault(name, deque(maxlen=self._limit))
        events.append(self._clock())
        self._events.move_to_end(name)
        while len(self._events) > MAX_NAMES:
            self._events.popitem(last=False)

    def _recent(self, name: str) -> deque[float] | None:
        events = self._events.get(name)
        if events is None:
            return None
        while events and events[0] <= self._clock() - self._window_s:
            events.popleft()
        if not events:
            del self._events[name]
            return None
        return events
