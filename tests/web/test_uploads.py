"""Forms: how much text they may hold, and what is said of those that nobody can read."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

POINT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"  # a picture of one


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations", "/v1/jobs"])
def test_a_large_picture_as_text_is_told_what_it_should_be(client: FlaskClient, path: str) -> None:
    """Not that the body is too large: it may have many times that."""
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    body = part % (b"prompt", b"x") + part % (b"image", b"A" * 1_800_000) + b"--b--\r\n"
    refused = client.post(path, data=body, content_type="multipart/form-data; boundary=b")
    assert (refused.status_code, refused.json["error"]["param"]) == (400, "image")
    assert "must be a file" in refused.json["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations", "/v1/jobs"])
def test_a_form_without_a_boundary_is_not_taken_for_an_empty_one(client: FlaskClient, path: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n'
    refused = client.post(path, data=body, content_type="multipart/form-data")
    assert refused.status_code == 400
    assert "boundary" in refused.json["error"]["message"]


def test_best_of_over_a_picture_is_refused_and_not_dropped(client: FlaskClient) -> None:
    refused = client.post("/v1/images/edits", json={"prompt": "x", "best_of": 4, "images": [{"image_url": POINT}]})
    assert (refused.status_code, refused.json["error"]["param"]) == (400, "best_of")
    assert "candidates" in refused.json["error"]["message"]
