"""How answers are sampled outside of training: by generate, evaluate, collect and world."""

import dataclasses
from typing import Any

from gad_jax.settings.checks import require, require_at_least_zero, require_positive


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Sampling of answers; temperature 0 is greedy, top_k 0 and top_p 1 keep all tokens."""

    samples: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "samples", "max_new_tokens")
        require_at_least_zero(self, "temperature", "top_k")
        require(0 < self.top_p <= 1, f"top_p={self.top_p} must be in (0, 1]")

    @classmethod
    def of(cls, settings: Any) -> "Decoding":
        """Returns the decoding of a command whose settings have fields of these names."""
        return cls(
            **{field.name: getattr(settings, field.name) for field in dataclasses.fields(cls)}
        )
