"""The model families: one file each, and one row here. A file says how a Hugging Face config maps
to `DecoderConfig` (both ways) and which weight belongs where. `register` adds another one."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from gad_jax.base.errors import UserError
from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import (
    gemma3,
    granite,
    llama,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    olmoe,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from gad_jax.models.families.common import Names, Part
from gad_jax.models.families.fields import Fields


class Family(Protocol):
    """What a family says: a module, a class or an object with these three functions."""

    @property
    def read(self) -> Callable[[Fields], DecoderConfig]: ...
    @property
    def write(self) -> Callable[[DecoderConfig], dict[str, Any]]: ...
    @property
    def names(self) -> Callable[[DecoderConfig], Names]: ...


FAMILIES: dict[str, Family] = {
    "gemma3_text": gemma3,
    "granite": granite,
    "llama": llama,
    "ministral": mistral,
    "mistral": mistral,
    "mixtral": mixtral,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "olmoe": olmoe,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "smollm3": smollm3,
}
"""`model_type` of config.json → module."""


OWN: set[str] = set()
"""Those that were registered."""


def register(model_type: str, family: Any) -> None:
    """Adds a family: models whose config.json has this `model_type` can be read, trained, exported.

    `family` has three functions, as each file here: `read(fields)` returns the `DecoderConfig`,
    `write(config)` the config.json again, and `names(config)` the tensor of each parameter. Call it
    before such a model is named, and in every process. Raises UserError for a name that is taken,
    and for a family that lacks a function.

        register("acme", acme_family)
    """
    needed = ("read", "write", "names")
    missing = [name for name in needed if not callable(getattr(family, name, None))]
    if missing:
        raise UserError(
            f"register_family({model_type!r}, …): the family has no function {missing[0]}; give "
            "read(fields), write(config) and names(config)"
        )
    if model_type in FAMILIES and model_type not in OWN:
        raise UserError(
            f"register_family({model_type!r}, …): gad_jax has this family; give another model_type"
        )
    OWN.add(model_type)
    FAMILIES[model_type] = family


def read(hf: dict[str, Any]) -> DecoderConfig:
    """Returns the DecoderConfig of a config.json of a known family.

    Raises UserError for what the decoder does not compute; KeyError for a missing field.
    """
    return FAMILIES[hf["model_type"]].read(Fields(hf))


def write(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json of a network."""
    return FAMILIES[config.family].write(config)


def names(config: DecoderConfig) -> Names:
    """Returns which Hugging Face tensor holds each of the network's parameters."""
    return FAMILIES[config.family].names(config)


def places(config: DecoderConfig, entry: str | Part) -> Iterator[tuple[int, ...]]:
    """Yields what stands for the {} in the name of a parameter's tensors: layer, or layer and
    expert. The leading axes of the parameter are the same."""
    sizes = config.layers, config.experts.count if config.experts else 1
    depth = tensor(entry).count("{}")
    yield from itertools.product(*map(range, sizes[:depth]))


def tensor(entry: str | Part) -> str:
    """Returns the name of the tensor, with {} for layer and expert."""
    return entry.tensor if isinstance(entry, Part) else entry
