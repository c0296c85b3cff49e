"""The figure of a path: the losses, what is left, and the weights or groups one by one, by strength."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchlasso.lasso_points import LassoPoint, norms_of
from torchlasso.monitor.formats import number
from torchlasso.monitor.plots import BLUE, INK, MUTED, RULE, VERMILION
from torchlasso.terms import Term

MOST_LINES = 60
"""Most weights or groups of a block that are drawn: those with the largest norms on the path."""

_STYLES = ("-", "--", "-.", ":")  # of the blocks, in turn


def lasso_figure(
    points: Sequence[LassoPoint], terms: Sequence[Term], lowest: LassoPoint, chosen: LassoPoint
) -> Figure:
    """Draw a path in three panels that share the logarithmic axis of strengths.

    No window opens and no global state of matplotlib is touched.

    Args:
        points: in the order of their strengths.
        terms: the blocks that the path shrinks.
        lowest: the point with the lowest validation loss.
        chosen: the sparsest that is as good.
    """
    figure = Figure(figsize=(7.2, 7.4), layout="constrained")
    losses, left, norms = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 3))
    strengths = [point.strength for point in points]
    _draw_losses(losses, strengths, points)
    left.plot(strengths, [point.nonzero for point in points], color=BLUE, marker="o", ms=3, lw=1.5)
    left.set_ylabel("nonzero weights")
    _draw_norms(norms, strengths, points, terms)
    losses.plot([], [], color=MUTED, lw=1.2, ls=":", label=f"min: {number(lowest.strength)}")
    losses.plot([], [], color=INK, lw=1.2, label=f"1se: {number(chosen.strength)}")
    for axes in (losses, left, norms):
        axes.axvline(lowest.strength, color=MUTED, lw=1.2, ls=":")
        axes.axvline(chosen.strength, color=INK, lw=1.2)
        axes.grid(True, axis="y", color=RULE, lw=0.6)
        axes.set_axisbelow(True)
    if min(strengths) > 0:
        norms.set_xscale("log")
    else:
        norms.set_xscale("symlog", linthresh=min((s for s in strengths if s > 0), default=1.0))
    norms.set_xlabel("strength")
    losses.legend(frameon=False)
    if len(terms) > 1:
        norms.legend(frameon=False)
    return figure


def _draw_losses(axes: Axes, strengths: list[float], points: Sequence[LassoPoint]) -> None:
    valid = [point.valid_loss for point in points]
    errors = [point.valid_se for point in points]
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
    train = [point.train_loss for point in points]
    axes.plot(strengths, train, color=VERMILION, marker="s", ms=2.5, lw=1.2, ls="--", label="train loss")
    axes.set_ylabel("loss")


def _draw_norms(
    axes: Axes, strengths: list[float], points: Sequence[LassoPoint], terms: Sequence[Term]
) -> None:
    """Draw the largest groups of every block, single weights where its penalty has no groups."""
    for position, term in enumerate(terms):
        most = norms_of(term, points[0].state)
        for point in points[1:]:
            most = torch.maximum(most, norms_of(term, point.state))
        drawn = most.topk(min(MOST_LINES, len(most))).indices
        lines = torch.stack([norms_of(term, point.state)[drawn] for point in points], dim=1)
        style, color = _STYLES[position % len(_STYLES)], f"C{position}"
        for line in lines.tolist():
            axes.plot(strengths, line, color=color, ls=style, lw=0.8, alpha=0.6)
        axes.plot([], [], color=color, ls=style, label=term.name)
    axes.set_ylabel("norms of weights or groups")
