"""Students with made-up answers, and judges that follow rules."""

import re
from pathlib import Path
from typing import Any

from gad_jax.evaluate.judge import verdicts
from gad_jax.evaluate.judge.contests import Judgement, contests
from gad_jax.evaluate.judge.settings import Judge
from gad_jax.training.report.answers import Answers
from tests.fault_server import FaultServer

ANSWER = re.compile(r"<answer \d>\n(.*?)\n</answer \d>", re.DOTALL)

# What the judge gives to (student, teacher) of each prompt, with the student first and second.
RATINGS = [
    ((8, 7), (8, 7)),
    ((9, 3), (6, 6)),
    ((5, 5), (5, 5)),
    ((2, 8), (4, 6)),
    ((10, 10), (1, 9)),
    ((7, 7), (7, 7)),
    ((6, 4), (6, 4)),
    ((1, 10), (1, 10)),
    ((3, 9), (9, 3)),
    ((8, 2), (8, 2)),
]


def answers(label: str, count: int = 10, tokens: int = 5, samples: int = 1) -> Answers:
    lines = [
        {
            "id": f"q{n}",
            "prompt": f"Prompt {n}?",
            "teacher": f"T{n}",
            "teacher_tokens": 4,
            "answers": [
                {"text": f"{label} {n} {s}", "tokens": tokens, "finished": True}
                for s in range(samples)
            ],
        }
        for n in range(count)
    ]
    return Answers(label, "set", "", tuple(lines))


def settings(server: FaultServer, **more: Any) -> Judge:
    given = {"protocol": "reference", "key_variable": ""} | more
    return Judge(model="m", base_url=server.url, **given)


def ask(students: list[Answers], judge: Judge, directory: Path) -> list[Judgement]:
    return verdicts.judge(contests(students, judge), judge, directory)


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """Returns the two answers in a request."""
    first, second = ANSWER.findall(body["messages"][0]["content"])
    return first, second


def rates(body: dict[str, Any]) -> str:
    """A judge that gives RATINGS."""
    first, second = shown(body)
    swapped = first.startswith("T")
    number = int((second if swapped else first).split()[1])
    student, teacher = RATINGS[number][swapped]
    return f"{teacher} {student}\nbecause" if swapped else f"{student} {teacher}\nbecause"
