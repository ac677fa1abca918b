"""Whether a run fits, and the advice if it does not, from programs whose bytes are known."""

import dataclasses
import io

import pytest
from rich.console import Console

from gad_jax.distributed import chips, targets
from gad_jax.distributed.hlo import Collective
from gad_jax.plan import report, tables, workload
from gad_jax.plan.programs import Compiled
from gad_jax.settings.config import Config
from gad_jax.settings.sections import Batch, Data, Rollout

CHIP = chips.Chip("cpu", 1e12, 100e6, 1e9, 1e9, 1e9, 0.5, 0.0, "a device of 100 MB")
TARGET = targets.parse("cpu:8")
WORK = workload.draw(
    Config(
        stage="gad",
        data=Data(max_prompt_tokens=64),
        batch=Batch(prompts=16, micro_batch_prompts=0, row_tokens=128),
        rollout=Rollout(samples=2, max_new_tokens=64),
    ),
    workload.LognormalLengths(15.0, 20.0),
    TARGET,
)


def plan_of(*programs: Compiled, replica: int = 1) -> report.Plan:
    mesh = {"replica": replica, "fsdp": 8, "tensor": 1}
    return report.Plan(TARGET, CHIP, mesh, [*programs], [], WORK)


def program(name: str = "gad: G and D update", refused: str = "", **sizes: int) -> Compiled:
    kinds = {kind.replace("_", " "): 1_000_000 * size for kind, size in sizes.items()}
    return Compiled(name, kinds, [Collective("all-gather", 8, 1, 2, 700)], 1.0, refused)


def test_eight_percent_of_a_device_are_not_usable() -> None:
    assert plan_of(program(generator=92)).fits
    assert plan_of(program(generator=92)).advice() == []
    assert not plan_of(program(generator=93)).fits


def test_the_largest_program_is_advised_on_by_its_largest_part_first() -> None:
    small = program("rollout: decode", generator=50)
    found = plan_of(program(temporary=70, generator=30, moments=20, results=5), small)
    assert found.peak.total == 125_000_000
    first, second = found.advice()
    assert first.startswith("split or reduce what is computed at once: ")
    assert second.startswith("split or reduce the weights over more devices: a larger --mesh.fsdp")


COPY = "the decode copy of the weights: a larger --mesh.tensor"


@pytest.mark.parametrize(
    ("name", "kind", "change"),
    [
        ("rollout", "decode_copy", COPY),
        ("rollout", "prompt_KV_cache", "the prompt KV cache: fewer --batch.prompts"),
        ("rollout", "KV_cache", "the KV cache: fewer --rollout.slots"),
        ("rollout", "temporary", "the rollout's KV caches: fewer --rollout.slots"),
        ("evaluation", "decode_copy", COPY),
        ("evaluation", "prompt_KV_cache", "the prompt KV cache: fewer --evaluation.batch_prompts"),
        (
            "evaluation",
            "KV_cache",
            "the KV cache: fewer --rollout.slots or --evaluation.batch_prompts, or short",
        ),
        (
            "evaluation",
            "temporary",
            "the evaluation's KV caches: fewer --evaluation.batch_prompts",
        ),
    ],
)
def test_every_kind_of_decoding_has_an_advice(name: str, kind: str, change: str) -> None:
    [advice] = plan_of(program(f"{name}: decode", **{kind: 100})).advice()
    assert advice.startswith(f"split or reduce {change}")


def test_a_refused_evaluation_has_no_advice_on_updates() -> None:
    refused = plan_of(program("evaluation: prefill", "no room", generator=100)).advice()
    assert [line.split(":")[0] for line in refused] == [
        "split or reduce the weights over more devices"
    ]


def test_replicas_are_given_up_first() -> None:
    [advice] = plan_of(program(generator=100), replica=2).advice()
    assert "a smaller --mesh.replica" in advice


def test_a_refused_program_is_the_peak_and_its_temporary_size_unknown() -> None:
    found = plan_of(program(generator=95), program("seqkd: G update", "no room", generator=1))
    assert found.peak.refused == "no room"
    assert [line.split(":")[0] for line in found.advice()] == [
        "split or reduce the weights over more devices",
        "split or reduce what is computed at once",
    ]


def test_memory_of_the_host_is_shown_and_does_not_count() -> None:
    there = dataclasses.replace(program(generator=90), hosted=3 * 2**30, host=4 * 2**30)
    shown = io.StringIO()
    tables.show(plan_of(there), Console(file=shown, width=80))
    lines = [line.split() for line in shown.getvalue().splitlines()]
    assert ["on", "the", "host", "4.00"] in lines
    assert plan_of(there).fits
    assert report.to_json(plan_of(there))["programs"][0]["host_bytes"] == 4 * 2**30


def test_json_has_the_programs() -> None:
    found = report.to_json(plan_of(program(generator=10)))
    assert found["usable_bytes"] == 92_000_000
    assert found["padding"] == {"packed": WORK.padding, "rectangle": WORK.rectangle_padding}
    [one] = found["programs"]
    assert one["total_bytes"] == 10_000_000
    assert one["collectives"] == [
        {"kind": "all-gather", "within": 8, "across": 1, "times": 2, "bytes": 700}
    ]


def test_the_tables_end_with_the_verdict() -> None:
    shown = io.StringIO()
    tables.show(plan_of(program(generator=95)), Console(file=shown, width=160))
    padding = f"padding of packed rows {WORK.padding:.1%}, of a padded rectangle "
    assert padding + f"{WORK.rectangle_padding:.1%}" in shown.getvalue()
    assert "It does not fit: gad: G and D update needs 0.09 GiB per device" in shown.getvalue()
    assert "- split or reduce the weights over more devices" in shown.getvalue()
