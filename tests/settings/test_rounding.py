"""What follows from rounding in sampling or in updates: importance weights, refusals."""

import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config


def read(*flags: str) -> Config:
    return options.read(Config, flags, program="test", description="")


def test_rounded_sampling_has_importance_weights_unless_they_are_chosen() -> None:
    assert Config().grpo.importance_max == 0
    rounded = "--rollout.weights=int8"
    assert read(rounded).grpo.importance_max == 2
    assert read(rounded, "--grpo.importance_max=0").grpo.importance_max == 0
    assert read(rounded, "--grpo.importance_max=inf").grpo.importance_max == float("inf")
    assert read("--rollout.weights=auto").grpo.importance_max == 0
    # Adapters of the discriminator alone leave the student's weights to be rounded.
    read(rounded, "--lora.discriminator_rank=2", "--lora.base_dtype=nf4")
    for flags, said in (
        (("--lora.rank=2", "--lora.base_dtype=nf4"), r"nothing to round.*lora.base_dtype=nf4"),
        (("--rollout.top_k=5",), r"tokens rollout.top_k=5 left to draw.*--rollout.weights=auto"),
        (("--rollout.top_p=0.9",), r"which tokens rollout.top_p=0.9 left to draw"),
        (("--grpo.importance_max=0.5",), r"use 1 or more, such as 2, or 0 for no weights"),
    ):
        with pytest.raises(UserError, match=said):
            read(rounded, *flags)
    assert read(rounded, "--stage=warmup").grpo.importance_max == 2
    with pytest.raises(UserError, match=r"weighs the tokens of the gad stage, and stage=warmup"):
        read("--stage=warmup", "--grpo.importance_max=2")


def test_rounded_updates_have_importance_weights_and_refuse_what_they_do_not_go_with() -> None:
    rounded = "--student.matmul=float8"
    assert Config().student.matmul == "auto"
    assert read(rounded).grpo.importance_max == 2
    assert read(rounded, "--grpo.importance_max=0").grpo.importance_max == 0
    assert read(rounded, "--stage=seqkd").student.matmul == "float8"
    assert read("--student.matmul=auto").grpo.importance_max == 0
    read(rounded, "--rollout.weights=int8", "--lora.rank=2")
    for flags, said in (
        (("--lora.rank=2", "--lora.base_dtype=int8"), r"a second time, which lora.base_dtype=int8"),
        (("--rollout.top_k=5",), r"rollout.top_k=5 left to draw; give --student.matmul=auto"),
        (("--rollout.top_p=0.9",), r"which tokens rollout.top_p=0.9 left to draw"),
    ):
        with pytest.raises(UserError, match=said):
            read(rounded, *flags)
