"""POST /v1/responses with the tool `image_generation`: the text of the input is the prompt, one picture the output.

A thin shim over the Images API (https://platform.openai.com/docs/guides/tools-image-generation): there is no language
model behind it, no conversation is kept, and `model`, which names one, is only echoed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from dalle_server.drawing.repaint import Repaint
from dalle_server.errors import DalleServerError, GenerationCancelled, InvalidRequest
from dalle_server.generation import Cancelled, Done, Event, Failed, ImageReady, Preview
from dalle_server.pictures.codec import base64_text
from dalle_server.request import require_words
from dalle_server.web import sse
from dalle_server.web.drawing import Drawing, draw, encoding, hold_place
from dalle_server.web.errors import openai_error
from dalle_server.web.fields import MAX_PROMPT_CHARS
from dalle_server.web.openai.edits import only_one, referred
from dalle_server.web.openai.names import model_with_room
from dalle_server.web.openai.schemas import ImageReference, OpenAIBody, RepaintBody
from dalle_server.web.routing import makes_pictures
from dalle_server.web.schemas import Body, read_json

blueprint = Blueprint("openai_responses", __name__, url_prefix="/v1")
TOOL = "image_generation"
Json = dict[str, Any]


class Tool(RepaintBody):
    """`image_generation`: all fields count, ours included."""

    type: Literal["image_generation"]
    input_image_mask: ImageReference | None = Field(None, description="of the input's picture: what is painted anew")


def _where(name: str, value: str) -> Discriminator:
    """Tells what counts from what is ignored, whose fields of the same names mean something else."""
    return Discriminator(lambda item: "<ours>" if isinstance(item, dict) and item.get(name) == value else "<other>")


def _unless(name: str, value: str) -> ConfigDict:
    return ConfigDict(json_schema_extra={"not": {"properties": {name: {"const": value}}, "required": [name]}})


class OtherTool(Body):
    """Ignored."""

    model_config = _unless("type", TOOL)


_AnyTool = Annotated[Annotated[Tool, Tag("<ours>")] | Annotated[OtherTool, Tag("<other>")], _where("type", TOOL)]


class ContentPart(OpenAIBody):
    type: str
    text: str | None = None
    image_url: str | None = Field(None, description="of an input_image: a data: URL")
    file_id: str | None = None


Parts = TypeVar("Parts")
# Which of the two it is is told by the list, so that an error names the part's field.
_TextOr = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Parts, Tag("<list>")],
    Discriminator(lambda value: "<list>" if isinstance(value, list) else "<text>"),
]


class InputItem(OpenAIBody):
    """A message of the user; its text may stand alone or in parts."""

    role: Literal["user"]
    content: _TextOr[list[ContentPart]] | None = None


class OtherItem(Body):
    """What else an input may hold: ignored."""

    model_config = _unless("role", "user")


_AnyItem = Annotated[Annotated[InputItem, Tag("<ours>")] | Annotated[OtherItem, Tag("<other>")], _where("role", "user")]


class ResponsesBody(OpenAIBody):
    """POST /v1/responses."""

    input: _TextOr[list[_AnyItem]] = Field(description="the last message of the user is the prompt")
    tools: list[_AnyTool] = Field(description="must hold one of the type image_generation")
    model: str | None = Field(None, description="echoed")
    stream: bool | None = None
    previous_response_id: str | None = None

    @property
    def tool(self) -> Tool:
        """Raises InvalidRequest."""
        found = next((tool for tool in self.tools if isinstance(tool, Tool)), None)
        if found is None:
            raise InvalidRequest(f"tools must hold one of the type {TOOL!r}: this server only paints", param="tools")
        return found

    def picture(self) -> Repaint | None:
        """What the input gives to draw over. Raises InvalidRequest."""
        parts = [part for part in _last_parts(self.input) if part.type == "input_image"]
        tool = self.tool
        if not parts:
            if tool.input_image_mask is not None:
                raise InvalidRequest("input_image_mask needs an input_image in the input", param="input_image_mask")
            return None
        references = [ImageReference(image_url=part.image_url, file_id=part.file_id) for part in parts]
        image = only_one([referred(each, "input") for each in references])
        mask = None if tool.input_image_mask is None else referred(tool.input_image_mask, "input_image_mask")
        with encoding():
            return tool.over(image, mask)

    @property
    def prompt(self) -> str:
        """Raises InvalidRequest where there is none, and for what this server cannot follow."""
        if self.previous_response_id:
            raise InvalidRequest(
                "previous_response_id cannot be followed: no conversation is kept; send the whole prompt",
                param="previous_response_id",
            )
        parts = _last_parts(self.input)
        text = "\n".join(part.text for part in parts if part.type == "input_text" and part.text)
        require_words(text, "input")
        if len(text) > MAX_PROMPT_CHARS:
            raise InvalidRequest(f"input must have at most {MAX_PROMPT_CHARS} characters", param="input")
        return text


def _last_parts(items: str | list[InputItem | OtherItem]) -> list[ContentPart]:
    """The last message of the user."""
    if isinstance(items, str):
        return [ContentPart(type="input_text", text=items)]
    users = [item for item in items if isinstance(item, InputItem)]
    content = users[-1].content if users else None
    return [ContentPart(type="input_text", text=content)] if isinstance(content, str) else content or []


class ImageCall(BaseModel):
    """The one item of the output."""

    id: str
    type: Literal["image_generation_call"] = "image_generation_call"
    status: Literal["in_progress", "generating", "completed"]
    result: str | None = None  # base64
    revised_prompt: str | None = None
    size: str
    output_format: str
    quality: str = "auto"
    background: Literal["opaque"] = "opaque"


class ResponseReply(BaseModel):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed"]
    model: str
    output: list[ImageCall]
    tools: list[dict[str, str]] = Field(default_factory=lambda: [{"type": TOOL}])
    tool_choice: str = "auto"
    parallel_tool_calls: bool = False
    error: None = None
    usage: dict[str, Any] | None = None


class _Response:
    """One answer, as it grows."""

    def __init__(self, drawing: Drawing, tool: Tool, model: str):
        self.drawing, self._tool, self._model = drawing, tool, model
        self._id, self.item_id = f"resp_{secrets.token_hex(12)}", f"ig_{secrets.token_hex(12)}"
        self._created = int(time.time())

    def item(self, status: Literal["in_progress", "generating", "completed"], result: str | None = None) -> ImageCall:
        width, height = self.drawing.size_px
        return ImageCall(
            id=self.item_id,
            status=status,
            result=result,
            revised_prompt=self.drawing.order.prompt if result else None,
            size=f"{width}x{height}",
            output_format=self.drawing.order.form.format.value,
            quality=self._tool.quality or "auto",
        )

    def whole(self, done: ImageCall | None = None, image_tokens: int = 0) -> Json:
        text_tokens = self.drawing.generation.text_token_count
        usage = {
            "input_tokens": text_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": image_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": text_tokens + image_tokens,
        }
        reply = ResponseReply(
            id=self._id,
            created_at=self._created,
            status="completed" if done else "in_progress",
            model=self._model,
            output=[done] if done else [],
            usage=usage if done else None,
        )
        return reply.model_dump()


@blueprint.post("/responses")
@makes_pictures(
    "Make a picture with the tool image_generation, or draw over the input's",
    takes="pictures",
    body=ResponsesBody,
    reply=ResponseReply,
    streams=True,
)
def responses() -> ResponseReturnValue:
    hold_place()
    body = read_json(ResponsesBody)
    tool = body.tool
    model = model_with_room(tool.model)
    num_tokens = model.engine.config.picture.num_tokens
    tool = tool.model_copy(update={"stream": body.stream})
    prompt, over = body.prompt, body.picture()
    order = tool.order(prompt, num_tokens) if over is None else tool.order_over(over, prompt, num_tokens)
    drawing = draw(model, replace(order, num_images=1), over)
    response = _Response(drawing, tool, body.model or model.name)
    if body.stream:
        return sse.stream(drawing.generation, _ResponseEvents(response, tool.partial_images or 0).translate)
    (image,) = drawing.images()
    item = response.item("completed", base64_text(drawing.file(image)))
    return jsonify(response.whole(item, drawing.num_drawn * len(image.tokens)))


class _ResponseEvents:
    """Events of the drawing → the API's events, numbered."""

    def __init__(self, response: _Response, max_partials: int):
        self._response, self._max_partials = response, max_partials
        self._number = self._partials = 0
        self._begun = self._over = False

    def translate(self, event: Event) -> Iterator[str]:
        if not self._begun:
            self._begun = True
            yield self._event("response.created", response=self._response.whole())
            yield self._event("response.in_progress", response=self._response.whole())
            item = self._response.item("in_progress").model_dump()
            yield self._event("response.output_item.added", output_index=0, item=item)
            yield self._call("in_progress")
            yield self._call("generating")
        if not self._over:
            try:
                yield from self._translated(event)
            except DalleServerError as error:  # the picture could not be made into a file
                self._response.drawing.generation.cancel(error.message)
                yield self._failure(error)

    def _translated(self, event: Event) -> Iterator[str]:
        drawing = self._response.drawing
        match event:
            case Preview() if self._partials < self._max_partials:
                self._partials += 1
                shown = base64_text(drawing.preview_file(event.pixels))
                yield self._call("partial_image", partial_image_index=self._partials - 1, partial_image_b64=shown)
            case ImageReady(image):
                item = self._response.item("completed", base64_text(drawing.file(image)))
                tokens = drawing.num_drawn * len(image.tokens)
                yield self._call("completed")
                yield self._event("response.output_item.done", output_index=0, item=item.model_dump())
                yield self._event("response.completed", response=self._response.whole(item, tokens))
                self._over = True
            case Failed(error):
                yield self._failure(error)
            case Cancelled(reason):
                yield self._failure(GenerationCancelled(reason))
            case Done():
                pass

    def _failure(self, error: DalleServerError) -> str:
        self._over = True
        told = openai_error(error)
        return self._event("error", code=told["code"], message=told["message"], param=told["param"])

    def _call(self, kind: str, **data: Any) -> str:
        name = f"response.image_generation_call.{kind}"
        return self._event(name, output_index=0, item_id=self._response.item_id, **data)

    def _event(self, name: str, **data: Any) -> str:
        number, self._number = self._number, self._number + 1
        return sse.format_event(name, {"type": name, "sequence_number": number, **data})
