"""Whole runs of the tiny model, in this process: resuming, stages and ablations, refusals."""

import json
import time

import jax
import pytest

from gad_jax.base import exits
from gad_jax.base.errors import NumericsError, UserError
from gad_jax.distributed.mesh import make_mesh
from gad_jax.metrics import heldout
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import digest, setup
from gad_jax.training.saving import Saver

VARYING = ("seconds/", "tokens_per_second/", "compiles")


class StopAt(exits.StopRequest):
    """A stop request that comes after a given step, as a signal would."""

    def __init__(self, trainer, step):
        self.trainer, self.step, self.ready = trainer, step, False

    @property
    def requested(self):
        return self.step is not None and self.trainer.step >= self.step


def settings(directory, *flags):
    chosen = ["--config=tiny", f"--run_dir={directory}", "--evaluation.prompts=2", *flags]
    return options.read(Config, chosen, program="test", description="")


def run(config, stop_at=None, stop=StopAt):
    """Runs until the step, or to the end; returns the trainer, closed."""
    mesh = make_mesh(config.mesh.replica, config.mesh.fsdp, config.mesh.tensor)
    with jax.set_mesh(mesh):
        trainer = setup.build(config, mesh)
        try:
            trainer.finished = trainer.run(stop(trainer, stop_at))
        finally:
            trainer.close()
    return trainer


def rows(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(VARYING)} for line in lines
    ]


def scores(directory):
    """What ranks the checkpoints that are kept, by step."""
    records = [json.loads(path.read_text()) for path in directory.glob("checkpoints/*/meta/*.json")]
    return {record["step"]: record["score"] for record in records}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(settings(directory))


def test_a_run_writes_every_metric_that_is_promised(whole):
    directory, trainer = whole
    assert trainer.finished
    by_stage = {row["stage"]: row for row in rows(directory)}
    assert list(by_stage) == ["warmup", "gad"]
    shared = {
        "discriminator/loss",
        "discriminator/accuracy",
        "discriminator/margin",
        "generator/loss",
        "generator/gradient_norm",
        "discriminator/gradient_norm",
        "entropy",
        "response/length",
        "response/length_p95",
        "response/cut_share",
        "response/length_ratio",
        "skips/total",
    }
    paid = {"reward/mean", "reward/std", "advantage/dead_groups", "advantage/norm"}
    assert shared <= set(by_stage["warmup"])
    assert shared | paid | {"kl/reference", "logprobs/gap"} <= set(by_stage["gad"])
    timed = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("seconds/rollout", "seconds/update", "seconds/step", "compiles"):
        assert timed[name] >= 0
    # The trainer sees the log-probs that the sampler drew from, to float32 rounding.
    assert by_stage["gad"]["logprobs/gap"] < 1e-5
    # At the first GAD step the policy is the reference.
    first = next(row for row in rows(directory) if row["stage"] == "gad")
    assert first["kl/reference"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(whole, tmp_path, stop_at):
    """Step 2 is the end of warm-up: its evaluation is made, and the next stage begins, later."""
    directory, uninterrupted = whole
    config = settings(tmp_path)
    assert not run(config, stop_at).finished
    resumed = run(config)
    assert resumed.finished
    assert resumed.step == uninterrupted.step
    with jax.set_mesh(resumed.mesh):
        assert digest.digests(resumed.state) == digest.digests(uninterrupted.state)
    assert rows(tmp_path) == rows(directory)
    # A stop saves where nothing else would, and of more checkpoints others are kept.
    kept = scores(tmp_path)
    assert {step: kept[step] for step in kept if step % 2 == 0}.items() <= scores(directory).items()
    for file in (directory / "evaluations").iterdir():
        assert (tmp_path / "evaluations" / file.name).read_text() == file.read_text()


def test_a_stop_at_the_last_step_leaves_evaluation_and_export_for_later(whole, tmp_path):
    directory, uninterrupted = whole
    config = settings(tmp_path)
    assert not run(config, uninterrupted.step).finished
    assert not (tmp_path / "evaluations" / "after-gad.json").exists()
    assert run(config).finished
    assert rows(tmp_path) == rows(directory)
    assert scores(tmp_path) == scores(directory)
    assert scores(tmp_path)[4] is not None


class StopInEvaluation(StopAt):
    """A stop request that comes between two batches of the evaluation after a step."""

    calls = 0

    @property
    def requested(self):
        self.calls += self.trainer.step == self.step
        return self.calls > 2


def test_a_stop_cuts_an_evaluation_short_and_it_is_made_later(tmp_path):
    config = settings(tmp_path, "--evaluation.batch_prompts=1")
    assert not run(config, 2, StopInEvaluation).finished
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert not (tmp_path / "evaluations" / "after-warmup.json").exists()
    assert scores(tmp_path) == {2: None}
    assert run(config).finished
    for step in (2, 4):
        assert "evaluation/rouge_l" in rows(tmp_path)[step - 1]
        assert scores(tmp_path)[step] is not None


@pytest.mark.parametrize(
    ("ratio", "flags", "expected"),
    [
        (1.0, [], 2 * 2 / 5),  # F of precision 1 and recall 2/3 in words
        (0.5, [], 2 * 2 / 5),
        (1.5, [], 2 * 2 / 5),
        (0.4, [], None),
        (1.6, [], None),
        (0.4, ["--checkpoint.best_min_length_ratio=0"], 2 * 2 / 5),
        (1.0, ["--checkpoint.best_metric=ngram_2"], 2 / 3),
    ],
)
def test_a_checkpoint_is_ranked_within_a_band_of_lengths(tmp_path, ratio, flags, expected):
    example = {"teacher": "the cat sat", "student": "the cat"}
    result = heldout.HeldoutResult("after gad", 3, {"evaluation/length_ratio": ratio}, [example])
    options = settings(tmp_path, *flags).checkpoint
    found = Saver(None, options, "").score(result)
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_run_stops_by_itself_before_its_time_is_up(tmp_path, monkeypatch):
    config = settings(tmp_path, "--data.heldout=", "--checkpoint.margin_minutes=10")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + 60 * 60)))
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        trainer = setup.build(config, mesh)
        assert trainer.deadline.stop_by == pytest.approx(time.time() + 50 * 60, abs=60)
        trainer.deadline.stop_by = time.time() + 1e-3
        assert not trainer.run(exits.StopRequest())
        trainer.close()
    assert trainer.saver.checkpoints.steps() == [1]
    assert run(config).finished


def test_a_save_is_due_after_some_time_too(tmp_path):
    config = settings(
        tmp_path, "--data.heldout=", "--checkpoint.every=99", "--checkpoint.every_minutes=1e-6"
    )
    run(config)
    assert scores(tmp_path).keys() == {3, 4}


def test_a_finished_run_does_nothing_when_started_again(whole):
    directory, trainer = whole
    before = (directory / "metrics.jsonl").read_bytes()
    again = run(settings(directory))
    assert again.finished
    assert again.step == trainer.step
    assert (directory / "metrics.jsonl").read_bytes() == before


def test_the_device_count_does_not_matter(whole, tmp_path):
    """Eight devices against four data shards with tensor parallelism of two."""
    directory, _ = whole
    run(settings(tmp_path, "--mesh.tensor=2"))
    for one, other in zip(rows(directory), rows(tmp_path), strict=True):
        for name in ("discriminator/loss", "generator/loss", "response/length", "entropy"):
            if name in one:
                # float32 sums in another order, through two optimizer steps
                assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


ABLATIONS = {
    "seqkd": ["--stage=seqkd", "--seqkd.steps=2"],
    "no warm-up": ["--stage=gad"],
    "no discriminator warm-up": ["--warmup.train_discriminator=false"],
    "off-policy discriminator": [
        "--stage=warmup,offpolicy,gad",
        "--warmup.train_discriminator=false",
        "--offpolicy.steps=1",
        "--gad.train_discriminator=false",
    ],
    "cross-entropy discriminator": ["--discriminator.objective=cross_entropy"],
    "no KL": ["--grpo.kl_coefficient=0"],
    "bfloat16": ["--student.compute_dtype=bfloat16"],
    "micro-batches": ["--batch.prompts=16", "--batch.micro_batch_prompts=8"],
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_runs_and_changes_what_it_names(tmp_path, name):
    trainer = run(settings(tmp_path, "--data.heldout=", *ABLATIONS[name]))
    assert trainer.finished
    logged = rows(tmp_path)
    last = logged[-1]
    assert last["skips/total"] == 0
    if name == "seqkd":
        assert trainer.state.discriminator is None
        assert "discriminator/loss" not in last
        assert logged[1]["generator/loss"] != logged[0]["generator/loss"]
    if name == "no discriminator warm-up":
        assert "discriminator/loss" not in logged[0]
        assert "discriminator/loss" in last
    if name == "off-policy discriminator":
        assert [row["stage"] for row in logged].count("offpolicy") == 1
        assert "discriminator/gradient_norm" not in last
        assert trainer.state.discriminator_optimizer is None
        assert "reward/mean" in last
    if name == "no KL":
        assert trainer.state.reference is None
        assert "kl/reference" not in last
    if name == "bfloat16":
        assert trainer.networks[0].compute_dtype == "bfloat16"
        # sampler and trainer round in other places: eight bits of mantissa on about -6
        assert last["logprobs/gap"] < 0.05
        assert trainer.state.generator["embedding"].dtype == "float32"
    if name == "cross-entropy discriminator":
        assert last["discriminator/loss"] > 1  # 2 ln 2 at equal scores


def test_other_data_is_refused_for_a_run_that_goes_on(whole, tmp_path):
    directory, _ = whole
    other = tmp_path / "other.jsonl"
    line = {"prompt": "Hi there", "teacher_response": "Hello."}
    other.write_text("".join(json.dumps(line | {"id": i}) + "\n" for i in range(20)))
    with pytest.raises(UserError, match="trained on other rows"):
        run(settings(directory, f"--data.train={other}"))


def test_settings_that_would_change_a_run_are_refused(tmp_path):
    setup.claim(settings(tmp_path))
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    setup.claim(settings(tmp_path, "--checkpoint.keep=5"))
    with pytest.raises(UserError, match=r"gad.steps: 2 → 3.*another --run_dir"):
        setup.claim(settings(tmp_path, "--gad.steps=3"))


def test_a_start_that_failed_does_not_bind_the_next_one(tmp_path):
    setup.claim(settings(tmp_path))
    (tmp_path / "evaluations").mkdir()
    setup.claim(settings(tmp_path, "--gad.steps=3"))
    assert not (tmp_path / "evaluations").exists()
    assert options.load(Config, tmp_path / "config.yaml").gad.steps == 3


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="positions of random-tiny; lower one of them"):
        run(settings(tmp_path, "--rollout.max_new_tokens=100000"))
    with pytest.raises(UserError, match=r"mesh replica=3 .* needs .* devices, but 8 are present"):
        run(settings(tmp_path, "--mesh.replica=3"))


def test_a_run_whose_gradients_stay_broken_stops_and_is_saved(tmp_path):
    """A learning rate that overflows the weights in one step breaks every step after it."""
    config = settings(
        tmp_path,
        "--stage=seqkd",
        "--seqkd.steps=9",
        "--seqkd.generator_learning_rate=1e38",
        "--optimizer.max_skips=2",
        "--data.heldout=",
    )
    with pytest.raises(NumericsError, match="2 consecutive steps were skipped because generator/"):
        run(config)
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        trainer = setup.build(config, mesh)
    trainer.close()
    assert trainer.step == 3
