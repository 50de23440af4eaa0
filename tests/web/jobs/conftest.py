"""An application whose jobs are closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from dalle_server.web.jobs.current import EXTENSION


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Iterator[Flask]:
    app = make_app(max_images=4)
    yield app
    app.extensions[EXTENSION].close()
