"""What the commands other than `serve` do, with a terminal in front of them."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from dalle_server.checkpoints.hub import pull as hub
from dalle_server.config import Settings
from dalle_server.dalle_model import load_engine
from dalle_server.drawing.form import Form, draw_new
from dalle_server.drawing.repaint import INDEX_BITS
from dalle_server.drawing.replay import ReplaySource, info_text
from dalle_server.drawing.replay import replay as replay_picture
from dalle_server.drawn import Drawn
from dalle_server.engine.engine import Engine
from dalle_server.errors import ConfigError, DalleServerError
from dalle_server.generation import GeneratedImage, unwrap
from dalle_server.pictures.codec import ImageFormat, describe_image, encode_image
from dalle_server.pictures.metadata import PictureMetadata, read_metadata
from dalle_server.pictures.saving import safe_name, write_new, write_whole
from dalle_server.request import GenerationRequest, SamplingParams
from dalle_server.snapshot import Snapshot
from dalle_server.variants import ModelSize

_errors = Console(stderr=True)  # progress goes here, so that standard output stays a list of files


def generate(settings: Settings, arguments: argparse.Namespace) -> int:
    """Prints the path of each picture it has written."""
    request = GenerationRequest.of(
        arguments.prompt,
        arguments.num_images,
        arguments.seed,
        sampling=SamplingParams.of(arguments),
        negative_prompt=arguments.negative_prompt or "",
        seamless=arguments.seamless,
    )
    form = Form.of(arguments.size, arguments.fit, ImageFormat[settings.img_format])
    check_writable(arguments.output)
    with open_engine(settings) as engine:
        generation = draw_new(engine.submit, request, form, engine.config.picture)
        for image in watch(generation):
            told = describe_image(image, generation, engine)
            print(write_picture(arguments.output, form.format, form.file(image.pixels, generation, told), told))
    return 0


def watch(generation: Drawn) -> tuple[GeneratedImage, ...]:
    """Draw a bar until the pictures are there. Ctrl+C cancels."""
    snapshot = Snapshot()
    with _token_bar() as advance:
        try:
            for event in generation.events():
                if event is not None:
                    snapshot = snapshot.fold(event)
                if snapshot.progress is not None:
                    advance(snapshot.tokens_done, snapshot.progress.num_tokens)
        except KeyboardInterrupt:
            generation.cancel("interrupted")
            raise
    return unwrap(snapshot.end)


def write_picture(directory: Path, kind: ImageFormat, data: bytes, told: PictureMetadata) -> Path:
    """DIRECTORY/PROMPT-SEED-INDEX.png, which no other file's place is taken for."""
    name = f"{safe_name(told.prompt)}-{told.seed}-{told.image_index % 2**INDEX_BITS}"
    try:
        return write_new(directory, name, kind.value, data)
    except OSError as error:
        raise DalleServerError(f"cannot write to {directory}: {error.strerror or error}") from None


def _write_file(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise DalleServerError(f"cannot write {path}: {error.strerror or error}") from None


def check_writable(directory: Path) -> None:
    """Before a model is loaded for nothing. Makes the directory. Raises ConfigError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write to {directory} ({error.strerror or error}); name another place with --output", param="output"
        ) from None


def pull(settings: Settings, arguments: argparse.Namespace) -> int:
    size = ModelSize.parse(arguments.model)
    with _byte_bars() as progress:
        directory = hub.pull(size, progress, cache_dir=settings.cache_dir, mirror=arguments.mirror)
    print(directory)
    return 0


def models(settings: Settings, _: argparse.Namespace) -> int:
    table = Table("Model", "State", "Download", "Disk", "Licence", Column("Where", overflow="fold"))
    for status in hub.list_models(settings.cache_dir):
        table.add_row(
            status.size.folder_name,
            status.state,
            _shown_bytes(status.download_bytes),
            _shown_bytes(status.weights_bytes),
            status.licence,
            str(status.path or ", ".join(status.repositories)),
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


def _shown_bytes(count: int) -> str:
    return "–" if count == 0 else f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def info(files: Sequence[Path]) -> int:
    """Of all that can be read; of the others what is wrong. Raises what is wrong with the last of them."""
    wrong: DalleServerError | None = None
    for file in files:
        try:
            told = info_text(read_metadata(file))
        except DalleServerError as error:
            if wrong is not None:
                _errors.print(wrong.message, markup=False, highlight=False, soft_wrap=True)
            wrong = error
            continue
        print(f"== {file}\n{told}" if len(files) > 1 else told)
    if wrong is not None:
        raise wrong
    return 0


def replay(settings: Settings, arguments: argparse.Namespace) -> int:
    """Exit code 1 unless the weights are those that the picture names and the tokens are the same."""
    metadata = read_metadata(arguments.file)
    if arguments.output is not None:
        if arguments.output.is_dir():
            raise ConfigError(f"--output {arguments.output} is a directory; name a file in it", param="output")
        format = _format_of(arguments.output)
        check_writable(arguments.output.parent)
    with open_maker(metadata, settings, download=arguments.download) as engine:
        again = replay_picture(metadata, engine, ReplaySource(arguments.source))
        if arguments.output is not None:
            metadata = metadata if again.same_recipe else describe_image(again.image, again.generation, engine)
            _write_file(arguments.output, encode_image(again.image.pixels, format, metadata=metadata))
        print(again.verdict)
        if arguments.output is not None:
            print(arguments.output)
    return 0 if again.same_recipe else 1


def _format_of(file: Path) -> ImageFormat:
    endings = {".png": ImageFormat.PNG, ".jpg": ImageFormat.JPEG, ".jpeg": ImageFormat.JPEG, ".webp": ImageFormat.WEBP}
    if file.suffix.lower() not in endings:
        raise ConfigError(f"--output {file} must end in one of {', '.join(endings)}: what kind it is", param="output")
    return endings[file.suffix.lower()]


def open_maker(
    metadata: PictureMetadata | None, settings: Settings, *, download: bool
) -> AbstractContextManager[Engine]:
    """The engine that the settings name, else the one that the picture names, where it goes by a name we know.

    A stranger's file must not start a download: that is for --model_version or --download to ask.
    """
    is_named = bool({"model_version", "model_dir"} & settings.model_fields_set)
    if metadata is None or is_named:
        return open_engine(settings)
    if metadata.model in {size.folder_name for size in ModelSize}:
        settings = settings.model_copy(update={"model_version": metadata.model})
    return open_engine(settings, download=download)


@contextmanager
def open_engine(settings: Settings, *, download: bool = True) -> Iterator[Engine]:
    with _byte_bars() as progress, _errors.status("loading the model"):
        engine = load_engine(settings, progress=progress, download=download)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@contextmanager
def _token_bar() -> Iterator[Callable[[int, int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_errors, transient=True) as bar:
        task = bar.add_task("writing tokens", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _byte_bars() -> Iterator[Callable[[str, int, int], None]]:
    """One bar for each thing that is downloaded or converted."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance
