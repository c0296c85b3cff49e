"""Dual averaging: whether a weight is zero is decided by all gradients so far, not by the last noisy one.

The penalty of the whole past is applied at once, to a point that the gradients of the whole past have
moved, so its threshold grows with the number of steps ``t`` while their noise grows with ``√t`` only.
"""

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from torchlasso.errors import InputError
from torchlasso.prox import Step, at_least_float32
from torchlasso.regularizer import Regularizer
from torchlasso.terms import Term

_METHODS = ("ftrl-proximal", "rda")


@final
class DualAveraging(Optimizer):
    r"""Minimise ``mean loss + regularizer`` on a stream of small batches, with the right zeros.

    With ``g_1 … g_t`` the gradients so far and ``R`` the penalties with their strengths,

    ``w_{t+1} = argmin_w ⟨Σ_τ g_τ, w⟩ + t·R(w) + Q_t(w)``, which is a proximal map with step ``t·s_t``.

    - ``method="ftrl-proximal"``: ``Q_t(w) = ½·Σ_τ Σ_i (1/s_τ − 1/s_{τ−1})_i (w − w_τ)_i²`` and a step a
      weight, ``s_t = lr / (beta + √(Σ_τ g_τ²))``.  The centre moves with the iterates, so it suits nets and
      learning rates that decay, and without a penalty it is Adagrad.
    - ``method="rda"``: ``Q_t(w) = ‖w − w_1‖² / (2·s_t)`` with ``s_t = lr / √t``.  The centre stays at the
      initial weights: it wants a constant learning rate (a decay to 0 would lead back to where it began),
      often one larger than the default, and overshoots in its first steps where that is too large.

    ``lr`` is about how far a weight travels.  ``beta`` holds back the first steps; where the gradients are
    tiny from the start, a smaller one is faster.

    The whole past counts, so a weight that was wrongly zero for a long time takes as long to return: on full
    batches, ``attach`` gets to the optimum sooner.  Parameters that the regularizer leaves alone take the
    same steps without a penalty.  A parameter without a gradient, or with ``lr = 0``, stays where it is, and
    the step does not count for it.  Sparse gradients are made dense, because the threshold of a row grows in
    the steps that do not touch it too.

    Memory: two numbers a weight, float32 or wider (the same as Adam on float32 weights).  What a step changes
    by too little for a bfloat16 or float16 weight is kept in them, and not lost.

    Args:
        params: parameters or parameter groups; ``lr``, ``method`` and ``beta`` can differ by group.
        regularizer: what is penalised, all of it among the parameters.  Leave it out of the loss.
        lr: the learning rate, read at every step.
        method: ``"ftrl-proximal"`` or ``"rda"``.
        beta: for ``"ftrl-proximal"``, more than 0 and in units of the gradient.

    Attributes:
        regularizer: what is penalised.

    Raises:
        InputError: a penalised parameter is missing or a strength is a function of the step; a complex
            parameter; an argument out of its range.

    Example:
        >>> import torchlasso as tl
        >>> x = torch.randn(2000, 5)
        >>> y = 2 * x[:, :1] + torch.randn(2000, 1)
        >>> model = nn.Linear(5, 1)
        >>> optimizer = DualAveraging(model.parameters(), tl.Regularizer(model, tl.L1(0.2)))
        >>> for inputs, target in zip(x.split(4), y.split(4)):
        ...     optimizer.zero_grad()
        ...     nn.functional.mse_loss(model(inputs), target).backward()
        ...     optimizer.step()
        >>> model.weight.data != 0
        tensor([[ True, False, False, False, False]])

    References:
        Xiao, "Dual averaging methods for regularized stochastic learning and online optimization",
        J. Mach. Learn. Res. 11 (2010).  McMahan et al., "Ad click prediction: a view from the trenches",
        KDD (2013).  McMahan, "Follow-the-regularized-leader and mirror descent", AISTATS (2011).
    """

    def __init__(
        self,
        params: ParamsT,
        regularizer: Regularizer,
        lr: float = 1.0,
        *,
        method: str = "ftrl-proximal",
        beta: float = 1.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "method": method, "beta": beta})
        held = {p for group in self.param_groups for p in group["params"]}
        _check_regularizer(regularizer, held)
        self.regularizer = regularizer

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own.

        Args:
            param_group: ``params``, and any of ``lr``, ``method`` and ``beta``.

        Raises:
            InputError: a complex parameter, or an option out of its range.
        """
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except InputError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step with the gradients of a batch.

        Args:
            closure: evaluates the loss again and returns it.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = {p: group for group in self.param_groups for p in group["params"]}
        free = dict.fromkeys(groups)
        for term in self.regularizer.terms:
            self._move(term.parameters, groups, term)
            for parameter in term.parameters:
                free.pop(parameter, None)
        for parameter in free:
            self._move([parameter], groups, None)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of another instance, and keep its sums as precise as they were saved.

        Args:
            state_dict: what ``state_dict()`` returned.
        """
        super().load_state_dict(state_dict)
        # torch casts them to the dtype of the weights; in bfloat16 a sum soon stops growing.
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    wide = torch.promote_types(parameter.dtype, torch.float32)
                    self.state[parameter][key] = value.to(parameter.device, wide, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        # torch names what a copy holds; without this a deepcopy would lose the regularizer.
        return {**super().__getstate__(), "regularizer": self.regularizer}

    def _move(
        self, parameters: list[nn.Parameter], groups: dict[nn.Parameter, dict[str, Any]], term: Term | None
    ) -> None:
        """Move the parameters of a block, and shrink them if they are penalised."""
        live = [p.grad is not None and float(groups[p]["lr"]) > 0 for p in parameters]
        if not any(live):
            return
        points: list[Tensor] = [at_least_float32(p) for p in parameters]
        steps: list[Step] = [0.0] * len(parameters)
        for i, parameter in enumerate(parameters):
            if live[i]:
                points[i], steps[i] = _unshrunk(parameter, self.state[parameter], groups[parameter])
        if term is None:
            moved = points
        else:
            spans = [
                s * self.state[p]["step"] if on else 0.0
                for p, s, on in zip(parameters, steps, live, strict=True)
            ]
            moved = term.scatter(term.penalty.prox(term.gather(points), _block_step(term, spans)))
        for i, parameter in enumerate(parameters):
            parameter.copy_(moved[i]).add_(0.0)  # what float16 rounded to -0.0 becomes 0.0
            if live[i] and "dual" in self.state[parameter]:
                self.state[parameter]["dual"] = (points[i] - parameter) / steps[i]


def _unshrunk(parameter: nn.Parameter, state: dict[str, Any], group: dict[str, Any]) -> tuple[Tensor, Step]:
    """Return where the gradients alone lead, counting the one at hand, and the step size ``s_t``."""
    gradient = parameter.grad
    assert gradient is not None  # the caller has looked
    wide = at_least_float32(parameter)
    grad = (gradient.to_dense() if gradient.is_sparse else gradient).to(wide.dtype)
    lr = float(group["lr"])
    if group["method"] == "rda":
        if not state:
            state.update(step=0, gradient_sum=torch.zeros_like(wide), start=wide.clone())
        state["step"] += 1
        state["gradient_sum"] += grad
        step = lr / math.sqrt(state["step"])
        return state["start"] - step * state["gradient_sum"], step
    if not state:
        state.update(step=0, square_sum=torch.zeros_like(wide), dual=torch.zeros_like(wide))
    state["step"] += 1
    state["square_sum"].addcmul_(grad, grad)
    steps: Tensor = lr / (state["square_sum"].sqrt() + group["beta"])
    # The dual, (point − w)/s of the step before, lies in (t − 1)·∂R(w).  It stands for the sum z of the
    # literature, −z = dual + w/s, and stays right when the learning rate or the weights are changed.
    return wide + steps * (state["dual"] - grad), steps


def _block_step(term: Term, steps: list[Step]) -> Step:
    """Return the steps of a block's members as one: a number if they share it, else a tensor."""
    first = steps[0]
    if all(not isinstance(step, Tensor) and step == first for step in steps):
        return first
    full = [
        step if isinstance(step, Tensor) else torch.full_like(at_least_float32(p), step)
        for p, step in zip(term.parameters, steps, strict=True)
    ]
    return term.gather(full)


def _check_regularizer(regularizer: object, held: set[nn.Parameter]) -> None:
    if not isinstance(regularizer, Regularizer):
        msg = f"DualAveraging expects a Regularizer(model, penalty), got {type(regularizer).__name__}"
        raise InputError(msg)
    members = [member for term in regularizer.terms for member in term.members]
    missing = [member.name for member in members if member.parameter not in held]
    if missing:
        msg = (
            f"the optimizer does not hold {missing[:8]}, which the regularizer penalises; give it these "
            "parameters, or leave them out of the regularizer"
        )
        raise InputError(msg)
    for term in regularizer.current_terms():
        _ = term.penalty.current_strength  # a fraction that was not resolved raises here
    changing = [term.name for term in regularizer.terms if callable(term.penalty.strength)]
    if changing:
        msg = (
            f"dual averaging charges the whole past at one strength, but that of {changing[:8]} is a "
            "function of the step; give a number, or use torchlasso.attach"
        )
        raise InputError(msg)


def _check_group(group: dict[str, Any]) -> None:
    lr, beta = float(group["lr"]), float(group["beta"])
    if not 0 <= lr < math.inf:
        msg = f"lr must be finite and zero or more, got {lr}"
        raise InputError(msg)
    if not 0 < beta < math.inf:
        msg = f"beta must be finite and more than zero (it bounds the first step by lr/beta), got {beta}"
        raise InputError(msg)
    if group["method"] not in _METHODS:
        msg = f"method must be one of {list(_METHODS)}, got {group['method']!r}"
        raise InputError(msg)
    if any(p.is_complex() for p in group["params"]):
        msg = "DualAveraging takes real parameters only, got a complex one; store it with torch.view_as_real"
        raise InputError(msg)
