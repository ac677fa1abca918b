"""The discriminator's settings. Imports no jax.

All but its model, objective and head are ways to keep it healthy, and off by default:
docs/discriminator.md has their equations, sources and prices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gad_jax.settings.fields import Checked, FieldError, option


@dataclass(frozen=True)
class Discriminator(Checked):
    """The second network: scores [prompt, response] with a scalar head."""

    path: str = option(
        "",
        "as --student.path, or the discriminator of a run; empty: the student's",
        common=True,
    )
    objective: Literal["bradley_terry", "cross_entropy"] = option(
        "bradley_terry", "its loss; cross_entropy is the paper's ablation"
    )
    # A head of zeros gives every sample the same reward: the generator's first gradient is zero.
    head_stddev: float = option(0.02, "standard deviation of the new head's weights", above=0)
    replay_share: float = option(
        0.0,
        "share of the samples in its batch that are older answers to the same prompt; 0: none",
        minimum=0,
        below=1,
    )
    replay_pool: int = option(
        0,
        "newest answers that are kept of each prompt for --discriminator.replay_share; 0: as many "
        "as --rollout.samples",
        "answers",
        minimum=0,
    )

    accuracy_gate: float = option(
        1.0,
        "a step in which its accuracy is higher leaves it as it is; 1: none does",
        above=0,
        maximum=1,
    )
    label_smoothing: float = option(
        0.0,
        "probability with which its loss takes the sample for the teacher's response",
        minimum=0,
        below=0.5,
    )
    length_debias: bool = option(
        False, "its score learns only what the lengths of a pair do not say (bradley_terry)"
    )
    heads: int = option(
        1, "score heads on its last hidden state; the reward is their mean", above=0, maximum=64
    )
    pessimism: float = option(
        0.0,
        "the reward is less by this many standard deviations over the heads",
        minimum=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pessimism and self.heads == 1:
            raise FieldError(
                "pessimism",
                f"pessimism={self.pessimism:g} compares heads, and heads=1 is one; give "
                "--discriminator.heads=4, or leave it out",
                "heads",
            )
        if self.length_debias and self.objective != "bradley_terry":
            raise FieldError(
                "length_debias",
                f"length_debias=true compares the lengths of a pair, and objective="
                f"{self.objective} judges each response by itself; use bradley_terry, or leave it "
                "out",
                "objective",
            )
        if self.replay_pool and not self.replay_share:
            raise FieldError(
                "replay_pool",
                f"replay_pool={self.replay_pool} keeps answers that nothing replays; give "
                "--discriminator.replay_share, or leave it out",
                "replay_share",
            )

    def replayed(self, samples: int) -> int:
        """Returns how many of a prompt's samples in D's batch are older answers, where there are
        so many."""
        return round(self.replay_share * samples)

    def kept(self, samples: int) -> int:
        """Returns how many answers of a prompt are kept."""
        return self.replay_pool or samples

    def check(self, samples: int, stages: Mapping[str, tuple[bool, bool]], *, pays: bool) -> None:
        """Raises FieldError where a setting does not fit the samples of a prompt, or the stages of
        the run: by name, whether each trains the generator and the discriminator. `pays` is whether
        one of them pays the discriminator's score."""
        if self.replay_share:
            self._check_replay(samples)
        trains = any(discriminator for _, discriminator in stages.values())
        both = any(all(networks) for networks in stages.values())
        for name, there, needed in (
            ("replay_share", trains, "trains a discriminator"),
            ("accuracy_gate", both, "trains both networks"),
            ("label_smoothing", trains, "trains a discriminator"),
            ("length_debias", trains, "trains a discriminator"),
            ("heads", trains, "trains a discriminator"),
            ("head_stddev", trains, "trains a discriminator"),
            ("objective", trains, "trains a discriminator"),
            ("pessimism", pays, "pays rewards of the discriminator"),
        ):
            value = getattr(self, name)
            if value != getattr(Discriminator, name) and not there:
                shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
                raise FieldError(
                    f"discriminator.{name}",
                    f"discriminator.{name}={shown}, and no stage of stage={','.join(stages)} "
                    f"{needed}; leave it out, or add one that does",
                    "stage",
                )

    def _check_replay(self, samples: int) -> None:
        share, count = f"discriminator.replay_share={self.replay_share:g}", self.replayed(samples)
        if not 0 < count < samples:
            raise FieldError(
                "discriminator.replay_share",
                f"{share} of rollout.samples={samples} is {count} of them, and it must be 1 to "
                f"{samples - 1}; use a share from {1 / samples:.2g} to {1 - 1 / samples:.2g}",
                "rollout.samples",
            )
        if self.kept(samples) < count:
            raise FieldError(
                "discriminator.replay_pool",
                f"discriminator.replay_pool={self.replay_pool} is fewer than the {count} answers "
                f"that {share} of rollout.samples={samples} replays; give {count} or more",
                "discriminator.replay_share",
                "rollout.samples",
            )
