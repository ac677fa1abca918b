"""What the small world compares: SeqKD, GAD and its ablations, as flags of `gad_jax.train`."""

from typing import NamedTuple

WARM_FLAGS = (
    "--stage=seqkd",
    "--seqkd.epochs=5",
    "--seqkd.generator_learning_rate=1e-3",
    "--evaluation.every=0",
)
"""The warm start, from which every method begins."""


class Method(NamedTuple):
    """What the report calls it, and its flags of `gad_jax.train`."""

    says: str
    flags: tuple[str, ...]


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
}
"""The paper's comparison and its ablations.

Each takes three epochs over the teacher's rows, except the longer SeqKD (nine) and the frozen
discriminator, which is trained for two epochs first.
"""
