"""What jobs that wait claim of their models: they take their turn as requests do, and are in when it comes."""

from __future__ import annotations

from collections.abc import Callable

from dalle_server.errors import NotReady
from dalle_server.web.pool.model import Model
from dalle_server.web.pool.pool import Hold, Pool


class Claims:
    """One on each model that jobs wait for, in rounds; of one thread. `tell` is called when such a wait is over."""

    def __init__(self, pool: Pool, tell: Callable[[], None]):
        self._pool, self._tell = pool, tell
        self._held: dict[Model, Hold] = {}
        self._waiting: set[Model] = set()  # of those that this round has asked for

    def check(self, model: Model) -> None:
        """That it is loaded, and stays until the round is over. Raises NotReady, and what `Pool.hold` raises."""
        held = self._held.get(model) or self._pool.hold(model, self._tell)
        self._held[model] = held
        self._waiting.discard(model)
        if not held.wait(0):
            self._waiting.add(model)
            raise NotReady(f"the model {model.name!r} is being loaded")

    def end_round(self) -> None:
        """Those that were in give way, so that jobs without end shut out no other model; those that failed, or
        that nobody asked for any more, end. What was told to wait keeps its turn, also when that has come meanwhile.
        """
        for model in self._held.keys() - self._waiting:
            self._held.pop(model).close()
        self._waiting.clear()

    def let_go(self) -> None:
        """Of every model, those that are waited for too."""
        self._waiting.clear()
        self.end_round()
