"""The settings shown to people: the flags of `dalle-server serve` and docs/configuration.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from dalle_server.config import Settings

_MARKDOWN_HEAD = """# Configuration

<!-- Written by `python -m dalle_server.cli.flags`; a test keeps it true. -->

Each setting `some_name` is a flag `--some_name` (or `--some-name`) of `dalle-server serve`, an environment variable
`DALLE_SOME_NAME`, and a line `some_name = value` of a TOML file named by `--config` or `DALLE_CONFIG`. A flag beats the
environment, which beats the file, which beats the default. A senseless value, or an unknown name in the file or among
the flags, stops start-up with a message that says where it stands and what was probably meant. An unknown `DALLE_*`
variable is ignored with a warning, and without one if Kubernetes or Docker set it for a service called dalle
(`DALLE_SERVICE_HOST`, `DALLE_PORT=tcp://…`). Lists are written `a,b` (in TOML also `["a", "b"]`), booleans
`true`/`false`, `yes`/`no`, `on`/`off`, `1`/`0`.

```toml
# /etc/dalle-server.toml
port = 8000
model_version = "mini"
api_keys = "@/etc/dalle-server.keys"
```

`HF_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_TOKEN` steer downloads, as for every program that uses the hub.
"""


def add_flags(parser: argparse.ArgumentParser, only: Iterable[str] = ()) -> None:
    """A flag for each setting (or for those named), spelled with underscores; values stay words for `load_settings`."""
    only = set(only) or set(Settings.model_fields)
    for title, names in groups():
        if only.isdisjoint(names):
            continue
        section = parser.add_argument_group(title)
        for name in names:
            if name not in only:
                continue
            field = Settings.model_fields[name]
            shown = f"{field.description} [{_shown_default(name)}]".replace("%", "%%")
            if field.annotation is bool:
                section.add_argument(f"--{name}", metavar="BOOL", nargs="?", const="true", help=shown)
            else:
                section.add_argument(f"--{name}", metavar=_kind(name), help=shown)


def as_markdown() -> str:
    """docs/configuration.md, whole."""
    lines = [_MARKDOWN_HEAD]
    for title, names in groups():
        lines += [f"## {title}", "", "| Setting | Values | Default | Meaning |", "| --- | --- | --- | --- |"]
        for name in names:
            kind = _kind(name).replace("|", "\\|")
            meaning = Settings.model_fields[name].description
            lines.append(f"| `{name}` | {kind} | `{_shown_default(name)}` | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def groups() -> Iterator[tuple[str, list[str]]]:
    """The settings' names by group, in the order of their definition."""
    title, names = "", list[str]()
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "group" in extra:
            if names:
                yield title, names
            title, names = str(extra["group"]), []
        names.append(name)
    yield title, names


def _kind(name: str) -> str:
    schema = Settings.model_json_schema()["properties"][name]
    schema = next((part for part in schema.get("anyOf", ()) if part.get("type") != "null"), schema)
    if "enum" in schema:
        return "|".join(schema["enum"])
    if schema.get("format") == "path":
        return "PATH"
    number = "SECONDS" if name.endswith("_s") else "X"
    return {"boolean": "BOOL", "integer": "N", "number": number, "array": "A,B"}.get(schema["type"], "TEXT")


def _shown_default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default_factory is not None:
        return "the user's cache directory" if name == "cache_dir" else "the user's data directory"
    if field.default is None:
        return "auto" if name.startswith("num_") or name == "memory_budget" else "none"
    if isinstance(field.default, tuple):
        return ",".join(field.default) or "none"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


if __name__ == "__main__":
    print(as_markdown(), end="")
