"""How the values of settings are written: each of these makes a value of a word, or raises ValueError. A leaf."""

from __future__ import annotations

import re
from pathlib import Path

_TRUE = frozenset({"true", "t", "yes", "y", "on", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "off", "0"})


def parse_arg_boolean(value: object) -> bool:
    """A boolean word, any case. Raises ValueError for anything else (the original read it as false)."""
    word = str(value).strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(f"expected a boolean word such as true or false, not {value!r}")
    return word in _TRUE


def split_list(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else value


def not_nothing(value: tuple[str, ...]) -> tuple[str, ...]:
    """A setting that protects, once given, must not come to nothing: --api_keys "$KEYS" where KEYS is empty."""
    if not value:
        raise ValueError("expected at least one key; leave it out to ask for none")
    return value


def none_if_auto(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() == "auto" else value


def refuse_boolean(value: object) -> object:
    """pydantic would take TOML's true for 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def runner_name(value: object) -> object:
    """0.1.0 called the compiled runner native, and had another, whose work that one does now."""
    value = lower(value)
    return "compiled" if value in ("native", "openvino") else value


_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)?")


def num_bytes(value: object) -> object:
    """12GB, 800 MiB, 2000000000."""
    if not isinstance(value, str) or value.strip().lower() == "auto":
        return none_if_auto(value)
    found = _BYTES.fullmatch(value.strip().upper())
    if found is None:
        raise ValueError("expected a number of bytes such as 12GB or 800MB, or auto")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def expanded(path: str | Path) -> Path:
    """With the home that ~ or ~NAME stands for, as no shell puts it into a file, or behind --data_dir=."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user; or ~ of a container's user, whom nothing there knows
        raise ValueError("expected a path whose ~ is a known home") from None


def database_url(value: str) -> str:
    if not value.startswith(("sqlite:///", "postgresql://", "postgresql+psycopg://")):
        raise ValueError("expected sqlite:///PATH or postgresql://USER@HOST/NAME")
    if value.startswith("sqlite:///"):
        expanded(value.removeprefix("sqlite:///"))
    return value


def store_url(value: str) -> str:
    if not value.startswith(("file:///", "s3://")):
        raise ValueError("expected file:///PATH or s3://BUCKET/PREFIX")
    return value


def replica_range(value: object) -> object:
    """2 or 1:8; a number of a TOML file too."""
    text = str(value).strip()
    found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", text)
    most = int(found[2] or found[1]) if found else 0
    if isinstance(value, bool) or not found or most < 1 or int(found[1]) > most:
        raise ValueError("expected a number such as 2, or MIN:MAX such as 1:8, the second at least 1")
    return text


def replica_bounds(value: str) -> tuple[int, int]:
    """Fewest and most, of what `replica_range` let pass."""
    fewest, _, most = value.partition(":")
    return int(fewest), int(most or fewest)


def resources(value: str) -> dict[str, float]:
    """CPU=2,GPU=1 → {"CPU": 2.0, "GPU": 1.0}; other names are resources that the cluster's operator gave its nodes."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, _, number = (word.strip() for word in part.partition("="))
        known = name.upper() if name.upper() in ("CPU", "GPU") else name
        if not re.fullmatch(r"\d+(\.\d+)?", number) or not float(number) or not name or known in found:
            raise ValueError("expected CPU=2, GPU=1, or such separated by commas")
        found[known] = float(number)
    if not found:
        raise ValueError("expected at least one of CPU=2, GPU=1")
    return found


def checked_resources(value: str) -> str:
    resources(value)
    return value
