"""A browser, a server, and a page that must not complain: every test ends with a look at its console and requests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.playground.server import Server
from tests.setup_system import find_browser

expect.set_options(timeout=20_000)  # the machine may have other work; what must be quick is timed where it is tested
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--mute-audio"]  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = find_browser()
    if executable is None:
        message = "no Chromium; `python -m tests.setup_system` installs one, or set TEST_BROWSER"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """start_server(step_s=…, **settings) → a running server; it is stopped afterwards."""
    servers: list[Server] = []

    def start(
        *, step_s: float = 0.01, loading: bool = False, name: str = "data", features: Any = None, **settings: Any
    ) -> Server:
        server = Server(tmp_path / name, **settings)
        server.step_s, server.features = step_s, features
        if loading:
            server.ready.clear()
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    return start_server()


@pytest.fixture
def slow_server(start_server: Callable[..., Server]) -> Server:
    """Half a second a token, until the test sets `runner.step_s`."""
    return start_server(step_s=0.5)


@dataclass
class Witness:
    """What the page said and asked for."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.console.append(text)


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
def make_page(browser: Browser, witness: Witness) -> Iterator[Callable[..., Page]]:
    """make_page(server, **context options) → the playground, opened. Any console error fails the test at its end,
    but for those that the test takes out of `witness.console` as expected."""
    contexts: list[BrowserContext] = []

    def make(server: Server, query: str = "", wait: bool = True, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on(
            "console", lambda message: witness.hear(message.type, f"{message.text} {message.location.get('url', '')}")
        )
        page.on("pageerror", lambda error: witness.console.append(str(error)))
        page.on("request", lambda request: witness.requests.append(request.url))
        page.goto(f"{server.url}/playground{query}")
        if wait:
            page.locator("#submit:enabled").wait_for()
        return page

    yield make
    for context in contexts:
        context.close()
    assert witness.console == []


@pytest.fixture
def page(server: Server, make_page: Callable[..., Page]) -> Page:
    return make_page(server)
