"""The model of an HTTP request: found by its name, loaded, and kept until the answer is out."""

from __future__ import annotations

import time
from collections.abc import Callable

from flask import Response, after_this_request

from dalle_server.errors import GenerationCancelled, NotFound, NotReady
from dalle_server.web.pool.model import Model
from dalle_server.web.service import Service, current_service
from dalle_server.web.serving.admission import entered
from dalle_server.web.waiting import POLL_S, client_left


def find_model(name: str | None, is_alias: Callable[[str], bool] = lambda name: False) -> Model:
    """By name, any case, or by digest; the first for an alias or nothing. Raises NotFound (model_not_found)."""
    service = current_service()
    found = service.pool.find(name) if name else service.pool.first
    if found is not None:
        return found
    if name and is_alias(name):
        return service.pool.first
    names = ", ".join(repr(model.name) for model in service.pool.models)
    error = NotFound(f"there is no model {(name or '')[:60]!r}; this server has {names}", param="model")
    error.code = "model_not_found"
    raise error


def wait_until_started() -> None:
    """While the server starts, up to the request's time limit, as clients of the older APIs expect.

    Raises NotReady after that, and for a server that could not start; GenerationCancelled when the client leaves.
    """
    service = current_service()
    if service.state == "loading":
        _wait(service, service.wait_until_loaded)
    service.check_started()


def use_model(model: Model) -> Model:
    """Waits while the model loads, up to the request's time limit. It then stays until the answer has been sent.

    Raises NotReady, also for a model that could not be loaded; InvalidRequest for one that never fits;
    GenerationCancelled.
    """
    service = current_service()
    service.check_started()
    held = service.pool.hold(model)

    @after_this_request
    def until_it_is_out(response: Response) -> Response:
        response.call_on_close(held.close)
        return response

    if not held.is_in:
        _wait(service, held.wait)
    return held.model


def _wait(service: Service, wait: Callable[[float], bool]) -> None:
    entered()
    left = client_left()
    end = time.monotonic() + service.settings.request_timeout_s
    while not wait(POLL_S):
        service.check_open()  # it would be refused in the end: better while there is time for an answer
        if left():
            raise GenerationCancelled("the client left")
        if time.monotonic() > end:
            raise NotReady("the model is still loading; try again shortly", retry_after_s=30)
