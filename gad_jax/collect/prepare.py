"""`python -m gad_jax.collect prepare`: public sets of prompts as files for training."""

import dataclasses
from typing import NamedTuple

from gad_jax.base import exits
from gad_jax.settings import options
from gad_jax.settings.fields import FieldError, option


class Recipe(NamedTuple):
    """A public set, and the names of the files made from it, with or without responses."""

    source: str
    train: str
    heldout: str
    responses: bool


RECIPES = {
    "lmsys-gpt5": Recipe(
        "ytz20/LMSYS-Chat-GPT-5-Chat-Response", "train.jsonl", "heldout.jsonl", responses=True
    ),
    "lmsys-prompts": Recipe(
        "OpenLeecher/lmsys_chat_1m_clean",
        "train.prompts.jsonl",
        "heldout.prompts.jsonl",
        responses=False,
    ),
}


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Which set is prepared, and how it is split."""

    out: str = option(dataclasses.MISSING, "directory for the files", location=True)
    recipe: str = option(
        "",
        "lmsys-gpt5: the paper's rows with their responses; lmsys-prompts: the first turns of "
        "LMSYS-Chat-1M-Clean, for a teacher of your own",
        positional=True,
    )
    source: str = option(
        "", "downloaded file or directory, instead of the hub's dataset", location=True
    )
    heldout: int = option(500, "prompts to hold out", "prompts")
    seed: int = option(0, "seed of the choice of held-out prompts")
    skip_invalid: bool = option(True, "skip and count malformed rows instead of stopping")
    license: str = option("", "licence of the rows, for the manifest")

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise FieldError("recipe", f"recipe={self.recipe!r} is none of {', '.join(RECIPES)}")
        if self.heldout < 0:
            raise FieldError("heldout", f"heldout={self.heldout} must be 0 or more")


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    prepare = options.parse(
        Prepare,
        argv,
        program="python -m gad_jax.collect prepare",
        description="Splits a public set of prompts into rows for training and held-out rows.",
    )

    def run() -> int:
        from gad_jax.collect import preparing

        return preparing.run(prepare)

    return exits.run_guarded(run)
