"""Model directories that are damaged or not what they say."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from gad_jax import train
from gad_jax.models import checksums
from gad_jax.models.builtin import tiny


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_header(path, change):
    """Rewrites the header of a safetensors file."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.dumps(change(json.loads(content[8 : 8 + size]))).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


def first_tensor(path, value):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    if isinstance(value, type):
        tensors[name] = tensors[name].astype(value)
    else:
        tensors[name][3, 3] = value
    save_file(tensors, path)


def damage_of_weights(directory):
    """Returns what makes the weights wrong, by name."""
    weights, config = directory / "model.safetensors", directory / "config.json"
    index = directory / "model.safetensors.index.json"
    return {
        "truncated": lambda: os.truncate(weights, weights.stat().st_size - 100),
        "truncated in its header": lambda: os.truncate(weights, 100),
        "empty": lambda: os.truncate(weights, 0),
        "a bit flipped in its header": lambda: flip(weights, 12),
        "a bit flipped in its size": lambda: flip(weights, 6),
        "a bit flipped in its data": lambda: (
            checksums.write(directory),
            flip(weights, weights.stat().st_size - 1000),
        ),
        "not finite": lambda: first_tensor(weights, np.inf),
        "quantised": lambda: first_tensor(weights, np.int8),
        "offsets beyond its end": lambda: edit_header(
            weights, lambda h: {k: v | {"data_offsets": [0, 2**40]} if k != "__metadata__" else v
                                for k, v in h.items()}),
        "a tensor missing": lambda: edit_json(config, num_hidden_layers=3),
        "another shape": lambda: edit_json(config, intermediate_size=65),
        "an index of another place": lambda: index.write_text(
            json.dumps({"weight_map": {"model.norm.weight": "../../etc/passwd"}})),
        "an index of missing files": lambda: index.write_text(
            json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}})),
        "an index that is no JSON": lambda: index.write_text("{"),
        "pickles": lambda: weights.rename(directory / "pytorch_model.bin"),
    }  # fmt: skip


def damage_of_texts(directory):
    """Returns what makes the configuration or the tokenizer wrong, by name."""
    config, tokenizer = directory / "config.json", directory / "tokenizer_config.json"
    return {
        "a config that is no JSON": lambda: config.write_text("{"),
        "a config that is a list": lambda: config.write_text("[]"),
        "a nested config": lambda: config.write_text('{"a":' * 100_000),
        "a text as width": lambda: edit_json(config, hidden_size="32"),
        "zero layers": lambda: edit_json(config, num_hidden_layers=0),
        "heads that do not divide": lambda: edit_json(config, num_key_value_heads=3),
        "a text as RoPE": lambda: edit_json(config, rope_scaling="linear"),
        "an unknown family": lambda: edit_json(config, model_type="mamba"),
        "a list as family": lambda: edit_json(config, model_type=["llama"]),
        "an unknown dtype": lambda: edit_json(config, torch_dtype="float8_e9m9"),
        "code of its own": lambda: edit_json(config, auto_map={"AutoModel": "evil.Model"}),
        "no tokenizer": lambda: (directory / "tokenizer.json").unlink(),
        "a damaged tokenizer": lambda: (directory / "tokenizer.json").write_text("{"),
        "no chat template": lambda: edit_json(tokenizer, chat_template=None),
        "a template that does not parse": lambda: edit_json(tokenizer, chat_template="{% if %}"),
        "a template that drops the text": lambda: edit_json(tokenizer, chat_template="hello"),
        "a template that breaks out": lambda: edit_json(
            tokenizer, chat_template="{{ messages.__class__.__mro__ }}"),
        "no end token": lambda: (
            edit_json(tokenizer, eos_token=None, chat_template="{% for m in messages %}"
                      "{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
                      "{% if add_generation_prompt %}assistant: {% endif %}"),
            edit_json(config, eos_token_id=None),
            (directory / "generation_config.json").unlink(),
        ),
        "a text as end token": lambda: edit_json(
            directory / "generation_config.json", eos_token_id="x"),
    }  # fmt: skip


def damages(directory):
    return damage_of_weights(directory) | damage_of_texts(directory)


MODELS = list(damages(Path()))


@pytest.mark.parametrize("how", MODELS)
def test_models(refuses, tmp_path, how):
    directory = tmp_path / "model"
    tiny.write_tiny(directory)
    damages(directory)[how]()
    said = refuses(
        train, "--config=tiny", f"--run_dir={tmp_path / 'run'}", f"--student.path={directory}"
    )
    assert "model" in said
    assert not (tmp_path / "run" / "checkpoints").exists() or not list(
        (tmp_path / "run" / "checkpoints").iterdir()
    )
