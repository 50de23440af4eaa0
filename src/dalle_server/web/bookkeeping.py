"""Keeps the books of accepted requests: queue share of each client, metrics, and a log line when one ends."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flask import has_request_context, request

from dalle_server.config import Settings
from dalle_server.engine.stats import Observer
from dalle_server.errors import Overloaded, RateLimited
from dalle_server.generation import Cancelled, Done, Failed, Generation
from dalle_server.request import GenerationRequest
from dalle_server.web.logging import fields, request_id
from dalle_server.web.operations.metrics import Metrics

logger = logging.getLogger("dalle_server.generation")


@dataclass(slots=True)
class Parts:
    """One client's request, counted once, whatever it is made of: windows of a painted shape, pictures of an edit."""

    expected: int = 1  # generations
    done: int = 0
    live_images: int = 0
    submitted_at: float | None = None
    queue_s: float = 0.0  # of the first generation
    outcome: str | None = None  # of the first that was not done
    is_counted: bool = False
    previewed: bool = False


@dataclass(slots=True)
class _Entry:
    """Where an accepted generation came from."""

    request_id: str | None
    route: str
    parts: Parts


class Bookkeeping(Observer):
    """Of one model. Told by the service what is submitted, and by the engine, in its threads, what becomes of it."""

    def __init__(self, settings: Settings, metrics: Metrics, model: Callable[[], str]):
        self._metrics, self._model = metrics, model
        self._log_prompts = settings.log_prompts
        self._share = math.ceil(settings.queue_share * settings.max_waiting_images)
        self._limited = settings.queue_share < 1
        self._entries: dict[str, _Entry] = {}
        self._live_images: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def holding(self, client: str) -> Iterator[None]:
        """Around Engine.hold. Raises RateLimited when the client's share of the queue is full."""
        with self._counting_refusals():
            with self._lock:
                self._check_share(client, 1, own=0)
            yield

    @contextmanager
    def submitting(self, wanted: GenerationRequest, parts: Parts) -> Iterator[None]:
        """Around Engine.submit, of one of the `parts`. Raises RateLimited when the client's share of the queue is
        full; a request alone may have more than that.
        """
        in_request = has_request_context()
        entry = _Entry(request_id() if in_request else None, request.path if in_request else "background", parts)
        with self._counting_refusals(parts):
            with self._lock:
                self._check_share(wanted.client, len(wanted.images), own=parts.live_images)
                self._entries[wanted.id] = entry
                self._live_images[wanted.client] += len(wanted.images)
                parts.live_images += len(wanted.images)
                parts.submitted_at = parts.submitted_at or time.monotonic()
            try:
                yield
            except BaseException:
                self._forget(wanted)
                raise

    @contextmanager
    def _counting_refusals(self, parts: Parts | None = None) -> Iterator[None]:
        """A job that waits for room is not refused, and neither is a picture that waits for its next window."""
        try:
            yield
        except (Overloaded, RateLimited):
            if has_request_context() and not (parts and parts.done):
                self._count("refused", parts)
            raise

    def _check_share(self, client: str, num_images: int, *, own: int) -> None:
        live = self._live_images.get(client, 0)
        if self._limited and live > own and live + num_images > self._share:
            raise RateLimited(
                f"{live} of your pictures are under way, and one client may have {self._share}; wait for them",
                retry_after_s=5,
            )

    def _count(self, outcome: str, parts: Parts | None) -> None:
        if parts is not None:
            parts.is_counted = True
        self._metrics.requests.labels(outcome).inc()
        self._metrics.model_requests.labels(self._model(), outcome).inc()

    def _forget(self, wanted: GenerationRequest) -> _Entry | None:
        with self._lock:
            entry = self._entries.pop(wanted.id, None)
            if entry is not None:
                self._live_images[wanted.client] -= len(wanted.images)
                if not self._live_images[wanted.client]:
                    del self._live_images[wanted.client]
                entry.parts.live_images -= len(wanted.images)
            return entry

    def on_step(self, num_images: int, seconds: float) -> None:
        self._metrics.batch_rows.observe(2 * num_images)
        self._metrics.step_s.observe(seconds)

    def on_preview(self, generation: Generation) -> None:
        entry = self._entries.get(generation.request.id)
        if entry is not None and not entry.parts.previewed:
            entry.parts.previewed = True
            self._metrics.first_preview_s.observe(time.monotonic() - (entry.parts.submitted_at or 0.0))

    def on_finished(self, generation: Generation, event: Done | Failed | Cancelled) -> None:
        entry = self._forget(generation.request)
        if entry is None:
            return  # the warm-up, or another that did not come through the service
        self._end(entry.parts, event)
        outcome = type(event).__name__.lower()
        logger.info(_line(entry, generation, event, outcome, self._model(), self._log_prompts))

    def _end(self, parts: Parts, event: Done | Failed | Cancelled) -> None:
        """One part has ended, and with the last one the request."""
        with self._lock:
            if isinstance(event, Done):
                parts.queue_s = parts.queue_s if parts.done else event.queue_s
                parts.done += 1
            else:
                parts.outcome = parts.outcome or type(event).__name__.lower()
            is_over = parts.outcome is not None or parts.done == parts.expected
            if parts.is_counted or parts.live_images or not is_over:
                return
            self._count(parts.outcome or "done", parts)
        if parts.outcome is None:
            self._metrics.queue_s.observe(parts.queue_s)
            self._metrics.total_s.observe(time.monotonic() - (parts.submitted_at or 0.0))


def _line(
    entry: _Entry,
    generation: Generation,
    event: Done | Failed | Cancelled,
    outcome: str,
    model: str,
    log_prompts: bool,
) -> str:
    wanted = generation.request
    done = event if isinstance(event, Done) else None
    return fields(
        request=entry.request_id,
        generation=wanted.id,
        route=entry.route,
        model=model,
        images=len(wanted.images),
        seed=wanted.images[0].seed,
        text_tokens=generation.text_token_count,
        queue_s=done.queue_s if done else None,
        steps=done.images[0].tokens.size if done else None,
        total_s=done.total_s if done else time.monotonic() - generation.submitted_at,
        outcome=outcome,
        reason=event.error.code
        if isinstance(event, Failed)
        else event.reason
        if isinstance(event, Cancelled)
        else None,
        prompt=wanted.prompt if log_prompts else None,
    )
