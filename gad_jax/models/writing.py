"""Sharded parameters → a Hugging Face directory, complete or not at all.

Files are of bounded size. Reading is in `weights.py`.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from gad_jax.base.errors import NumericsError, StorageError
from gad_jax.distributed import devices, processes, sharding
from gad_jax.models import checksums, families
from gad_jax.models.carried import Carried, write_json
from gad_jax.models.config import DecoderConfig
from gad_jax.types import Params

SHARD_BYTES = 4 * 2**30  # a file is held in host memory while it is written


def save(
    directory: str | Path,
    config: DecoderConfig,
    params: Params,
    carried: Carried,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes a directory that transformers and vLLM load: config, safetensors, tokenizer.

    Weights are written in `config.stored_dtype`; `carried` says where tokenizer and the rest come
    from, `texts` are further files. The directory appears complete or not at all, and replaces an
    older one. Every process of a run calls it; the first one writes. transformers' classes have no
    bias on the score head. The bias is the same for all scores, so config.json keeps it as
    `score_bias`. Raises NumericsError for a number that is not finite in the dtype written.
    """
    if not processes.is_first():
        for tensor in _tensors_to_write(config, params):  # each takes part in gathering
            tensor.fetch()
        return
    with replaced(Path(directory)) as staging:
        _write_texts(staging, config, params, carried)
        for name, text in (texts or {}).items():
            (staging / name).write_text(text, encoding="utf-8")
        _write_shards(staging, config, params)


@contextlib.contextmanager
def replaced(directory: Path) -> Iterator[Path]:
    """Gives an empty directory, which then takes the place of `directory`, with checksums; where
    the body raises, `directory` stays as it was."""
    staging, before = (directory.with_name(f".{directory.name}.{e}") for e in ("partial", "before"))
    if before.exists() and not directory.exists():  # killed between the two renames below
        os.replace(before, directory)
    for remains in (staging, before):
        shutil.rmtree(remains, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        checksums.write(staging)
    except OSError as error:
        error.filename = error.filename or str(staging)  # a failed write names no file
        raise
    for path in staging.rglob("*"):
        if path.is_file():
            path.chmod(0o644)  # safetensors makes files that only their owner can read
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    if directory.exists():
        os.replace(directory, before)
    os.replace(staging, directory)
    shutil.rmtree(before, ignore_errors=True)


def _write_texts(target: Path, config: DecoderConfig, params: Params, carried: Carried) -> None:
    """Writes all but the weights."""
    hf = carried.fields(families.write(config))
    pad_token = None
    if config.head == "score":
        pad = carried.harmless_pad()
        if pad != carried.tokenizer.pad_token_id:
            pad_token = carried.tokenizer.convert_ids_to_tokens(pad)
        hf["pad_token_id"] = pad
        hf["score_bias"] = float(jax.device_get(params["score"]["bias"])[0])
    else:
        carried.write_generation(target)
    carried.write_tokenizer(target, pad_token)
    carried.write_legal(target)
    write_json(target / "config.json", hf)


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

    @lru_cache(maxsize=1)  # the experts of a layer are fetched together
    def whole(name: str, layer: tuple[int, ...]) -> np.ndarray:
        wide = devices.fetch(leaves[name][layer] if layer else leaves[name])
        with np.errstate(over="ignore"):
            found = wide.astype(dtype)
        if not np.isfinite(found).all():
            raise NumericsError(
                f"{name} has a number that {dtype} cannot hold; nothing was written"
                if np.isfinite(wide).all()
                else f"{name} has a non-finite number; nothing was written"
            )
        return found

    def fetch(members: list[str], place: tuple[int, ...]) -> np.ndarray:
        parts = []
        for name in members:
            host = whole(name, place[:1])[place[1:]]
            parts.append(host.T if name.endswith("kernel") else host)
        # safetensors writes the buffer and ignores strides
        return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))

    tensors: dict[str, list[str]] = {}
    for name in leaves:
        if name != "score/bias":
            tensors.setdefault(families.tensor(names[name]), []).append(name)
    for template, members in tensors.items():
        members.sort(key=lambda name: getattr(names[name], "start", 0))
        places = list(families.places(config, template))
        size = sum(leaves[name].size for name in members) // len(places) * dtype.itemsize
        for place in places:
            yield _Tensor(template.format(*place), size, partial(fetch, members, place))


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
        write_json(directory / "model.safetensors.index.json", index)
