"""A client's request as it is submitted: one whole, for the books and for the queue, whatever it is made of."""

from __future__ import annotations

from dalle_server.drawing.form import Form, draw_new
from dalle_server.drawing.repaint import Holes
from dalle_server.drawing.repainting import Repainting, repaint
from dalle_server.drawn import Drawn
from dalle_server.request import GenerationRequest
from dalle_server.web.pool.model import Model
from dalle_server.web.service import Service


def submit_new(
    service: Service, model: Model, request: GenerationRequest, form: Form, counted_as: str = "num_images"
) -> Drawn:
    """As `draw_new`. Raises what `Service.submitter` does, too, in the words of who counts the pictures."""
    window = model.engine.config.picture
    shape = form.shape(window, seamless=request.seamless)
    num_images = len(request.images)
    num_parts = 1 if shape is None else num_images * len(shape.places)
    submit = service.submitter(model, num_parts=num_parts, num_images=num_images, counted_as=counted_as)
    return draw_new(submit, request, form, window)


def submit_over(service: Service, model: Model, request: GenerationRequest, holes: Holes) -> Repainting:
    """As `repaint`. Raises what `Service.submitter` does, too."""
    parts = holes.requests(request)
    num_images = sum(len(part.images) for part in parts)
    submit = service.submitter(model, num_parts=len(parts), num_images=num_images, counted_as="candidates × n")
    return repaint(submit, holes, request)
