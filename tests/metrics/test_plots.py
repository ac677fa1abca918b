"""Plots: colours for any number of lines, and the same SVG for the same figure."""

from gad_jax.metrics import plots


def test_colours_repeat() -> None:
    assert plots.colours(3) == list(plots.COLOURS[:3])
    assert plots.colours(8)[7] == plots.COLOURS[0]


def test_lines_differ_in_more_than_colour_and_equal_ones_stay_visible() -> None:
    looks = plots.styles(4)
    for name in ("linestyle", "marker", "color"):
        assert len({str(look[name]) for look in looks}) == 4
    widths = [look["linewidth"] for look in looks]
    assert widths == sorted(widths, reverse=True)
    assert "marker" not in plots.styles(1, markers=False)[0]
    assert len(plots.styles(9)) == 9
    names = plots.named({"a": [1, 2], "b": [1, 3], "c": [1, 2], "d": [1, 2]})
    assert list(names.values()) == ["a", "b", "c (same as a)", "d (same as a)"]


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
