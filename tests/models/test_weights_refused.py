"""Directories that are refused: damaged files, and networks that the decoder lacks."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gad_jax.base.errors import UserError
from gad_jax.models import weights
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.models.families import FAMILIES
from tests.models.files import (
    FILE,
    edit_config,
)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Returns a directory of two files with an index, to be damaged."""
    write_tiny(tmp_path / "model", "qwen2", tied=False, num_shards=2)
    return tmp_path / "model"


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as error:
        weights.load(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


REFUSED = [
    ({"model_type": "mamba"}, "model_type='mamba'"),
    ({"model_type": None}, "model_type=None"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type='dynamic'"),
    ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"is_causal": False}, "is_causal=False"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_the_decoder_lacks_is_refused(
    broken: Path, fields: dict[str, Any], message: str
) -> None:
    edit_config(broken, **fields)
    assert f"config.json: {message} is not supported" in refusal(broken)


def test_a_refusal_says_what_there_is(broken: Path) -> None:
    edit_config(broken, rope_scaling={"rope_type": "dynamic"})
    assert refusal(broken).endswith(
        "this decoder has 'default', 'linear', 'llama3', 'yarn', 'longrope'"
    )
    edit_config(broken, rope_scaling=None, hidden_act="gelu")
    assert refusal(broken).endswith("this decoder needs 'silu' or 'gelu_pytorch_tanh'")
    edit_config(broken, model_type="mamba")
    assert refusal(broken).endswith(
        f"{', '.join(FAMILIES)}; use a model of one of these, or gad_jax.register_family"
    )


def test_a_missing_field_is_named(broken: Path) -> None:
    path = broken / "config.json"
    hf = json.loads(path.read_text())
    del hf["hidden_size"]
    path.write_text(json.dumps(hf))
    assert "the field 'hidden_size' is missing" in refusal(broken)
    edit_config(broken, hidden_size=32, rope_scaling={"rope_type": "llama3"})
    assert "the field 'factor' is missing" in refusal(broken)


@pytest.mark.parametrize("text", ["{", "[]", "", "\x00\xff"])
def test_a_config_that_is_no_object(broken: Path, text: str) -> None:
    (broken / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json cannot be read as a JSON object" in refusal(broken)


def test_a_missing_tensor_is_named(broken: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.bias"
    index = broken / f"{FILE}.index.json"
    file = broken / json.loads(index.read_text())["weight_map"][name]
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)
    # in the index, not in the file that it names
    message = refusal(broken)
    assert file.name in message
    assert name in message
    content = json.loads(index.read_text())
    del content["weight_map"][name]
    index.write_text(json.dumps(content))
    assert f"the tensor {name} is missing from the weights" in refusal(broken)


def test_a_misshapen_tensor_is_named_with_both_shapes(broken: Path) -> None:
    edit_config(broken, intermediate_size=96)
    message = refusal(broken)
    shapes = r"mlp\.down_proj\.weight has shape \[32, 64\], but config\.json asks for \[32, 96\]"
    assert re.search(rf"\.safetensors: the tensor model\.layers\.0\.{shapes}", message), message


def test_fewer_layers_than_the_config_says(broken: Path) -> None:
    edit_config(broken, num_hidden_layers=3)
    assert re.search(r"the tensor model\.layers\.2\.\S+ is missing", refusal(broken))


@pytest.mark.parametrize("kept", [0, 4, 100, 50_000])
def test_a_truncated_file_is_named(broken: Path, kept: int) -> None:
    file = broken / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(broken)
    assert file.name in message
    assert "cannot be read as safetensors" in message
    assert "fetch the model again" in message


def test_without_weights_the_file_is_named(broken: Path) -> None:
    (broken / f"{FILE}.index.json").unlink()
    message = refusal(broken)
    assert f"{FILE} cannot be read" in message
    assert "which says what model-00001-of-00002.safetensors holds" in message


@pytest.mark.parametrize("target", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", 1])
def test_an_index_may_not_point_elsewhere(broken: Path, target: Any) -> None:
    index = broken / f"{FILE}.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = target
    index.write_text(json.dumps(content))
    assert f"model.norm.weight points outside the directory ({target!r});" in refusal(broken)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": []}'])
def test_an_index_that_is_none(broken: Path, text: str) -> None:
    (broken / f"{FILE}.index.json").write_text(text)
    assert f"{FILE}.index.json is not a safetensors index" in refusal(broken)


def change_tensors(directory: Path, changes: dict[str, np.ndarray]) -> None:
    tensors = load_file(directory / FILE)
    save_file(tensors | changes, directory / FILE)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.2.self_attn.q_proj.weight",  # a layer that config.json does not count
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.mlp.gate_proj.weight_scale",
        "mtp.layers.0.weight",
    ],
)
def test_a_tensor_that_nothing_takes_is_refused(tmp_path: Path, name: str) -> None:
    write_tiny(tmp_path, "llama")
    change_tensors(tmp_path, {name: np.ones(32, np.float32)})
    message = refusal(tmp_path)
    assert f"the weights hold {name}, which a network of family 'llama'" in message
    assert message.endswith("check that config.json belongs to these weights")


def test_a_head_of_its_own_is_no_tied_head(tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama", tied=True)
    embedding = load_file(tmp_path / FILE)["model.embed_tokens.weight"]
    change_tensors(tmp_path, {"lm_head.weight": embedding})
    assert weights.load(tmp_path)[0].tied  # stored twice, as some tools do
    change_tensors(tmp_path, {"lm_head.weight": embedding + 1e-3})
    assert "tie_word_embeddings=true, but the weights hold an lm_head.weight that differs" in (
        refusal(tmp_path)
    )


def test_what_old_versions_stored_is_harmless(tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(tmp_path, {name: np.ones(4, np.float32)})
    weights.load(tmp_path)


def test_a_model_saved_without_its_head_has_shorter_names(tmp_path: Path) -> None:
    write_tiny(tmp_path / "a", "qwen3", tied=True)
    write_tiny(tmp_path / "b", "qwen3", tied=True)
    tensors = load_file(tmp_path / "a" / FILE)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "b" / FILE)
    (_, ours), (_, theirs) = weights.load(tmp_path / "a"), weights.load(tmp_path / "b")
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_that_are_there_twice_are_refused(broken: Path) -> None:
    one, other = (broken / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    name = next(iter(load_file(other)))
    save_file(load_file(one) | {name: load_file(other)[name] + 1}, one)
    assert f"the tensor {name} is in {other.name} too" in refusal(broken)
    save_file(load_file(other), broken / FILE)
    assert f"has weights twice, in {FILE} and in the files of {FILE}.index" in refusal(broken)


def test_a_tensor_that_the_index_leaves_out_counts(broken: Path) -> None:
    one = broken / "model-00001-of-00002.safetensors"
    save_file(load_file(one) | {"model.layers.0.extra": np.ones(2, np.float32)}, one)
    assert "the weights hold model.layers.0.extra, which" in refusal(broken)


def test_names_are_as_they_are_stored(tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama")
    tensors = load_file(tmp_path / FILE)
    save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, tmp_path / FILE)
    assert "the weights hold _orig_mod.model.embed_tokens.weight and" in refusal(tmp_path)


def test_a_quantised_tied_head_is_named(tmp_path: Path) -> None:
    import ml_dtypes

    write_tiny(tmp_path, "llama", tied=True)
    eight = load_file(tmp_path / FILE)["model.embed_tokens.weight"].astype(ml_dtypes.float8_e4m3fn)
    change_tensors(tmp_path, {"lm_head.weight": eight})
    assert "the tensor lm_head.weight is F8_E4M3, and only F32" in refusal(tmp_path)


NATIVE = {"AutoConfig": "configuration_llama.LlamaConfig", "AutoModel": "x--m.LlamaForCausalLM"}


def test_copies_of_our_classes_are_no_code_of_its_own(tmp_path: Path) -> None:
    write_tiny(tmp_path, "llama")
    edit_config(tmp_path, auto_map=NATIVE)
    weights.load(tmp_path)
    for name in ("m.LlamaBidirectionalModel", "m.Qwen2ForCausalLM", ["m.LlamaModel", None], 3):
        edit_config(tmp_path, auto_map=NATIVE | {"AutoModelForCausalLM": name})
        assert "code of its own (auto_map), which is never run" in refusal(tmp_path)


def test_the_weights_say_what_dtype_they_have(tmp_path: Path) -> None:
    import ml_dtypes

    write_tiny(tmp_path, "llama", tied=True)
    tensors = load_file(tmp_path / FILE)
    save_file({k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}, tmp_path / FILE)
    edit_config(tmp_path, dtype=None, torch_dtype=None)
    assert weights.load(tmp_path)[0].stored_dtype == "bfloat16"
    # a model without a head is no language model, unless it says that its head is tied
    edit_config(tmp_path, architectures=["LlamaModel"], tie_word_embeddings=None)
    assert "the tensor lm_head.weight is missing" in refusal(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    weights.load(tmp_path)
