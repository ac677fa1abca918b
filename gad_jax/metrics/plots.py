"""Colours, axes and SVG output of all plots."""

import io
from typing import Any

COLOURS = ("#8d99a6", "#c1440e", "#5aa02c", "#1b6ca8", "#8a5fbf", "#b8860b", "#0f8b8d")


def colours(count: int) -> list[str]:
    """Returns a colour for each of `count` lines; they repeat after seven."""
    return [COLOURS[n % len(COLOURS)] for n in range(count)]


def make_axes() -> tuple[Any, Any]:
    """Returns a figure and its axes, with a light grid and no frame at the top and right."""
    from matplotlib.figure import Figure  # without pyplot: no display, nothing global

    figure = Figure(figsize=(5, 3.2), layout="constrained")
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
