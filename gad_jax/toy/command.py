"""Runs the toy experiment and shows what each student became."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from gad_jax.base import console, exits, next_command
from gad_jax.toy import tabular
from gad_jax.toy.tabular import Outcome

if TYPE_CHECKING:
    from gad_jax.toy.__main__ import Toy

WIDE = (4.5, 2.0)
"""An initial mean and deviation from which GAD keeps both modes: the caveat of the experiment."""

_COLOURS = ("#1b6ca8", "#5aa02c", "#8a5fbf")


def run(toy: "Toy") -> int:
    """Trains, prints the outcomes and draws them; returns the exit code."""
    starts = [(toy.mean, toy.stddev), (9 - toy.mean, toy.stddev), WIDE]
    experiment = tabular.Experiment(
        toy.steps,
        toy.discriminator_only_steps,
        toy.prompts,
        toy.samples,
        toy.generator_learning_rate,
        toy.discriminator_learning_rate,
    )
    gad = [tabular.train_gad(experiment, *start, toy.seed) for start in starts]
    seqkd = tabular.train_seqkd(experiment, *starts[0])
    rows = {"SeqKD": _row(seqkd)} | {
        f"GAD from {mean:g} ± {stddev:g}": _row(outcome)
        for (mean, stddev), outcome in zip(starts, gad, strict=True)
    }
    display = console.Display()
    display.table(f"student after {toy.steps} steps (modes of the teacher: 2 and 7)", rows)
    error = tabular.theorem_error(*WIDE)
    print(f"best discriminator and log p/q + c, for {WIDE[0]:g} ± {WIDE[1]:g}: {error:.0e} apart")
    print(_verdict(starts[0], seqkd, gad[0]))
    print(
        f"Caveat: what GAD finds depends on where it starts. From {WIDE[0]:g} ± {WIDE[1]:g}, wide "
        f"between the modes, it ends at {gad[-1].mean:.2f} ± {gad[-1].stddev:.2f}: "
        f"{_name(gad[-1])}."
    )
    if toy.figure:
        _draw(toy, starts, gad, seqkd)
        print(toy.figure)
    next_command.say("world", "--methods=seqkd,gad")
    return exits.Exit.OK


def _row(outcome: Outcome) -> dict[str, float | str]:
    return {
        "mean": f"{outcome.mean:.2f}",
        "deviation": f"{outcome.stddev:.2f}",
        "KL(q‖p)": f"{outcome.reverse_kl:.3f}",
        "KL(p‖q)": f"{outcome.forward_kl:.3f}",
        "finds": _name(outcome),
    }


def _name(outcome: Outcome) -> str:
    near = [mode for mode in tabular.MODES if abs(outcome.mean - mode) <= 0.1]
    if near and outcome.stddev < 1:
        return f"the mode at {near[0]:g}"
    return "both modes" if outcome.stddev > 1.5 else "no mode"


def _verdict(start: tuple[float, float], seqkd: Outcome, gad: Outcome) -> str:
    return (
        f"From {start[0]:g} ± {start[1]:g}, maximum likelihood (SeqKD) finds {_name(seqkd)} and "
        f"GAD {_name(gad)}."
    )


def _draw(
    toy: "Toy", starts: list[tuple[float, float]], gad: list[Outcome], seqkd: Outcome
) -> None:
    """Writes the figure: each student's distribution, its path, and the best discriminator."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    became, way, learnt = figure.subplots(1, 3)
    classes = np.arange(tabular.CLASSES)
    became.bar(classes, tabular.teacher(), color="#d0d0d0", label="teacher p")
    became.plot(classes, seqkd.probabilities, "o--", color="#c1440e", label="SeqKD")
    for (mean, stddev), outcome, colour in zip(starts, gad, _COLOURS, strict=True):
        label = f"GAD from {mean:g} ± {stddev:g}"
        became.plot(classes, outcome.probabilities, "o-", color=colour, label=label)
        way.plot(*outcome.path[::20].T, color=colour, label=label)
        way.plot(mean, stddev, "o", mfc="white", color=colour)
    way.plot(*seqkd.path[::20].T, "--", color="#c1440e", label="SeqKD")
    became.set(xlabel="class", ylabel="probability", xticks=classes, title="after training")
    way.set(xlabel="mean", ylabel="deviation", title="the way there (from the circles)")
    learnt.plot(classes, tabular.log_ratio(*WIDE), "s", mfc="none", label="log p/q")
    best = tabular.best_discriminator(*WIDE)
    learnt.plot(classes, best, "x", color="black", label="best D (both centred)")
    learnt.set(xlabel="class", xticks=classes, title=f"D for q = {WIDE[0]:g} ± {WIDE[1]:g}")
    for axes in (became, learnt):
        axes.legend(fontsize="small", frameon=False)
    Path(toy.figure).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(toy.figure, dpi=130, metadata=_no_date(toy.figure))


def _no_date(name: str) -> dict[str, Any]:
    """Returns metadata without a date, so that equal figures are equal files."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(Path(name).suffix, {})
