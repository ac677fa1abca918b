"""The networks that settings describe: what does not go together, or has no use on the devices."""

from pathlib import Path

import jax
import pytest

from gad_jax.base.errors import UserError
from gad_jax.distributed.mesh import make_mesh
from gad_jax.settings import options
from gad_jax.training import architectures, loading
from tests.models import networks
from tests.training.runs import run, settings

LISTED = "--student.unroll=true"
HALVED = "--rollout.weights=bfloat16"
ROUNDED = "--student.matmul=bfloat16"


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are compiled for a GPU, as far as this module knows."""
    monkeypatch.setattr(architectures.devices, "platform", lambda: "gpu")


def test_layers_are_listed_on_a_gpu_only() -> None:
    with pytest.raises(UserError, match=r"--student.unroll=true .* on a CPU .*; leave it out"):
        architectures.check_devices(settings("unused", LISTED))


@pytest.mark.usefixtures("on_a_gpu")
def test_a_gpu_lists_layers() -> None:
    config = settings("unused", LISTED)
    architectures.check_devices(config)
    assert all(network.unroll for network in architectures.configs(config))


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("flag", [HALVED, ROUNDED])
def test_bfloat16_next_to_float32_is_for_cpus(flag: str) -> None:
    with pytest.raises(UserError, match=rf"{flag} is for CPUs.*; leave it out"):
        architectures.check_devices(settings("unused", flag))


@pytest.mark.parametrize("flag", [HALVED, ROUNDED])
def test_bfloat16_rounds_float32(flag: str) -> None:
    architectures.check_devices(settings("unused", flag))
    config = settings("unused", flag, "--student.compute_dtype=bfloat16")
    said = rf"{flag} rounds nothing that --student.compute_dtype=bfloat16"
    with pytest.raises(UserError, match=said):
        architectures.check_devices(config)


def test_a_processor_without_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("unused", HALVED, ROUNDED)
    monkeypatch.setattr(architectures.devices, "cpu_multiplies_bfloat16", lambda: False)
    (said,) = architectures.warnings(config)
    assert said.startswith(f"warning: {HALVED} and {ROUNDED} may take longer on this processor")
    assert not architectures.warnings(settings("unused"))
    monkeypatch.setattr(architectures.devices, "cpu_multiplies_bfloat16", lambda: True)
    assert not architectures.warnings(config)


@pytest.mark.parametrize("flag", [LISTED, HALVED, ROUNDED])
def test_a_run_of_other_devices_is_read(tmp_path: Path, flag: str) -> None:
    """It cannot be trained here, but evaluated and exported."""
    flags = "--stage=seqkd", "--seqkd.steps=1", "--data.heldout="
    run(settings(tmp_path, *flags))
    (tmp_path / "config.yaml").write_text(options.to_yaml(settings(tmp_path, *flags, flag)))
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        network = loading.load_from_run(tmp_path, "generator", mesh)
    assert network.origin is not None
    assert network.config.decode_weights == "auto"  # only samples of training are rounded


def test_adapters_of_experts_are_refused_by_name(tmp_path):
    mixture = networks.write(tmp_path / "model", networks.NETWORKS["qwen3-moe"])
    config = settings(tmp_path / "run", "--lora.rank=2", f"--student.path={mixture}")
    with pytest.raises(UserError, match=r"gate, up, down.*--lora\.targets=query,key,value,output"):
        architectures.configs(config)


def test_matmuls_of_experts_are_not_rounded(tmp_path):
    mixture = networks.write(tmp_path / "model", networks.NETWORKS["qwen3-moe"])
    flags = "--student.matmul=float8", f"--student.path={mixture}"
    with pytest.raises(UserError, match=r"rounds no experts.*'qwen3_moe'.*--student\.matmul=auto"):
        architectures.configs(settings(tmp_path / "run", *flags))


def test_experts_are_not_quantised(tmp_path):
    mixture = networks.write(tmp_path / "model", networks.NETWORKS["qwen3-moe"])
    flags = "--lora.rank=2", "--lora.targets=query", "--lora.base_dtype=int8"
    config = settings(tmp_path / "run", *flags, f"--student.path={mixture}")
    with pytest.raises(UserError, match=r"quantises no experts.*--lora\.base_dtype=bfloat16"):
        architectures.configs(config)
