"""The Ray Serve application: how many replicas there are, what each takes, and when one is replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from dalle_server.checks import known_fields
from dalle_server.cluster.board import Board
from dalle_server.cluster.replica import EngineReplica, Load, load_replica_engine
from dalle_server.config import MODEL_SETTINGS, Settings, config_error
from dalle_server.words import replica_bounds, replica_range, resources

DEPLOYMENT, BOARD = "engine", "board"
QUIET: dict[str, Any] = {"log_level": "WARNING", "enable_access_log": False}
CPU_SLOTS, GPU_SLOTS = 16, 32  # the most that an engine takes by itself (engine/runners/sizing.py)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What is deployed. As JSON it is what fronts compare: a front that wants another has the replicas replaced."""

    settings: dict[str, Any] = field(default_factory=dict)  # of MODEL_SETTINGS
    replicas: str = "1"
    resources: str = "CPU=2"
    max_waiting_images: int = 64
    drain_timeout_s: float = 25.0
    front_lease_s: float = 15.0  # a front that is silent for so long has died, and nobody waits for what it asked for
    revision: str = ""  # another one lets the same settings draw other bytes, once the files behind them were changed

    @classmethod
    def of(cls, settings: Settings) -> Spec:
        given = settings.model_dump(mode="json", include=set(MODEL_SETTINGS), exclude_unset=True)
        return cls(
            settings=given,
            replicas=settings.replicas or "1",
            resources=settings.replica_resources,
            max_waiting_images=settings.max_waiting_images,
            drain_timeout_s=settings.drain_timeout_s,
        )

    @classmethod
    def read(cls, arguments: Mapping[str, Any]) -> Spec:
        """The args of a Serve config. Raises InvalidRequest or ConfigError, naming what is wrong."""
        known_fields("args", arguments, cls.__slots__)
        known_fields("settings", arguments.get("settings", {}), MODEL_SETTINGS)
        spec = cls(**{**arguments, "replicas": str(replica_range(arguments.get("replicas", "1")))})
        resources(spec.resources)
        spec.checked_settings()
        return spec

    def checked_settings(self) -> dict[str, Any]:
        """For the replica's engine. One on CPUs computes in as many threads as it was given, not in all there are."""
        takes = resources(self.resources)
        settings = dict(self.settings)
        if "num_threads" not in settings and "GPU" not in takes and "CPU" in takes:
            settings["num_threads"] = max(1, int(takes["CPU"]))
        settings["max_waiting_images"] = self.max_ongoing  # Serve is what bounds it
        try:
            Settings.model_validate(settings)
        except ValidationError as error:
            raise config_error(error, {}) from None
        return settings

    @property
    def slots(self) -> int:
        return int(self.settings.get("num_slots") or (GPU_SLOTS if "GPU" in resources(self.resources) else CPU_SLOTS))

    @property
    def max_ongoing(self) -> int:
        """Pictures that a replica may have: those that it writes, and as many that wait, so that no slot ever does.
        What waits beyond that stays with the fronts, free to go to whichever replica has room first.
        """
        return 2 * self.slots

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def build(arguments: Mapping[str, Any]) -> Application:
    """`import_path: dalle_server.cluster.app:build` of a Serve config; its `args` are a `Spec`'s fields."""
    return application(Spec.read(arguments))


def application(spec: Spec, load: Load = load_replica_engine) -> Application:
    """`load` makes a replica's engine."""
    fewest, most = replica_bounds(spec.replicas)
    takes = resources(spec.resources)
    scaling: dict[str, Any] = {"num_replicas": most}
    if fewest < most:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=fewest, max_replicas=most, target_ongoing_requests=spec.slots
            )
        }
    deployment = serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=spec.max_ongoing,  # one request of Serve is one picture
        max_queued_requests=most * spec.slots + spec.max_waiting_images,  # of one front
        ray_actor_options={
            "num_cpus": takes.pop("CPU", 0.0),
            "num_gpus": takes.pop("GPU", 0.0),
            "resources": takes,
        },
        graceful_shutdown_timeout_s=spec.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        health_check_timeout_s=30.0,
        logging_config=QUIET,
        **scaling,
    )
    board = serve.deployment(
        name=BOARD,
        num_replicas=1,
        max_ongoing_requests=100_000,  # every replica waits there
        ray_actor_options={"num_cpus": 0.0},
        logging_config=QUIET,
    )
    bound: Application = deployment(EngineReplica).bind(
        spec.checked_settings(), spec.revision, spec.front_lease_s, load, board(Board).bind()
    )
    return bound
