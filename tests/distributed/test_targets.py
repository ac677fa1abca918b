"""Names of targets, and what is said of those that are none."""

import pytest

from gad_jax.base.errors import UserError
from gad_jax.distributed import targets


@pytest.mark.parametrize(
    ("text", "devices", "per_node", "platform"),
    [
        ("h100:2x8", 16, 8, "cuda"),
        ("h200:1x8", 8, 8, "cuda"),
        ("v5p:2x2x4", 16, 16, "tpu"),
        ("v6e:4x4", 16, 16, "tpu"),
        ("cpu:8", 8, 8, "cpu"),
        ("rtx4090:1x1", 1, 1, "cuda"),
        ("a100-40:2x4", 8, 4, "cuda"),
    ],
)
def test_known_targets(text: str, devices: int, per_node: int, platform: str) -> None:
    target = targets.parse(text)
    assert (target.devices, target.per_node, target.platform) == (devices, per_node, platform)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("b100:8", "'b100' is not one of rtx4090, l4, .*, h100, .*, v5e, v5p, v6e, cpu"),
        ("a100:1x8", "40 and with 80 GB; write a100-40 or a100-80"),
        ("MI300X:1x1", "loads the libraries of an installed ROCm .* plan for h200"),
        ("h100", "a size is needed"),
        ("h100:0x8", "a size is needed"),
        ("h100:8", "h100 needs 2 numbers and has 1"),
        ("v5p:4x4", "v5p needs 3 numbers and has 2"),
    ],
)
def test_others_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        targets.parse(text)


def test_two_plans_for_tpus_may_compile_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # libtpu locks the machine against a second user of its chips, unless it is told not to
    monkeypatch.setattr("os.environ", environment := {"TPU_WORKER_HOSTNAMES": "mine"})
    targets.prepare_environment(targets.parse("v6e:4x4"))
    assert environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"
    assert environment["TPU_ACCELERATOR_TYPE"] == "v6e-16"
    assert environment["TPU_WORKER_HOSTNAMES"] == "mine"


def test_flags_that_only_fit_a_real_gpu_are_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    # the last one counts
    monkeypatch.setattr("os.environ", environment := {"XLA_FLAGS": "--xla_gpu_autotune_level=0"})
    targets.prepare_environment(targets.parse("h100:1x8"))
    assert environment["XLA_FLAGS"].split()[-1] == "--xla_gpu_autotune_level=4"


def test_without_a_target_there_is_a_node_and_the_compiler_of_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.environ", environment := {"XLA_FLAGS": "--mine"})
    targets.prepare_environment(None)
    assert environment["XLA_FLAGS"].split() == [
        *("--mine", "--xla_force_host_platform_device_count=8", "--xla_gpu_autotune_level=4")
    ]
