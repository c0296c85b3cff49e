"""The figures: they draw exactly the numbers given, and touch nothing global."""

import runpy
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.colors import to_hex
from monitor_samples import walk

from torchlasso.monitor import plots

SVG = "{http://www.w3.org/2000/svg}"


def line(axes: Any, colour: str) -> Any:
    return next(found for found in axes.lines if to_hex(found.get_color()) == colour)


@pytest.mark.parametrize("narrow", [False, True])
def test_the_path_is_drawn_as_given(narrow: bool) -> None:
    path = walk()
    losses, left, right = plots.path_figure(path, narrow=narrow).axes
    for axes, colour, key in (
        (losses, plots.BLUE, "valid_loss"),
        (losses, plots.VERMILION, "train_loss"),
        (left, plots.BLUE, "nonzero"),
        (right, plots.GREEN, "features"),
    ):
        drawn = line(axes, colour)
        assert list(drawn.get_xdata()) == [row["strength"] for row in path]
        assert list(drawn.get_ydata()) == [row[key] for row in path]
    assert losses.get_xscale() == left.get_xscale() == "log"
    band = losses.collections[0].get_paths()[0].vertices[:, 1]
    assert max(band) == pytest.approx(max(row["valid_loss"] + row["valid_se"] for row in path))
    assert min(band) == pytest.approx(min(row["valid_loss"] - row["valid_se"] for row in path))


def test_best_and_chosen_are_marked() -> None:
    figure = plots.path_figure(walk())
    best, chosen = (line(figure.axes[0], colour) for colour in (plots.MUTED, plots.INK))
    assert best.get_xdata()[0] == walk()[13]["strength"]
    assert chosen.get_xdata()[0] == walk()[17]["strength"]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words[-2:] == ["lowest validation loss: 0.0131", "chosen: 0.0289"]


def test_one_row_can_be_best_and_chosen() -> None:
    figure = plots.path_figure(walk(1))
    assert figure.legends[0].get_texts()[-1].get_text() == "chosen: 0.001 (also the lowest validation loss)"
    plots.to_svg(figure, "one")


def test_a_path_with_gaps_and_a_zero_strength() -> None:
    path = walk(5)
    path[0] |= {"strength": 0.0, "valid_se": None}
    path[1] |= {"train_loss": float("inf"), "valid_loss": float("nan")}
    figure = plots.path_figure(path)
    assert figure.axes[0].get_xscale() == "symlog"
    plots.to_svg(figure, "gaps")


def test_an_empty_path_says_so() -> None:
    assert "No path" in plots.path_figure([]).texts[0].get_text()


def test_svg_follows_the_theme_of_the_page_and_its_ids_are_its_own() -> None:
    text = plots.to_svg(plots.path_figure(walk()), "first")
    assert text == plots.to_svg(plots.path_figure(walk()), "first")
    root = ET.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert root.get("viewBox")
    assert root.get("width") is None
    for colour, name in plots.THEME.items():
        if colour in text:
            assert text.count(colour) == text.count(f"var(--{name}, {colour})")
    ids = {element.get("id") for element in root.iter()} - {None}
    assert all(str(name).startswith("first-") for name in ids)
    used = {str(element.get("href")) for element in root.iter() if element.get("href")}
    assert used <= {f"#{name}" for name in ids}


def test_figures_can_be_drawn_from_threads_and_change_no_settings() -> None:
    before = dict(mpl.rcParams)
    alone = plots.to_svg(plots.path_figure(walk(4)), "t")
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: plots.to_svg(plots.path_figure(walk(4)), "t"), range(4)))
    assert set(drawn) == {alone}
    assert dict(mpl.rcParams) == before


def test_pyplot_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # makes importing it an error
    fresh = runpy.run_path(plots.__file__)
    assert fresh["to_svg"](fresh["path_figure"](walk(4)), "a").startswith("<svg")
