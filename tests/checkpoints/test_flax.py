"""Reading what the reference's save_pretrained wrote, and trees of our own for the rarer layouts."""

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest

from dalle_server.checkpoints import convert, open_checkpoint
from dalle_server.checkpoints.published.flax_file import read_leaves
from dalle_server.checkpoints.published.flax_names import transformer_place, vqgan_place
from dalle_server.checkpoints.tensor_names import vqgan_decoder_tensors, vqgan_encoder_tensors
from dalle_server.errors import CheckpointError
from dalle_server.families.dalle_bart import DalleBartConfig
from dalle_server.models.config import VQGANConfig

from .conftest import random_tensors
from .flax_writer import pack_array, pack_chunked, read_tree, write_flax, write_tree

PARITY = Path(__file__).parents[1] / "data" / "parity"
MEGA_FORMS = ["tiny-mega", "tiny-mega-noscan", "tiny-mega-fp16"]


@pytest.mark.parametrize("name", [*MEGA_FORMS, "tiny-mini", "vocab-true-fp16"])
def test_converts_what_the_reference_wrote(tmp_path, name):
    checkpoint = open_checkpoint(convert(PARITY / name, tmp_path / "native"))
    raw = json.loads((PARITY / name / "config.json").read_text())
    assert checkpoint.config.transformer == DalleBartConfig.from_dict(raw)
    assert checkpoint.config.name == name
    tree = read_tree(PARITY / name / "flax_model.msgpack")
    num_parameters = sum(array.size for array in checkpoint.transformer.values())
    assert num_parameters == sum(leaf.size for leaf in _leaves(tree))
    assert {a.dtype for a in checkpoint.transformer.values()} == {tree["lm_head"]["kernel"].dtype}
    np.testing.assert_array_equal(checkpoint.transformer["lm_head.weight"], tree["lm_head"]["kernel"].T)


def _leaves(tree):
    return [leaf for node in tree.values() for leaf in (_leaves(node) if isinstance(node, dict) else [node])]


def test_every_kind_of_tensor_lands_in_its_place(tmp_path):
    checkpoint = open_checkpoint(convert(PARITY / "tiny-mega", tmp_path / "native"))
    model = read_tree(PARITY / "tiny-mega" / "flax_model.msgpack")["model"]
    decoder = model["decoder"]["layers"]["FlaxBartDecoderLayers"]
    for name, expected in {
        "encoder.embed_tokens.weight": model["encoder"]["embed_tokens"]["embedding"],
        "encoder.layernorm_embedding.weight": model["encoder"]["layernorm_embedding"]["scale"],
        "decoder.layers.2.pre_self_attn_layer_norm.bias": decoder["LayerNorm_0"]["bias"][2],
        "decoder.layers.1.self_attn_layer_norm.weight": decoder["LayerNorm_1"]["scale"][1],
        "decoder.layers.0.pre_encoder_attn_layer_norm.bias": decoder["LayerNorm_2"]["bias"][0],
        "decoder.layers.2.encoder_attn_layer_norm.bias": decoder["LayerNorm_3"]["bias"][2],
        "decoder.layers.2.self_attn.q_proj.weight": decoder["FlaxBartAttention_0"]["q_proj"]["kernel"][2].T,
        "decoder.layers.0.encoder_attn.out_proj.weight": decoder["FlaxBartAttention_1"]["out_proj"]["kernel"][0].T,
        "decoder.layers.1.glu.ln1.bias": decoder["GLU_0"]["LayerNorm_1"]["bias"][1],
        "decoder.layers.1.glu.fc1.weight": decoder["GLU_0"]["Dense_1"]["kernel"][1].T,
        "decoder.final_ln.bias": model["decoder"]["final_ln"]["bias"],
    }.items():
        np.testing.assert_array_equal(checkpoint.transformer[name], expected, err_msg=name)
    vqgan = read_tree(PARITY / "tiny-vqgan" / "flax_model.msgpack")
    for name, expected in {
        "quantize.embedding.weight": vqgan["quantize"]["embedding"]["embedding"],
        "decoder.up.2.block.0.nin_shortcut.weight": vqgan["decoder"]["up_2"]["block_0"]["nin_shortcut"]["kernel"]
        .transpose(3, 2, 0, 1),
        "decoder.up.4.attn.1.proj_out.bias": vqgan["decoder"]["up_4"]["attn_1"]["proj_out"]["bias"],
        "encoder.down.3.downsample.conv.weight": vqgan["encoder"]["down_3"]["downsample"]["conv"]["kernel"]
        .transpose(3, 2, 0, 1),
        "decoder.mid.block_2.norm1.weight": vqgan["decoder"]["mid"]["block_2"]["norm1"]["scale"],
    }.items():  # fmt: skip
        np.testing.assert_array_equal(checkpoint.vqgan[name], expected, err_msg=name)


def test_stacked_and_single_layers_become_the_same_checkpoint(tmp_path):
    digests = {open_checkpoint(convert(PARITY / name, tmp_path / name)).digest for name in MEGA_FORMS[:2]}
    assert len(digests) == 1


@pytest.mark.parametrize("stacked", [True, False])
def test_other_sizes_round_trip(tmp_path, tiny_config, transformer, vqgan, stacked):
    source = write_flax(tmp_path / "flax", tiny_config, transformer, vqgan, stacked=stacked)
    checkpoint = open_checkpoint(convert(source, tmp_path / "native"))
    assert replace(checkpoint.config, name="tiny") == tiny_config
    for found, original in ((checkpoint.transformer, transformer), (checkpoint.vqgan, vqgan)):
        assert all(np.array_equal(found[name], original[name]) for name in original)


def test_half_precision_on_request_and_never_back(tmp_path, tiny_config, transformer, vqgan):
    source = write_flax(tmp_path / "flax", tiny_config, transformer, vqgan, stacked=True)
    half = open_checkpoint(convert(source, tmp_path / "half", dtype=np.dtype(np.float16)))
    assert {array.dtype for array in half.transformer.values()} == {np.dtype(np.float16)}
    assert {array.dtype for array in half.vqgan.values()} == {np.dtype(np.float32)}
    with pytest.raises(CheckpointError, match="only float16"):
        convert(PARITY / "tiny-mega-fp16", tmp_path / "full", dtype=np.dtype(np.float32))


def test_weights_too_large_for_half_precision_are_refused(tmp_path, tiny_config, transformer, vqgan):
    huge = transformer | {"decoder.final_ln.bias": np.full(8, 1e5, np.float32)}
    source = write_flax(tmp_path / "flax", tiny_config, huge, vqgan, stacked=True)
    with pytest.raises(CheckpointError, match=r"decoder\.final_ln\.bias .*float16"):
        convert(source, tmp_path / "half", dtype=np.dtype(np.float16))
    assert not (tmp_path / "half").exists()


def test_chunked_leaves_are_joined(tmp_path):
    array = np.arange(3 * 5 * 7, dtype=np.float32).reshape(3, 5, 7)
    write_tree(tmp_path / "f", {"a/b": pack_chunked(array, 11), "c": pack_array(array[0])})
    leaves = read_leaves(tmp_path / "f")
    np.testing.assert_array_equal(leaves["a/b"].read(), array)
    for index in range(3):
        np.testing.assert_array_equal(leaves["a/b"].read(index), array[index])
    np.testing.assert_array_equal(leaves["c"].read(2), array[0, 2])


def test_split_files_are_joined_by_their_index(tmp_path, tiny_config, transformer, vqgan):
    source = write_flax(tmp_path / "flax", tiny_config, transformer, vqgan, stacked=False)
    whole = {path: pack_array(leaf.read()) for path, leaf in read_leaves(source / "flax_model.msgpack").items()}
    (source / "flax_model.msgpack").unlink()
    paths = sorted(whole)
    weight_map = {path: f"flax_model-{i % 2}.msgpack" for i, path in enumerate(paths)}
    for shard in set(weight_map.values()):  # transformers flattens the tree of a shard
        write_flat = {path: whole[path] for path in paths if weight_map[path] == shard}
        (source / shard).write_bytes(msgpack.packb(write_flat))
    (source / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(convert(source, tmp_path / "native"))
    assert all(np.array_equal(checkpoint.transformer[name], transformer[name]) for name in transformer)


@pytest.mark.parametrize("index", [{}, {"weight_map": 5}, {"weight_map": {"a": 5}}, {"weight_map": {"a": "../a"}}])
def test_a_nonsense_index_is_refused(tmp_path, tiny_config, transformer, vqgan, index):
    source = write_flax(tmp_path / "flax", tiny_config, transformer, vqgan, stacked=False)
    (source / "flax_model.msgpack").unlink()
    (source / "flax_model.msgpack.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError):
        convert(source, tmp_path / "native")


def test_optional_config_keys_take_the_references_defaults(tmp_path, tiny_config, transformer, vqgan):
    source = write_flax(tmp_path / "flax", tiny_config, transformer, vqgan, stacked=True)
    raw = json.loads((source / "config.json").read_text())
    for key in ("scale_embedding", "normalize_text", "decoder_start_token_id", "eos_token_id"):
        del raw[key]
    (source / "config.json").write_text(json.dumps(raw | {"top_k": 40}))
    config = open_checkpoint(convert(source, tmp_path / "native")).config
    sizes = config.sizes(DalleBartConfig)
    assert sizes.normalize_text is False and sizes.scale_embedding is False
    assert sizes.decoder_start_token_id == sizes.eos_token_id == 32
    assert config.sampling.top_k == 40 and config.sampling.condition_scale == 10.0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda leaves: leaves.pop("model/encoder/final_ln/bias"), r"model/encoder/final_ln/bias is missing"),
        (lambda leaves: leaves.update({"model/encoder/extra": np.zeros(2, "f4")}), "model/encoder/extra"),
        (
            lambda leaves: leaves.update({"lm_head/kernel": np.zeros((8, 32), "f4")}),
            r"lm_head\.weight \(32, 8\) instead",
        ),
        (lambda leaves: leaves.update({"lm_head/kernel": np.zeros((8, 33), "i4")}), "dtype 'int32'"),
        (lambda leaves: leaves.update({"lm_head/kernel": np.zeros((8, 33, 1), "f4")}), "lm_head"),
        (lambda leaves: leaves.update({STACKED: leaves[STACKED][:1]}), "stacks .* config.json says 2"),
    ],
)
def test_a_tree_that_does_not_fit_is_refused_by_name(tmp_path, tiny_config, transformer, vqgan, edit, message):
    source = write_flax(tmp_path / "flax", tiny_config, transformer, vqgan, stacked=True)
    leaves = {path: leaf.read() for path, leaf in read_leaves(source / "flax_model.msgpack").items()}
    edit(leaves)
    write_tree(source / "flax_model.msgpack", {path: pack_array(array) for path, array in leaves.items()})
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()


STACKED = "model/decoder/layers/FlaxBartDecoderLayers/LayerNorm_0/bias"


class TestFindingTheVQGAN:
    @pytest.fixture
    def flax_dir(self, tmp_path, tiny_config, transformer, vqgan):
        return write_flax(tmp_path / "models" / "dalle", tiny_config, transformer, vqgan, stacked=True)

    def test_beside(self, flax_dir, tmp_path):
        shutil.move(flax_dir / "vqgan", flax_dir.parent / "vqgan_imagenet_f16_16384")
        open_checkpoint(convert(flax_dir, tmp_path / "native"))

    def test_none(self, flax_dir, tmp_path):
        shutil.rmtree(flax_dir / "vqgan")
        with pytest.raises(CheckpointError, match="no VQGAN for"):
            convert(flax_dir, tmp_path / "native")

    def test_two_and_no_name(self, flax_dir, tmp_path):
        shutil.copytree(flax_dir / "vqgan", flax_dir / "first")
        shutil.move(flax_dir / "vqgan", flax_dir / "second")
        with pytest.raises(CheckpointError, match=r"several VQGANs \(first, second\)"):
            convert(flax_dir, tmp_path / "native")

    def test_one_with_too_few_codes_is_warned_of(self, tmp_path, caplog):
        convert(PARITY / "vocab-true-fp16", tmp_path / "native", vqgan=PARITY / "tiny-vqgan")
        assert "start token is 16384) than this VQGAN has (128)" in caplog.text

    def test_said_outright(self, flax_dir, tmp_path):
        elsewhere = shutil.move(flax_dir / "vqgan", tmp_path / "elsewhere")
        open_checkpoint(convert(flax_dir, tmp_path / "native", vqgan=elsewhere))


def test_conversion_needs_little_memory(tmp_path, tiny_config):
    sizes = {"d_model": 256, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512, "encoder_layers": 6, "decoder_layers": 6}
    config = replace(tiny_config, transformer=replace(tiny_config.transformer, **sizes))
    transformer = random_tensors(config.transformer.tensors())
    vqgan = random_tensors(vqgan_decoder_tensors(config.vqgan))
    total = sum(array.nbytes for array in transformer.values())
    largest = max(array.nbytes for array in transformer.values())
    source = write_flax(tmp_path / "flax", config, transformer, vqgan, stacked=True)
    del transformer
    tracemalloc.start()
    convert(source, tmp_path / "native")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > 20 * 1024 * 1024
    assert peak < 3 * largest + 2 * 1024 * 1024


def test_published_trees_are_covered_by_name():
    """Every leaf of the true-size manifests is used, and none is missing."""
    for name, stacked in (("mini-1", True), ("mini-1-noscan", False), ("mega-1", True), ("mega-1-noscan", False)):
        published = json.loads((PARITY / "manifests" / f"{name}.json").read_text())
        names = DalleBartConfig.from_dict(published["config"]).tensors()
        assert {transformer_place(n, stacked)[0] for n in names} == set(published["params"])
    published = json.loads((PARITY / "manifests" / "vqgan_imagenet_f16_16384.json").read_text())
    config = VQGANConfig.from_dict(published["config"])
    names = vqgan_decoder_tensors(config) | vqgan_encoder_tensors(config)
    assert {vqgan_place(n)[0] for n in names} == set(published["params"])
