"""API keys: how they are written down, presented and guessed."""

from __future__ import annotations

import base64
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.config import load_settings
from dalle_server.errors import ConfigError, DalleServerError, Unauthorized
from dalle_server.web.access.keys import Guesses, Keys
from dalle_server.web.access.rates import MAX_NAMES, SlidingWindow
from tests.web.scripted_engine import ScriptedEngine

MakeApp = Callable[..., Flask]
KEYS = ("alice:sesame-open", "bob:let-me-in-too")
BODY = {"text": "x", "num_images": 1}


def post(client: FlaskClient, address: str = "10.0.0.1", **headers: str):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/dalle", json=BODY, headers=headers, environ_overrides={"REMOTE_ADDR": address})


def at_once(work: Callable[[], None], num_threads: int) -> None:
    """Threads that change places as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer sesame-open"},
        {"Authorization": "bearer  sesame-open "},
        {"x_api_key": "sesame-open"},
        {"Authorization": basic("sesame-open")},
        {"Authorization": "Bearer ", "x_api_key": "sesame-open"},
        {"Authorization": "Bearer sk-unused", "x_api_key": "sesame-open"},
        {"Authorization": "Bearer sesame-open", "x_api_key": "not-this-one"},
        {"Authorization": "Basic !!!", "x_api_key": "sesame-open"},
    ],
)
def test_a_right_key_opens(make_app: MakeApp, headers: dict[str, str], engine: ScriptedEngine) -> None:
    """Wherever it stands, and whatever a client puts into the other places."""
    assert post(make_app(api_keys=KEYS).test_client(), **headers).status_code == 200
    assert engine.requests[0].client.startswith("key:") and "sesame" not in engine.requests[0].client


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong-wrong"}, {"x_api_key": "alice:sesame-open"}, {"x_api_key": "é"}]
)
def test_no_key_and_wrong_keys_are_401(make_app: MakeApp, headers: dict[str, str]) -> None:
    reply = post(make_app(api_keys=KEYS).test_client(), **headers)
    assert reply.status_code == 401 and reply.json is not None
    assert reply.json["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "sent", ["Öffne-dich-ß", "Öffne-dich-ß".encode().decode("latin-1")], ids=["as Latin-1", "as UTF-8"]
)
def test_a_key_outside_ascii_opens(make_app: MakeApp, sent: str) -> None:
    """Python's http.client and browsers' fetch send Latin-1, curl and node what the terminal gave them."""
    client = make_app(api_keys=("alice:Öffne-dich-ß",)).test_client()
    assert post(client, x_api_key=sent).status_code == 200
    assert post(client, Authorization=f"Bearer {sent}").status_code == 200
    assert post(client, Authorization=basic("Öffne-dich-ß")).status_code == 200


def test_no_byte_of_a_key_is_taken_for_a_space(make_app: MakeApp) -> None:
    """The last one of à in UTF-8 is Latin-1's no-break space."""
    client = make_app(api_keys=("alice:ouvre-toi-voilà",)).test_client()
    sent = "ouvre-toi-voilà".encode().decode("latin-1")
    assert post(client, x_api_key=sent).status_code == 200
    assert post(client, Authorization=f"Bearer {sent}").status_code == 200


@pytest.mark.parametrize(
    ("path", "scheme"), [("/dalle", "Bearer"), ("/v1/images/generations", "Bearer"), ("/sdapi/v1/txt2img", "Basic")]
)
def test_401_names_the_scheme_that_clients_of_the_api_use(make_app: MakeApp, path: str, scheme: str) -> None:
    challenge = make_app(api_keys=KEYS).test_client().post(path, json=BODY).headers["WWW-Authenticate"]
    assert challenge == f'{scheme} realm="dalle-server"'


def test_ten_wrong_keys_a_minute_close_the_door_for_wrong_keys_only(make_app: MakeApp) -> None:
    """Behind a proxy or a NAT the address of a guesser is everybody's."""
    client = make_app(api_keys=KEYS).test_client()
    statuses = [post(client, x_api_key=f"wrong-{n}").status_code for n in range(11)]
    assert statuses == [401] * 10 + [429]
    refused = post(client, x_api_key="wrong-again")
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) <= 60
    assert post(client, x_api_key="sesame-open").status_code == 200
    assert post(client, address="10.0.0.2", x_api_key="wrong-0").status_code == 401


def test_a_request_counts_as_one_guess_however_many_keys_it_brings(make_app: MakeApp) -> None:
    client = make_app(api_keys=KEYS).test_client()
    statuses = [post(client, Authorization=basic(f"a-{n}"), x_api_key=f"b-{n}").status_code for n in range(11)]
    assert statuses == [401] * 10 + [429]


def test_a_missing_key_is_not_a_wrong_one(make_app: MakeApp) -> None:
    client = make_app(api_keys=KEYS).test_client()
    assert [post(client).status_code for _ in range(12)] == [401] * 12


def test_hello_and_preflight_need_no_key(make_app: MakeApp) -> None:
    client = make_app(api_keys=KEYS).test_client()
    assert client.get("/").status_code == 200
    assert (
        client.options("/dalle", headers={"Origin": "https://a", "Access-Control-Request-Method": "POST"}).status_code
        == 200
    )


def test_rate_limit_counts_each_key(make_app: MakeApp) -> None:
    client = make_app(api_keys=KEYS, rate_limit=2).test_client()
    assert [post(client, x_api_key="sesame-open").status_code for _ in range(3)] == [200, 200, 429]
    assert post(client, x_api_key="let-me-in-too").status_code == 200


def test_rate_limit_counts_drawing_alone(make_app: MakeApp) -> None:
    client = make_app(rate_limit=1).test_client()
    for _ in range(3):
        assert client.get("/v1/models").status_code == 200
        client.options("/dalle", headers={"Origin": "https://a"})
    assert [post(client).status_code for _ in range(2)] == [200, 429]
    assert client.get("/v1/models").status_code == 200


def test_keys_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("\ufeff# ours\nalice : sesame-open  # first\n\nbare-key-1234\r\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert Keys.parse(["@~/keys"]).name_of(b"sesame-open") == "alice"
    keys = Keys.parse([f"@{file}", "bob:let-me-in-too", "bob:let-me-in-too"])
    assert keys.name_of(b"sesame-open") == "alice"
    assert keys.name_of(b"let-me-in-too") == "bob"
    assert str(keys.name_of(b"bare-key-1234")).startswith("key-")
    assert keys.name_of(b"sesame-ope") is None


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (["alice:short"], "the key of 'alice' has fewer than 8"),
        (["short"], "a key has fewer"),
        (["a:11111111", "a:22222222"], "has two keys"),
        (["a:11111111", "b:11111111"], "'b' has the key of another name"),
        (["alice:1111:11111111"], "the key of 'alice' has a blank, a comma, a colon"),
        (["alice:1111 11111111"], "the key of 'alice' has a blank"),
        (["1111\x001111111"], "a key has a blank, a comma, a colon or a control"),
        ([":11111111"], "begins with a colon"),
        (["@/nowhere/keys"], "cannot read /nowhere/keys"),
        (["@~no-such-user/keys"], "cannot read ~no-such-user/keys: expected a path whose ~ is a known home"),
    ],
)
def test_wrong_keys_stop_start_up_without_showing_them(entries: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Keys.parse(entries)
    assert "short" not in str(caught.value) and "1111" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"# alice:sesame-open\n", b"\xef\xbb\xbf", b"\xff\xfea\0"])
def test_a_file_without_a_key_stops_start_up(tmp_path: Path, content: bytes) -> None:
    """The server would stand open, and look guarded."""
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ConfigError, match=r"names no key|is not UTF-8"):
        Keys.parse([f"@{tmp_path / 'keys'}"])


@pytest.mark.parametrize("given", ["", ",", " , "])
def test_keys_that_come_to_nothing_stop_start_up(tmp_path: Path, given: str) -> None:
    """--api_keys "$KEYS", where KEYS is empty."""
    with pytest.raises(ConfigError, match="at least one key"):
        load_settings({"api_keys": given}, {})
    (tmp_path / "file.toml").write_text(f'api_keys = "{given}"')
    with pytest.raises(ConfigError, match="at least one key"):
        load_settings({}, {}, tmp_path / "file.toml")


def test_window_slides_and_forgets() -> None:
    now = [0.0]
    window = SlidingWindow(2, 60.0, clock=lambda: now[0])
    assert [window.take("a"), window.take("a")] == [0, 0]
    now[0] = 10.0
    assert window.take("a") == 50.0
    now[0] = 60.0
    assert window.take("a") == 0
    for n in range(MAX_NAMES + 5):
        window.take(str(n))
    assert len(window._events) == MAX_NAMES


def test_requests_at_the_same_moment_cannot_share_the_last_place() -> None:
    window, names, allowed = SlidingWindow(1), [str(n) for n in range(5_000)], list[int]()

    def take_all() -> None:
        allowed.append(sum(window.take(name) == 0 for name in names))

    at_once(take_all, 4)
    assert sum(allowed) == len(names)


def test_guesses_at_the_same_moment_are_all_counted() -> None:
    guesses, addresses, looked_at = Guesses(Keys({"alice": "sesame-open"})), range(300), list[int]()

    def guess(key: str, address: str) -> bool:
        with pytest.raises(DalleServerError) as refused:
            guesses.find([key.encode()], address)
        return isinstance(refused.value, Unauthorized)

    def guess_all() -> None:
        looked_at.append(sum(guess(f"wrong-{n}", str(address)) for address in addresses for n in range(5)))

    at_once(guess_all, 4)
    assert sum(looked_at) == 10 * len(addresses)
