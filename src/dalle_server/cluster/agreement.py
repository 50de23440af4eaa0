"""Which replicas draw the same bytes, and the word that they give each other before they draw."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.experimental import internal_kv

from dalle_server import __version__
from dalle_server.engine.runners.base import RunnerInfo
from dalle_server.errors import ConfigError

_NAMESPACE = "dalle-server"


def drawn_as(digest: str, info: RunnerInfo) -> str:
    """Replicas of one such name draw the same bytes.

    All builds of the compiled code do, on whatever CPU and cache (docs/performance.md); of other runners it is known
    only for the same device and libraries, and on a CPU for as many threads.
    """
    drawn = [digest, info.runner, info.dtype]
    if info.runner != "compiled":
        drawn += [info.device_name, *(f"{name} {version}" for name, version in info.versions.items())]
        drawn += [f"{info.num_threads} threads"] if info.device == "cpu" else []
    return " / ".join(drawn)


@dataclass(frozen=True, slots=True)
class Agreed:
    """What the replicas of one setting have agreed on, since when."""

    drawn_as: str
    since: float  # time.time() of the first one


def agree(app: str, settings: Mapping[str, Any], revision: str, ours: str) -> Agreed:
    """The first replica of these settings says what they draw; the others must draw the same.

    Other settings, another revision or another version of the program may draw something else: that is a rolling
    change. Raises ConfigError.
    """
    said = json.dumps([app, settings, revision, __version__], sort_keys=True)
    key = f"agreed/{app}/{hashlib.sha256(said.encode()).hexdigest()[:24]}"
    internal_kv._internal_kv_put(key, json.dumps([ours, time.time()]).encode(), overwrite=False, namespace=_NAMESPACE)
    agreed = Agreed(*json.loads(internal_kv._internal_kv_get(key, namespace=_NAMESPACE)))
    if agreed.drawn_as != ours:
        raise ConfigError(
            f"this replica would draw other bytes than the others of {app!r}: they have {agreed.drawn_as}, it has "
            f"{ours}; give all nodes the same weights, runner and num_threads, or all of them another revision"
        )
    return agreed


def forget(app: str) -> None:
    """Before a first deployment: what earlier ones of this name agreed on."""
    for key in internal_kv._internal_kv_list(f"agreed/{app}/", namespace=_NAMESPACE) or []:
        internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


def deployed(app: str) -> str | None:
    """What a front deployed under this name, as `tell_deployed` was told; None: nothing, or it was somebody else."""
    found = internal_kv._internal_kv_get(f"deployed/{app}", namespace=_NAMESPACE)
    return found.decode() if found else None


def tell_deployed(app: str, spec: str) -> None:
    internal_kv._internal_kv_put(f"deployed/{app}", spec.encode(), namespace=_NAMESPACE)
