"""Reading config files: JSON that may be damaged, and sizes that may be absurd."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dalle_server import families
from dalle_server.checkpoints.hub.damage import missing, unreadable
from dalle_server.errors import CheckpointError, InvalidRequest
from dalle_server.models.config import ModelConfig

_MAX_SIZE = 1 << 22  # no dimension of any released model comes near; a damaged digit does
_MAX_LAYERS = 512
_MAX_LEVELS = 12
_FILE_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)  # of weights, as published; no path, and nothing hidden


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError unless the file holds a JSON object."""
    try:
        raw = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(missing(path)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(unreadable(path, "readable JSON", error)) from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds {type(raw).__name__}, not a JSON object")
    return raw


def shards_of(index: Path) -> list[str]:
    """The files of weights, all beside it, that `NAME.index.json` names. Raises CheckpointError."""
    named, suffix = read_json(index).get("weight_map"), Path(index.name.removesuffix(".index.json")).suffix
    if not isinstance(named, dict) or not named:
        raise CheckpointError(f"{index} has no weight_map")
    for shard in named.values():
        if not isinstance(shard, str) or not _FILE_NAME.fullmatch(shard) or Path(shard).suffix != suffix:
            raise CheckpointError(f"{index} names {json.dumps(shard)}, which is no {suffix} file of its own folder")
    return sorted(set(named.values()))


def model_config(where: str, raw: dict[str, Any]) -> ModelConfig:
    """families.model_config, with every fault a CheckpointError that names `where`."""
    try:
        return families.model_config(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, InvalidRequest) as error:
        raise CheckpointError(f"{where}: malformed ({type(error).__name__}: {error})") from error


def check_config(where: str, config: ModelConfig) -> None:
    """Raises CheckpointError for a value of the wrong type or outside what any model could have.

    The dataclasses take what JSON gives; without this, a damaged digit would ask for terabytes of names.
    """
    for described in (config.transformer, config.vqgan):
        for name, value in asdict(described).items():  # type: ignore[arg-type]
            kind = type(described).__annotations__[name]
            for number in value if isinstance(value, tuple) else (value,):
                _check_value(where, name, kind, number)
    if not 1 <= len(config.vqgan.ch_mult) <= _MAX_LEVELS:
        raise CheckpointError(f"{where}: ch_mult must have 1 to {_MAX_LEVELS} levels, not {len(config.vqgan.ch_mult)}")
    for mult in config.vqgan.ch_mult:
        if config.vqgan.ch * mult % config.vqgan.num_groups:
            raise CheckpointError(
                f"{where}: {config.vqgan.ch * mult} channels cannot be split into {config.vqgan.num_groups} groups"
            )
    for name in ("in_channels", "out_ch"):
        if (channels := getattr(config.vqgan, name)) != 3:
            raise CheckpointError(f"{where}: {name} must be 3, red, green and blue, not {channels}")
    try:
        config.transformer.check()
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _check_value(where: str, name: str, kind: str, value: object) -> None:
    """`kind` is how the dataclass declares the field: "bool", "float", "int" or "tuple[int, ...]"."""
    if kind == "bool":
        if not isinstance(value, bool):
            raise CheckpointError(f"{where}: {name} must be true or false")
    elif kind == "float":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CheckpointError(f"{where}: {name} must be a positive number, not {value!r}")
    else:
        _check_number(where, name, value)


def _check_number(where: str, name: str, number: object) -> None:
    low = 0 if name.endswith("_token_id") else 1
    high = _MAX_LAYERS if name.endswith("_layers") or name == "num_res_blocks" else _MAX_SIZE
    if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
        raise CheckpointError(f"{where}: {name} must be a whole number from {low} to {high}, not {number!r}")
