"""The original's class: a model that turns a text into pictures. And how an engine is put together from settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image
from pydantic import ValidationError

from dalle_server.checkpoints import find_checkpoint, open_checkpoint
from dalle_server.checkpoints.licence import tell_licence
from dalle_server.config import (
    DEFAULT_IMG_OUTPUT_DIR,
    Settings,
    config_error,
    parse_arg_boolean,
    parse_arg_dalle_version,
)
from dalle_server.drawing.form import Form, draw_new
from dalle_server.drawing.repaint import Repaint, keep_rows_of
from dalle_server.drawing.repainting import draw_over
from dalle_server.drawn import result_of
from dalle_server.engine.engine import Engine
from dalle_server.engine.runners.base import Runner
from dalle_server.engine.runners.choice import RunnerSettings
from dalle_server.engine.runners.select import choose_runner
from dalle_server.engine.stats import Observer
from dalle_server.generation import Generation
from dalle_server.pictures.canvas import read_file
from dalle_server.request import GenerationRequest, SamplingParams, require_words
from dalle_server.text import open_tokenizer
from dalle_server.variants import ModelSize

__all__ = [
    "DEFAULT_IMG_OUTPUT_DIR",
    "DalleModel",
    "ModelSize",
    "load_engine",
    "parse_arg_boolean",
    "parse_arg_dalle_version",
]

PictureFile = Path | str | bytes | Image.Image  # a path, a file's bytes, or an opened picture
Progress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all

logger = logging.getLogger(__name__)


def load_engine(
    settings: Settings,
    observer: Observer | None = None,
    on_fatal: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
    download: bool = True,
) -> Engine:
    """Find the weights (converting them once, and downloading them if `download`), choose what runs them, and build
    an engine around it.

    The engine is not started. Raises WeightsNotFound, CheckpointError, ConfigError.
    """
    wanted: ModelSize | Path = settings.model_dir or ModelSize.parse(settings.model_version)
    found = find_checkpoint(wanted, cache_dir=settings.cache_dir, progress=progress, download=download)
    checkpoint = open_checkpoint(found)
    logger.info("model: %s from %s, weights %s", checkpoint.config.name, checkpoint.path, checkpoint.digest[:12])
    tell_licence(checkpoint, settings.cache_dir)

    def make_runner() -> Runner:
        return choose_runner(checkpoint, RunnerSettings.of(settings))

    return Engine(
        make_runner(),
        open_tokenizer(checkpoint),
        digest=checkpoint.digest,
        max_waiting_images=settings.max_waiting_images,
        make_runner=make_runner,
        observer=observer,
        on_fatal=on_fatal,
    )


class DalleModel:
    """`DalleModel(ModelSize.MINI).generate_images("a red apple", 4)` → four pictures. Thread-safe.

    Keyword arguments are settings (docs/configuration.md): model_dir, device, dtype, num_threads, … Raises
    WeightsNotFound, CheckpointError, and ConfigError for a setting that is unknown or senseless.
    """

    def __init__(self, model_version: ModelSize | str = ModelSize.MINI, **settings: Any):
        """`model_version` may also be a size's name, such as "nano"."""
        size = model_version if isinstance(model_version, ModelSize) else ModelSize.parse(model_version)
        try:
            checked = Settings.model_validate({"model_version": size.folder_name, **settings})
        except ValidationError as error:
            raise config_error(error, {}) from None
        self._engine = load_engine(checked)
        self._engine.start()

    def generate_images(
        self,
        text: str,
        num_images: int,
        seed: int | None = None,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        condition_scale: float | None = None,
        negative_prompt: str = "",
        size: str | None = None,
        fit: str | None = None,
        seamless: bool = False,
    ) -> list[Image.Image]:
        """RGB pictures; the same seed draws the same ones. `seamless`: opposite edges meet.

        `size` is WIDTHxHEIGHT in pixels, the model's own if left out; another shape than the model's is painted by a
        sliding window, or reached by the `fit` "crop" or "stretch". Raises InvalidRequest, GenerationFailed.
        """
        sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, condition_scale=condition_scale)
        request = GenerationRequest.of(
            text, num_images, seed, sampling=sampling, negative_prompt=negative_prompt, seamless=seamless
        )
        form = Form.of(size, fit)
        drawn = draw_new(self.submit, request, form, self._engine.config.picture)
        return [form.picture(image.pixels, drawn) for image in result_of(drawn)]

    def edit_image(
        self,
        image: PictureFile,
        text: str,
        num_images: int = 1,
        seed: int | None = None,
        *,
        mask: PictureFile | None = None,
        strength: float | None = None,
        candidates: int | None = None,
        grow: int = 0,
        negative_prompt: str = "",
        seamless: bool = False,
        **sampling: Any,
    ) -> list[Image.Image]:
        """The picture with a part of it painted anew: what `mask` (or the picture itself) has transparent, or white
        where nothing is; all of it without a mask, as far as `strength` (0 keeps it, 1 ignores it) says.

        `grow`: so many tokens around the mask are painted too, for the sake of those inside: outside the mask every
        pixel is the given one. `sampling`: temperature, top_k, top_p, condition_scale. The bytes of a file that is ours
        tell more than its pixels: prefer a path to an opened picture. Raises InvalidRequest, NotSupported where the
        weights have no encoder, GenerationFailed.
        """
        require_words(text)
        wanted = Repaint.read(
            _read(image), None if mask is None else _read(mask), strength=strength, candidates=candidates, grow=grow
        )
        return self._draw_over(wanted, text, num_images, seed, negative_prompt, seamless, sampling)

    def vary_image(
        self,
        image: PictureFile,
        num_images: int = 1,
        seed: int | None = None,
        *,
        text: str | None = None,
        strength: float | None = None,
        candidates: int | None = None,
        negative_prompt: str | None = None,
        seamless: bool = False,
        **sampling: Any,
    ) -> list[Image.Image]:
        """The whole picture drawn anew, by half if no `strength` says otherwise. Its own text, if it is ours and no
        other is given. Raises as `edit_image` does.
        """
        wanted = Repaint.variation(_read(image), strength=strength, candidates=candidates)
        return self._draw_over(wanted, text, num_images, seed, negative_prompt, seamless, sampling)

    def branch_image(
        self,
        image: PictureFile,
        keep_rows: int,
        num_images: int = 1,
        seed: int | None = None,
        *,
        text: str | None = None,
        negative_prompt: str | None = None,
        seamless: bool = False,
        **sampling: Any,
    ) -> list[Image.Image]:
        """The picture drawn again from below its first `keep_rows` rows of tokens. Text and sampling that are not
        given are the picture's own, if it is ours. Raises as `edit_image` does.
        """
        keep = keep_rows_of(self._engine.config.picture, keep_rows)
        wanted = Repaint.read(_read(image), keep_tokens=keep)
        return self._draw_over(wanted, text, num_images, seed, negative_prompt, seamless, sampling)

    def _draw_over(
        self,
        wanted: Repaint,
        text: str | None,
        num_images: int,
        seed: int | None,
        negative_prompt: str | None,
        seamless: bool,
        sampling: dict[str, Any],
    ) -> list[Image.Image]:
        drawn, plan = draw_over(
            self._engine,
            wanted,
            prompt=text,
            num_images=num_images,
            seed=seed,
            negative_prompt=negative_prompt,
            sampling=SamplingParams(**sampling),
            seamless=seamless,
        )
        return [Image.fromarray(plan.frame.finished(image.pixels)) for image in result_of(drawn)]

    def submit(self, request: GenerationRequest) -> Generation:
        """A request whose events the caller reads: progress, previews, each picture as it is finished."""
        return self._engine.submit(request)

    @property
    def engine(self) -> Engine:
        return self._engine

    def close(self) -> None:
        """Cancel what runs and free the memory."""
        self._engine.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(picture: PictureFile) -> bytes | Image.Image:
    """Raises InvalidRequest for a path that cannot be read."""
    return picture if isinstance(picture, (bytes, Image.Image)) else read_file(Path(picture))
