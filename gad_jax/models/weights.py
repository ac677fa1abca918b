"""Hugging Face safetensors ⇄ sharded parameters, a slice at a time. No torch, no pickle.

Loading reads, for each device, only the slices that it holds; names and shapes are checked from the
files' headers first. Saving writes files of bounded size, complete or not at all.
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
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gad_jax.base.errors import StorageError, UserError
from gad_jax.distributed import devices, processes, sharding
from gad_jax.models import checksums, decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import FAMILIES
from gad_jax.types import Params

SHARD_BYTES = 4 * 2**30  # a file is held in host memory while it is written
FLOATS = ("F32", "BF16", "F16", "F64")


def read_config(directory: str | Path) -> DecoderConfig:
    """Returns the DecoderConfig of a Hugging Face directory.

    Raises UserError for an unknown architecture or a feature that the decoder lacks.
    """
    path = Path(directory) / "config.json"
    try:
        hf = json.loads(path.read_text(encoding="utf-8"))
        family = hf.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as a JSON object ({error}); fetch the model again"
        ) from error
    if hf.get("auto_map"):
        raise UserError(
            f"{path} asks for code of its own (auto_map), which is never run; use a model that "
            f"needs none, of the families {', '.join(FAMILIES)}"
        )
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(
            f"{path}: model_type={family!r} is not supported; the known ones are "
            f"{', '.join(FAMILIES)}; use a model of one of these"
        )
    try:
        return FAMILIES[family].read(hf)
    except UserError as error:  # it begins with the file's name
        raise UserError(f"{path.parent}/{error}") from error
    except KeyError as error:
        raise UserError(f"{path}: the field {error} is missing; fetch the model again") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path}: a field has a value of a wrong kind ({error}); fetch the model again"
        ) from error


def load(
    directory: str | Path, mesh: jax.sharding.Mesh | None = None, dtype: DTypeLike = jnp.float32
) -> tuple[DecoderConfig, Params]:
    """Returns the config and the parameters, split over the mesh as `sharding.PARAMETER_AXES` says.

    Without a mesh they live on the default device. A sequence-classification directory gives a
    score head, its bias taken from config.json (`score_bias`), where `save` keeps it. Raises
    UserError that names a missing, misshapen, unreadable or non-finite tensor, or a file whose
    checksum is not that of SHA256SUMS.
    """
    config = read_config(directory)
    checksums.check(Path(directory))
    tensors = _Tensors(Path(directory))
    shapes = decoder.abstract(config)

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = sharding.path_name(path)
        if name == "score/bias":
            return _place(lambda _: _score_bias(directory), leaf.shape, name, mesh)
        read = _reader(tensors, config, name, leaf.shape, dtype)
        return _place(read, leaf.shape, name, mesh)

    return config, jax.tree_util.tree_map_with_path(one, shapes)


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
    hf = FAMILIES[config.family].write(config)
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


class _Tensors:
    """The tensors of a directory by name: one file, or several with an index."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.files: dict[str, Path] = {}
        self.open: dict[Path, Any] = {}
        index = directory / "model.safetensors.index.json"
        if index.exists():
            try:
                entries = json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(
                    f"{index} is not a safetensors index ({error!r}); fetch the model again"
                ) from error
            for name, file in entries:
                if Path(str(file)).name != file:
                    raise UserError(
                        f"{index}: {name} points outside the directory ({file!r}); it must name a "
                        "file next to it"
                    )
                self.files[name] = directory / file
        else:
            file = directory / "model.safetensors"
            self.files = dict.fromkeys(self._handle(file).keys(), file)

    def slice(self, name: str) -> Any:
        """Returns the lazily read tensor."""
        if name not in self.files:
            raise UserError(
                f"{self.directory}: the tensor {name} is missing from the weights; fetch the model "
                "again, or check that config.json belongs to it"
            )
        try:
            return self._handle(self.files[name]).get_slice(name)
        except SafetensorError as error:
            raise UserError(
                f"{self.files[name]}: the tensor {name} cannot be read ({error}); fetch the model "
                "again"
            ) from error

    def _handle(self, file: Path) -> Any:
        if file not in self.open:
            try:
                self.open[file] = safe_open(file, framework="numpy")
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"{file} cannot be read as safetensors ({error}); fetch the model again"
                ) from error
        return self.open[file]


def _reader(
    tensors: _Tensors, config: DecoderConfig, name: str, shape: tuple[int, ...], dtype: DTypeLike
) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """Returns the function that reads any part of one of our parameters."""
    template = FAMILIES[config.family].NAMES[name]
    transposed = name.endswith("kernel")
    stacked = name.startswith("layers/")
    expected = shape[1:] if stacked else shape
    expected = expected[::-1] if transposed else expected
    for layer in range(shape[0] if stacked else 1):
        tensor = template.format(layer)
        piece = tensors.slice(tensor)
        if piece.get_dtype() not in FLOATS:
            raise UserError(
                f"{tensors.files[tensor]}: the tensor {tensor} is {piece.get_dtype()}, and only "
                f"{', '.join(FLOATS)} can be read; use the model that is not quantised"
            )
        found = tuple(piece.get_shape())
        if found != expected:
            raise UserError(
                f"{tensors.files[tensor]}: the tensor {tensor} has shape {list(found)}, but "
                f"config.json asks for {list(expected)}; the two must be of one model"
            )

    def matrix(layer: int, index: tuple[slice, ...]) -> np.ndarray:
        part = tensors.slice(template.format(layer))[index[::-1] if transposed else index]
        if not np.isfinite(part).all():
            file = tensors.files[template.format(layer)]
            raise UserError(
                f"{file}: the tensor {template.format(layer)} has numbers that are not finite; the "
                "file is damaged, fetch the model again"
            )
        return (part.T if transposed else part).astype(dtype)

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if not stacked:
            return matrix(0, index)
        layers = range(shape[0])[index[0]]
        size = [len(range(n)[i]) for n, i in zip(shape[1:], index[1:], strict=True)]
        out = np.empty((len(layers), *size), dtype)
        for row, layer in enumerate(layers):
            out[row] = matrix(layer, index[1:])
        return out

    return read


def _place(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    shape: tuple[int, ...],
    name: str,
    mesh: jax.sharding.Mesh | None,
) -> jax.Array:
    if mesh is None:
        return jnp.asarray(read((slice(None),) * len(shape)))
    layout = NamedSharding(mesh, sharding.parameter_spec(name))
    callback: Any = read  # annotated in jax as if an index could be None
    return jax.make_array_from_callback(shape, layout, callback)


def _score_bias(directory: str | Path) -> np.ndarray:
    hf = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    return np.asarray([hf.get("score_bias", 0.0)], np.float32)


class _Tensor(NamedTuple):
    """One Hugging Face tensor to write: its name, its size and how to fetch it to the host."""

    name: str
    nbytes: int
    fetch: Callable[[], np.ndarray]


def _tensors_to_write(config: DecoderConfig, params: Params) -> Iterator[_Tensor]:
    dtype = jnp.dtype(config.stored_dtype)

    def fetch(leaf: jax.Array, layer: int | None, transposed: bool) -> np.ndarray:
        host = devices.fetch(leaf if layer is None else leaf[layer]).astype(dtype)
        # safetensors writes the buffer and ignores strides
        return np.ascontiguousarray(host.T if transposed else host)

    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = sharding.path_name(path)
        if name == "score/bias":
            continue
        template = FAMILIES[config.family].NAMES[name]
        stacked = name.startswith("layers/")
        count = leaf.shape[0] if stacked else 1
        for layer in range(count):
            yield _Tensor(
                template.format(layer),
                leaf.size // count * dtype.itemsize,
                partial(fetch, leaf, layer if stacked else None, name.endswith("kernel")),
            )


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
