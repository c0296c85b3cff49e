"""torch's AdamW and SGD with the proximal step in the same pass over memory."""

from collections.abc import Callable, Iterable
from typing import Any, final, overload

import torch
from torch import Tensor
from torch.optim import SGD, AdamW

from torchlasso.optim.attach import Handle, check_held, check_kinds
from torchlasso.optim.evidence import MemorySteps
from torchlasso.optim.fused_rule import AdamRule, FusedRule, SGDRule
from torchlasso.optim.metric_adam import AdamMetric
from torchlasso.optim.metric_linear import SGDMetric
from torchlasso.optim.shrinkage import Shrinkage
from torchlasso.regularizer import Regularizer

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


@final
class ProxAdamW(AdamW):
    """``torch.optim.AdamW`` with a regularizer: what ``attach`` does, in one pass over memory.

    ``w ← prox^D(AdamW step)``, ``D = lr/(√v̂ + ε)``.  State and hyperparameters are torch's own, so that an
    AdamW checkpoint loads into it and its checkpoints into AdamW.  On the CPU all tensors of a step share one
    parallel region; penalties on groups, and tensors that are elsewhere or not dense, take torch's step and
    then the proximal one.  Half-precision weights that are penalised keep what rounding loses in a float32
    buffer, for the whole step.

    Args:
        params: parameters or groups of them, as for AdamW.
        regularizer: what is penalised.
        lr: the learning rate.
        betas: of the two moments.
        eps: ε.
        weight_decay: decoupled, which is no L2 penalty of the objective; use ``ElasticNet`` for that.
        amsgrad: whether to divide by the largest second moment so far.
        maximize: whether to climb.
        memory: as for ``attach``: ``"auto"``, a number of steps, or 0 for the plain proximal step, which
            needs no memory beyond AdamW's.

    Attributes:
        handle: to freeze the zeros, as ``attach`` returns it.

    Raises:
        InputError: the optimizer does not hold a penalised parameter; a bad memory.

    Example:
        >>> from torch import nn
        >>> from torchlasso import L1
        >>> layer = nn.Linear(3, 1)
        >>> optimizer = ProxAdamW(layer.parameters(), Regularizer(layer, L1(10.0)), lr=0.1)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     layer(torch.ones(2, 3)).sum().backward()
        ...     optimizer.step()
        >>> layer.weight.data
        tensor([[0., 0., 0.]])

    References:
        Loshchilov and Hutter, "Decoupled weight decay regularization", arXiv 1711.05101.
    """

    def __init__(
        self,
        params: Params,
        regularizer: Regularizer,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        amsgrad: bool = False,
        maximize: bool = False,
        memory: MemorySteps = "auto",
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
        self._ride(regularizer, memory)

    def _ride(self, regularizer: Regularizer, memory: MemorySteps) -> None:
        shrinkage = _shrinkage(self, regularizer, memory)
        self._rule: FusedRule = AdamRule(self, shrinkage, AdamMetric())
        self.handle = Handle(self, shrinkage, self._rule)
        self.handle.on_remove(self._rule)

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step of AdamW and the proximal step.

        Args:
            closure: computes the loss and its gradients, if they are not there yet.

        Returns:
            What the closure returned.
        """
        return _step(self._rule, closure)

    def __getstate__(self) -> dict[str, Any]:
        return _packed(super().__getstate__(), self.handle)

    def __setstate__(self, state: dict[str, Any]) -> None:
        state, riding = _unpacked(state)
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if riding is not None:
            self._ride(*riding[:2])
            self.handle.restore(riding[2])
            if riding[3]:
                self.handle.remove()


@final
class ProxSGD(SGD):
    """``torch.optim.SGD`` with a regularizer: what ``attach`` does, in one pass over memory.

    ``w ← prox^D(SGD step)``, ``D`` the learning rate times the momentum's gain.  Everything else is as for
    ``ProxAdamW``.

    Args:
        params: parameters or groups of them, as for SGD.
        regularizer: what is penalised.
        lr: the learning rate.
        momentum: μ.
        dampening: of the momentum.
        weight_decay: an L2 penalty, exact as in ``ElasticNet``.
        nesterov: whether to use Nesterov's momentum.
        maximize: whether to climb.
        memory: as for ``attach``.

    Attributes:
        handle: to freeze the zeros, as ``attach`` returns it.

    Raises:
        InputError: the optimizer does not hold a penalised parameter; a bad memory.

    Example:
        >>> from torch import nn
        >>> from torchlasso import L1
        >>> layer = nn.Linear(3, 1)
        >>> optimizer = ProxSGD(layer.parameters(), Regularizer(layer, L1(10.0)), lr=0.1)
        >>> layer(torch.ones(2, 3)).sum().backward()
        >>> optimizer.step()
        >>> layer.weight.data
        tensor([[0., 0., 0.]])
    """

    def __init__(
        self,
        params: Params,
        regularizer: Regularizer,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        maximize: bool = False,
        memory: MemorySteps = "auto",
    ) -> None:
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize)
        self._ride(regularizer, memory)

    def _ride(self, regularizer: Regularizer, memory: MemorySteps) -> None:
        shrinkage = _shrinkage(self, regularizer, memory)
        self._rule: FusedRule = SGDRule(self, shrinkage, SGDMetric())
        self.handle = Handle(self, shrinkage, self._rule)
        self.handle.on_remove(self._rule)

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step of SGD and the proximal step.

        Args:
            closure: computes the loss and its gradients, if they are not there yet.

        Returns:
            What the closure returned.
        """
        return _step(self._rule, closure)

    def __getstate__(self) -> dict[str, Any]:
        return _packed(super().__getstate__(), self.handle)

    def __setstate__(self, state: dict[str, Any]) -> None:
        state, riding = _unpacked(state)
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if riding is not None:
            self._ride(*riding[:2])
            self.handle.restore(riding[2])
            if riding[3]:
                self.handle.remove()


def _shrinkage(optimizer: AdamW | SGD, regularizer: Regularizer, memory: MemorySteps) -> Shrinkage:
    check_kinds(optimizer, regularizer)
    check_held(optimizer, regularizer)
    return Shrinkage(regularizer, memory)


def _step(rule: FusedRule, closure: Callable[[], float] | None) -> float | None:
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    rule.take()
    return loss


def _packed(state: dict[str, Any], handle: Handle) -> dict[str, Any]:
    """Return an optimizer's state for copies and pickles, with what its penalty needs."""
    riding = (handle.regularizer, handle.shrinkage.memory, handle.saved(), handle.removed)
    return {**state, "_riding": riding}


def _unpacked(state: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return a state without what ``_packed`` added, and that (None where torch itself sets the state)."""
    rest = {key: value for key, value in state.items() if key != "_riding"}
    return rest, state.get("_riding")
