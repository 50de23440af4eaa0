"""The drawing of a plan: for each picture its candidates as a generation of their own, all of them read as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from dalle_server.drawing.joined import Joined, all_or_none, said_by_now
from dalle_server.drawing.repaint import DrawingEngine, Holes, Plan, Repaint, kept_behind
from dalle_server.generation import (
    Cancelled,
    Done,
    Event,
    Failed,
    GeneratedImage,
    Generation,
    ImageReady,
    Preview,
    Progress,
    Queued,
    Started,
)
from dalle_server.request import GenerationRequest, SamplingParams, Tokens, image_keys


def likeliest(images: Sequence[GeneratedImage], forced: Tokens) -> GeneratedImage:
    """The candidate under which the kept tokens behind the hole are likeliest; of equals the first."""
    if len(images) == 1:
        return images[0]
    behind = kept_behind(forced)
    scores = [-np.inf if image.logprobs is None else float(image.logprobs[behind, 0].sum()) for image in images]
    return images[int(np.argmax(scores))]


class Repainting(Joined):
    """Several generations, one for each picture, read as if they were one (`Generation`'s consumer side): of each
    picture's candidates only the chosen one comes out.
    """

    grid_width = 0

    def __init__(self, request: GenerationRequest, generations: Sequence[Generation]):
        super().__init__()
        self.request = request
        self.sampling = generations[0].sampling
        self.text_token_count = generations[0].text_token_count
        self.deadline = generations[0].deadline
        self._generations = generations
        for generation in generations:
            generation.previewed = 0  # of the candidates one is shown: each preview costs a decode to pixels
            generation.on_event(self._spoke.set)
        self._readers = [generation.events(poll_s=0) for generation in generations]
        self._done: dict[int, tuple[GeneratedImage, Done]] = {}
        self._tokens_done = [0] * len(generations)

    def request_of(self, image: GeneratedImage) -> GenerationRequest:
        """What made this picture: its given tokens are its own."""
        return replace(self._generations[image.index].request, images=(image.key,))

    @property
    def num_drawn(self) -> int:
        return sum(len(generation.request.images) for generation in self._generations)

    @property
    def cancel_reason(self) -> str | None:
        return self._generations[0].cancel_reason

    @property
    def preview_every(self) -> int:
        return self._generations[0].preview_every

    def want_previews(self, every: int) -> None:
        for generation in self._generations:
            generation.want_previews(every)

    def cancel(self, reason: str = "cancelled by the client") -> None:
        for generation in self._generations:
            generation.cancel(reason)

    def _news(self) -> list[Event]:
        return [event for index, reader in enumerate(self._readers) for event in self._read(index, reader)]

    def _read(self, index: int, reader: Iterator[Event | None]) -> list[Event]:
        """What one generation has said by now, in the whole request's words."""
        return [told for event in said_by_now(reader) for told in self._translated(index, event)]

    def _translated(self, index: int, event: Event) -> Iterator[Event]:
        match event:
            case Preview(0, tokens_done, pixels):
                yield Preview(index, tokens_done, pixels)
            case Progress(tokens_done, num_tokens, eta_s):
                share = len(self._generations[index].request.images)
                self._tokens_done[index] = tokens_done // share
                yield Progress(sum(self._tokens_done), num_tokens // share * len(self._generations), eta_s)
            case Done(images):
                request = self._generations[index].request
                chosen = likeliest(images, np.array(request.forced_tokens, np.int32))
                yield ImageReady(replace(chosen, index=index))
                self._done[index] = replace(chosen, index=index), event
                if len(self._done) == len(self._generations):
                    ends = [done for _, done in self._done.values()]
                    pictures = tuple(self._done[i][0] for i in range(len(ends)))
                    yield Done(pictures, max(done.queue_s for done in ends), max(done.total_s for done in ends))
            case Failed() | Cancelled():
                yield event
            case Queued() | Started() if index == 0:
                yield event


def repaint(submit: Callable[[GenerationRequest], Generation], holes: Holes, request: GenerationRequest) -> Repainting:
    """Submit the pictures of `request`, drawn into `holes`; all of them or none. Raises what `submit` raises."""
    return Repainting(request, all_or_none(submit(each) for each in holes.requests(request)))


def draw_over(
    engine: DrawingEngine,
    wanted: Repaint,
    *,
    prompt: str | None = None,
    num_images: int = 1,
    seed: int | None = None,
    negative_prompt: str | None = None,
    sampling: SamplingParams,
    seamless: bool = False,
) -> tuple[Repainting, Plan]:
    """Pictures over a given one, and the way from their pixels to the whole picture (`Plan.frame`).

    Raises InvalidRequest, NotSupported, and what `engine.submit` raises.
    """
    prompt, negative_prompt, sampling = wanted.words(prompt, negative_prompt, sampling)
    request = GenerationRequest(
        prompt=prompt,
        images=image_keys(num_images, seed),
        sampling=sampling,
        negative_prompt=negative_prompt,
        seamless=seamless or wanted.is_seamless,
    )
    plan = Plan.of(wanted, engine)
    return repaint(engine.submit, plan.holes, request), plan
