"""Students with made-up answers, votes on them, and answers that try to break out of the page."""

from gad_jax.evaluate.human.ballots import Ballot, Votes, ballots
from gad_jax.training.report.answers import Answers

EVIL = (
    "</div><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    "{{ 123456789*987654321 }}"
)

COUNT = 3


def answers(label: str, count: int = 4, same: int = -1) -> Answers:
    lines = [
        {
            "id": f"q{n}",
            "prompt": f"Prompt {n}?",
            "teacher": f"Teacher {n}",
            "teacher_tokens": 9,
            "answers": [{"text": "same" if n == same else f"{label} {n}", "tokens": len(label)}],
        }
        for n in range(count)
    ]
    return Answers(label, "set", "", tuple(lines))


def pairs(count: int = 4, same: int = -1) -> list[Ballot]:
    return ballots([answers("gad", count, same), answers("before", count, same)], ["gad", "before"])


def vote(votes: Votes, ballot: Ballot, annotator: str, winner: str) -> None:
    left, _ = ballot.shown(annotator, 0)
    choice = "tie" if winner == "tie" else "left" if left.student == winner else "right"
    votes.add(ballot, annotator, choice, 0, 1.0)
