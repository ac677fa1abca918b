"""Colours and axes that all plots share, as SVG."""

import io
from typing import Any

COLOURS = ("#8d99a6", "#c1440e", "#5aa02c", "#1b6ca8", "#8a5fbf", "#b8860b", "#0f8b8d")


def colours(count: int) -> list[str]:
    """Returns the colours of so many lines."""
    return [COLOURS[n % len(COLOURS)] for n in range(count)]


def make_axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no display, nothing global

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def to_svg(figure: Any) -> str:
    """Returns the figure, its text as text: a third of the size. The same one is the same text."""
    import matplotlib

    out = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "gad_jax", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
