"""--quiet and --verbose."""

from collections.abc import Iterator

import pytest

from gad_jax.base import verbosity
from gad_jax.base.errors import UserError


@pytest.fixture(autouse=True)
def nothing_chosen() -> Iterator[None]:
    yield
    verbosity.choose([])


def test_flags_are_taken_out_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        (): (False, False),
        ("--quiet",): (True, False),
        ("--quiet=true", "--quiet"): (True, False),
        ("--quiet=False", "--verbose"): (False, True),
        ("--verbose=false",): (False, False),
    }
    for flags, expected in cases.items():
        assert verbosity.choose(["runs/a", *flags, "--seed=1"]) == ["runs/a", "--seed=1"]
        assert (verbosity.quiet(), verbosity.verbose()) == expected
    assert verbosity.choose(["--quieter", "--verbose.x"]) == ["--quieter", "--verbose.x"]


def test_both_and_other_values_are_refused() -> None:
    with pytest.raises(UserError, match="--quiet and --verbose are both given; give one of them"):
        verbosity.choose(["--quiet", "--verbose"])
    assert not verbosity.quiet()
    with pytest.raises(UserError, match="--quiet=very: true or false is needed; got 'very'"):
        verbosity.choose(["--quiet=very"])


def test_warnings_are_said_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    verbosity.say(["one", "warning: two"])
    verbosity.say([])
    verbosity.choose(["--quiet"])
    verbosity.say("three\nwarning: four", to_stderr=True)
    verbosity.say("five")
    said = capsys.readouterr()
    assert said.out == "one\nwarning: two\n"
    assert said.err == "warning: four\n"
