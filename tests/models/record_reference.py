"""Records what transformers computes for random networks of all families: reference/logits.npz.

`python -m tests.models.record_reference` writes it, in the repository's root, with torch installed.
test_decoder.py compares with it, so that parity is tested where torch is missing.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from gad_jax.models.builtin.tiny import write_tiny
from tests.models import networks

FILE = Path(__file__).parent / "reference" / "logits.npz"
LENGTH = 48
STRIDE = 16
"""Every 16th logit is recorded, with the log of the sum over the whole vocabulary."""

VARIANTS: dict[str, dict[str, Any]] = {
    "llama-tied": {"family": "llama", "tied": True},
    "llama": {"family": "llama", "tied": False},
    "llama3-rope": {"family": "llama", "tied": False, "llama3_rope": True},
    "qwen2-tied": {"family": "qwen2", "tied": True},
    "qwen2": {"family": "qwen2", "tied": False},
    "qwen3-tied": {"family": "qwen3", "tied": True},
    "qwen3": {"family": "qwen3", "tied": False},
}


NAMES = (*VARIANTS, *networks.NETWORKS)


def write_variant(directory: Path, name: str) -> None:
    """Writes the network of this name as a Hugging Face directory."""
    if name in VARIANTS:
        # two files where the head is apart: names must be found through the index too
        write_tiny(directory, **VARIANTS[name], num_shards=1 if VARIANTS[name]["tied"] else 2)
    else:
        networks.write(directory, networks.NETWORKS[name])


def tokens(rows: int = 1, length: int = LENGTH) -> np.ndarray:
    """Returns the tokens that are compared."""
    return np.random.default_rng(0).integers(0, 512, (rows, length)).astype(np.int32)


def summary(logits: np.ndarray) -> np.ndarray:
    """Returns what is recorded of one row's logits [T V]: [T 1 + V / 16], float32."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    total = top + np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return np.concatenate([total, logits[:, ::STRIDE]], axis=-1).astype(np.float32)


def record() -> None:
    """Writes the file."""
    import torch
    from transformers import AutoModelForCausalLM

    recorded = {}
    for name in NAMES:
        with tempfile.TemporaryDirectory() as parent:
            directory = Path(parent) / name
            write_variant(directory, name)
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
            with torch.no_grad():
                logits = model(torch.from_numpy(tokens()).long()).logits[0].numpy()
        recorded[name] = summary(logits)
    FILE.parent.mkdir(exist_ok=True)
    np.savez(FILE, **recorded)


if __name__ == "__main__":
    record()
