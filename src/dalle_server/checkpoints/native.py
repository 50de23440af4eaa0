"""Our own form of a checkpoint: opened strictly, written atomically. See checkpoint.py for the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle_server.checkpoints.atomic import replaced_directory
from dalle_server.checkpoints.checkpoint import FORMAT, Checkpoint
from dalle_server.checkpoints.digest import SUMS_NAME, promised_sums, sha256_file, write_sums
from dalle_server.checkpoints.model_config import check_config, model_config, read_json
from dalle_server.checkpoints.published.tokenizer_files import WORD_FREQUENCY
from dalle_server.checkpoints.tensor_file import (
    Array,
    LazyTensor,
    Progress,
    check_tensors,
    open_tensors,
    write_tensors,
)
from dalle_server.checkpoints.tensor_names import vqgan_decoder_tensors, vqgan_encoder_tensors
from dalle_server.errors import CheckpointError
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.config import ModelConfig

CONFIG = "config.json"
TRANSFORMER = "transformer.safetensors"
VQGAN = "vqgan.safetensors"
TOKENIZER = "tokenizer.json"
ENCODER_TENSOR = "quant_conv.weight"  # of the VQGAN: who has it has the whole encoder

Tensors = Mapping[str, Array | LazyTensor]


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a native checkpoint: tensors are views of memory-mapped files.

    Raises CheckpointError naming the file or tensor at fault: missing, unknown, of another shape or
    dtype, or not matching SHA256SUMS (checked when the folder has one; `write_native` writes it).
    """
    path = Path(path)
    raw = read_json(path / CONFIG)
    if raw.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / CONFIG}: format is {raw.get('format')!r}, not {FORMAT}; this is not a native checkpoint of"
            f" this version (Flax and min-dalle folders are converted first)"
        )
    config = model_config(str(path / CONFIG), raw)
    check_config(str(path / CONFIG), config)
    if not (path / TOKENIZER).is_file():
        raise CheckpointError(f"{path / TOKENIZER} is missing")
    transformer, vqgan = open_tensors(path / TRANSFORMER), open_tensors(path / VQGAN)
    check_native(str(path), config, transformer, vqgan)
    try:
        digest = _weights_digest(config, _verified_sums(path))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return Checkpoint(path, config, transformer, vqgan, digest)


@dataclass(frozen=True, slots=True)
class Peek:
    """What a native checkpoint's small files say."""

    config: ModelConfig
    digest: str  # as SHA256SUMS promises it; empty where there is none
    size_bytes: int
    vqgan_names: frozenset[str]  # of its tensors


def peek(path: Path) -> Peek:
    """Reads no weights and checks none. Raises CheckpointError for a config that cannot be read."""
    config = model_config(str(path / CONFIG), read_json(path / CONFIG))
    check_config(str(path / CONFIG), config)
    try:
        sums = promised_sums(path / SUMS_NAME)
        size_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        names = frozenset(open_tensors(path / VQGAN))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    digest = _weights_digest(config, sums) if {TRANSFORMER, VQGAN} <= sums.keys() else ""
    return Peek(config, digest, size_bytes, names)


def write_native(
    target: Path | str,
    config: ModelConfig,
    transformer: Tensors,
    vqgan: Tensors,
    tokenizer_files: Mapping[str, Path | bytes],
    *,
    source: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a native checkpoint whole or not at all, one tensor in memory at a time.

    `tokenizer_files` maps names to files or contents; `tokenizer.json` must be among them. `source`
    is written down in config.json for the reader's benefit. Raises CheckpointError for tensors that
    do not fit the config, and for an existing target unless `overwrite`.
    """
    target = Path(target)
    if TOKENIZER not in tokenizer_files:
        raise CheckpointError(f"cannot write {target}: {TOKENIZER} is missing")
    check_config(str(target), config)
    check_native(str(target), config, transformer, vqgan)
    total = sum(tensor.nbytes for tensors in (transformer, vqgan) for tensor in tensors.values())
    report = _added_up(progress, total)
    with replaced_directory(target, overwrite=overwrite, needed_bytes=total) as partial:
        write_tensors(partial / TRANSFORMER, _in_order(transformer, config.transformer.tensors()), report)
        stored = vqgan_decoder_tensors(config.vqgan) | vqgan_encoder_tensors(config.vqgan)
        write_tensors(partial / VQGAN, _in_order(vqgan, stored), report)
        for name, content in tokenizer_files.items():
            (partial / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        described = {"format": FORMAT, **({"source": dict(source)} if source else {}), **config.to_dict()}
        (partial / CONFIG).write_text(json.dumps(described, indent=2) + "\n", "utf-8")
        write_sums(partial)
    return target


def _added_up(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Bytes of each tensor written → progress over both files."""
    done = 0

    def report(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress:
            progress("writing", done, total)

    return report


def check_native(where: str, config: ModelConfig, transformer: Tensors, vqgan: Tensors) -> None:
    """Raises CheckpointError unless these are exactly the config's tensors."""
    check_tensors(f"{where}: {TRANSFORMER}", transformer, config.transformer.tensors())
    expected = vqgan_decoder_tensors(config.vqgan)
    encoder = vqgan_encoder_tensors(config.vqgan)
    if not vqgan.keys().isdisjoint(encoder):
        expected = expected | encoder
    check_tensors(f"{where}: {VQGAN}", vqgan, expected)


def _in_order(tensors: Tensors, names: Mapping[str, Any]) -> Tensors:
    # The order of the names, whatever the source's: equal weights give equal files.
    return {name: tensors[name] for name in names if name in tensors}


def _verified_sums(path: Path) -> dict[str, str]:
    sums = {name: sha256_file(path / name) for name in (TRANSFORMER, VQGAN)}
    listed = path / SUMS_NAME
    if not listed.exists():
        return sums
    promised = promised_sums(listed)
    for name in (CONFIG, TRANSFORMER, VQGAN, TOKENIZER, *({WORD_FREQUENCY} & promised.keys())):
        found = sums.get(name) or sha256_file(path / name)
        if promised.get(name) != found:
            raise CheckpointError(
                f"{path / name} does not match {SUMS_NAME}: the file is damaged or was changed;"
                f" copy it again, or delete the folder if it was converted"
            )
    return sums


def _weights_digest(config: ModelConfig, sums: Mapping[str, str]) -> str:
    described = config.to_dict()
    del described["name"]
    described.pop("max_condition_scale", None)  # about what is asked for, not about what is drawn
    if config.family == DalleBartConfig.family:
        del described["family"]  # digests are older than the word, and pictures name them
    text = json.dumps(described, sort_keys=True) + "".join(sums[name] for name in (TRANSFORMER, VQGAN))
    return hashlib.sha256(text.encode()).hexdigest()
