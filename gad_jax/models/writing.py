"""Sharded parameters → a Hugging Face directory, complete or not at all.

Files are of bounded size. Reading is in `weights.py`.
"""

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from gad_jax.base.errors import StorageError
from gad_jax.distributed import devices, processes, sharding
from gad_jax.models import checksums, families
from gad_jax.models.config import DecoderConfig
from gad_jax.models.families.common import Part
from gad_jax.types import Params

SHARD_BYTES = 4 * 2**30  # a file is held in host memory while it is written


def save(
    directory: str | Path,
    config: DecoderConfig,
    params: Params,
    tokenizer: Any,
    end_tokens: tuple[int, ...],
) -> None:
    """Writes a directory that transformers and vLLM load: config, safetensors, tokenizer.

    Weights are written in `config.stored_dtype`. The directory appears complete or not at all, and
    replaces an older one. Every process of a run calls it; the first one writes. transformers'
    classes have no bias on the score head. The bias is the same for all scores, so config.json
    keeps it as `score_bias`.
    """
    if not processes.is_first():
        for tensor in _tensors_to_write(config, params):  # each takes part in gathering
            tensor.fetch()
        return
    directory = Path(directory)
    staging, before = (directory.with_name(f".{directory.name}.{e}") for e in ("partial", "before"))
    if before.exists() and not directory.exists():  # killed between the two renames below
        os.replace(before, directory)
    for remains in (staging, before):
        shutil.rmtree(remains, ignore_errors=True)
    staging.mkdir(parents=True)
    hf = families.write(config)
    hf |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    hf["pad_token_id"] = tokenizer.pad_token_id
    if config.head == "score":
        tokenizer = _with_harmless_padding(tokenizer, end_tokens)
        hf["pad_token_id"] = tokenizer.pad_token_id
        hf["score_bias"] = float(jax.device_get(params["score"]["bias"])[0])
    else:
        tokens = {name: hf[name] for name in ("bos_token_id", "pad_token_id")}
        _write_json(staging / "generation_config.json", tokens | {"eos_token_id": list(end_tokens)})
    tokenizer.save_pretrained(str(staging))
    _write_json(staging / "config.json", hf)
    _write_shards(staging, config, params)
    checksums.write(staging)
    for path in staging.iterdir():
        path.chmod(0o644)  # safetensors makes files that only their owner can read
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    if directory.exists():
        os.replace(directory, before)
    os.replace(staging, directory)
    shutil.rmtree(before, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _with_harmless_padding(tokenizer: Any, end_tokens: tuple[int, ...]) -> Any:
    """Returns the tokenizer with a pad token that ends no response.

    transformers reads a score at the last token that is not padding: where the pad token is also
    an end token, it would read the token before the end.
    """
    tokenizer = copy.deepcopy(tokenizer)
    first = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    added = (token for token, kind in tokenizer.added_tokens_decoder.items() if kind.special)
    candidates = (*first, *tokenizer.all_special_ids, *added)
    harmless = [token for token in candidates if token is not None and token not in end_tokens]
    if harmless:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(harmless[0])
    return tokenizer


class _Tensor(NamedTuple):
    """One Hugging Face tensor to write: its name, its size and how to fetch it to the host."""

    name: str
    nbytes: int
    fetch: Callable[[], np.ndarray]


def _tensors_to_write(config: DecoderConfig, params: Params) -> Iterator[_Tensor]:
    """Yields the tensors of a directory; parameters that share one are joined in the order of
    their rows."""
    dtype = jnp.dtype(config.stored_dtype)
    leaves = {sharding.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}
    names = families.names(config)

    def fetch(members: list[str], layer: int | None) -> np.ndarray:
        parts = []
        for name in members:
            leaf = leaves[name] if layer is None else leaves[name][layer]
            host = devices.fetch(leaf).astype(dtype)
            parts.append(host.T if name.endswith("kernel") else host)
        # safetensors writes the buffer and ignores strides
        return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))

    tensors: dict[str, list[str]] = {}
    for name in leaves:
        if name != "score/bias":
            entry = names[name]
            tensors.setdefault(entry.tensor if isinstance(entry, Part) else entry, []).append(name)
    for template, members in tensors.items():
        members.sort(key=lambda name: getattr(names[name], "start", 0))
        stacked = members[0].startswith("layers/")
        count = config.layers if stacked else 1
        size = sum(leaves[name].size for name in members) // count * dtype.itemsize
        for layer in range(count):
            of_layer = layer if stacked else None
            yield _Tensor(template.format(layer), size, partial(fetch, members, of_layer))


def _write_shards(directory: Path, config: DecoderConfig, params: Params) -> None:
    """Writes files of at most SHARD_BYTES each, with an index if there are several."""
    shards: list[list[_Tensor]] = [[]]
    for tensor in _tensors_to_write(config, params):
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    files = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, shard in zip(files, shards, strict=True):
        tensors = {t.name: t.fetch() for t in shard}
        try:
            save_file(tensors, directory / file, {"format": "pt"})
        except SafetensorError as error:  # a full disk, for one
            raise StorageError(f"{directory / file} could not be written ({error})") from error
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for shard in shards for t in shard)},
            "weight_map": {
                t.name: file for file, shard in zip(files, shards, strict=True) for t in shard
            },
        }
        _write_json(directory / "model.safetensors.index.json", index)
