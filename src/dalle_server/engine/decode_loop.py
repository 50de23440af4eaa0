"""The life of requests on one runner: admission, one token at a time, pixels, the end.

Start reading at `DecodeLoop.step`. Everything here lives and dies with its runner: after a fault the
engine drops the loop whole and makes a new one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.detokenizer import Detokenizer
from dalle_server.engine.encoded_texts import EncodedTexts
from dalle_server.engine.runners.base import NAN_TOKEN, PendingTokens, Runner, StepRow
from dalle_server.engine.scheduler import Scheduler
from dalle_server.engine.sequence import ImageSequence, Job
from dalle_server.engine.stats import EngineStats, Observer, moving_average
from dalle_server.errors import DalleServerError, DeadlineExceeded, GenerationFailed, Overloaded
from dalle_server.generation import (
    Cancelled,
    Done,
    Failed,
    GeneratedImage,
    ImageReady,
    Pixels,
    Preview,
    Progress,
    Queued,
    Started,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step under way: whose tokens come, and where from (several parts when memory was short)."""

    sequences: Sequence[ImageSequence]
    parts: Sequence[PendingTokens]

    def result(self) -> NDArray[np.int32]:
        return np.concatenate([part.result() for part in self.parts])


class DecodeLoop:
    """`accept` and `wake` may be called from any thread; `step` from one."""

    def __init__(
        self,
        runner: Runner,
        stats: EngineStats,
        observer: Observer,
        *,
        max_waiting_images: int,
        detokenize_batch: int,
        progress_every_s: float,
    ):
        self.runner = runner
        self.scheduler = Scheduler(runner.num_slots)
        self.detokenizer = Detokenizer(
            self._detokenize,
            grid_side=runner.config.grid_side,
            max_batch=detokenize_batch,
            on_image=self._deliver,
            on_preview=self._deliver_preview,
            on_error=self._lose_pixels,
        )
        self.jobs: set[Job] = set()  # accepted and not ended
        self._stats, self._observer = stats, observer
        self._max_waiting_images = max_waiting_images
        self._progress_every_s = progress_every_s
        self._texts = EncodedTexts(runner)
        self._in_flight: deque[_Launched] = deque()
        self._max_rows = runner.row_buckets[-1]
        self._changed = threading.Condition(threading.RLock())  # guards scheduler, jobs and their pictures
        self._woken = False

    # -- one step

    def step(self) -> bool:
        """Write one token for every running picture. False when nothing was left to do."""
        begun = time.perf_counter()
        self._end_cancelled_and_expired()
        self._fill_free_slots()
        launched = self._launch()
        if launched:
            self._in_flight.append(launched)
        if len(self._in_flight) > (self.runner.lookahead if launched else 0):
            read = self._in_flight.popleft()
            self._write(read.sequences, read.result())
            self._count_step(len(read.sequences), time.perf_counter() - begun)
        while not self.detokenizer.is_threaded and self.detokenizer.run_pending():
            pass
        return bool(self._in_flight) or not self.scheduler.is_idle

    def _end_cancelled_and_expired(self) -> None:
        now = time.monotonic()
        for job in self._live_jobs():
            if job.handle.cancel_reason is not None:
                self.finish(job, Cancelled(job.handle.cancel_reason))
            elif job.handle.deadline is not None and now >= job.handle.deadline:
                seconds = job.handle.request.timeout_s
                self.finish(job, Failed(DeadlineExceeded(f"not done within its time limit of {seconds:g} s")))

    def _fill_free_slots(self) -> None:
        """Encode and admit waiting pictures while slots are free. Out of memory here costs that request alone."""
        num_admitted = 0
        while admitted := self._admit_next():
            sequence, slot = admitted
            job = sequence.job
            try:
                conditional, unconditional = self._texts.encode(job.conditional), self._texts.encode(job.unconditional)
                self.runner.admit(slot, conditional, unconditional)
            except MemoryError:
                logger.warning("request %s: out of memory at admission", job.handle.request.id)
                self._texts.clear()
                self.finish(job, Failed(GenerationFailed("not enough memory for this picture; try again later")))
                continue
            num_admitted += 1
            if job.started_at is None:
                job.started_at = time.monotonic()
                job.handle.emit(Started(job.queue_s))
        if num_admitted:
            self._tell_positions()

    def _admit_next(self) -> tuple[ImageSequence, int] | None:
        with self._changed:
            sequence = self.scheduler.admit_next()
            return None if sequence is None or sequence.slot is None else (sequence, sequence.slot)

    def _launch(self) -> _Launched | None:
        """Start the next step of every running picture; its positions are known before the last step is read."""
        with self._changed:
            sequences = self.scheduler.to_launch()
            rows = [sequence.next_row() for sequence in sequences]
        if not rows:
            return None
        parts: list[PendingTokens] = []
        begin = 0
        while begin < len(rows):
            part, num_rows = self._launch_part(rows[begin : begin + self._max_rows])
            parts.append(part)
            begin += num_rows
        for sequence in sequences:
            sequence.launched += 1
        return _Launched(sequences, parts)

    def _launch_part(self, rows: Sequence[StepRow]) -> tuple[PendingTokens, int]:
        """Out of memory: the largest smaller bucket, once. Sizes that fit stay in force for this loop's life."""
        try:
            return self.runner.step(rows), len(rows)
        except MemoryError:
            smaller = [bucket for bucket in self.runner.row_buckets if bucket < len(rows)]
            if not smaller:
                raise
            self._max_rows = smaller[-1]
            logger.warning("out of memory with %d pictures in a step; going on with %d", len(rows), self._max_rows)
            rows = rows[: self._max_rows]
            return self.runner.step(rows), len(rows)

    def _write(self, sequences: Sequence[ImageSequence], tokens: NDArray[np.int32]) -> None:
        """Put a step's tokens into their grids. Pictures that left their slot meanwhile are passed over."""
        with self._changed:
            running = [(s, int(token)) for s, token in zip(sequences, tokens, strict=True) if s.slot is not None]
            for sequence, token in running:
                if token == NAN_TOKEN:
                    self._lose(sequence, GenerationFailed("the model's numbers were not finite; try another seed"))
                    continue
                sequence.write(token)
                if sequence.is_complete:
                    self.scheduler.release(sequence)
                    self.detokenizer.add_final(sequence)
                elif sequence.job.preview_is_due(sequence):
                    self.detokenizer.add_preview(sequence)
            self._tell_progress({sequence.job for sequence, _ in running})

    def _count_step(self, num_images: int, seconds: float) -> None:
        self._stats.count_step(num_images, seconds)
        self._observer.on_step(num_images, seconds)

    # -- the way in

    def accept(self, job: Job) -> None:
        """Queue a request; a whole grid goes straight to pixels. Raises Overloaded when the queue is full."""
        with self._changed:
            self._refuse_overload(len(job.sequences))
            self.jobs.add(job)
            if all(sequence.is_complete for sequence in job.sequences):
                job.started_at = time.monotonic()
                job.handle.emit(Queued(0))
                job.handle.emit(Started(job.queue_s))
                for sequence in job.sequences:
                    self.detokenizer.add_final(sequence)
            else:
                self.scheduler.add(job)
                self._tell_positions()
        self.wake()

    def _refuse_overload(self, num_images: int) -> None:
        busy = len(self.scheduler.running) + len(self.scheduler.waiting) + self.detokenizer.backlog
        room = self.scheduler.num_slots + self._max_waiting_images - busy
        if num_images > room:
            raise Overloaded(
                f"the queue has room for {max(room, 0)} more pictures, not {num_images}; try again later",
                retry_after_s=max(1.0, self._seconds(self.scheduler.steps_until_next_end())),
            )

    # -- events

    def _tell_positions(self) -> None:
        for job, position in self.scheduler.positions().items():
            if position != job.position:
                job.position = position
                job.handle.emit(Queued(position))

    def _tell_progress(self, jobs: set[Job]) -> None:
        now = time.monotonic()
        due = [job for job in jobs if not job.ended and job.progress_is_due(now, self._progress_every_s)]
        if not due:
            return
        steps = self.scheduler.steps_until_done()
        for job in due:
            job.reported_at = now
            eta_s = self._seconds(steps.get(job, 0)) + (self._stats.detokenize_s or 0.0)
            known = self._stats.step_s is not None
            job.handle.emit(Progress(job.tokens_done, job.num_tokens, eta_s if known else None))

    def _seconds(self, steps: int) -> float:
        return steps * (self._stats.step_s or 0.0)

    # -- pixels: these run in the detokenizer's thread

    def _detokenize(self, grids: NDArray[np.int32]) -> NDArray[np.uint8]:
        begun = time.perf_counter()
        pixels = self.runner.detokenize(grids)
        self._stats.detokenize_s = moving_average(self._stats.detokenize_s, time.perf_counter() - begun)
        return pixels

    def _deliver(self, sequence: ImageSequence, pixels: Pixels) -> None:
        job = sequence.job
        image = GeneratedImage(sequence.index, sequence.key, pixels, sequence.tokens)
        with self._changed:
            if job.ended:
                return
            self._stats.images += 1
            job.images[sequence.index] = image
            job.handle.emit(ImageReady(image))
            self._finish_if_all_settled(job)

    def _deliver_preview(self, sequence: ImageSequence, tokens_done: int, pixels: Pixels) -> None:
        if sequence.job.handle.emit(Preview(sequence.index, tokens_done, pixels)):
            self._stats.previews += 1
            self._observer.on_preview(sequence.job.handle)

    def _lose_pixels(self, sequences: Sequence[ImageSequence], error: Exception) -> None:
        logger.error("decoding %d pictures to pixels failed", len(sequences), exc_info=error)
        for sequence in sequences:
            self._lose(sequence, GenerationFailed("the picture's tokens could not be decoded to pixels; try again"))

    # -- the end

    def _lose(self, sequence: ImageSequence, error: DalleServerError) -> None:
        """One picture failed. Its siblings go on and are delivered; then the request ends with this error."""
        with self._changed:
            self.scheduler.release(sequence)
            sequence.job.lost[sequence.index] = error
            self._finish_if_all_settled(sequence.job)

    def _finish_if_all_settled(self, job: Job) -> None:
        if len(job.images) + len(job.lost) < len(job.sequences):
            return
        if job.lost:
            self.finish(job, Failed(next(iter(job.lost.values()))))
        else:
            images = tuple(job.images[index] for index in range(len(job.sequences)))
            self.finish(job, Done(images, job.queue_s, job.total_s))

    def finish(self, job: Job, event: Done | Failed | Cancelled) -> None:
        """The only way out: frees what the request holds and emits its terminal event, once."""
        with self._changed:
            if job not in self.jobs:
                return
            self.jobs.remove(job)
            self.scheduler.remove(job)
            self._stats.requests[type(event).__name__.lower()] += 1
            job.handle.emit(event)
            self._tell_positions()
            self._changed.notify_all()
        self._observer.on_finished(job.handle, event)

    def fail_all(self, error: DalleServerError) -> None:
        for job in self._live_jobs():
            self.finish(job, Failed(error))

    def cancel_all(self, reason: str) -> None:
        for job in self._live_jobs():
            self.finish(job, Cancelled(reason))

    # -- waiting

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def wait_for_work(self) -> None:
        """Sleep until a request comes, a cancel, or the next deadline."""
        with self._changed:
            if not self._woken:
                deadlines = [job.handle.deadline for job in self.jobs if job.handle.deadline is not None]
                timeout_s = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
                self._changed.wait_for(lambda: self._woken, timeout_s)
            self._woken = False

    def wait_until_empty(self, timeout_s: float) -> bool:
        """True when every accepted request ended within timeout_s."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.jobs, timeout_s)

    def _live_jobs(self) -> list[Job]:
        with self._changed:
            return list(self.jobs)

    def update_stats(self) -> None:
        """Refresh the counts that are of this moment."""
        with self._changed:
            self._stats.running = len(self.scheduler.running)
            self._stats.waiting = len(self.scheduler.waiting)
            self._stats.detokenizing = self.detokenizer.backlog
            self._stats.live_requests = len(self.jobs)
