"""Prometheus metrics: what /metrics shows. Seconds and pictures; names end in their unit."""

from __future__ import annotations

from http import HTTPMethod

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

# From one step of a GPU to a batch of Mega on a laptop.
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_ROWS = (2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """A registry of its own, so that two applications of one process (tests) do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dalle_requests", "Generation requests by how they ended.", ["outcome"], registry=self.registry
        )
        for outcome in ("done", "failed", "cancelled", "refused"):
            self.requests.labels(outcome)  # shown as 0 before the first
        self.model_requests = Counter(
            "dalle_model_requests", "The same, by model.", ["model", "outcome"], registry=self.registry
        )
        self.http = Counter(
            "dalle_http_responses", "HTTP answers.", ["route", "method", "status"], registry=self.registry
        )
        self.queue_s = self._histogram("dalle_queue_seconds", "From acceptance to the first token.")
        self.first_preview_s = self._histogram("dalle_first_preview_seconds", "From acceptance to the first preview.")
        self.total_s = self._histogram("dalle_request_seconds", "From acceptance to the last picture.")
        self.step_s = self._histogram("dalle_step_seconds", "One token for every running picture.", _STEP_SECONDS)
        self.batch_rows = self._histogram("dalle_batch_rows", "Rows of a step, counted as two for each picture.", _ROWS)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def answered(self, route: str, method: str, status: int) -> None:
        """`route` is a rule and no path. Whatever a client calls its method: labels are kept for ever."""
        self.http.labels(route, method if method in HTTPMethod.__members__ else "other", status).inc()

    def text(self) -> bytes:
        """The Prometheus text format, version 0.0.4."""
        return generate_latest(self.registry)
