"""`python -m gad_jax.evaluate`: students' answers to prompt sets, their comparison, one report.

`python -m gad_jax.evaluate human` is in `human`.
"""

import sys

from gad_jax.base import console, exits
from gad_jax.evaluate.human import __main__ as human
from gad_jax.evaluate.settings import Evaluate
from gad_jax.settings import options


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["human"]:
        return human.main(given[1:])
    evaluate = options.parse(
        Evaluate,
        given,
        program="python -m gad_jax.evaluate",
        description="Compares students on prompt sets, and writes one HTML report. "
        "`human` before all flags: people vote on the answers (human --help).",
        shows_progress=True,
    )

    def run() -> int:
        console.start_logs()
        from gad_jax.evaluate import command

        return command.run(evaluate)

    return exits.run_guarded(run)


if __name__ == "__main__":
    sys.exit(main())
