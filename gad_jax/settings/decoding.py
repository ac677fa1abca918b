"""How answers are sampled outside of training: by generate, evaluate, collect and world."""

import dataclasses
from typing import Any

from gad_jax.settings.fields import Checked, option

LEAST_TEMPERATURE = 1e-6
"""A lower one counts as 0 (greedy): divided by it, logits would overflow float32."""


@dataclasses.dataclass(frozen=True)
class Decoding(Checked):
    """Sampling of answers; temperature 0 is greedy, top_k 0 and top_p 1 keep all tokens."""

    samples: int = option(1, "answers per prompt", "answers", above=0)
    temperature: float = option(0.0, "sampling temperature", minimum=0)
    top_k: int = option(0, "sample from the k most likely tokens; 0: all", "tokens", minimum=0)
    top_p: float = option(
        1.0, "sample from the most likely tokens of this total probability", above=0, maximum=1
    )
    max_new_tokens: int = option(256, "a longer answer is cut", "tokens", above=0)
    # jax keeps 32 bits of a seed: 2**32 would be the same as 0.
    seed: int = option(0, "seed of the sampling", minimum=-(2**31), maximum=2**32 - 1)

    @classmethod
    def of(cls, settings: Any) -> "Decoding":
        """Returns the decoding of a command whose settings have fields of these names."""
        return cls(
            **{field.name: getattr(settings, field.name) for field in dataclasses.fields(cls)}
        )
