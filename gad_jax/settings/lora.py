"""Low-rank adapters (LoRA): what is trained in the place of whole networks. Imports no jax.

A rate that was not chosen for adapters is raised when settings are read (`with_rates`), so that
`config.yaml` has the rates that a run uses.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gad_jax.settings.fields import Checked, FieldError, Given, option

TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
Target = Literal["query", "key", "value", "output", "gate", "up", "down"]

RATE_FACTOR = 10
"""The best learning rate of adapters, in those of full training: about ten, for supervised
training and for policy gradients ("LoRA Without Regret", Schulman et al., 2025)."""

_PARTS = ("generator", "discriminator")
SAME = -1


@dataclass(frozen=True)
class Lora(Checked):
    """Adapters of rank `rank` on a frozen base (arXiv:2106.09685); rank 0 trains everything."""

    rank: int = option(
        0,
        "rank of the adapters that are trained instead; 0: full training",
        common=True,
        minimum=0,
    )
    discriminator_rank: int = option(
        SAME,
        "rank of the discriminator's adapters; -1: as --lora.rank, 0: it is trained in full",
        minimum=SAME,
    )
    alpha: float = option(32.0, "adapters are multiplied by alpha / rank", above=0)
    targets: tuple[Target, ...] = option(
        TARGETS, "projections of a layer that have adapters, with commas"
    )
    base_dtype: Literal["auto", "float32", "bfloat16", "int8", "nf4"] = option(
        "auto",
        "frozen base in memory; auto: as the matmuls",
        common=True,
    )
    adapter: str = option("", "PEFT adapter directory that the student's adapters start from")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets:
            raise FieldError("targets", f"targets is empty; name some of {', '.join(TARGETS)}")
        if len(set(self.targets)) < len(self.targets):
            raise FieldError("targets", f"targets={','.join(self.targets)} names one twice")
        # One order for the same targets: a run resumes however they are written.
        ordered = tuple(name for name in TARGETS if name in self.targets)
        object.__setattr__(self, "targets", ordered)
        if self.adapter and not self.rank:
            raise FieldError(
                "adapter",
                f"adapter={self.adapter} needs --lora.rank: that of the adapter",
                "rank",
            )

        if self.is_quantised and not self.rank and self.discriminator_rank <= 0:
            raise FieldError(
                "base_dtype",
                f"base_dtype={self.base_dtype} needs adapters, which are what is trained on a "
                "quantised base; give --lora.rank, or --lora.base_dtype=auto",
                "rank",
            )

    @property
    def is_quantised(self) -> bool:
        """Whether the layers' kernels of the base are quantised."""
        return self.base_dtype in ("int8", "nf4")

    def rank_of(self, part: str) -> int:
        """Returns the rank of the adapters of "generator" or "discriminator"; 0: it has none."""
        if part == "generator" or self.discriminator_rank == SAME:
            return self.rank
        return self.discriminator_rank


def with_rates(
    given: Mapping[str, Given], stages: Iterable[str], defaults: Mapping[str, Any]
) -> dict[str, Given]:
    """Returns the given values, with the learning rates that suit what is trained.

    A rate suits the rank that came the same way, or a weaker one: a flag, a file, a default. If a
    stronger one puts adapters in the place of full training, the rate is multiplied by
    `RATE_FACTOR`; the other way round it is divided. `defaults` are those of the rates, by path.
    """
    found = dict(given)
    file = {path: one.replaced if one.from_flag else one for path, one in given.items()}
    for part in _PARTS:
        rank, of_file = _rank(given, part), _rank(file, part)
        for stage in stages:
            path = f"{stage}.{part}_learning_rate"
            rate = given.get(path)
            if _strength(rate) >= _strength(rank):
                continue
            assert rank is not None
            meant = 0 if rate is None or of_file is None else of_file.value
            if bool(rank.value) == bool(meant):
                continue
            value = defaults[path] if rate is None else rate.value
            changed = value * RATE_FACTOR if rank.value else value / RATE_FACTOR
            changed = float(f"{changed:.12g}")  # 1e-6 becomes 1e-5, not 9.99e-6
            found[path] = (
                Given(changed, rank.where)
                if rate is None
                else dataclasses.replace(rate, value=changed)
            )
    return found


def _rank(given: Mapping[str, Given | None], part: str) -> Given | None:
    """Returns the rank of "generator" or "discriminator" as it was given."""
    own, rank = given.get("lora.discriminator_rank"), given.get("lora.rank")
    if part == "generator" or own is None:
        return rank
    if own.value != SAME:
        return own
    if rank is not None and (rank.from_flag or not own.from_flag):
        return rank
    return dataclasses.replace(own, value=0 if rank is None else rank.value)


def _strength(given: Given | None) -> int:
    return 0 if given is None else 1 + given.from_flag
