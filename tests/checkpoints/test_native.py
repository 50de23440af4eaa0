import hashlib
import json
import os
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dalle_server.checkpoints import digest as digest_module
from dalle_server.checkpoints import open_checkpoint, write_native
from dalle_server.checkpoints.digest import CACHE_NAME, sha256_file, write_sums
from dalle_server.checkpoints.native import SUMS_NAME, TRANSFORMER, VQGAN, WORD_FREQUENCY  # type: ignore[attr-defined]
from dalle_server.checkpoints.tensor_names import vqgan_encoder_tensors
from dalle_server.errors import CheckpointError

from .conftest import TOKENIZER_FILES, random_tensors


def test_round_trip(native_dir, tiny_config, transformer, vqgan):
    checkpoint = open_checkpoint(native_dir)
    assert checkpoint.config == tiny_config
    for stored, original in ((checkpoint.transformer, transformer), (checkpoint.vqgan, vqgan)):
        assert list(stored) == list(original)
        for name in original:
            np.testing.assert_array_equal(stored[name], original[name])
            assert not stored[name].flags.owndata
    for stored in (checkpoint.transformer, checkpoint.vqgan):
        assert not any(tensor.flags.writeable for tensor in stored.values())


def test_the_safetensors_library_reads_what_we_write(native_dir, transformer):
    loaded = load_file(native_dir / TRANSFORMER)
    assert loaded.keys() == transformer.keys()
    np.testing.assert_array_equal(loaded["lm_head.weight"], transformer["lm_head.weight"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_keeps_its_bits(tmp_path, tiny_config, vqgan, dtype):
    halves = random_tensors(tiny_config.transformer.tensors(), dtype)
    stored = open_checkpoint(write_native(tmp_path / "half", tiny_config, halves, vqgan, TOKENIZER_FILES)).transformer
    assert {array.dtype for array in stored.values()} == {np.dtype(dtype)}
    assert all(stored[name].tobytes() == halves[name].tobytes() for name in halves)


def test_the_vqgan_encoder_is_optional_but_never_half_there(tmp_path, tiny_config, transformer, vqgan):
    encoder = random_tensors(vqgan_encoder_tensors(tiny_config.vqgan))
    whole = write_native(tmp_path / "whole", tiny_config, transformer, vqgan | encoder, TOKENIZER_FILES)
    assert "quant_conv.weight" in open_checkpoint(whole).vqgan
    del encoder["encoder.mid.attn_1.q.bias"]
    with pytest.raises(CheckpointError, match=r"encoder\.mid\.attn_1\.q\.bias \(8,\) is missing"):
        write_native(tmp_path / "part", tiny_config, transformer, vqgan | encoder, TOKENIZER_FILES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.final_ln.bias"), r"decoder\.final_ln\.bias \(8,\) is missing"),
        (lambda t: t.update(surprise=np.zeros(3, np.float32)), r"surprise .* is unknown"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T}), r"lm_head\.weight is \(8, 33\) instead of"),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(np.float64)}),
            "lm_head.weight has dtype F64",
        ),
    ],
)
def test_strict_loading_names_the_tensor(native_dir, transformer, change, message):
    changed = dict(transformer)
    change(changed)
    save_file({name: np.ascontiguousarray(array) for name, array in changed.items()}, native_dir / TRANSFORMER)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(native_dir)


@pytest.mark.parametrize("name", ["config.json", TRANSFORMER, VQGAN, "tokenizer.json"])
def test_a_missing_file_is_named(native_dir, name):
    (native_dir / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(native_dir)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("d_model", "8"), ("d_model", 8.0), ("d_model", True), ("encoder_layers", 10**9), ("decoder_layers", 0),
        ("encoder_attention_heads", 0), ("image_length", 5), ("decoder_start_token_id", 33), ("normalize_text", 1),
        ("pad_token_id", -1), ("use_bias", True), ("encoder_vocab_size", None),
    ],
)  # fmt: skip
def test_a_nonsense_config_is_refused(native_dir, key, value):
    raw = json.loads((native_dir / "config.json").read_text())
    raw["transformer"][key] = value
    (native_dir / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError):
        open_checkpoint(native_dir)


def test_another_format_is_refused(native_dir):
    raw = json.loads((native_dir / "config.json").read_text()) | {"format": 2}
    (native_dir / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="format is 2"):
        open_checkpoint(native_dir)


def test_a_failed_write_leaves_nothing(tmp_path, tiny_config, transformer, vqgan, monkeypatch):
    def fail(path, *_args):
        if path.name == VQGAN:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"half")

    monkeypatch.setattr("dalle_server.checkpoints.native.write_tensors", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        write_native(tmp_path / "native", tiny_config, transformer, vqgan, TOKENIZER_FILES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows flushes no folders")
def test_files_and_folders_are_flushed_before_they_count(native_dir, flushed):
    assert {path.stat().st_ino for path in (*native_dir.iterdir(), native_dir, native_dir.parent)} <= set(flushed)


def test_a_full_disk_is_noticed_before_writing(tmp_path, tiny_config, transformer, vqgan, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(CheckpointError, match="free"):
        write_native(tmp_path / "native", tiny_config, transformer, vqgan, TOKENIZER_FILES)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_kept_unless_told(native_dir, tiny_config, transformer, vqgan):
    with pytest.raises(CheckpointError, match="already exists"):
        write_native(native_dir, tiny_config, transformer, vqgan, TOKENIZER_FILES)
    changed = transformer | {"lm_head.weight": transformer["lm_head.weight"] + 1}
    before = open_checkpoint(native_dir).digest
    write_native(native_dir, tiny_config, changed, vqgan, TOKENIZER_FILES, overwrite=True)
    assert open_checkpoint(native_dir).digest != before
    assert [path.name for path in native_dir.parent.iterdir()] == ["native"]


def test_progress_ends_at_the_total(tmp_path, tiny_config, transformer, vqgan):
    seen = []
    write_native(
        tmp_path / "n", tiny_config, transformer, vqgan, TOKENIZER_FILES, progress=lambda *event: seen.append(event)
    )
    assert seen[-1][1] == seen[-1][2] == sum(t.nbytes for t in [*transformer.values(), *vqgan.values()])
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_digest_names_weights_and_not_their_folder(tmp_path, tiny_config, transformer, vqgan):
    backwards = dict(reversed(transformer.items()))
    one = open_checkpoint(write_native(tmp_path / "a", tiny_config, transformer, vqgan, TOKENIZER_FILES))
    two = open_checkpoint(
        write_native(tmp_path / "b", tiny_config, backwards, vqgan, TOKENIZER_FILES, source={"form": "flax"})
    )
    assert one.digest == two.digest and len(one.digest) == 64


class TestDigestCache:
    @pytest.fixture
    def big(self, tmp_path, monkeypatch):
        monkeypatch.setattr(digest_module, "_REMEMBER_FROM_BYTES", 10)
        path = tmp_path / "big"
        path.write_bytes(b"0" * 1000)
        os.utime(path, (1e9, 1e9))
        return path

    def test_is_used_while_the_file_rests(self, big, monkeypatch):
        digest = sha256_file(big)
        assert (big.parent / CACHE_NAME).exists()
        monkeypatch.setattr(digest_module, "hash_file", lambda *_: pytest.fail("hashed again"))
        assert sha256_file(big) == digest

    def test_is_not_trusted_after_a_change_that_keeps_size_and_time(self, big):
        digest = sha256_file(big)
        big.write_bytes(b"1" * 1000)
        os.utime(big, (1e9, 1e9))
        assert sha256_file(big) != digest

    def test_is_not_written_for_a_file_just_changed(self, big):
        os.utime(big)
        sha256_file(big)
        assert not (big.parent / CACHE_NAME).exists()

    def test_survives_damage(self, big):
        digest = sha256_file(big)
        (big.parent / CACHE_NAME).write_text("[1, 2")
        assert sha256_file(big) == digest


def test_sums_catch_changed_words(native_dir):
    """The list that splits hashtags decides pictures, too. One that is put there later is not listed."""
    words = native_dir / WORD_FREQUENCY
    words.write_text("the 3\nof 2\n")
    open_checkpoint(native_dir)
    write_sums(native_dir)
    open_checkpoint(native_dir)
    words.write_text("of 2\nthe 3\n")
    with pytest.raises(CheckpointError, match=f"{WORD_FREQUENCY} does not match"):
        open_checkpoint(native_dir)


def test_sums_catch_a_changed_weight(native_dir):
    path = native_dir / TRANSFORMER
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{TRANSFORMER} does not match"):
        open_checkpoint(native_dir)
    (native_dir / SUMS_NAME).unlink()
    open_checkpoint(native_dir)  # without sums nobody can know


def test_sums_that_cannot_be_read_are_an_error_of_the_checkpoint(native_dir):
    (native_dir / SUMS_NAME).unlink()
    (native_dir / SUMS_NAME).mkdir()
    with pytest.raises(CheckpointError, match=f"cannot read .*{SUMS_NAME}"):
        open_checkpoint(native_dir)


def rewrite_config(native_dir, change):
    (native_dir / SUMS_NAME).unlink()
    raw = json.loads((native_dir / "config.json").read_text())
    change(raw)
    (native_dir / "config.json").write_text(json.dumps(raw))


def test_a_checkpoint_older_than_families_is_a_dalle_bart_of_the_same_digest(native_dir, tiny_config):
    written = open_checkpoint(native_dir)
    assert json.loads((native_dir / "config.json").read_text())["family"] == "dalle-bart"
    rewrite_config(native_dir, lambda raw: raw.pop("family"))
    older = open_checkpoint(native_dir)
    assert older.config == tiny_config and older.config.family == "dalle-bart"
    assert older.digest == written.digest


def test_the_digest_is_what_pictures_have_named_since_the_first_version(native_dir):
    raw = json.loads((native_dir / "config.json").read_text())
    described = json.dumps({key: raw[key] for key in ("transformer", "vqgan", "sampling")}, sort_keys=True)
    sums = "".join(sha256_file(native_dir / name) for name in (TRANSFORMER, VQGAN))
    assert open_checkpoint(native_dir).digest == hashlib.sha256((described + sums).encode()).hexdigest()


def test_how_much_guidance_a_model_bears_is_read_and_written(native_dir, tmp_path, tiny_config, transformer, vqgan):
    assert "max_condition_scale" not in json.loads((native_dir / "config.json").read_text())
    bearing = replace(tiny_config, max_condition_scale=1.5)
    opened = open_checkpoint(write_native(tmp_path / "bearing", bearing, transformer, vqgan, TOKENIZER_FILES))
    assert opened.config == bearing and opened.digest == open_checkpoint(native_dir).digest
    rewrite_config(native_dir, lambda raw: raw.update(max_condition_scale="much"))
    with pytest.raises(CheckpointError, match=r"malformed .*max_condition_scale must be a number"):
        open_checkpoint(native_dir)


def test_a_family_that_is_not_known_is_named(native_dir):
    rewrite_config(native_dir, lambda raw: raw.update(family="dalle-4"))
    with pytest.raises(CheckpointError, match=r"config\.json: family 'dalle-4' is not one of dalle-bart"):
        open_checkpoint(native_dir)


def test_what_the_layers_above_ask_of_a_model(tiny_config):
    picture = tiny_config.picture
    assert (picture.grid_height, picture.grid_width, picture.px_per_token) == (2, 2, 2)
    assert (picture.num_tokens, picture.height_px, picture.width_px) == (4, 4, 4)
    assert picture.codebook_size == min(tiny_config.vqgan.n_embed, tiny_config.transformer.image_vocab_size)
    assert tiny_config.text.max_length == tiny_config.text.max_length
