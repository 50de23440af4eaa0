import logging

import pytest
from flask.testing import FlaskClient

from dalle_server.web.logging import LineFormatter, fields


def test_every_answer_has_a_request_id(client: FlaskClient) -> None:
    ids = [client.get(path).headers["x-request-id"] for path in ("/", "/", "/nothing")]
    assert len(set(ids)) == 3 and all(id.startswith("req-") for id in ids)


@pytest.mark.parametrize(("given", "kept"), [("trace-1.2:3", True), ("a b", False), ("x" * 200, False), ("a=b", False)])
def test_a_sane_id_of_the_client_is_kept(client: FlaskClient, given: str, kept: bool) -> None:
    assert (client.get("/", headers={"x-request-id": given}).headers["x-request-id"] == given) is kept


def test_requests_are_logged_in_one_line(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dalle_server.access")
    client.post("/dalle", json={"text": "secret wish", "num_images": 1}, headers={"x-request-id": "abc"}).close()
    line = next(record.getMessage() for record in caplog.records if record.name == "dalle_server.access")
    assert line.startswith("request=abc method=POST route=/dalle status=200 client=127.0.0.1 total_s=")
    assert "secret" not in caplog.text


def test_nothing_breaks_a_line() -> None:
    assert fields(a="x y", b="1\n2", c=None, d=0.5, e='q"=') == 'a="x y" b="1\\n2" d=0.500 e="q\\"="'
    record = logging.LogRecord("n", logging.INFO, "", 0, "a\nfake line", None, None)
    assert "\n" not in LineFormatter().format(record)


def test_files_are_logged_too(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dalle_server.access")
    made = client.post("/v1/images/generations", json={"prompt": "x", "response_format": "url"}).json
    for path in (made["data"][0]["url"].removeprefix("http://localhost"), "/playground/static/main.js"):
        whole, part = client.get(path), client.get(path, headers={"Range": "bytes=1-9"})
        assert (part.status_code, part.data) == (206, whole.data[1:10])
        whole.close(), part.close()
        lines = [record.getMessage() for record in caplog.records if f"route={path} " in record.getMessage()]
        assert [line.split("status=")[1][:3] for line in lines] == ["200", "206"]
