"""Which checkpoint a client of the AUTOMATIC1111 API has chosen, and the titles by which its web UI names them.

There the choice is the server's, for everybody; here it is kept for each client, so that one cannot change what
another draws with.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from dalle_server.errors import DalleServerError
from dalle_server.web.access.security import client_id
from dalle_server.web.automatic1111.schemas import Txt2ImgBody
from dalle_server.web.pool.model import Model
from dalle_server.web.pool.using import find_model, use_model, wait_until_started
from dalle_server.web.service import current_service

MAX_CLIENTS = 4096  # whose choice is kept: beyond it the longest unused is forgotten


class Choices:
    """Client → name of a model."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def choose(self, client: str, name: str) -> None:
        with self._lock:
            self._names[client] = name
            self._names.move_to_end(client)
            while len(self._names) > MAX_CLIENTS:
                self._names.popitem(last=False)

    def of(self, client: str) -> str | None:
        with self._lock:
            if client in self._names:
                self._names.move_to_end(client)
            return self._names.get(client)


def title(model: Model) -> str:
    """How the web UI names a checkpoint: file name, and ten digits of its hash, where it is known."""
    return f"{model.name} [{model.digest[:10]}]" if model.digest else model.name


def find_checkpoint(name: str) -> Model:
    """By title, name or hash. Raises NotFound."""
    titles = (model for model in current_service().pool.models if name.strip() == title(model))
    return next(titles, None) or find_model(name)


def current_checkpoint(choices: Choices) -> Model:
    """The one that the current request's client has chosen, or the first."""
    return find_model(choices.of(client_id()))


def chosen_model(body: Txt2ImgBody, choices: Choices) -> Model:
    """By override_settings, for this request or from now on, else as chosen before; loaded, and kept for the request.

    A checkpoint that is not here is ignored: pictures of other programs carry theirs along.
    """
    wait_until_started()
    model, asked = current_checkpoint(choices), body.checkpoint
    if asked:
        try:
            model = find_checkpoint(asked)
        except DalleServerError:
            asked = None
    if asked and body.override_settings_restore_afterwards is False:
        choices.choose(client_id(), model.name)
    return use_model(model)
