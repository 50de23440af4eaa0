"""Janus-Pro's published forms become one native checkpoint, or an error that names what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dalle_server.checkpoints import open_checkpoint
from dalle_server.checkpoints.convert import CheckpointForm, convert, detect_form
from dalle_server.checkpoints.licence import tell_licence
from dalle_server.checkpoints.published.janus_names import is_left_out, native_name
from dalle_server.checkpoints.tensor_file import open_tensors, write_tensors
from dalle_server.errors import CheckpointError
from dalle_server.families.janus import JanusConfig
from tests.families.janus_goldens import DATA, converted
from tests.runners.random_checkpoint import random_checkpoint

MANIFESTS = DATA / "manifests"


def copy_of(form: str, target: Path, **changes: Any) -> Path:
    """A published folder, with keys of its language config changed or, for None, left out."""
    shutil.copytree(DATA / form, target)
    config = json.loads((target / "config.json").read_text("utf-8"))
    language = config["language_config" if "language_config" in config else "text_config"]
    language |= changes
    for key in [key for key, value in language.items() if value is None]:
        del language[key]
    (target / "config.json").write_text(json.dumps(config), "utf-8")
    return target


def with_tensors(directory: Path, change: Mapping[str, np.ndarray | None]) -> Path:
    """hf-tiny with tensors added, replaced or, for None, removed."""
    copy_of("hf-tiny", directory)
    tensors = {**open_tensors(directory / "model.safetensors"), **change}
    kept = {name: array for name, array in tensors.items() if array is not None}
    (directory / "model.safetensors").unlink()
    write_tensors(directory / "model.safetensors", kept)
    return directory


@pytest.mark.parametrize("form", ["deepseek-tiny", "hf-tiny"])
def test_a_published_folder_is_known_by_its_config(form: str) -> None:
    assert detect_form(DATA / form) is CheckpointForm.JANUS


def test_all_forms_are_the_same_weights(tmp_path: Path) -> None:
    first, second = converted(tmp_path, "deepseek-tiny"), converted(tmp_path, "hf-tiny")
    assert first.config.transformer == second.config.transformer and first.config.vqgan == second.config.vqgan
    assert first.transformer.keys() == second.transformer.keys() and first.vqgan.keys() == second.vqgan.keys()
    for name in first.transformer:
        np.testing.assert_array_equal(first.transformer[name], second.transformer[name], name)
    assert first.has_encoder
    for name in first.vqgan:
        np.testing.assert_array_equal(first.vqgan[name], second.vqgan[name], name)


def test_shards_of_pickles_with_an_index(tmp_path: Path) -> None:
    source = tmp_path / "sharded"
    source.mkdir()
    for file in (DATA / "deepseek-tiny").iterdir():
        if file.suffix != ".bin":
            shutil.copy(file, source)
    # As the published 7B: half of the language config is left to LlamaConfig's defaults.
    shutil.copy(DATA / "deepseek-tiny-sharded" / "config.json", source)
    state = torch.load(DATA / "deepseek-tiny" / "pytorch_model.bin", weights_only=True)
    names = sorted(state)
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for shard, own in shards.items():
        torch.save({name: state[name] for name in own}, source / shard)
    weight_map = {name: shard for shard, own in shards.items() for name in own}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    whole, sharded = converted(tmp_path, "hf-tiny"), open_checkpoint(convert(source, tmp_path / "from-shards"))
    assert sharded.config.transformer == whole.config.transformer
    np.testing.assert_array_equal(
        sharded.transformer["layers.2.mlp.down_proj.weight"], whole.transformer["layers.2.mlp.down_proj.weight"]
    )


def test_a_key_that_config_leaves_out_means_llamas_default(tmp_path: Path) -> None:
    source = copy_of("hf-tiny", tmp_path / "a", rms_norm_eps=None, rope_theta=None)
    sizes = open_checkpoint(convert(source, tmp_path / "b")).config.transformer
    assert isinstance(sizes, JanusConfig) and (sizes.rms_norm_eps, sizes.rope_theta) == (1e-6, 10000.0)


@pytest.mark.parametrize(
    ("change", "theta"),
    [({"rope_theta": 500.0}, 500.0), ({"rope_theta": None, "rope_parameters": {"rope_theta": 700.0}}, 700.0)],
)
def test_rope_theta_is_read_in_both_spellings(tmp_path: Path, change: dict[str, Any], theta: float) -> None:
    sizes = open_checkpoint(convert(copy_of("hf-tiny", tmp_path / "a", **change), tmp_path / "b")).config.transformer
    assert isinstance(sizes, JanusConfig) and sizes.rope_theta == theta


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling .* is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"num_hidden_layers": 4}, "num_hidden_layers is 4, but the weights say 3"),
        ({"num_attention_heads": 5}, "num_attention_heads 5 do not share hidden_size 64 evenly"),
    ],
)
def test_a_config_that_contradicts_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        convert(copy_of("hf-tiny", tmp_path / "a", **change), tmp_path / "b")
    assert not (tmp_path / "b").exists()


NORM = "model.language_model.norm.weight"
LAYER = "model.language_model.layers.1"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"model.language_model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)},
            r"q_proj.bias \(64,\) is unknown",
        ),
        ({"model.surprise.weight": np.zeros(3, np.float32)}, "model.surprise.weight is unknown"),
        ({NORM: None}, "missing or misshapen"),
        (
            {"model.language_model.layers.1.mlp.up_proj.weight": None},
            r"layers.1.mlp.up_proj.weight \(176, 64\) is missing",
        ),
        ({NORM: np.zeros(65, np.float32)}, "hidden_size is 64, but the weights say 65"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, np.ndarray | None], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        convert(with_tensors(tmp_path / "a", change), tmp_path / "b")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_weights_may_come_in_other_dtypes(tmp_path: Path, dtype: type) -> None:
    tensors = open_tensors(DATA / "hf-tiny" / "model.safetensors")
    source = with_tensors(tmp_path / "a", {name: array.astype(dtype) for name, array in tensors.items()})
    checkpoint = open_checkpoint(convert(source, tmp_path / "b"))
    assert checkpoint.transformer["norm.weight"].dtype == dtype


@pytest.mark.parametrize("size", ["1B", "7B"])
def test_every_published_name_is_known_and_both_forms_agree(size: str) -> None:
    by_form = []
    for form in ("deepseek", "hf"):
        published = json.loads((MANIFESTS / f"{form}-Janus-Pro-{size}.json").read_text("utf-8"))["params"]
        by_form.append(
            {native_name(name, form): tuple(entry[0]) for name, entry in published.items() if not is_left_out(name)}
        )
    assert by_form[0] == by_form[1]
    # The whole set: what a native checkpoint of this size holds, before two tables are folded into one.
    ours = {name for name in by_form[0] if not name.startswith(("vqgan.", "gen_"))} | {"image_embed.weight"}
    d, layers = (2048, 24) if size == "1B" else (4096, 30)
    sizes = JanusConfig(
        d_model=d,
        num_layers=layers,
        num_heads=d // 128,
        num_kv_heads=d // 128,
        ffn_dim=by_form[0]["layers.0.mlp.up_proj.weight"][0],
        vocab_size=102400,
        image_vocab_size=16384,
        image_length=576,
        max_text_length=640,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
    )
    assert ours == sizes.tensors().keys()
    assert all(by_form[0][name] == shape for name, shape in sizes.tensors().items() if name in by_form[0])


def test_the_licence_is_told_once_on_a_machine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = converted(tmp_path)
    for _ in range(2):
        tell_licence(checkpoint, tmp_path / "cache")
    tell_licence(random_checkpoint(), tmp_path / "cache")
    assert caplog.text.count("DeepSeek Model License") == 1 == len(caplog.records)
    (tmp_path / "file").touch()
    tell_licence(checkpoint, tmp_path / "file")
    assert len(caplog.records) == 2, "where nothing can be remembered, it is told again"
