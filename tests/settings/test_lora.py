"""The settings of adapters: what is refused, and which learning rates follow from the rank."""

import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.settings.lora import Lora

RANK = "--lora.rank=16"


def read(*flags: str, config: str | None = None) -> Config:
    given = [*([f"--config={config}"] if config else []), *flags]
    return options.read(Config, given, program="test", description="")


def rates(config: Config) -> list[float]:
    stages = config.seqkd, config.warmup, config.gad
    return [rate for each in stages for rate in (
        each.generator_learning_rate, each.discriminator_learning_rate
    )]  # fmt: skip


def test_adapters_have_ten_times_the_rates_that_nobody_chose_for_them() -> None:
    assert rates(read()) == [5e-6, 1e-6, 1e-6, 1e-6, 1e-6, 1e-6]
    assert rates(read(RANK)) == [5e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5]
    assert rates(read(RANK, "--lora.discriminator_rank=0")) == [5e-5, 1e-6, 1e-5, 1e-6, 1e-5, 1e-6]
    alone = read("--lora.discriminator_rank=8")
    assert rates(alone) == [5e-6, 1e-5, 1e-6, 1e-5, 1e-6, 1e-5]
    assert (alone.lora.rank_of("generator"), alone.lora.rank_of("discriminator")) == (0, 8)


def test_a_rate_that_came_as_the_rank_did_is_kept(tmp_path) -> None:
    flag = "--gad.generator_learning_rate=2e-6"
    assert read(RANK, flag).gad.generator_learning_rate == 2e-6
    # The configuration's rates are those of full training, unless its rank is there too.
    assert read(config="own").warmup.generator_learning_rate == 3e-5
    assert read(RANK, config="own").warmup.generator_learning_rate == 3e-4
    own = tmp_path / "own.yaml"
    own.write_text("lora: {rank: 8}\ngad: {generator_learning_rate: 3.0e-6}\n")
    assert read(config=str(own)).gad.generator_learning_rate == 3e-6
    assert read(config=str(own)).gad.discriminator_learning_rate == 1e-5
    # A flag's rank in the place of the file's changes nothing; without adapters rates are lower.
    assert read("--lora.rank=4", config=str(own)).gad.generator_learning_rate == 3e-6
    full = read("--lora.rank=0", config=str(own))
    assert rates(full) == [5e-6, 1e-6, 1e-6, 1e-6, 3e-7, 1e-6]
    half = read("--lora.discriminator_rank=0", config=str(own))
    assert rates(half) == [5e-5, 1e-6, 1e-5, 1e-6, 3e-6, 1e-6]
    own.write_text(
        "lora: {rank: 8, discriminator_rank: 0}\ngad: {discriminator_learning_rate: 3.0e-6}\n"
    )
    assert read(config=str(own)).gad.discriminator_learning_rate == 3e-6
    both = read("--lora.discriminator_rank=-1", config=str(own))
    assert both.gad.discriminator_learning_rate == 3e-5
    # What a run stores is what it used: nothing is raised a second time.
    stored = tmp_path / "config.yaml"
    stored.write_text(options.to_yaml(read(RANK, config="own")))
    assert options.load(Config, stored) == read(RANK, config="own")


def test_targets_have_one_order() -> None:
    assert read("--lora.targets=down,query").lora.targets == ("query", "down")
    assert len(Lora().targets) == 7


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--lora.rank=-1", "must be 0 or more"),
        ("--lora.discriminator_rank=-2", "must be -1 or more"),
        ("--lora.alpha=0", "must be greater than 0"),
        ("--lora.targets=query,q_proj", "a list"),
        ("--lora.targets=query,query", "names one twice"),
        ("--lora.targets=", "targets is empty; name some of query, key"),
        ("--lora.base_dtype=nf4", "needs adapters, which are what is trained on a quantised base"),
        ("--lora.base_dtype=int4", "int8"),
        ("--lora.adapter=some/where", "needs --lora.rank"),
    ],
)
def test_what_cannot_be_is_refused(flag: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(flag)
