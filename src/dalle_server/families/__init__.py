"""The kinds of model: one file says what a family is. docs/architecture.md tells how one is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dalle_server import checks
from dalle_server.errors import CheckpointError
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.families.janus import JanusConfig
from dalle_server.models.config import FamilyConfig, ModelConfig, VQGANConfig
from dalle_server.request import SamplingParams

# Name in config.json → its transformer's config from that file's "transformer".
FAMILIES: dict[str, Callable[[Mapping[str, Any]], FamilyConfig]] = {
    DalleBartConfig.family: DalleBartConfig.from_dict,
    JanusConfig.family: JanusConfig.from_dict,
}
_BEFORE_FAMILIES = DalleBartConfig.family  # of a config.json that names none


def model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Inverse of ModelConfig.to_dict. Raises CheckpointError for a family, key or variant we do not have."""
    family = raw.get("family", _BEFORE_FAMILIES)
    if family not in FAMILIES:
        raise CheckpointError(f"family {family!r} is not one of {', '.join(FAMILIES)}; a newer version may have it")
    most = raw.get("max_condition_scale")
    return ModelConfig(
        name=str(raw["name"]),
        transformer=FAMILIES[family](raw["transformer"]),
        vqgan=VQGANConfig.from_dict(raw["vqgan"]),
        sampling=SamplingParams(**raw.get("sampling", {})).with_defaults(SamplingParams.reference_defaults()),
        max_condition_scale=None if most is None else checks.number("max_condition_scale", most, 1.0, 100.0),
    )
