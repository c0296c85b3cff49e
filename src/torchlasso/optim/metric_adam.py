"""The metrics of Adam and its relatives, which divide an average of gradients by one of their sizes.

In each the first moment of a constant unit gradient, bias-corrected, is 1 at every step, so the metric is
the step size over the divisor.
"""

from typing import Any, final

import torch
from torch import Tensor

from torchlasso.optim.metric import Memory, Metric, scalar, wide


@final
class AdamMetric(Metric):
    """``lr / (√v̂ + ε)`` with the bias-corrected second moment (amsgrad: its running maximum).

    A weight that has only received zero gradients has ``v̂ = 0`` and so the metric ``lr/ε``.  A constant
    gradient gives ``v̂ = grad²`` and a displacement of ``lr·|grad|/(|grad| + ε)``, at most ``lr``; after
    larger gradients ``v̂`` is above that and the displacement less.

    AdamW's decoupled decay ``w ← (1 − lr·wd)·w`` is no L2 penalty of the objective and no part of the
    metric.
    """

    def displacement(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, memory: Memory
    ) -> float | Tensor:
        """Return ``lr / (√v̂ + ε)``."""
        second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        correction = 1 - scalar(group["betas"][1]) ** scalar(state["step"])
        return scalar(group["lr"]) / (wide(second) / correction).sqrt_().add_(group["eps"])

    def limit(self, group: dict[str, Any], memory: Memory) -> float | Tensor | None:
        """Return ``lr``."""
        return scalar(group["lr"])


@final
class NAdamMetric(Metric):
    """``lr · c_t / (√v̂ + ε)``, with ``c_t`` the Nesterov mixture for a constant unit gradient.

    NAdam moves by ``(1 − μ_t)/(1 − Πμ)`` of the gradient and ``μ_{t+1}/(1 − Πμ·μ_{t+1})`` of the first
    moment, which is ``1 − β₁^t`` for a constant unit gradient; ``μ_t = β₁·(1 − ½·0.96^{t·ψ})``.  The sum
    ``c_t`` tends to 1.

    References:
        Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop (2016).
    """

    def displacement(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, memory: Memory
    ) -> float | Tensor:
        """Return ``lr · c_t / (√v̂ + ε)``."""
        step, product = scalar(state["step"]), scalar(state["mu_product"])
        beta1, beta2 = (scalar(beta) for beta in group["betas"])
        mu, following = (beta1 * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (step, step + 1))
        mixture: float | Tensor = (1 - mu) / (1 - product) + following * (1 - beta1**step) / (
            1 - product * following
        )
        divisor: Tensor = (wide(state["exp_avg_sq"]) / (1 - beta2**step)).sqrt_().add_(group["eps"])
        return scalar(group["lr"]) * mixture / divisor

    def limit(self, group: dict[str, Any], memory: Memory) -> float | Tensor | None:
        """Return ``1.5·lr``.

        A constant gradient moves by ``lr·c_t·|grad|/(|grad| + ε)``, and ``c_t`` is largest at the first
        step, where it is at most ``1 + β₁/(1 + β₁) < 1.5``.
        """
        return 1.5 * scalar(group["lr"])


@final
class RAdamMetric(Metric):
    """``lr · r_t / (√v̂ + ε̂)`` where the variance is rectified (``ρ_t > 5``), plain ``lr`` before.

    ``ε̂ = ε/√(1 − β₂^t)``, as torch adds ε before it corrects the bias.

    References:
        Liu et al., "On the variance of the adaptive learning rate and beyond", arXiv 1908.03265.
    """

    def displacement(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, memory: Memory
    ) -> float | Tensor:
        """Return ``lr · r_t / (√v̂ + ε̂)``, or ``lr`` in the first steps."""
        memory["steps"] = memory.get("steps", 0.0) + 1
        step, beta2, lr = scalar(state["step"]), scalar(group["betas"][1]), scalar(group["lr"])
        rectifier = _rectifier(step, beta2)
        if not isinstance(rectifier, Tensor) and rectifier == 0:
            return lr
        divisor = wide(state["exp_avg_sq"]).sqrt().add_(group["eps"])
        rectified = rectifier * (1 - beta2**step) ** 0.5 / divisor
        if isinstance(rectifier, Tensor):
            rectified = torch.where(rectifier > 0, rectified, 1.0)
        return lr * rectified

    def limit(self, group: dict[str, Any], memory: Memory) -> float | Tensor | None:
        """Return ``lr`` where the variance is rectified (``r_t ≤ 1``), None before."""
        steps, beta2 = memory.get("steps"), float(group["betas"][1])
        if steps is None or _rectifier(steps, beta2) == 0:
            return None
        return scalar(group["lr"])

    def resume(self, group: dict[str, Any], state: dict[str, Any]) -> Memory:
        """Return the number of steps taken, from which the limit knows whether they are rectified."""
        return {"steps": float(state["step"])}


@final
class AdamaxMetric(Metric):
    """``lr / u_t``, with ``u_t = max(β₂·u_{t−1}, |grad| + ε)``.

    A constant gradient moves by at most ``lr·|grad|/(|grad| + ε)``, which is less than ``lr``.
    """

    def displacement(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, memory: Memory
    ) -> float | Tensor:
        """Return ``lr / u_t``."""
        # u_t is at least ε, but in float16 the usual ε is 0.
        return scalar(group["lr"]) / wide(state["exp_inf"]).clamp(min=group["eps"])

    def limit(self, group: dict[str, Any], memory: Memory) -> float | Tensor | None:
        """Return ``lr``."""
        return scalar(group["lr"])


@final
class SparseAdamMetric(Metric):
    """Adam's metric on the rows that the gradient touched, 0 on the others, which did not move.

    ``lr·√(1 − β₂^t) / (√v + ε)``: torch adds ε before it corrects the bias, and counts ``t`` for the whole
    parameter.  A row that is first touched late has a smaller ``v`` than ``t`` tells, and so moves by up to
    several ``lr`` until its averages have settled.  A row that a batch does not touch is not shrunk: under
    sampling the strength of a row is its strength times how often it is touched.
    """

    def displacement(
        self, group: dict[str, Any], state: dict[str, Any], grad: Tensor, memory: Memory
    ) -> float | Tensor:
        """Return ``lr·√(1 − β₂^t) / (√v + ε)`` on the rows of ``grad``."""
        second = state["exp_avg_sq"]
        touched = tuple(grad._indices())  # of an uncoalesced gradient too
        correction = 1 - scalar(group["betas"][1]) ** scalar(state["step"])
        step_size = scalar(group["lr"]) * correction**0.5
        moved = step_size / wide(second[touched]).sqrt().add_(group["eps"])
        result = torch.zeros_like(second, dtype=moved.dtype)
        result[touched] = moved
        return result

    def limit(self, group: dict[str, Any], memory: Memory) -> float | Tensor | None:
        """Return ``lr``, for rows whose averages have settled."""
        return scalar(group["lr"])


def _rectifier(step: float | Tensor, beta2: float | Tensor) -> float | Tensor:
    """Return RAdam's ``r_t``, or 0 where ``ρ_t ≤ 5`` and it is not used."""
    longest = 2 / (1 - beta2) - 1
    decay = beta2**step
    length = longest - 2 * step * decay / (1 - decay)
    if not isinstance(length, Tensor) and length <= 5:
        return 0.0
    share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    if isinstance(share, Tensor):
        return torch.where(length > 5, share, 0.0).sqrt()
    return float(share**0.5)
