"""The command, on a tiny model of the reference's own making."""

import importlib.util
import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_server import cli
from dalle_server.cli.parser import cluster_load
from dalle_server.config import Settings
from dalle_server.errors import ConfigError, WeightsNotFound
from dalle_server.pictures.codec import ImageFormat, encode_image
from dalle_server.pictures.metadata import read_metadata
from dalle_server.variants import ModelSize
from tests.families.tiny import TINY

ROOT = Path(__file__).parents[2]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=TINY)
def run(
    request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> Run:
    """run(*words) → exit code, standard output, standard error."""
    monkeypatch.setenv("DALLE_MODEL_DIR", str(TINY[request.param]))
    monkeypatch.setenv("DALLE_CACHE_DIR", str(cache_dir))
    monkeypatch.setenv("DALLE_NUM_THREADS", "1")

    def call(*words: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capfd.readouterr())

    return call


def opened(path: str | Path) -> Image.Image:
    return Image.open(io.BytesIO(Path(path).read_bytes()))


def test_generate_writes_pictures_and_prints_their_paths(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("generate", "a red/apple", "-n", 2, "--seed", 7, "-o", tmp_path / "new", "--img-format", "png")
    assert code == 0
    paths = [Path(line) for line in out.splitlines()]
    assert paths == [tmp_path / "new" / f"a red_apple-7-{index}.png" for index in (0, 1)]
    assert all(opened(path).format == "PNG" for path in paths)


def test_info_and_replay_know_the_picture(run: Run, tmp_path: Path) -> None:
    path = run("generate", "a boat", "--seed", 3, "--top_k", 5, "-o", tmp_path)[1].strip()
    code, out, _ = run("info", path)
    assert code == 0 and "a boat" in out and "top_k 5" in out
    code, out, _ = run("replay", path, "-o", tmp_path / "again.png")
    assert code == 0 and "the same picture, bit for bit" in out
    assert opened(tmp_path / "again.png").size == opened(path).size
    assert run("replay", path, "--source", "tokens")[0] == 0
    code, _, errors = run("replay", path, "--source", "tokens", "-o", "/dev/null/x.png")
    assert code == 2 and "error: cannot write to /dev/null (" in errors
    code, _, errors = run("replay", path, "--source", "tokens", "-o", tmp_path)
    assert code == 2 and "is a directory; name a file in it" in errors
    for name, kind in (("a.JPG", "JPEG"), ("a.webp", "WEBP")):
        assert run("replay", path, "--source", "tokens", "-o", tmp_path / name)[0] == 0
        assert opened(tmp_path / name).format == kind and read_metadata(tmp_path / name).prompt == "a boat"
    code, _, errors = run("replay", path, "-o", tmp_path / "a.gif")
    assert code == 2 and "a.gif must end in one of .png, .jpg, .jpeg, .webp" in errors


def test_info_tells_of_all_files_that_it_can_read(run: Run, tmp_path: Path) -> None:
    path = run("generate", "a boat", "--seed", 3, "-o", tmp_path)[1].strip()
    code, out, errors = run("info", tmp_path / "gone.png", path, tmp_path / "gone too.png")
    assert code == 2 and "a boat" in out
    assert "gone.png does not exist" in errors and "gone too.png does not exist" in errors


def test_a_home_is_found_where_no_shell_puts_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, errors = run("generate", "a cat", "--seed", "3", "--model_version", "nano", "--output=~/drawn")
    assert code == 0, errors
    assert Path(out.strip()).parent == tmp_path / "drawn" and Path(out.strip()).is_file()


def test_generate_replaces_no_other_picture(run: Run, tmp_path: Path) -> None:
    def written(*words: object) -> Path:
        code, out, errors = run("generate", *words, "--seed", 1, "--img_format", "png", "-o", tmp_path)
        assert code == 0, errors
        return Path(out.strip())

    slash, colon, warmer = written("a/b"), written("a:b"), written("a/b", "--temperature", 2)
    assert [path.name for path in (slash, colon, warmer)] == ["a_b-1-0.png", "a_b-1-0 (2).png", "a_b-1-0 (3).png"]
    long = [written("a fox " * 40 + end) for end in ("in snow", "in rain")]
    assert len({slash, colon, warmer, *long}) == len(list(tmp_path.iterdir())) == 5
    assert written("a:b") == colon and len(list(tmp_path.iterdir())) == 5  # the same picture again


def test_a_file_downloads_only_what_is_asked_for(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(run("generate", "a boat", "--seed", 3, "--img_format", "png", "-o", tmp_path)[1].strip())
    metadata = read_metadata(path).model_copy(update={"model": "mega"})
    path.write_bytes(encode_image(np.asarray(Image.open(path)), ImageFormat.PNG, metadata=metadata))
    monkeypatch.delenv("DALLE_MODEL_DIR")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    asked: list[ModelSize] = []

    def pull(size: ModelSize, *_: object, **__: object) -> Path:
        asked.append(size)
        raise WeightsNotFound("pulled")

    monkeypatch.setattr("dalle_server.checkpoints.hub.pull.pull", pull)
    for command in (["replay"], ["vary"], ["edit", "--prompt", "a cat"], ["branch", "--keep_rows", "1"]):
        code, _, errors = run(*command, path, "--cache_dir", tmp_path / "empty")
        assert code == 1 and asked == [] and "dalle-server pull mega" in errors and "--download" in errors
        for words in (("--download",), ("--model_version", "mega")):
            assert "pulled" in run(*command, path, "--cache_dir", tmp_path / "empty", *words)[2]
        assert asked == [ModelSize.MEGA] * 2
        asked.clear()


def test_replay_with_other_weights_says_so_and_names_them(run: Run, tmp_path: Path) -> None:
    path = Path(run("generate", "a boat", "--seed", 3, "-o", tmp_path)[1].strip())
    metadata = read_metadata(path).model_copy(update={"weights_digest": "0" * 64})
    other = tmp_path / "other.png"
    other.write_bytes(encode_image(np.asarray(Image.open(path)), ImageFormat.PNG, metadata=metadata))
    code, out, _ = run("replay", other, "--source", "tokens", "-o", tmp_path / "again.png")
    assert code == 1 and "OTHER WEIGHTS" in out
    assert read_metadata(tmp_path / "again.png").weights_digest == read_metadata(path).weights_digest


def test_models_lists_what_there_is(run: Run) -> None:
    code, out, _ = run("models")
    assert code == 0
    assert all(name in out for name in ("nano", "mini", "mega", "mega_full", "kuprel/min-dalle"))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "the following arguments are required: COMMAND"),
        (("serve", "--prot", "1"), 2, "--prot is no flag of dalle-server serve; did you mean --port?"),
        (
            ("generate", "x", "--num-image", "3"),
            2,
            "--num_image is no flag of dalle-server generate; did you mean --num_images?",
        ),
        (("replay", "x", "--zzz"), 2, "is no flag of dalle-server replay; `dalle-server replay --help` lists them"),
        (("serve", "--host", "no.such.host.invalid"), 2, "host 'no.such.host.invalid' is no address of this machine"),
        (("serve", "--port", "x"), 2, "--port: expected a valid integer, not 'x'"),
        (("serve", "--save-to-disk", "perhaps"), 2, "--save_to_disk: expected a boolean word"),
        (("serve", "--replicas", "3:1"), 2, "--replicas: expected a number such as 2, or MIN:MAX"),
        (("serve", "--replicas", "2"), 2, "--replicas runs on a cluster: say which with --cluster"),
        (("serve", "--replica_resources", "CPU"), 2, "--replica_resources: expected CPU=2, GPU=1"),
        (("serve", "--api_keys", "short"), 2, "has fewer than 8 characters"),
        (("serve", "--config", "/nowhere.toml"), 2, "cannot read the configuration file"),
        (("generate", ""), 2, "prompt must not be empty"),
        (("generate", "x", "-n", "0"), 2, "num_images must lie between 1 and 10000, not 0"),
        (("generate", "x", "--model_dir", "/nowhere"), 1, "model_dir /nowhere is not a folder"),
        (("generate", "x", "-o", "/dev/null/x"), 2, "cannot write to /dev/null/x (Not a directory)"),
        (("info", "/nowhere.png"), 2, "nowhere.png does not exist"),
        (("pull", "nano-nano"), 2, "unknown model 'nano-nano'"),
        (("generate", "x", "--output=~no-such-user/x"), 2, "expected a path whose ~ is a known home"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(run: Run, words: tuple[str, ...], code: int, says: str) -> None:
    found, _, errors = run(*words)
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert found == code and len(lines) == 1 and says in lines[0], errors
    assert "Traceback" not in errors


def test_a_cluster_without_ray_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'dalle-server\[cluster\]'"):
        cluster_load(Settings(cluster="auto"))


def test_every_command_explains_itself(run: Run) -> None:
    for command in ("serve", "generate", "pull", "models", "info", "replay"):
        code, out, _ = run(command, "--help")
        assert code == 0 and command in out
    assert "--version" in run("--help")[1]


def test_a_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = launch("app.py", "--host", "127.0.0.1", "--port", port, "--data_dir", tmp_path)
    assert ended.returncode == 1
    assert f"error: port {port} on 127.0.0.1 is in use; stop what listens there" in ended.stderr


def launch(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
