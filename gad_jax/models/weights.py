"""A Hugging Face directory → config and sharded parameters, a slice at a time. No torch, no pickle.

For each device, only the slices that it holds are read; names and shapes are checked from the
files' headers first. Writing is in `writing.py`.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from gad_jax.base.errors import UserError
from gad_jax.distributed import sharding
from gad_jax.models import checksums, decoder, families, quantised, splitting
from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import FAMILIES
from gad_jax.models.families.common import Part
from gad_jax.types import Params

FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
"""Dtypes that can be read: safetensors' name → numpy's."""


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
    if str(family) not in families.OWN and not _is_native(hf.get("auto_map"), family):
        raise UserError(
            f"{path} asks for code of its own (auto_map), which is never run; use a model that "
            f"needs none, of the families {', '.join(FAMILIES)}"
        )
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(
            f"{path}: model_type={family!r} is not supported; the known ones are "
            f"{', '.join(FAMILIES)}; use a model of one of these, or gad_jax.register_family"
        )
    try:
        return families.read(_with_stored(hf, path.parent))
    except UserError as error:  # it begins with the file's name
        raise UserError(f"{path.parent}/{error}") from error
    except KeyError as error:
        raise UserError(f"{path}: the field {error} is missing; fetch the model again") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path}: a field has a value of a wrong kind ({error}); fetch the model again"
        ) from error


def load(
    directory: str | Path,
    mesh: jax.sharding.Mesh | None = None,
    dtype: DTypeLike = jnp.float32,
    wanted: Callable[[str], bool] = lambda path: True,
    float32: Callable[[str], bool] = lambda path: False,
    quantisation: str = "none",
) -> tuple[DecoderConfig, Params]:
    """Returns the config and the parameters, split over the mesh as `sharding.PARAMETER_AXES` says.

    Without a mesh they live on the default device. Parameters whose path is not `wanted` are left
    out and not read; those of `float32` are of that dtype, whatever `dtype` says. The layers'
    kernels are quantised as they are read (`DecoderConfig.quantisation`). A sequence-classification
    directory gives a score head, its bias taken from config.json (`score_bias`), where
    `writing.save` keeps it.

    Raises UserError that names a missing, misshapen, unreadable or non-finite tensor, or a file
    whose checksum is not that of SHA256SUMS.
    """
    config = read_config(directory)
    if mesh is not None:
        splitting.check(config, mesh)
    checksums.check(Path(directory))
    tensors = _Tensors(Path(directory))
    _account(tensors, config)
    shapes = decoder.selected(decoder.abstract(config), wanted)

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> Any:
        name = sharding.path_name(path)
        if name == "score/bias":
            return _place(lambda _: _score_bias(directory), leaf.shape, name, mesh)
        if quantisation != "none" and quantised.takes(name):
            read = _reader(tensors, config, name, leaf.shape, jnp.float32)
            return quantised.place(quantisation, read, leaf.shape, name, mesh)
        kind = jnp.float32 if float32(name) else dtype
        read = _reader(tensors, config, name, leaf.shape, kind)
        return _place(read, leaf.shape, name, mesh)

    return config, jax.tree_util.tree_map_with_path(one, shapes)


class _Tensors:
    """The tensors of a directory by name: one file, or several with an index."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.files: dict[str, Path] = {}
        self.open: dict[Path, Any] = {}
        index, file = directory / "model.safetensors.index.json", directory / "model.safetensors"
        if index.exists():
            self._read_index(index)
        else:
            others = sorted(path.name for path in directory.glob("*.safetensors"))
            if others and file.name not in others:
                raise UserError(
                    f"{file} cannot be read: it is missing, and so is {index.name}, which says "
                    f"what {others[0]} holds; fetch the model again"
                )
            self.files = dict.fromkeys(self._handle(file).keys(), file)
        self.stored = {name: name for name in self.files}
        if not any(name.startswith("model.") for name in self.files):
            self._add_prefix()

    def _read_index(self, index: Path) -> None:
        """Finds the tensors of several files; those that the index leaves out count too."""
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
            self.files[name] = self.directory / file
        single = self.directory / "model.safetensors"
        if single.exists() and single not in self.files.values():
            raise UserError(
                f"{self.directory} has weights twice, in {single.name} and in the files of "
                f"{index.name}; remove those that are not the model's"
            )
        for file in sorted(set(self.files.values())):
            for name in list(self._handle(file).keys()):
                if self.files.setdefault(name, file) != file:
                    raise UserError(
                        f"{file}: the tensor {name} is in {self.files[name].name} too; fetch the "
                        "model again"
                    )

    def _add_prefix(self) -> None:
        """Names the tensors of a model saved without its head, as those of one with it."""
        heads = ("lm_head.", "score.")
        self.stored = {n if n.startswith(heads) else f"model.{n}": n for n in self.files}
        self.files = {name: self.files[stored] for name, stored in self.stored.items()}

    def slice(self, name: str) -> Any:
        """Returns the lazily read tensor."""
        if name not in self.files:
            raise UserError(
                f"{self.directory}: the tensor {name} is missing from the weights; fetch the model "
                "again, or check that config.json belongs to it"
            )
        try:
            return self._handle(self.files[name]).get_slice(self.stored[name])
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


def _account(tensors: _Tensors, config: DecoderConfig) -> None:
    """Refuses stored tensors that no parameter takes, because they would change the network."""
    taken = set()
    for entry in families.names(config).values():
        template = families.tensor(entry)
        taken |= {template.format(*place) for place in families.places(config, entry)}
    left = sorted(n for n in tensors.files if n not in taken and not _HARMLESS.fullmatch(n))
    if left == ["lm_head.weight"] and config.head == "score":
        return  # what the scores replace
    if left == ["lm_head.weight"] and config.tied:
        _check_tied(tensors, config)
    elif left:
        others = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise UserError(
            f"{tensors.directory}: the weights hold {tensors.stored[left[0]]}{others}, which a "
            f"network of family {config.family!r} with this config.json does not have; it would be "
            "ignored, so check that config.json belongs to these weights"
        )


_HARMLESS = re.compile(r".*rotary_emb\.inv_freq")
"""Stored by old versions of transformers, and computed from config.json."""


def _check_tied(tensors: _Tensors, config: DecoderConfig) -> None:
    names = "model.embed_tokens.weight", "lm_head.weight"
    for name in names:
        _check_dtype(tensors, name)
    embedding, head = map(tensors.slice, names)
    same = embedding.get_shape() == head.get_shape() and all(
        np.array_equal(embedding[start:stop], head[start:stop])
        for start in range(0, config.vocabulary, 4096)
        for stop in (min(start + 4096, config.vocabulary),)
    )
    if not same:
        raise UserError(
            f"{tensors.directory}: config.json says tie_word_embeddings=true, but the weights hold "
            "an lm_head.weight that differs from the embedding; set it to false to use that head, "
            "or remove the tensor"
        )


def _with_stored(hf: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Returns the config; the weights say what it leaves out: a tied head and the dtype."""
    tie = hf.get("tie_word_embeddings") is None
    dtype = not (hf.get("dtype") or hf.get("torch_dtype"))
    if not tie and not dtype:
        return hf
    try:
        tensors = _Tensors(directory)
        stored = tensors.slice("model.embed_tokens.weight").get_dtype()
    except UserError:  # no weights here: the family's default counts
        return hf
    headless = str(hf.get("architectures")).endswith("Model']")  # its head was never stored
    if tie and not headless and not {"lm_head.weight", "score.weight"} & tensors.files.keys():
        hf = hf | {"tie_word_embeddings": True}
    return hf | {"dtype": FLOATS[stored]} if dtype and stored in FLOATS else hf


def _is_native(auto_map: Any, family: Any) -> bool:
    """Returns whether `auto_map` names nothing but the family's classes.

    Phi-3 and Phi-4-mini bring copies of them; transformers, too, uses its own instead. A name
    without a dot is a repository, and no code.
    """
    prefix = str(family).removesuffix("_text").replace("_", "")
    kinds = "Config|Model|ForCausalLM|ForSequenceClassification|ForTokenClassification"
    known = re.compile(rf"(?:.*\.)?{re.escape(prefix)}(?:Text)?(?:{kinds})", re.IGNORECASE)
    values = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    return not auto_map or all(
        isinstance(value, str) and ("." not in value or known.fullmatch(value)) for value in values
    )


def _reader(
    tensors: _Tensors, config: DecoderConfig, name: str, shape: tuple[int, ...], dtype: DTypeLike
) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """Returns the function that reads any part of one of our parameters."""
    entry = families.names(config)[name]
    part = entry if isinstance(entry, Part) else None
    template, depth = families.tensor(entry), families.tensor(entry).count("{}")
    transposed = name.endswith("kernel")
    expected = shape[depth:][::-1] if transposed else shape[depth:]
    if part:
        expected = (part.rows, *expected[1:])
    for place in families.places(config, entry):
        _check_tensor(tensors, template.format(*place), expected)

    def matrix(tensor: str, index: tuple[slice, ...]) -> np.ndarray:
        index = index[::-1] if transposed else index
        if part:
            first, last, _ = index[0].indices(part.stop - part.start)
            index = (slice(part.start + first, part.start + last), *index[1:])
        found = tensors.slice(tensor)[index]
        if not np.isfinite(found).all():
            raise UserError(
                f"{tensors.files[tensor]}: the tensor {tensor} has numbers that are not finite; "
                "the file is damaged, fetch the model again"
            )
        return (found.T if transposed else found).astype(dtype)

    def read(index: tuple[slice, ...]) -> np.ndarray:
        wanted = [range(n)[i] for n, i in zip(shape, index, strict=True)]
        out = np.empty([len(each) for each in wanted], dtype)
        for at in np.ndindex(*out.shape[:depth]):
            place = (each[i] for each, i in zip(wanted, at, strict=False))
            out[at] = matrix(template.format(*place), index[depth:])
        return out

    return read


def _check_tensor(tensors: _Tensors, tensor: str, expected: tuple[int, ...]) -> None:
    _check_dtype(tensors, tensor)
    found = tuple(tensors.slice(tensor).get_shape())
    if found != expected:
        raise UserError(
            f"{tensors.files[tensor]}: the tensor {tensor} has shape {list(found)}, but "
            f"config.json asks for {list(expected)}; the two must be of one model"
        )


def _check_dtype(tensors: _Tensors, tensor: str) -> None:
    dtype = tensors.slice(tensor).get_dtype()
    if dtype not in FLOATS:
        raise UserError(
            f"{tensors.files[tensor]}: the tensor {tensor} is {dtype}, and only "
            f"{', '.join(FLOATS)} can be read; use the model that is not quantised"
        )


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
