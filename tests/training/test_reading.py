"""The text of a run: limits from the data, and rows that are held out, stored and found again."""

import json

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources, split
from gad_jax.training import reading
from tests.training.runs import run, settings

LONG = "a response of some length, "


@pytest.fixture
def mine(tmp_path):
    """Writes rows of (prompt, repetitions of LONG) and returns their file."""

    def write(*pairs, name="mine.jsonl"):
        path = tmp_path / name
        lines = [json.dumps({"prompt": p, "teacher_response": LONG * n}) for p, n in pairs]
        path.write_text("\n".join(lines))
        return path

    return write


def read(directory, path, *flags, store=True):
    if not any(flag.startswith("--data.heldout=") for flag in flags):
        flags = ("--data.heldout=", *flags)
    return reading.read(settings(directory, f"--data.train={path}", *flags), store)


def prompts(rows):
    return [row.messages[-1]["content"] for row in rows.rows]


def test_limits_that_are_0_come_from_the_data(tmp_path, mine, capsys):
    path = mine(("a", 1), ("b" * 60, 2))
    text = read(tmp_path / "run", path, "--data.max_prompt_tokens=0", "--rollout.max_new_tokens=0")
    longest = max(len(text.rows.prompt(index)) for index in range(2))
    response = max(len(text.rows.responses(index)[0]) for index in range(2))
    assert longest <= text.config.data.max_prompt_tokens < longest + 16
    assert response <= text.config.rollout.max_new_tokens < response + 16
    assert text.rows.stats.cut_responses == 0
    assert text.losses == ()
    assert f"responses up to {text.config.rollout.max_new_tokens};" in capsys.readouterr().out


def test_limits_that_are_given_stay(tmp_path, mine, capsys):
    text = read(tmp_path / "run", mine(("a", 1), ("b", 1)), "--rollout.max_new_tokens=100")
    assert (text.config.data.max_prompt_tokens, text.config.rollout.max_new_tokens) == (256, 100)
    assert "limits from the data" not in capsys.readouterr().out


def test_a_row_length_that_the_limits_do_not_fit_is_refused(tmp_path, mine):
    flags = ("--rollout.max_new_tokens=0", "--batch.row_tokens=300")
    with pytest.raises(UserError, match=r"batch.row_tokens=300 is shorter than .* raise it or low"):
        read(tmp_path / "run", mine(("a", 5)), *flags)


def test_what_the_limits_cut_is_said_or_stops(tmp_path, mine, capsys):
    path = mine(*((f"q{n}", 1 + 9 * (n == 0)) for n in range(5)))
    flags = ("--rollout.max_new_tokens=100", "--data.stop_at_cut_share=0.5")
    (loss,) = read(tmp_path / "run", path, *flags).losses
    assert "1 of 5 teacher responses (20%) are longer" in loss
    assert f"warning: {loss}\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"5 of 5 teacher responses \(100%\) .* would be cut; "):
        read(tmp_path / "run", path, "--rollout.max_new_tokens=9", "--data.stop_at_cut_share=0.5")
    with pytest.raises(UserError, match=r"5 of 5 prompts \(100%\) .* would be dropped; "):
        read(tmp_path / "run", path, "--data.max_prompt_tokens=2")


def test_held_out_rows_do_not_stop_a_run(tmp_path, mine):
    short, long = mine(("a", 1)), mine(("b", 9), name="long.jsonl")
    flags = (f"--data.heldout={long}", "--data.stop_at_cut_share=0.5")
    config = settings(
        tmp_path / "run", f"--data.train={short}", "--rollout.max_new_tokens=60", *flags
    )
    text = reading.read(config)
    (loss,) = text.losses
    assert loss.startswith(f"{long}: 1 of 1 teacher responses (100%)")


def test_a_part_is_held_out_and_stored(tmp_path, mine, capsys):
    path = mine(*((f"q{n % 20}", 1 + n % 3) for n in range(60)))
    text = read(tmp_path / "run", path, "--data.heldout=10%")
    stored = sources.read(tmp_path / "run" / reading.HELD_OUT)
    assert text.held_out is not None
    assert prompts(stored) == prompts(text.held_out)
    assert [row.responses for row in stored] == [row.responses for row in text.held_out.rows]
    assert len(set(prompts(stored))) == 2
    assert not set(prompts(stored)) & set(prompts(text.rows))
    assert "held out: 2 prompts of " in capsys.readouterr().out
    again = read(tmp_path / "other", path, "--data.heldout=2", store=False)
    assert prompts(again.held_out) == prompts(text.held_out)
    assert not (tmp_path / "other").exists()
    other = read(tmp_path / "other", path, "--data.heldout=10%", "--data.heldout_seed=1")
    assert set(prompts(other.held_out)) != set(prompts(text.held_out))


def test_ids_of_two_files_do_not_clash_in_the_stored_rows(tmp_path):
    for name in "ab":
        rows = [{"id": n, "prompt": f"{name}{n}", "teacher_response": "x"} for n in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    both = f"{tmp_path}/a.jsonl=0.5,{tmp_path}/b.jsonl=0.5"
    read(tmp_path / "run", both, "--data.heldout=6")
    assert len(sources.read(tmp_path / "run" / reading.HELD_OUT)) == 6


def test_a_file_whose_prompts_are_all_held_out_is_refused(tmp_path, mine):
    paths = mine(("a", 1), ("b", 1)), mine(("a", 2), name="all.jsonl")
    rows = read(tmp_path / "x", paths[0]).rows
    shared = next(split.key(row) for row in rows.rows if row.messages[0]["content"] == "a")
    seed = next(n for n in range(99) if shared in split.choose([rows], (), 1, n))
    both = f"{paths[0]}=0.99,{paths[1]}=0.01"
    with pytest.raises(UserError, match=r"leaves no rows of .*all.jsonl to train on: its prompts"):
        read(tmp_path / "y", both, "--data.heldout=1", f"--data.heldout_seed={seed}")


def test_a_run_holds_out_the_stored_rows_and_refuses_other_data(tmp_path, mine):
    """The stored choice counts, not a new one: here it is another one than the seed makes."""
    path = mine(*((f"q{n}", 1) for n in range(12)))
    flags = (f"--data.train={path}", "--data.heldout=3", "--stage=seqkd", "--seqkd.steps=1")
    config = settings(tmp_path / "run", "--export=false", *flags)
    run(config)
    file = tmp_path / "run" / reading.HELD_OUT
    before = file.read_text()
    assert prompts(reading.read(config).held_out) == prompts(sources.read(file))
    assert file.read_text() == before
    lines = before.splitlines(keepends=True)
    file.write_text("".join(lines[:2]))
    assert prompts(reading.read(config).held_out) == prompts(sources.read(file))
    with pytest.raises(UserError, match="was trained on other rows"):
        run(config)
    file.write_text(before)
    mine(*((f"q{n}", 2) for n in range(12)))
    with pytest.raises(UserError, match=r"heldout.jsonl: the held-out rows of this run are not in"):
        run(config)
    mine(*((f"r{n}", 1) for n in range(12)))
    with pytest.raises(UserError, match=r"heldout.jsonl: the held-out rows of this run are not in"):
        run(config)
    file.write_text("[")
    with pytest.raises(UserError, match=r"heldout.jsonl: the run's held-out rows cannot be read"):
        run(config)


def test_a_failed_start_does_not_bind_the_rows(tmp_path, mine):
    path = mine(*((f"q{n}", 1) for n in range(12)))
    read(tmp_path / "run", path, "--data.heldout=3")
    stale = tmp_path / "run" / "evaluations" / "before.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    read(tmp_path / "run", path, "--data.heldout=3")
    assert stale.exists()
    path = mine(*((f"r{n}", 1) for n in range(12)))
    text = read(tmp_path / "run", path, "--data.heldout=3")
    assert not stale.exists()
    stored = sources.read(tmp_path / "run" / reading.HELD_OUT)
    assert prompts(stored) == prompts(text.held_out)
