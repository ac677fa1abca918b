"""Directories that are refused: damaged files, and networks that the decoder lacks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from gad_jax.base.errors import UserError
from gad_jax.models import weights
from gad_jax.models.builtin.tiny import write_tiny
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
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type='dynamic'"),
    ({"use_sliding_window": True}, "use_sliding_window=True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"model_type": "llama", "mlp_bias": True}, "mlp_bias=True"),
    ({"model_type": "llama", "attention_bias": True}, "attention_bias=true"),
    ({"model_type": "qwen3", "attention_bias": True}, "attention_bias=true"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_the_decoder_lacks_is_refused(
    broken: Path, fields: dict[str, Any], message: str
) -> None:
    edit_config(broken, **fields)
    assert f"config.json: {message} is not supported" in refusal(broken)


def test_a_refusal_says_what_there_is(broken: Path) -> None:
    edit_config(broken, rope_scaling={"rope_type": "yarn"})
    assert refusal(broken).endswith("this decoder has 'default' and 'llama3'")
    edit_config(broken, rope_scaling=None, hidden_act="gelu")
    assert refusal(broken).endswith("this decoder needs 'silu'")
    edit_config(broken, model_type="mamba")
    assert refusal(broken).endswith("llama, qwen2, qwen3; use a model of one of these")


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
