"""The books of the engine: who is accepted, who runs, what each caller is told, and how each request ends.

Every method is safe from any thread. No runner here: `decode_loop.py` does the arithmetic and reports the results.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from dalle_server.engine.runners.base import NAN_TOKEN, StepResult, StepRow
from dalle_server.engine.scheduler import Scheduler
from dalle_server.engine.sequence import ImageGroup, ImageSequence
from dalle_server.engine.stats import Counters, EngineStats, Observer, notify
from dalle_server.errors import DalleServerError, DeadlineExceeded, GenerationFailed, Overloaded
from dalle_server.generation import (
    Cancelled,
    Done,
    Failed,
    GeneratedImage,
    ImageReady,
    Preview,
    Progress,
    Queued,
    Started,
)
from dalle_server.request import Pixels

LONGEST_SLEEP_S = 3600.0  # a lock cannot wait for a deadline in a thousand years; looking again costs nothing


class Place:
    """Room for one picture, held for a request that has not been read yet."""

    def __init__(self, release: Callable[[], None]):
        self._release = release

    def give_back(self) -> None:
        """Does nothing the second time."""
        release, self._release = self._release, lambda: None
        release()


class RequestTracker:
    """A request enters through `accept` and leaves through `finish`, each exactly once."""

    def __init__(
        self,
        num_slots: int,
        counters: Counters,
        observer: Observer,
        *,
        max_waiting_images: int,
        progress_every_s: float,
    ):
        self._scheduler = Scheduler(num_slots)
        self._groups: set[ImageGroup] = set()  # accepted and not ended
        self._counters, self._observer = counters, observer
        self._max_waiting_images = max_waiting_images
        self._progress_every_s = progress_every_s
        self._changed = threading.Condition(threading.RLock())  # guards all of the above
        self._woken = False
        self._held = 0  # places of requests that are being read

    # -- in

    def hold(self, num_detokenizing: int) -> Place:
        """Raises Overloaded when the queue is full."""
        self._take(1, num_detokenizing)
        return Place(lambda: self._release(1))

    @contextmanager
    def room_for(self, num_images: int, num_detokenizing: int, held: Place | None = None) -> Iterator[None]:
        """Holds places while a request is made, `held` being one of them. Raises Overloaded when they are too many."""
        with self._changed:
            if held is not None:
                held.give_back()
            self._take(num_images, num_detokenizing)
        try:
            yield
        finally:
            self._release(num_images)

    def _take(self, num_images: int, num_detokenizing: int) -> None:
        with self._changed:
            self._refuse_overload(num_images, num_detokenizing)
            self._held += num_images

    def _release(self, num_images: int) -> None:
        with self._changed:
            self._held -= num_images

    def accept(self, group: ImageGroup) -> None:
        """Put a request on the books, within its `room_for`."""
        with self._changed:
            self._groups.add(group)
            if group.is_replay:
                group.handle.emit(Queued(0))
                self._start(group)
            else:
                self._scheduler.add(group)
                self._tell_positions()
            self.wake()

    def _refuse_overload(self, num_images: int, num_detokenizing: int) -> None:
        scheduler = self._scheduler
        busy = len(scheduler.running) + len(scheduler.waiting) + num_detokenizing + self._held
        room = max(0, scheduler.num_slots + self._max_waiting_images - busy)
        if num_images > room:
            seconds = self._seconds(scheduler.steps_until_ended(num_images - room))
            raise Overloaded.no_room(room, num_images, seconds)

    def admit_next(self) -> tuple[ImageSequence, int] | None:
        """The next waiting picture and the slot it now holds. None when no slot is free or nothing waits."""
        with self._changed:
            sequence = self._scheduler.admit_next()
            if sequence is None or sequence.slot is None:
                return None
            self._tell_positions()
            return sequence, sequence.slot

    @property
    def num_writing(self) -> int:
        """Pictures that a step writes a token of."""
        with self._changed:
            return len(self._scheduler.to_launch())

    def admitted(self, sequence: ImageSequence) -> None:
        """The picture's texts are in its slot: from now on it is written. Its request has started with the first."""
        with self._changed:
            if sequence.slot is None:
                return  # its request has ended meanwhile
            sequence.is_admitted = True
            if sequence.group.started_at is None:
                self._start(sequence.group)

    def _start(self, group: ImageGroup) -> None:
        group.started_at = time.monotonic()
        group.handle.emit(Started(group.queue_s))

    # -- one token

    def rows_to_launch(self) -> tuple[list[ImageSequence], list[StepRow]]:
        """The next position of every running picture, counted as launched."""
        with self._changed:
            sequences = self._scheduler.to_launch()
            return sequences, [sequence.launch() for sequence in sequences]

    def write(
        self, sequences: Sequence[ImageSequence], rows: Sequence[StepRow], written: StepResult
    ) -> list[ImageSequence]:
        """Put a step's tokens into their grids; the pictures written. Those that left their slot are passed over."""
        with self._changed:
            awaited = [place for place, row in enumerate(rows) if sequences[place].awaits(row)]
            good: list[ImageSequence] = []
            for place in awaited:
                sequence, token = sequences[place], int(written.tokens[place])
                if token == NAN_TOKEN:
                    self.lose(sequence, GenerationFailed("the model's numbers were not finite; try another seed"))
                    continue
                sequence.write(token, None if written.logprobs is None else written.logprobs[place])
                good.append(sequence)
                if sequence.is_complete:
                    self._scheduler.release(sequence)
            self._tell_progress({sequences[place].group for place in awaited})
            return good

    def shrink(self, num_slots: int) -> None:
        """Use the first `num_slots` slots only, until all is done or a while has passed; the others' wait again."""
        with self._changed:
            self._scheduler.shrink(num_slots)

    # -- pixels

    def deliver(self, sequence: ImageSequence, pixels: Pixels) -> None:
        with self._changed:
            group = sequence.group
            image = GeneratedImage(sequence.index, sequence.key, pixels, sequence.tokens, sequence.logprobs)
            if group.handle.emit(ImageReady(image)):
                self._counters.images += 1
                group.images[sequence.index] = image
                self._finish_when_settled(group)

    def deliver_preview(self, sequence: ImageSequence, tokens_done: int, pixels: Pixels) -> None:
        if sequence.group.handle.emit(Preview(sequence.index, tokens_done, pixels)):
            self._counters.previews += 1
            notify(self._observer.on_preview, sequence.group.handle)

    # -- out

    def end_cancelled_and_expired(self) -> None:
        now = time.monotonic()
        for group in self._live():
            if group.handle.cancel_reason is not None:
                self.finish(group, Cancelled(group.handle.cancel_reason))
            elif group.handle.deadline is not None and now >= group.handle.deadline:
                self.finish(group, Failed(DeadlineExceeded.after(group.handle.request.timeout_s)))

    def lose(self, sequence: ImageSequence, error: DalleServerError) -> None:
        """One picture failed. Its siblings go on and are delivered; then the request ends with this error."""
        with self._changed:
            self._scheduler.release(sequence)
            sequence.group.lost[sequence.index] = error
            self._finish_when_settled(sequence.group)

    def _finish_when_settled(self, group: ImageGroup) -> None:
        if len(group.images) + len(group.lost) < len(group.sequences):
            return
        if group.lost:
            self.finish(group, Failed(next(iter(group.lost.values()))))
        else:
            images = tuple(group.images[index] for index in range(len(group.sequences)))
            self.finish(group, Done(images, group.queue_s, group.total_s))

    def finish(self, group: ImageGroup, event: Done | Failed | Cancelled) -> None:
        """The only way out: frees what the request holds and emits its terminal event, once."""
        with self._changed:
            if group not in self._groups:
                return
            self._groups.remove(group)
            self._scheduler.remove(group)
            group.sequences = []  # each names its group: a cycle, in which the pictures would wait for the collector
            self._counters.requests[type(event).__name__.lower()] += 1
            group.handle.emit(event)
            self._tell_positions()
            self._changed.notify_all()
        notify(self._observer.on_finished, group.handle, event)

    def finish_all(self, event: Failed | Cancelled) -> None:
        for group in self._live():
            self.finish(group, event)

    def _live(self) -> list[ImageGroup]:
        with self._changed:
            return list(self._groups)

    # -- what callers are told on the way

    def _tell_positions(self) -> None:
        for group, position in self._scheduler.positions().items():
            if position != group.position:
                group.position = position
                group.handle.emit(Queued(position))

    def _tell_progress(self, groups: Iterable[ImageGroup]) -> None:
        now = time.monotonic()
        due = [group for group in groups if not group.ended and group.progress_is_due(now, self._progress_every_s)]
        steps = self._scheduler.steps_until_done() if due else {}
        for group in due:
            group.reported_at = now
            eta_s = self._seconds(steps.get(group, 0)) + (self._counters.detokenize_s or 0.0)
            group.handle.emit(
                Progress(group.tokens_done, group.num_tokens, None if self._counters.step_s is None else eta_s)
            )

    def _seconds(self, steps: int) -> float:
        return steps * (self._counters.step_s or 0.0)

    # -- waiting

    @property
    def has_steps(self) -> bool:
        """Whether a picture runs or waits for a slot."""
        with self._changed:
            return not self._scheduler.is_idle

    @property
    def is_empty(self) -> bool:
        return not self._groups

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def wait_for_work(self) -> None:
        """Sleep until a request comes, a cancel, or the next deadline."""
        with self._changed:
            if not self._woken:
                deadlines = [group.handle.deadline for group in self._groups if group.handle.deadline is not None]
                timeout_s = min(max(0.0, min(deadlines) - time.monotonic()), LONGEST_SLEEP_S) if deadlines else None
                self._changed.wait_for(lambda: self._woken, timeout_s)
            self._woken = False

    def wait_until_empty(self, timeout_s: float) -> bool:
        """True when every accepted request ended within timeout_s."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._groups, timeout_s)

    def stats(self, num_detokenizing: int) -> EngineStats:
        with self._changed:
            return self._counters.snapshot(
                running=len(self._scheduler.running),
                waiting=len(self._scheduler.waiting),
                detokenizing=num_detokenizing,
                live_requests=len(self._groups),
            )
