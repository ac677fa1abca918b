"""What the small world compares: SeqKD, GAD and its ablations, as flags of `gad_jax.train`."""

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

    It begins at the student of the method `start`. Where `chosen`, it trains on that student's own
    answers, the best of several by the discriminator of `JUDGE`, in place of the teacher's.
    """

    says: str
    flags: tuple[str, ...]
    start: str = "warm"
    chosen: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The methods that come before it."""
        return (self.start, JUDGE) if self.chosen else ()


METHODS = {
    "seqkd": Method("SeqKD", ("--stage=seqkd",)),
    "seqkd_longer": Method("SeqKD, 3 × as long", ("--stage=seqkd", "--seqkd.epochs=9")),
    "gad": Method("GAD", ("--stage=warmup,gad",)),
    "no_generator_warmup": Method("no G warm-up", ("--stage=gad", "--gad.epochs=3")),
    "no_discriminator_warmup": Method("no D warm-up", ("--stage=seqkd,gad", "--seqkd.epochs=1")),
    "frozen_discriminator": Method(
        "frozen D",
        ("--stage=seqkd,offpolicy,gad", "--seqkd.epochs=1", "--gad.train_discriminator=false"),
    ),
    "cross_entropy": Method(
        "CE instead of BT", ("--stage=warmup,gad", "--discriminator.objective=cross_entropy")
    ),
    "rejection_sampling": Method(
        "SeqKD, then its best of 8 by D",
        ("--stage=seqkd", "--seqkd.epochs=1", "--data.keep_unfinished=true"),
        start="seqkd",
        chosen=True,
    ),
}
"""The paper's comparison and its ablations.

Each takes three epochs over the teacher's rows, except the longer SeqKD (nine) and the frozen
discriminator, which is trained for two epochs first. Rejection sampling (RFT) is no part of the
paper: SeqKD's student takes one more epoch on the best of its own samples.
"""
