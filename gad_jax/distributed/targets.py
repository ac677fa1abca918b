"""The machines that a plan can be made for, and how to compile for them without having them."""

import dataclasses
import os
import re
from typing import Any

from gad_jax.base.errors import UserError, first_line
from gad_jax.distributed.chips import CHIPS, REFUSED, gpu_description

PLUGINS = {
    "cuda": "pip install jax==0.11.2, then pip install --no-deps jax-cuda13-pjrt==0.11.2 "
    "jax-cuda13-plugin==0.11.2 nvidia-cudnn-cu13",
    "tpu": 'pip install "jax[tpu]"',
}
"""What brings the compiler of a platform; no device or driver is needed."""

CPU_DEVICES = 2048
"""More than these jax takes for devices of several processes, for which a CPU does not compile."""


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
    examples = "h100:2x8 (nodes × GPUs), rtx4090:1x1, v5e:4x4, v5p:2x2x4, v6e:4x4 or cpu:8"
    if kind.lower() in REFUSED:
        raise UserError(f"--target={text}: {kind} is not planned for: {REFUSED[kind.lower()]}")
    if kind != "cpu" and kind not in CHIPS:
        known = ", ".join([*CHIPS, "cpu"])
        raise UserError(f"--target={text}: {kind!r} is not one of {known}; write {examples}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise UserError(f"--target={text}: a size is needed after the colon; write {examples}")
    shape = tuple(int(part) for part in size.split("x"))
    needed = {"cpu": 1, "v5p": 3}.get(kind, 2)
    if len(shape) != needed:
        raise UserError(
            f"--target={text}: {kind} needs {needed} number{'s' * (needed > 1)} and has "
            f"{len(shape)}; "
            f"write {examples}"
        )
    if kind == "cpu" and shape[0] > CPU_DEVICES:
        raise UserError(f"--target={text}: a CPU simulates at most {CPU_DEVICES} devices")
    return Target(text, kind, shape)


def prepare_environment(target: Target | None) -> None:
    """Sets what jax reads when it is imported; call it before. None stands for any GPUs."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if (
        target and target.platform == "tpu"
    ):  # libtpu compiles, and is not to look for devices or a cloud
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{target.kind}-{target.devices}")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # plans run side by side
        os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    count = "--xla_force_host_platform_device_count"
    flags = [os.environ.get("XLA_FLAGS", "")]
    if target is None:  # as many as a node has, to lay arrays out on
        flags.append(f"{count}=8")
    elif target.kind == "cpu" and count not in flags[0]:
        flags.append(f"{count}={target.devices}")
    if target is None or target.platform == "cuda":
        # with 0, XLA wants defaults of kernels that have none
        flags.append("--xla_gpu_autotune_level=4")
    os.environ["XLA_FLAGS"] = " ".join(flags)


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
                "", "cuda", topology=size, target_config=gpu_description(target.kind)
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
