"""The engine: prompts in, pictures out, many at a time, each as if it were alone.

An image is a function of (weights, prompt, parameters, seed, image index) and of nothing else.
`Engine` checks requests, owns the threads and survives one fault; the work is in `decode_loop.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dalle_server.engine.checking import check_pixels, check_request
from dalle_server.engine.decode_loop import DecodeLoop
from dalle_server.engine.runners.base import Runner, TextTokens
from dalle_server.engine.selftest import check_determinism
from dalle_server.engine.sequence import ImageGroup
from dalle_server.engine.stats import Counters, EngineStats, Observer
from dalle_server.engine.tracker import Place, RequestTracker
from dalle_server.errors import EngineDown, EngineFault, NotReady, Overloaded
from dalle_server.generation import Cancelled, Failed, Generation
from dalle_server.request import GenerationRequest, Pixels, Tokens

State = Literal["ready", "restarting", "failed", "stopping", "stopped"]

FAULT_PARDON_S = 3600.0  # a fault so long ago says nothing about the next
RESTART_TIMEOUT_S = 600.0  # to load the weights again; longer, and the process had better end

logger = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """Called in the submitting threads, several at a time."""

    def pair(self, prompt: str, negative_prompt: str) -> tuple[TextTokens, TextTokens]:
        """The conditional and the unconditional row of a picture. Either text may be empty."""
        ...


class Engine:
    """`start()` runs it in threads of its own; without, a test calls `step()` until it answers False.

    A fault ends every live request with an error and restarts the loop once: on a runner from `make_runner`
    where given, else on the same one (its slots are zeroed at admission). A second fault within FAULT_PARDON_S, or one
    that cannot be restarted, is fatal: state "failed", and `on_fatal` is called, for the server to exit non-zero.
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
        self.determinism = ""
        self.observer = observer or Observer()
        self.on_fatal = on_fatal
        self.is_stuck = False  # a call never came back: what it computes on cannot be let go
        self.tokenizer = tokenizer
        self._max_waiting_images = max_waiting_images
        # On a CPU a batch takes as long as its pictures one by one, and the first would wait for the last.
        self._detokenize_batch = detokenize_batch or (1 if runner.info.device == "cpu" else 8)
        self._progress_every_s = progress_every_s
        self._step_timeout_s = step_timeout_s
        self._make_runner = make_runner
        self._counters = Counters(num_slots=runner.num_slots)
        self._lifecycle = threading.RLock()  # guards the four below
        self._state: State = "ready"
        self._loop = self._make_loop(runner)
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._tokenizing = threading.Lock()
        self._last_fault: float | None = None  # time.monotonic()

    def _make_loop(self, runner: Runner) -> DecodeLoop:
        self.determinism = check_determinism(runner)
        tracker = RequestTracker(
            runner.num_slots,
            self._counters,
            self.observer,
            max_waiting_images=self._max_waiting_images,
            progress_every_s=self._progress_every_s,
        )
        return DecodeLoop(runner, tracker, self._counters, self.observer, detokenize_batch=self._detokenize_batch)

    @property
    def state(self) -> State:
        return self._state

    @property
    def most_images(self) -> int:
        """Pictures that slots and queue hold together: a request with more never finds room."""
        return self._counters.num_slots + self._max_waiting_images

    def stats(self) -> EngineStats:
        """As of this moment."""
        return self._loop.stats()

    # -- requests

    def hold(self) -> Place:
        """A place in the queue for a request that has yet to be read; `submit` takes it, or it is given back. Any
        thread. Raises Overloaded when the queue is full, NotReady and EngineDown as `submit` does.
        """
        if self.state != "ready":
            raise self._refusal()
        return self._loop.hold()

    def _refusal(self) -> NotReady:
        state = self._state
        kind = EngineDown if state in ("failed", "stopping", "stopped") else NotReady
        what = "has restarted" if state == "ready" else f"is {state}"  # while the caller looked
        return kind(f"the engine {what}; try again shortly", retry_after_s=5)

    def submit(self, request: GenerationRequest, held: Place | None = None) -> Generation:
        """Accept a request: from now on it ends exactly once. Any thread.

        Raises InvalidRequest, Overloaded when the queue has no room for it, NotReady while restarting, EngineDown from
        `stop` or the last fault on.
        """
        check_request(request, self.config, self.info, self.most_images)
        loop = self._loop
        with loop.room_for(len(request.images), held):  # first: reading a text is work, which a full queue must not do
            conditional, unconditional = self.tokenizer.pair(request.prompt, request.negative_prompt)
            handle = Generation(request, request.sampling.with_defaults(self.config.sampling), conditional.length)
            group = ImageGroup.of(handle, conditional, unconditional, self.config.picture.num_tokens)
            with self._lifecycle:
                if self._state != "ready" or loop is not self._loop:
                    raise self._refusal()
                handle.on_cancel(loop.tracker.wake)
                loop.submit(group)
        return handle

    def tokenize(self, pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
        """(N, height, width, 3) pixels of the model's own size → (N, I) ids. Any thread; drawing goes on beside it.

        Raises InvalidRequest for another shape, NotSupported for a checkpoint that cannot read pictures, NotReady.
        """
        check_pixels(pixels, self.config, self.info)
        with self._tokenizing:  # a runner reads for one thread at a time
            return self._aside(lambda loop: loop.runner.tokenize(pixels))

    def detokenize(self, tokens: Tokens, *, seamless: bool = False) -> Pixels:
        """(I,) ids → (height, width, 3): what they show, beside the drawing. Any thread. Raises NotReady."""
        return self._aside(lambda loop: loop.pixels_of(tokens[None], seamless)[0])

    def _aside(self, work: Callable[[DecodeLoop], NDArray[Any]]) -> NDArray[Any]:
        """What needs the runner and no place in its queue."""
        loop = self._loop
        if self._state != "ready":
            raise self._refusal()
        try:
            return work(loop)
        except MemoryError as error:
            raise Overloaded("not enough memory to read this picture; try again later") from error
        except Exception as error:
            if self._state != "ready" or loop is not self._loop:  # its runner was closed meanwhile
                raise self._refusal() from error
            raise

    def step(self) -> bool:
        """One token for every running picture. False when nothing is left to do. Faults are handled here."""
        return self._step(self._loop)

    def _step(self, loop: DecodeLoop) -> bool:
        try:
            return loop.step()
        except Exception as error:
            logger.exception("the engine failed in a step")
            what = type(error).__name__
        # Outside the handler: a traceback holds on to the broken runner's tensors, and a new one needs their memory.
        self._fault(loop, what, runner_usable=True)
        return True

    # -- threads

    def start(self) -> None:
        """Run in threads of our own until `stop`."""
        with self._lifecycle:
            self._start_threads()
        threading.Thread(target=self._watch, name="engine-watchdog", daemon=True).start()

    def _start_threads(self) -> None:
        self._loop.detokenizer.start()
        self._thread = threading.Thread(target=self._run, args=(self._loop,), name="engine", daemon=True)
        self._thread.start()

    def _run(self, loop: DecodeLoop) -> None:
        while not loop.is_abandoned and not self._stopped.is_set():
            if not self._step(loop):
                loop.tracker.wait_for_work()

    def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give the accepted ones `drain_s` to finish, cancel the rest, close the runner."""
        with self._lifecycle:
            if self._state in ("stopping", "stopped"):
                return
            self._state = "stopping"
        self._drain(time.monotonic() + drain_s)
        with self._lifecycle:
            self._state = "stopped"
            loop, thread = self._loop, self._thread
        self._stopped.set()
        loop.tracker.finish_all(Cancelled("the server is shutting down"))
        loop.tracker.wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=10.0)
        loop.detokenizer.close(timeout_s=10.0)
        loop.runner.close()

    def _drain(self, deadline: float) -> None:
        if self._thread is not None:
            self._loop.tracker.wait_until_empty(deadline - time.monotonic())
        while self._thread is None and not self._loop.tracker.is_empty and time.monotonic() < deadline:
            self.step()

    # -- faults

    def _watch(self) -> None:
        """A call that hangs cannot be interrupted, only abandoned: its thread finds itself replaced when it returns."""
        while not self._stopped.wait(min(1.0, self._step_timeout_s / 4)):
            loop = self._loop
            if not loop.is_abandoned and loop.seconds_in_call() > self._step_timeout_s:
                logger.error("the runner did not return within %g s", self._step_timeout_s)
                self._fault(loop, "the runner hung", runner_usable=False)

    def _fault(self, loop: DecodeLoop, what: str, *, runner_usable: bool) -> None:
        """End every live request with an error; then restart, or give up."""
        with self._lifecycle:
            if loop is not self._loop or loop.is_abandoned or self._state in ("failed", "stopped"):
                return  # another thread was first
            loop.is_abandoned = True
            self.is_stuck |= not runner_usable
            self._counters.faults += 1
            last, self._last_fault = self._last_fault, time.monotonic()
            may_restart = self._state == "ready" and (last is None or self._last_fault - last > FAULT_PARDON_S)
            self._state = "restarting" if may_restart else "failed"
        loop.tracker.finish_all(Failed(EngineFault("the engine failed while drawing this picture; try again")))
        loop.tracker.wake()  # so that the abandoned thread ends, when it can
        # The requests have ended, so nobody wants their pixels; but until those are done they use the runner.
        loop.detokenizer.close(timeout_s=10.0 if runner_usable else 0.0)
        if not (may_restart and self._restart(loop, runner_usable)):
            self._give_up(what)

    def _restart(self, loop: DecodeLoop, runner_usable: bool) -> bool:
        if self._make_runner is None and not runner_usable:
            return False
        # What hung a step may hang this as well, and the watchdog itself may be here.
        patience = threading.Timer(RESTART_TIMEOUT_S, self._give_up, ["the restart hung"])
        patience.daemon = True
        patience.start()
        try:
            if self._make_runner is None:
                runner = loop.runner
            else:
                if runner_usable:
                    loop.runner.close()
                runner = self._make_runner()
            new_loop = self._make_loop(runner)
        except Exception:
            logger.exception("the engine could not be restarted")
            return False
        finally:
            patience.cancel()
        self._adopt(new_loop)
        return True

    def _adopt(self, loop: DecodeLoop) -> None:
        """Go on with a new loop, unless the engine was stopped or given up while it was made."""
        with self._lifecycle:
            if self._state != "restarting":
                loop.runner.close()
                return
            self._loop, self._state = loop, "ready"
            self._counters.num_slots = loop.runner.num_slots
            if self._thread is not None:
                self._start_threads()
        logger.warning("the engine was restarted after a fault; another within %g s will be fatal", FAULT_PARDON_S)

    def _give_up(self, what: str) -> None:
        with self._lifecycle:
            if self._stopped.is_set():
                return  # already, by the patience with a restart that hung, or stopped
            self._state = "failed"
            self._stopped.set()
        logger.critical("the engine is down after %d faults; the last one: %s", self._counters.faults, what)
        self.on_fatal()
