"""How a run is evaluated, saved, spread over devices, limited in time and profiled."""

import datetime
from dataclasses import dataclass
from typing import Literal

from gad_jax.settings.fields import Checked, FieldError, option

LONGEST = 1_000_000
"""Minutes, which are almost two years: timers of the system hold no more than some centuries."""


@dataclass(frozen=True)
class Evaluation(Checked):
    """Greedy answers to held-out prompts, compared with the teacher's."""

    every: int = option(
        50,
        "steps between evaluations; 0: at the ends of stages",
        "steps",
        common=True,
        minimum=0,
    )
    prompts: int = option(0, "held-out prompts to use; 0: all", "prompts", minimum=0)
    max_new_tokens: int = option(
        0, "longest answer; 0: as --rollout.max_new_tokens", "tokens", minimum=0
    )
    batch_prompts: int = option(
        64,
        "prompts read at a time, of which --rollout.slots are answered at once",
        "prompts",
        above=0,
    )
    examples: int = option(
        4, "prompts shown side by side, in console and TensorBoard", "prompts", minimum=0
    )


@dataclass(frozen=True)
class Checkpoint(Checked):
    """What is kept to resume from, and which step counts as the best."""

    every: int = option(50, "steps between checkpoints", "steps", common=True, above=0)
    every_minutes: float = option(
        30.0,
        "also save after this time; 0: by steps alone",
        "minutes",
        minimum=0,
        maximum=LONGEST,
    )
    must_save_by: str = option(
        "",
        "time by which the run must have saved and stopped, as 2027-01-31T18:00; empty: the end of "
        "the Slurm job, if it is one",
    )
    margin_minutes: float = option(
        5.0,
        "the run saves this long, and the time of one step, before must_save_by",
        "minutes",
        minimum=0,
        maximum=LONGEST,
    )
    background: Literal["auto", "on", "off"] = option(
        "auto",
        "whether the next steps run while a checkpoint is written, with a copy in host memory; "
        "auto: where that fits",
    )
    accept_new_code: bool = option(
        False,
        "resume also where the file behind reward.extra or custom.step has changed; the steps "
        "that are done stay as they are",
    )
    keep: int = option(2, "newest checkpoints kept", "checkpoints", common=True, above=0)
    keep_best: bool = option(
        True, "also keep the checkpoint with the best evaluation of acceptable length"
    )
    export: Literal["best", "last"] = option(
        "best",
        "which checkpoint a run exports at its end; best: that of keep_best, the last without one",
    )
    best_metric: Literal["rouge_l", "ngram_1", "ngram_2", "ngram_3", "ngram_4"] = option(
        "rouge_l", "what makes an evaluation the best: overlap with the teacher's held-out answers"
    )
    best_min_length_ratio: float = option(
        0.5,
        "acceptable: mean answer at least this many times the teacher's mean length; 0: any",
        minimum=0,
    )
    best_max_length_ratio: float = option(
        1.5,
        "acceptable: mean answer at most this many times the teacher's mean length; inf: any",
        above=0,
        infinite=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.best_min_length_ratio, self.best_max_length_ratio
        if not low < high:
            raise FieldError(
                "best_min_length_ratio",
                f"best_min_length_ratio={low} must be less than the maximum, {high}",
                "best_max_length_ratio",
            )
        try:
            datetime.datetime.fromisoformat(self.must_save_by or "2027-01-31")
        except ValueError:
            raise FieldError(
                "must_save_by", f"must_save_by={self.must_save_by!r} must be as 2027-01-31T18:00"
            ) from None


@dataclass(frozen=True)
class Mesh(Checked):
    """The device mesh; the product of its axes is the number of devices."""

    replica: int = option(
        1, "copies of the weights; they split the batch", "devices", common=True, above=0
    )
    fsdp: int = option(
        0,
        "devices per copy of the weights; 0: the rest",
        "devices",
        common=True,
        minimum=0,
    )
    tensor: int = option(1, "devices that split each matmul", "devices", common=True, above=0)

    @property
    def asks_several(self) -> bool:
        """Whether one device is not enough for it."""
        return self.replica * max(self.fsdp, 1) * self.tensor > 1


@dataclass(frozen=True)
class Limits(Checked):
    """When a run that hangs is ended, or one that needs more memory than there is refused."""

    step_minutes: float = option(
        30.0,
        "a longer step ends the run and prints the stacks of its threads; 0: never",
        "minutes",
        minimum=0,
        maximum=LONGEST,
    )
    other_minutes: float = option(
        120.0,
        "the same for start-up, compiling, restoring, evaluating, saving",
        "minutes",
        minimum=0,
        maximum=LONGEST,
    )
    heartbeat_seconds: int = option(
        60, "a process silent for longer counts as dead", "seconds", above=0
    )
    memory: Literal["refuse", "warn"] = option(
        "refuse", "what is done before a run whose programs, by estimate, need more memory"
    )
    join_seconds: int = option(
        300, "longest wait for the other processes at the start and at the end", "seconds", above=0
    )


@dataclass(frozen=True)
class Profile(Checked):
    """Where the time of some steps goes."""

    steps: str = option("", "first and last step to trace, as 3:5; empty: none", "steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps and not 0 < self.window[0] <= self.window[1]:
            raise FieldError(
                "steps", f"steps={self.steps!r} must be FIRST:LAST, as 3:5, counting from 1"
            )

    @property
    def window(self) -> tuple[int, int]:
        """The first and the last step; (0, 0) for none or what is not understood."""
        first, _, last = self.steps.partition(":")
        return (int(first), int(last)) if first.isdigit() and last.isdigit() else (0, 0)
