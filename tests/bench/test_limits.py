"""Sequences that a model has no positions for."""

import pytest

from gad_jax.base.errors import UserError
from gad_jax.bench import limits
from gad_jax.bench.__main__ import main
from gad_jax.models.config import DecoderConfig, alike

NETWORK = DecoderConfig(
    family="llama", vocabulary=64, width=16, mlp_width=16, layers=2, heads=2, kv_heads=1,
    head_width=8, kinds=alike(1e4), norm_epsilon=1e-6, max_positions=512,
)  # fmt: skip

pytest_plugins = ["tests.run_fixtures"]


def test_the_longest_sequence_has_as_many_tokens_as_there_are_positions() -> None:
    limits.check(NETWORK, "this", 512, "--row_tokens=512")
    with pytest.raises(UserError, match=r"--row_tokens=513 give .* and this has 512 positions"):
        limits.check(NETWORK, "this", 513, "--row_tokens=513")


@pytest.mark.parametrize(
    "flags",
    [
        ("update", "--row_tokens=99999999"),
        ("rollout", "--prompt_tokens=99999999"),
        ("rollout", "--response_tokens=99999999"),
        ("rollout", "--longest=99999999"),
    ],
)
def test_benchmarks_check_it(refused, flags: tuple[str, str]) -> None:
    said = refused(main, flags[0], "--model=random-tiny", "--torch=false", flags[1])
    assert said.endswith("positions; lower them")
