"""The settings of the personas, and their mistakes."""

import pytest

from gad_jax.settings import options
from gad_jax.world.personas import __main__ as command_line


def read(*flags: str) -> command_line.Personas:
    return options.read(command_line.Personas, flags, program="", description="")


def test_sizes_come_from_small_unless_they_are_given() -> None:
    assert (read().seeds, read().max_new_tokens) == (3, 48)
    small = read("--small", "--seeds=2")
    assert (small.seeds, small.train_prompts, small.max_new_tokens) == (2, 64, 24)
    assert [*small.numbers] == [0, 1]


@pytest.mark.parametrize(
    ("flag", "needed"),
    [
        ("--heldout=3", "heldout=3 must be 4 or more"),
        ("--seeds=-1", "0 or more"),
        ("--methods=gad,ppo", "--methods=gad,ppo: methods names 'ppo'"),
        ("--methods=best_of_8", "needs 'seqkd' before it"),
        ("--teacher_temperature=0", "0.01 or more"),
        ("--promts=x", "did you mean 'prompts'?"),
    ],
)
def test_mistakes_are_one_sentence(
    flag: str, needed: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main([flag])
    assert ended.value.code == 2
    error = capfd.readouterr().err
    assert needed in error
    assert error.count("\n") == 1
