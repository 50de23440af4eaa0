import pytest
from flask import Flask
from pydantic import BaseModel, Field

from dalle_server.errors import InvalidRequest
from dalle_server.web.schemas import Body, LenientBody, LenientWhole, read_json, validate


class Order(Body):
    n: int = Field(1, ge=1, le=4)
    name: str


def read(body: bytes, content_type: str = "text/plain") -> Order:
    with Flask("t").test_request_context("/", method="POST", data=body, content_type=content_type):
        return read_json(Order)


def test_json_is_read_whatever_the_content_type() -> None:
    assert read(b'{"name": "x", "unknown": 1}').name == "x"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_is_read_in_every_encoding_of_unicode(encoding: str) -> None:
    assert read('{"name": "é"}'.encode(encoding)).name == "é"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b"", None, "no body"),
        (b"{", None, "not valid JSON"),
        (b"[]", None, "JSON object"),
        (b"{}", "name", "name is required"),
        (b'{"name": 3}', "name", "string, not 3"),
        (b'{"name": "x", "n": "3"}', "n", "integer, not '3'"),
        (b'{"name": "x", "n": true}', "n", "integer, not True"),
        (b'{"name": "x", "n": 9}', "n", "less than or equal to 4, not 9"),
        (b'{"name": "\\ud800"}', None, "not valid JSON"),
        (b'{"name": ' + b"[" * 10_000, None, "not valid JSON"),
        (b'\xff\xfe{"name"', None, "not valid JSON"),
        (b"\0\0\0\xff\xff\xff\xff\xff", None, "not valid JSON"),
        ('{"name": "\udc00"}'.encode("utf-16", "surrogatepass"), None, "not valid JSON"),
    ],
)
def test_faults_name_the_field_and_the_value(body: bytes, param: str | None, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        read(body)
    assert caught.value.param == param


def test_words_that_are_no_numbers_are_told_plainly() -> None:
    class Query(BaseModel):
        limit: int

    with pytest.raises(InvalidRequest, match=r"^limit must be a valid integer, not 'abc'$"):
        validate(Query, {"limit": "abc"})


def test_the_document_says_what_is_coerced() -> None:
    class Loose(LenientBody):
        n: LenientWhole | None = Field(None, ge=1)
        on: bool = True
        words: str = ""

    fields = Loose.model_json_schema()["properties"]
    kinds = {name: {kind.get("type") for kind in field["anyOf"]} for name, field in fields.items()}
    every = {"string", "number", "boolean"}
    assert kinds == {"n": {"integer", "null"} | every, "on": every, "words": {"string", "number"}}
    assert validate(Loose, {"n": 2.9, "on": 0, "words": 3}) == validate(Loose, {"n": 2, "on": False, "words": "3"})
