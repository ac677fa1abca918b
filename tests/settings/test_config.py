"""The defaults are the paper's, nonsense is refused, and every file in configs/ loads."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gad_jax.base.errors import UserError
from gad_jax.settings import fields, options
from gad_jax.settings.config import Config, default_file, with_limits

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
PAPER = [path for path in CONFIGS if path.stem.endswith(("-seqkd", "-gad"))]

# What arXiv:2511.10643 says, and where it is silent, the scripts released with it.
PAPER_DEFAULTS = {
    "stage": "all",
    "discriminator.objective": "bradley_terry",
    "discriminator.path": "",
    "discriminator.head_stddev": 0.02,
    "data.template": "alpaca",
    "data.max_prompt_tokens": 2048,
    "batch.prompts": 256,
    "rollout.samples": 8,
    "rollout.temperature": 0.8,
    "rollout.top_k": 0,
    "rollout.top_p": 1.0,
    "rollout.max_new_tokens": 1536,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.epsilon": 1e-8,
    "optimizer.weight_decay": 0.01,
    "optimizer.max_gradient_norm": 0.2,
    "grpo.clip_low": 0.2,
    "grpo.clip_high": 0.2,
    "grpo.dual_clip": 3.0,
    "grpo.kl_coefficient": 0.001,
    "grpo.kl_max": 10.0,
    "grpo.log_ratio_max": 20.0,
    "grpo.entropy_coefficient": 0.0,
    "grpo.advantage_epsilon": 1e-6,
    "seqkd.epochs": 3.0,
    "seqkd.generator_learning_rate": 5e-6,
    "seqkd.train_discriminator": False,
    "warmup.epochs": 1.0,
    "warmup.generator_learning_rate": 1e-6,
    "warmup.discriminator_learning_rate": 1e-6,
    "warmup.discriminator_only_steps": 10,
    "offpolicy.epochs": 2.0,
    "offpolicy.train_generator": False,
    "dpo.rejected": "snapshot",
    "dpo.train_discriminator": False,
    "rejection.train_discriminator": False,
    "gad.epochs": 2.0,
    "gad.generator_learning_rate": 1e-6,
    "gad.discriminator_learning_rate": 1e-6,
    "gad.discriminator_only_steps": 0,
    "evaluation.every": 50,
    "checkpoint.every": 50,
}


def with_value(path: str, value: Any) -> Config:
    """The default settings but for one field."""
    section, _, name = path.rpartition(".")
    if not section:
        return Config(**{name: value})
    return Config(**{section: dataclasses.replace(getattr(Config(), section), **{name: value})})


def values(config: Any) -> dict[str, Any]:
    return {leaf.path: leaf.value for leaf in fields.leaves(type(config), config)}


@pytest.mark.parametrize(("path", "value"), PAPER_DEFAULTS.items())
def test_default_is_the_papers(path: str, value: Any) -> None:
    assert values(Config())[path] == value
    assert type(values(Config())[path]) is type(value)


def test_all_stages_are_warmup_then_gad() -> None:
    assert Config().stages == ("warmup", "gad")
    assert Config(stage="seqkd,gad").stages == ("seqkd", "gad")
    assert Config(stage="seqkd, gad").stages == ("seqkd", "gad")


@pytest.mark.parametrize(
    ("prompt", "response", "row", "expected"),
    [(2048, 1536, 0, 3584), (128, 64, 0, 256), (128, 128, 0, 256), (128, 64, 200, 200)],
)
def test_row_holds_the_longest_sequence(
    prompt: int, response: int, row: int, expected: int
) -> None:
    default = Config()
    config = Config(
        data=dataclasses.replace(default.data, max_prompt_tokens=prompt),
        rollout=dataclasses.replace(default.rollout, max_new_tokens=response),
        batch=dataclasses.replace(default.batch, row_tokens=row),
    )
    assert config.row_tokens == expected


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stage", "warmup,ppo", "names 'ppo'"),
        ("stage", "gad,gad", "names a stage twice"),
        ("stage", "", "names ''"),
        ("run_dir", " ", "run_dir must not be empty"),
        ("seed", -1, "seed=-1 must be in"),
        ("seed", 2**32, "must be in"),
        ("student.path", "", "path must not be empty"),
        ("discriminator.head_stddev", 0.0, "greater than 0"),
        ("data.train", "", "train must not be empty"),
        ("data.max_prompt_tokens", -1, "0 or more"),
        ("data.stop_at_cut_share", 0.0, "in (0, 1]"),
        ("rollout.max_new_tokens", -1, "0 or more"),
        ("batch.prompts", 0, "greater than 0"),
        ("batch.micro_batch_prompts", 3, "does not divide prompts=256"),
        ("batch.micro_batch_prompts", -1, "0 or more"),
        ("batch.row_tokens", 3583, "shorter than"),
        ("rollout.samples", 1, "2 or more"),
        ("rollout.temperature", 0.0, "greater than 0"),
        ("rollout.temperature", float("nan"), "greater than 0"),
        ("rollout.top_p", 0.0, "in (0, 1]"),
        ("rollout.top_p", 1.01, "in (0, 1]"),
        ("rollout.top_k", -1, "0 or more"),
        ("rollout.temperature", 1e-7, "is greedy, and all samples of a group would be the same"),
        ("optimizer.beta2", 1.0, "in [0, 1)"),
        ("batch.prompts", 2**31, "prompts=2147483648 must be 2147483647 or less"),
        ("rollout.max_new_tokens", 10**30, "must be 2147483647 or less"),
        ("optimizer.beta1", 0.99999999999, "in [0, 1) in float32 too, which rounds it to 1"),
        ("optimizer.epsilon", 1e-50, "greater than 0 in float32 too, which rounds it to 0"),
        ("optimizer.weight_decay", 1e39, "0 or more in float32 too, which rounds it to inf"),
        ("grpo.log_ratio_max", 89.0, "in (0, 80]"),
        ("limits.step_minutes", 1e9, "in [0, 1000000]"),
        ("optimizer.weight_decay", -0.1, "0 or more"),
        ("grpo.clip_low", 1.0, "in [0, 1)"),
        ("grpo.dual_clip", 1.0, "greater than 1"),
        ("seqkd.train_discriminator", True, "generator alone"),
        ("offpolicy.train_generator", True, "discriminator alone"),
        ("gad.train_generator", False, "--stage=offpolicy"),
        ("dpo.train_discriminator", True, "dpo trains the generator alone"),
        ("rejection.train_discriminator", True, "rejection trains the generator alone"),
        ("dpo.beta", 0.0, "greater than 0"),
        ("data.rejected", "worse", "read by --stage=dpo --dpo.rejected=column alone"),
        ("stage", "seqkd,rejection", "no stage before it trains one"),
        ("warmup.keep_moments", True, "warmup is the first stage and has no moments to keep"),
        ("warmup.epochs", 0.0, "greater than 0"),
        ("evaluation.batch_prompts", 0, "greater than 0"),
        ("checkpoint.keep", 0, "greater than 0"),
        ("checkpoint.best_min_length_ratio", 1.5, "must be less than the maximum"),
        ("checkpoint.best_min_length_ratio", -1.0, "0 or more"),
        ("mesh.replica", 0, "greater than 0"),
        ("mesh.fsdp", -1, "0 or more"),
    ],
)
def test_nonsense_is_refused_at_construction(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        with_value(path, value)


BOUNDED = [leaf for leaf in fields.leaves(Config) if leaf.metadata["bounds"] is not None]


@pytest.mark.parametrize("leaf", BOUNDED, ids=lambda leaf: leaf.path)
def test_a_value_outside_of_its_bounds_is_blamed_on_its_flag(leaf: fields.Leaf) -> None:
    bounds = leaf.metadata["bounds"]
    low = type(leaf.value)(bounds.above if bounds.minimum is None else bounds.minimum - 1)
    given = {leaf.path: fields.Given(low, f"{leaf.flag}={low}", from_flag=True)}
    name = leaf.path.rpartition(".")[2]
    with pytest.raises(UserError) as error:
        fields.build(Config, given)
    assert str(error.value) == f"{leaf.flag}={low}: {name}={low} must be {bounds}"


NUMBERS = [leaf for leaf in fields.leaves(Config) if isinstance(leaf.value, float)]


@pytest.mark.parametrize("leaf", NUMBERS, ids=lambda leaf: leaf.path)
def test_a_number_is_finite_unless_inf_has_a_meaning(leaf: fields.Leaf) -> None:
    def build(value: float) -> Config:
        return fields.build(Config, {leaf.path: fields.Given(value, f"{leaf.flag}={value}")})

    infinite = leaf.metadata["infinite"]
    assert infinite == ("inf:" in leaf.metadata["help"])
    if infinite:
        build(float("inf"))
    for value in (float("nan"), float("-inf"), *([] if infinite else [float("inf")])):
        with pytest.raises(UserError, match=rf"{leaf.flag}={value}: .*must be"):
            build(value)


def test_inf_has_a_meaning_for_five_settings() -> None:
    infinite = [leaf.path for leaf in NUMBERS if leaf.metadata["infinite"]]
    of_losses = ["optimizer.max_gradient_norm", "grpo.kl_max", "grpo.importance_max"]
    assert infinite == [*of_losses, "reward.clip", "checkpoint.best_max_length_ratio"]


def test_a_stage_that_trains_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing would learn"):
        dataclasses.replace(Config().warmup, train_generator=False, train_discriminator=False)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_file_loads_by_path_and_by_name(path: Path) -> None:
    config = options.load(Config, path)
    assert options.load(Config, path.stem) == config
    assert config.run_dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_file_names_only_what_differs_from_the_defaults(path: Path) -> None:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    named = set()
    for name, value in tree.items():
        named |= {f"{name}.{inner}" for inner in value} if isinstance(value, dict) else {name}
    lines = options.differences(Config(), options.load(Config, path))
    changed = {line.partition(":")[0] for line in lines}
    assert named == changed


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_file_starts_with_its_command(path: Path) -> None:
    commands = {"quickstart": "train", "world": "world", "personas": "world.personas"}
    command = commands.get(path.stem, f"train --config {path.stem}")
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# python -m gad_jax.{command}"


def test_there_are_paper_files_for_every_student_and_method() -> None:
    students = ("qwen2.5-3b", "qwen2.5-7b", "qwen2.5-14b", "llama-3.2-3b", "llama-3.1-8b")
    expected = {f"{student}-{method}" for student in students for method in ("seqkd", "gad")}
    assert {path.stem for path in PAPER} == expected


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_paper_file_keeps_the_papers_numbers(path: Path) -> None:
    config = options.load(Config, path)
    method = path.stem.rpartition("-")[2]
    mine = values(config)
    expected = PAPER_DEFAULTS | {"stage": "seqkd" if method == "seqkd" else "all"}
    assert {name: mine[name] for name in expected} == expected
    assert config.data.train == "ytz20/LMSYS-Chat-GPT-5-Chat-Response"
    assert config.data.heldout == f"{config.data.train}:test"


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_paper_file_fits_sixteen_devices(path: Path) -> None:
    config = options.load(Config, path)
    mesh = config.mesh
    assert mesh.replica * mesh.fsdp * mesh.tensor == 16
    assert config.batch.micro_batch_prompts % (mesh.replica * mesh.fsdp) == 0


@pytest.mark.parametrize(
    ("text", "part"),
    [
        *(("5%", 0.05), ("0.5%", 0.005), ("99.9%", 0.999), ("200", 200), ("1", 1)),
        *(("", None), ("rows.jsonl", None), ("./200", None), ("bundled:heldout", None)),
        *(("org/name:test", None), ("5%.jsonl", None), ("a=0.7,b=0.3", None)),
    ],
)
def test_a_part_to_hold_out(text: str, part: Any) -> None:
    found = with_value("data.heldout", text).data.heldout_part
    assert found == pytest.approx(part)  # a percentage is divided by 100
    assert type(found) is type(part)


@pytest.mark.parametrize(
    "text",
    [
        "5 %",
        "0.05",
        ".05",
        "5,5%",
        "-5%",
        "-5",
        "+5",
        "5%%",
        "1e2",
        "5percent",
        "0",
        "00",
        " 5",
        "٥",
    ],
)
def test_a_part_that_is_not_understood(text: str) -> None:
    with pytest.raises(fields.FieldError, match=r"is no part of the prompts; write .* as 5%, a"):
        with_value("data.heldout", text)


@pytest.mark.parametrize("text", ["0%", "0.0%", "100%", "250%"])
def test_a_share_that_is_nothing_or_all(text: str) -> None:
    with pytest.raises(fields.FieldError, match=r"more than 0% and less than 100% of the prompts"):
        with_value("data.heldout", text)


def test_ones_own_rows_have_settings_of_their_own() -> None:
    assert default_file([]) == "quickstart"
    assert default_file(["--data.train=bundled", "--gad.steps=3"]) == "quickstart"
    assert default_file(["--gad.steps=3", "--data.train=mine.jsonl"]) == "own"
    assert default_file(["--data.train", "mine.jsonl"]) == "own"
    own = options.load(Config, "own")
    assert (own.data.max_prompt_tokens, own.rollout.max_new_tokens) == (0, 0)
    for stage in own.stages:
        assert getattr(own, stage).steps == 0
        assert getattr(own, stage).epochs == PAPER_DEFAULTS[f"{stage}.epochs"]
    assert own.data.heldout_part == 0.05


def test_limits_are_replaced_together() -> None:
    config = with_limits(options.load(Config, "own"), 64, 80)
    assert (config.data.max_prompt_tokens, config.rollout.max_new_tokens) == (64, 80)
    assert config.longest == 144
    with pytest.raises(fields.FieldError, match="shorter than"):
        with_limits(with_value("batch.row_tokens", 4000), 3000, 3000)


def test_moments_of_adapters_stay_on_the_device() -> None:
    def read(*flags: str) -> Config:
        flags = ("--optimizer.placement=host", *flags)
        return options.read(Config, flags, program="test", description="")

    for flag in ("--lora.rank=4", "--lora.discriminator_rank=4"):
        with pytest.raises(
            UserError, match=r"placement=host is for .* lora.rank=4 trains adapters"
        ):
            read(flag)
    read("--optimizer.moments=float8", "--lora.rank=0")


def test_responses_of_older_weights_go_with_gad_and_with_all_tokens() -> None:
    def read(*flags: str) -> Config:
        return options.read(Config, ("--rollout.ahead", *flags), program="test", description="")

    assert not Config().rollout.ahead
    assert read().rollout.ahead
    read("--rollout.weights=int8", "--grpo.importance_max=3")
    for flags, said in (
        (
            ("--stage=warmup",),
            r"ahead=true: .*stage=warmup has none; leave it out, or add gad",
        ),
        (("--stage=warmup,dpo",), r"ahead=true samples the responses of the gad stage early"),
        (("--rollout.top_k=5",), r"which tokens top_k=5 left to draw.*--rollout.ahead=false"),
        (("--rollout.top_p=0.9",), r"which tokens top_p=0.9 left to draw.*sample from all tokens"),
    ):
        with pytest.raises(UserError, match=said):
            read(*flags)
