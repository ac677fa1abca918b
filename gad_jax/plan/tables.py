"""The plan as tables that a terminal of 80 columns shows whole."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from gad_jax.plan import launches
from gad_jax.plan.cards import Answer, Card, usable
from gad_jax.plan.duration import Duration, in_words
from gad_jax.plan.estimate import Step
from gad_jax.plan.programs import Compiled
from gad_jax.plan.report import GIB, USABLE, Plan

NAMES, NUMBERS = 18, 8
"""Columns of a terminal that a table's first and its other columns take, without gaps."""


def width() -> int:
    """Returns the columns of the terminal; 160 for a file or pipe, unless COLUMNS is set."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return shutil.get_terminal_size().columns if known else 160


def show(plan: Plan, console: Console) -> None:
    """Prints the plan."""
    chip, target, work = plan.chip, plan.target, plan.work
    axes = " × ".join(f"{name} {size}" for name, size in plan.mesh.items())
    console.print(
        f"{target.name}: {target.devices} devices, {chip.memory / GIB:.1f} GiB and "
        f"{chip.flops / 1e12:.3g} TFLOP/s each ({chip.source}); mesh {axes}"
    )
    console.print(
        f"lengths: prompts {work.prompts.mean():.0f} tokens on average, responses "
        f"{work.responses.mean():.0f}; padding of packed rows {work.padding:.1%}, of a padded "
        f"rectangle {work.rectangle_padding:.1%}"
    )
    title = "GiB per device"
    for part in _parts(plan.programs, console.width):
        _print(title, _memory_table(part), console)
        title = "GiB per device, more programs"
    if any(program.collectives for program in plan.programs):
        title = "transfers per step: GiB that each device sends"
        _print(title, _transfer_table(plan), console)
    launches.show(plan.programs, plan.layers, console)
    for step in plan.steps:
        how = f"assuming {chip.attainable:.0%} of peak"
        how = "from the time of a few layers on this machine" if step.measured else how
        title = (
            f"{step.stage}: predicted {step.seconds:.3g} s per step, {how}; updates overlap "
            f"{step.transfer_seconds:.3g} s of transfers"
        )
        _print(title, _time_table(step), console)
    show_verdict(plan, console)


def show_verdict(plan: Plan, console: Console) -> None:
    """Prints whether the run fits, with advice, and how long it takes."""
    limit = USABLE * plan.chip.memory / GIB
    peak = plan.peak
    if plan.fits:
        console.print(
            f"It fits: at most {peak.total / GIB:.2f} of {limit:.1f} usable GiB per device "
            f"({peak.name})."
        )
    elif peak.refused:
        console.print(f"It does not fit: the compiler refused {peak.name} ({peak.refused})")
    else:
        needed = f"{peak.total / GIB:.2f} GiB per device; {limit:.1f} GiB are usable"
        console.print(f"It does not fit: {peak.name} needs {needed}.")
    for line in plan.advice():
        console.print(f"- {line}")
    if plan.fits:
        for line in duration_lines(plan.duration, plan.price_per_hour, plan.target.devices):
            console.print(line)


def show_answer(answer: Answer, price: float, console: Console) -> None:
    """Prints the smallest card that holds a run, the others, and what smaller ones would need."""
    if answer.missing:
        console.print(f"Only an estimate: {answer.missing}")
    how = "by compiling" if answer.plan else "by estimate"
    if answer.plan is not None and answer.plan.fits:
        how = f"compiled for {answer.plan.target.name}"
    peak = answer.plan.peak.name if answer.plan else answer.need.program
    size = f"{gib(answer.bytes)} GiB ({peak}, {how})"
    if answer.cards:
        card = answer.cards[0]
        console.print(
            f"The smallest card that holds it: {card.name}, with {gib(usable(card.name))} usable "
            f"GiB. The run needs {size}."
        )
        _print("Predicted seconds a step:", _card_table(answer.cards), console)
        for line in duration_lines(card.duration, price, 1, card.name):
            console.print(line)
    else:
        console.print(f"No single card holds it: the run needs {size}.")
        for name, count in answer.nodes:
            console.print(
                f"- {count} × {name} would by estimate; ask for --target={name}:1x{count} "
                "--mesh.replica=1 --mesh.fsdp=0 --mesh.tensor=1"
            )
    if answer.smaller:
        console.print("With other settings smaller cards would do, by estimate:")
    for card in answer.smaller:
        console.print(f"- {card.name} ({gib(card.bytes)} GiB): {card.flags}")


def _card_table(found: Sequence[Card]) -> Table:
    table = _table()
    table.add_column("card that holds it", no_wrap=True)
    stages = [step.stage for step in found[0].steps]
    for name in ("usable GiB", *stages, "in all"):
        table.add_column(name, justify="right", no_wrap=True)
    for card in found:
        hours = in_words(card.duration.hours) if card.duration else "–"
        seconds = (f"{step.seconds:.3g}" for step in card.steps)
        table.add_row(card.name, gib(usable(card.name)), *seconds, hours)
    return table


def duration_lines(
    duration: Duration | None, price: float, devices: int, where: str = ""
) -> Iterator[str]:
    """Yields how long the run takes and what it costs, or what is needed to know it."""
    if duration is None:
        yield "How long the run takes depends on its rows: give --rows=NUMBER."
        return
    on = f" on {where}" if where else ""
    yield f"Steps, {duration}{on} as predicted, without compiling, evaluating and saving."
    if price:
        count = f"{devices} × " if devices > 1 else ""
        total = duration.hours * price * devices
        yield f"At {count}{price:g} an hour that costs {total:,.2f}."


def _parts(programs: Sequence[Compiled], width: int) -> Iterator[Sequence[Compiled]]:
    """Yields the programs that fit next to each other."""
    count = max((width - NAMES) // (NUMBERS + 2), 1)
    for start in range(0, len(programs), count):
        yield programs[start : start + count]


def _memory_table(programs: Sequence[Compiled]) -> Table:
    """Returns a table with a program in each column."""
    table = _table()
    kinds = list(dict.fromkeys(kind for program in programs for kind in program.bytes))
    table.add_column("", no_wrap=True)
    for program in programs:
        table.add_column(program.name, justify="right", max_width=NUMBERS + 2, overflow="fold")
    for kind in kinds:
        table.add_row(kind, *(gib(program.bytes.get(kind, 0)) for program in programs))
    totals = ("refused" if program.refused else gib(program.total) for program in programs)
    table.add_row("total", *totals)
    if any(program.host for program in programs):
        table.add_row("on the host", *(gib(program.host) for program in programs))
    table.add_row("compiled in", *(f"{program.compile_seconds:.0f} s" for program in programs))
    return table


def _transfer_table(plan: Plan) -> Table:
    table = _table()
    for name in ("program", "kind"):
        table.add_column(name)
    for name in ("devices × nodes", "times", "GiB"):
        table.add_column(name, justify="right", max_width=NUMBERS + 2)
    for program in plan.programs:
        for transfer in program.collectives:
            group = f"{transfer.within} × {transfer.across}"
            count = str(transfer.times)
            table.add_row(program.name, transfer.kind, group, count, gib(transfer.bytes))
    return table


def _time_table(step: Step) -> Table:
    table = _table()
    table.add_column("phase", no_wrap=True)
    for name in ("TFLOP", "GB moved", "compute s", "memory s", "latency s", "transfer s"):
        table.add_column(name, justify="right", max_width=NUMBERS)
    for phase in step.phases:
        table.add_row(
            phase.name,
            f"{phase.flops / 1e12:,.3g}",
            f"{phase.bytes / 1e9:,.3g}",
            f"{phase.compute_seconds:.3g}",
            f"{phase.memory_seconds:.3g}",
            *(f"{n:.3g}" if n else "–" for n in (phase.latency_seconds, phase.transfer_seconds)),
        )
    return table


def _table() -> Table:
    return Table(box=None, pad_edge=False)


def _print(title: str, table: Table, console: Console) -> None:
    """Prints a table under its title, which may be wider."""
    console.print(title, style="bold")
    console.print(table)


def gib(size: int | float) -> str:
    """Returns bytes as a table's GiB; a dash for nothing."""
    return f"{size / GIB:.2f}" if size >= 0.005 * GIB else f"{size / GIB:.1g}" if size else "–"
