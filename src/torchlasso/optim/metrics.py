"""Which metric goes with which optimizer of torch."""

from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    SparseAdam,
)

from torchlasso.optim.metric import Metric
from torchlasso.optim.metric_adam import (
    AdamaxMetric,
    AdamMetric,
    NAdamMetric,
    RAdamMetric,
    SparseAdamMetric,
)
from torchlasso.optim.metric_linear import ASGDMetric, SGDMetric
from torchlasso.optim.metric_squares import AdadeltaMetric, AdagradMetric, RMSpropMetric

_METRICS: dict[type[Optimizer], Metric] = {
    ASGD: ASGDMetric(),
    Adadelta: AdadeltaMetric(),
    Adagrad: AdagradMetric(),
    Adam: AdamMetric(),
    AdamW: AdamMetric(),
    Adamax: AdamaxMetric(),
    NAdam: NAdamMetric(),
    RAdam: RAdamMetric(),
    RMSprop: RMSpropMetric(),
    SGD: SGDMetric(),
    SparseAdam: SparseAdamMetric(),
}


def metric_of(optimizer: Optimizer) -> Metric | None:
    """Return the metric of an optimizer, by its exact type: a subclass may step differently.

    Args:
        optimizer: any torch optimizer.

    Returns:
        The metric, or None where the step has no diagonal one (Muon, Adafactor, LBFGS, Rprop,
        centered RMSprop) or is not known (an optimizer of a third party).

    Example:
        >>> import torch
        >>> weights = [torch.zeros(1, requires_grad=True)]
        >>> type(metric_of(SGD(weights, lr=0.1))).__name__
        'SGDMetric'
        >>> metric_of(torch.optim.LBFGS(weights)) is None
        True
    """
    if type(optimizer) is RMSprop and any(group["centered"] for group in optimizer.param_groups):
        # At a stationary point its variance tends to 0, and with it the divisor: no metric to rely on.
        return None
    return _METRICS.get(type(optimizer))
