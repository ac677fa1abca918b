"""The results of votes, by hand."""

import json
import math
from pathlib import Path

import pytest

from gad_jax.evaluate.human import results
from gad_jax.evaluate.human.ballots import Votes
from tests.evaluate.human.harness import pairs, vote


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
