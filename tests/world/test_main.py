"""The settings of the small world, and its mistakes."""

import pytest

from gad_jax.world import __main__ as world


@pytest.mark.parametrize(
    ("flag", "needed"),
    [
        ("--seeds=0", "1 or more"),
        ("--width=50", "multiple of 24"),
        ("--methods=gad,ppo", "names 'ppo'"),
        ("--first_seed=-1", "0 or more"),
        ("--rwos=3", "did you mean 'rows'?"),
    ],
)
def test_mistakes_are_one_sentence(
    flag: str, needed: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        world.main([flag])
    assert ended.value.code == 2
    error = capfd.readouterr().err
    assert needed in error
    assert error.count("\n") == 1
