"""min-dalle's pickles: the tiny set its own converter made, and sets that go wrong."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dalle_server.checkpoints import Checkpoint, atomic, convert, open_checkpoint
from dalle_server.checkpoints.native import VQGAN
from dalle_server.checkpoints.published import min_dalle, unpickle
from dalle_server.checkpoints.published.min_dalle import _source
from dalle_server.checkpoints.tensor_file import open_tensors
from dalle_server.checkpoints.tensor_names import vqgan_decoder_tensors
from dalle_server.errors import CheckpointError
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.config import VQGANConfig
from dalle_server.text import TextTokenizer

torch = pytest.importorskip("torch")

PARITY = Path(__file__).parents[1] / "data" / "parity"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A writable copy of the tiny set."""
    names = ("encoder.pt", "decoder.pt", "detoker.pt", "vocab.json", "merges.txt", "dims.json")
    (tmp_path / "set").mkdir()
    for name in names:
        shutil.copy(PARITY / "min-dalle-tiny" / name, tmp_path / "set" / name)
    return tmp_path / "set"


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Checkpoint:
    return open_checkpoint(convert(PARITY / "min-dalle-tiny", tmp_path_factory.mktemp("min_dalle") / "native"))


def test_equals_the_flax_weights_it_was_made_from(tmp_path, converted):
    ours = converted
    flax = open_checkpoint(convert(PARITY / "tiny-mega-fp16", tmp_path / "b"))
    assert ours.transformer.keys() == flax.transformer.keys()
    assert all(np.array_equal(ours.transformer[name], flax.transformer[name]) for name in flax.transformer)
    assert all(np.array_equal(array, flax.vqgan[name]) for name, array in ours.vqgan.items())
    assert "quant_conv.weight" not in ours.vqgan
    assert ours.config.transformer == flax.config.transformer


def test_a_clone_of_the_mirror_describes_mini_in_a_file_of_its_own(tiny: Path, tmp_path: Path):
    dims = json.loads((tiny / "dims.json").read_text())
    (tiny / "dims.json").unlink()
    for name in ("encoder.pt", "decoder.pt", "vocab.json", "merges.txt"):
        path = tiny / name
        path.rename(tiny / f"{path.stem}_mini{path.suffix}")
    (tiny / "config_mini.json").write_text(json.dumps(dims), encoding="utf-8-sig")
    (tiny / "config.json").write_text(json.dumps(dims | {"encoder_layers": 24}))  # Mega's
    config = json.loads((convert(tiny, tmp_path / "native") / "config.json").read_text())
    assert config["transformer"]["encoder_attention_heads"] == dims["encoder_attention_heads"]


def test_what_a_kill_while_unpickling_leaves_is_known_as_the_targets(tiny: Path, tmp_path: Path, monkeypatch):
    """remove_partials finds it by name, when the same is converted again."""
    target, left = tmp_path / "native", []

    def killed(sources, targets, *_, **__):
        left.extend(tmp_path.glob(".native.*.partial"))
        assert left == [path.parent for path in targets[:1]]
        raise KeyboardInterrupt

    monkeypatch.setattr(min_dalle, "unpickle", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(tiny, target)
    left[0].mkdir()
    atomic.remove_partials(target)
    assert not left[0].exists()


def test_a_full_disk_while_unpickling_is_told(tiny: Path, tmp_path: Path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpickle, "write_tensors", full)
    target = tmp_path / "cache" / ".native.x.partial" / "encoder.safetensors"
    says = rf"encoder\.pt holds cannot be written to {tmp_path / 'cache'}: No space left .* --cache_dir"
    with pytest.raises(CheckpointError, match=says):
        unpickle.main("", str(tiny / "encoder.pt"), str(target))


def test_what_lies_in_the_working_directory_is_not_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "numpy.py").write_text("raise SystemExit('a stranger was run')")
    monkeypatch.chdir(tmp_path / "elsewhere")
    open_checkpoint(convert(tiny, tmp_path / "native"))


def test_the_tokenizer_comes_from_its_two_files(converted):
    text = TextTokenizer.from_checkpoint(converted)
    record = json.loads((PARITY / "text_goldens.json").read_text())["records"][0]
    assert text.encode(record["prompt"]).ids.tolist() == record["input_ids"]


def test_true_image_vocabulary(tmp_path):
    vqgan = PARITY / "min-dalle-tiny"
    config = open_checkpoint(convert(PARITY / "min-dalle-vocab-true", tmp_path / "n", vqgan=vqgan)).config
    sizes = config.sizes(DalleBartConfig)
    assert sizes.image_vocab_size == 16415 and sizes.decoder_start_token_id == 16384


def test_released_shapes_need_no_dims():
    """From the true shapes alone: heads of 64, and 16384 starts a picture."""
    manifest = {name: json.loads((PARITY / "manifests" / f"{name}.json").read_text()) for name in MANIFESTS}
    vqgan_config = VQGANConfig.from_dict(manifest[MANIFESTS[2]]["config"])
    detokenizer = {
        name.removeprefix("quantize."): hollow(shape) for name, shape in vqgan_decoder_tensors(vqgan_config).items()
    }
    for name in MANIFESTS[:2]:
        expected = DalleBartConfig.from_dict(manifest[name]["config"])
        tensors = expected.tensors()
        encoder = {n[8:]: hollow(shape) for n, shape in tensors.items() if n.startswith("encoder.")}
        decoder = {
            n.removeprefix("decoder."): hollow(shape) for n, shape in tensors.items() if not n.startswith("encoder.")
        }
        found = _source(Path("nowhere"), name, [encoder, decoder, detokenizer], {}).config
        assert found.transformer == expected and found.vqgan == vqgan_config


MANIFESTS = ("mini-1", "mega-1", "vqgan_imagenet_f16_16384")


def hollow(shape):
    return np.broadcast_to(np.float16(0), shape)


def test_the_detokenizer_may_lie_beside(tmp_path, tiny):
    (tmp_path / "vqgan").mkdir()
    shutil.move(tiny / "detoker.pt", tmp_path / "vqgan" / "detoker.pt")
    assert (convert(tiny, tmp_path / "n") / VQGAN).is_file()


def test_the_mirrors_suffix(tmp_path, tiny):
    for name in ("encoder.pt", "decoder.pt", "vocab.json", "merges.txt"):
        path = tiny / name
        path.rename(path.with_name(f"{path.stem}_mini{path.suffix}"))
    open_checkpoint(convert(tiny, tmp_path / "n"))
    shutil.copy(tiny / "encoder_mini.pt", tiny / "encoder.pt")
    shutil.copy(tiny / "decoder_mini.pt", tiny / "decoder.pt")
    with pytest.raises(CheckpointError, match="two models"):
        convert(tiny, tmp_path / "m")


@pytest.fixture(scope="module")
def unpickled() -> list[dict[str, np.ndarray]]:
    names = ("encoder.pt", "decoder.pt", "detoker.pt")
    states = [torch.load(PARITY / "min-dalle-tiny" / name, weights_only=True) for name in names]
    return [{name: tensor.numpy() for name, tensor in state.items()} for state in states]


def test_unknown_sizes_ask_for_the_heads(tmp_path, unpickled):
    with pytest.raises(CheckpointError, match=r"number of heads in a dims\.json"):
        _source(tmp_path, "tiny", unpickled, {})


def test_dims_that_contradict_the_weights(tmp_path, unpickled):
    (tmp_path / "dims.json").write_text(json.dumps({"d_model": 64}))
    with pytest.raises(CheckpointError, match="d_model is 64, but the weights say 32"):
        _source(tmp_path, "tiny", unpickled, {})


@pytest.mark.parametrize(
    ("options", "name"), [({"vqgan": "empty"}, "detoker.pt"), ({"file_suffix": "_mini"}, "encoder_mini.pt")]
)
def test_a_file_that_was_asked_for_and_is_missing_is_named(tmp_path, tiny, options, name):
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        convert(tiny, tmp_path / "n", **options)


def test_half_a_set(tmp_path, unpickled):
    with pytest.raises(CheckpointError, match="a tensor is missing or misshapen"):
        _source(tmp_path, "tiny", [{}, *unpickled[1:]], {})


class Hostile:
    """Its pickle would create a file when loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_pickle_does_not_run(tmp_path, tiny):
    trap = tmp_path / "trap"
    torch.save({"embed_tokens.weight": Hostile(trap)}, tiny / "encoder.pt")
    with pytest.raises(
        CheckpointError, match=r"encoder\.pt cannot be read as weights: .* could run its code; get it again"
    ):
        convert(tiny, tmp_path / "n")
    assert not trap.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_code_in_a_plain_pickle_does_not_run(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Hostile(tmp_path / "trap")))
    with pytest.raises(CheckpointError, match=r"a\.pt cannot be read as weights"):
        unpickle.main("", str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "flat dictionary of tensors"),
        ([torch.zeros(1)], "flat dictionary of tensors"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "a.pt: cannot read a, int64 .* expected one of float32"),
    ],
)
def test_pickles_of_something_else(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        unpickle.main("", str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("numpy_dtype", ["float32", "float16", "bfloat16"])
def test_unpickling_keeps_the_bits(tmp_path, numpy_dtype):
    tensor = torch.randn(3, 5).to(getattr(torch, numpy_dtype))
    torch.save({"a": tensor.T}, tmp_path / "a.pt")
    unpickle.main("", str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors"))
    array = open_tensors(tmp_path / "a.safetensors")["a"]
    assert array.dtype.name == numpy_dtype
    assert torch.equal(torch.from_numpy(array.astype(np.float32)), tensor.T.float())


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 0.9999])
def test_truncated_pickles(tmp_path, tiny, fraction):
    content = (tiny / "decoder.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        unpickle.main("", str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors"))
    assert not (tmp_path / "a.safetensors").exists()


def test_without_torch_the_error_says_how_to_get_it(tmp_path, tiny, monkeypatch):
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    (blocker / "torch.py").write_text("raise ImportError('blocked')")
    monkeypatch.setenv("PYTHONPATH", str(blocker))
    with pytest.raises(CheckpointError, match=r"pip install 'dalle-server\[torch\]'"):
        convert(tiny, tmp_path / "n")


def test_torch_is_not_imported_here(tmp_path, tiny):
    program = (
        "import sys; from dalle_server.checkpoints import Checkpoint, convert, open_checkpoint;"
        f"open_checkpoint(convert({str(tiny)!r}, {str(tmp_path / 'n')!r})); assert 'torch' not in sys.modules"
    )
    source_root = Path(__file__).parents[2] / "src"
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(source_root)})
