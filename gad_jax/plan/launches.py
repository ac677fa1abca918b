"""What the programs start on a GPU, as tables: kernels, bytes, graphs and host waits."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from gad_jax.plan.programs import Compiled


def show(programs: Sequence[Compiled], layers: int, console: Console) -> None:
    """Prints the counts of each program, and the five kernels that move most bytes."""
    counted = [program for program in programs if program.launches is not None]
    if not counted:
        return
    console.print("kernels of one call; of decode, of one step", style="bold")
    console.print(_counts(counted, layers))
    for program in counted:
        console.print(f"{program.name}: the kernels that move most bytes", style="bold")
        console.print(_largest(program))


def _counts(programs: Sequence[Compiled], layers: int) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("program", no_wrap=True)
    for name in ("kernels", "a layer", "GB", "× need", "graphed", "graphs", "waits"):
        table.add_column(name, justify="right", no_wrap=True)
    for program in programs:
        found = program.launches
        assert found is not None
        table.add_row(
            program.name,
            f"{found.total:,}",
            str(found.per_layer(layers)) if program.needed else "–",
            _gigabytes(found.bytes),
            f"{found.bytes / program.needed:.2f}" if program.needed else "–",
            f"{found.in_graphs:.0%}",
            _count(found.graphs),
            _count(found.waits),
        )
    return table


def _largest(program: Compiled) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("GB", "times"):
        table.add_column(name, justify="right")
    table.add_column("made from", overflow="fold")
    assert program.launches is not None
    for kernel in program.launches.largest():
        table.add_row(_gigabytes(kernel.bytes), _count(kernel.times), kernel.source)
    return table


def _gigabytes(size: int | float) -> str:
    return f"{size / 1e9:.3g}" if size < 1e12 else f"{size / 1e9:,.0f}"


def _count(number: int | float) -> str:
    """Returns a count; of one step among several it may be a fraction, such as 0.125."""
    return f"{number:,.4g}" if number < 1e4 else f"{number:,.0f}"
