"""One iteration of the loop, in every form that a stage or a setting gives it."""

import pytest

from tests.training.runs import rows, run, settings

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
