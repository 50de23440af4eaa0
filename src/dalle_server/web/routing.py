"""What holds for a route is said on the route: `@describe`, or one of its kinds, below @blueprint.route.

Security, CORS, admission, body limits and the OpenAPI document read it from the application's url map, and nothing
decides by looking at a path. A route that says nothing stops start-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Literal, TypeVar

from flask import Flask, current_app, request
from pydantic import BaseModel
from werkzeug.routing import Rule

View = TypeVar("View", bound=Callable[..., object])
Access = Literal["anyone", "key"]  # who may call it, where keys are set
Cost = Literal["little", "pictures"]  # "pictures" counts against the rate limit, and needs a place in the queue
Takes = Literal["json", "pictures"]  # how big its body may be: max_json_bytes, or max_upload_bytes


@dataclass(frozen=True, slots=True)
class Route:
    """What is decided for one view, and what the document says of it. As a decorator (`describe`) it marks the view."""

    summary: str
    _: KW_ONLY
    access: Access
    cost: Cost
    owned: bool  # shows or stops what is its client's own: other origins' pages only where cors_origins names them
    takes: Takes = "json"
    vital: bool = False  # answers whatever the load is, and is logged at debug level only
    listed: bool = True  # in the OpenAPI document

    body: type[BaseModel] | None = None
    form: type[BaseModel] | None = None  # of a route that takes multipart/form-data, or takes it too
    query: type[BaseModel] | None = None
    reply: type[BaseModel] | None = None
    many: bool = False  # the reply is a list of such
    reply_type: str = "application/json"  # or image/png, text/plain, …
    streams: bool = False  # may answer text/event-stream instead
    bare: bool = False  # may answer a bare picture instead
    status: int = 200
    also: Mapping[int, type[BaseModel]] = field(default_factory=dict)  # other statuses with a reply of their own

    def __call__(self, view: View) -> View:
        view.__route__ = self  # type: ignore[attr-defined]
        return view


describe = Route  # so that it reads as what it does, above a view
# What most routes decide, by name.
makes_pictures = partial(Route, access="key", cost="pictures", owned=False)
for_keys = partial(Route, access="key", cost="little", owned=False)
for_its_owner = partial(Route, access="key", cost="little", owned=True)
for_anyone = partial(Route, access="anyone", cost="little", owned=True)

# Where there is no route, or not for this method, the answer is 404 or 405: nothing to guard, nothing to read.
NO_ROUTE = Route("", access="anyone", cost="little", owned=True)


def routes(app: Flask) -> list[tuple[Rule, Route]]:
    """Every route of the application, in the order of the paths. Raises TypeError for one that says nothing."""
    rules = sorted(app.url_map.iter_rules(), key=lambda rule: (rule.rule, sorted(rule.methods or ())))
    return [(rule, route_of(app, rule)) for rule in rules]


def route_of(app: Flask, rule: Rule) -> Route:
    """Raises TypeError for a view without `@describe`."""
    route = getattr(app.view_functions[rule.endpoint], "__route__", None)
    if not isinstance(route, Route):
        raise TypeError(f"{rule.rule} ({rule.endpoint}) says nothing about itself: put @describe below its route")
    return route


def current_route() -> Route:
    """The current request's."""
    return NO_ROUTE if request.url_rule is None else route_of(current_app, request.url_rule)
