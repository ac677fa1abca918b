"""The settings of `python -m gad_jax.evaluate`."""

import dataclasses
from pathlib import Path
from typing import Literal

from gad_jax.evaluate.judge.settings import TEACHER, Judge
from gad_jax.settings import template_arguments
from gad_jax.settings.decoding import Decoding
from gad_jax.settings.fields import Checked, FieldError, option, section
from gad_jax.settings.sections import Columns


@dataclasses.dataclass(frozen=True)
class Evaluate(Checked):
    """Which students answer which prompts, and how the answers are compared."""

    run: str = option(
        "",
        "run whose curves are shown; without --model, its evaluations too",
        positional=True,
        location=True,
    )
    model: tuple[str, ...] = option(
        (), "students, NAME=MODEL or MODEL each, as in gad_jax.generate; the first one is 'before'"
    )
    prompts: tuple[str, ...] = option(
        ("bundled:heldout",),
        "prompt sets, NAME=ROWS or ROWS each: rows as for training (:SPLIT if not test), or "
        "Dolly, SelfInst or Vicuna as they are downloaded",
        location=True,
    )
    data: Columns = section(Columns, "columns of the prompt sets")
    out: str = option(
        "", "directory to write into; empty: RUN/evaluate, or runs/evaluate", location=True
    )
    limit: int = option(0, "use only the first prompts of each set; 0: all", "prompts", minimum=0)
    discriminator: str = option("", "run or one of its steps whose discriminator scores answers")
    template: Literal["auto", "alpaca", "none"] = option(
        "auto", "wrapper of the instruction; auto: a run's own, none for other models"
    )
    chat_template_kwargs: str = option(
        "", template_arguments.HELP + "; empty: those of the run; {}: none"
    )
    samples: int = option(1, "answers per prompt", "answers")
    temperature: float = option(0.0, "sampling temperature; 0 takes the most likely token")
    top_k: int = option(0, "sample from the k most likely tokens; 0: all", "tokens")
    top_p: float = option(1.0, "sample from the most likely tokens of this total probability")
    max_new_tokens: int = option(1536, "a longer answer is cut (the paper uses 1536)", "tokens")
    batch: int = option(16, "prompts answered at once", "prompts", above=0)
    seed: int = option(0, "seed of the sampling")
    judge: Judge = section(Judge, "a judge model that compares the answers")

    def __post_init__(self) -> None:
        super().__post_init__()
        template_arguments.parse(self.chat_template_kwargs)
        if not self.run and not self.model:
            raise FieldError("run", "nothing to evaluate; name a run, or students with --model")
        self._refuse_settings_of_students()
        for name in ("model", "prompts"):
            labels = [split_label(text)[0] for text in getattr(self, name)]
            for label in labels:
                if not label or label.startswith(".") or "/" in label:
                    raise FieldError(
                        name, f"{name}: a name that can be a file's is needed, not {label!r}"
                    )
                if name == "model" and label == TEACHER:
                    raise FieldError(
                        "model", "model: 'teacher' is the teacher's name; write NAME=… before"
                    )
                if labels.count(label) > 1:
                    raise FieldError(name, f"{name} has {label!r} twice; write NAME=… before each")
        Decoding.of(self)  # checks the rest

    def _refuse_settings_of_students(self) -> None:
        """Refuses what only answers of students depend on where none are named."""
        own = ("run", "model", "out", "judge")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            default = field.default if field.default is not dataclasses.MISSING else Columns()
            if not self.model and field.name not in own and value != default:
                raise FieldError(
                    field.name,
                    f"{field.name} is for students that answer prompts, and without --model only "
                    "the run's own evaluations are shown; name students, such as "
                    f"--model={self.run}",
                )

    @property
    def directory(self) -> Path:
        """The directory of answers and report."""
        return Path(self.out or (f"{self.run}/evaluate" if self.run else "runs/evaluate"))


def split_label(text: str) -> tuple[str, str]:
    """Returns name and value of `NAME=VALUE`; without NAME, the end of the value is the name."""
    label, equals, value = text.partition("=")
    if equals:
        return label, value
    stem = Path(text).name
    for suffix in (".gz", ".zst", ".jsonl", ".json", ".csv", ".tsv", ".parquet"):
        stem = stem.removesuffix(suffix)
    return stem.replace(":", "-"), text
