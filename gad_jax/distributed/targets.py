"""The machines that a plan can be made for, and how to compile for them without having them."""

import dataclasses
import os
import re
from typing import Any

from gad_jax.base.errors import UserError, first_line


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, by its data sheet. Rates are per second, sizes and rates of bytes decimal.

    `link` is what a device sends to its neighbours in a node or slice, in one direction;
    `network` what it has between nodes. Three are for the predicted time only: `attainable`, the
    share of the peak that large training steps usually reach, an assumption; and the seconds that
    things take however small they are, 0 where nobody has measured them: `layer_latency`, a layer
    in the decode loop, whose kernels start one after the other, and `transfer_latency`, a transfer.
    """

    platform: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    attainable: float
    layer_latency: float
    source: str
    transfer_latency: float = 0.0


CHIPS = {
    "h100": Chip(
        "cuda", 989.4e12, 84.94e9, 3.352e12, 450e9, 50e9, 0.45, 5e-5,
        "NVIDIA H100 SXM data sheet: dense bfloat16, HBM3, NVLink 4, one 400 Gb/s NIC per GPU",
        6e-6,  # two of them on NVLink, by nccl-tests (NVIDIA/nccl issue 1259)
    ),
    "h200": Chip(
        "cuda", 989.4e12, 150.7e9, 4.8e12, 450e9, 50e9, 0.45, 5e-5,
        "NVIDIA H200 SXM data sheet: dense bfloat16, HBM3e, NVLink 4, one 400 Gb/s NIC per GPU",
        6e-6,
    ),
    "v5e": Chip(
        "tpu", 197e12, 16.9e9, 819e9, 200e9, 25e9, 0.5, 0.0,
        "Google Cloud TPU v5e system architecture",
    ),
    "v5p": Chip(
        "tpu", 459e12, 102.0e9, 2.765e12, 600e9, 25e9, 0.5, 0.0,
        "Google Cloud TPU v5p system architecture",
    ),
    "v6e": Chip(
        "tpu", 918e12, 33.6e9, 1.638e12, 448e9, 25e9, 0.5, 0.0,
        "Google Cloud TPU v6e system architecture",
    ),
}  # fmt: skip

PLUGINS = {
    "cuda": "pip install jax==0.11.2, then pip install --no-deps jax-cuda13-pjrt==0.11.2 "
    "jax-cuda13-plugin==0.11.2 nvidia-cudnn-cu13",
    "tpu": 'pip install "jax[tpu]"',
}
"""What brings the compiler of a platform; no device or driver is needed."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A number of equal devices. Those of one node have consecutive numbers."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def per_node(self) -> int:
        """Devices joined by links; a TPU slice and a CPU are one node."""
        return self.shape[-1] if self.platform == "cuda" else self.devices

    @property
    def platform(self) -> str:
        return "cpu" if self.kind == "cpu" else CHIPS[self.kind].platform

    @property
    def backend(self) -> str:
        """Its name as `jax.default_backend` has it."""
        return {"cuda": "gpu"}.get(self.platform, self.platform)


def parse(text: str) -> Target:
    """Returns the target of a text such as h100:2x8 (nodes × GPUs), v5p:2x2x4 or cpu:8.

    Raises UserError for anything else.
    """
    kind, _, size = text.partition(":")
    examples = "h100:2x8 (nodes × GPUs), h200:1x8, v5e:4x4, v5p:2x2x4, v6e:4x4 or cpu:8"
    if kind != "cpu" and kind not in CHIPS:
        known = ", ".join([*CHIPS, "cpu"])
        raise UserError(f"--target={text}: {kind!r} is not one of {known}; write {examples}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise UserError(f"--target={text}: a size is needed after the colon; write {examples}")
    shape = tuple(int(part) for part in size.split("x"))
    needed = {"h100": (2,), "h200": (2,), "v5e": (2,), "v6e": (2,), "v5p": (3,), "cpu": (1,)}
    if len(shape) not in needed[kind]:
        raise UserError(
            f"--target={text}: {kind} needs {needed[kind][0]} numbers and has {len(shape)}; "
            f"write {examples}"
        )
    return Target(text, kind, shape)


def prepare_environment(target: Target) -> None:
    """Sets what jax reads when it is imported; call it before."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if target.platform == "tpu":  # libtpu compiles, and is not to look for devices or a cloud
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{target.kind}-{target.devices}")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # plans run side by side
        os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    flag = "--xla_force_host_platform_device_count"
    flags = os.environ.get("XLA_FLAGS", "")
    if target.kind == "cpu" and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={target.devices}"
    elif target.platform == "cuda":  # with 0, XLA wants defaults of kernels that have none
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=4"


def devices(target: Target) -> list[Any]:
    """Returns devices to compile for. Raises UserError where the compiler is not installed."""
    import jax
    from jax.experimental import topologies

    if target.kind == "cpu":
        found = jax.devices("cpu")
        if len(found) < target.devices:
            raise UserError(
                f"--target={target.name}: {len(found)} CPU devices are simulated here; XLA_FLAGS "
                f"holds --xla_force_host_platform_device_count, set it to {target.devices} or "
                "leave it out"
            )
        return found[: target.devices]
    try:
        if target.platform == "cuda":
            size = "x".join(map(str, (1, *target.shape)))
            topology = topologies.get_topology_desc(
                "", "cuda", topology=size, target_config=_gpu_description(target.kind)
            )
        else:
            topology = topologies.get_topology_desc(target.name, "tpu")
    except Exception as error:  # the plugins' own, of many kinds
        raise UserError(
            f"--target={target.name}: the {target.platform} compiler cannot be used here "
            f"({first_line(error)}); in a separate environment, {PLUGINS[target.platform]}, and "
            "the rest of requirements.txt"
        ) from error
    return list(topology.devices)


def _gpu_description(kind: str) -> str:
    """Returns what XLA's GPU compiler asks a device for, as text proto, for compute capability 9.0.

    Numbers are those that the CUDA runtime reports for the SXM boards.
    """
    chip, name = CHIPS[kind], {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}[kind]
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132 fpus_per_core: 128
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 memory_bandwidth: {int(chip.bandwidth)}
  device_memory_size: {int(chip.memory)} device_address_bits: 64
  name: "{name}" device_vendor: "NVIDIA Corporation"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
device_description_str: "{name}"
"""
