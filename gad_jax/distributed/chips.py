"""The devices that a plan can be made for, by their data sheets."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA's compiler asks of a GPU, as the CUDA runtime reports it for the card."""

    name: str
    capability: tuple[int, int]
    cores: int
    clock_ghz: float
    l2_bytes: int


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, by its data sheet. Rates are per second, sizes and rates of bytes decimal.

    `memory` is what a program sees, which is less than the name says where a card corrects errors.
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
    gpu: Gpu | None = None

    @property
    def host(self) -> float:
        """Rate to and from the memory of the host: sixteen lanes of PCIe, 5 since Hopper. Of a TPU
        4 is assumed. A CPU's memory is the host's."""
        if self.platform == "cpu":
            return self.bandwidth
        return PCIE_5 if self.gpu and self.gpu.capability >= (9, 0) else PCIE_4


def _card(
    flops: float, memory: float, bandwidth: float, link: float, source: str, gpu: Gpu,
    network: float = 0.0,
) -> Chip:  # fmt: skip
    """Returns a GPU. One without a network of its own has the half of its PCIe link for it.

    6 µs a transfer: two H100 on NVLink, by nccl-tests (NVIDIA/nccl issue 1259).
    """
    source = f"NVIDIA {source}, dense bfloat16"
    return Chip(
        "cuda", flops, memory, bandwidth, link, network or link / 2, 0.45, 5e-5, source, 6e-6, gpu
    )


MIB = 2**20
FLOAT8 = (8, 9)
"""The compute capability of the first GPUs with matmuls of 8-bit floats: Ada."""

PCIE_4, PCIE_5 = 32e9, 64e9
"""Sixteen lanes, one direction."""

CHIPS = {
    "rtx4090": _card(
        165.2e12, 25.38e9, 1.008e12, PCIE_4, "Ada architecture paper (RTX 4090): GDDR6X, PCIe 4",
        Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 72 * MIB),
    ),
    "l4": _card(
        121e12, 23.66e9, 300e9, PCIE_4, "L4 data sheet: GDDR6, PCIe 4",
        Gpu("NVIDIA L4", (8, 9), 58, 2.04, 48 * MIB),
    ),
    "a10": _card(
        125e12, 23.83e9, 600e9, PCIE_4, "A10 data sheet: GDDR6, PCIe 4",
        Gpu("NVIDIA A10", (8, 6), 72, 1.695, 6 * MIB),
    ),
    "a100-40": _card(
        312e12, 42.33e9, 1.555e12, 300e9, "A100 SXM data sheet: HBM2, NVLink 3, 200 Gb/s NICs",
        Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 108, 1.41, 40 * MIB), 25e9,
    ),
    "l40s": _card(
        362e12, 47.7e9, 864e9, PCIE_4, "L40S data sheet: GDDR6, PCIe 4",
        Gpu("NVIDIA L40S", (8, 9), 142, 2.52, 96 * MIB),
    ),
    "a100-80": _card(
        312e12, 84.99e9, 2.039e12, 300e9, "A100 SXM data sheet: HBM2e, NVLink 3, 200 Gb/s NICs",
        Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 40 * MIB), 25e9,
    ),
    "h100": _card(
        989.4e12, 84.94e9, 3.352e12, 450e9, "H100 SXM data sheet: HBM3, NVLink 4, 400 Gb/s NICs",
        Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 50 * MIB), 50e9,
    ),
    "rtx6000": _card(
        503.8e12, 101.97e9, 1.792e12, PCIE_5,
        "RTX PRO 6000 Blackwell data sheet: GDDR7, PCIe 5",
        Gpu("NVIDIA RTX PRO 6000 Blackwell", (12, 0), 188, 2.617, 128 * MIB),
    ),
    "h200": _card(
        989.4e12, 150.7e9, 4.8e12, 450e9, "H200 SXM data sheet: HBM3e, NVLink 4, 400 Gb/s NICs",
        Gpu("NVIDIA H200", (9, 0), 132, 1.98, 50 * MIB), 50e9,
    ),
    "b200": _card(
        2250e12, 191.51e9, 7.7e12, 900e9, "HGX B200 data sheet: HBM3e, NVLink 5, 400 Gb/s NICs",
        Gpu("NVIDIA B200", (10, 0), 148, 1.965, 132_644_864), 50e9,
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

CARDS = tuple(sorted((n for n, chip in CHIPS.items() if chip.gpu), key=lambda n: CHIPS[n].memory))
"""The GPUs, those with the least memory first."""

REFUSED = {
    "a100": "it is sold with 40 and with 80 GB; write a100-40 or a100-80",
    "4090": "write rtx4090",
    "mi300x": "XLA's compiler for AMD (jax-rocm7-pjrt) loads the libraries of an installed ROCm "
    "and a driver, so it compiles on such a machine alone; plan for h200, which has 141 of its "
    "192 GB",
}
"""Names that are not planned for, and why."""

_PER_CORE = {
    (8, 0): (64, 2048, 166_912, 167_936),
    (8, 6): (128, 1536, 101_376, 102_400),
    (8, 9): (128, 1536, 101_376, 102_400),
    (9, 0): (128, 2048, 232_448, 233_472),
    (10, 0): (128, 2048, 232_448, 233_472),
    (12, 0): (128, 1536, 101_376, 102_400),
}
"""By compute capability, from the CUDA programming guide: float32 units of a core, its threads, and
its shared memory in bytes, for one block and in all."""


def capability(kind: str) -> tuple[int, ...]:
    """Returns the compute capability of a chip in `CHIPS`; empty for others and for no GPU."""
    chip = CHIPS.get(kind)
    return chip.gpu.capability if chip and chip.gpu else ()


def of_device(kind: str) -> Chip | None:
    """Returns the chip of a device by its `device_kind` in jax; None for others."""
    kind = kind.lower()
    for chip in CHIPS.values():
        if chip.gpu and chip.gpu.name.lower() == kind:
            return chip
    parts = {r"\bh100\b": "h100", r"\bh200\b": "h200", r"v5 lite|v5e": "v5e"}
    parts |= {r"v5p|v5$": "v5p", "v6": "v6e"}  # jax calls a v5p "TPU v5", too
    return next((CHIPS[chip] for part, chip in parts.items() if re.search(part, kind)), None)


def gpu_description(kind: str) -> str:
    """Returns what XLA's GPU compiler asks a device for, as text proto."""
    chip = CHIPS[kind]
    gpu = chip.gpu
    assert gpu is not None
    major, minor = gpu.capability
    units, threads, shared_block, shared = _PER_CORE[gpu.capability]
    # Tensor cores of a Hopper or a Blackwell need instructions of their own architecture.
    features = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
  core_count: {gpu.cores} fpus_per_core: {units}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {threads}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared_block}
  shared_memory_per_core: {shared} l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.clock_ghz} memory_bandwidth: {int(chip.bandwidth)}
  device_memory_size: {int(chip.memory)} device_address_bits: 64
  name: "{gpu.name}" device_vendor: "NVIDIA Corporation"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
device_description_str: "{gpu.name}"
"""
