"""What a front knows of the replicas: it looks at the board about once a second, which also says that it lives."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dalle_server.cluster.connection import Deployed
from dalle_server.engine.engine import Tokenizer
from dalle_server.engine.runners.base import RunnerInfo
from dalle_server.families import model_config
from dalle_server.models.config import ModelConfig
from dalle_server.web.pool.model import ReplicaStatus

ASK_EVERY_S = 1.0
SETTLE_S = 0.05  # changes of what previews are wanted, of so long, go in one message
ANSWER_S = 5.0  # that the board has to answer
SILENT_S = 30.0  # no word from it, or no replica on it, for so long: the front says that it is not ready

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Introduction:
    """What the replicas draw with, until their weights are changed."""

    drawn_as: str
    digest: str
    config: ModelConfig
    info: RunnerInfo
    determinism: str
    tokenizer: Tokenizer

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Introduction:
        return cls(
            told["drawn_as"],
            told["weights"],
            model_config(told["config"]),
            RunnerInfo(**told["info"]),
            told["determinism"],
            told["tokenizer"],
        )


@dataclass(slots=True)
class Watch:
    """`adopt` is called, in the loop, when the replicas' weights were changed. Runs in the loop's thread; what it has
    found may be read by any.
    """

    deployed: Deployed
    adopt: Callable[[Introduction], Awaitable[None]]
    front: str = field(default_factory=lambda: f"front-{secrets.token_hex(6)}")
    replicas: tuple[ReplicaStatus, ...] = ()
    step_s: float | None = None  # of the replicas' engines, on average
    heard_at: float = field(default_factory=time.monotonic)  # of a replica, or that there need not be one
    may_be_none: bool = False  # replicas, as the last of them said
    known: Introduction | None = None
    _since: float = 0.0  # when the replicas agreed on what is known
    _previews: dict[str, int] = field(default_factory=dict)  # by part: wanted since the last message
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _meeting: asyncio.Future[None] | None = None  # with replicas of other weights
    _is_over: bool = False

    @property
    def is_silent(self) -> bool:
        return time.monotonic() - self.heard_at > SILENT_S

    def want_previews(self, part: str, every: int) -> None:
        self._previews[part] = every
        self._changed.set()

    def stop(self) -> None:
        """`run` returns when the board has answered: Ray complains of answers that nobody takes."""
        self._is_over = True
        self._changed.set()

    async def run(self) -> None:
        while not self._is_over:
            try:
                await self.ask()
            except Exception as error:  # Serve's own, and Ray's: a broken connection, an application that is deleted
                logger.warning("the board does not answer: %s: %s", type(error).__name__, error)
            try:
                await asyncio.wait_for(self._changed.wait(), ASK_EVERY_S)
                await asyncio.sleep(SETTLE_S)
            except TimeoutError:
                continue

    async def ask(self) -> None:
        """Once. Raises what Ray raises when there is no board."""
        previews, self._previews = self._previews, {}
        if not self._is_over:
            self._changed.clear()
        try:
            told = await asyncio.wait_for(_answer(self.deployed.board.look.remote(self.front, previews)), ANSWER_S)
        except Exception:
            self._previews = previews | self._previews
            raise
        names = [each.name for each in fields(ReplicaStatus)]
        self.replicas = tuple(ReplicaStatus(**{name: each[name] for name in names}) for each in told)
        steps = [each["step_s"] for each in told if each["step_s"] is not None]
        self.step_s = sum(steps) / len(steps) if steps else None
        if told:
            self.may_be_none = any(each["may_be_none"] for each in told)
        if told or self.may_be_none:  # dead ones are forgotten there, and the board answers all the same
            self.heard_at = time.monotonic()
        newest = max(told, key=lambda each: float(each["since"]), default=None)
        if newest and newest["since"] > self._since and (self._meeting is None or self._meeting.done()):
            # Not awaited: it waits its turn behind pictures, and this front must go on to say that it lives.
            self._meeting = asyncio.ensure_future(self._introduce(newest["drawn_as"], newest["since"]))

    async def introduce(self) -> Introduction:
        """The first. Waits for a replica."""
        self.known = Introduction.of(await self.deployed.replicas.introduce.remote())
        self.heard_at = time.monotonic()
        return self.known

    async def _introduce(self, drawn_as: str, since: float) -> None:
        if self.known is None or self.known.drawn_as != drawn_as:
            found = Introduction.of(await self.deployed.replicas.introduce.remote())
            if found.drawn_as != drawn_as:  # one of the old ones answered: asked again with the next message
                return
            self.known = found
            logger.warning("the cluster's weights were changed: they are %s now", found.digest[:12])
            await self.adopt(found)
        self._since = since


async def _answer(response: Any) -> Any:
    return await response
