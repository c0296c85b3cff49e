"""Survival times: the partial likelihood of Cox's proportional hazards, and the concordance index."""

from typing import Literal

import torch
from torch import Tensor

from torchlasso.errors import InputError

Ties = Literal["efron", "breslow"]

_BLOCK = 1024  # rows whose pairs are compared at a time


def cox_rows(risk: Tensor, time: Tensor, event: Tensor, weights: Tensor | None, ties: Ties) -> Tensor:
    """Return each row's part of ``−log PL``, the negative logarithm of the partial likelihood.

    A row with an event at ``t`` contributes ``w_i·(log Σ_{j: t_j ≥ t} w_j·exp(r_j) − r_i)``, a censored
    row 0.  With Efron's ties the events of one time leave the sum one after the other: the ``l``-th of
    ``d`` takes away ``l/d`` of their ``w·exp(r)``, and they share the mean of their weights.

    Args:
        risk: log hazards ``[n]``.
        time: ``[n]``; only the order counts.
        event: ``[n]``: whether the time is of an event; else the row was censored then.
        weights: positive weights ``[n]``, or None for 1.
        ties: ``"efron"`` or ``"breslow"``.

    References:
        Cox, J. R. Stat. Soc. B 34 (1972); Breslow, Biometrics 30 (1974); Efron, J. Am. Stat. Assoc. 72
        (1977).  With weights: Therneau and Grambsch, "Modeling survival data" (2000).
    """
    order = time.argsort(descending=True, stable=True)
    r, t, dead = risk[order], time[order], event[order].bool()
    w = torch.ones_like(r) if weights is None else weights[order]
    scaled = r + w.log()
    # Rows of one time are neighbours now; the risk set of all of them ends at the last one.
    _, group, size = torch.unique_consecutive(t, return_inverse=True, return_counts=True)
    at_risk = scaled.logcumsumexp(0)[size.cumsum(0) - 1][group]
    share = w
    if ties == "efron":
        at_risk, share = _efron(at_risk, scaled, w, dead, group)
    rows = torch.where(dead, share * at_risk - w * r, 0.0)
    rows = torch.where(t.isnan().any(), torch.nan, rows)  # a time that is unknown has no place in the order
    return torch.zeros_like(rows).index_copy(0, order, rows)


def _efron(at_risk: Tensor, scaled: Tensor, w: Tensor, dead: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``log Σ`` without the events that left before each event, and the events' mean weight."""
    groups = int(group[-1]) + 1 if len(group) else 0
    empty = torch.zeros(groups, dtype=w.dtype, device=w.device)
    deaths = empty.index_add(0, group, dead.to(w.dtype))[group].clamp_min(1.0)
    mean = empty.index_add(0, group, torch.where(dead, w, 0.0))[group] / deaths
    # Relative to the risk set, of which they are a part, the events sum to 1 at most.
    part = torch.where(dead, (scaled - at_risk).exp(), 0.0)
    together = empty.index_add(0, group, part)[group].clamp(max=1.0)
    before = dead.cumsum(0) - dead.long()
    first = torch.full_like(empty, len(group), dtype=torch.long).scatter_reduce(0, group, before, "amin")
    gone = (before - first[group]).to(w.dtype) / deaths
    return at_risk + torch.log1p(-torch.where(dead, gone, 0.0) * together), mean


@torch.no_grad()
def concordance_index(risk: Tensor, target: Tensor) -> float:
    """Return the share of comparable pairs in which the higher risk had its event first.

    Two rows are comparable if the one with the smaller time had an event, or if one had an event and the
    other was censored at the same time.  Equal risks count one half.  0.5 is chance, 1 a perfect order.

    Args:
        risk: ``[n]`` or ``[n, 1]``; the larger, the earlier the event is expected.
        target: ``[n, 2]``: time, and 1 for an event or 0 for a censored row.

    Returns:
        The index; NaN if no two rows are comparable, or if a risk or a time is NaN.

    Raises:
        InputError: the shapes do not fit, or an event is neither 0 nor 1.

    Example:
        >>> target = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])
        >>> concordance_index(torch.tensor([0.3, -1.0, 0.5]), target)
        0.5

    References:
        Harrell, Califf, Pryor, Lee and Rosati, "Evaluating the yield of medical tests", JAMA 247 (1982).
    """
    check_survival(target)
    flat = risk.reshape(-1)
    if len(flat) != len(target):
        msg = f"risk must have one entry a row of the target, got {tuple(risk.shape)} for {len(target)} rows"
        raise InputError(msg)
    time, event = target.unbind(1)
    if bool(flat.isnan().any()) or bool(time.isnan().any()):
        return float("nan")
    points, pairs = 0.0, 0
    for rows in torch.arange(len(flat), device=flat.device)[event == 1].split(_BLOCK):
        later = time > time[rows, None]
        comparable = later | ((time == time[rows, None]) & (event == 0))
        mine = flat[rows, None]
        points += float((comparable & (mine > flat)).sum()) + 0.5 * float((comparable & (mine == flat)).sum())
        pairs += int(comparable.sum())
    return points / pairs if pairs else float("nan")


def check_survival(target: Tensor) -> None:
    """Raise ``InputError`` unless a target is ``[n, 2]``: a time, and 0 or 1 for the event.

    Args:
        target: what a loss on survival times was given; NaN is let through.
    """
    if target.ndim != 2 or target.shape[1] != 2:
        msg = f"the target must be [n, 2], time and event, got {tuple(target.shape)}"
        raise InputError(msg)
    event = target[:, 1]
    if bool(((event != 0) & (event != 1) & ~event.isnan()).any()):
        msg = "the event (column 1 of the target) must be 1, or 0 for a censored time; got something else"
        raise InputError(msg)
