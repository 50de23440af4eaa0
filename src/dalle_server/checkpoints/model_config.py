"""Reading config files: JSON that may be damaged, and sizes that may be absurd."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dalle_server.errors import CheckpointError, InvalidRequest
from dalle_server.models.config import ModelConfig

_MAX_SIZE = 1 << 22  # no dimension of any released model comes near; a damaged digit does
_MAX_LAYERS = 512
_MAX_LEVELS = 12


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError unless the file holds a JSON object."""
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); copy it again") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds {type(raw).__name__}, not a JSON object")
    return raw


def model_config(where: str, raw: dict[str, Any]) -> ModelConfig:
    """ModelConfig.from_dict, with every fault a CheckpointError that names `where`."""
    try:
        return ModelConfig.from_dict(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, InvalidRequest) as error:
        raise CheckpointError(f"{where}: malformed ({type(error).__name__}: {error})") from error


def check_config(where: str, config: ModelConfig) -> None:
    """Raises CheckpointError for a value of the wrong type or outside what any model could have.

    The dataclasses take what JSON gives; without this, a damaged digit would ask for terabytes of names.
    """
    sizes = {**asdict(config.transformer), **asdict(config.vqgan)}
    for name in ("scale_embedding", "normalize_text"):
        if not isinstance(sizes.pop(name), bool):
            raise CheckpointError(f"{where}: {name} must be true or false")
    for name, value in sizes.items():
        for number in value if isinstance(value, tuple) else (value,):
            _check_number(where, name, number)
    if not 1 <= len(config.vqgan.ch_mult) <= _MAX_LEVELS:
        raise CheckpointError(f"{where}: ch_mult must have 1 to {_MAX_LEVELS} levels, not {len(config.vqgan.ch_mult)}")
    _check_divisions(where, config)


def _check_number(where: str, name: str, number: object) -> None:
    low = 0 if name.endswith("_token_id") else 1
    high = _MAX_LAYERS if name.endswith("_layers") or name == "num_res_blocks" else _MAX_SIZE
    if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
        raise CheckpointError(f"{where}: {name} must be a whole number from {low} to {high}, not {number!r}")


def _check_divisions(where: str, config: ModelConfig) -> None:
    vqgan, transformer = config.vqgan, config.transformer
    for mult in vqgan.ch_mult:
        if vqgan.ch * mult % vqgan.num_groups:
            raise CheckpointError(f"{where}: {vqgan.ch * mult} channels cannot be split into {vqgan.num_groups} groups")
    if transformer.decoder_start_token_id >= transformer.num_image_embeddings:
        raise CheckpointError(
            f"{where}: decoder_start_token_id {transformer.decoder_start_token_id} is outside the table of"
            f" {transformer.num_image_embeddings} image tokens"
        )
