"""From `--cluster` to engines: what the command loads in place of an engine of its own."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from dalle_server.cluster.app import Spec
from dalle_server.cluster.connection import Connection, find_or_deploy
from dalle_server.cluster.engine import ClusterEngine
from dalle_server.config import Settings
from dalle_server.engine.stats import Observer
from dalle_server.words import replica_bounds

APP = "dalle-server"


class Cluster:
    """The one that a server draws on, for each of its models an application. Joined when the first is loaded."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._connection: Connection | None = None
        self._engines = 0
        self._lock = threading.Lock()

    def load(self, settings: Settings, observer: Observer, on_fatal: Callable[[], None]) -> ClusterEngine:
        """`settings` of one model. Raises ConfigError, NotReady."""
        assert settings.cluster is not None
        spec, connection = Spec.of(settings), self._enter(settings.cluster)
        try:
            deployed = find_or_deploy(self._app(settings), spec, may_deploy=settings.replicas is not None)
            return ClusterEngine(
                connection,
                deployed,
                most_slots=replica_bounds(spec.replicas)[1] * spec.slots,
                max_waiting_images=settings.max_waiting_images,
                observer=observer,
                on_fatal=on_fatal,
                on_stop=self._leave,
            )
        except BaseException:
            self._leave()
            raise

    def _app(self, settings: Settings) -> str:
        """Its name: one of several models has its own."""
        if not self._settings.models:
            return APP
        name = settings.model_dir.name if settings.model_dir else settings.model_version
        return f"{APP}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}"

    def _enter(self, address: str) -> Connection:
        with self._lock:
            if self._connection is None:
                self._connection = Connection(address)
            self._engines += 1
            return self._connection

    def _leave(self) -> None:
        with self._lock:
            self._engines -= 1
            if self._engines or self._connection is None:
                return
            connection, self._connection = self._connection, None
        connection.close()
