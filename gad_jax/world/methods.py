"""What the small world compares: GAD, its ablations and baselines, as flags of `gad_jax.train`."""

from typing import NamedTuple

WARM_FLAGS = (
    "--stage=seqkd",
    "--seqkd.epochs=5",
    "--seqkd.generator_learning_rate=1e-3",
    "--evaluation.every=0",
)
"""The warm start, from which every method begins."""

JUDGE = "gad"
"""The method whose discriminator chooses among samples."""


class Method(NamedTuple):
    """What the report calls it, and its flags of `gad_jax.train`.

    It begins at the student of the method `start`, and where `judged` with the discriminator of
    `JUDGE`. `rows` is the file that it reads: "pairs" has the public's answers as rejected ones.
    """

    says: str
    flags: tuple[str, ...]
    start: str = "warm"
    judged: bool = False
    rows: str = "teacher"

    @property
    def needs(self) -> tuple[str, ...]:
        """The methods that come before it."""
        return (self.start, JUDGE) if self.judged else ()


def _gad(says: str, *flags: str) -> Method:
    return Method(says, ("--stage=warmup,gad", *flags))


METHODS = {
    "seqkd": Method("SeqKD", ("--stage=seqkd",)),
    "seqkd_longer": Method("SeqKD, 3 × as long", ("--stage=seqkd", "--seqkd.epochs=9")),
    "gad": _gad("GAD"),
    "no_generator_warmup": Method("no G warm-up", ("--stage=gad", "--gad.epochs=3")),
    "no_discriminator_warmup": Method("no D warm-up", ("--stage=seqkd,gad", "--seqkd.epochs=1")),
    "frozen_discriminator": Method(
        "frozen D",
        ("--stage=seqkd,offpolicy,gad", "--seqkd.epochs=1", "--gad.train_discriminator=false"),
    ),
    "cross_entropy": _gad("CE instead of BT", "--discriminator.objective=cross_entropy"),
    "rejection_sampling": Method(
        "SeqKD, then its best of 8 by D",
        ("--stage=rejection", "--rollout.samples=8"),
        start="seqkd",
        judged=True,
    ),
    "soda": Method("SODA", ("--stage=dpo", "--dpo.epochs=3")),
    "seqkd_soda": Method(
        "SeqKD, then SODA", ("--stage=seqkd,dpo", "--seqkd.epochs=1", "--dpo.epochs=2")
    ),
    "dpo": Method(
        "DPO over the public",
        ("--stage=dpo", "--dpo.epochs=3", "--dpo.rejected=column"),
        rows="pairs",
    ),
    "gad_replay": _gad("GAD, replay 0.5", "--discriminator.replay_share=0.5"),
    "gad_gate": _gad("GAD, gate at 0.9", "--discriminator.accuracy_gate=0.9"),
    "gad_smoothing": _gad("GAD, smoothing 0.1", "--discriminator.label_smoothing=0.1"),
    "gad_debiased": _gad("GAD, length-debiased", "--discriminator.length_debias=true"),
    "gad_heads": _gad(
        "GAD, 8 heads, lower bound", "--discriminator.heads=8", "--discriminator.pessimism=1"
    ),
    "gad_falling": _gad("GAD, rates fall to 0", "--gad.schedule=linear"),
    "gad_ahead": _gad("GAD, responses one step ahead", "--rollout.ahead=true"),
    "gad_unscaled": _gad("GAD, advantages without scale", "--grpo.advantage_scale=none"),
    "gad_lora": _gad(
        "GAD, adapters of rank 8",
        "--lora.rank=8",
        "--warmup.generator_learning_rate=1e-4",
        "--gad.generator_learning_rate=5e-5",
        "--warmup.discriminator_learning_rate=1e-3",
        "--gad.discriminator_learning_rate=6e-4",
    ),
}
"""The paper's comparison and its ablations.

Each takes three epochs over the teacher's rows, except the longer SeqKD (nine) and the frozen
discriminator, which is trained for two epochs first. Those after the cross-entropy discriminator
are no part of the paper; then comes GAD with settings for D's health, with responses of one step
before, and with adapters, whose rates were tuned on seed 75. In rejection sampling, SeqKD's student
takes one more epoch on the best of its own samples.
"""
