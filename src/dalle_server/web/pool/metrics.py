"""What /metrics says of engines: of all together, and of each model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dalle_server import __version__

if TYPE_CHECKING:
    from dalle_server.web.pool.pool import Pool

# Name, of EngineStats; text. The counters go on over engines that were unloaded.
_GAUGES = (
    ("dalle_slots", "num_slots", "Pictures that can be written at the same time."),
    ("dalle_running_images", "running", "Pictures being written."),
    ("dalle_waiting_images", "waiting", "Pictures waiting for a slot."),
)
_COUNTERS = (
    ("dalle_image_tokens", "image_tokens", "Image tokens written."),
    ("dalle_images", "images", "Pictures finished."),
    ("dalle_previews", "previews", "Previews made."),
    ("dalle_engine_faults", "faults", "Steps that crashed or hung."),
)


class PoolCollector(Collector):
    """Reads the engines' own counters whenever someone asks. `dalle_model_X{model}` is what `dalle_X` sums up."""

    def __init__(self, pool: Pool, state: Callable[[], str]):
        self._pool, self._state = pool, state

    def describe(self) -> Iterator[Metric]:
        return iter(())  # nothing is known before a model is loaded

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("dalle_build_info", "The program's version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield GaugeMetricFamily("dalle_ready", "1 when requests are accepted.", float(self._state() == "ready"))
        known = [model for model in self._pool.models if model.known is not None]
        if not known:
            return
        read = [(model, model.engine_now, model.past) for model in known]
        stats = [(model.name, engine.stats() if engine else None, past) for model, engine, past in read]
        for name, field, text in _GAUGES:
            values = {model: float(getattr(now, field, 0)) for model, now, _ in stats}
            yield GaugeMetricFamily(name, text, sum(values.values()))
            yield _by_model(GaugeMetricFamily, name, text, values)
        for name, field, text in _COUNTERS:
            values = {model: float(getattr(now, field, 0) + getattr(past, field)) for model, now, past in stats}
            yield CounterMetricFamily(name, text, sum(values.values()))
            yield _by_model(CounterMetricFamily, name, text, values)
        yield from self._lives()

    def _lives(self) -> Iterator[Metric]:
        loaded = {model.name: float(model.engine_now is not None) for model in self._pool.models}
        yield _by_model(GaugeMetricFamily, "dalle_loaded", "1 while the model is in memory.", loaded)
        loads = {name: float(count) for name, count in dict(self._pool.loads).items()}
        yield _by_model(CounterMetricFamily, "dalle_loads", "How often the model was loaded.", loads)
        gone = CounterMetricFamily("dalle_model_unloads", "How often it was unloaded.", labels=["model", "reason"])
        for (name, reason), count in dict(self._pool.unloads).items():
            gone.add_metric([name, reason], count)
        yield gone


def _by_model(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, text: str, values: dict[str, float]
) -> Metric:
    family = kind(name.replace("dalle_", "dalle_model_"), text, labels=["model"])
    for model, value in values.items():
        family.add_metric([model], value)
    return family
