"""What is wrong with a published folder, by accident or on purpose: an error that names it, and nothing is written."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE

from dalle_server.checkpoints.convert import convert
from dalle_server.checkpoints.published import unpickle
from dalle_server.checkpoints.tensor_file import DTYPES, open_tensors, write_tensors
from dalle_server.errors import CheckpointError
from tests.families.janus_goldens import DATA

WEIGHTS = "model.safetensors"
LANGUAGE, GENERATION = "model.language_model", "model.generation"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "hf-tiny", tmp_path / "published"))


@pytest.fixture
def authors_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "deepseek-tiny", tmp_path / "published"))


def refused(folder: Path, says: str) -> None:
    """Twice, because what a first try left behind could help the second."""
    for _ in range(2):
        with pytest.raises(CheckpointError, match=says):
            convert(folder, folder.parent / "native")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    change(config)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def change_tensors(folder: Path, **changes: np.ndarray | None) -> None:
    """By name with `/` for the dots; None takes a tensor away."""
    tensors: dict[str, Any] = dict(open_tensors(folder / WEIGHTS))
    for name, array in changes.items():
        tensors[name.replace("/", ".")] = array
    kept = {name: np.array(array) for name, array in tensors.items() if array is not None}
    every = {**DTYPES, "I64": np.dtype(np.int64), "F64": np.dtype(np.float64), "I8": np.dtype(np.int8)}
    write_tensors(folder / WEIGHTS, kept, dtypes=every)


def language(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["text_config"].__setitem__(key, value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_attention_heads", "4", r"config\.json: num_attention_heads '4'"),
        ("num_attention_heads", 0, r"config\.json: num_attention_heads 0"),
        ("num_attention_heads", -4, r"config\.json: num_attention_heads -4"),
        ("num_attention_heads", 10**30, r"config\.json: num_attention_heads 10{30}"),
        ("num_attention_heads", 64, "num_key_value_heads is 4, but the weights say 64"),
        ("num_attention_heads", [4], r"config\.json: num_attention_heads \[4\]"),
        ("num_key_value_heads", 3, r"num_key_value_heads is 3, but the weights say 4"),
        ("hidden_size", 10**15, r"hidden_size is 10{15}, but the weights say 64"),
        ("num_hidden_layers", 10**15, r"num_hidden_layers is 10{15}, but the weights say 3"),
        ("rms_norm_eps", "small", r"config\.json: rms_norm_eps must be a positive number, not 'small'"),
        ("rms_norm_eps", 0, r"config\.json: rms_norm_eps must be a positive number, not 0"),
        ("rms_norm_eps", 1e-50, r"rms_norm_eps must be from 1e-12"),
        ("rms_norm_eps", math.nan, r"config\.json: rms_norm_eps must be a positive number, not nan"),
        ("rope_theta", -1, r"config\.json: rope_theta must be a positive number, not -1"),
        ("rope_theta", 10**400, r"config\.json: rope_theta must be a positive number"),
        ("rope_theta", True, r"config\.json: rope_theta must be a positive number, not True"),
        ("rope_theta", 0.5, r"rope_theta must be from 1"),
        ("rope_parameters", [1], r"config\.json: rope_parameters holds list, not a JSON object"),
    ],
)
def test_absurd_sizes_in_the_config(folder: Path, key: str, value: object, says: str) -> None:
    change_config(folder, language(key, value))
    refused(folder, says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda config: config.update(text_config=[1]), r"config\.json: text_config holds list"),
        (lambda config: config.update(text_config="x"), r"config\.json: text_config holds str"),
        (lambda config: config.update(vision_config="x"), r"config\.json: vision_config holds str"),
        (lambda config: config.update(vision_config={"num_image_tokens": 35}), "image_length 35 is not a square grid"),
        (lambda config: config.update(vision_config={"num_image_tokens": -36}), "misshapen|whole number"),
        (lambda config: config.update(vision_config={"num_image_tokens": 10**20}), "image_length must be|does not fit"),
        (lambda config: config.update(vision_config={"image_size": 10**20}), "image_length must be|does not fit"),
    ],
)
def test_configs_of_another_shape(folder: Path, change: Callable[[dict[str, Any]], object], says: str) -> None:
    (folder / "processor_config.json").unlink()
    change_config(folder, change)
    refused(folder, says)


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({f"{GENERATION}_aligner/fc1/weight": None}, r"gen_aligner\.fc1\.weight \(64, 8\) is missing"),
        ({f"{GENERATION}_aligner/fc1/weight": zeros(64, 9)}, r"gen_aligner\.fc1\.weight is \(64, 9\) instead of"),
        ({f"{GENERATION}_aligner/fc1/more": zeros(3)}, r"gen_aligner\.fc1\.more \(3,\) is unknown"),
        ({f"{GENERATION}_embeddings/weight": zeros(272)}, "missing or misshapen"),
        ({f"{GENERATION}_embeddings/weight": zeros(100, 8)}, r"lm_head\.weight is \(272, 64\) instead of \(100, 64\)"),
        ({f"{LANGUAGE}/embed_tokens/weight": zeros(600)}, "embeddings of text tokens are misshapen"),
        ({f"{LANGUAGE}/embed_tokens/weight": zeros(600, 63)}, r"embed_tokens\.weight is \(600, 63\)"),
        ({f"{LANGUAGE}/embed_tokens/weight": zeros(100, 64)}, r"tokenizer\.json has an id \d+, but the"),
        ({f"{LANGUAGE}/embed_tokens/weight": None}, "embeddings of text tokens are missing"),
        ({f"{LANGUAGE}/norm/weight": np.float32(1)}, "missing or misshapen"),
        ({f"{LANGUAGE}/layers/0/self_attn/k_proj/weight": zeros(0, 64)}, "num_key_value_heads is 4, but"),
        ({f"{LANGUAGE}/layers/999999999999/x": zeros(1)}, "num_hidden_layers is 3, but the weights say 1000000000000"),
        ({f"{LANGUAGE}/layers/x/y": zeros(1)}, "missing or misshapen"),
        ({"model/vqmodel/decoder/up/999999999999/x": zeros(1)}, "missing or misshapen"),
        ({"model/vqmodel/decoder/up/0/block/0/conv2/weight": zeros(0, 0, 3, 3)}, "misshapen|does not fit|must be"),
        ({"model/vqmodel/quantize/embedding/weight": zeros(272)}, "missing or misshapen"),
        ({"model/vqmodel/surprise": zeros(1)}, r"surprise \(1,\) is unknown"),
        ({"lm_head/weight/more": zeros(1), "surprise": zeros(1)}, "tensor surprise is unknown to Janus-Pro's forms"),
        ({"gen_embed/weight": zeros(272, 8)}, "under another form's name"),
        ({f"{LANGUAGE}/norm/weight": zeros(64, dtype=np.float64)}, r"norm\.weight has dtype F64; expected one of F32"),
        ({f"{LANGUAGE}/norm/weight": zeros(64, dtype=np.int64)}, r"norm\.weight has dtype I64"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(folder: Path, changes: dict[str, np.ndarray | None], says: str) -> None:
    change_tensors(folder, **changes)
    refused(folder, says)


def test_a_tensor_that_makes_no_picture_may_be_anything(folder: Path) -> None:
    change_tensors(folder, **{"model/vision_model/embeddings/position_ids": zeros(1, 7, dtype=np.int64)})
    assert convert(folder, folder.parent / "native").is_dir()


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "..", "", ".", "/etc/passwd", "a\0b", "weights.bin", 7, None]
)
def test_an_index_names_files_of_its_folder_only(folder: Path, shard: object) -> None:
    (folder / WEIGHTS).rename(folder.parent / "secret.safetensors")
    index = {"weight_map": {"a": shard, "b": "model-00001-of-00002.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(CheckpointError, match=r"index\.json names .* no \.safetensors file of its own folder"):
        convert(folder, folder.parent / "native")
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, "secret.safetensors"}


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": "x"}])
def test_an_index_without_a_map(folder: Path, content: object) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(content), "utf-8")
    refused(folder, r"index\.json has no weight_map")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_shard_that_is_missing_is_named(folder: Path, suffix: str) -> None:
    (folder / WEIGHTS).unlink()
    name = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    index = {"weight_map": {"a": f"part-2.{suffix}"}}
    (folder / f"{name}.index.json").write_text(json.dumps(index), "utf-8")
    refused(folder, rf"part-2\.{suffix} is missing")


def test_a_tensor_in_two_shards_is_no_guess(folder: Path) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        shutil.copy(folder / WEIGHTS, folder / name)
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), "utf-8")
    refused(folder, "two files hold a tensor .* which one counts")


def test_declared_sizes_beyond_the_file(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = f"{LANGUAGE}.norm.weight"
    for shape, end in (([1 << 40], 1 << 41), ([1 << 62, 4], 8), ([-1], 128)):
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [0, end]}
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
        refused(folder, r"model\.safetensors is not a readable safetensors file")
    (folder / WEIGHTS).write_bytes((1 << 60).to_bytes(8, "little") + content[8:])
    refused(folder, r"model\.safetensors is not a readable safetensors file")


def spoilt(content: bytes) -> Iterator[bytes]:
    dice = np.random.default_rng(14)
    for length in {0, 1, 7, 8, 9, len(content) // 2, len(content) - 1}:
        yield content[:length]
    for _ in range(25):
        changed = bytearray(content)
        changed[dice.integers(min(len(content), 6000))] ^= 1 << dice.integers(8)
        yield bytes(changed)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json"])
def test_files_that_were_cut_or_hit(folder: Path, name: str) -> None:
    """A bit in the numbers, or in words that nobody reads, may pass; anything but a CheckpointError fails the test."""
    content = (folder / name).read_bytes()
    for damaged in spoilt(content):
        (folder / name).write_bytes(damaged)
        try:
            convert(folder, folder.parent / "native")
        except CheckpointError as error:
            assert str(error)
        else:
            assert len(damaged) == len(content) or damaged == content.rstrip()
            shutil.rmtree(folder.parent / "native")
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]


class Hostile:
    """Its pickle would create a file when loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_pickle_does_not_run(authors_folder: Path) -> None:
    trap = authors_folder.parent / "trap"
    torch.save({"gen_embed.weight": Hostile(trap)}, authors_folder / "pytorch_model.bin")
    refused(authors_folder, r"pytorch_model\.bin cannot be read as weights: .* could run its code")


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(1).expand(1 << 20, 1 << 20), r"tensor gen_embed\.weight has \d+ bytes, more than the file"),
        (torch.zeros(4, dtype=torch.int64), r"cannot read gen_embed\.weight, int64 .*; expected one of float32"),
        (torch.zeros(4, 4).to_sparse(), r"cannot read gen_embed\.weight, float32 and torch\.sparse_coo"),
        (torch.zeros(4, dtype=torch.complex64), r"cannot read gen_embed\.weight, complex64"),
    ],
)
def test_tensors_in_a_pickle_that_are_more_than_they_look(
    authors_folder: Path, tensor: torch.Tensor, says: str
) -> None:
    torch.save({"gen_embed.weight": tensor}, authors_folder / "pytorch_model.bin")
    refused(authors_folder, says)


def test_many_views_of_few_numbers(tmp_path: Path) -> None:
    shared = torch.zeros(1 << 16)
    torch.save({f"view{i}": shared for i in range(40)}, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match=r"a\.bin: its tensors have \d+ bytes, but the file only"):
        unpickle.main("", str(tmp_path / "a.bin"), str(tmp_path / "a.safetensors"))
    assert not (tmp_path / "a.safetensors").exists()


def test_what_makes_no_picture_is_not_unpickled(authors_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    unpickle.main("vision_model|aligner", str(authors_folder / "pytorch_model.bin"), str(target))
    names = open_tensors(target).keys()
    assert "gen_aligner.layers.0.weight" in names and not any(name.startswith("vision_model") for name in names)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99, 0.9999])
def test_truncated_pickles(authors_folder: Path, fraction: float) -> None:
    content = (authors_folder / "pytorch_model.bin").read_bytes()
    (authors_folder / "pytorch_model.bin").write_bytes(content[: int(len(content) * fraction)])
    refused(authors_folder, r"pytorch_model\.bin (cannot be read as weights|is not)")


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    Tokenizer(BPE()).save(str(folder / "tokenizer.json"))
    refused(folder, r"tokenizer\.json has no <｜begin▁of▁sentence｜>; is it the tokenizer of these weights")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_mixed_dtypes_are_read(folder: Path, dtype: type) -> None:
    norm = open_tensors(folder / WEIGHTS)[f"{LANGUAGE}.norm.weight"]
    change_tensors(folder, **{f"{LANGUAGE}/norm/weight": norm.astype(dtype)})
    assert convert(folder, folder.parent / "native").is_dir()
