"""What the OpenAI bodies take as left out."""

from __future__ import annotations

from typing import Any

import pytest

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


@pytest.mark.parametrize("model", REQUIRED)
def test_null_is_left_out(model: type[Body]) -> None:
    required = REQUIRED[model]
    nothing = dict.fromkeys(model.model_fields.keys() - required.keys())
    plain = validate(model, required)
    assert validate(model, nothing | required) == plain
    if isinstance(plain, OutputBody):
        assert plain.order("x", 256).first_index == 0
