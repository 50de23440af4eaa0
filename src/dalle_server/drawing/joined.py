"""Several generations read as one: what `Repainting` and `Painting` have in common."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from dalle_server.generation import Cancelled, Done, Event, Failed, Generation

LOOK_S = 0.01  # how often it is asked whether there is a place in the queue again


def all_or_none(submitted: Iterable[Generation]) -> list[Generation]:
    """Generations that are submitted as they are taken from `submitted`; where one is refused, those before it are
    cancelled. Raises what submitting them raises.
    """
    generations: list[Generation] = []
    try:
        for generation in submitted:
            generations.append(generation)
    except Exception:
        for generation in generations:
            generation.cancel("the rest of the request was refused")
        raise
    return generations


def said_by_now(reader: Iterator[Event | None]) -> Iterator[Event]:
    """What a generation's events hold until it has nothing more to say; of `events(poll_s=0)`."""
    for event in reader:
        if event is None:
            return
        yield event


class Joined(ABC):
    """The reading side of a generation (`drawn.Drawn`) over those that it is made of; one consumer reads it."""

    terminal: Done | Failed | Cancelled | None = None

    def __init__(self) -> None:
        self._spoke = threading.Event()  # one of the generations, or a cancel

    @property
    def _waits_for_a_place(self) -> bool:
        """A part is to be submitted as soon as the queue has room, which nobody tells."""
        return False

    @abstractmethod
    def cancel(self, reason: str = "cancelled by the client") -> None:
        """Every generation that has not ended."""

    @abstractmethod
    def _news(self) -> list[Event]:
        """What there is to tell by now, in the whole request's words; never waits."""

    def events(self, poll_s: float | None = None) -> Iterator[Event | None]:
        """Every event up to the terminal one. With poll_s, yields None when that long nothing happened."""
        spoke_at = time.monotonic()
        while self.terminal is None:
            self._spoke.clear()
            told = self._news()
            for event in told:
                if isinstance(event, (Done, Failed, Cancelled)):
                    self.terminal = event
                    self.cancel("another picture of the request failed")  # does nothing to those that have ended
                yield event
                if self.terminal is not None:
                    return
            if told:
                spoke_at = time.monotonic()
                continue
            rest_s = None if poll_s is None else spoke_at + poll_s - time.monotonic()
            if rest_s is not None and rest_s <= 0:
                spoke_at = time.monotonic()
                yield None
            elif self._waits_for_a_place:
                self._spoke.wait(LOOK_S)
            else:
                self._spoke.wait(rest_s)
