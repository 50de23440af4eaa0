"""Asks replicas for the pictures of a request, one stream for each, and asks again for what was lost with a replica."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from dalle_server.cluster.parts import Assembly
from dalle_server.errors import (
    DalleServerError,
    DeadlineExceeded,
    EngineFault,
    GenerationFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    first_line,
)
from dalle_server.generation import TERMINAL, Cancelled, Event, Failed
from dalle_server.request import GenerationRequest
from dalle_server.wire import EventReader

ATTEMPTS = 2
AGAIN_S = 0.1  # after a replica whose engine is down; it has held the picture for a while already
GRACE_S = 2.0  # that a replica has to say itself that the time limit has passed

logger = logging.getLogger(__name__)


class PartLost(Exception):
    """Whoever drew the picture died, or gave it up: another may draw it."""


class Refused(Exception):
    """The replica's engine is down: nobody has begun the picture."""


class Streams:
    """Runs in the loop's thread. `want_previews(part, every)` reaches whichever replica draws the part."""

    def __init__(self, handle: DeploymentHandle[Any], front: str, want_previews: Callable[[str, int], None]):
        self._handle = handle.options(stream=True)
        self._want_previews = want_previews
        self._front = front
        self._tasks: dict[Assembly, list[asyncio.Task[None]]] = {}

    def begin(self, assembly: Assembly) -> None:
        indices = range(len(assembly.parts))
        self._tasks[assembly] = [asyncio.ensure_future(self._draw(assembly, index)) for index in indices]

    def end(self, assembly: Assembly) -> None:
        """Nobody wants it any more: what still runs is cancelled, at the replicas too."""
        for task in self._tasks.pop(assembly, ()):
            task.cancel()

    async def _draw(self, assembly: Assembly, index: int) -> None:
        deadline = assembly.generation.deadline
        left_s = None if deadline is None else assembly.request_of(index).timeout_s
        try:
            async with asyncio.timeout(None if left_s is None else left_s + GRACE_S):
                await self._try(assembly, index)
        except TimeoutError:
            assembly.lose(index, DeadlineExceeded.after(assembly.generation.request.timeout_s))
        except Overloaded as error:
            assembly.end(Failed(error))  # the client is to come again: what is drawn meanwhile is for nobody
        except DalleServerError as error:
            assembly.lose(index, error)
        except Exception:
            logger.exception("a picture could not be drawn on the cluster")
            assembly.lose(
                index, GenerationFailed("the cluster could not draw this picture; the server's log says more")
            )

    async def _try(self, assembly: Assembly, index: int) -> None:
        """Raises DalleServerError, and TimeoutError when a refusal comes after the time limit."""
        attempt = 1
        while attempt <= ATTEMPTS:
            try:
                await self._stream(assembly, index, assembly.request_of(index))
                return
            except Refused as error:  # no attempt: a restart takes longer than two of them
                logger.debug("%s: %s", assembly.part_id(index), error)
                _check_time(assembly)
                await asyncio.sleep(AGAIN_S)
            except (PartLost, RayActorError, TaskCancelledError, RequestCancelledError) as error:
                if assembly.parts[index].is_settled:
                    return  # only the last word was lost
                reason = first_line(error, type(error).__name__)
                logger.warning("%s: lost at attempt %d: %s", assembly.part_id(index), attempt, reason)
                attempt += 1
            except BackPressureError as error:
                raise Overloaded("all replicas are busy; try again later", retry_after_s=2) from error
            except (DeploymentUnavailableError, RayServeException, RayError) as error:
                logger.warning("%s: %s: %s", assembly.part_id(index), type(error).__name__, error)
                raise NotReady("the cluster cannot draw now; try again shortly", retry_after_s=5) from error
        raise EngineFault("this picture was lost twice, with the engine or the replica that drew it; try again")

    async def _stream(self, assembly: Assembly, index: int, request: GenerationRequest) -> None:
        response = self._handle.submit.remote(request.to_dict(), self._front)
        assert isinstance(response, DeploymentResponseGenerator)
        reader, is_over, told_every = EventReader(request), False, request.preview_every
        try:
            async for message in response:
                if (every := assembly.preview_every(index)) != told_every:  # as wanted while the part was on its way
                    told_every = every
                    self._want_previews(request.id, every)
                for wire in message["events"]:
                    event = _read(reader, wire)
                    is_over = isinstance(event, TERMINAL)
                    _check_drawn(event, message["replica"])
                    assembly.take(index, event, message["weights"])
            if not is_over:
                raise PartLost("the stream ended early")
        finally:
            if not is_over:  # in a thread: Ray's cancel may wait
                asyncio.get_running_loop().run_in_executor(None, _cancel, response)


def _cancel(response: DeploymentResponseGenerator[Any]) -> None:
    try:
        response.cancel()  # type: ignore[no-untyped-call]
    except Exception as error:  # it says again what the stream said: that it was refused, or its replica died
        logger.debug("nothing to cancel: %s", error)


def _read(reader: EventReader, wire: Any) -> Any:
    try:
        return reader.read(wire)
    except InvalidRequest as error:
        raise GenerationFailed(f"a replica answered in another form: {error.message}") from error


def _check_drawn(event: Event, replica: str) -> None:
    """An engine that has crashed, is stopping or is down says nothing of the picture. Raises PartLost, Refused."""
    match event:
        case Failed(NotReady() as error):
            raise Refused(f"{replica} refused it: {error.message}")
        case Cancelled() | Failed(EngineFault()):
            raise PartLost(f"{replica} gave it up")


def _check_time(assembly: Assembly) -> None:
    deadline = assembly.generation.deadline
    if deadline is not None and time.monotonic() >= deadline:
        raise TimeoutError
