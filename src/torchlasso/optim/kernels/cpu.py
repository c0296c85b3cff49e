"""Optimizer steps with their proximal step, over a whole table of tensors in one call of the C library.

What the arithmetic is can be read in ``reference.py``, and what evidence is in ``evidence.py``.  In every
function a row without a gradient (in the shrinking ones: without weights) is left alone, its counter too.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from torchlasso.optim.kernels.library import walk
from torchlasso.optim.kernels.table import Table

ALONE = 100_000
"""Below this number of entries, waking up another thread costs more than it saves."""

_STEP_ADAM, _STEP_SGD, _SHRINK_ADAM, _SHRINK = range(4)

ParamGroups = Sequence[Mapping[str, Any]]


def adam_step(
    table: Table,
    param_groups: ParamGroups,
    *,
    decoupled: bool,
    frozen: bool = False,
    noise: bool = False,
    scale: float = 1.0,
) -> None:
    """Take a step of ``torch.optim.Adam`` or ``AdamW`` and its proximal step, in place.

    Needs the columns ``w, g, m, v, step`` (``vmax`` where amsgrad is on), adds 1 to the counters and uses the
    metric ``D = lr/(√v̂ + ε)``.

    Args:
        table: the tensors.
        param_groups: the optimizer's own.
        decoupled: whether the weight decay is AdamW's.
        frozen: zeros stay zero, and nothing is shrunk; constraints hold.
        noise: also fill ``rows["noise"]`` with ``Σ (grad/(slope·c))²`` over the weights that were dead before
            the step, and ``rows["dead"]`` with their number.
        scale: multiplies the gradients.
    """
    for row, group in _used(table, param_groups):
        beta1, beta2 = group["betas"]
        table.settings[row] = (
            *(float(group["lr"]), float(beta1), float(beta2), group["eps"], group["weight_decay"]),
            *(0.0, 0.0, decoupled, group["maximize"], False),
        )
    _walk(_STEP_ADAM, table, frozen, noise, scale)


def sgd_step(
    table: Table,
    param_groups: ParamGroups,
    *,
    frozen: bool = False,
    noise: bool = False,
    scale: float = 1.0,
) -> None:
    """Take a step of ``torch.optim.SGD`` and its proximal step in the metric ``rows["metric"]``, in place.

    Needs the columns ``w, g``, and ``m`` with momentum; where ``rows["fresh"]`` is 1 the momentum buffer
    begins as the gradient.

    Args:
        table: the tensors.
        param_groups: the optimizer's own.
        frozen: as in ``adam_step``.
        noise: as in ``adam_step``.
        scale: multiplies the gradients.
    """
    for row, group in _used(table, param_groups):
        table.settings[row] = (
            *(
                float(group["lr"]),
                0.0,
                0.0,
                0.0,
                group["weight_decay"],
                group["momentum"],
                group["dampening"],
            ),
            *(False, group["maximize"], group["nesterov"]),
        )
    _walk(_STEP_SGD, table, frozen, noise, scale)


def shrink_adam(
    table: Table, param_groups: ParamGroups, *, frozen: bool = False, noise: bool = False
) -> None:
    """Take the proximal step that belongs to a step of Adam or AdamW just taken, in place.

    Needs the columns ``w, v, step`` (``vmax`` where amsgrad is on).

    Args:
        table: the tensors.
        param_groups: the optimizer's own.
        frozen: dead weights stay zero, and nothing is shrunk; constraints hold.  Which of the alive weights
            were zero before the step cannot be seen after it.
        noise: as in ``adam_step``; needs the column ``g``.
    """
    for row, group in _used(table, param_groups):
        beta1, beta2 = group["betas"]
        table.settings[row] = (float(group["lr"]), float(beta1), float(beta2), group["eps"], *[0] * 6)
    _walk(_SHRINK_ADAM, table, frozen, noise, 1.0)


def shrink(table: Table, *, frozen: bool = False, noise: bool = False) -> None:
    """Take the proximal step in the metric of the column ``d``, or ``rows["metric"]`` where that is null.

    Needs the column ``w``.

    Args:
        table: the tensors.
        frozen: as in ``shrink_adam``.
        noise: as in ``shrink_adam``.
    """
    _walk(_SHRINK, table, frozen, noise, 1.0)


def _used(table: Table, param_groups: ParamGroups) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Return the numbered groups that the rows of the table may belong to."""
    return enumerate(islice(param_groups, len(table.settings)))


def _walk(kind: int, table: Table, frozen: bool, noise: bool, scale: float) -> None:
    rows, chunks, settings = table.addresses
    threads = torch.get_num_threads() if table.entries >= ALONE else 1
    walk()(kind, rows, len(table.rows), chunks, len(table.chunks), settings, scale, frozen, noise, threads)
