"""Lists of methods: rates, what they build on, and mistakes."""

import pytest

from gad_jax.world.personas.methods import METHODS, START, entries


def test_all_methods_come_after_what_they_build_on() -> None:
    found = entries("all")
    assert [entry.name for entry in found] == [*METHODS]
    by_name = {entry.name: entry for entry in found}
    assert not by_name["start"].trains
    assert by_name["gad"].start == START
    best = by_name["best_of_8"]
    assert (best.start, best.judge, best.trains) == ("seqkd", "gad", False)


def test_a_rate_is_that_of_the_last_stage() -> None:
    seqkd, gad, best = entries("seqkd@3e-4,gad@0.0001,best_of_8")
    assert seqkd.flags == ("--stage=seqkd", "--seqkd.generator_learning_rate=3e-4")
    assert gad.flags == ("--stage=warmup,gad", "--gad.generator_learning_rate=0.0001")
    assert (seqkd.says, seqkd.directory) == ("SeqKD, 3e-4", "seqkd_at_3e-4")
    assert (best.start, best.judge) == ("seqkd@3e-4", "gad@0.0001")
    # of two rates, the later one is built on
    assert entries("seqkd@1e-4,seqkd@3e-4,gad,best_of_8")[-1].start == "seqkd@3e-4"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ppo", "names 'ppo'; use start"),
        ("seqk", "did you mean 'seqkd'?"),
        ("teacher", "names 'teacher'"),
        ("gad,gad", "names 'gad' twice"),
        ("gad,best_of_8", "'best_of_8', which needs 'seqkd' before it"),
        ("seqkd,best_of_8,gad", "'best_of_8', which needs 'gad' before it"),
        ("start@1e-3", "which trains nothing; give it without a rate"),
        ("seqkd@fast", "write a learning rate after @, as 3e-4"),
        ("seqkd@", "write a learning rate after @, as 3e-4"),
    ],
)
def test_mistakes_name_the_method(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="methods names") as error:
        entries(text)
    assert said in str(error.value)
