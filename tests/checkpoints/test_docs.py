"""docs/checkpoints.md: what it shows must be so."""

import re
from pathlib import Path

from dalle_server.checkpoints import checkpoint, digest, native
from dalle_server.variants import VARIANTS

from .flax_writer import write_flax

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text("utf-8")


def test_the_python_example_runs(tmp_path, monkeypatch, capsys, tiny_config, transformer, vqgan):
    source = write_flax(tmp_path / "path" / "to" / "flax", tiny_config, transformer, vqgan, stacked=True)
    (source / "vqgan").rename(tmp_path / "path" / "to" / "vqgan")
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example, "checkpoints.md", "exec"), {})
    width, shown_digest = capsys.readouterr().out.split()
    assert width == "8" and len(shown_digest) == 64


def test_every_variant_and_repository_is_named():
    for variant in VARIANTS.values():
        assert f"`{variant.size.folder_name}`" in PAGE
        for publication in filter(None, (variant.published, variant.mirror)):
            assert publication.transformer.repository in PAGE
            assert publication.vqgan is None or publication.vqgan.repository in PAGE


def test_every_file_of_the_native_form_is_listed(native_dir):
    for path in native_dir.iterdir():
        assert re.search(rf"^{re.escape(path.name)} ", PAGE, re.MULTILINE), path.name
    assert f'"format": {checkpoint.FORMAT}' in PAGE
    assert digest.CACHE_NAME in PAGE and native.SUMS_NAME in PAGE  # type: ignore[attr-defined]
