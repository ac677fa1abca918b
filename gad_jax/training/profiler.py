"""`--profile.steps=a:b`: a trace of some steps, and a page that says where their time went.

The trace is in RUN/profile, for xprof or Perfetto; its named scopes are the parts of a step. The
page, RUN/profile/summary.txt, is made from the trace, the metrics and analytic FLOPs (`costs`).
"""

import resource
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax

from gad_jax.base import files, verbosity
from gad_jax.base.errors import UserError
from gad_jax.distributed import ceilings, chips, devices, processes
from gad_jax.models import costs
from gad_jax.models.config import DecoderConfig
from gad_jax.models.costs import Work
from gad_jax.types import PackedRows

TOP = 15
SCOPES = ("discriminator", "generator", "reference", "advantages", "optimizer")


class Profiler:
    """Traces the steps that the settings name; does nothing in others.

    `begin` and `end` surround a step; `saw` is given the rows that it packs, the discriminator's
    first.
    """

    def __init__(
        self, steps: tuple[int, int], run_dir: str, networks: tuple[DecoderConfig, DecoderConfig]
    ):
        self._first, self._last = steps
        self._directory = Path(run_dir) / "profile"
        self._networks = networks
        self._rows: list[tuple[Work, Work]] = []
        self._flops: dict[str, float] = defaultdict(float)
        self._metrics: list[dict[str, float]] = []
        self._tracing = self._begun = False

    def begin(self, step: int) -> None:
        """Starts the trace before the first step that is asked for, or that is left of these where
        a run resumes among them; steps count from 1. A page that is there stays, unless the run
        repeats all of these steps."""
        self._rows = []
        resumes, self._begun = 0 < self._first < step and not self._begun, True
        if resumes and (self._directory / "summary.txt").exists():
            return
        if resumes and step > self._last:
            if processes.is_first():
                verbosity.say(
                    f"warning: nothing is traced: the run resumes after step {step - 1}, and "
                    f"--profile.steps={self._first}:{self._last} names steps before; name later "
                    "ones"
                )
            return
        if resumes or step == self._first:
            shutil.rmtree(self._directory, ignore_errors=True)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Python calls would slow the step and fill the trace
            jax.profiler.start_trace(
                str(self._directory), create_perfetto_trace=True, profiler_options=options
            )
            self._tracing = True

    def saw(self, rows: PackedRows) -> None:
        """Records the work in packed rows, while they are on the host."""
        if self._tracing:
            generator, discriminator = self._networks
            self._rows.append(
                (costs.packed_work(generator, rows), costs.packed_work(discriminator, rows))
            )

    def end(self, step: int, metrics: dict[str, float]) -> None:
        """Records a traced step; after the last one, writes the page."""
        if not self._tracing:
            return
        self._metrics.append(metrics)
        for phase, flops in update_flops(self._networks, self._rows, metrics).items():
            self._flops[phase] += flops
        if step == self._last:
            self.close()

    def close(self) -> None:
        """Ends a running trace, as after the last step of a run."""
        if not self._tracing:
            return
        self._tracing = False
        jax.profiler.stop_trace()
        if self._metrics:
            page = summary(
                self._metrics, dict(self._flops), operations(self._directory), _peak_flops()
            )
            files.write_atomic(self._directory / "summary.txt", page)
            print(page, flush=True)


def check(window: tuple[int, int], steps: int) -> None:
    """Raises UserError where a run of so many steps never takes the first that is to be traced."""
    first, last = window
    if first > steps:
        raise UserError(
            f"--profile.steps={first}:{last} begins after the run's last step, {steps}; name steps "
            f"from 1 to {steps}"
        )


def update_flops(
    networks: tuple[DecoderConfig, DecoderConfig],
    rows: list[tuple[Work, Work]],
    metrics: dict[str, float],
) -> dict[str, float]:
    """Returns the analytic FLOPs of each part of a step that has these rows and metrics.

    `rows` are the work that each packing is for the generator and for the discriminator.
    """
    generator, discriminator = networks
    flops: dict[str, float] = {}
    if "discriminator/loss" in metrics:
        flops["discriminator"] = costs.training_flops(discriminator, rows[0][1])
    if "generator/loss" in metrics:
        flops["generator"] = costs.training_flops(generator, rows[-1][0])
    if "kl/reference" in metrics:
        flops["reference"] = costs.forward_flops(generator, rows[-1][0])
    return flops


def operations(directory: Path) -> dict[str, tuple[float, str]]:
    """Returns the seconds of every XLA operation in a trace, all devices together, and its scope.

    On a GPU or TPU the trace says to which part of the step an operation belongs; on a CPU not.
    """
    seconds: dict[str, float] = defaultdict(float)
    scopes: dict[str, str] = {}
    for path in directory.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    stats: dict[str, Any] = dict(event.stats)
                    if "hlo_op" in stats and "hlo_module" in stats:
                        seconds[event.name] += event.duration_ns / 1e9
                        scopes[event.name] = _scope(str(stats.get("tf_op", "")))
    return {name: (spent, scopes[name]) for name, spent in seconds.items()}


def _scope(path: str) -> str:
    """Returns the last part of a step that an operation's path names."""
    parts = path.replace("(", "/").replace(")", "/").split("/")
    return next((part for part in reversed(parts) if part in SCOPES), "")


def summary(
    metrics: list[dict[str, float]],
    flops: dict[str, float],
    found: dict[str, tuple[float, str]],
    peak: float,
) -> str:
    """Returns the page. Utilisation counts 6N FLOPs per token and causal attention, no padding and
    no recomputation, over the time of the updates and the peak of all devices."""
    count = len(metrics)

    def mean(name: str) -> float:
        return sum(step.get(name, 0.0) for step in metrics) / count

    update, total = mean("seconds/update"), sum(flops.values()) / count
    compiling = mean("seconds/compile")
    lines = [f"{count} steps, mean of each", "", f"{'':16}{'seconds':>10}{'TFLOP':>12}"]
    lines += [
        f"{'rollout':16}{mean('seconds/rollout'):10.3f}",
        f"{'  resharding':16}{mean('seconds/reshard'):10.3f}   "
        f"{mean('reshard/gib'):.3g} GiB of weights per device",
    ]
    lines += [f"{part:16}{mean(f'seconds/{part}'):10.3f}" for part in ("pack", "update")]
    lines += [f"  {part:14}{'':10}{value / count / 1e12:12.4g}" for part, value in flops.items()]
    lines += [
        f"{'step':16}{mean('seconds/step'):10.3f}",
        f"{'of it compiling':16}{compiling:10.3f}   {mean('compiles') * count:.0f} programs",
        f"the devices wait for the host in {mean('host_share'):.1%} of a step",
        "",
        f"utilisation of the updates (MFU): {total / max(update - compiling, 1e-9) / peak:.1%} of "
        f"{peak / 1e12:.4g} TFLOP/s",
        f"sampled {mean('tokens_per_second/rollout'):,.0f} tokens/s; "
        f"padding {mean('packing/padding'):.1%}",
        f"peak memory {_peak_memory() / 2**30:.2f} GiB",
    ]
    parts: dict[str, float] = defaultdict(float)
    for spent, scope in found.values():
        parts[scope or "elsewhere"] += spent
    if set(parts) - {"elsewhere"}:
        lines += ["", "device seconds by part (all steps)"]
        lines += [f"{spent:10.3f}  {part}" for part, spent in sorted(parts.items())]
    top = sorted(found.items(), key=lambda item: -item[1][0])[:TOP]
    lines += ["", f"operations: device seconds of all {count} steps (the {len(top)} longest)"]
    lines += [f"{spent:10.3f}  {name[:70]}  {scope}".rstrip() for name, (spent, scope) in top]
    return "\n".join(lines) + "\n"


def _peak_flops() -> float:
    """Returns the peak FLOP/s of all devices: by data sheet, or measured where there is none."""
    known = chips.of_device(jax.devices()[0].device_kind)
    if known is not None:
        return known.flops * jax.device_count()
    return ceilings.flops_per_second(seconds=0.5)  # simulated devices share the machine


def _peak_memory() -> float:
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return float(devices.peak_memory() or process)
