"""Who is asking: API keys, and the name that fairness and ownership count against."""

from __future__ import annotations

from flask import g, request


def client_id() -> str:
    """Fairness and ownership key of the current request: a digest of its API key, or its address."""
    client: str | None = g.get("client_id")
    return client if client is not None else f"addr:{request.remote_addr or 'unknown'}"
