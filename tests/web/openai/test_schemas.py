"""What the OpenAI bodies take as left out."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from dalle_server.errors import InvalidRequest
from dalle_server.web.openai.responses import ResponsesBody, Tool
from dalle_server.web.openai.schemas import (
    EditForm,
    EditJson,
    ImageGenerationBody,
    OutputBody,
    ScoreBody,
    VariationForm,
)
from dalle_server.web.schemas import Body, validate

REQUIRED: dict[type[Body], dict[str, Any]] = {
    ImageGenerationBody: {"prompt": "x"},
    EditForm: {"prompt": "x"},
    EditJson: {"prompt": "x", "images": [{"image_url": "data:,"}]},
    VariationForm: {},
    ScoreBody: {"prompt": "x", "image": "data:,"},
    Tool: {"type": "image_generation"},
    ResponsesBody: {"input": "x", "tools": []},
}


@pytest.mark.parametrize("nothing", [None, ""])
@pytest.mark.parametrize("model", REQUIRED)
def test_null_and_empty_text_are_left_out(model: type[Body], nothing: str | None) -> None:
    """go-openai writes what is unset into a form as empty text."""
    required = REQUIRED[model]
    optional = dict.fromkeys(model.model_fields.keys() - required.keys(), nothing)
    plain = validate(model, required)
    assert validate(model, optional | required) == plain
    if isinstance(plain, OutputBody):
        assert plain.order("x", 256).first_index == 0


@pytest.mark.parametrize(("model", "field"), [(ImageGenerationBody, "prompt"), (ScoreBody, "prompt")])
def test_what_is_required_is_not(model: type[Body], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        validate(model, REQUIRED[model] | {field: ""})
    assert refused.value.param == field


def test_the_document_says_so(client: FlaskClient) -> None:
    document = client.get("/openapi.json").json
    assert document is not None
    schemas = document["components"]["schemas"]
    body = schemas["ImageGenerationBody"]["properties"]
    for name in ("n", "response_format", "stream"):
        assert {"const": ""} in body[name]["anyOf"]
    assert "anyOf" not in body["prompt"]
    assert {"const": ""} not in body["model"]["anyOf"], "any text may be a name"
    assert {"const": ""} in schemas["VariationForm"]["properties"]["n"]["anyOf"]
