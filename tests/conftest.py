"""What every test runs under: eight simulated CPU devices, checked shapes, no network."""

import atexit
import faulthandler
import inspect
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests import compiling

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tests marked gpu are given cuda,cpu
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {compiling.XLA_FLAGS}"
os.environ["JAX_DEBUG_KEY_REUSE"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as for every command
os.environ["HF_HUB_OFFLINE"] = "1"
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # the process that starts workers ran this too
    shared = Path(os.environ["GAD_JAX_CACHE"])
    os.environ["GAD_JAX_CACHE"] = str(shared / worker)
    (shared / worker).mkdir()
    (shared / worker / "xla").symlink_to(shared / "xla")  # compiled programs
else:
    os.environ["GAD_JAX_CACHE"] = tempfile.mkdtemp(prefix="gad_jax-tests-")
    shared = Path(os.environ["GAD_JAX_CACHE"])
    (shared / "xla").mkdir()
    # Workers and the commands that tests start compile the same programs: they share one cache.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared / "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # tests repeat small ones most
    atexit.register(shutil.rmtree, shared, ignore_errors=True)

# Below the variables: it imports jax, which reads them.
from jaxtyping import install_import_hook

compiling.collect_garbage_seldom()

PACKAGE = Path(__file__).parents[1]
ARRAYS = re.compile(r"^\s*(?:import|from) (?:jax|jaxtyping|numpy|optax|gad_jax\.types)\b", re.M)
UNCHECKED = "gad_jax.types"
"""eval_shape fills its pytrees with shapes and shardings, which are no arrays."""


def _with_arrays() -> list[str]:
    """Returns the modules whose shapes are checked at every call.

    Others have none, and pyright knows their types. To check them too took two seconds of CPU time
    in every worker, and settings were read at a seventh of the speed.
    """
    paths = [*(PACKAGE / "gad_jax").glob("*/**/*.py"), *(PACKAGE / "gad_jax").glob("[!_]*.py")]
    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in paths
        if path.stem != "__init__"  # a package would stand for all of its modules
        if ARRAYS.search(path.read_text(encoding="utf-8"))
    }
    return sorted(found - {UNCHECKED})


install_import_hook(_with_arrays(), "beartype.beartype")

LONGEST_FIRST = (
    "training/test_trainer.py",
    "training/test_ahead.py",
    "training/test_iteration.py",
    "training/test_health.py",
    "faults/test_processes.py",
    "faults/test_stops.py",
    "rollout/test_engine.py",
    "training/test_bases.py",
    "training/test_continuing.py",
    "training/test_library.py",
    "examples/test_recipes.py",
    "world/test_seeds.py",
    "core/test_steps.py",
    "test_train.py",
    "rollout/test_live.py",
    "core/test_discriminator.py",
    "core/test_preference.py",
    "training/test_exporting.py",
    "training/rewards/test_paying.py",
    "training/test_snapshots.py",
    "examples/test_notebooks.py",
    "training/test_finishing.py",
    "training/test_profiler.py",
    "training/test_replay.py",
    "training/test_preflight.py",
    "training/test_checkpoint_faults.py",
    "world/personas/test_experiment.py",
    "plan/test_main.py",
    "plan/test_programs.py",
    "models/test_experts.py",
    "data/test_same_tokenizer.py",
    "test_thinking.py",
)
"""Files of 20 seconds and more. One that begins last would keep one core busy alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; xdist gives files to its workers in this order."""
    rank = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


PROGRAMS = ("models", "core", "rollout", "distributed.mesh", "distributed.parallel")
"""Modules of functions that are traced. What jit keeps is not traced again when a test replaces
one of them, and what was traced then must not be kept."""

COUNTED_OR_FOREIGN = re.compile(r"_cache_size|compiling_for|--target|gad_jax\.plan")
"""Signs of tests that count programs or trace them for another platform, which jit cannot see."""

MOST_MAPS = 30_000


def _needs_own_programs(module: ModuleType) -> bool:
    source = inspect.getsource(module)
    targets = re.findall(r'setattr\(\s*"?([\w.]+)', source)
    names = [getattr(getattr(module, target, None), "__name__", target) for target in targets]
    traced = tuple(f"gad_jax.{name}" for name in PROGRAMS)
    replaces = any(name.startswith(traced) for name in names)
    return replaces or COUNTED_OR_FOREIGN.search(source) is not None


def _memory_maps() -> int:
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else MOST_MAPS


@pytest.fixture(autouse=True, scope="module")
def _drop_compiled_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keeps traced and compiled programs for the next module, as long as there is room for them.

    Each program holds several memory maps, and Linux allows 65530 in a process. With the programs
    of all tests a process exceeds that, and the compiler ends in a segmentation fault.
    """
    import jax  # not above: it reads the variables that this file sets

    alone = _needs_own_programs(request.module)
    if alone:
        jax.clear_caches()
    yield
    if alone or _memory_maps() >= MOST_MAPS:
        jax.clear_caches()
    faulthandler.cancel_dump_traceback_later()  # a trainer in this process starts the watchdog


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses connections other than to this computer."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: object) -> None:
        local = self.family == getattr(socket, "AF_UNIX", None)
        if not local and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):  # pyright: ignore
            raise OSError(f"a test tried to reach {address}; tests run without the network")
        connect(self, address)  # pyright: ignore

    monkeypatch.setattr(socket.socket, "connect", connect_here)
