"""The devices: their memory, what is compiled for them, and copies between them and the host."""

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.base import host_memory
from gad_jax.base.cache import program_dir
from gad_jax.base.errors import UserError
from gad_jax.distributed.chips import FLOAT8
from gad_jax.distributed.sharding import MESH_AXES

_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}
"""Flags of processors in /proc/cpuinfo; the last one is Arm's."""


def put(tree: Any, mesh: Mesh, *logical: str | None) -> Any:
    """Copies host arrays to the devices; `logical` names the leading axes of every leaf.

    Each process holds the whole array on its host and sends the parts of its own devices.
    """

    def one(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        axes = (*logical, *(None,) * (leaf.ndim - len(logical)))
        sharding = NamedSharding(mesh, P(*(MESH_AXES[axis] for axis in axes)))
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(one, tree)


def zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns an array of zeros with this sharding, in the memory that it names."""

    def part(index: Any) -> np.ndarray:
        size = shape.sharding.shard_shape(shape.shape)
        return np.zeros(size, shape.dtype)

    return jax.make_array_from_callback(shape.shape, shape.sharding, part)


def fetch(tree: Any) -> Any:
    """Returns device arrays as whole numpy arrays, also where shards live on other hosts."""

    def one(leaf: jax.Array) -> np.ndarray:
        if not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(jax.device_get(leaf))

    return jax.tree.map(one, tree)


def keep_slow_programs() -> None:
    """Keeps compiled programs on disk, those that take a second or more to compile."""
    jax.config.update("jax_compilation_cache_dir", str(program_dir()))


def keep_programs() -> None:
    """Keeps compiled programs on disk, also those that compile quickly: a server has many."""
    keep_slow_programs()
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


_platform: ContextVar[str | None] = ContextVar("platform", default=None)


HOST = "pinned_host"
"""What jax calls the memory of the host that a device reads and writes."""


def on_host(where: NamedSharding) -> NamedSharding:
    """Returns the same sharding of arrays in the memory of the host."""
    hosted = where.with_memory_kind(HOST)
    if hosted.memory_kind == HOST:
        return hosted
    # jax forgets it for devices that are only compiled for; with an abstract mesh it does not
    return NamedSharding(where.mesh.abstract_mesh, where.spec, memory_kind=HOST)


def is_hosted(leaf: Any) -> bool:
    """Returns whether an array, or its shape with a sharding, is in the memory of the host."""
    return getattr(getattr(leaf, "sharding", None), "memory_kind", None) == HOST


def has_host_memory() -> bool:
    """Returns whether the devices of this process can read and write memory of the host."""
    return all(
        HOST in {memory.kind for memory in device.addressable_memories()}
        for device in jax.local_devices()
    )


def require_float8(name: str, platform: str, capability: tuple[int, ...]) -> None:
    """Raises UserError where a device called `name` has no matmuls of 8-bit floats. A CPU passes:
    it computes the same numbers in float32. Of GPUs alone `capability` is the compute capability.
    """
    if platform == "cpu" or (platform in ("gpu", "cuda") and capability >= FLOAT8):
        return
    having = f", of compute capability {'.'.join(map(str, capability))}" if capability else ""
    raise UserError(
        f"--student.matmul=float8 needs an NVIDIA GPU of compute capability "
        f"{'.'.join(map(str, FLOAT8))} or later (Ada, Hopper, Blackwell), and the device "
        f"is {name}{having}; give --student.matmul=auto"
    )


def require_float8_here() -> None:
    """Does `require_float8` for this process's first device."""
    require_float8(jax.local_devices()[0].device_kind, platform(), capability())


def cpu_multiplies_bfloat16(described: Path = Path("/proc/cpuinfo")) -> bool:
    """Returns whether this machine's processor has instructions that multiply bfloat16; True also
    where the system does not say."""
    try:
        words = described.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return True
    return not _BFLOAT16.isdisjoint(words)


def capability() -> tuple[int, ...]:
    """Returns the compute capability of this process's first device; empty where it has none."""
    found = re.fullmatch(
        r"(\d+)\.(\d+)", str(getattr(jax.local_devices()[0], "compute_capability", ""))
    )
    return tuple(map(int, found.groups())) if found else ()


def device_bytes(tree: Any) -> int:
    """Returns the bytes of a tree's largest part on one device; arrays or their shapes."""
    return _bytes(leaf for leaf in jax.tree.leaves(tree) if not is_hosted(leaf))


def host_bytes(tree: Any) -> int:
    """Returns the bytes of the parts that one device has in the memory of the host."""
    return _bytes(leaf for leaf in jax.tree.leaves(tree) if is_hosted(leaf))


def _bytes(leaves: Iterable[Any]) -> int:
    total = 0
    for leaf in leaves:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        size = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        total += math.prod(shape) * size
    return total


def device_memory() -> int:
    """Returns the memory of a device in bytes; on a CPU what this process may have, shared by its
    devices."""
    devices = jax.local_devices()
    known = (devices[0].memory_stats() or {}).get("bytes_limit")
    return known or host_memory.limit().bytes // len(devices)


def peak_memory() -> int:
    """Returns the peak bytes in use on this process's first device; 0 on a CPU, where jax does not
    count them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def platform() -> str:
    """Returns what programs are compiled for: 'cpu', 'gpu' or 'tpu'."""
    return _platform.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Makes `platform` answer `name` inside: for programs that will run on another machine."""
    token = _platform.set(name)
    try:
        yield
    finally:
        _platform.reset(token)


class CompileCounter:
    """Counts the programs that XLA compiled (or took from its cache on disk) in this process."""

    _EVENT = "/jax/core/compile/backend_compile_duration"
    _LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"  # what comes right before

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.begins: Callable[[], None] = lambda: None
        """Called when XLA begins with a program."""
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == self._EVENT:
            self.count += 1
            self.seconds += duration_secs
        elif event == self._LOWERED:
            self.begins()
