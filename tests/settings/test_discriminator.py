"""Which settings of the discriminator fit each other and the run, and the sentences for others."""

import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config

REFUSED = {
    "a share that rounds to no sample": (
        ("discriminator.replay_share=0.05",),
        "replay_share=0.05 of rollout.samples=8 is 0 of them, and it must be 1 to 7",
    ),
    "a share that rounds to all samples": (("discriminator.replay_share=0.99",), "is 8 of them"),
    "a share of one": (
        ("discriminator.replay_share=1",),
        r"replay_share=1(.0)? must be in \[0, 1\)",
    ),
    "a pool that is never drawn from": (
        ("discriminator.replay_pool=16",),
        "keeps answers that nothing replays",
    ),
    "a pool that is too small": (
        ("discriminator.replay_share=0.5", "discriminator.replay_pool=3"),
        "replay_pool=3 is fewer than the 4 answers that discriminator.replay_share=0.5",
    ),
    "no discriminator": (
        ("discriminator.replay_share=0.5", "stage=seqkd"),
        "no stage of stage=seqkd trains a discriminator; leave it out",
    ),
    "a frozen discriminator": (
        (
            *("discriminator.replay_share=0.5", "stage=gad", "gad.train_discriminator=false"),
            "discriminator.path=x",
        ),
        "no stage of stage=gad trains a discriminator",
    ),
    "one head to compare": (("discriminator.pessimism=1",), "heads=1 is one; give --discriminator"),
    "lengths of single responses": (
        ("discriminator.length_debias", "discriminator.objective=cross_entropy"),
        "length_debias=true compares the lengths of a pair, and objective=cross_entropy",
    ),
    "labels of a coin": (("discriminator.label_smoothing=0.5",), r"must be in \[0, 0.5\)"),
    "several heads of nothing": (
        ("discriminator.heads=2", "stage=seqkd"),
        "heads=2, and no stage of stage=seqkd trains a discriminator",
    ),
    "an objective of nothing": (
        ("discriminator.objective=cross_entropy", "stage=seqkd"),
        "objective=cross_entropy, and no stage of stage=seqkd trains a discriminator",
    ),
    "a head of nothing": (
        ("discriminator.head_stddev=0.5", "stage=seqkd"),
        "head_stddev=0.5, and no stage of stage=seqkd trains a discriminator",
    ),
    "rewards of no stage": (
        ("discriminator.heads=2", "discriminator.pessimism=1", "stage=warmup"),
        "pessimism=1, and no stage of stage=warmup pays rewards",
    ),
    "flat groups of no stage": (
        ("grpo.drop_flat_groups", "stage=warmup"),
        "drop_flat_groups=true, and no stage of stage=warmup pays rewards",
    ),
    "advantages of no stage": (
        ("grpo.advantage_scale=none", "stage=seqkd"),
        "advantage_scale=none, and no stage of stage=seqkd pays rewards",
    ),
    "a scale of another kind": (
        ("grpo.advantage_scale=none", "reward.extra=length=0.5"),
        "reward.normalise=group does; give --reward.normalise=batch or none",
    ),
    "an epsilon of nothing": (
        ("grpo.advantage_scale=none", "grpo.advantage_epsilon=0.1"),
        "advantage_epsilon=0.1 is added to a spread by which",
    ),
    "an epsilon of terms that are not normalised": (
        (
            *("grpo.advantage_scale=none", "grpo.advantage_epsilon=0.1"),
            *("reward.extra=length", "reward.normalise=none"),
        ),
        "advantage_epsilon=0.1 is added to a spread by which",
    ),
    "answers next to a column": (
        ("stage=dpo", "dpo.rejected=column", "dpo.answers=4"),
        "dpo.answers=4 samples a snapshot, and dpo.rejected=column reads the rows instead",
    ),
    "a gate of 0": (
        ("discriminator.accuracy_gate=0",),
        r"accuracy_gate=0(.0)? must be in \(0, 1\]",
    ),
    "a gate where nothing else trains": (
        ("discriminator.accuracy_gate=0.9", "stage=offpolicy"),
        "accuracy_gate=0.9, and no stage of stage=offpolicy trains both networks",
    ),
}


def read(*flags: str) -> Config:
    return options.read(Config, [f"--{f}" for f in flags], program="test", description="")


def test_an_epsilon_of_normalised_terms_is_used() -> None:
    flags = ("grpo.advantage_scale=none", "grpo.advantage_epsilon=0.1", "reward.extra=length")
    assert read(*flags, "reward.normalise=batch").grpo.advantage_epsilon == 0.1


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_one_sentence(name: str) -> None:
    flags, sentence = REFUSED[name]
    with pytest.raises(UserError, match=sentence) as caught:
        read(*flags)
    assert "\n" not in str(caught.value)


def test_the_share_becomes_whole_samples() -> None:
    for share, samples, wanted in ((0.5, 8, 4), (0.3, 8, 2), (0.5, 2, 1), (0.0, 8, 0)):
        found = read(
            f"discriminator.replay_share={share}", f"rollout.samples={samples}"
        ).discriminator
        assert found.replayed(samples) == wanted
        assert found.kept(samples) == samples
    assert (
        read("discriminator.replay_share=0.5", "discriminator.replay_pool=32").discriminator.kept(8)
        == 32
    )
    # a stage that trains one is enough
    read("discriminator.replay_share=0.5", "stage=seqkd,gad")
