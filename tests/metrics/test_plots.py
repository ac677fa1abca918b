"""Plots: colours for any number of lines, and the same SVG for the same figure."""

from gad_jax.metrics import plots


def test_colours_repeat() -> None:
    assert plots.colours(3) == list(plots.COLOURS[:3])
    assert plots.colours(8)[7] == plots.COLOURS[0]


def test_a_figure_is_the_same_svg_with_its_text_as_text() -> None:
    def draw() -> str:
        figure, axes = plots.make_axes()
        axes.plot([0, 1], [0, 2])
        axes.set_title("D accuracy")
        return plots.to_svg(figure)

    first = draw()
    assert first == draw()
    assert ">D accuracy</text>" in first
    assert "<dc:date>" not in first
