"""From the setting `models` to what the pool is made of: each model is served with settings of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from dalle_server.config import Settings, known_model
from dalle_server.engine.stats import Observer
from dalle_server.errors import ConfigError, DalleServerError
from dalle_server.models.card import ModelCard
from dalle_server.web.pool.model import ServingEngine, Source
from dalle_server.words import expanded

Load = Callable[[Settings, Observer], ServingEngine]  # returns a started engine
Describe = Callable[[Settings], ModelCard]  # of the one model of these settings


def sources(settings: Settings, load: Load, describe: Describe | None) -> list[Source]:
    """One for each entry of `models`, or the one model of `model_dir` and `model_version`.

    `describe` None: nothing is told of models before they are loaded. Raises ConfigError for two of one name, and, of
    several, what `describe` raises for a directory that holds no model.
    """
    if not settings.models:
        return [Source(partial(load, settings), card=_once(settings, describe))]
    found = [_entry(settings, entry, load, describe) for entry in settings.models]
    names = [source.name.lower() for source in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"models: two are called {name!r}; name one by NAME=DIRECTORY", param="models")
    return found


def _entry(settings: Settings, entry: str, load: Load, describe: Describe | None) -> Source:
    name, _, directory = entry.rpartition("=")
    known = None if name else known_model(entry)
    if known:
        one = settings.model_copy(update={"models": (), "model_version": known, "model_dir": None})
    else:
        one = settings.model_copy(update={"models": (), "model_dir": expanded(directory)})
    card = describe(one) if describe else None
    called = name.strip() or known or (card.name if card else Path(directory).name)

    def load_and_look(observer: Observer) -> ServingEngine:
        nonlocal card
        engine = load(one, observer)
        if describe:  # once more: now the weights are here, in the form in which more is told of them
            with suppress(DalleServerError, OSError):
                card = describe(one)
        return engine

    return Source(load_and_look, called, lambda: card)


def _once(settings: Settings, describe: Describe | None) -> Callable[[], ModelCard | None]:
    """The card, made when it is first asked for: the one model of a server is known better by its engine."""

    @cache
    def card() -> ModelCard | None:
        try:
            return describe(settings) if describe else None
        except DalleServerError:  # loading says why
            return None

    return card
