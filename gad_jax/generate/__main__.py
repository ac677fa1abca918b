"""`python -m gad_jax.generate`: answers of a student to a prompt, a file, or at a prompt line."""

import dataclasses
import sys
from typing import Literal

from gad_jax.base import console, exits
from gad_jax.settings import options, template_arguments
from gad_jax.settings.decoding import Decoding
from gad_jax.settings.fields import Checked, FieldError, option, section
from gad_jax.settings.sections import Columns


@dataclasses.dataclass(frozen=True)
class Generate(Checked):
    """What to answer, and how."""

    model: str = option(
        "smollm2-135m-instruct",
        "run directory, RUN@best, RUN@STEP, Hugging Face directory, hub id, or a built-in model",
    )
    prompt: str = option("", "one instruction; without prompt and file, you type them")
    file: str = option(
        "", "JSONL or Parquet rows with messages or prompt, as for training", location=True
    )
    data: Columns = section(Columns, "columns of the file")
    out: str = option("", "JSONL file for the answers; empty: they are printed", location=True)
    template: Literal["auto", "alpaca", "none"] = option(
        "auto", "wrapper of the instruction; auto: that of the run, none for other models"
    )
    chat_template_kwargs: str = option(
        "", template_arguments.HELP + "; empty: those of the run; {}: none"
    )
    samples: int = option(1, "answers per prompt", "answers")
    temperature: float = option(0.0, "sampling temperature; 0 takes the most likely token")
    top_k: int = option(0, "sample from the k most likely tokens; 0: all", "tokens")
    top_p: float = option(1.0, "sample from the most likely tokens of this total probability")
    max_new_tokens: int = option(256, "a longer answer is cut", "tokens")
    batch: int = option(16, "prompts of a file answered at once", "prompts", above=0)
    seed: int = option(0, "seed of the sampling")

    def __post_init__(self) -> None:
        super().__post_init__()
        template_arguments.parse(self.chat_template_kwargs)
        if self.prompt and self.file:
            raise FieldError("prompt", "prompt and file are both given; give one of them", "file")
        if self.out and not self.file:
            raise FieldError(
                "out", f"out={self.out} is for the answers to a file; give file too", "file"
            )
        Decoding.of(self)  # checks the rest


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    generate = options.parse(
        Generate,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.generate",
        description="Answers instructions with a student: one, a file of them, or interactively.",
        shows_progress=True,
    )

    def run() -> int:
        console.start_logs()
        from gad_jax.generate import command

        return command.run(generate)

    return exits.run_guarded(run)


if __name__ == "__main__":
    sys.exit(main())
