"""Colours, axes and SVG output of all plots."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

COLOURS = ("#8d99a6", "#c1440e", "#5aa02c", "#1b6ca8", "#8a5fbf", "#b8860b", "#0f8b8d")


def colours(count: int) -> list[str]:
    """Returns a colour for each of `count` lines; they repeat after seven."""
    return [COLOURS[n % len(COLOURS)] for n in range(count)]


_DASHES = ("-", "--", "-.", (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)))
_MARKERS = "os^Dv"


def styles(count: int, markers: bool = True) -> list[dict[str, Any]]:
    """Returns how each of `count` lines is drawn: in a colour, dashes and a mark of its own.

    Earlier lines are wider, so that one is seen below another with the same values.
    """
    found: list[dict[str, Any]] = []
    for number, colour in enumerate(colours(count)):
        behind = min(count - 1 - number, 3)
        look: dict[str, Any] = {"color": colour, "linestyle": _DASHES[number % len(_DASHES)]}
        look |= {"linewidth": 1.5 + 1.2 * behind}
        if markers:
            look |= {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 4.5 + 2 * behind}
        found.append(look)
    return found


def named(lines: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Returns the name of each line in a legend; one with the values of an earlier line says so."""
    names: dict[str, str] = {}
    for label, line in lines.items():
        same = next((other for other in names if list(lines[other]) == list(line)), "")
        names[label] = f"{label} (same as {same})" if same else label
    return names


def make_axes() -> tuple[Any, Any]:
    """Returns a figure and its axes, with a light grid and no frame at the top and right."""
    from matplotlib.figure import Figure  # without pyplot: no display, nothing global

    # Margins that hold labels of six characters: to measure them takes half the time of a report.
    figure = Figure(figsize=(5, 3.2))
    figure.subplots_adjust(left=0.135, right=0.975, bottom=0.145, top=0.9)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def to_svg(figure: Any) -> str:
    """Returns the figure as SVG; the same figure always gives the same SVG.

    Text stays text: a third of the size of text drawn as paths.
    """
    import matplotlib

    out = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "gad_jax", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
