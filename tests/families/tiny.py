"""A tiny published checkpoint of every family, for tests that must hold whatever draws."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
TINY = {"dalle-bart": DATA / "parity" / "tiny-mini", "janus": DATA / "parity-janus" / "hf-tiny"}
