"""The programs of a small run, compiled for eight simulated devices."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from gad_jax.plan import __main__ as plan
from gad_jax.plan import programs
from gad_jax.plan.calls import Call
from gad_jax.rollout import sampling
from gad_jax.settings import options
from gad_jax.settings.config import Config

FLAGS = ("--config=tiny", "--stage=gad", "--target=cpu:8", "--discriminator.replay_share=0.5")


@pytest.fixture(scope="module")
def planned() -> dict:
    """The plan of the tiny run on eight devices, as JSON."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert plan.main([*FLAGS, "--json", "--mesh.tensor=2"]) == 0
    return json.loads(out.getvalue())


def test_every_program_is_planned(planned: dict) -> None:
    assert [program["name"] for program in planned["programs"]] == [
        "gad: G and D update",
        "rollout: reshard",
        "rollout: prefill",
        "rollout: decode",
    ]
    assert planned["fits"]
    assert planned["mesh"] == {"replica": 1, "fsdp": 4, "tensor": 2}
    assert planned["steps"][0]["seconds"] > 0
    assert planned["steps"][0]["measured"]
    flops = {phase["name"]: phase["flops"] for phase in planned["steps"][0]["phases"]}
    # One of two samples is scored once more, in one pass in place of an update's four.
    assert 0 < flops["replay"] <= flops["discriminator"] / 4


def test_bytes_per_device_are_those_of_the_layout(planned: dict) -> None:
    """random-tiny by hand: 5 norms of 32 numbers are whole on every device, the rest is split 8."""
    norms = 5 * 32
    matrices = 512 * 32 + 2 * (32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 64)
    network = 4 * (norms + matrices // 8)
    found = planned["programs"][0]["bytes"]
    assert found["generator"] == found["reference"] == network
    assert found["discriminator"] == network + 4 * (32 + 1)
    assert found["moments"] == 2 * (network + found["discriminator"]) + 2 * 4  # two counters
    assert found["temporary"] > 0


def test_the_decode_copy_is_gathered_over_fsdp(planned: dict) -> None:
    gathers = [c for c in planned["programs"][1]["collectives"] if c["kind"] == "all-gather"]
    matrices = 512 * 32 + 2 * (32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 64)
    assert sum(c["bytes"] for c in gathers) == 4 * matrices // 2 * 3 // 4


def test_bytes_are_listed_by_kind(planned: dict) -> None:
    _, reshard, prefill, decode = (set(program["bytes"]) for program in planned["programs"])
    assert reshard == {"generator", "resident", "temporary", "results"}
    assert prefill == reshard | {"decode copy"}
    assert decode == prefill | {"prompt KV cache", "KV cache"}


def test_samples_come_from_rounded_weights_and_evaluations_do_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(call: Call, *_: object, **__: object) -> programs.Compiled:
        sizes = {kind: size for kind, size in call.held.items() if isinstance(size, int)}
        return programs.Compiled(call.name, sizes, [], 0.0)

    monkeypatch.setattr(programs, "_compile", found)
    monkeypatch.setattr("gad_jax.plan.slices.measure", lambda *_: {})
    many = ("--evaluation.batch_prompts=999", "--evaluation.prompts=0", "--rollout.slots=999")
    assert plan.main([*FLAGS, "--json", "--rollout.weights=int8", *many]) == 0
    planned = {each["name"]: each for each in json.loads(capsys.readouterr().out)["programs"]}
    both = (planned[f"{name}: decode"] for name in ("rollout", "evaluation"))
    sizes = [program["bytes"]["decode copy"] for program in both]
    # a byte for each number of two layers' kernels, and a scale for each of their outputs
    numbers, outputs = 2 * (32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 64), 2 * (5 * 32 + 2 * 48)
    assert sizes[1] - sizes[0] == (4 - 1) * numbers - 2 * outputs


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls that plans would have compiled, in their order."""
    compiled: list[Call] = []

    def found(call: Call, *_: object, **__: object) -> programs.Compiled:
        compiled.append(call)
        return programs.Compiled(call.name, {}, [], 0.0)

    monkeypatch.setattr(programs, "_compile", found)
    monkeypatch.setattr("gad_jax.plan.slices.measure", lambda *_: {})
    return compiled


def test_an_evaluation_is_compiled_where_it_may_take_the_most(
    compiled: list[Call], capsys: pytest.CaptureFixture[str]
) -> None:
    def names(*flags: str) -> list[str]:
        compiled.clear()
        assert plan.main(["--config=tiny", "--target=cpu:1", "--stage=seqkd", *flags]) == 0
        capsys.readouterr()
        return [call.name for call in compiled if call.name.startswith("evaluation")]

    assert names() == []
    long = ("--evaluation.max_new_tokens=200", "--evaluation.prompts=0")
    many = ("--evaluation.batch_prompts=999", "--rollout.slots=99")
    parts = ["evaluation: reshard", "evaluation: prefill", "evaluation: decode"]
    assert names(*long, *many) == parts
    settings = compiled[-1].arguments[1]
    assert (settings.samples, settings.slots, settings.max_new_tokens) == (1, 99, 200)
    assert settings.sampler == sampling.GREEDY
    assert names(*long, *many, "--data.heldout=") == []


def test_the_cache_is_that_of_the_longest_sequence(compiled: list[Call]) -> None:
    """Also where the prompts that are drawn are shorter; compiled for it without resizing."""
    limits = ("--data.max_prompt_tokens=2048", "--rollout.max_new_tokens=16", "--rollout.slots=4")
    positions = []
    for resize in ("true", "false"):
        flags = ("--config=tiny", "--target=cpu:1", "--stage=gad", f"--rollout.resize={resize}")
        with contextlib.redirect_stdout(io.StringIO()):
            assert plan.main([*flags, *limits]) == 0
        decode = compiled[-1]
        assert decode.name == "rollout: decode"
        longest = 4 * (2048 + 16) * 2 * 2 * 16 * 4  # slots, keys and values, layers, width, bytes
        assert longest <= decode.held["KV cache"] < 1.1 * longest
        positions.append(decode.arguments[2])
    assert positions[0] < positions[1] == 2048 + 16


def test_a_reward_model_is_held_by_every_program_and_its_own_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    compiles = programs._compile

    def found(call: Call, *others: Any, **more: Any) -> programs.Compiled:
        if call.name.startswith("reward: "):
            return compiles(call, *others, **more)
        sizes = {kind: size for kind, size in call.held.items() if isinstance(size, int)}
        return programs.Compiled(call.name, sizes, [], 0.0)

    monkeypatch.setattr(programs, "_compile", found)
    monkeypatch.setattr("gad_jax.plan.slices.measure", lambda *_: {})
    config = options.read(Config, ["--config=tiny"], program="", description="")
    (tmp_path / "config.yaml").write_text(options.to_yaml(config))
    flags = (*FLAGS, "--json", f"--reward.extra=model:{tmp_path}", "--mesh.tensor=2")
    assert plan.main([*flags]) == 0
    planned = json.loads(capsys.readouterr().out)
    sizes = {program["name"]: program["bytes"]["reward model"] for program in planned["programs"]}
    assert set(sizes) >= {"gad: G and D update", "reward: model", "rollout: decode"}
    matrices = 512 * 32 + 2 * (32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 64)
    assert set(sizes.values()) == {4 * (5 * 32 + 32 + 1 + matrices // 8)}
    (scores,) = (each for each in planned["programs"] if each["name"] == "reward: model")
    assert scores["bytes"]["temporary"] > 0
    assert any(transfer["kind"] == "all-gather" for transfer in scores["collectives"])
    phases = {phase["name"]: phase for phase in planned["steps"][0]["phases"]}
    assert phases["reward: model"]["transfer_seconds"] > 0
