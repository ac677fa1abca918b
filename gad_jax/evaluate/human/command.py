"""`python -m gad_jax.evaluate human`: people vote on pairs of answers, without knowing whose."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gad_jax.base import exits, files
from gad_jax.base.errors import UserError
from gad_jax.evaluate.human.settings import Human
from gad_jax.settings import options

if TYPE_CHECKING:
    from gad_jax.evaluate.human.ballots import Ballot, Votes


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    human = options.parse(
        Human,
        argv,
        program="python -m gad_jax.evaluate human",
        description="Serves a page for blind votes on pairs of answers, and says what they show.",
    )
    return exits.run_guarded(partial(_run, human))


def _run(human: Human) -> int:
    from gad_jax.evaluate.human.ballots import Votes

    several = _ballots(human)
    with files.lock_file(human.path, "--votes"):
        votes = Votes(human.path)
        if not human.results:
            from gad_jax.evaluate.human import page

            page.serve(several, votes, human)
        _report(human, several, votes)
    return exits.Exit.OK


def _ballots(human: Human) -> list["Ballot"]:
    from gad_jax.evaluate import answers
    from gad_jax.evaluate.human.ballots import TEACHER, ballots

    directory = Path(human.answers)
    is_run = (directory / "config.yaml").is_file()
    found = answers.from_run(directory) if is_run else answers.from_directory(directory)
    sets = list(dict.fromkeys(one.prompts for one in found))
    if not sets:
        raise UserError(f"{directory} has no answers; make some with gad_jax.evaluate --out")
    if human.prompts and human.prompts not in sets:
        raise UserError(f"--prompts={human.prompts} is not there; there are {', '.join(sets)}")
    groups = [
        answers.common([one for one in found if one.prompts == name])
        for name in ([human.prompts] if human.prompts else sets)
    ]
    names = [one.label for one in groups[0]]
    students = human.students or (names[-1], names[0] if len(names) > 1 else TEACHER)
    made = [
        ballot for group in groups for ballot in ballots(group, students)[: human.limit or None]
    ]
    if not made:
        raise UserError(f"{' and '.join(students)} have no prompt that both answered")
    return made


def _report(human: Human, several: list["Ballot"], votes: "Votes") -> None:
    from gad_jax.base import console
    from gad_jax.evaluate.human import results

    found = results.result(several, votes)
    first, second = found.students
    people = len(found.annotators)
    title = f"{first} against {second}: {people} annotator{'' if people == 1 else 's'}"
    console.Display().table(title, results.table(found))
    print("\n".join(results.sentences(found)))
    path = human.path.with_suffix(".json")
    files.write_atomic(path, json.dumps(found.to_json(), indent=1) + "\n")
    print(path)
