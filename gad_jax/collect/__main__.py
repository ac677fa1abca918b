"""`python -m gad_jax.collect`: a teacher's responses to prompts, from an API or a local model.

`python -m gad_jax.collect check` and `prepare` are in `check` and `prepare`.
"""

import sys

from gad_jax.base import console, exits, next_command
from gad_jax.collect import check, prepare
from gad_jax.collect.settings import Collect
from gad_jax.settings import options


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["check"]:
        return check.main(given[1:])
    if given[:1] == ["prepare"]:
        return prepare.main(given[1:])
    collect = options.parse(
        Collect,
        given,
        program="python -m gad_jax.collect",
        description="Collects a teacher's responses to prompts, and keeps every one that was paid. "
        "Before all flags, `check` counts what such files hold (check --help), and `prepare` "
        "splits public sets.",
        shows_progress=True,
    )

    def run() -> int:
        console.start_logs()
        from gad_jax.collect import command

        code = command.run(collect)
        if collect.dry_run and code == exits.Exit.OK:
            next_command.say("collect", *next_command.without(given, "--dry_run"))
        return code

    return exits.run_guarded(run)


if __name__ == "__main__":
    sys.exit(main())
