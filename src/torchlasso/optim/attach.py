"""The proximal step that rides on a torch optimizer through its own hooks."""

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchlasso.errors import InputError
from torchlasso.optim.metric import Memory, metric_of
from torchlasso.regularizer import Regularizer
from torchlasso.terms import Term

_KEY = "torchlasso"
_attached: "weakref.WeakSet[Optimizer]" = weakref.WeakSet()


class Handle:
    """The link between an optimizer and a regularizer, as returned by ``attach``.

    Attributes:
        optimizer: the user's optimizer.
        regularizer: what is penalised.
        steps: optimizer steps taken since ``attach``; a strength that changes by step reads it.
    """

    def __init__(self, optimizer: Optimizer, regularizer: Regularizer) -> None:
        self.optimizer = optimizer
        self.regularizer = regularizer
        self.steps = 0
        self._metric = metric_of(optimizer)
        self._groups = _groups_of(optimizer, regularizer)
        self._frozen: dict[nn.Parameter, Tensor] | None = None
        self._loading: dict[str, Any] | None = None
        self._memory = self._resumed_memory()
        regularizer.step = self.steps
        self._hooks = [
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._before_load),
            optimizer.register_load_state_dict_post_hook(self._after_load),
        ]

    @property
    def frozen(self) -> bool:
        """Whether the zeros are frozen and the penalty is off."""
        return self._frozen is not None

    def freeze_zeros(self) -> None:
        """Keep every penalised weight that is now zero at zero, and switch the penalty off.

        Training on refits the nonzero weights without shrinkage (debiasing); momentum, weight decay and
        noise cannot revive a zero.  Constraints (``nonnegative``) still hold.
        """
        self._frozen = {p: p.detach() == 0 for term in self.regularizer.terms for p in term.parameters}

    def unfreeze_zeros(self) -> None:
        """Let the zeros move again and switch the penalty back on."""
        self._frozen = None

    def remove(self) -> None:
        """Take the hooks off; the optimizer is as it was before ``attach``."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        _attached.discard(self.optimizer)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Apply the proximal map in the metric of the step just taken."""
        if _skipped(optimizer):
            return
        for term in self.regularizer.terms:
            metrics = [self._displacement(parameter) for parameter in term.parameters]
            if all(metric is None for metric in metrics):
                continue  # no gradient, so the optimizer did not move it either
            if self._frozen is None:
                _shrink(term.at(self.steps), metrics)
                continue
            _shrink(term.unshrunk(), metrics)
            for parameter in term.parameters:
                parameter.masked_fill_(self._frozen[parameter].to(parameter.device), 0.0)
        self.steps += 1
        self.regularizer.step = self.steps

    def _displacement(self, parameter: nn.Parameter) -> float | Tensor | None:
        """Return the metric of a parameter, or None if this step left it where it was."""
        if parameter.grad is None:
            return None
        memory = self._memory.setdefault(parameter, {})
        state = self.optimizer.state.get(parameter, {})  # indexing would add an entry to a plain SGD's state
        return self._metric.displacement(self._groups[parameter], state, memory)

    def _resumed_memory(self) -> dict[nn.Parameter, Memory]:
        resume, state = self._metric.resume, self.optimizer.state
        return {p: resume(group, state[p]) for p, group in self._groups.items() if state.get(p)}

    def _numbered(self) -> dict[int, nn.Parameter]:
        """Return the optimizer's parameters under the numbers that torch's state dicts give them."""
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return dict(enumerate(parameters))

    def _save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Put the handle's own state into the optimizer's state dict."""
        numbers = {p: number for number, p in self._numbered().items()}
        frozen = None if self._frozen is None else {numbers[p]: m for p, m in self._frozen.items()}
        memory = {numbers[p]: dict(m) for p, m in self._memory.items() if m}
        return {**state_dict, _KEY: {"steps": self.steps, "memory": memory, "frozen": frozen}}

    def _before_load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        saved = state_dict.get(_KEY)
        frozen = saved and saved["frozen"]
        numbers = {number for number, p in self._numbered().items() if p in self._groups}
        if frozen is not None and set(frozen) != numbers:
            msg = (
                "the loaded state holds frozen zeros of other parameters than the regularizer penalises; "
                "attach the regularizer that it was saved with"
            )
            raise InputError(msg)
        self._loading = saved

    def _after_load(self, optimizer: Optimizer) -> None:
        """Restore the handle's state; torch has replaced the optimizer's groups and state by now."""
        self._groups = _groups_of(self.optimizer, self.regularizer)
        saved, self._loading = self._loading, None
        if saved is None:
            self._memory = self._resumed_memory()
            message = (
                "the loaded optimizer state was saved without torchlasso: the strength schedule goes on from "
                f"step {self.steps}, and zeros are {'' if self.frozen else 'not '}frozen"
            )
            warnings.warn(message, stacklevel=2)
            return
        numbered = self._numbered()
        self.steps = self.regularizer.step = int(saved["steps"])
        self._memory = {numbered[n]: dict(m) for n, m in saved["memory"].items()}
        frozen = saved["frozen"]
        self._frozen = frozen and {numbered[n]: m.to(numbered[n].device) for n, m in frozen.items()}


def attach(optimizer: Optimizer, regularizer: Regularizer) -> Handle:
    """Make an optimizer minimise ``loss + regularizer`` with exact zeros, in the user's own loop.

    After each ``optimizer.step()`` every penalised block becomes ``prox(w, D)``, with ``D`` the
    optimizer's own metric (the displacement that a constant unit gradient would cause), so that the
    strength means the same under every optimizer.  Leave the penalty out of the loss.  With lr = 0
    nothing moves; a parameter without a gradient is not shrunk, and a step that a ``GradScaler`` skips
    shrinks nothing.  The handle's state (step, frozen zeros) travels in ``optimizer.state_dict()``; to
    resume, attach first and load afterwards.

    Adam's metric is large where gradients have been tiny, so a trained net, or a rare input, can lose weights
    in a fresh Adam's first steps; ``eps=strength`` prevents that.  Weights stored in bfloat16 or float16 may
    be too coarse to shrink; keep float32 weights and use autocast.

    AdamW's decoupled weight decay is not an L2 penalty of the objective; for that use ``ElasticNet``.

    Args:
        optimizer: a ``torch.optim`` SGD (momentum, dampening, Nesterov, maximize), Adam or AdamW
            (amsgrad too).
        regularizer: what is penalised, all of it among the optimizer's parameters.

    Returns:
        A handle, to freeze the zeros or to let go.

    Raises:
        UnsupportedOptimizerError: the metric of this optimizer is not known.
        InputError: the optimizer is attached already, or does not hold a penalised parameter.

    Example:
        >>> import torchlasso as tl
        >>> x = torch.tensor([[1.0, 0.1], [-1.0, 0.1], [1.0, -0.1], [-1.0, -0.1]])
        >>> y = x[:, :1] * 2
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = tl.attach(optimizer, tl.Regularizer(model, tl.L1(0.5)))
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     nn.functional.mse_loss(model(x), y).backward()
        ...     optimizer.step()
        >>> model.weight.data  # the lasso's answer: 2 − 0.5/2, and an exact zero
        tensor([[1.7500, 0.0000]])

    References:
        Duchi and Singer, "Efficient online and batch learning using forward backward splitting",
        J. Mach. Learn. Res. 10 (2009).  In an adaptive metric: arXiv 2102.03869.
    """
    _check_kinds(optimizer, regularizer)
    if optimizer in _attached:
        msg = "this optimizer is attached already; call remove() on its handle first"
        raise InputError(msg)
    handle = Handle(optimizer, regularizer)
    _attached.add(optimizer)
    return handle


def _check_kinds(optimizer: object, regularizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        msg = f"attach expects a torch.optim.Optimizer, got {type(optimizer).__name__}"
        raise InputError(msg)
    if not isinstance(regularizer, Regularizer):
        msg = f"attach expects a Regularizer(model, penalty), got {type(regularizer).__name__}"
        raise InputError(msg)


def _skipped(optimizer: Optimizer) -> bool:
    """Return whether a GradScaler told a fused optimizer to leave the weights as they are.

    Other optimizers are not called at all then; a fused one is, with ``found_inf`` set on it.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def _groups_of(optimizer: Optimizer, regularizer: Regularizer) -> dict[nn.Parameter, dict[str, Any]]:
    """Return the optimizer's group of every penalised parameter."""
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    members = [member for term in regularizer.terms for member in term.members]
    missing = [member.name for member in members if member.parameter not in groups]
    if missing:
        msg = (
            f"the optimizer does not hold {missing[:8]}, which the regularizer penalises; give it these "
            "parameters, or leave them out of the regularizer"
        )
        raise InputError(msg)
    return {member.parameter: groups[member.parameter] for member in members}


def _shrink(term: Term, metrics: list[float | Tensor | None]) -> None:
    """Replace the weights of a block by their proximal map."""
    if len(metrics) == 1 and metrics[0] is not None:
        step = metrics[0]
    else:
        step = term.gather([_full(p, m) for p, m in zip(term.parameters, metrics, strict=True)])
    block = term.penalty.prox(term.gather(term.parameters), step)
    for parameter, part in zip(term.parameters, term.scatter(block), strict=True):
        parameter.copy_(part)


def _full(parameter: nn.Parameter, metric: float | Tensor | None) -> Tensor:
    """Return a metric as a tensor shaped like its parameter (zero if the parameter did not move)."""
    if isinstance(metric, Tensor):
        return metric
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.full_like(parameter, 0.0 if metric is None else metric, dtype=dtype)
