"""Ballots and votes: what is kept, and what a crash leaves."""

import json
from collections import Counter
from pathlib import Path

import pytest

from gad_jax.base.errors import StorageError, UserError
from gad_jax.evaluate.human import results
from gad_jax.evaluate.human.ballots import Votes, ballots, order
from tests.evaluate.human.harness import answers, pairs, vote


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


def test_a_broken_vote_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    several = pairs()
    for ballot in several[:2]:
        vote(Votes(path), ballot, "ann", "gad")
    first, second = path.read_text().splitlines()
    good = json.loads(first)
    broken = [
        *("{", "[]", "7", '{"a":' * 9000, json.dumps(good | {"choice": "both"})),
        *(json.dumps(good | {"students": [["gad"]]}), json.dumps(good | {"annotator": 1})),
        json.dumps({name: good[name] for name in good if name != "choice"}),
    ]
    path.write_text("\n".join([first, *broken, second]) + "\n")
    votes = Votes(path)
    assert [v["id"] for v in votes.lines] == ["q0", "q1"]
    assert votes.broken == list(range(2, 2 + len(broken)))
    found = results.result(several, votes)
    assert found.voted == 2
    assert "8 lines of the file are no votes" in " ".join(results.sentences(found, 8))


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
