"""The model families: one file each, and one row here. A file says how a Hugging Face config maps
to `DecoderConfig` (both ways) and which weight belongs where."""

from types import ModuleType

from gad_jax.models.families import llama, qwen2, qwen3

FAMILIES: dict[str, ModuleType] = {"llama": llama, "qwen2": qwen2, "qwen3": qwen3}
"""`model_type` of config.json → module."""
