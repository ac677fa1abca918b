"""Flags and files together, printing, and exit codes."""

import dataclasses
import random
import re
from pathlib import Path
from typing import Any

import pytest

from gad_jax.base import verbosity
from gad_jax.base.errors import UserError
from gad_jax.settings import fields, options
from gad_jax.settings.config import Config
from tests.settings.reading import Small, read, refusal

REPOSITORY = Path(__file__).parents[2]


# What is read


def test_no_arguments_give_the_defaults() -> None:
    assert read() == Config()


def test_flags_with_and_without_equals_sign() -> None:
    config = read(
        "--batch.prompts=8",
        "--rollout.temperature",
        "0.5",
        "--seed=7",
        "--gad.generator_learning_rate=5e-7",
        "--data.skip_invalid=true",
        "--export=False",
        "--data.heldout=",
        "--grpo.kl_max=inf",
    )
    assert config.batch.prompts == 8
    assert config.rollout.temperature == 0.5
    assert config.seed == 7
    assert config.gad.generator_learning_rate == 5e-7
    assert config.data.skip_invalid is True
    assert config.export is False
    assert config.data.heldout == ""
    assert config.grpo.kl_max == float("inf")


def test_a_file_keeps_the_defaults_of_a_section_that_it_opens(write: Any) -> None:
    write("seqkd:\n  steps: 5\n")
    config = read("--config=c.yaml")
    assert config.seqkd == dataclasses.replace(Config().seqkd, steps=5)
    assert config.seqkd.generator_learning_rate == 5e-6  # not Stage's own 1e-6


def test_flags_win_over_the_file(write: Any) -> None:
    write("batch:\n  prompts: 16\n  row_tokens: 4096\nseed: 3\n")
    config = read("--config", "c.yaml", "--batch.prompts=8")
    assert (config.batch.prompts, config.batch.row_tokens, config.seed) == (8, 4096, 3)


def test_a_flag_may_repair_what_the_file_says(write: Any) -> None:
    write("rollout:\n  samples: 1\n")
    assert read("--config=c.yaml", "--rollout.samples=4").rollout.samples == 4


def test_without_config_the_default_one_is_loaded() -> None:
    assert read(default="quickstart") == read("--config=quickstart")
    assert read(default="quickstart").run_dir == "runs/quickstart"
    assert read("--config=tiny", default="quickstart") == options.load(Config, "tiny")


def test_name_means_the_working_directory_before_the_repository(write: Any) -> None:
    assert read("--config=tiny").student.path == "random-tiny"
    Path("configs").mkdir()
    Path("configs/tiny.yaml").write_text("seed: 9\n")
    assert read("--config=tiny") == Config(seed=9)


@pytest.mark.parametrize("text", ["", "# nothing\n", "batch:\n", "batch: {}\n"])
def test_a_file_may_leave_everything_to_the_defaults(write: Any, text: str) -> None:
    write(text)
    assert read("--config=c.yaml") == Config()


def test_yaml_numbers_in_every_notation(write: Any) -> None:
    write(
        "gad:\n  generator_learning_rate: 5e-7\n  epochs: 2\n  discriminator_learning_rate: 1.e-6"
    )
    gad = read("--config=c.yaml").gad
    assert gad.generator_learning_rate == 5e-7
    assert gad.discriminator_learning_rate == 1e-6
    assert isinstance(gad.epochs, float)


def test_flat_settings_with_a_positional_argument() -> None:
    small = read(
        "runs/a", "--out=b", "--sizes=3, 4", "--limit=5", "--folder=c", "--verbose=true", kind=Small
    )
    assert small == Small("runs/a", "b", (3, 4), 5, Path("c"), True)
    assert read("--out=b", "runs/a", "--limit=none", "--sizes=", kind=Small).limit is None


def test_a_location_may_begin_at_home_and_other_text_stays(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    write("run_dir: ~/runs/a\ntracking:\n  name: ~/name\n")
    config = read("--config=c.yaml", "--data.train=~/a.jsonl")
    assert config.run_dir == "/home/me/runs/a"
    assert config.data.train == "/home/me/a.jsonl"
    assert config.tracking.name == "~/name"


# Printing


def some(hint: Any, value: Any, draw: random.Random) -> Any:
    """A value of the same type as a default."""
    if isinstance(value, bool):
        return draw.random() < 0.5
    if isinstance(value, int):
        return draw.choice([0, 1, 2, 7, 128, 4096, 10**9])
    if isinstance(value, float):
        return draw.choice([0.0, 1e-8, 5e-7, 0.1 + 0.2, 1 / 3, 1.0, 3.0, 1e16, 1e22, float("inf")])
    if isinstance(value, tuple):
        return tuple(draw.sample(value, draw.randint(0, len(value))))
    if hasattr(hint, "__args__"):
        return draw.choice(hint.__args__)
    texts = r"""|gad|a b| x |null|~|true|1e-6|5|a: b|# x|é→|'"|- x|%|2024-01-01|a,b|!x|&x|=|<<|\n"""
    return draw.choice([*texts.split("|"), "a\n b\n", "x " * 200])


def flag(name: str, value: Any) -> str:
    return f"--{name}={','.join(value) if isinstance(value, tuple) else value}"


def test_yaml_of_any_config_reads_back_equal(tmp_path: Path) -> None:
    draw = random.Random(0)
    path = tmp_path / "c.yaml"
    built = 0
    while built < 60:
        leaves = list(fields.leaves(Config))
        changed = draw.sample(leaves, draw.randint(1, 8))
        given = {x.path: fields.Given(some(x.type, x.value, draw), x.path) for x in changed}
        try:
            config = fields.build(Config, given)
        except UserError:
            continue
        built += 1
        path.write_text(options.to_yaml(config), encoding="utf-8")
        assert options.load(Config, path) == config
        # A rank raises rates that are not given, rounding bounds the importance weights.
        if not any(name.endswith(("rank", "rollout.weights", "matmul")) for name in given):
            assert read(*(flag(name, value.value) for name, value in given.items())) == config


def test_yaml_of_flat_settings_reads_back_equal(tmp_path: Path) -> None:
    small = Small("r", "o", (), None, Path("x/y"), True)
    path = tmp_path / "c.yaml"
    path.write_text(options.to_yaml(small))
    assert options.load(Small, path) == small


def test_yaml_names_every_field() -> None:
    text = options.to_yaml(Config())
    assert text.startswith(
        "stage: all\nrun_dir: runs/default\nseed: 0\nexport: true\nstudent:\n  path: "
    )
    leaves = list(fields.leaves(Config))
    paths = [leaf.path.split(".") for leaf in leaves]
    sections = {tuple(path[:depth]) for path in paths for depth in range(1, len(path))}
    items = sum(len(leaf.value) for leaf in leaves if isinstance(leaf.value, tuple))
    assert text.count("\n") == len(paths) + len(sections) + items


def test_differences() -> None:
    assert options.differences(Config(), Config()) == []
    changed = read(
        "--batch.prompts=16",
        "--data.heldout=",
        "--export=false",
        "--gad.generator_learning_rate=5e-7",
    )
    assert options.differences(Config(), changed) == [
        "export: true → false",
        "data.heldout: bundled:heldout → empty",
        "batch.prompts: 256 → 16",
        "gad.generator_learning_rate: 1e-6 → 5e-7",
    ]


# Exit codes


def test_a_boolean_flag_without_a_value_is_true() -> None:
    for flags in (["--data.skip_invalid"], ["--data.skip_invalid", "--seed=1"]):
        assert options.read(Config, flags, program="test", description="").data.skip_invalid
    chosen = ["--data.skip_invalid", "false"]
    assert not options.read(Config, chosen, program="test", description="").data.skip_invalid


def test_parse_shows_one_sentence_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        options.parse(Config, ["--sede=1"], program="x", description="")
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "--sede: Config has no field 'sede'; did you mean 'seed'?\n"


def test_flags_of_the_documentation_are_understood() -> None:
    text = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    commands = re.findall(r"\| `(--[^`]+)` \|", text)  # the tables of ablations and changes
    assert len(commands) >= 10
    for command in commands:
        read(*command.split(), default="quickstart")


def test_only_what_is_changed_is_shown() -> None:
    assert options.changed_yaml(Config()) == ""
    config = options.read(Config, ["--gad.steps=7", "--seed=3"], program="train", description="")
    assert options.changed_yaml(config) == "seed: 3\ngad:\n  steps: 7\n"
    assert options.changed_yaml(config, [], ("gad.",)) == "seed: 3\n"
    assert options.changed_yaml(config, ["--gad.steps=7"], ("gad.",)).endswith("steps: 7\n")
    given = [f"--batch.prompts={Config().batch.prompts}", "--seed", "3"]  # one is the default
    assert options.changed_yaml(config, given).startswith("seed: 3\nbatch:\n  prompts: ")


def test_a_command_that_shows_progress_may_say_less_or_more() -> None:
    words = {"program": "x", "description": "", "shows_progress": True}
    try:
        config = options.read(Config, ["--quiet", "--seed=3"], **words)
        assert options.to_yaml(config) == options.to_yaml(read("--seed=3"))
        assert verbosity.quiet()
        for flag, sentence in {
            "--verbose": "--quiet and --verbose are both given; give one of them",
            "--quite": "--quite: Config has no field 'quite'; did you mean 'quiet'?",
        }.items():
            with pytest.raises(UserError) as refused:
                options.read(Config, ["--quiet", flag], **words)
            assert str(refused.value) == sentence
    finally:
        verbosity.choose([])
    assert "Config has no field 'quiet'" in refusal("--quiet")  # of another command
