import base64
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dalle_server.errors import ConfigError, DalleServerError, Unauthorized
from dalle_server.web.rates import MAX_NAMES, SlidingWindow
from dalle_server.web.security import Guesses, Keys
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
    [{"Authorization": "Bearer sesame-open"}, {"x_api_key": "sesame-open"}, {"Authorization": basic("sesame-open")}],
)
def test_a_right_key_opens(make_app: MakeApp, headers: dict[str, str], engine: ScriptedEngine) -> None:
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
    ("path", "scheme"), [("/dalle", "Bearer"), ("/v1/images/generations", "Bearer"), ("/sdapi/v1/txt2img", "Basic")]
)
def test_401_names_the_scheme_that_clients_of_the_api_use(make_app: MakeApp, path: str, scheme: str) -> None:
    challenge = make_app(api_keys=KEYS).test_client().post(path, json=BODY).headers["WWW-Authenticate"]
    assert challenge == f'{scheme} realm="dalle-server"'


def test_ten_wrong_keys_a_minute_close_the_door_for_that_address_only(make_app: MakeApp) -> None:
    client = make_app(api_keys=KEYS).test_client()
    statuses = [post(client, x_api_key=f"wrong-{n}").status_code for n in range(11)]
    assert statuses == [401] * 10 + [429]
    refused = post(client, x_api_key="sesame-open")
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) <= 60
    assert post(client, address="10.0.0.2", x_api_key="sesame-open").status_code == 200


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


def test_keys_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nalice:sesame-open  # first\n\nbare-key-1234\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert Keys.parse(["@~/keys"]).name_of("sesame-open") == "alice"
    keys = Keys.parse([f"@{file}", "bob:let-me-in-too"])
    assert keys.name_of("sesame-open") == "alice"
    assert keys.name_of("let-me-in-too") == "bob"
    assert str(keys.name_of("bare-key-1234")).startswith("key-")
    assert keys.name_of("sesame-ope") is None


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (["alice:short"], "the key of 'alice' has fewer than 8"),
        (["short"], "a key has fewer"),
        (["a:11111111", "a:22222222"], "has two keys"),
        (["@/nowhere/keys"], "cannot read /nowhere/keys"),
    ],
)
def test_wrong_keys_stop_start_up_without_showing_them(entries: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Keys.parse(entries)
    assert "short" not in str(caught.value) and "1111" not in str(caught.value)


@pytest.mark.parametrize("path", ["/dalle", "/v1/images/generations", "/sdapi/v1/txt2img"])
def test_any_origin_with_any_header_by_default(client: FlaskClient, path: str) -> None:
    asked = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "bypass-tunnel-reminder, content-type",
    }
    reply = client.options(path, headers=asked)
    assert reply.headers["Access-Control-Allow-Origin"] in ("*", "https://example.org")
    assert "bypass-tunnel-reminder" in reply.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in reply.headers


def test_the_originals_page_may_ask_whether_a_server_is_there(client: FlaskClient) -> None:
    """Its `checkIfValidBackend`: a GET of / with headers of its own, which browsers ask leave for."""
    asked = {"Origin": "https://a", "Access-Control-Request-Headers": "bypass-tunnel-reminder,mode"}
    preflight = client.options("/", headers=asked | {"Access-Control-Request-Method": "GET"})
    assert preflight.headers["Access-Control-Allow-Headers"] == "bypass-tunnel-reminder, mode"
    assert client.get("/", headers={"Origin": "https://a"}).headers["Access-Control-Allow-Origin"] in ("*", "https://a")
    assert "Access-Control-Allow-Origin" not in client.get("/openapi.json", headers={"Origin": "https://a"}).headers


def test_refusals_carry_cors_headers_too(client: FlaskClient) -> None:
    reply = client.post("/dalle", json={}, headers={"Origin": "https://example.org"})
    assert reply.status_code == 400 and "Access-Control-Allow-Origin" in reply.headers


def test_origins_are_a_setting(make_app: MakeApp) -> None:
    client = make_app(cors_origins="https://mine").test_client()
    assert (
        "Access-Control-Allow-Origin" not in client.post("/dalle", json=BODY, headers={"Origin": "https://a"}).headers
    )
    allowed = client.post("/dalle", json=BODY, headers={"Origin": "https://mine"})
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://mine"


def test_other_peoples_pages_cannot_read_jobs_unless_named(client: FlaskClient, make_app: MakeApp) -> None:
    asked = {"Origin": "https://a"}
    assert "Access-Control-Allow-Origin" not in client.get("/v1/jobs", headers=asked).headers
    named = make_app(cors_origins="https://a").test_client()
    assert named.get("/v1/jobs", headers=asked).headers["Access-Control-Allow-Origin"] == "https://a"


def test_large_bodies_are_413_by_route(client: FlaskClient) -> None:
    body = b'{"text": "' + b"x" * (1 << 20) + b'"}'
    reply = client.post("/dalle", data=body)
    assert reply.status_code == 413 and reply.json is not None
    assert client.post("/v1/images/variations", data=body).status_code != 413


def test_json_bodies_may_be_larger_than_uploads(make_app: MakeApp) -> None:
    client = make_app(max_upload_bytes=1024).test_client()
    assert client.post("/dalle", json={"text": "x" * 2000}).status_code == 200


def test_window_slides_and_forgets() -> None:
    now = [0.0]
    window = SlidingWindow(2, 60.0, clock=lambda: now[0])
    assert [window.take("a"), window.take("a")] == [0, 0]
    now[0] = 10.0
    assert window.take("a") == 50.0
    now[0] = 60.0
    assert window.take("a") == 0
    for n in range(MAX_NAMES + 5):
        window.add(str(n))
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
            guesses.name_of(key, address)
        return isinstance(refused.value, Unauthorized)

    def guess_all() -> None:
        looked_at.append(sum(guess(f"wrong-{n}", str(address)) for address in addresses for n in range(5)))

    at_once(guess_all, 4)
    assert sum(looked_at) == 10 * len(addresses)


@pytest.mark.parametrize("path", ["/v1/jobs", "/sdapi/v1/interrupt"])
def test_other_peoples_pages_cannot_act_on_jobs_unless_named(
    client: FlaskClient, make_app: MakeApp, tmp_path: Path, path: str
) -> None:
    """A browser sends a simple POST, such as a form's, without asking first."""
    sent = {"Origin": "https://a", "Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"}
    refused = client.post(path, data='{"prompt": "x"}', headers=sent)
    assert refused.status_code == 403 and "cors_origins" in refused.text
    own = client.post(path, data='{"prompt": "x"}', headers=sent | {"Sec-Fetch-Site": "same-origin"})
    other = make_app(cors_origins="https://a", data_dir=tmp_path / "other").test_client()
    named = other.post(path, data='{"prompt": "x"}', headers=sent)
    assert own.status_code < 400
    assert named.status_code < 400


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil", 403),
        ("null", 403),
        ("http://[", 403),
        ("http://my-server:8000", 200),
        ("http://my-server", 200),
        (None, 200),
    ],
)
def test_over_plain_http_browsers_say_only_the_origin(client: FlaskClient, origin: str | None, status: int) -> None:
    """Sec-Fetch-Site comes over https and on this machine only."""
    sent = {"Host": "my-server:8000"} | ({"Origin": origin} if origin else {})
    assert client.post("/sdapi/v1/interrupt", headers=sent).status_code == status


def test_other_peoples_pages_cannot_watch_a_picture_being_written(client: FlaskClient) -> None:
    reply = client.get("/sdapi/v1/progress", headers={"Origin": "https://a"})
    assert reply.status_code == 200 and "Access-Control-Allow-Origin" not in reply.headers
    assert "Access-Control-Allow-Origin" in client.get("/sdapi/v1/samplers", headers={"Origin": "https://a"}).headers
