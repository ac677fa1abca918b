"""Runs that are paid by a user's own function, next to the discriminator and without one."""

import json
import logging
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.base.shortage import gigabytes
from gad_jax.data.chat import Chat
from gad_jax.data.epochs import PromptBatch
from gad_jax.data.sources.rows import Row
from gad_jax.models import source
from gad_jax.settings.config import Config
from gad_jax.settings.reward import Reward
from gad_jax.training import digest, footprint, setup
from gad_jax.training.rewards import models, paying
from gad_jax.types import Rollout
from tests.fault_server import FaultServer
from tests.training.runs import rows, run, settings

pytest_plugins = ["tests.run_fixtures"]

PAGE = Path(__file__).parents[3] / "docs" / "rewards.md"
FAST = (
    "--stage=gad",
    "--gad.steps=6",
    "--gad.generator_learning_rate=0.03",
    "--grpo.kl_coefficient=0",
    "--rollout.samples=4",
    "--checkpoint.every=3",
    "--data.heldout=",
)


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    """A run without a discriminator whose reward is minus the length in characters."""
    directory = tmp_path_factory.mktemp("brief")
    file = directory / "own.py"
    file.write_text("def brevity(response): return -len(response)\n")
    flags = (*FAST, "--reward.discriminator=0", f"--reward.extra={file}:brevity")
    return file, flags, directory / "run", run(settings(directory / "run", *flags))


def test_a_users_own_reward_rises(brief):
    _, _, directory, trainer = brief
    logged = rows(directory)
    paid = [row["reward/brevity/mean"] for row in logged]
    assert np.mean(paid[3:]) > np.mean(paid[:3]) + 0.5
    assert trainer.state.discriminator is None
    assert not any(name.startswith("discriminator/") for row in logged for name in row)
    for row in logged:
        assert row["reward/mean"] == pytest.approx(0, abs=1e-6)  # of z
        assert row["reward/std"] == pytest.approx(1, abs=1e-3)
        assert row["reward/brevity/nonfinite"] == 0
        assert row["skips/total"] == 0


def test_such_a_run_resumes_bit_for_bit_and_with_the_same_file_only(brief, tmp_path, caplog):
    file, flags, directory, whole = brief
    config = settings(tmp_path, *flags)
    setup.claim(config)
    assert not run(config, 3).finished
    file.write_text(file.read_text() + "# another\n")
    with pytest.raises(
        UserError,
        match=r"own.py:brevity paid for as it was before \([0-9a-f]{12}, now [0-9a-f]{12}\); res",
    ):
        run(config)
    accepting = settings(tmp_path, *flags, "--checkpoint.accept_new_code")
    assert not run(accepting, 4).finished
    assert "own.py:brevity paid for as it was before" in caplog.text
    assert not run(config, 5).finished  # which was saved with the new one
    with pytest.raises(UserError, match=r"other settings \(reward.extra: .*brevity → .*=2"):
        setup.claim(settings(tmp_path, *flags[:-1], f"{flags[-1]}=2"))
    resumed = run(config)
    with jax.set_mesh(resumed.mesh):
        assert digest.digests(resumed.state) == digest.digests(whole.state)
    assert rows(tmp_path) == rows(directory)


def test_the_page_shows_what_works_next_to_a_discriminator(tmp_path, capsys):
    """Both functions of docs/rewards.md, and a term that is only looked at."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    file = tmp_path / "my_rewards.py"
    file.write_text("\n\n".join(blocks))
    extra = f"{file}:valid_json=0.2,{file}:rarity=-0.1,length=0"
    flags = ("--data.heldout=", "--stage=gad", "--gad.steps=1", f"--reward.extra={extra}")
    trainer = run(settings(tmp_path / "run", *flags))
    said = "reward: discriminator 1, valid_json 0.2 ("
    assert said in capsys.readouterr().out
    (gad,) = rows(tmp_path / "run")
    assert gad["reward/valid_json/mean"] == gad["reward/valid_json/std"] == 0  # random text
    assert gad["reward/rarity/mean"] == -1
    assert gad["reward/length/mean"] <= 0
    score = gad["reward/discriminator/mean"]
    assert score == pytest.approx(gad["discriminator/student_score"], rel=1e-5)
    assert gad["reward/discriminator/std"] > 0
    record = trainer.saver.checkpoints.directory / "1" / "meta" / "record.json"
    kept = json.loads(record.read_text())["meta"]["rewards"]
    assert sorted(kept) == [f"{file}:rarity", f"{file}:valid_json"]


def test_a_model_and_a_judge_pay_and_a_resumed_run_pays_no_verdict_twice(
    tiny_run, tmp_path, capsys
):
    def answer(body):
        shown = body["messages"][0]["content"].encode()
        return f"5 {1 + sum(shown) % 9}"

    def paid_by(name, server):
        return settings(
            tmp_path / name,
            *(f for f in FAST if "gad.steps" not in f and "checkpoint" not in f),
            *("--gad.steps=2", "--checkpoint.every=1", "--reward.discriminator=0"),
            *(
                f"--reward.extra=model:{tiny_run},judge=0.5",
                f"--reward.judge.base_url={server.url}",
            ),
            *("--reward.judge.model=m", "--reward.judge.key_variable="),
        )

    with FaultServer(answer=answer) as server:
        whole = run(paid_by("whole", server))
        asked = len(server.requests)
        assert asked == 2 * 8 * 4
        printed = capsys.readouterr().out
        resident = footprint.rewarding_bytes(
            models.networks(paid_by("whole", server), "float32"), whole.mesh
        )
        assert f"reward models: {gigabytes(resident)} of these" in printed
        config = paid_by("part", server)
        run(config, 1)
        shutil.rmtree(tmp_path / "part" / "checkpoints")  # as if it were killed before its save
        resumed = run(config)
        assert len(server.requests) == 2 * asked
    with jax.set_mesh(resumed.mesh):
        assert digest.digests(resumed.state) == digest.digests(whole.state)
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")
    for row in rows(tmp_path / "whole"):
        assert 1 / 6 <= row["reward/judge/mean"] <= 9 / 14
        assert row["reward/model/std"] > 0


def paid(tmp_path, text, **fields):
    """Pays two prompts with two responses each by the function f; returns values and metrics."""
    file = tmp_path / "own.py"
    file.write_text(text)
    chat = Chat.load(source.resolve("random-tiny"), "none")
    user = {"role": "user", "content": "Hi"}
    sources = [Row((user,), ("Well.",), f"rows.jsonl:{n}") for n in (1, 2, 3)]
    teacher = np.asarray(chat.encode_response("Well."), np.int32)
    batch = PromptBatch([teacher] * 2, [teacher, teacher[:-1]], np.array([2, 0], np.int32))
    student = np.asarray(chat.encode_response("ab"), np.int32)
    tokens = np.full((2, 2, 9), chat.pad_token, np.int32)
    tokens[..., : len(student)] = student
    lengths = np.array([[len(student), 1], [len(student) - 1, 1]], np.int32)
    logprobs = np.zeros(tokens.shape, np.float32)
    rollout = Rollout(*map(jnp.asarray, (tokens, logprobs, lengths, lengths == len(student))))
    rewards = paying.Rewards(Reward(extra=(f"{file}:f",), **fields), tmp_path)
    values, metrics = rewards.pay(batch, rollout, sources, chat, lambda _: None)
    again, _ = rewards.pay(batch, rollout, sources, chat, lambda _: None)
    np.testing.assert_array_equal(values, again)
    return values, metrics


def test_a_function_sees_the_texts_and_the_numbers(tmp_path):
    (values,), metrics = paid(
        tmp_path,
        "SEEN = {}\n"
        "def f(rows):\n"
        "    first, *_, last = rows\n"
        "    assert first[:3] == ('Hi', 'ab', 'Well.'), first\n"
        "    assert (first.answer, first.teacher_answer) == ('ab', 'Well.')\n"
        "    assert first.id == 'rows.jsonl:3' and last.id == 'rows.jsonl:1'\n"
        "    assert (last.sample, last.tokens, last.finished) == (1, 1, False)\n"
        "    assert first.finished and first.teacher_tokens == last.teacher_tokens + 1\n"
        "    assert first.messages == [{'role': 'user', 'content': 'Hi'}]\n"
        "    return [row.sample * 3 + 1 for row in rows]\n",
    )
    np.testing.assert_array_equal(values, [[1, 4], [1, 4]])
    assert metrics == {
        "reward/f/mean": 2.5,
        "reward/f/std": pytest.approx(3 / np.sqrt(2)),
        "reward/f/nonfinite": 0,
    }


def test_values_that_are_not_finite_are_shown_once_and_counted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        (values,), metrics = paid(tmp_path, "def f(sample): return 1e300 if sample else 2")
    np.testing.assert_array_equal(values, [[2, np.inf], [2, np.inf]])
    assert metrics == {"reward/f/mean": 2, "reward/f/std": 0, "reward/f/nonfinite": 2}
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("warning: the reward f is inf for response 2 to rows.jsonl:3; such a r")
    with pytest.raises(UserError, match=r"no finite value for any of the step's 4 responses, as n"):
        paid(tmp_path, "def f(sample): return float('nan')")


def test_values_whose_squares_float32_cannot_hold_count_as_non_finite(tmp_path):
    """Of a step that is normalised together, one alone would leave nothing of all others."""
    (values,), metrics = paid(tmp_path, "def f(sample): return -1e30 if sample else 1e15")
    np.testing.assert_array_equal(values, np.float32([[1e15, -np.inf], [1e15, -np.inf]]))
    assert metrics["reward/f/nonfinite"] == 2


def test_settings_without_effect_are_said():
    reward = Reward(extra=("length=0.5",), discriminator=0.0, normalise="batch")
    lines = paying.sentences(Config(reward=reward, stage="gad"))
    assert lines == ["reward: length 0.5; each normalised over those of a step"]
    only = paying.sentences(Config(reward=reward, stage="seqkd"))
    assert only[1] == "warning: --reward.extra is paid in the stage gad, which this run lacks"
    assert paying.sentences(Config()) == []
