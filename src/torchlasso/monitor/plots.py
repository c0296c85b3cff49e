"""The figure of a fit: the path of strengths.

Everything goes through `matplotlib.figure.Figure`, never through pyplot: no global state is touched,
no window opens, and figures can be drawn from any thread. The palette (Okabe and Ito's) is safe for
the colour-blind, and every curve also differs by its marker or dashes.
"""

import io
import math
import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from torchlasso.monitor.formats import number

INK, MUTED, RULE = "#1f2328", "#57606b", "#d8dee4"
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
THEME = {INK: "ink", MUTED: "muted", RULE: "rule", BLUE: "blue", VERMILION: "vermilion", GREEN: "green"}

_WIDTH = 7.2
_NARROW = 3.7
_SIZE = 9.0

Row = dict[str, Any]


def path_figure(path: list[Row], *, narrow: bool = False) -> Figure:
    """Draw the losses, and what is left of the network, against the strength.

    Args:
        path: the rows of path.csv; an empty list gives a figure that says so.
        narrow: draw it for the width of a phone.

    Returns:
        A figure of two panels that share the logarithmic axis of strengths.
    """
    if not path:
        return _empty("No path: only one strength was tried.")
    width = _NARROW if narrow else _WIDTH
    figure = Figure(figsize=(width, 5.4 if narrow else 4.9), layout="constrained")
    losses, left = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    strengths = _column(path, "strength")
    _draw_losses(losses, strengths, path)
    features = _draw_left(left, strengths, path)
    _strength_axis(left, strengths)
    for axes in (losses, left):
        _mark_rows(axes, path)
        _quiet(axes)
    _quiet(features, grid=False)
    figure.legend(
        handles=losses.get_legend_handles_labels()[0],
        loc="outside upper left",
        ncols=1 if narrow else 2,
        frameon=False,
        fontsize=_SIZE,
        labelcolor=INK,
    )
    return figure


def to_svg(figure: Figure, name: str) -> str:
    """Render a figure as SVG to put into an HTML page, in the colours of that page.

    The colours become CSS variables such as `var(--ink, #1f2328)`, so that a page can have a light
    and a dark look. The same figure gives the same bytes every time.

    Args:
        figure: the figure.
        name: what the ids of its parts start with; figures of one page need different names.

    Returns:
        The `<svg>` element.
    """
    out = io.StringIO()
    figure.set_canvas(FigureCanvasSVG(figure))
    figure.savefig(
        out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    text = out.getvalue()
    svg = text[text.index("<svg") :].replace("xlink:href", "href")
    svg = re.sub(r' (?:width|height)="[\d.]+pt"| xmlns:xlink="[^"]*"| version="1.1"', "", svg)
    new_ids = {old: f"{name}-{i}" for i, old in enumerate(dict.fromkeys(re.findall(r' id="([^"]+)"', svg)))}
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{new_ids[m[1]]}"', svg)
    svg = re.sub(r'(url\(|href=")#([^)"]+)', lambda m: f"{m[1]}#{new_ids[m[2]]}", svg)
    return re.sub("|".join(THEME), lambda m: f"var(--{THEME[m[0]]}, {m[0]})", svg)


def _column(path: list[Row], key: str) -> list[float]:
    """One column of the path; what is unknown or infinite leaves a gap."""
    values = (math.nan if row[key] is None else float(row[key]) for row in path)
    return [value if math.isfinite(value) else math.nan for value in values]


def _draw_losses(axes: Axes, strengths: list[float], path: list[Row]) -> None:
    valid, train = _column(path, "valid_loss"), _column(path, "train_loss")
    errors = [0.0 if math.isnan(error) else error for error in _column(path, "valid_se")]
    axes.plot(strengths, valid, color=BLUE, marker="o", ms=3, lw=1.5, label="validation loss")
    axes.fill_between(
        strengths,
        [loss - error for loss, error in zip(valid, errors, strict=True)],
        [loss + error for loss, error in zip(valid, errors, strict=True)],
        color=BLUE,
        alpha=0.18,
        lw=0,
        label="± one standard error",
    )
    axes.plot(strengths, train, color=VERMILION, marker="s", ms=2.5, lw=1.2, ls="--", label="train loss")
    axes.set_ylabel("loss", color=INK, fontsize=_SIZE)


def _draw_left(axes: Axes, strengths: list[float], path: list[Row]) -> Axes:
    """Draw the nonzero weights on the left axis and the features on the right one."""
    axes.plot(strengths, _column(path, "nonzero"), color=BLUE, marker="o", ms=3, lw=1.5)
    axes.set_ylabel("nonzero weights", color=BLUE, fontsize=_SIZE)
    other = axes.twinx()
    other.plot(strengths, _column(path, "features"), color=GREEN, marker="^", ms=3.5, lw=1.2, ls="-.")
    other.set_ylabel("selected features", color=GREEN, fontsize=_SIZE)
    for each, key in ((axes, "nonzero"), (other, "features")):
        each.set_ylim(0, 1.08 * max((v for v in _column(path, key) if v > 0), default=1.0))
        each.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 2.5, 5, 10]))
        each.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return other


def _mark_rows(axes: Axes, path: list[Row]) -> None:
    """Mark the best and the chosen strength by a line each, or by one line if they are the same."""
    for row in path:
        at = number(row["strength"])
        if row["chosen"]:
            label = f"chosen: {at}" + (" (also the lowest validation loss)" if row["best"] else "")
            axes.axvline(row["strength"], color=INK, lw=1.2, label=label)
        elif row["best"]:
            axes.axvline(row["strength"], color=MUTED, lw=1.2, ls=":", label=f"lowest validation loss: {at}")


def _strength_axis(axes: Axes, strengths: list[float]) -> None:
    positive = [value for value in strengths if value > 0]
    if len(positive) == len(strengths):
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=min(positive, default=1.0))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("strength of the penalty (log scale)", color=INK, fontsize=_SIZE)


def _quiet(axes: Axes, *, grid: bool = True) -> None:
    """Leave only what helps reading: faint rules and small, muted numbers."""
    axes.set_facecolor("none")
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=RULE)
    axes.tick_params(which="both", color=RULE, labelcolor=MUTED, labelsize=_SIZE - 0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
    if grid:
        axes.grid(True, axis="y", color=RULE, lw=0.6)
    axes.set_axisbelow(True)


def _empty(words: str) -> Figure:
    figure = Figure(figsize=(_WIDTH, 1.0), layout="constrained")
    figure.text(0.5, 0.5, words, ha="center", va="center", color=MUTED, fontsize=_SIZE + 1)
    return figure
