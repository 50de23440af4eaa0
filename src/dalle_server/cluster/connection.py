"""This process's place in a Ray cluster: joined once, in a thread that lasts, and left when the last engine stops."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before ray is imported: it asks no one and tells nobody

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from dalle_server.cluster import agreement
from dalle_server.cluster.app import BOARD, DEPLOYMENT, Spec, application
from dalle_server.cluster.replica import Load, load_replica_engine
from dalle_server.errors import ConfigError, DalleServerError, NotReady, first_line

# A Ray that only this machine sees. It takes 127.0.0.1 for "the address that others reach me by", on Linux.
LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
JOIN_TIMEOUT_S = 120.0
T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deployed:
    """The deployments of an application."""

    replicas: DeploymentHandle[Any]
    board: DeploymentHandle[Any]


class Connection:
    """`submit` runs coroutines in its thread. Ray ends what a thread started together with that thread, so it lasts."""

    def __init__(self, address: str):
        """`address` as the setting `cluster`. Raises ConfigError when there is no cluster to join."""
        self.loop: asyncio.AbstractEventLoop
        self._closing: asyncio.Event
        self._failure: Exception | None = None
        joined = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(address, joined), name="ray", daemon=True)
        self._thread.start()
        if not joined.wait(JOIN_TIMEOUT_S):
            raise ConfigError(f"--cluster {address}: no answer within {JOIN_TIMEOUT_S:g} s", param="cluster")
        if self._failure is not None:
            raise ConfigError(
                f"--cluster {address}: {first_line(self._failure, type(self._failure).__name__)}", param="cluster"
            )

    def _run(self, address: str, joined: threading.Event) -> None:
        try:
            _join(address)
            serve.start(proxy_location="Disabled")  # the front is the proxy
            asyncio.run(self._stay(joined))
        except Exception as error:
            self._failure = error
            joined.set()
        ray.shutdown()

    async def _stay(self, joined: threading.Event) -> None:
        self.loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        joined.set()
        await self._closing.wait()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(timeout=10.0)


def _join(address: str) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address != "auto":
        ray.init(address=address, **quiet)
        return
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        logger.info("no Ray runs on this machine: one is started for this server alone")
        ray.init(address="local", include_dashboard=False, _node_ip_address=LOOPBACK, **quiet)


def find_or_deploy(app: str, spec: Spec, *, may_deploy: bool, load: Load = load_replica_engine) -> Deployed:
    """The replicas of this application. Deployed, if they are not there or others are wanted; Serve replaces the others
    a few at a time. Waits until one is ready.

    Raises ConfigError where nothing runs and nothing may be deployed, or somebody else deployed it; NotReady when
    deploying fails.
    """
    status = serve.status().applications.get(app)
    told = agreement.deployed(app) if status is not None else None
    if status is None and not may_deploy:
        raise ConfigError(
            f"no application {app!r} runs in this cluster; say how many --replicas, or deploy it yourself",
            param="replicas",
        )
    if may_deploy and status is not None and told is None:
        raise ConfigError(
            f"the application {app!r} was not deployed by a server; leave --replicas out to use it as it is",
            param="replicas",
        )
    if may_deploy and (told != spec.to_json() or (status is not None and status.status == "DEPLOY_FAILED")):
        if status is None:
            agreement.forget(app)
        agreement.tell_deployed(app, spec.to_json())
        try:
            serve.run(application(spec, load), name=app, route_prefix=None)
        except DalleServerError:
            raise
        except Exception as error:
            raise NotReady(f"the replicas of {app!r} did not start: {_why(app, error)}") from error
    return Deployed(serve.get_deployment_handle(DEPLOYMENT, app), serve.get_deployment_handle(BOARD, app))


def _why(app: str, error: Exception) -> str:
    """What the replicas died of, as Serve quotes it: the last line of a traceback."""
    status = serve.status().applications.get(app)
    told = [each.message.strip() for each in status.deployments.values() if each.message] if status else []
    return told[0].splitlines()[-1].strip() if told else first_line(error, type(error).__name__)
