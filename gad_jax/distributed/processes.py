"""Several processes as one run: how they find each other, and what they have to agree on.

Every process runs the same program with the same settings. The first process does what only one may
do, such as holding the lock or writing a file. What only one process knows (a signal, an error, the
content of a file) is shared here, so that all take the same decision. All processes make each of
these calls.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from gad_jax.base.errors import UserError, first_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRIPLE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Environment variables for launchers that jax does not know: HOST:PORT of process 0, how many
processes there are, and which of them this is."""


_alone = False
"""Whether `start` has found that this process is the only one."""


def start(heartbeat_seconds: int, start_seconds: int) -> None:
    """Joins the other processes of this run, if there are any; call it before using a device.

    jax recognises Slurm, Open MPI, Kubernetes jobs (JobSet) and TPU pods; `TRIPLE` is for anything
    else. A process that is silent for `heartbeat_seconds` counts as dead, which ends all.
    Raises UserError when the others cannot be reached within `start_seconds`.
    """
    global _alone
    if _alone or jax.distributed.is_initialized():  # by an earlier run in this process
        return
    # jax's own SIGTERM handler would replace `guard.StopRequest`.
    jax.config.update("jax_enable_preemption_service", False)
    address, count, index = _manual()
    if address is not None:  # before jax, which aborts the process when it fails
        logger.warning(
            "process %s of %s joins at %s; it waits %d s for the others",
            *(index, count, address, start_seconds),
        )
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            # By default jax listens on all interfaces.
            coordinator_bind_address=address if _is_loopback(address) else None,
            local_device_ids=_local_devices(os.environ),
            cluster_detection_method=_detection(os.environ),
            initialization_timeout=start_seconds,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=start_seconds,
        )
    except ValueError as error:
        if "coordinator_address" not in str(error):
            raise UserError(f"{error} Set {TRIPLE[0]}, {TRIPLE[1]} and {TRIPLE[2]}") from error
        _alone = True  # no cluster
    except RuntimeError as error:
        if "before any JAX calls" in str(error):
            raise UserError(
                "this process has used jax before the run began, so it cannot join others; begin "
                "the run first, or in a process of its own (gad_jax.Run needs neither)"
            ) from error
        raise UserError(
            f"the other processes of this run were not reached within {start_seconds} s "
            f"({first_line(error)}); check that all are started with the same "
            f"{TRIPLE[0]} and {TRIPLE[1]}, and that its port is open"
        ) from error


def stop() -> None:
    """Leaves the other processes once all of them are done."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def is_first() -> bool:
    """Returns whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def any_of(*flags: bool) -> list[bool]:
    """Returns for each flag whether it is true in any process."""
    if jax.process_count() == 1:
        return list(flags)
    return [bool(np.any(column)) for column in _gather(*flags).T]


def all_of(flag: bool) -> bool:
    """Returns whether the flag is true in every process."""
    return not any_of(not flag)[0]


def from_first(make: Callable[[], Any], settle: Callable[[], object] = lambda: None) -> Any:
    """Calls `make` in the first process and returns its result in all of them.

    The result is anything that JSON can hold. A UserError of the first process is raised in all.
    `settle` waits for what the devices still compute, where that overlaps with `make`: the exchange
    is a program too, and must not overtake another one.
    """
    if jax.process_count() == 1:
        return make()
    value, error = None, ""
    if is_first():
        try:
            value = make()
        except UserError as raised:
            error = str(raised)
    settle()
    value, error = json.loads(_broadcast(json.dumps([value, error])))
    if error:
        raise UserError(error)
    return value


def together(make: Callable[[], T]) -> T:
    """Calls `make` in every process and returns its result here, once it has returned in all.

    Where it raises UserError in one process, all raise one. `make` must not wait for other
    processes.
    """
    if jax.process_count() == 1:
        return make()
    try:
        made, failed = [make()], None
    except UserError as error:
        made, failed = [], error
    wrong = np.flatnonzero(_gather(failed is not None)[:, 0])
    if failed is not None:
        raise failed
    if wrong.size:
        raise UserError(f"process {wrong[0]} could not start; its output says why")
    return made[0]


def require_same(what: str, text: str) -> None:
    """Raises UserError unless the text is the same in all processes."""
    if jax.process_count() == 1:
        return
    wrong = np.flatnonzero(_gather(from_first(lambda: text) != text)[:, 0])
    if wrong.size:
        raise UserError(
            f"process {wrong[0]} has {what} other than process 0; start all processes with the "
            "same command, code and files"
        )


def require_shared(path: Path, wait_seconds: float = 30.0) -> None:
    """Raises UserError unless every process sees the file, which the first has written."""

    def look() -> None:
        until = time.monotonic() + wait_seconds  # network file systems show a file late
        while not path.exists():
            if time.monotonic() > until:
                raise UserError(
                    f"process {jax.process_index()} does not see {path} of process 0; put "
                    "--run_dir on a file system that all processes share"
                )
            time.sleep(0.2)

    together(look)


def lost_peer(error: BaseException) -> str | None:
    """Returns the sentence for an error that means that another process ended, else None.

    The transports (Gloo, NCCL, gRPC) have no error type for it: they raise ValueError or
    RuntimeError, whose text begins with a status code. Orbax raises TimeoutError where the others
    do not come to a barrier of a save.
    """
    signs = r"(?is)gloo|nccl|connection|heartbeat|coordination|socket closed|barrier"
    text = " ".join(str(error).split())
    ours = isinstance(error, UserError) or not isinstance(error, (ValueError, RuntimeError))
    status = re.match(r"[A-Z_]{4,}: ", text)
    waited = isinstance(error, TimeoutError) and "barrier" in text
    lost = waited or (not ours and status and re.search(signs, text))
    if jax.process_count() == 1 or not lost:
        return None
    return (
        f"process {jax.process_index()} of {jax.process_count()} lost another one, whose output "
        f"says why ({text[:200]}); the last complete checkpoint is intact, and the same command "
        "resumes from it"
    )


def _manual() -> tuple[str | None, int | None, int | None]:
    """Returns what `TRIPLE` says: all of it or nothing."""
    address, count, index = (os.environ.get(name) for name in TRIPLE)
    if count is None and index is None:
        return None, None, None  # jax itself may want the address alone
    missing = [name for name in TRIPLE if name not in os.environ]
    if address is None or count is None or index is None:
        raise UserError(f"{missing[0]} is not set, but others of {', '.join(TRIPLE)} are; set all")
    if not (count.isascii() and index.isascii() and count.isdigit() and index.isdigit()):
        raise UserError(f"{TRIPLE[1]}={count} and {TRIPLE[2]}={index} must be whole numbers")
    if int(index) >= int(count):
        raise UserError(
            f"{TRIPLE[2]}={index} must be less than {TRIPLE[1]}={count}; processes count from 0"
        )
    if not address.rpartition(":")[2].isdigit():
        raise UserError(f"{TRIPLE[0]}={address} must be HOST:PORT of process 0")
    return address, int(count), int(index)


def _is_loopback(address: str | None) -> bool:
    return address is not None and address.startswith(("127.", "localhost:", "[::1]:"))


def _detection(environment: Mapping[str, str]) -> str | None:
    """Returns 'deactivate' where jax's own detection would fail on something that is no cluster."""
    if TRIPLE[1] in environment:
        return "deactivate"
    pod = "KUBERNETES_SERVICE_HOST" in environment
    return "deactivate" if pod and "JOB_COMPLETION_INDEX" not in environment else None


def _local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Returns the GPUs of this process under Slurm where jax would choose wrongly, else None.

    Under Slurm jax gives each task the one GPU of its number on the node. That is wrong for a task
    that is alone on its node and for one to which Slurm shows its own GPU only.
    """
    if TRIPLE[1] in environment or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    if not {"SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_NUM_NODES"} <= set(environment):
        return None
    shown = environment.get("CUDA_VISIBLE_DEVICES", "")
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    visible = len(shown.split(",")) if shown else int(on_node) if on_node.isdigit() else 0
    alone = environment["SLURM_NTASKS"] == environment["SLURM_STEP_NUM_NODES"]
    return list(range(visible)) if visible and (alone or visible == 1) else None


def _gather(*flags: bool) -> np.ndarray:
    """Returns the flags of every process, [process, flag]."""
    return np.asarray(multihost_utils.process_allgather(np.asarray(flags)))


def _broadcast(text: str) -> str:
    """Returns the first process's text in every process."""
    content = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
    room = 1 << max(size - 1, 1023).bit_length()  # few sizes, as each is a program to compile
    padded = np.zeros(room, np.uint8)
    if is_first():
        padded[:size] = content
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size].tobytes().decode()
