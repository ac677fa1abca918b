"""The votes in the report."""

from pathlib import Path

from gad_jax.evaluate.human import tables
from gad_jax.evaluate.human.ballots import Votes, ballots
from gad_jax.training.report.answers import Answers
from tests.evaluate.human.harness import answers, pairs, vote


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
