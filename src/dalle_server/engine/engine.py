"""The engine: prompts in, pictures out, many at a time, each as if it were alone.

An image is a function of (weights, prompt, parameters, seed, image index) and of nothing else.
`Engine` checks requests, owns the threads and survives one fault; the work is in `decode_loop.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol

from dalle_server.engine.decode_loop import DecodeLoop
from dalle_server.engine.runners.base import Runner, TextTokens
from dalle_server.engine.selftest import check_row_buckets
from dalle_server.engine.sequence import Job
from dalle_server.engine.stats import EngineStats, Observer
from dalle_server.errors import GenerationFailed, InvalidRequest, NotReady
from dalle_server.generation import FREE, Generation, GenerationRequest

State = Literal["ready", "restarting", "failed", "stopping", "stopped"]

logger = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """Called in the submitting thread, several at a time."""

    def encode(self, prompt: str) -> TextTokens: ...

    def encode_negative(self, text: str) -> TextTokens: ...

    def unconditional(self) -> TextTokens: ...


class Engine:
    """`start()` runs it in threads of its own; without, a test calls `step()` until it answers False.

    A fault ends every live request with an error and restarts the loop once: on a runner from `make_runner`
    where given, else on the same one (its slots are zeroed at admission). A second fault, or one that cannot
    be restarted, is fatal: state "failed", and `on_fatal` is called, for the server to exit non-zero.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        digest: str = "",
        max_waiting_images: int = 64,
        detokenize_batch: int | None = None,
        progress_every_s: float = 0.05,
        step_timeout_s: float = 120.0,
        make_runner: Callable[[], Runner] | None = None,
        observer: Observer | None = None,
        on_fatal: Callable[[], None] = lambda: None,
    ):
        self.config = runner.config
        self.info = runner.info
        self.digest = digest
        self.observer = observer or Observer()
        self.on_fatal = on_fatal
        self._tokenizer = tokenizer
        self._max_waiting_images = max_waiting_images
        # On a CPU a batch takes as long as its pictures one by one, and the first would wait for the last.
        self._detokenize_batch = detokenize_batch or (1 if runner.info.device == "cpu" else 8)
        self._progress_every_s = progress_every_s
        self._step_timeout_s = step_timeout_s
        self._make_runner = make_runner
        self._stats = EngineStats(num_slots=runner.num_slots)
        self._lifecycle = threading.RLock()  # guards state, loop and threads
        self._state: State = "ready"
        self._threaded = False
        self._step_begun: float | None = None  # time.monotonic(), for the watchdog
        self._loop = self._new_loop(runner)

    def _new_loop(self, runner: Runner) -> DecodeLoop:
        self.determinism = check_row_buckets(runner)
        logger.info("determinism: %s", self.determinism)
        return DecodeLoop(
            runner,
            self._stats,
            self.observer,
            max_waiting_images=self._max_waiting_images,
            detokenize_batch=self._detokenize_batch,
            progress_every_s=self._progress_every_s,
        )

    @property
    def state(self) -> State:
        return self._state

    # -- requests

    def submit(self, request: GenerationRequest) -> Generation:
        """Accept a request: from now on it ends exactly once. Any thread.

        Raises InvalidRequest, Overloaded when the queue has no room for it, NotReady while stopping or down.
        """
        self._check(request)
        conditional = self._tokenizer.encode(request.prompt)
        negative = request.negative_prompt
        unconditional = self._tokenizer.encode_negative(negative) if negative else self._tokenizer.unconditional()
        handle = Generation(request, request.sampling.with_defaults(self.config.sampling), conditional.length)
        job = Job.of(handle, conditional, unconditional, self.config.transformer.image_length)
        with self._lifecycle:
            if self._state != "ready":
                raise NotReady(f"the engine is {self._state}; try again shortly", retry_after_s=5)
            loop = self._loop
            handle.on_cancel(loop.wake)
            loop.accept(job)
        return handle

    def _check(self, request: GenerationRequest) -> None:
        most = self._stats.num_slots + self._max_waiting_images
        if len(request.images) > most:
            raise InvalidRequest(
                f"num_images must be at most {most} on this server, not {len(request.images)}", param="num_images"
            )
        tokens, size = request.forced_tokens, self.config.transformer.image_length
        if tokens and len(tokens) != size:
            raise InvalidRequest(f"forced_tokens needs {size} ids, not {len(tokens)}", param="forced_tokens")
        for token in tokens:
            if token != FREE and not 0 <= token < self.config.codebook_size:
                ids = f"0…{self.config.codebook_size - 1}, or {FREE} where the model chooses"
                raise InvalidRequest(f"forced_tokens: {token} is no codebook id; use {ids}", param="forced_tokens")

    def step(self) -> bool:
        """One token for every running picture. False when nothing is left to do. Faults are handled here."""
        loop = self._loop
        self._step_begun = time.monotonic()
        try:
            return loop.step()
        except Exception as error:
            logger.exception("the engine failed in a step")
            self._fault(loop, f"{type(error).__name__}", runner_usable=True)
            return True
        finally:
            self._step_begun = None

    def stats(self) -> EngineStats:
        """Live counters: read, don't write."""
        self._loop.update_stats()
        return self._stats

    # -- threads

    def start(self) -> None:
        with self._lifecycle:
            self._threaded = True
            self._start_threads()
        threading.Thread(target=self._watch, name="engine-watchdog", daemon=True).start()

    def _start_threads(self) -> None:
        self._loop.detokenizer.start()
        self._thread = threading.Thread(target=self._run, args=(self._loop,), name="engine", daemon=True)
        self._thread.start()

    def _run(self, loop: DecodeLoop) -> None:
        while loop is self._loop and self._state in ("ready", "stopping"):
            if not self.step():
                loop.wait_for_work()

    def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give the accepted ones `drain_s` to finish, cancel the rest, close the runner."""
        with self._lifecycle:
            if self._state == "stopped":
                return
            if self._state == "ready":
                self._state = "stopping"
        self._drain(drain_s)
        loop = self._loop
        loop.cancel_all("the server is shutting down")
        with self._lifecycle:
            self._state = "stopped"
        loop.wake()
        loop.detokenizer.close()
        if self._threaded and self._thread is not threading.current_thread():
            self._thread.join(timeout=10.0)
        loop.runner.close()

    def _drain(self, drain_s: float) -> None:
        end = time.monotonic() + drain_s
        if self._threaded:
            self._loop.wait_until_empty(drain_s)
        else:
            while self._loop.jobs and time.monotonic() < end:
                self.step()

    # -- faults

    def _watch(self) -> None:
        """A step that hangs cannot be interrupted, only abandoned: its thread finds itself replaced when it returns."""
        while self._state not in ("stopped", "failed"):
            time.sleep(min(1.0, self._step_timeout_s / 4))
            begun, loop = self._step_begun, self._loop
            if begun is not None and time.monotonic() - begun > self._step_timeout_s:
                logger.error("a step did not return within %g s", self._step_timeout_s)
                self._fault(loop, "a hung step", runner_usable=False)

    def _fault(self, loop: DecodeLoop, what: str, *, runner_usable: bool) -> None:
        with self._lifecycle:
            if loop is not self._loop or self._state in ("failed", "stopped"):
                return  # another thread saw it first
            self._stats.faults += 1
            stopping = self._state == "stopping"
            self._state = "restarting"
            self._step_begun = None
        loop.fail_all(GenerationFailed("the engine failed while drawing this picture; try again"))
        loop.detokenizer.close(timeout_s=0.0)
        if stopping or self._stats.faults > 1 or not self._restart(loop, runner_usable):
            self._give_up(what)

    def _restart(self, loop: DecodeLoop, runner_usable: bool) -> bool:
        if self._make_runner is None and not runner_usable:
            return False
        try:
            if self._make_runner is not None and runner_usable:
                loop.runner.close()
            runner = loop.runner if self._make_runner is None else self._make_runner()
            new_loop = self._new_loop(runner)
        except Exception:
            logger.exception("the engine could not be restarted")
            return False
        with self._lifecycle:
            self._loop = new_loop
            self._state = "ready"
            if self._threaded:
                self._start_threads()
        logger.warning("the engine was restarted after a fault; the next one will be fatal")
        return True

    def _give_up(self, what: str) -> None:
        with self._lifecycle:
            self._state = "failed"
        logger.critical("the engine is down after %d faults, the last one: %s", self._stats.faults, what)
        self.on_fatal()
