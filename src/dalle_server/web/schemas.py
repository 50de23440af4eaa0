"""Reading request bodies: JSON, whatever the content type says, checked against a pydantic model."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, TypeVar

from flask import request
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from dalle_server.errors import InvalidRequest, PayloadTooLarge

M = TypeVar("M", bound=BaseModel)
_OF_THE_FIELD = ("default", "title", "description")  # and not of one kind that it may be
MAX_ELEMENTS = 40_000  # of a body, counted by their marks: a prompt of 32,000 commas is one too


def _whole(value: Any) -> Any:
    """2.0 is 2: languages without whole numbers, and some JSON writers, send it so."""
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return int(value) if isinstance(value, float) and abs(value) <= 2**53 and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class Body(BaseModel):
    """Base of request bodies. Unknown fields are ignored; "3" and true are not numbers."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, protected_namespaces=())


def alternatives(field: dict[str, Any]) -> list[dict[str, Any]]:
    """What a field of a document may be, as a list that takes more; a field of one kind becomes a list of that one."""
    if "anyOf" not in field:
        field["anyOf"] = [{name: field.pop(name) for name in list(field) if name not in _OF_THE_FIELD}]
    found: list[dict[str, Any]] = field["anyOf"]
    return found


def _say_lenient(schema: dict[str, Any]) -> None:
    """A number or a yes may be written as text, and one as the other; text may be a number: the document says so."""
    for field in schema.get("properties", {}).values():
        kinds = {kind.get("type") for kind in field.get("anyOf", [field])}
        if "string" in kinds:
            others = [{"type": "number"}]
        elif kinds & {"integer", "number", "boolean"}:
            others = [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]
        else:
            continue
        alternatives(field).extend(others)


class LenientBody(Body):
    """For APIs whose own servers coerce, as pydantic 1 did: "64" is 64, "true" and 1 are true, and 5 is a text too.
    Whole numbers are LenientWhole.
    """

    model_config = ConfigDict(strict=False, coerce_numbers_to_str=True, json_schema_extra=_say_lenient)

    @field_validator("*", mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise PydanticCustomError("finite_number", "Input should be a finite number")
        return value


def _cut(value: Any) -> Any:
    return int(value) if isinstance(value, (bool, float)) else value


LenientWhole = Annotated[int, BeforeValidator(_cut)]  # 12.7 is 12, and true is 1


def read_json(model: type[M]) -> M:
    """The current request's body. Raises InvalidRequest naming the field, PayloadTooLarge."""
    body = request.get_data(cache=True)
    if not body or body.isspace():
        raise InvalidRequest("the request has no body; send a JSON object")
    _check_elements(body)
    encoding = json.detect_encoding(body)  # as Flask does, and did for the original: Windows writes UTF-16, and marks
    try:
        return model.model_validate_json(body if encoding == "utf-8" else body.decode(encoding))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error.reason} in {encoding}") from None
    except ValidationError as error:
        raise invalid(error) from None


def _check_elements(body: bytes) -> None:
    """Each element costs a hundred times its bytes to read. Looks no further than it must."""
    found = 0
    for start in range(0, len(body), 1 << 18):
        found += sum(body.count(mark, start, start + (1 << 18)) for mark in b",[{")
        if found > MAX_ELEMENTS:
            raise PayloadTooLarge(f"the body has more than {MAX_ELEMENTS} elements; send what the request needs")


def validate(model: type[M], values: dict[str, Any]) -> M:
    """The same for values that came another way (a form, a query)."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError) -> InvalidRequest:
    """The first fault, as one sentence that names the field and the value."""
    fault = error.errors(include_url=False)[0]
    if fault["type"] == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {fault['msg'].removeprefix('Invalid JSON: ')}")
    parts = [str(part) for part in fault["loc"]]
    field = ".".join(part for part in parts if not part.startswith("<"))  # a union's branches are tagged <so>
    if not field:
        return InvalidRequest("the body must be a JSON object")
    if fault["type"] == "missing":
        return InvalidRequest(f"{field} is required", param=field)
    return InvalidRequest(f"{field} must {_rule(fault['msg'])}, not {_shown(fault['input'])}", param=field)


def _rule(message: str) -> str:
    """pydantic's "Input should be less than 3", "String should match …", "Value error, a small number"."""
    rule, verbs = re.subn(r"^(Input|String|List|Value) should ", "", message)
    rule = rule.split(", unable to")[0]
    return rule if verbs else f"be {message.removeprefix('Value error, ')}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
