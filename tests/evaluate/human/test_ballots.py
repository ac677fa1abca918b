"""Votes: what is kept, what a crash leaves, and what they add up to, by hand."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from gad_jax.base.errors import StorageError, UserError
from gad_jax.evaluate.answers import Answers
from gad_jax.evaluate.human import results, tables
from gad_jax.evaluate.human.ballots import Ballot, Votes, ballots, order


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


def test_sides_and_turns_are_drawn_for_each_annotator() -> None:
    several = pairs(400)
    first = [ballot.shown("ann", 0)[0].student for ballot in several]
    # five standard deviations of 400 fair draws
    assert abs(Counter(first)["gad"] - 200) < 50
    assert first == [ballot.shown("ann", 0)[0].student for ballot in several]
    for other in (("bob", 0), ("ann", 1)):
        assert first != [ballot.shown(*other)[0].student for ballot in several]
        assert order(several, *other) != order(several, "ann", 0)
    assert sorted(order(several, "ann", 0), key=several.index) == several


def test_a_ballot_is_named_by_its_content() -> None:
    keys = {ballot.key for ballot in pairs(4) + pairs(5)}
    assert len(keys) == 5
    assert keys.isdisjoint(b.key for b in ballots([answers("gad")], ["gad", "teacher"]))
    with pytest.raises(UserError, match="sft has no answers to set; name two of gad, teacher"):
        ballots([answers("gad")], ["gad", "sft"])


def test_votes_survive_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    several = pairs()
    votes = Votes(path)
    vote(votes, several[0], "ann", "gad")
    vote(votes, several[1], "ann", "tie")
    line = json.loads(path.read_text().splitlines()[0])
    assert (line["winner"], line["students"], line["id"]) == ("gad", ["gad", "before"], "q0")
    assert line["choice"] == ("left" if line["left"] == "gad" else "right")
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[1]), 25):
        path.write_bytes(whole[:-cut])
        assert [v["id"] for v in Votes(path).lines] == ["q0"]
        assert path.read_bytes() == whole.splitlines(keepends=True)[0]
    path.write_bytes(b"no vote\n" + whole)
    with pytest.raises(UserError, match=r"votes\.jsonl:1: not a vote"):
        Votes(path)


def test_a_vote_that_cannot_be_kept_does_not_count(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "missing" / "votes.jsonl")
    with pytest.raises(StorageError, match="could not be kept"):
        vote(votes, pairs()[0], "ann", "gad")
    assert votes.lines == []


def test_the_last_vote_of_an_annotator_counts(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "votes.jsonl")
    several = pairs()
    vote(votes, several[0], "ann", "gad")
    vote(votes, several[1], "ann", "gad")
    vote(votes, several[0], "ann", "before")
    assert [v["winner"] for v in votes.of("ann").values()] == ["gad", "before"]
    assert votes.of("bob") == {}


def test_results_by_hand(tmp_path: Path) -> None:
    """ann: win, win, tie; bob: win, lose. Shares per prompt 1, ½, ½, and ½ for equal answers."""
    votes = Votes(tmp_path / "votes.jsonl")
    several = pairs(5, same=4)
    for number, winner in enumerate(("gad", "gad", "tie")):
        vote(votes, several[number], "ann", winner)
    vote(votes, several[0], "bob", "gad")
    vote(votes, several[1], "bob", "before")
    found = results.result(several, votes)
    assert found.score.value == pytest.approx(62.5)
    assert found.score.low < 62.5 < found.score.high
    assert (found.wins, found.ties, found.losses) == (3, 1, 1)
    assert (found.prompts, found.voted, found.equal) == (5, 3, 1)
    assert found.tokens == (3.0, 6.0)
    assert found.annotators == {"ann": 3, "bob": 2}
    # units (win, win) and (win, lose): n = 4, o_wl = 1, n_w = 3, n_l = 1: 1 − 3 · 2 / (16 − 10)
    assert found.alpha == pytest.approx(0.0)
    assert json.loads(json.dumps(found.to_json()))["score"]["value"] == pytest.approx(62.5)
    row = results.table(found)["gad"]
    assert (row["tokens"], row["other's"], row["win / tie / lose"]) == ("3.0", "6.0", "3 / 1 / 1")


def test_no_votes_are_no_numbers(tmp_path: Path) -> None:
    found = results.result(pairs(), Votes(tmp_path / "votes.jsonl"))
    assert math.isnan(found.alpha)
    assert found.to_json()["score"] == {"value": None, "low": None, "high": None}
    assert results.table(found)["gad"]["score"] == "–"
    assert "votes: none" in results.sentences(found)[0]


def test_the_report_has_a_table_for_each_two_that_were_voted_on(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    group = [answers("gad"), answers("before")]
    assert tables.tables([group], path) == {}
    votes = Votes(path)
    for ballot, winner in zip(pairs(), ("gad", "gad", "tie", "before"), strict=True):
        vote(votes, ballot, "ann", winner)
    vote(votes, ballots(group, ["gad", "teacher"])[0], "ann", "teacher")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"ballot": "torn')  # the page is writing
    first, second = tables.tables([group], path)["set"]
    assert path.read_bytes() == whole + b'{"ballot": "torn'
    assert first.title == "People prefer the answers of gad to those of before"
    cells = dict(zip(first.columns, first.rows[0][1], strict=True))
    assert cells["score"].startswith("62.5 [")
    assert cells["win / tie / lose"] == "2 / 1 / 1"
    assert "Votes: ann 4; 4 of 4 prompts have some" in first.note
    assert second.title.endswith("to those of teacher")
    # votes are on texts: those on other answers do not count, and unknown students are left out
    others = [answers("gad", 5), answers("sft", 5)]
    changed = [Answers(a.label, a.prompts, "", a.lines[4:]) for a in others]
    assert tables.tables([changed], path) == {}
