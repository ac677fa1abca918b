"""Weights survive the way out and in, whatever their dtype, files and mesh; damage is named."""

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from gad_jax.base.errors import NumericsError
from gad_jax.distributed import sharding
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import families, weights, writing
from gad_jax.models.config import LayerKind, Llama3, Rope
from tests.models.files import (
    END,
    FILE,
    PAD,
    START,
    VARIANTS,
    as_score,
)


def host(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {sharding.path_name(path): leaf for path, leaf in leaves}


def assert_same_bits(tree: Any, other: Any) -> None:
    one, two = host(tree), host(other)
    assert one.keys() == two.keys()
    for name, leaf in one.items():
        assert leaf.dtype == two[name].dtype, name
        assert leaf.tobytes() == two[name].tobytes(), name


@pytest.mark.parametrize(("family", "tied"), VARIANTS)
def test_what_is_saved_is_what_was_loaded(
    tiny: Any, carried: Any, tmp_path: Path, family: str, tied: bool
) -> None:
    config, params = weights.load(tiny(family, tied))
    assert (config.family, config.tied, config.stored_dtype) == (family, tied, "float32")
    writing.save(tmp_path / "out", config, params, carried)
    again, loaded = weights.load(tmp_path / "out")
    assert again == config
    assert_same_bits(loaded, params)
    # name by name, what was there
    ours, theirs = (load_file(path / FILE) for path in (tmp_path / "out", tiny(family, tied)))
    assert_same_bits(ours, theirs)


def test_a_kill_between_the_renames_loses_no_export(
    tiny: Any, carried: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, params = weights.load(tiny("qwen2", False))
    old, new = tmp_path / "out" / "student", jax.tree.map(lambda x: x + 1, params)
    writing.save(old, config, params, carried)
    replace, renames = os.replace, []

    def killed(source: Path, target: Path) -> None:
        renames.append(target)
        if len(renames) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        writing.save(old, config, new, carried)
    monkeypatch.setattr(os, "replace", replace)
    # The old and the new are both whole; a next save that dies early puts the old one back.
    monkeypatch.setattr(writing, "_write_shards", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writing.save(old, config, new, carried)
    assert_same_bits(weights.load(old)[1], params)
    monkeypatch.undo()
    writing.save(old, config, new, carried)
    assert_same_bits(weights.load(old)[1], new)
    assert [path.name for path in old.parent.iterdir()] == ["student"]


def test_kernels_are_transposed_and_stacked(tiny: Any) -> None:
    _, params = weights.load(tiny("qwen2", False))
    tensors = load_file(tiny("qwen2", False) / FILE)
    down = params["layers"]["down"]["kernel"]
    assert down.shape == (2, 64, 32)
    np.testing.assert_array_equal(down[1], tensors["model.layers.1.mlp.down_proj.weight"].T)
    bias = params["layers"]["key"]["bias"]
    np.testing.assert_array_equal(bias[0], tensors["model.layers.0.self_attn.k_proj.bias"])
    np.testing.assert_array_equal(params["head"]["kernel"], tensors["lm_head.weight"].T)
    np.testing.assert_array_equal(params["embedding"], tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(1e6, "has a number that float16 cannot hold"), (np.nan, "has a non-finite number")],
)
def test_no_number_that_is_not_finite_is_written(
    tiny: Any, carried: Any, tmp_path: Path, value: float, sentence: str
) -> None:
    config, params = weights.load(tiny("llama", True))
    config = dataclasses.replace(config, stored_dtype="float16")
    broken = params | {"embedding": params["embedding"].at[3, 1].set(value)}
    with pytest.raises(NumericsError, match=f"embedding {sentence}; nothing was written"):
        writing.save(tmp_path / "out", config, broken, carried)
    assert not (tmp_path / "out").exists()


def test_bfloat16_rounds_once(tiny: Any, carried: Any, tmp_path: Path) -> None:
    config, params = weights.load(tiny("qwen3", False))
    half = dataclasses.replace(config, stored_dtype="bfloat16")
    writing.save(tmp_path / "a", half, params, carried)
    again, rounded = weights.load(tmp_path / "a")
    assert again == half
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    assert_same_bits(rounded, expected)
    writing.save(tmp_path / "b", again, rounded, carried)
    assert (tmp_path / "b" / FILE).read_bytes() == (tmp_path / "a" / FILE).read_bytes()
    assert (tmp_path / "a" / FILE).stat().st_size < 0.6 * (
        tiny("qwen3", False) / FILE
    ).stat().st_size
    _, kept = weights.load(tmp_path / "a", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
    assert_same_bits(jax.tree.map(lambda x: x.astype(jnp.float32), kept), rounded)


def test_files_are_bounded_and_indexed(
    tiny: Any, carried: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, params = weights.load(tiny("llama", False))
    monkeypatch.setattr(writing, "SHARD_BYTES", 70_000)  # an embedding has 65,536
    writing.save(tmp_path / "out", config, params, carried)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{n:05}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    index = json.loads((tmp_path / "out" / f"{FILE}.index.json").read_text())
    found = {name: file for file in files for name in load_file(tmp_path / "out" / file)}
    assert index["weight_map"] == found
    sizes = [sum(x.nbytes for x in load_file(tmp_path / "out" / file).values()) for file in files]
    assert max(sizes) <= 70_000
    assert index["metadata"]["total_size"] == sum(sizes)
    again, loaded = weights.load(tmp_path / "out")
    assert again == config
    assert_same_bits(loaded, params)


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False), ("qwen3", False)])
def test_a_mesh_holds_the_same_weights(tiny: Any, family: str, tied: bool) -> None:
    mesh = make_mesh(1, 4, 2)
    directory = tiny(family, tied, num_shards=2)
    _, alone = weights.load(directory)
    _, spread = weights.load(directory, mesh)
    assert_same_bits(spread, alone)
    for path, leaf in jax.tree_util.tree_leaves_with_path(spread):
        assert leaf.sharding.mesh == mesh
        assert leaf.sharding.spec == sharding.parameter_spec(sharding.path_name(path))
    up = spread["layers"]["up"]["kernel"]
    assert {shard.data.shape for shard in up.addressable_shards} == {(2, 32 // 4, 64 // 2)}


def test_a_mesh_saves_the_same_files(tiny: Any, carried: Any, tmp_path: Path) -> None:
    for name, mesh in (("one", None), ("eight", make_mesh(1, 4, 2))):
        config, params = weights.load(tiny("qwen2", False), mesh)
        writing.save(tmp_path / name, config, params, carried)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "eight" / path.name).read_bytes(), path.name


def test_a_score_head_keeps_its_bias(tiny: Any, carried: Any, tmp_path: Path) -> None:
    config, params = as_score(*weights.load(tiny("qwen3", False)))
    writing.save(tmp_path / "out", config, params, carried)
    hf = json.loads((tmp_path / "out/config.json").read_text())
    assert hf["architectures"] == ["Qwen3ForSequenceClassification"]
    assert (hf["num_labels"], hf["score_bias"]) == (1, 0.375)
    assert "lm_head.weight" not in load_file(tmp_path / "out" / FILE)
    again, loaded = weights.load(tmp_path / "out")
    assert again == config
    assert_same_bits(loaded, params)


def test_the_saved_end_and_pad_tokens(tiny: Any, carried: Any, tmp_path: Path) -> None:
    config, params = weights.load(tiny())
    writing.save(tmp_path / "student", config, params, carried)
    generation = json.loads((tmp_path / "student/generation_config.json").read_text())
    assert generation == {"eos_token_id": [END, PAD], "pad_token_id": PAD}
    hf = json.loads((tmp_path / "student/config.json").read_text())
    assert (hf["bos_token_id"], hf["eos_token_id"], hf["pad_token_id"]) == (None, END, PAD)
    # A scorer must not take an end token for padding.
    writing.save(tmp_path / "judge", *as_score(config, params), carried)
    hf = json.loads((tmp_path / "judge/config.json").read_text())
    assert hf["pad_token_id"] == START
    assert AutoTokenizer.from_pretrained(tmp_path / "judge").pad_token_id == START
    assert not (tmp_path / "judge/generation_config.json").exists()
    assert carried.tokenizer.pad_token_id == PAD, "the caller's tokenizer was changed"
    # where padding ends nothing, it stays
    other = dataclasses.replace(carried, end_tokens=(END,))
    writing.save(tmp_path / "other", *as_score(config, params), other)
    assert json.loads((tmp_path / "other/config.json").read_text())["pad_token_id"] == PAD


def test_files_can_be_read_by_others(tiny: Any, carried: Any, tmp_path: Path) -> None:
    config, params = weights.load(tiny())
    writing.save(tmp_path / "out", config, params, carried)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_save_cut_short_leaves_the_old_directory(
    tiny: Any, carried: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, params = weights.load(tiny())
    other, other_params = weights.load(tiny("qwen2", False))
    writing.save(tmp_path / "out", config, params, carried)
    before = contents(tmp_path / "out")

    def fail(tensors: Any, path: Path, *rest: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "save_file", fail)
        for name in ("out", "new"):
            with pytest.raises(OSError, match=f"No space left.*{name}.partial"):
                writing.save(tmp_path / name, other, other_params, carried)
    assert contents(tmp_path / "out") == before
    assert not (tmp_path / "new").exists()
    writing.save(tmp_path / "out", other, other_params, carried)
    assert weights.load(tmp_path / "out")[0] == other
    assert b"half of it" not in contents(tmp_path / "out").values()


CONFIGS = [
    {},
    {"tied": True},
    {"head": "score"},
    {"stored_dtype": "bfloat16"},
    {"kinds": (LayerKind(Rope(1e4, Llama3(8.0, 1.0, 4.0, 64))),)},
]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_config_survives_the_way_out_and_in(tiny: Any, family: str) -> None:
    plain = weights.read_config(tiny(family, False))
    for changes in CONFIGS:
        config = dataclasses.replace(plain, **changes)
        written = json.loads(json.dumps(families.write(config)))
        assert families.read(written) == config
        # what transformers itself takes it for, and writes in the newer form (rope_parameters)
        from transformers import AutoConfig

        fields = {k: v for k, v in written.items() if k != "model_type"}
        theirs = AutoConfig.for_model(family, **fields).to_dict()
        assert "rope_theta" in theirs["rope_parameters"]
        assert families.read(theirs) == config


def test_both_forms_of_rope_settings_are_read(tiny: Any) -> None:
    hf = json.loads((tiny("llama", llama3_rope=True) / "config.json").read_text())
    config = families.read(hf)
    assert config.kinds == (LayerKind(Rope(1e4, Llama3(8.0, 1.0, 4.0, 64))),)
    newer = {k: v for k, v in hf.items() if k not in ("rope_theta", "rope_scaling")}
    newer["rope_parameters"] = hf["rope_scaling"] | {"rope_theta": hf["rope_theta"]}
    assert families.read(newer) == config
    older = hf | {"rope_scaling": {**hf["rope_scaling"], "type": "llama3"}}
    del older["rope_scaling"]["rope_type"]
    assert families.read(older) == config
