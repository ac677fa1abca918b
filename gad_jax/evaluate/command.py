"""Answers prompt sets, has a judge compare the answers, and writes the report."""

from collections.abc import Sequence
from pathlib import Path

from gad_jax.base import console, exits, files, next_command, verbosity
from gad_jax.base.errors import UserError
from gad_jax.evaluate import answering
from gad_jax.evaluate.human import tables as voting
from gad_jax.evaluate.judge import tables, verdicts
from gad_jax.evaluate.judge.contests import contests, scores
from gad_jax.evaluate.settings import Evaluate, split_label
from gad_jax.training import report, selection
from gad_jax.training.report import answers, page, runs
from gad_jax.training.report.answers import Answers
from gad_jax.training.report.page import Table

# The columns that fit a terminal's width; the report has all.
_SHOWN = (
    *("tokens", "× teacher", "cut", "D score", "AUC", "ROUGE-L", "1-gram", "2-gram", "4-gram"),
    *("score", "other's", "at equal length", "unread", "missing"),
)


def run(evaluate: Evaluate) -> int:
    """Evaluates what the settings name; returns the exit code."""
    run_dir = Path(evaluate.run) if evaluate.run else None
    if run_dir is not None and not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir} is not a run directory: it has no config.yaml")
    if evaluate.model:
        found, source = answering.answer_all(evaluate), evaluate.directory
        path = source / report.NAME
    else:
        assert run_dir is not None
        found, source = answers.from_run(run_dir), run_dir
        path = Path(evaluate.out or run_dir) / report.NAME
        if not found and not runs.rows(run_dir):
            raise UserError(
                f"{run_dir} has neither steps nor evaluations; let it take a step, or give --model"
            )
    groups = [
        answers.common([answer for answer in found if answer.prompts == name])
        for name in dict.fromkeys(answer.prompts for answer in found)
    ]
    display = console.Display()
    for group in groups:
        means = {answer.label: answers.summary(answer) for answer in group}
        rows = {name: {c: row[c] for c in _SHOWN if c in row} for name, row in means.items()}
        display.table(f"{group[0].prompts}: {len(group[0].lines)} prompts", rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    judged = _judge(evaluate, groups, path.parent, display)
    voted = voting.tables(groups, source / "votes.jsonl")
    judgements = {name: judged.get(name, []) + voted.get(name, []) for name in {**judged, **voted}}
    curves = {str(run_dir): run_dir} if run_dir else _runs(evaluate)
    files.write_atomic(path, page.render(page.collect(found, curves, judgements)))
    print(path)
    next_command.say("serve", "--model", _last_model(evaluate))
    return exits.Exit.OK


def _last_model(evaluate: Evaluate) -> str:
    return split_label(evaluate.model[-1])[1] if evaluate.model else evaluate.run


def _judge(
    evaluate: Evaluate,
    groups: Sequence[list[Answers]],
    directory: Path,
    display: console.Display,
) -> dict[str, list[Table]]:
    """Shows and returns the judge's tables of each prompt set; none without a judge."""
    if not evaluate.judge.model:
        verbosity.say("no judge is configured: --judge.model names one (docs/evaluation.md)")
        return {}
    pairs = [contest for group in groups for contest in contests(group, evaluate.judge)]
    if not pairs:
        print("nothing to judge: there is neither another student nor a teacher's answer")
        return {}
    found = scores(verdicts.judge(pairs, evaluate.judge, directory))
    made = tables.tables(found, evaluate.judge.model)
    for prompts, several in made.items() if not evaluate.judge.dry_run else ():
        for table in several:
            rows = {
                name: {c: x for c, x in zip(table.columns, cells, strict=True) if c in _SHOWN}
                for name, cells in table.rows
            }
            display.table(f"{prompts}: {table.title}", rows)
    return {} if evaluate.judge.dry_run else made


def _runs(evaluate: Evaluate) -> dict[str, Path]:
    """Returns the students that are runs, or steps of runs, by name."""
    named = (split_label(text) for text in evaluate.model)
    found = {label: selection.parse(value).run for label, value in named}
    return {label: run for label, run in found.items() if selection.is_run(run)}
