"""The atlas of all artwork is rendered once, whoever asks for it at the same time."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from training.scenes import artwork


def test_processes_of_a_parallel_stage_do_not_render_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []

    def render(concepts: object, sprite_px: int, work_dir: Path, cache: Path) -> None:
        rendered.append(cache)
        time.sleep(0.05)
        np.savez(cache, sprites=np.zeros((2, 4, 4, 4), np.uint8), colourful=np.ones(2, bool), mid=np.ones(2))

    monkeypatch.setattr(artwork, "_render_atlas", render)
    with ThreadPoolExecutor(3) as pool:
        atlases = list(pool.map(lambda _: artwork.load_atlas([], sprite_px=4, work_dir=tmp_path / "work"), range(3)))
    assert len(rendered) == 1
    assert all(atlas.sprites.shape == (2, 4, 4, 4) for atlas in atlases)


def test_a_package_is_unpacked_by_any_python_3_11_and_nothing_beside_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pack(command: list[str], *, cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        with tarfile.open(cwd / "things-1.0.tgz", "w:gz") as tar:
            for name in ("package/icons/a.svg", "package/../../elsewhere", str(tmp_path / "absolute")):
                member = tarfile.TarInfo(name)
                member.size = len(name)
                tar.addfile(member, io.BytesIO(name.encode()))
            link = tarfile.TarInfo("package/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc"
            tar.addfile(link)
        return subprocess.CompletedProcess(command, 0, "things-1.0.tgz\n")

    def as_before_3_11_4(self: tarfile.TarFile, path: Path, members: None = None) -> None:
        raise AssertionError("an unfiltered extractall")

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", pack)
    monkeypatch.setattr(tarfile.TarFile, "extractall", as_before_3_11_4)
    folder = artwork.fetch("@some/things", tmp_path / "work")
    assert (folder / "icons" / "a.svg").read_text() == "package/icons/a.svg"
    assert [path.name for path in tmp_path.rglob("*") if not path.is_dir()] == ["a.svg"]
