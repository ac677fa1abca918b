"""`python -m gad_jax.evaluate human`: people vote on pairs of answers without knowing whose."""

import sys

from gad_jax.base import exits
from gad_jax.evaluate.human.settings import Human
from gad_jax.settings import options


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    human = options.parse(
        Human,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.evaluate human",
        description="Serves a page for blind votes on pairs of answers, and reports the results.",
    )

    def run() -> int:
        from gad_jax.evaluate.human import command

        return command.run(human)

    return exits.run_guarded(run)


if __name__ == "__main__":
    sys.exit(main())
