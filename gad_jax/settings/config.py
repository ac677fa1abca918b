"""Every setting of a run, as frozen dataclasses that validate at construction. Imports no jax.

Defaults are the paper's (arXiv:2511.10643) or, where the paper is silent, those of its released
scripts. Loading files, overrides and `--help` live in `options.py`.
"""

from dataclasses import dataclass

from gad_jax.settings.alarms import Health
from gad_jax.settings.checks import require, require_text
from gad_jax.settings.fields import option, section
from gad_jax.settings.sections import (
    Batch,
    Checkpoint,
    Data,
    Discriminator,
    Evaluation,
    Grpo,
    Limits,
    Mesh,
    Optimizer,
    Profile,
    Rollout,
    Stage,
    Student,
)

STAGES = ("seqkd", "warmup", "offpolicy", "gad")


@dataclass(frozen=True)
class Config:
    """A run of `python -m gad_jax.train`."""

    stage: str = option(
        "all", "seqkd, warmup, offpolicy or gad, several with commas, or all (warmup,gad)"
    )
    run_dir: str = option("runs/default", "everything the run writes; an existing run is resumed")
    seed: int = option(0, "of data order, sampling and the discriminator's head")
    export: bool = option(True, "write the student as a Hugging Face directory at the end")
    student: Student = section(Student, "the student and the compute settings of both networks")
    discriminator: Discriminator = section(Discriminator, "the discriminator")
    data: Data = section(Data, "teacher text")
    batch: Batch = section(Batch, "batch sizes")
    rollout: Rollout = section(Rollout, "sampling during training")
    optimizer: Optimizer = section(Optimizer, "AdamW, the same for both networks")
    grpo: Grpo = section(Grpo, "the generator's loss in the GAD stage")
    seqkd: Stage = section(
        Stage,
        "stage: cross-entropy on teacher text, the baseline",
        epochs=3.0,
        generator_learning_rate=5e-6,
        train_discriminator=False,
    )
    warmup: Stage = section(
        Stage,
        "stage: cross-entropy for the generator while the discriminator learns on its samples",
        discriminator_only_steps=10,
    )
    offpolicy: Stage = section(
        Stage,
        "stage: the discriminator alone, on a frozen generator (ablation)",
        epochs=2.0,
        train_generator=False,
    )
    gad: Stage = section(
        Stage, "stage: GRPO on the discriminator's score, both networks learn", epochs=2.0
    )
    evaluation: Evaluation = section(Evaluation, "held-out evaluation")
    checkpoint: Checkpoint = section(Checkpoint, "checkpoints")
    health: Health = section(Health, "what counts as a sick run, and what is done about it")
    mesh: Mesh = section(Mesh, "device mesh")
    limits: Limits = section(Limits, "time limits")
    profile: Profile = section(Profile, "profiling")

    def __post_init__(self) -> None:
        require_text(self, "run_dir")
        require(self.run_dir.isprintable(), f"run_dir={self.run_dir!r}: remove what is unprintable")
        require(0 <= self.seed < 2**32, f"seed={self.seed} must be in [0, 2**32)")
        for name in self.stages:
            known = f"{', '.join(STAGES)}, several with commas, or all"
            require(name in STAGES, f"stage={self.stage!r} names {name!r}; use {known}")
        require(
            len(set(self.stages)) == len(self.stages), f"stage={self.stage!r} names a stage twice"
        )
        require(
            not self.seqkd.train_discriminator and self.seqkd.train_generator,
            "seqkd trains the generator alone; use the warmup stage to train a discriminator too",
        )
        require(not self.offpolicy.train_generator, "offpolicy trains the discriminator alone")
        require(
            self.gad.train_generator,
            "gad.train_generator=false leaves the discriminator alone; use --stage=offpolicy",
        )
        require(
            self.batch.row_tokens == 0 or self.batch.row_tokens >= self.longest,
            f"batch.row_tokens={self.batch.row_tokens} is shorter than data.max_prompt_tokens + "
            f"rollout.max_new_tokens = {self.longest}; raise it or lower one of those",
        )

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages to run, in order."""
        return ("warmup", "gad") if self.stage == "all" else tuple(self.stage.split(","))

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its response together."""
        return self.data.max_prompt_tokens + self.rollout.max_new_tokens

    @property
    def row_tokens(self) -> int:
        """Length of a packed row: as set, or the longest sequence rounded up to 128."""
        return self.batch.row_tokens or -(-self.longest // 128) * 128
