"""`python -m tests.web.fake_server STEP_S LOAD_S [serve flags]`: the real server and engine on a fake runner.

A prompt with the word FAULT makes the next step crash. LOAD_S may be `missing`: there are no weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from dalle_server.cli.flags import add_flags
from dalle_server.config import Settings, load_settings
from dalle_server.engine.engine import Engine
from dalle_server.engine.runners.base import StepRow, TextTokens
from dalle_server.engine.stats import Observer
from dalle_server.errors import WeightsNotFound
from dalle_server.web.serving.server import serve
from tests.fake_runner import FakeRunner, FakeTokenizer


class FaultyRunner(FakeRunner):
    """Crashes in the step after it has seen a prompt that says so."""

    def __init__(self, num_slots: int):
        super().__init__(num_slots=num_slots)
        self.armed = False
        self.on_encode, self.on_step = self._read, self._crash

    def _read(self, texts: Sequence[TextTokens]) -> None:
        self.armed |= any(b"FAULT" in bytes(text.ids.astype("u1")) for text in texts)

    def _crash(self, rows: Sequence[StepRow]) -> None:
        if self.armed:
            self.armed = False
            raise RuntimeError("a fault that a test asked for")


def main() -> int:
    step_s, load_s, flags = float(sys.argv[1]), sys.argv[2], sys.argv[3:]

    def load(settings: Settings, observer: Observer, on_fatal: Callable[[], None]) -> Engine:
        if load_s == "missing":
            raise WeightsNotFound("there are no weights here; pull them elsewhere")
        time.sleep(float(load_s))
        runner = FaultyRunner(settings.num_slots or 4)
        waiting = settings.max_waiting_images
        engine = Engine(
            runner, FakeTokenizer(), digest="0" * 64, max_waiting_images=waiting, observer=observer, on_fatal=on_fatal
        )
        runner.step_s = step_s
        return engine

    parser = argparse.ArgumentParser()
    add_flags(parser)
    return serve(load_settings(vars(parser.parse_args(flags))), load)


if __name__ == "__main__":
    sys.exit(main())
