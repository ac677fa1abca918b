"""One iteration of the loop, in every form that a stage or a setting gives it."""

import json
from collections import Counter

import jax
import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.models.builtin import tiny, untrained
from gad_jax.settings import options
from gad_jax.training import loading, sampling
from tests.training.runs import REPLAY, rows, run, settings

ABLATIONS = {
    "seqkd": ["--stage=seqkd", "--seqkd.steps=2"],
    "no warm-up, no KL": ["--stage=gad", "--gad.steps=1", "--grpo.kl_coefficient=0"],
    "no discriminator warm-up": [
        *("--warmup.train_discriminator=false", "--warmup.steps=1", "--gad.steps=1"),
    ],
    "off-policy discriminator": [
        "--stage=warmup,offpolicy,gad",
        "--warmup.train_discriminator=false",
        *("--warmup.steps=1", "--offpolicy.steps=1", "--gad.steps=1"),
        "--gad.train_discriminator=false",
    ],
    "a healthy discriminator": [
        "--discriminator.accuracy_gate=0.9",
        "--discriminator.label_smoothing=0.1",
        "--discriminator.length_debias",
        "--grpo.drop_flat_groups",
        *("--warmup.steps=1", "--gad.steps=1"),
        "--discriminator.heads=2",
        "--discriminator.pessimism=0.5",
        *REPLAY,
        "--mesh.replica=2",
    ],
    "rounded sampling": ["--stage=gad", "--rollout.weights=int8"],
    "rounded sampling, half": ["--stage=gad", "--rollout.weights=bfloat16"],
    "rounded updates": ["--stage=gad", "--student.matmul=float8"],
    "rounded updates, half": ["--stage=gad", "--student.matmul=bfloat16"],
    # What compiles every program anew goes together.
    "cross-entropy discriminator, bfloat16, micro-batches": [
        *("--stage=gad", "--gad.steps=1"),
        "--discriminator.objective=cross_entropy",
        "--grpo.advantage_scale=none",
        "--student.compute_dtype=bfloat16",
        *("--data.train=bundled", "--batch.prompts=16", "--batch.micro_batch_prompts=8"),
    ],
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.startswith("rounded") else [])
        for name in ABLATIONS
    ],
)
def test_every_ablation_runs_and_changes_what_it_names(tmp_path, name):
    config = settings(tmp_path, "--data.heldout=", *ABLATIONS[name])
    trainer = run(config)
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
    if "no KL" in name:
        assert trainer.state.reference is None
        assert "kl/reference" not in last
    if name == "a healthy discriminator":
        names = ("gated", "length_slope", "head_spread", "accuracy_replayed")
        assert {f"discriminator/{name}" for name in names} <= last.keys()
        assert last["discriminator/head_spread"] > 0
        (tmp_path / "config.yaml").write_text(options.to_yaml(config))
        with jax.set_mesh(trainer.mesh):  # what is exported and evaluated has their mean
            found = loading.load_from_run(tmp_path, "discriminator", trainer.mesh)
        kernels = jax.device_get((found.params, trainer.state.discriminator))
        one, both = (params["score"]["kernel"] for params in kernels)
        assert both.shape == (32, 2)
        np.testing.assert_allclose(one, both.mean(axis=1, keepdims=True), rtol=1e-6)
        assert "discriminator/gated" not in logged[0]  # a step that trains D alone
    if "bfloat16" in name:
        assert trainer.networks[0].compute_dtype == "bfloat16"
        # sampler and trainer round in other places: eight bits of mantissa on about -6
        assert last["logprobs/gap"] < 0.05
        assert trainer.state.generator["embedding"].dtype == "float32"
    if name.startswith("rounded"):
        assert (trainer.networks[0].matmul != "auto") == ("updates" in name)
        # eight bits a number: not the rounding of float32, nor another network
        assert 1e-4 < last["logprobs/gap"] < 0.05
        assert 0 < abs(last["logprobs/importance_mean"] - 1) < 0.05
        assert last["logprobs/importance_truncated"] == 0
        assert trainer.evaluations.network.decode_weights == "auto"
    else:
        assert not any("importance" in metric for metric in last)
    if "cross-entropy" in name:
        assert last["discriminator/loss"] > 1  # 2 ln 2 at equal scores
        # in the unit of the rewards, whose mean spread is at most their root mean square
        assert last["reward/std"] * 0.5**0.5 <= last["advantage/norm"] < 0.2
    elif "advantage/norm" in last:  # of two samples; a dead group has none
        living = 1 - last["advantage/dead_groups"]
        assert last["advantage/norm"] == pytest.approx((0.5 * living) ** 0.5, rel=1e-2)


def test_a_discriminator_of_another_width_needs_the_students_tokenizer(tmp_path):
    """With adapters and replay. Its embedding has fewer rows of padding than the student's, which
    samples such tokens here: it has not learned not to."""
    small = tmp_path / "small"
    sizes = untrained.Sizes(
        vocabulary=264, layers=1, width=16, mlp=32, heads=2, kv_heads=2, head_width=8
    )
    special = untrained.Special("<|endoftext|>", "<|im_end|>", tiny._CHAT_TEMPLATE)
    untrained.write(small, tiny._byte_tokenizer(), special, sizes)
    flags = (
        "--data.heldout=",
        f"--discriminator.path={small}",
        "--lora.rank=2",
        "--stage=gad",
        *REPLAY,
    )
    trainer = run(settings(tmp_path / "run", *flags))
    assert trainer.state.discriminator["score"]["kernel"].shape == (16, 1)
    assert trainer.frozen.discriminator is not None  # a base of its own
    for row in rows(tmp_path / "run"):
        assert row["discriminator/nonfinite_scores"] == row["skips/total"] == 0
    path = small / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="has another tokenizer than the student: token 97 is 'b'"):
        run(settings(tmp_path / "other", *flags))


def test_a_row_that_is_drawn_twice_in_a_step_gets_different_samples(tmp_path, monkeypatch):
    """A mixture repeats the only row of a file; random keys go by the place in the batch."""
    for name, prompts in (("one", ["q"]), ("many", [f"r{n}" for n in range(20)])):
        rows_of_file = [json.dumps({"prompt": p, "teacher_response": "x"}) for p in prompts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows_of_file))
    seen = []
    sample = sampling.engine.sample_responses

    def sample_and_keep(*arguments, **sizes):
        rollout, calls = sample(*arguments, **sizes)
        seen.append((arguments[2], rollout))
        return rollout, calls

    monkeypatch.setattr(sampling.engine, "sample_responses", sample_and_keep)
    mixture = f"{tmp_path}/one.jsonl=0.5,{tmp_path}/many.jsonl=0.5"
    flags = (f"--data.train={mixture}", "--data.heldout=", "--stage=gad", "--gad.steps=1")
    run(settings(tmp_path / "run", *flags))
    ((prompts, rollout),) = seen
    ((repeated, count),) = Counter(tuple(prompt.tolist()) for prompt in prompts).most_common(1)
    places = [n for n, prompt in enumerate(prompts) if tuple(prompt.tolist()) == repeated]
    texts = [rollout.tokens[n, sample].tolist() for n in places for sample in range(2)]
    assert count >= 4
    assert len({tuple(text) for text in texts}) == 2 * count
