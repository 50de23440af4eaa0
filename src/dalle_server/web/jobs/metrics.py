"""What /metrics says of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from dalle_server.web.jobs.pump import Jobs


class JobsCollector(Collector):
    """Reads the jobs' own state whenever someone asks."""

    def __init__(self, jobs: Jobs):
        self._jobs = jobs

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        works = float(self._jobs.trouble is None)
        yield GaugeMetricFamily("dalle_jobs_available", "0 while data_dir takes no jobs.", works)
