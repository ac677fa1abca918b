"""Every setting of a run, as a frozen dataclass that checks itself when made. Imports no jax.

Its sections are in `sections.py`, `operation.py` and `alarms.py`; files, flags and `--help` in
`options.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from gad_jax.settings import baselines, custom, fields, grpo, lora, rounding
from gad_jax.settings.alarms import Health
from gad_jax.settings.baselines import Dpo
from gad_jax.settings.custom import Custom
from gad_jax.settings.discriminator import Discriminator
from gad_jax.settings.fields import Checked, FieldError, Given, option, section
from gad_jax.settings.grpo import Grpo
from gad_jax.settings.lora import Lora
from gad_jax.settings.operation import Checkpoint, Evaluation, Limits, Mesh, Profile
from gad_jax.settings.optimizer import Optimizer
from gad_jax.settings.reward import Reward
from gad_jax.settings.sections import Batch, Data, Rollout, Stage, Student
from gad_jax.settings.tracking import Tracking

STAGES = ("seqkd", "warmup", "offpolicy", "gad", "dpo", "rejection", "custom")
"""In this order: a stage's number seeds the order of its rows, so new ones come last."""

_ALONE = "gad.discriminator_only_steps"

CAN_CHANGE = (
    "run_dir",
    "export",
    "data.stop_at_",
    "evaluation.",
    "checkpoint.",
    "health.",
    "mesh.",
    "limits.",
    "profile.",
    "tracking.",
    "student.remat",
    "student.unroll",
    "optimizer.placement",
    "batch.micro_batch_prompts",
    "batch.row_tokens",
    "batch.vocabulary_chunk",
    "rollout.slots",
    "rollout.resize",
    "reward.timeout",
    *(
        f"reward.judge.{name}"
        for name in (
            *("base_url", "key_variable", "concurrency", "timeout", "attempts", "max_wait"),
            *("max_total_tokens", "max_cost", "prompt_price", "completion_price"),
        )
    ),
)
"""Settings that may differ when a run resumes. None changes the arithmetic of a step beyond
rounding; an alarm of `health.` may pause a network or stop the run."""


@dataclass(frozen=True)
class Config(Checked):
    """A run of `python -m gad_jax.train`."""

    stage: str = option(
        "all",
        "with commas: seqkd, warmup, offpolicy, gad, dpo, rejection, custom; all: warmup,gad",
        common=True,
    )
    run_dir: str = option(
        "runs/default",
        "directory of all that the run writes; an existing run is resumed",
        common=True,
        filled=True,
        location=True,
    )
    seed: int = option(0, "seed of data order, sampling and the discriminator's head", common=True)
    export: bool = option(
        True, "write the student as a Hugging Face directory at the end", common=True
    )
    student: Student = section(Student, "the student and the compute settings of both networks")
    discriminator: Discriminator = section(Discriminator, "the discriminator")
    lora: Lora = section(Lora, "adapters on a frozen base, in the place of full training")
    data: Data = section(Data, "teacher text")
    batch: Batch = section(Batch, "batch sizes")
    rollout: Rollout = section(Rollout, "sampling during training")
    optimizer: Optimizer = section(
        Optimizer, "AdamW for both networks; each stage has its learning rates and schedule"
    )
    grpo: Grpo = section(Grpo, "the generator's loss in the GAD stage")
    reward: Reward = section(Reward, "what the generator is paid in the GAD stage")
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
        common=False,
        epochs=2.0,
        train_generator=False,
    )
    gad: Stage = section(
        Stage, "stage: GRPO on the discriminator's score, both networks learn", epochs=2.0
    )
    dpo: Dpo = section(
        Dpo,
        "stage: DPO of the teacher's response over the student's own (SODA) or given ones",
        common=False,
        train_discriminator=False,
    )
    rejection: Stage = section(
        Stage,
        "stage: cross-entropy on the best of the student's own samples by the discriminator",
        common=False,
        generator_learning_rate=5e-6,
        train_discriminator=False,
    )
    custom: Custom = section(Custom, "stage: a step of your own", common=False)
    evaluation: Evaluation = section(Evaluation, "held-out evaluation")
    checkpoint: Checkpoint = section(Checkpoint, "checkpoints")
    health: Health = section(Health, "alarms for a run that goes wrong, and what they do")
    mesh: Mesh = section(Mesh, "device mesh")
    limits: Limits = section(Limits, "limits of time and memory")
    profile: Profile = section(Profile, "profiling")
    tracking: Tracking = section(Tracking, "experiment trackers", common=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.run_dir.isprintable():
            raise FieldError("run_dir", f"run_dir={self.run_dir!r}: remove what is unprintable")
        if not 0 <= self.seed < 2**32:
            raise FieldError("seed", f"seed={self.seed} must be in [0, 2**32)")
        self._check_stages()
        trains = {
            name: (getattr(self, name).train_generator, self.trains_discriminator(name))
            for name in self.stages
        }
        pays = "gad" in self.stages and self.uses_discriminator("gad")
        self.discriminator.check(self.rollout.samples, trains, pays=pays)
        grpo.check(self)
        rounding.check(self)
        self._check_placement()
        if 0 < self.batch.row_tokens < self.longest:
            raise FieldError(
                "batch.row_tokens",
                f"batch.row_tokens={self.batch.row_tokens} is shorter than data.max_prompt_tokens "
                f"+ rollout.max_new_tokens = {self.longest}; raise it or lower one of those",
                "data.max_prompt_tokens",
                "rollout.max_new_tokens",
            )

    def _check_placement(self) -> None:
        ranks = [self.lora.rank_of(part) for part in ("generator", "discriminator")]
        if self.optimizer.placement == "host" and any(ranks):
            raise FieldError(
                "optimizer.placement",
                f"optimizer.placement=host is for networks that are trained whole, and lora.rank="
                f"{max(ranks)} trains adapters, whose moments are small; leave it out",
                "lora.rank",
                "lora.discriminator_rank",
            )

    def _check_stages(self) -> None:
        for name in self.stages:
            if name not in STAGES:
                known = f"{', '.join(STAGES)}, several with commas, or all"
                raise FieldError("stage", f"stage={self.stage!r} names {name!r}; use {known}")
        if len(set(self.stages)) < len(self.stages):
            raise FieldError("stage", f"stage={self.stage!r} names a stage twice")
        first = self.stages[0]
        if getattr(self, first).keep_moments:
            raise FieldError(
                f"{first}.keep_moments",
                f"{first}.keep_moments=true, but {first} is the first stage and has no moments to "
                "keep; leave it out, or add the stage before with --stage",
                "stage",
            )
        if self.seqkd.train_discriminator or not self.seqkd.train_generator:
            raise FieldError(
                "seqkd.train_discriminator",
                "seqkd trains the generator alone; use the warmup stage to train a discriminator "
                "too",
                "seqkd.train_generator",
            )
        if self.offpolicy.train_generator:
            raise FieldError(
                "offpolicy.train_generator", "offpolicy trains the discriminator alone"
            )
        if not self.gad.train_generator:
            raise FieldError(
                "gad.train_generator",
                "gad.train_generator=false leaves the discriminator alone; use --stage=offpolicy",
            )
        if self.gad.discriminator_only_steps and not self.reward.discriminator:
            raise FieldError(
                "gad.discriminator_only_steps",
                f"gad.discriminator_only_steps={self.gad.discriminator_only_steps} trains a "
                "discriminator alone, and reward.discriminator=0 uses none; leave one of them out",
                "reward.discriminator",
            )
        self._check_discriminator_is_used()
        baselines.check(self)
        custom.check(self)

    def _check_discriminator_is_used(self) -> None:
        """Raises FieldError for a stage before gad whose discriminator no later stage needs."""
        before = self.stages[: self.stages.index("gad")] if "gad" in self.stages else ()
        for number, name in enumerate(before, 1):
            if self.trains_discriminator(name) and not any(
                map(self.uses_discriminator, self.stages[number:])
            ):
                alone = not getattr(self, name).train_generator
                leave = "" if alone else f"give --{name}.train_discriminator=false, or "
                raise FieldError(
                    f"{name}.train_discriminator",
                    f"{name} trains a discriminator that no later stage uses, because gad has "
                    f"reward.discriminator=0; {leave}leave {name} out of --stage",
                    "reward.discriminator",
                    "stage",
                )

    @classmethod
    def completed(cls, given: Mapping[str, Given]) -> dict[str, Given]:
        """Returns the given values with those that follow from them: learning rates of adapters,
        importance weights where sampling or updates round, and no steps of D alone where
        a flag takes D out of a file's run."""
        defaults = {leaf.path: leaf.value for leaf in fields.leaves(cls)}
        found = rounding.completed(lora.with_rates(given, STAGES, defaults))
        judge, alone = (given.get(f) for f in ("reward.discriminator", _ALONE))
        if judge and judge.from_flag and not judge.value and alone and not alone.from_flag:
            found[_ALONE] = Given(0, judge.where)
        return found

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages to run, in order."""
        named = "warmup,gad" if self.stage == "all" else self.stage
        return tuple(name.strip() for name in named.split(","))

    def uses_discriminator(self, stage: str) -> bool:
        """Returns whether a stage scores responses with the discriminator, or trains it."""
        if stage == "gad":
            return self.reward.discriminator > 0
        if stage == "rejection":
            return True
        return getattr(self, stage).train_discriminator

    def trains_discriminator(self, stage: str) -> bool:
        """Returns whether a stage trains the discriminator."""
        return self.uses_discriminator(stage) and getattr(self, stage).train_discriminator

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its response together."""
        return self.data.max_prompt_tokens + self.rollout.max_new_tokens

    @property
    def evaluation_tokens(self) -> int:
        """Most tokens of an answer in a held-out evaluation."""
        return self.evaluation.max_new_tokens or self.rollout.max_new_tokens

    @property
    def evaluated_at_once(self) -> int:
        """Most held-out prompts that are read at a time, as far as the settings say."""
        options, part = self.evaluation, self.data.heldout_part
        limits = (options.prompts, part if isinstance(part, int) else 0)
        return min([options.batch_prompts, *(limit for limit in limits if limit)])

    @property
    def longest_evaluated(self) -> int:
        """Most tokens of a held-out prompt and its answer together; 0 without held-out rows."""
        return self.data.max_prompt_tokens + self.evaluation_tokens if self.data.heldout else 0

    @property
    def row_tokens(self) -> int:
        """Length of a packed row: as set, or the longest sequence rounded up to 128."""
        return self.batch.row_tokens or -(-self.longest // 128) * 128


C = TypeVar("C", bound=Config)


def with_limits(config: C, prompt: int, response: int) -> C:
    """Returns the same run with these limits, in tokens.

    Raises FieldError where another setting forbids them.
    """
    return replace(
        config,
        data=replace(config.data, max_prompt_tokens=prompt),
        rollout=replace(config.rollout, max_new_tokens=response),
    )


def default_file(argv: Sequence[str]) -> str:
    """The configuration that a command line without `--config` means: `own` for one's own rows.

    The steps and limits of the quickstart belong to the bundled rows.
    """
    flag = "--data.train"
    values = [argument.partition("=")[2] for argument in argv if argument.startswith(f"{flag}=")]
    values += [value for name, value in pairwise(argv) if name == flag]
    return "own" if any(value != "bundled" for value in values) else "quickstart"
