"""`python -m gad_jax.world`: SeqKD, GAD and its ablations, where an oracle knows what is right.

For each seed there is a world: instructions with answers of a public and of a teacher. A small
student is trained on the public's answers until it hardly improves. From there each method trains
it, by `gad_jax.train`, on the same rows of the teacher. The figures of docs/results.md on the
paper's claims come from here.
"""

import dataclasses
import sys

from gad_jax.base import exits
from gad_jax.settings import options
from gad_jax.settings.fields import FieldError, option
from gad_jax.world.language import VARIANTS
from gad_jax.world.methods import METHODS


@dataclasses.dataclass(frozen=True)
class World:
    """How large the experiment is."""

    out: str = option(
        "runs/world", "directory for everything; the same command resumes there", location=True
    )
    seeds: int = option(5, "repetitions, each with its own world, student and order", "seeds")
    first_seed: int = option(0, "the first of the seeds")
    methods: str = option("all", f"comma-separated, of {', '.join(METHODS)}; or all")
    training: str = option(
        "world", "configuration of the runs, as --config of gad_jax.train", location=True
    )
    flags: str = option("", "more flags of the runs, separated by spaces")
    variant: str = option(
        "style",
        "style: answers in three styles, one of them too hard for the student; knowledge: one "
        "style, whose steps the student must learn to compute",
    )
    rows: int = option(8192, "teacher rows", "rows")
    heldout: int = option(500, "instructions answered at the end", "instructions")
    layers: int = option(4, "layers of the student", "layers")
    width: int = option(96, "width of the student, a multiple of 24")
    workers: int = option(2, "seeds that run at once", "runs")

    def __post_init__(self) -> None:
        for name in ("seeds", "rows", "heldout", "layers", "workers"):
            if getattr(self, name) < 1:
                raise FieldError(name, f"{name}={getattr(self, name)} must be 1 or more")
        if self.variant not in VARIANTS:
            raise FieldError(
                "variant", f"variant={self.variant!r} is unknown; use {' or '.join(VARIANTS)}"
            )
        if self.first_seed < 0:
            raise FieldError("first_seed", f"first_seed={self.first_seed} must be 0 or more")
        if self.width < 24 or self.width % 24:
            raise FieldError("width", f"width={self.width} must be a multiple of 24")
        for name in self.chosen:
            if name not in METHODS:
                raise FieldError(
                    "methods", f"methods names {name!r}; use {', '.join(METHODS)}, or all"
                )
        for place, name in enumerate(self.chosen):
            if name in self.chosen[:place]:
                raise FieldError("methods", f"methods names {name!r} twice; name it once")
            missing = [need for need in METHODS[name].needs if need not in self.chosen[:place]]
            if missing:
                raise FieldError(
                    "methods", f"methods names {name!r}, which needs {missing[0]!r} before it"
                )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The methods to run."""
        named = (name.strip() for name in self.methods.split(","))
        return tuple(METHODS) if self.methods == "all" else tuple(named)

    @property
    def numbers(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    world = options.parse(
        World,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.world",
        description="SeqKD, GAD and ablations in a small world whose oracle knows right answers.",
    )

    def run() -> int:
        from gad_jax.world import seeds

        return seeds.run(world)

    return exits.run_guarded(run)


if __name__ == "__main__":
    sys.exit(main())
