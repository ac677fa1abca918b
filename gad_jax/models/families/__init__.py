"""The model families: one file each, and one row here. A file says how a Hugging Face config maps
to `DecoderConfig` (both ways) and which weight belongs where."""

from types import ModuleType
from typing import Any

from gad_jax.models.config import DecoderConfig
from gad_jax.models.families import (
    gemma3,
    granite,
    llama,
    mistral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen3,
    smollm3,
)
from gad_jax.models.families.common import Names
from gad_jax.models.families.fields import Fields

FAMILIES: dict[str, ModuleType] = {
    "gemma3_text": gemma3,
    "granite": granite,
    "llama": llama,
    "ministral": mistral,
    "mistral": mistral,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "smollm3": smollm3,
}
"""`model_type` of config.json → module."""


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
