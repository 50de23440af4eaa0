"""Slots and queue: which pictures run, which wait, when each will be done. Bookkeeping: no torch, no threads."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

from dalle_server.engine.fair_queue import FairQueue
from dalle_server.engine.sequence import ImageGroup, ImageSequence

FIRST_RECOVERY_S = 60.0  # what took the memory may be gone by then
LONGEST_RECOVERY_S = 3600.0


class Scheduler:
    """A slot holds one picture from its first token to its last; then the next picture in turn takes it."""

    def __init__(self, num_slots: int, clock: Callable[[], float] = time.monotonic):
        self.num_slots = num_slots
        self.running: dict[int, ImageSequence] = {}  # slot → picture
        self.waiting = FairQueue()
        self._free = list(range(num_slots))  # a heap: the lowest slot first
        self._limit = num_slots  # slots from here on are out of use, for lack of memory
        self._clock = clock
        self._recovery_s = FIRST_RECOVERY_S  # how long the next lack of memory counts; each one longer
        self._recovers_at = 0.0

    @property
    def is_idle(self) -> bool:
        return not self.running and not len(self.waiting)

    def add(self, group: ImageGroup) -> None:
        if self.is_idle:
            self._limit = self.num_slots
        self.waiting.add(group)

    def admit_next(self) -> ImageSequence | None:
        """Move the next waiting picture into a free slot. None when no slot is free or nothing waits."""
        if self._limit < self.num_slots and self._clock() >= self._recovers_at:
            self._limit = self.num_slots
        if not self._free or self._free[0] >= self._limit or not len(self.waiting):
            return None
        sequence = self.waiting.pop()
        sequence.slot = heapq.heappop(self._free)
        self.running[sequence.slot] = sequence
        return sequence

    def release(self, sequence: ImageSequence) -> None:
        """Free the picture's slot, if it holds one."""
        if sequence.slot is not None:
            del self.running[sequence.slot]
            heapq.heappush(self._free, sequence.slot)
            sequence.slot, sequence.is_admitted = None, False

    def remove(self, group: ImageGroup) -> None:
        """Take every picture of this request out of queue and slots."""
        self.waiting.remove(group)
        for sequence in group.sequences:
            self.release(sequence)

    def shrink(self, limit: int) -> None:
        """Use slots below `limit` only, for a while. Pictures in the others go back to the head of the queue."""
        self._limit = limit
        self._recovers_at = self._clock() + self._recovery_s
        self._recovery_s = min(2 * self._recovery_s, LONGEST_RECOVERY_S)
        for slot in sorted((slot for slot in self.running if slot >= limit), reverse=True):
            sequence = self.running[slot]
            self.release(sequence)
            sequence.restart()
            self.waiting.put_back(sequence)

    def to_launch(self) -> list[ImageSequence]:
        """The running pictures whose texts have been read and that still have a token to launch, by slot."""
        admitted = [sequence for _, sequence in sorted(self.running.items()) if sequence.is_admitted]
        return [sequence for sequence in admitted if sequence.launched < sequence.tokens.size]

    def positions(self) -> dict[ImageGroup, int]:
        """For each request of which no picture is written yet: how many pictures come before its first; none, while
        its text is read.
        """
        positions = {sequence.group: 0 for sequence in self.running.values() if sequence.group.started_at is None}
        for ahead, sequence in enumerate(self.waiting.in_order()):
            if sequence.group.started_at is None:
                positions.setdefault(sequence.group, ahead)
        return positions

    def steps_until_done(self) -> dict[ImageGroup, int]:
        """Steps until each request has its last token, if nothing else arrives."""
        steps: dict[ImageGroup, int] = {}
        for sequence, end in self._rehearse():
            steps[sequence.group] = max(end, steps.get(sequence.group, 0))
        return steps

    def steps_until_ended(self, num_images: int) -> int:
        """Steps until this many of the running and waiting pictures have ended."""
        ends = sorted(end for _, end in self._rehearse())
        return ends[min(num_images, len(ends)) - 1] if ends else 0

    def _rehearse(self) -> list[tuple[ImageSequence, int]]:
        """Every running and waiting picture with the steps until its end. Exact, since lengths are known."""
        ended = [(sequence, sequence.steps_left) for sequence in self.running.values()]
        slot_free_at = [0] * sum(slot < self._limit for slot in self._free) + [steps for _, steps in ended]
        heapq.heapify(slot_free_at)
        for sequence in self.waiting.in_order():
            end = slot_free_at[0] + sequence.steps_left
            heapq.heapreplace(slot_free_at, end)
            ended.append((sequence, end))
        return ended
