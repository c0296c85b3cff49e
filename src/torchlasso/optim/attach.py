"""The proximal step that rides on a torch optimizer through its own hooks."""

import warnings
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from torchlasso.errors import InputError
from torchlasso.optim.copies import Detached, guard_copies, take_detached
from torchlasso.optim.evidence import MemorySteps
from torchlasso.optim.fast_rule import FastRule
from torchlasso.optim.metric_rule import MetricFn, MetricRule, groups_of
from torchlasso.optim.metrics import metric_of
from torchlasso.optim.orthant import OrthantRule
from torchlasso.optim.shrinkage import Shrinkage
from torchlasso.regularizer import Regularizer

_KEY = "torchlasso"
_attached: WeakSet[Optimizer] = WeakSet()


class Handle:
    """The link between an optimizer and a regularizer, as returned by ``attach``.

    Attributes:
        optimizer: the user's optimizer.
        shrinkage: what the penalty remembers of the run.
    """

    def __init__(self, optimizer: Optimizer, shrinkage: Shrinkage, rule: MetricRule | OrthantRule) -> None:
        self.optimizer, self.shrinkage, self._rule = optimizer, shrinkage, rule
        self._loading: dict[str, Any] | None = None
        self._hooks: list[Any] = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._before_load),
            optimizer.register_load_state_dict_post_hook(self._after_load),
        ]
        _attached.add(optimizer)

    @property
    def regularizer(self) -> Regularizer:
        """What is penalised."""
        return self.shrinkage.regularizer

    @property
    def steps(self) -> int:
        """Optimizer steps taken since ``attach``; a strength that changes by step reads it."""
        return self.shrinkage.steps

    @property
    def removed(self) -> bool:
        """Whether ``remove`` was called."""
        return not self._hooks

    @property
    def frozen(self) -> bool:
        """Whether the zeros are frozen and the penalty is off."""
        return self.shrinkage.frozen is not None

    def freeze_zeros(self) -> None:
        """Keep every penalised weight that is now zero at zero, and switch the penalty off.

        Training on refits the nonzero weights without shrinkage (debiasing); momentum, weight decay and
        noise cannot revive a zero.  Constraints (``nonnegative``) still hold.
        """
        self.shrinkage.freeze()

    def unfreeze_zeros(self) -> None:
        """Let the zeros move again and switch the penalty back on."""
        self.shrinkage.unfreeze()

    def update(self, regularizer: Regularizer) -> None:
        """Go on with other penalties, as when ``optimizer.add_param_group`` has brought new parameters.

        The step count stays, and so does the evidence of parameters that both penalise.

        Args:
            regularizer: what is penalised from now on.

        Raises:
            InputError: the zeros are frozen, or the optimizer does not hold a penalised parameter.
            UnsupportedOptimizerError: as for ``attach``.
        """
        check_kinds(self.optimizer, regularizer)
        if self.frozen:
            msg = "the zeros are frozen; call unfreeze_zeros() before update()"
            raise InputError(msg)
        check_held(self.optimizer, regularizer)
        self._rule.check(regularizer)
        self.shrinkage.take(regularizer)

    def remove(self) -> None:
        """Take the hooks off; the optimizer is as it was before ``attach``."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        _attached.discard(self.optimizer)

    def on_remove(self, hook: Any) -> None:
        """Have ``remove`` take off one more hook."""
        self._hooks.append(hook)

    @_disable_dynamo
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        self.shrinkage.pace.note(optimizer.param_groups)
        self.shrinkage.prepare()
        return None if _skipped(optimizer) else self._rule.before(args, kwargs)

    @_disable_dynamo
    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Apply the rule to the step just taken."""
        if _skipped(optimizer):
            return
        self._rule.after()
        self.shrinkage.settle()
        self.shrinkage.advance()

    # ---- the state travels with the optimizer's ----------------------------------------------------------

    def _numbered(self) -> dict[int, nn.Parameter]:
        """Return the optimizer's parameters under the numbers that torch's state dicts give them."""
        return dict(enumerate(p for group in self.optimizer.param_groups for p in group["params"]))

    def saved(self) -> dict[str, Any]:
        """Return what the handle remembers, as plain containers and tensors."""
        numbers = {p: number for number, p in self._numbered().items()}
        memory = self._rule.memory if isinstance(self._rule, MetricRule) else {}
        return {
            **self.shrinkage.saved(numbers),
            "memory": {numbers[p]: dict(m) for p, m in memory.items() if m},
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what ``saved`` returned."""
        numbered = self._numbered()
        self.shrinkage.restore(saved, numbered)
        if isinstance(self._rule, MetricRule):
            self._rule.memory = {numbered[n]: dict(m) for n, m in saved["memory"].items()}

    def _save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Put the handle's own state into the optimizer's state dict."""
        return {**state_dict, _KEY: self.saved()}

    def _before_load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        saved = state_dict.get(_KEY)
        penalised = {p for term in self.regularizer.terms for p in term.parameters}
        self.shrinkage.check_frozen(saved, [n for n, p in self._numbered().items() if p in penalised])
        self._loading = saved

    def _after_load(self, optimizer: Optimizer) -> None:
        """Restore the handle's state; torch has replaced the optimizer's groups and state by now."""
        saved, self._loading = self._loading, None
        if isinstance(self._rule, MetricRule):
            self._rule.resume()
        if saved is not None:
            self.restore(saved)
            return
        message = (
            "the loaded optimizer state was saved without torchlasso: the strength schedule goes on from "
            f"step {self.steps}, and zeros are {'' if self.frozen else 'not '}frozen"
        )
        warnings.warn(message, stacklevel=2)


def attach(
    optimizer: Optimizer,
    regularizer: Regularizer,
    *,
    metric: MetricFn | None = None,
    memory: MemorySteps = "auto",
) -> Handle:
    """Make an optimizer minimise ``loss + regularizer`` with exact zeros, in the user's own loop.

    After each ``optimizer.step()`` every penalised block becomes ``prox(w, D)``, with ``D`` the
    optimizer's own metric (the displacement that a constant unit gradient would cause), so that the
    strength means the same under every optimizer.  Optimizers without such a metric (Muon, Adafactor,
    LBFGS, Rprop and those of third parties) get the orthant rule, which has the same fixed points.  Leave the
    penalty out of the loss.

    With minibatches one noisy gradient must not decide whether a zero stays zero.  A dead weight adds up the
    gradients that it sees and returns when their sum says so; ``memory`` is the number of steps that this
    sum weighs.  Full batches with ``memory="auto"`` end at the same stationary point.

    With lr = 0 nothing moves; a parameter without a gradient is not shrunk, and a step that a ``GradScaler``
    skips shrinks nothing.  The handle's state (step, evidence, frozen zeros) travels in
    ``optimizer.state_dict()``; to resume, attach first and load afterwards.  A copy or pickle of the
    optimizer refuses to step until ``attach`` is called on it.  Weights may be written to between steps
    (``load_state_dict``, ``copy_`` under ``no_grad``), but not in place through ``.data``: nobody sees that.

    Costs one number a weight (float32, or float64 for float64 weights); none with ``memory=0``, except for
    half-precision weights, where it holds what rounding would lose.

    AdamW's decoupled weight decay is not an L2 penalty of the objective; for that use ``ElasticNet``.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        regularizer: what is penalised, all of it among the optimizer's parameters.
        metric: ``metric(parameter, group, state) -> D`` for an optimizer whose metric you know, read after
            each step: a number, or a tensor shaped like the parameter.
        memory: ``"auto"``: 16 times the square of gradient noise over strength, measured as training goes,
            at least 20 and at most the steps taken; a number of steps; or 0 for the plain proximal step.
            Steps are those at the largest learning rate so far; smaller ones count for as much less.

    Returns:
        A handle, to freeze the zeros or to let go.

    Raises:
        UnsupportedOptimizerError: the optimizer has no metric and a penalty no slope at zero.
        InputError: the optimizer is attached already, or does not hold a penalised parameter; a bad memory.

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
        J. Mach. Learn. Res. 10 (2009).  In an adaptive metric: arXiv 2102.03869.  The evidence: Xiao, "Dual
        averaging methods for regularized stochastic learning and online optimization", J. Mach. Learn.
        Res. 11 (2010); McMahan et al., "Ad click prediction: a view from the trenches", KDD (2013).
    """
    check_kinds(optimizer, regularizer)
    if optimizer in _attached:
        msg = "this optimizer is attached already; call remove() on its handle first"
        raise InputError(msg)
    own = (getattr(optimizer, name, None) for name in ("handle", "regularizer"))
    if any(isinstance(each, (Handle, Regularizer)) for each in own):
        msg = f"{type(optimizer).__name__} has its own penalty; attach to one of torch's optimizers instead"
        raise InputError(msg)
    check_held(optimizer, regularizer)
    shrinkage = Shrinkage(regularizer, memory)
    known = metric or metric_of(optimizer)
    if known is None:
        handle = Handle(optimizer, shrinkage, OrthantRule(optimizer, shrinkage))
    else:
        handle = Handle(optimizer, shrinkage, FastRule(optimizer, shrinkage, known))
    detached = take_detached(optimizer)
    if detached is not None:
        handle.restore(detached.saved)
    handle.on_remove(guard_copies(optimizer, lambda: Detached(handle.saved())))
    return handle


def check_held(optimizer: Optimizer, regularizer: Regularizer) -> None:
    """Raise for penalised parameters that an optimizer does not hold.

    Args:
        optimizer: any optimizer.
        regularizer: what is penalised.

    Raises:
        InputError: some are missing; their names are in the message.
    """
    held = groups_of(optimizer)
    members = [member for term in regularizer.terms for member in term.members]
    missing = [member.name for member in members if member.parameter not in held]
    if missing:
        msg = (
            f"the optimizer does not hold {missing[:8]}, which the regularizer penalises; give it these "
            "parameters, or leave them out of the regularizer (handle.update takes a new one later)"
        )
        raise InputError(msg)


def check_kinds(optimizer: object, regularizer: object) -> None:
    """Raise ``InputError`` unless these are an optimizer and a regularizer."""
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
