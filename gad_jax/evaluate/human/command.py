"""Serves the voting page, then reports the votes."""

import json
from collections.abc import Sequence
from pathlib import Path

from gad_jax.base import console, exits, files, next_command
from gad_jax.base.errors import UserError
from gad_jax.evaluate.answers import from_directory
from gad_jax.evaluate.human import page, results
from gad_jax.evaluate.human.ballots import TEACHER, Ballot, Votes, ballots
from gad_jax.evaluate.human.settings import Human
from gad_jax.training.report import answers


def run(human: Human) -> int:
    """Serves the page until Ctrl-C, unless only results are wanted; returns the exit code."""
    several = _ballots(human)
    with files.lock_file(human.path, "--votes"):
        votes = Votes(human.path)
        if not human.results:
            page.serve(several, votes, human)
        _report(human, several, votes)
    if (Path(human.answers) / "config.yaml").is_file():  # its report shows the votes
        next_command.say("evaluate", human.answers)
    return exits.Exit.OK


def _ballots(human: Human) -> list[Ballot]:
    directory = Path(human.answers)
    is_run = (directory / "config.yaml").is_file()
    found = answers.from_run(directory) if is_run else from_directory(directory)
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


def _report(human: Human, several: Sequence[Ballot], votes: Votes) -> None:
    found = results.result(several, votes)
    first, second = found.students
    people = len(found.annotators)
    title = f"{first} against {second}: {people} annotator{'' if people == 1 else 's'}"
    console.Display().table(title, results.table(found))
    print("\n".join(results.sentences(found, len(votes.broken))))
    path = human.path.with_suffix(".json")
    files.write_atomic(path, json.dumps(found.to_json(), indent=1) + "\n")
    print(path)
