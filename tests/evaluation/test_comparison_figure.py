"""The figure of `captioner compare`."""

import sys
import xml.etree.ElementTree as xml

import numpy
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from support.comparisons import QUICK, compared, fails
from support.evaluations import evaluation, system

from captioner.cli import main
from captioner.evaluation import comparison_figure, fonts
from captioner.evaluation.comparison import Comparison
from captioner.metrics.statistics import Statistics


def drawn(table: Comparison) -> Figure:
    figure = comparison_figure._drawn(table, comparison_figure._panels(table))
    FigureCanvasAgg(figure).draw()
    return figure


def test_the_figure_shows_every_interval_at_its_values(runs) -> None:
    table = compared(*runs.values())
    panels = {axes.get_title(loc="left"): axes for axes in drawn(table).axes if axes.get_visible()}
    assert list(panels) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr-D"]
    for name, axes in panels.items():
        rows = [row for row in table.rows if row.metric == name]
        intervals = {
            int(line.get_ydata()[0]): line.get_xdata()
            for line in axes.lines
            if line.get_marker() == "|"
        }
        assert [tuple(intervals[place]) for place in range(len(rows))] == [
            row.interval for row in rows
        ]
        assert [text.get_text() for text in axes.texts] == [f"{row.score:.2f}" for row in rows]
        low, high = axes.get_xlim()
        assert all(low < end < high for row in rows for end in row.interval)
    assert [label.get_text() for label in panels["BLEU-1"].get_yticklabels()] == list(runs)


def test_lines_do_not_cross_numbers(runs) -> None:
    """A number has the same pixels with and without the dashed line."""
    figure = drawn(compared(runs["first"], runs["like"], metrics=["CIDEr-D"]))
    [axes] = [panel for panel in figure.axes if panel.get_visible()]
    boxes = [text.get_window_extent() for text in axes.texts]
    pictures = [numpy.array(figure.canvas.buffer_rgba())]
    [dashed] = [line for line in axes.lines if line.is_dashed()]
    dashed.remove()
    FigureCanvasAgg(figure).draw()
    pictures.append(numpy.array(figure.canvas.buffer_rgba()))
    assert (pictures[0] != pictures[1]).any()
    for box in boxes:
        rows = slice(len(pictures[0]) - int(box.y1), len(pictures[0]) - int(box.y0))
        with_line, without = (pixels[rows, int(box.x0) : int(box.x1)] for pixels in pictures)
        assert with_line.size and (with_line == without).all()


def test_an_axis_of_scores_does_not_begin_far_below_zero(tmp_path) -> None:
    names = tuple(map(str, range(30)))
    for name in ("a", "b"):
        rows = numpy.hstack([numpy.zeros((30, 4)), numpy.full((30, 6), 5.0)])
        evaluation(tmp_path / name, Statistics(names, {"bleu": rows}))
    for axes in drawn(compared(tmp_path / "a", tmp_path / "b")).axes:
        low, high = axes.get_xlim()
        assert -0.1 < low <= 0 < 1 <= high
        assert [text.get_text() for text in axes.texts] == ["all 0", "0.00", "0.00"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0"]


@pytest.mark.parametrize("kind", [".svg", ".png"])
def test_figures_are_deterministic(kind, runs, tmp_path) -> None:
    paths = [str(run) for run in runs.values()]
    for name in ("x", "y"):
        assert main(["compare", *paths, "--figure", str(tmp_path / f"{name}{kind}"), *QUICK]) == 0
    content = (tmp_path / f"x{kind}").read_bytes()
    assert content == (tmp_path / f"y{kind}").read_bytes()
    if kind == ".png":
        assert Image.open(tmp_path / "x.png").width > 1000
    else:
        texts = ["".join(element.itertext()).strip() for element in xml.fromstring(content).iter()]
        assert {"CIDEr-D", *runs} <= set(texts)


def test_chinese_and_special_characters_are_drawn_as_text(tmp_path) -> None:
    names = ("基线模型", "a$b_c$ #1", "a_name_of_more_than_forty_letters_of_seed_1")
    runs = [evaluation(tmp_path / name, system(index)) for index, name in enumerate(names)]
    drawing = comparison_figure.figure(compared(*runs, metrics=["CIDEr-D"]), ".svg").decode()
    texts = ["".join(element.itertext()).strip() for element in xml.fromstring(drawing).iter()]
    assert {names[0], names[1]} <= set(texts)
    assert {"a_name_of_more_than_fort", "…_forty_letters_of_seed_1"} & set(texts)


def test_a_missing_font_is_reported_in_one_line_for_png(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(fonts, "_files", lambda: ())
    run = evaluation(tmp_path / "基线", system(1))
    for kind, expected in ((".png", True), (".svg", False)):
        assert main(["compare", str(run), "--figure", str(tmp_path / f"x{kind}"), *QUICK]) == 0
        error = capsys.readouterr().err
        assert ("no font of this machine has 2 of its letters (Chinese)" in error) == expected
        assert error.count("\n") == 1 + expected


def test_a_name_keeps_both_ends_and_two_lines() -> None:
    assert comparison_figure._shortened("short") == "short"
    assert comparison_figure._shortened("x" * 24 + "y" * 10) == "x" * 24 + "\n" + "y" * 10
    long = comparison_figure._shortened("a" * 30 + "b" * 30 + "c" * 30)
    assert long == "a" * 24 + "\n…" + "c" * 23
    assert comparison_figure._shortened("模" * 13) == "模" * 12 + "\n模"  # as wide as two


def test_without_matplotlib_one_line_names_the_extra(runs, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fails(capsys, runs["first"], "--figure", "x.svg", says="pip install 'captioner[figures]'")
