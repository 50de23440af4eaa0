"""The application factory: one blueprint for each API family; nothing happens on import."""

from __future__ import annotations

from flask import Flask

from dalle_server.config import Settings
from dalle_server.web import errors, logging, original, picture_urls, playground
from dalle_server.web.access import security
from dalle_server.web.automatic1111 import empty as automatic1111_empty
from dalle_server.web.automatic1111 import extras as automatic1111_extras
from dalle_server.web.automatic1111 import img2img as automatic1111_img2img
from dalle_server.web.automatic1111 import models as automatic1111_models
from dalle_server.web.automatic1111 import routes as automatic1111
from dalle_server.web.jobs import routes as jobs
from dalle_server.web.openai import edits as openai_edits
from dalle_server.web.openai import models as openai_models
from dalle_server.web.openai import responses as openai_responses
from dalle_server.web.openai import routes as openai
from dalle_server.web.openai import score as openai_score
from dalle_server.web.operations import routes as operations
from dalle_server.web.service import EXTENSION, Service
from dalle_server.web.serving import admission, forwarded

APIS = (
    original,
    openai,
    openai_models,
    openai_edits,
    openai_score,
    openai_responses,
    picture_urls,
    automatic1111,
    automatic1111_models,
    automatic1111_img2img,
    automatic1111_empty,
    automatic1111_extras,
    operations,
    playground,
)


def create_app(settings: Settings, service: Service) -> Flask:
    """A WSGI application over `service`, which may still be loading."""
    app = Flask("dalle_server", static_folder=None)
    app.extensions[EXTENSION] = service
    app.config["MAX_CONTENT_LENGTH"] = max(settings.max_upload_bytes, settings.max_json_bytes)  # each route has its own
    app.config["MAX_FORM_MEMORY_SIZE"] = app.config["MAX_CONTENT_LENGTH"]  # text of a form counts as all of it does
    app.url_map.strict_slashes = False  # clients write /sdapi/v1/txt2img/ too
    app.json.sort_keys = False  # type: ignore[attr-defined]
    for api in APIS:
        app.register_blueprint(api.blueprint)
    jobs.install(app, settings, service)
    # What follows reads the routes. In this order a request meets them.
    errors.install(app)
    logging.install(app)
    admission.install(app, admission.max_in_flight(settings))
    security.install(app, settings)
    forwarded.install(app, settings)
    return app
