"""Runs `python -m gad_jax.train` as one or several real processes, on simulated devices."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests import compiling

ROOT = Path(__file__).parents[2]
ENTRY = Path(__file__).with_name("entry.py")


class Job:
    """The processes of one run. `outputs` has a file for each, with what it printed."""

    def __init__(
        self,
        run_dir: Path,
        *flags: object,
        processes: int = 1,
        devices: int = 1,
        kill: dict[int, str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Starts the processes.

        `kill` maps the number of a process to the point at which it kills itself (entry.py). With
        `kill`, even an empty one, all processes start through entry.py.
        """
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        self.run_dir, self.outputs = run_dir, []
        self.processes: list[subprocess.Popen[bytes]] = []
        port = _free_port()
        for index in range(processes):
            output = run_dir.with_name(f"{run_dir.name}.{index}.log")
            command = [sys.executable, "-m", "gad_jax.train"]
            if kill is not None:
                command = [sys.executable, str(ENTRY), kill.get(index, "none")]
            with open(output, "wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*command, f"--run_dir={run_dir}", *map(str, flags)],
                        env=_environment(processes, devices, port, index) | (environment or {}),
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
            self.outputs.append(output)

    def wait(self, timeout: float = 600) -> list[int]:
        """Returns the exit codes. Kills the processes and raises if one does not end in time."""
        deadline = time.monotonic() + timeout
        try:
            return [p.wait(max(deadline - time.monotonic(), 0.1)) for p in self.processes]
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"did not end within {timeout} s:\n{self.printed()}") from error
        finally:
            self.end()

    def wait_for(self, pattern: str, process: int = 0, timeout: float = 600) -> None:
        """Waits until the process has printed a match of the pattern."""
        deadline = time.monotonic() + timeout
        try:
            while not re.search(pattern, self.printed(process)):
                ended = [p.returncode for p in self.processes if p.poll() is not None]
                assert not ended, f"ended with {ended}, without {pattern!r}:\n{self.printed()}"
                assert time.monotonic() < deadline, f"no {pattern!r} in time:\n{self.printed()}"
                time.sleep(0.02)
        except BaseException:
            self.end()
            raise

    def printed(self, process: int | None = None) -> str:
        """Returns what one process, or each of them, has printed so far."""
        chosen = self.outputs if process is None else [self.outputs[process]]
        return "\n".join(path.read_text("utf-8", "replace") for path in chosen)

    def signal(self, number: int, process: int = 0) -> None:
        self.processes[process].send_signal(number)

    def end(self) -> None:
        """Kills the processes that still run."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def _environment(processes: int, devices: int, port: int, index: int) -> dict[str, str]:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {compiling.XLA_FLAGS}",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    }
    environment.pop("JAX_DEBUG_KEY_REUSE", None)
    if processes > 1:
        environment |= {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
        }
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
