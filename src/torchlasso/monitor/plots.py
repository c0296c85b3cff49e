"""Figures of a fit: the path of strengths, the sparsity of each layer, the importance of each feature.

Everything goes through `matplotlib.figure.Figure`, never through pyplot: no global state is touched,
no window opens, and figures can be drawn from any thread. The palette (Okabe and Ito's) is safe for
the colour-blind, and every curve also differs by its marker or dashes.
"""

import io
import math
import re
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from torchlasso.monitor.formats import clean, number, percent, shorten

INK, MUTED, RULE = "#1f2328", "#57606b", "#d8dee4"
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
THEME = {INK: "ink", MUTED: "muted", RULE: "rule", BLUE: "blue", VERMILION: "vermilion", GREEN: "green"}

_WIDTH = 7.2
_NARROW = 3.7
_SIZE = 9.0
_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "Yu Gothic", "SimHei")
_MOST_LAYERS = 40

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


def layers_figure(layers: list[Row]) -> Figure:
    """Draw the share of weights that is left in each layer, first layer on top.

    Args:
        layers: the rows of `weights.layers` in metrics.json.

    Returns:
        A figure of horizontal bars; beyond the first 40 layers it says how many are not shown.
    """
    if not layers:
        return _empty("No layer has weights.")
    shown = layers[:_MOST_LAYERS]
    shares = [row["nonzero"] / row["total"] if row["total"] else 0.0 for row in shown]
    notes = [
        f"{row['nonzero']:,} of {row['total']:,} ({percent(share)})"
        for row, share in zip(shown, shares, strict=True)
    ]
    rest = f" (first {len(shown)} of {len(layers):,} layers)" if len(layers) > len(shown) else ""
    return _bars([row["name"] for row in shown], shares, notes, f"weights that are not zero{rest}", 1.0)


def importance_figure(features: list[Row], *, most: int = 25) -> Figure:
    """Draw the importance of the selected features, the most important one on top.

    Args:
        features: the rows of `features` in metrics.json.
        most: the most features to draw.

    Returns:
        A figure of horizontal bars.
    """
    selected = [row for row in features if row["selected"]]
    if not selected:
        return _empty("No feature was selected.")
    shown = selected[:most]
    values = [float(row["importance"]) for row in shown]
    label = "share of the importance"
    if len(selected) > len(shown):
        others = sum(row["importance"] for row in selected[most:])
        label += f" ({len(selected) - len(shown):,} more selected features: {percent(others)} together)"
    return _bars([row["name"] for row in shown], values, [percent(v) for v in values], label, max(values))


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


def to_png(figure: Figure, *, dpi: float = 160.0) -> bytes:
    """Render a figure as PNG on white, to save or to show in a notebook.

    Args:
        figure: the figure.
        dpi: pixels per inch; figures are about 7 inches wide.

    Returns:
        The content of a PNG file.
    """
    out = io.BytesIO()
    figure.set_canvas(FigureCanvasAgg(figure))
    figure.savefig(out, format="png", dpi=dpi, facecolor="white")
    return out.getvalue()


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


def _bars(names: list[str], values: list[float], notes: list[str], label: str, top: float) -> Figure:
    """Draw horizontal bars of the same thickness, however many there are."""
    figure = Figure(figsize=(_WIDTH, 0.75 + 0.25 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(names)), values, height=0.62, color=BLUE)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1.3 * (top or 1.0))
    axes.set_yticks(range(len(names)), [shorten(_drawable(clean(name)), 36) for name in names])
    for tick in axes.get_yticklabels():
        tick.set(parse_math=False, fontfamily=_fonts())
    for position, (value, note) in enumerate(zip(values, notes, strict=True)):
        axes.annotate(
            note,
            (value, position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=_SIZE - 0.5,
            color=MUTED,
        )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_percent_up_to_one))
    axes.set_xlabel(label, color=INK, fontsize=_SIZE)
    _quiet(axes, grid=False)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    return figure


def _percent_up_to_one(value: float, _: int) -> str:
    return f"{100 * value:.3g}%" if value <= 1 else ""


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


@cache
def _fonts() -> list[str]:
    installed = set(fontManager.get_font_names())
    return [font for font in _FONTS if font in installed]


@cache
def _drawable_codes() -> frozenset[int]:
    paths = [fontManager.findfont(FontProperties(family=[font])) for font in _fonts()]
    return frozenset(code for path in paths for code in get_font(path).get_charmap())


def _drawable(name: str) -> str:
    """Replace what no installed font can draw, for which matplotlib would warn."""
    codes = _drawable_codes()
    return "".join(c if ord(c) in codes else "□" for c in name)
