"""What models there are, without loading one: for a server of several, and for its menu."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import psutil

from dalle_server.checkpoints.cache import is_ready, variant_dir
from dalle_server.checkpoints.convert import CheckpointForm, detect_form
from dalle_server.checkpoints.locate import conversion_of
from dalle_server.checkpoints.native import CONFIG, ENCODER_TENSOR, peek
from dalle_server.config import ALL_MODELS, Settings
from dalle_server.engine.runners.base import LOGPROBS, PULL, SEAMLESS, TOKENIZE
from dalle_server.engine.runners.choice import RunnerSettings, choose
from dalle_server.engine.runners.control_groups import memory_limit
from dalle_server.engine.runners.select import estimated_bytes, needed_bytes
from dalle_server.errors import CheckpointError, ConfigError, WeightsNotFound
from dalle_server.models.card import ModelCard
from dalle_server.variants import VARIANTS, ModelSize, Variant

BUDGET_SHARE = 0.75  # of the memory there is

logger = logging.getLogger(__name__)


def prepared(settings: Settings) -> Settings:
    """With `models` spelled out, and a memory budget where there are several.

    Raises ConfigError where `all` finds nothing.
    """
    if settings.models == (ALL_MODELS,):
        found = _all_here(settings)
        if not found:
            raise ConfigError("models all: there are no models on this machine; pull one", param="models")
        settings = settings.model_copy(update={"models": found})
    if len(settings.models) > 1 and settings.memory_budget is None:
        return settings.model_copy(update={"memory_budget": int(BUDGET_SHARE * _memory_bytes(settings))})
    return settings


def describe(settings: Settings) -> ModelCard:
    """The card of `model_dir` or `model_version`: from the small files of its checkpoint, if it is here.

    Raises WeightsNotFound for a directory that is not there, CheckpointError for one that holds no checkpoint.
    """
    if settings.model_dir is None:
        variant = VARIANTS[ModelSize.parse(settings.model_version)]
        directory = variant_dir(variant.size, settings.cache_dir)
        return _of_native(directory, settings, variant) if is_ready(directory) else _of_variant(variant, settings)
    directory = settings.model_dir
    if not directory.is_dir():
        raise WeightsNotFound(f"model_dir {directory} is not a folder", param="models")
    if detect_form(directory) is CheckpointForm.NATIVE:
        return _of_native(directory, settings, None)
    with suppress(CheckpointError):  # of a folder that lacks something: loading says what
        if is_ready(converted := conversion_of(directory, settings.cache_dir)):
            return _of_native(converted, settings, None)
    size_bytes = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    # Until it is converted: as if it were served as it lies there.
    return ModelCard(
        name=directory.resolve().name,
        title=directory.resolve().name,
        place="on_disk",
        size_bytes=size_bytes,
        memory_bytes=size_bytes,
    )


def _of_native(directory: Path, settings: Settings, variant: Variant | None) -> ModelCard:
    native = peek(directory)
    config, has_encoder = native.config, ENCODER_TENSOR in native.vqgan_names
    return ModelCard(
        name=config.name,
        title=variant.title if variant else config.name,
        licence=variant.licence if variant else "",
        place="on_disk",
        size_bytes=native.size_bytes,
        memory_bytes=needed_bytes(config, RunnerSettings.of(settings), has_encoder=has_encoder),
        family=config.family,
        image_px=config.picture.width_px,
        features=(LOGPROBS, SEAMLESS, PULL, *((TOKENIZE,) if has_encoder else ())),
        digest=native.digest,
    )


def _of_variant(variant: Variant, settings: Settings) -> ModelCard:
    """A name whose weights are not converted yet."""
    from dalle_server.checkpoints.hub.pull import list_models  # the hub's client takes half a second

    (status,) = (status for status in list_models(settings.cache_dir) if status.size is variant.size)
    return ModelCard(
        name=variant.size.folder_name,
        title=variant.title,
        licence=variant.licence,
        place="absent" if status.state == "absent" else "on_disk",
        size_bytes=variant.weights_bytes,
        memory_bytes=estimated_bytes(variant.num_weights, RunnerSettings.of(settings)),
    )


def _all_here(settings: Settings) -> tuple[str, ...]:
    """Names, then directories, the smallest first; but what would be served alone comes first, if it is here."""
    from dalle_server.checkpoints.hub.pull import list_models

    statuses = [status for status in list_models(settings.cache_dir) if status.state != "absent"]
    found = {status.size.folder_name: (status.weights_bytes, status.size.folder_name) for status in statuses}
    default: str = settings.model_version
    name = default
    if settings.model_dir is not None:
        default, name = str(settings.model_dir), describe(settings.model_copy(update={"models": ()})).name.lower()
        found[name] = (0, default)
    first = [default] if name in found else []
    for directory in _newest_first(settings.cache_dir / "converted"):
        try:
            native = peek(directory)
        except CheckpointError as error:
            logger.warning("left out: %s", error.message)
            continue
        # A folder that was converted again, after its weights were updated, leaves its first conversion where it is.
        found.setdefault(native.config.name.lower(), (native.size_bytes, str(directory)))
    if first:
        del found[name]
    return (*first, *(entry for _, entry in sorted(found.values())))


def _newest_first(converted: Path) -> list[Path]:
    ready = [directory for directory in sorted(converted.glob("*")) if is_ready(directory)]
    return sorted(ready, key=lambda directory: (directory / CONFIG).stat().st_mtime_ns, reverse=True)


def _memory_bytes(settings: Settings) -> int:
    """Of the device that models are loaded into; of a container, what it may have."""
    device = choose(settings.runner, settings.device, settings.dtype, cpu_build=settings.cpu_build).device
    if device.startswith("cuda"):
        from dalle_server.engine.runners.sizing import total_gpu_bytes

        return total_gpu_bytes(device)
    total, limit = int(psutil.virtual_memory().total), memory_limit()
    return total if limit is None else min(total, limit)
