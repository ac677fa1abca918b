"""The batches of a run: whole epochs, the same in any process, and files in their shares."""

import inspect
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.data.epochs import batches
from gad_jax.data.pipeline import mix, prepare
from tests.data.rows import LIMITS, numbered, rows_of

# --- batches ------------------------------------------------------------------------------------


def indices(batch):
    return batch.indices.tolist()


def test_a_batch_holds_the_rows_that_its_indices_name(chat):
    prepared = prepare(numbered(7), chat, **LIMITS)
    batch = batches(prepared, prompts_per_step=3, seed=0)[4]
    assert len(batch) == 3
    assert batch.indices.dtype == np.int32
    for prompt, response, index in zip(batch.prompts, batch.responses, batch.indices, strict=True):
        row = prepared.rows[index]
        assert prompt.tolist() == chat.encode_prompt(row.messages)
        assert response.tolist() == chat.encode_response(row.responses[0])


@pytest.mark.parametrize(("rows", "size"), [(12, 4), (11, 4), (4, 4), (5, 1)])
def test_an_epoch_has_each_row_at_most_once(chat, rows, size):
    data = batches(prepare(numbered(rows), chat, **LIMITS), prompts_per_step=size, seed=3)
    assert data.steps_per_epoch == rows // size
    left_out = set()
    for epoch in range(20):
        steps = range(epoch * data.steps_per_epoch, (epoch + 1) * data.steps_per_epoch)
        seen = Counter(index for step in steps for index in indices(data[step]))
        assert len(seen) == seen.total() == rows - rows % size
        left_out |= set(range(rows)) - set(seen)
    if rows % size:  # not the same rows each time
        assert len(left_out) > rows % size


def test_each_epoch_and_seed_has_an_order_of_its_own(chat):
    prepared = prepare(numbered(12), chat, **LIMITS)
    data = batches(prepared, prompts_per_step=12, seed=0)
    other = batches(prepared, prompts_per_step=12, seed=1)
    orders = [indices(data[0]), indices(data[1]), indices(other[0]), list(range(12))]
    assert len(set(map(tuple, orders))) == 4


@pytest.mark.parametrize("processes", [2, 4])
def test_the_process_count_changes_nothing_but_who_gets_a_row(chat, processes):
    rows = rows_of(*((f"q{n}", (f"a{n}", f"b{n}", f"c{n}")) for n in range(22)))
    prepared = prepare(rows, chat, **LIMITS)
    alone = batches(prepared, prompts_per_step=8, seed=5)
    parts = [
        batches(prepared, prompts_per_step=8, seed=5, process_index=n, process_count=processes)
        for n in range(processes)
    ]
    assert {part.steps_per_epoch for part in parts} == {alone.steps_per_epoch} == {2}
    for step in range(7):  # over three ends of an epoch
        whole, shares = alone[step], [part[step] for part in parts]
        for n, share in enumerate(shares):
            assert indices(share) == indices(whole)[n::processes]
            for name in ("prompts", "responses"):
                ours, theirs = getattr(share, name), getattr(whole, name)[n::processes]
                assert [tokens.tolist() for tokens in ours] == [t.tolist() for t in theirs]


def test_each_epoch_draws_one_of_several_responses(chat):
    answers = ("first", "second", "third")
    prepared = prepare(rows_of(*((f"q{n}", answers) for n in range(8))), chat, **LIMITS)
    assert [chat.decode(tokens) for tokens in prepared.responses(7)] == list(answers)
    data = batches(prepared, prompts_per_step=8, seed=0)
    drawn = {}
    for epoch in range(60):
        batch = data[epoch]
        for index, tokens in zip(indices(batch), batch.responses, strict=True):
            drawn[epoch, index] = chat.decode(tokens)
    # 480 draws, 160 of each expected with standard deviation 10.3: four of them are 41.
    counts = Counter(drawn.values())
    assert set(counts) == set(answers)
    assert all(abs(count - 160) < 41 for count in counts.values())
    for index in range(8):
        assert len({drawn[epoch, index] for epoch in range(60)}) == 3
    assert len({drawn[0, index] for index in range(8)}) > 1
    # The draw belongs to the row and the epoch, not to the batch size.
    smaller = batches(prepared, prompts_per_step=4, seed=0)
    for step in range(8):
        batch = smaller[step]
        for index, tokens in zip(indices(batch), batch.responses, strict=True):
            assert chat.decode(tokens) == drawn[step // 2, index]


def lines_of_a_run(directory, file, first, last):
    """The fingerprint and a line per step; also run by a process of its own, from its source."""
    import json

    from gad_jax.data import sources
    from gad_jax.data.chat import Chat
    from gad_jax.data.epochs import batches
    from gad_jax.data.pipeline import prepare

    prepared = prepare(
        sources.read(file), Chat.load(directory), max_prompt_tokens=200, max_response_tokens=50
    )
    data = batches(prepared, prompts_per_step=4, seed=7)
    lines = [prepared.fingerprint]
    for step in range(first, last):
        batch = data[step]
        tokens = [[t.tolist() for t in part] for part in (batch.prompts, batch.responses)]
        lines.append(json.dumps([batch.indices.tolist(), *tokens]))
    return lines


def test_a_fresh_process_goes_on_at_any_step(student, tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [{"prompt": f"q{n}", "teacher_response": ["a", "b", "c"]} for n in range(10)]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, *uninterrupted = lines_of_a_run(student, path, 0, 9)
    assert len(uninterrupted) == 9
    code = f"{inspect.getsource(lines_of_a_run)}\nprint(*lines_of_a_run({str(student)!r}, "
    code += f"{str(path)!r}, 5, 9), sep='\\n')"
    command = [sys.executable, "-c", code]
    resumed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert resumed.splitlines() == [first, *uninterrupted[5:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts_per_step": 6}, "batch.prompts=6 does not fit 5 rows; use 1 to 5, or give more"),
        ({"prompts_per_step": 0}, "batch.prompts=0 does not fit 5 rows"),
        (
            {"prompts_per_step": 3, "process_count": 2},
            "batch.prompts=3 does not split over 2 processes; use a multiple of 2",
        ),
        ({"seed": -1}, "seed=-1 must be from 0 to 4294967295"),
        ({"seed": 2**32}, "seed=4294967296 must be from 0 to 4294967295"),
    ],
)
def test_sizes_that_do_not_fit(chat, options, message):
    prepared = prepare(numbered(5), chat, **LIMITS)
    with pytest.raises(UserError) as caught:
        batches(prepared, **{"prompts_per_step": 2, "seed": 0, **options})
    assert str(caught.value).startswith(message)


def test_steps_are_not_negative(chat):
    data = batches(prepare(numbered(5), chat, **LIMITS), prompts_per_step=2, seed=0)
    with pytest.raises(IndexError, match="step -1 is negative"):
        data[-1]


# --- several files ------------------------------------------------------------------------------


def two_files(chat):
    """A file of 10 rows and one of 40 with two responses each."""
    small = rows_of(*((f"small {n}", f"answer {n}") for n in range(10)))
    large = rows_of(*((f"large {n}", (f"one {n}", f"two {n}")) for n in range(40)))
    return [prepare(rows, chat, **LIMITS) for rows in (small, large)]


def test_files_with_weights_are_drawn_in_their_shares(chat):
    files = two_files(chat)
    mixed = mix(files, [3.0, 1.0])
    assert (len(mixed), mixed.stats.responses) == (50, 90)
    steps = batches(mixed, prompts_per_step=8, seed=1)
    assert steps.steps_per_epoch == 6
    drawn = np.stack([steps[step].indices for step in range(40)])
    assert np.mean(drawn < 10) == pytest.approx(0.75, abs=0.01)
    assert all(4 <= np.sum(batch < 10) <= 8 for batch in drawn)  # in every batch, nearly
    counts = np.bincount(drawn.ravel(), minlength=50)
    assert counts[:10].min() >= 23  # 240 draws of 10 rows: 24 whole shuffles
    assert set(counts[10:]) == {2}  # 80 draws of 40 rows
    batch = steps[5]
    for index, prompt, response in zip(
        batch.indices.tolist(), batch.prompts, batch.responses, strict=True
    ):
        np.testing.assert_array_equal(prompt, mixed.prompt(index))
        assert any(np.array_equal(response, r) for r in mixed.responses(index))


def test_a_mixed_batch_depends_on_seed_and_step_alone(chat):
    mixed = mix(two_files(chat), [0.5, 0.5])
    again = batches(mix(two_files(chat), [0.5, 0.5]), prompts_per_step=8, seed=3)
    steps = batches(mixed, prompts_per_step=8, seed=3)
    np.testing.assert_array_equal(steps[17].indices, again[17].indices)
    halves = [
        batches(mixed, prompts_per_step=8, seed=3, process_index=n, process_count=2)[17].indices
        for n in range(2)
    ]
    np.testing.assert_array_equal(np.stack(halves, axis=1).ravel(), steps[17].indices)
    other = mix(two_files(chat), [0.5, 0.6])
    assert other.fingerprint != mixed.fingerprint


def test_files_without_weights_are_one_set(chat):
    files = two_files(chat)
    joined = mix(files, [])
    drawn = np.concatenate(
        [batches(joined, prompts_per_step=10, seed=0)[n].indices for n in range(5)]
    )
    assert sorted(drawn) == list(range(50))
    assert mix(files[:1], []) is files[0]
