"""random-tiny is a complete, deterministic Hugging Face model of each family."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from gad_jax.models.builtin import tiny
from gad_jax.models.builtin.tiny import write_tiny

FAMILIES = ("llama", "qwen2", "qwen3")
VARIANTS = [(family, tied) for family in FAMILIES for tied in (True, False)]


def file_bytes(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("tiny")
    write_tiny(directory)
    return AutoTokenizer.from_pretrained(directory)


def test_equal_arguments_give_equal_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_tiny(tmp_path / name, "qwen3", seed=seed)
    first, again, other = (file_bytes(tmp_path / name) for name in "abc")
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


@pytest.mark.parametrize(("family", "tied"), VARIANTS)
def test_tensors_are_those_of_the_family(tmp_path, family, tied):
    write_tiny(tmp_path, family, tied)
    tensors = load_file(tmp_path / "model.safetensors")
    attention = "model.layers.1.self_attn"
    assert tensors["model.embed_tokens.weight"].shape == (512, 32)
    assert tensors[f"{attention}.q_proj.weight"].shape == (32, 32)
    assert tensors[f"{attention}.k_proj.weight"].shape == (16, 32)
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (32, 64)
    assert ("lm_head.weight" in tensors) == (not tied)
    assert (f"{attention}.v_proj.bias" in tensors) == (family == "qwen2")
    assert f"{attention}.o_proj.bias" not in tensors
    assert (f"{attention}.k_norm.weight" in tensors) == (family == "qwen3")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float32")}
    # A norm, a bias or a matrix that a loader swaps or forgets must show: none is trivial.
    assert all(tensor.std() > 0.02 for tensor in tensors.values())


def test_shards_hold_the_same_weights(tmp_path):
    write_tiny(tmp_path / "one", tied=False)
    write_tiny(tmp_path / "two", tied=False, num_shards=2)
    index = json.loads((tmp_path / "two/model.safetensors.index.json").read_text())
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(set(index["weight_map"].values())) == files
    assert not (tmp_path / "two/model.safetensors").exists()
    whole = load_file(tmp_path / "one/model.safetensors")
    shards = {file: load_file(tmp_path / "two" / file) for file in files}
    assert sum(map(len, shards.values())) == len(whole) == len(index["weight_map"])
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(shards[file][name], whole[name])
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())


@pytest.mark.parametrize(
    "text", ["", "plain", "  two  spaces\n", "naïve 数学 👩‍👩‍👧 \u2028", "\x00\x7f"]
)
def test_token_ids_are_the_bytes(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_special_tokens_and_ids_without_text(tokenizer):
    assert tokenizer.encode("a<|im_end|>b") == [97, 258, 98]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (258, 256, 259)
    assert tokenizer.decode([97, 258, 98], skip_special_tokens=True) == "ab"
    assert tokenizer.decode([97, 259, 511, 98]) == "ab"


def test_chat_template_is_chatml_without_a_default_system_line(tokenizer):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    text = "<|im_start|>user\nHi<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages[:1], tokenize=False) == text
    text += "<|im_start|>assistant\n"
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == text
    assert tokenizer.apply_chat_template(messages, tokenize=False) == f"{text}Yo<|im_end|>\n"


def test_either_end_token_ends_generation(tmp_path):
    write_tiny(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "eos_token_id": [258, 256],
        "pad_token_id": 256,
    }


def test_llama3_rope_is_refused_elsewhere(tmp_path):
    with pytest.raises(ValueError, match="llama3_rope is for family 'llama', not 'qwen2'"):
        write_tiny(tmp_path, "qwen2", llama3_rope=True)


def test_fetch_makes_it_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GAD_JAX_CACHE", str(tmp_path))
    directory = tiny.fetch()
    assert directory.parent == tmp_path
    made = directory.stat().st_mtime_ns
    assert tiny.fetch() == directory
    assert directory.stat().st_mtime_ns == made


@pytest.mark.torch
@pytest.mark.parametrize(("family", "tied"), VARIANTS)
def test_transformers_loads_every_tensor(tmp_path, family, tied):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    write_tiny(tmp_path, family, tied, num_shards=2)
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), loading
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        logits = model(tokens).logits
        stretched = model(tokens, position_ids=2 * torch.arange(40)[None]).logits
    assert 0.2 < logits.std() < 0.5
    # A wrong position has to stand far above a parity tolerance of 1e-4.
    assert (logits - stretched).abs().max() > 0.1


@pytest.mark.torch
def test_llama3_rope_keeps_interpolates_and_divides(tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    write_tiny(tmp_path, llama3_rope=True)
    frequencies = AutoModelForCausalLM.from_pretrained(tmp_path).model.rotary_emb.inv_freq.numpy()
    ratios = frequencies / 10_000.0 ** -(np.arange(4) / 4)
    # Wavelength 2π · 10 of 64 positions: smooth = (64 / 62.83 - 1) / 3, between 1/8 and 1.
    smooth = (64 / (2 * np.pi * 10) - 1) / 3
    expected = [1, (1 - smooth) / 8 + smooth, 1 / 8, 1 / 8]
    np.testing.assert_allclose(ratios, expected, rtol=1e-5)  # float32 frequencies
