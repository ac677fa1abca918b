"""The devices of data sheets, and what the compiler is told of them."""

import pytest

from gad_jax.distributed import chips


def test_cards_come_by_their_memory_and_see_less_than_their_names_say() -> None:
    sizes = [chips.CHIPS[name].memory for name in chips.CARDS]
    assert sizes == sorted(sizes)
    said = {"l4": 24, "rtx4090": 24, "l40s": 48, "rtx6000": 96, "h200": 141, "b200": 180}
    for name, gib in said.items():
        assert 0.9 * gib * 2**30 < chips.CHIPS[name].memory <= gib * 2**30


@pytest.mark.parametrize("name", chips.CARDS)
def test_every_card_is_described_to_the_compiler(name: str) -> None:
    chip = chips.CHIPS[name]
    text = chips.gpu_description(name)
    assert f"device_memory_size: {int(chip.memory)} " in text
    assert f"memory_bandwidth: {int(chip.bandwidth)}\n" in text
    assert chip.gpu is not None
    major, minor = chip.gpu.capability
    assert f"major: {major} minor: {minor} " in text
    assert ("ACCELERATED_FEATURES" in text) == (major >= 9)
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
    ],
)
def test_a_device_is_known_by_its_kind(kind: str, name: str) -> None:
    assert chips.of_device(kind) is chips.CHIPS[name]


def test_other_devices_are_not_known() -> None:
    assert chips.of_device("cpu") is None
    assert chips.of_device("NVIDIA L40") is None
    assert chips.of_device("NVIDIA GH200 480GB") is None


def test_the_compute_capability_of_a_gpu_is_known() -> None:
    assert chips.capability("h100") == (9, 0)
    assert chips.capability("v5e") == chips.capability("cpu") == ()
