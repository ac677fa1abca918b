"""`python -m gad_jax.evaluate`: students' answers to prompt sets, how they compare, one report.

`python -m gad_jax.evaluate human` is in `voting`.
"""

import dataclasses
import math
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gad_jax.base import exits, files
from gad_jax.base.errors import UserError
from gad_jax.evaluate.judge.settings import TEACHER, Judge
from gad_jax.settings import options
from gad_jax.settings.checks import require_positive
from gad_jax.settings.decoding import Decoding
from gad_jax.settings.fields import option, section

if TYPE_CHECKING:
    from gad_jax.data.sources.rows import Row
    from gad_jax.evaluate.answers import AnswerFile, Answers
    from gad_jax.evaluate.report import Table
    from gad_jax.evaluate.scoring import Scorer
    from gad_jax.rollout.answering import Responder

_SETTINGS = ("template", "samples", "temperature", "top_k", "top_p", "max_new_tokens", "seed")

# as wide as a terminal; the report has all
_SHOWN = (
    *("tokens", "× teacher", "cut", "D score", "ROUGE-L", "1-gram", "2-gram", "4-gram"),
    *("score", "other's", "at equal length", "unread", "missing"),
)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Whose answers to which prompts."""

    run: str = option(
        "", "run whose curves are shown; without --model, its own evaluations too", positional=True
    )
    model: tuple[str, ...] = option(
        (), "students, NAME=MODEL or MODEL each, as in gad_jax.generate; the first one is 'before'"
    )
    prompts: tuple[str, ...] = option(
        ("bundled:heldout",),
        "prompt sets, NAME=ROWS or ROWS each: rows as for training (:SPLIT if not test), or "
        "Dolly, SelfInst or Vicuna as they are downloaded",
    )
    out: str = option("", "directory to write into; empty: RUN/evaluate, or runs/evaluate")
    limit: int = option(0, "prompts of each set to use, from the first; 0: all", "prompts")
    discriminator: str = option("", "run or one of its steps whose discriminator scores answers")
    template: Literal["auto", "alpaca", "none"] = option(
        "auto", "wrapper of the instruction; auto: a run's own, none for other models"
    )
    samples: int = option(1, "answers per prompt", "answers")
    temperature: float = option(0.0, "sampling temperature; 0 takes the likeliest token")
    top_k: int = option(0, "sample from the k likeliest tokens; 0: all", "tokens")
    top_p: float = option(1.0, "sample from the likeliest tokens of this total probability")
    max_new_tokens: int = option(1536, "a longer answer is cut (the paper uses 1536)", "tokens")
    batch: int = option(16, "prompts answered at once", "prompts")
    seed: int = option(0, "of the sampling")
    judge: Judge = section(Judge, "a judge model that compares the answers")

    def __post_init__(self) -> None:
        if not self.run and not self.model:
            raise ValueError("nothing to evaluate; name a run, or students with --model")
        if self.limit < 0:
            raise ValueError(f"limit={self.limit} must be 0 or more")
        for name in ("model", "prompts"):
            labels = [split_label(text)[0] for text in getattr(self, name)]
            for label in labels:
                if not label or label.startswith(".") or "/" in label:
                    raise ValueError(
                        f"{name}: a name that can be a file's is needed, not {label!r}"
                    )
                if name == "model" and label == TEACHER:
                    raise ValueError("model: 'teacher' is the teacher's name; write NAME=… before")
                if labels.count(label) > 1:
                    raise ValueError(f"{name} has {label!r} twice; write NAME=… before each")
        require_positive(self, "batch")
        Decoding.of(self)  # checks the rest

    @property
    def directory(self) -> Path:
        """Where answers and report are written."""
        return Path(self.out or (f"{self.run}/evaluate" if self.run else "runs/evaluate"))


def split_label(text: str) -> tuple[str, str]:
    """Returns name and value of `NAME=VALUE`; without a name, it is the end of the value."""
    label, equals, value = text.partition("=")
    if equals:
        return label, value
    stem = Path(text).name
    for suffix in (".gz", ".jsonl", ".parquet"):
        stem = stem.removesuffix(suffix)
    return stem.replace(":", "-"), text


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["human"]:
        from gad_jax.evaluate.human import command

        return command.main(given[1:])
    evaluate = options.parse(
        Evaluate,
        given,
        program="python -m gad_jax.evaluate",
        description="Compares students on prompt sets, and writes one HTML report. "
        "`human` before all flags: people vote on the answers (human --help).",
    )
    return exits.run_guarded(partial(_run, evaluate))


def _run(evaluate: Evaluate) -> int:
    from gad_jax.base import console
    from gad_jax.evaluate import answers, report
    from gad_jax.evaluate.human import tables as voting

    run = Path(evaluate.run) if evaluate.run else None
    if run is not None and not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run directory: it has no config.yaml")
    if evaluate.model:
        found, source = _answer_all(evaluate), evaluate.directory
        path = source / "report.html"
    else:
        assert run is not None
        found, source = answers.from_run(run), run
        path = Path(evaluate.out or run) / "report.html"
        if not found:
            raise UserError(f"{run} has no evaluations; let it finish one, or give --model")
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
    curves = {str(run): run} if run else _runs(evaluate)
    files.write_atomic(path, report.render(report.collect(found, curves, judgements)))
    print(path)
    return exits.Exit.OK


def _judge(
    evaluate: Evaluate, groups: list[list["Answers"]], directory: Path, display: Any
) -> dict[str, list["Table"]]:
    """Returns the judge's tables of each prompt set, and shows them; none without a judge."""
    if not evaluate.judge.model:
        print("no judge is configured: --judge.model names one (docs/evaluation.md)")
        return {}
    from gad_jax.evaluate.judge import asking, tables
    from gad_jax.evaluate.judge.contests import contests, scores

    pairs = [contest for group in groups for contest in contests(group, evaluate.judge)]
    if not pairs:
        print("nothing to judge: there is neither another student nor a teacher's answer")
        return {}
    found = scores(asking.judge(pairs, evaluate.judge, directory))
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
    """Returns those students that are runs, or their steps, by name."""
    from gad_jax.training.loading import is_run, split_step

    named = (split_label(text) for text in evaluate.model)
    found = {label: split_step(value)[0] for label, value in named}
    return {label: run for label, run in found.items() if is_run(run)}


def _answer_all(evaluate: Evaluate) -> list["Answers"]:
    """Returns every student's answers to every set; makes those that are not there yet."""
    from gad_jax.data import sources
    from gad_jax.evaluate.answers import AnswerFile

    sets = {}
    for label, source in map(split_label, evaluate.prompts):
        rows = sources.read(source, split="test", need_response=False).rows
        sets[label] = list(rows[: evaluate.limit or None])
    found: list[Answers] = []
    with files.lock_run(evaluate.directory, "--out"):
        for label, model in map(split_label, evaluate.model):
            open_files = []
            for prompts, rows in sets.items():
                about = {"label": label, "model": model, "prompts": prompts}
                about |= {name: getattr(evaluate, name) for name in _SETTINGS}
                about |= {"discriminator": evaluate.discriminator}
                path = evaluate.directory / prompts / f"{label}.jsonl"
                open_files.append(AnswerFile(path, rows, about))
            if not all(file.complete for file in open_files):
                _answer(evaluate, model, open_files)
            for file in open_files:
                _say(f"{file.path}: {len(file.rows)} prompts, {file.origin}")
            found += [file.answers() for file in open_files]
    return found


def _answer(evaluate: Evaluate, model: str, files: list["AnswerFile"]) -> None:
    """Fills the files of one student, batch by batch."""
    import jax

    from gad_jax.data.chat import Chat
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.rollout.answering import Responder
    from gad_jax.training import loading

    mesh = make_mesh()
    with jax.set_mesh(mesh):
        network = loading.load_student(model, mesh)
        template = evaluate.template
        template = network.template or "none" if template == "auto" else template
        chat = Chat.load(network.tokenizer, template)
        responder = Responder(network.config, network.params, chat, mesh, Decoding.of(evaluate))
        scorer = _load_scorer(evaluate, mesh) if evaluate.discriminator else None
        for file in files:
            file.begin(network.origin)
            while not file.complete:
                start = len(file.lines)
                rows = file.rows[start : start + evaluate.batch]
                lines = _lines(rows, start, responder)
                if scorer is not None:
                    _add_scores(rows, lines, scorer)
                file.append(lines)
                _say(f"{file.path}: {len(file.lines)} of {len(file.rows)}")


def _load_scorer(evaluate: Evaluate, mesh: Any) -> "Scorer":
    from gad_jax.data.chat import Chat
    from gad_jax.evaluate.scoring import Scorer
    from gad_jax.training import loading

    network = loading.load_from_run(evaluate.discriminator, "discriminator", mesh)
    chat = Chat.load(network.tokenizer, network.template)
    return Scorer(network.config, network.params, chat, mesh)


def _add_scores(rows: list["Row"], lines: list[dict[str, Any]], scorer: "Scorer") -> None:
    """Adds the discriminator's score to each answer, and to the teacher's."""
    asked, texts, complete, places = [], [], [], []
    for row, line in zip(rows, lines, strict=True):
        shown = [
            (answer, "score", answer["text"], answer["finished"]) for answer in line["answers"]
        ]
        if line["teacher"] and shown:
            shown.append((line, "teacher_score", line["teacher"], True))
        for place, name, text, finished in shown:
            asked.append(row.messages)
            texts.append(text)
            complete.append(finished)
            places.append((place, name))
    for (place, name), score in zip(places, scorer(asked, texts, complete), strict=True):
        place[name] = None if math.isnan(score) else score


def _lines(rows: list["Row"], start: int, responder: "Responder") -> list[dict[str, Any]]:
    """Returns the lines of some rows, of which the first is the set's row number `start`."""
    from gad_jax.evaluate.answers import shown_prompt
    from gad_jax.metrics import overlap

    prompts = responder.encode([row.messages for row in rows])
    short = [n for n, prompt in enumerate(prompts) if len(prompt) <= responder.longest_prompt]
    answered: dict[int, list[dict[str, Any]]] = {}
    if short:
        groups = responder.answers([prompts[n] for n in short], [start + n for n in short])
        answered = {
            n: [answer._asdict() for answer in g] for n, g in zip(short, groups, strict=True)
        }
    lines = []
    for number, row in enumerate(rows):
        teacher = row.responses[0] if row.responses else None
        line = {
            "id": row.id,
            "prompt": shown_prompt(row),
            "teacher": teacher,
            "teacher_tokens": len(responder.chat.encode_response(teacher)) if teacher else None,
            "answers": answered.get(number, []),
        }
        for answer in line["answers"]:
            answer |= overlap.scores(teacher, answer["text"]) if teacher else {}
        lines.append(line)
    return lines


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
