"""The smallest card: which is tried, and what is said of the others."""

import dataclasses
import json

import jax
import pytest

from gad_jax.distributed import chips, devices, targets
from gad_jax.distributed.mesh import make_mesh
from gad_jax.plan import __main__ as main
from gad_jax.plan import cards, estimate, workload
from gad_jax.plan import networks as shapes
from gad_jax.plan.report import Plan
from gad_jax.settings import options
from gad_jax.training import architectures, footprint
from tests.plan.test_report import plan_of, program

FLAGS = ("--config=tiny", "--stage=gad", "--data.max_prompt_tokens=64")


@pytest.fixture(scope="module")
def run() -> tuple:
    """The tiny run's settings on one device, its networks and a step's lengths."""
    settings = options.read(main.PlanCommand, FLAGS, program="plan", description="")
    with devices.compiling_for("gpu"):
        networks = architectures.configs(settings)
        lengths = workload.LognormalLengths(20.0, 20.0)
        work = workload.draw(settings, lengths, targets.parse("h100:1x1"))
    return cards.on_one(settings), networks, work


@pytest.fixture
def choose(run, monkeypatch: pytest.MonkeyPatch):
    """Returns a function: usable bytes of each card, and what compiling finds → the answer, and
    the cards that were compiled for."""

    def answer(sizes: dict[str, int], compiled: int, missing: str = ""):
        known = {
            name: dataclasses.replace(chips.CHIPS["h100"], memory=size / 0.92)
            for name, size in sizes.items()
        }
        monkeypatch.setattr(cards, "CARDS", tuple(known))
        monkeypatch.setattr(cards, "CHIPS", known)
        monkeypatch.setattr(cards, "NODE", tuple(known)[-1:])
        monkeypatch.setattr(cards, "_missing_compiler", lambda: missing)
        tried: list[str] = []

        def plan_for(name: str) -> Plan:
            tried.append(name)
            one = program()
            one.bytes["temporary"] = compiled
            return dataclasses.replace(plan_of(one), chip=known[name])

        return cards.choose(*run, plan_for), tried

    return answer


def test_the_estimate_names_the_first_card_and_the_compiler_confirms_it(choose) -> None:
    sizes = {"l4": 10_000, "a10": 10**8, "h100": 10**9}
    answer, tried = choose(sizes, compiled=2 * 10**6)
    assert tried == ["a10"]
    assert [card.name for card in answer.cards] == ["a10", "h100"]
    assert [step.stage for step in answer.cards[0].steps] == ["gad"]
    assert answer.bytes == 2 * 10**6
    assert answer.smaller == []  # nothing makes this run fit into 10 kB
    assert answer.nodes == []


def test_a_card_that_the_compiler_finds_too_small_is_followed_by_the_next_large_one(choose) -> None:
    sizes = {"l4": 10**8, "a10": 2 * 10**8, "h100": 10**9}
    answer, tried = choose(sizes, compiled=3 * 10**8)
    assert tried == ["l4", "h100"]
    assert [card.name for card in answer.cards] == ["h100"]


def test_no_card_is_large_enough_but_several_may_be(choose) -> None:
    """The state of random-tiny, 28 bytes a parameter, is split over the devices."""
    need = choose({"h100": 10**9}, compiled=1)[0].need.total
    answer, tried = choose({"l4": 10_000, "a10": int(0.75 * need)}, compiled=1)
    assert (tried, answer.cards, answer.plan) == ([], [], None)
    [(name, count)] = answer.nodes
    assert (name, count) in {("a10", 2), ("a10", 4), ("a10", 8)}


def test_smaller_cards_are_offered_with_other_settings(choose) -> None:
    need = choose({"h100": 10**9}, compiled=1)[0].need.total
    answer, _ = choose({"l4": int(0.9 * need), "h100": 10**9}, compiled=2 * need)
    [smaller] = answer.smaller
    assert smaller.name == "l4"
    assert smaller.bytes <= 0.9 * need
    assert "--batch.micro_batch_prompts=" in smaller.flags


def test_without_the_compiler_the_answer_is_an_estimate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_plugin(*_: object, **__: object) -> None:
        raise RuntimeError("Unknown backend cuda")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", no_plugin)
    monkeypatch.setenv("COLUMNS", "80")
    assert main.main([*FLAGS, "--mesh.fsdp=2", "--price_per_hour=2", "--rows=8000"]) == 0
    printed = capsys.readouterr()
    assert "Only an estimate: --target=" in printed.out
    assert "The smallest card that holds it: l4, with 20.27 usable GiB." in printed.out
    assert "At 2 an hour that costs " in printed.out
    assert "for one card, so with --mesh.replica=1" in printed.err
    assert printed.out.endswith("--mesh.replica=1 --mesh.fsdp=1 --dry_run\n")
    assert max(map(len, printed.out.splitlines())) <= 80

    assert main.main([*FLAGS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["smallest"], found["compiled"], found["plan"]) == ("l4", False, None)
    assert [card["name"] for card in found["cards"]] == list(chips.CARDS)
    assert found["cards"][0]["seconds"]["gad"] > 0


PRESETS = {
    "one-gpu-24gb": "rtx4090",
    "one-gpu-80gb": "h100",
    "one-gpu-141gb": "h200",
    "one-gpu-141gb-full": "h200",
}


@pytest.mark.parametrize(("preset", "card"), PRESETS.items())
def test_the_presets_for_one_card_fit_it_by_estimate(preset: str, card: str) -> None:
    """Compiled, they are in `test_main.py`. A step is to take one to two minutes."""
    settings = options.read(
        main.PlanCommand, [f"--config={preset}"], program="plan", description=""
    )
    assert settings.stages == ("warmup", "gad")
    mesh = make_mesh(devices=jax.devices()[:1])
    with devices.compiling_for("gpu"):
        networks = architectures.configs(settings, shapes.read)
        work = workload.draw(
            settings, workload.LognormalLengths(150.0, 385.0), targets.parse("h100:1x1")
        )
        need = footprint.largest(settings, networks, mesh, workload.lengths_of(work))
    assert 0.5 < need.total / cards.usable(card) < 0.95
    target = targets.parse(f"{card}:1x1")
    step = estimate.step(settings, "gad", networks, target, chips.CHIPS[card], work, [])
    assert 60 < step.seconds < 120
    rates = [settings.gad.generator_learning_rate, settings.gad.discriminator_learning_rate]
    assert rates == [1e-5 if networks[0].lora else 1e-6] * 2


def test_rounded_updates_are_for_cards_that_have_their_matmuls(run) -> None:
    settings, _, _ = run
    rounded = dataclasses.replace(
        settings, student=dataclasses.replace(settings.student, matmul="float8")
    )
    without = {name for name in chips.CARDS if not cards._suits(rounded, name)}
    assert without == {"a10", "a100-40", "a100-80"}
    assert all(cards._suits(settings, name) for name in chips.CARDS)
