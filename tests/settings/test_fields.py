"""Typing values, overlaying defaults, and mistakes: whole sentences, as a user reads them."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings import fields, options
from gad_jax.settings.config import Config
from gad_jax.settings.decoding import Decoding
from gad_jax.settings.fields import Bounds, Checked, FieldError, option, section


@dataclass(frozen=True)
class Small:
    """Settings of a command with a positional argument and no sections."""

    run: str = option(MISSING, "run directory", positional=True)
    out: str = option(MISSING, "where to write")
    sizes: tuple[int, ...] = option((1, 2), "sizes")
    limit: int | None = option(None, "at most this many")
    verbose: bool = option(False, "say more")


@dataclass(frozen=True)
class Inner:
    """A section within a section."""

    size: int = option(1, "a size")


@dataclass(frozen=True)
class Middle:
    """A section that overrides its own section's default."""

    inner: Inner = section(Inner, "inner", size=2)  # noqa: RUF009


@dataclass(frozen=True)
class Outer:
    """Two levels of sections."""

    middle: Middle = section(Middle, "middle")  # noqa: RUF009


def refusal(*argv: str, kind: Any = Config) -> str:
    with pytest.raises(UserError) as error:
        options.read(kind, argv, program="python -m gad_jax.x", description="Does x.")
    return str(error.value)


@pytest.mark.parametrize(
    ("hint", "given", "value"),
    [
        (int, "8", 8),
        (int, 8, 8),
        (float, "5e-7", 5e-7),
        (float, "-.5", -0.5),
        (float, "inf", float("inf")),
        (float, 2, 2.0),
        (bool, "true", True),
        (bool, "FALSE", False),
        (bool, True, True),
        (str, "5", "5"),
        (str, "true", "true"),
        (str, "none", "none"),
        (Literal["none", "all"], "none", "none"),
        (int | None, "none", None),
        (int | None, None, None),
        (int | None, "5", 5),
        (bool | None, "true", True),
        (tuple[int, ...], "1, 2", (1, 2)),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[str, ...], "", ()),
        (Path, "a/b", Path("a/b")),
    ],
)
def test_typed(hint: Any, given: Any, value: Any) -> None:
    typed = fields.typed(hint, given, "here")
    assert typed == value
    assert type(typed) is type(value)


@pytest.mark.parametrize(
    ("hint", "given"),
    [
        (int, True),
        (int, 1.5),
        (int, "1e3"),
        (int, ""),
        (float, True),
        (float, float("nan")),
        (bool, 1),
        (bool, "on"),
        (bool, None),
        (str, 5),
        (str, None),
        (str, False),
        (int | None, True),
        (Literal["a", "b"], "c"),
        (Literal["a", "b"], True),
        (tuple[int, ...], "1,x"),
        (tuple[int, ...], 1),
    ],
)
def test_a_value_of_another_type_is_refused(hint: Any, given: Any) -> None:
    with pytest.raises(UserError, match=r"^here: .* is needed; got "):
        fields.typed(hint, given, "here")


def test_sections_within_sections_keep_the_defaults_they_were_given() -> None:
    assert [(leaf.path, leaf.value) for leaf in fields.leaves(Outer)] == [("middle.inner.size", 2)]
    assert fields.build(Outer, {}) == Outer(Middle(Inner(2)))
    given = {"middle.inner.size": fields.Given(5, "here")}
    assert fields.build(Outer, given) == Outer(Middle(Inner(5)))


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["--gad.generator_learning_rat=1e-6"],
            "--gad.generator_learning_rat: Stage has no field 'generator_learning_rat'; "
            "did you mean 'generator_learning_rate'?",
        ),
        (
            ["--gad.generator_learning_rat", "1e-6"],
            "--gad.generator_learning_rat: Stage has no field 'generator_learning_rat'; "
            "did you mean 'generator_learning_rate'?",
        ),
        (
            ["--gadd.steps=3"],
            "--gadd.steps: Config has no section 'gadd'; did you mean 'gad'?",
        ),
        (
            ["--generator.learning_rate=1"],
            "--generator.learning_rate: Config has no section 'generator'; did you mean "
            "'gad.generator_learning_rate' or 'dpo.generator_learning_rate'?",
        ),
        (["--sede=1"], "--sede: Config has no field 'sede'; did you mean 'seed'?"),
        (
            ["--samples=3"],
            "--samples: Config has no field 'samples'; did you mean 'rollout.samples'?",
        ),
        (["--confg=tiny"], "--confg: Config has no field 'confg'; did you mean 'config'?"),
        (["--zzz"], "--zzz: Config has no field 'zzz'"),
        (
            ["--batch=8"],
            "--batch: 'batch' is a section, not a single value; set its fields, such as "
            "batch.prompts",
        ),
        (["--seed.x=8"], "--seed.x: 'seed' is a single value, not a section"),
        (["--batch.prompts=abc"], "--batch.prompts=abc: an integer is needed; got 'abc'"),
        (["--batch.prompts=8.5"], "--batch.prompts=8.5: an integer is needed; got '8.5'"),
        (["--batch.prompts=true"], "--batch.prompts=true: an integer is needed; got 'true'"),
        (["--batch.prompts="], "--batch.prompts=: an integer is needed; got ''"),
        (["--grpo.kl_max=nan"], "--grpo.kl_max=nan: a number is needed; got 'nan'"),
        (["--grpo.kl_max=1,5"], "--grpo.kl_max=1,5: a number is needed; got '1,5'"),
        (["--export=yes"], "--export=yes: true or false is needed; got 'yes'"),
        (["--export=1"], "--export=1: true or false is needed; got '1'"),
        (
            ["--data.template=alpca"],
            "--data.template=alpca: one of alpaca, none is needed; got 'alpca'; "
            "did you mean 'alpaca'?",
        ),
        (["--seed"], "--seed: a value is needed, as in --seed=VALUE"),
        (["--seed", "--export=true"], "--seed: a value is needed, as in --seed=VALUE"),
        (["--seed=1", "--seed=2"], "--seed is given twice (1, 2); give it once"),
        (["quickstart"], "'quickstart' is not expected here; options are written --name=value"),
        (["-s", "3"], "-s: no such option; options are written --name=value"),
        (
            ["--rollout.samples=1"],
            "--rollout.samples=1: samples=1 must be 2 or more: an advantage compares samples of "
            "one group",
        ),
        (
            ["--gad.train_generator=false", "--seed=3", "--stage=gad"],
            "--gad.train_generator=false: gad.train_generator=false leaves the discriminator "
            "alone; use --stage=offpolicy",
        ),
        (
            ["--seqkd.train_discriminator=true"],
            "--seqkd.train_discriminator=true: seqkd trains the generator alone; use the warmup "
            "stage to train a discriminator too",
        ),
    ],
)
def test_mistaken_flag(argv: list[str], sentence: str) -> None:
    assert refusal(*argv) == sentence


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--out=b"], "RUN is needed: run directory"),
        (["a"], "--out is needed: where to write"),
        (["a", "b", "--out=c"], "'b' is not expected here; options are written --name=value"),
        (["a", "--out=b", "--limit=x"], "--limit=x: an integer or none is needed; got 'x'"),
        (
            ["a", "--out=b", "--sizes=1,x"],
            "--sizes=1,x: a list (of each: an integer) is needed; got '1,x'",
        ),
        (
            ["a", "--out=b", "--verbos=true"],
            "--verbos: Small has no field 'verbos'; did you mean 'verbose'?",
        ),
    ],
)
def test_mistaken_flag_of_flat_settings(argv: list[str], sentence: str) -> None:
    assert refusal(*argv, kind=Small) == sentence


def test_blame_falls_on_the_flag_when_it_clashes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("batch:\n  micro_batch_prompts: 4\n  prompts: 8\n")
    assert refusal(f"--config={path}", "--batch.prompts=6") == (
        "--batch.prompts=6: micro_batch_prompts=4 does not divide prompts=6; use a divisor, so "
        "that micro-batches hold whole groups"
    )


@dataclass(frozen=True)
class Pair(Checked):
    """Two numbers, of which the first is the smaller one."""

    low: int = option(1, "low", minimum=0)
    high: float | None = option(2.0, "high", above=0, maximum=9)
    name: str = option("a", "name", filled=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high is not None and self.low >= self.high:
            raise FieldError("low", "low must be less than high", "high")


@dataclass(frozen=True)
class Pairs:
    """A section, so that paths have two parts."""

    first: Pair = section(Pair, "a pair")  # noqa: RUF009


@pytest.mark.parametrize(
    ("bounds", "words", "inside", "outside"),
    [
        (Bounds(minimum=0), "0 or more", (0, 5), (-1, float("nan"))),
        (Bounds(above=0), "greater than 0", (1e-9, float("inf")), (0, float("nan"))),
        (Bounds(minimum=0, maximum=1), "in [0, 1]", (0, 1), (-0.1, 1.1)),
        (Bounds(above=0, maximum=1), "in (0, 1]", (0.1, 1), (0, 1.1)),
        (Bounds(minimum=0, below=1), "in [0, 1)", (0, 0.9), (-0.1, 1)),
    ],
)
def test_bounds(bounds: Bounds, words: str, inside: tuple, outside: tuple) -> None:
    assert str(bounds) == words
    assert all(bounds.hold(value) for value in inside)
    assert not any(bounds.hold(value) for value in outside)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--first.low=-1"], "--first.low=-1: low=-1 must be 0 or more"),
        (["--first.high=0"], "--first.high=0: high=0.0 must be in (0, 9]"),
        (["--first.name= "], "--first.name= : name must not be empty"),
        # A check of two fields: the first that the user gave, in the order of the check.
        (["--first.high=0.5"], "--first.high=0.5: low must be less than high"),
        (["--first.high=3", "--first.low=3"], "--first.low=3: low must be less than high"),
    ],
)
def test_a_refusal_names_the_flag_of_its_field(argv: list[str], sentence: str) -> None:
    assert refusal(*argv, kind=Pairs) == sentence


def test_none_has_no_bounds() -> None:
    assert Pair(high=None).high is None


def test_a_refusal_about_fields_that_nobody_gave_names_no_flag() -> None:
    @dataclass(frozen=True)
    class Nothing:
        run: str = option("", "a run")
        limit: int = option(0, "a limit")

        def __post_init__(self) -> None:
            raise FieldError("run", "nothing to do; name a run")

    assert refusal("--limit=3", kind=Nothing) == "nothing to do; name a run"


def test_numbers_of_settings_without_a_base_class_are_checked_where_a_user_gives_them() -> None:
    @dataclass(frozen=True)
    class Plain:
        rate: float = option(1.0, "a rate", minimum=0)
        wait: float = option(1.0, "a wait", infinite=True)

    assert refusal("--rate=inf", kind=Plain) == "--rate=inf: rate=inf must be a finite number"
    assert refusal("--rate=-1", kind=Plain) == "--rate=-1: rate=-1.0 must be 0 or more"
    assert refusal("--wait=1e39", kind=Plain) == (
        "--wait=1e39: wait=1e+39 must be a finite number in float32 too, which rounds it to inf"
    )
    assert fields.build(Plain, {"wait": fields.Given(float("inf"), "")}).wait == float("inf")


def test_seeds_that_jax_would_take_for_others_are_refused() -> None:
    for seed in (2**32, -(2**31) - 1, 10**30):
        with pytest.raises(ValueError, match=r"must be in \[-2147483648, 4294967295\]"):
            Decoding(seed=seed)
    assert Decoding(seed=-1, top_k=10**30).seed == -1
