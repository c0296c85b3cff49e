"""Proximal maps of concave penalties of one number, as pure functions on tensors.

The objective ``½(x − u)² + step·p(x)`` over ``x ≥ 0`` may have two minima, so every map here compares them
and returns the global one; of two that are equal, the one nearer to zero.  All maps take magnitudes
``u = |w| ≥ 0`` in float32 or wider, and a ``level`` (λ) and a ``step`` of that type, finite or NaN, that
broadcast against them.  They return new magnitudes: exact zeros, NaN for NaN, and ``u`` itself to the last
bit where ``step·level`` is zero.
"""

import math

import torch
from torch import Tensor


def firm_threshold(u: Tensor, level: Tensor, step: Tensor, gamma: float) -> Tensor:
    """Return the proximal map of the minimax concave penalty (MCP) on magnitudes.

    For ``step < γ`` this is ``min(u, max(u − step·λ, 0) / (1 − step/γ))``.  From ``step = γ`` on the
    objective is concave up to γλ, so only 0 and ``u`` itself can be the minimiser: ``u`` if
    ``u > λ·√(step·γ)``.

    Args:
        u: magnitudes.
        level: the slope λ at zero.
        step: the proximal step.
        gamma: γ > 0; the penalty is flat from γλ on.

    Example:
        >>> u = torch.tensor([0.5, 1.5, 2.0, 4.0])
        >>> firm_threshold(u, torch.tensor(1.0), torch.tensor(1.0), gamma=3.0)
        tensor([0.0000, 0.7500, 1.5000, 4.0000])

    References:
        Gao and Bruce, "WaveShrink with firm shrinkage", Stat. Sinica 7 (1997).
        Zhang, "Nearly unbiased variable selection under minimax concave penalty", Ann. Stat. 38 (2010).
    """
    room = (gamma - step) / gamma  # positive wherever step < γ, which 1 − step/γ need not be
    convex = room > 0
    firm = torch.minimum(u, (u - _bounded(step * level)).clamp_min(0.0) / torch.where(convex, room, 1.0))
    return torch.where(convex, firm, _keep_above(u, level * _bounded(step * gamma).sqrt()))


def scad_threshold(u: Tensor, level: Tensor, step: Tensor, a: float) -> Tensor:
    """Return the proximal map of the smoothly clipped absolute deviation (SCAD) on magnitudes.

    For ``step < a − 1`` it is the larger of the soft threshold and a firm one of ``γ = a − 1`` and slope
    ``aλ/(a − 1)``.  From there on nothing between λ and aλ can be the minimiser: it is the soft threshold up
    to ``u = λ·(a + 1 + step)/2``, or to ``λ·√(step·(a + 1))`` if ``step > a + 1``, and ``u`` itself above.

    Args:
        u: magnitudes.
        level: the slope λ at zero.
        step: the proximal step.
        a: > 2; the penalty is flat from aλ on.

    Example:
        >>> u = torch.tensor([0.5, 1.5, 3.0, 4.0])
        >>> scad_threshold(u, torch.tensor(1.0), torch.tensor(1.0), a=3.7)
        tensor([0.0000, 0.5000, 2.5882, 4.0000])

    References:
        Fan and Li, "Variable selection via nonconcave penalized likelihood", J. Am. Stat. Assoc. 96 (2001).
    """
    gamma = a - 1
    soft = (u - _bounded(step * level)).clamp_min(0.0)
    convex = gamma - step > 0
    smooth = torch.maximum(soft, firm_threshold(u, level * (a / gamma), step, gamma))
    edge = torch.where(step > a + 1, _bounded(step * (a + 1)).sqrt(), 0.5 * (a + 1) + 0.5 * step)
    jump = _bounded(level * edge)
    return torch.where(convex, smooth, torch.where(u <= jump, soft, torch.maximum(u, jump)))


def log_threshold(u: Tensor, level: Tensor, step: Tensor, epsilon: float) -> Tensor:
    """Return the proximal map of ``λε·log(1 + x/ε)`` on magnitudes.

    The stationary points solve ``(x − u)(x + ε) + step·λε = 0``.  The larger root is the minimiser if
    ``u > step·λ``; up to there zero is a local minimum too, and the objective decides between them.

    Args:
        u: magnitudes.
        level: the slope λ at zero.
        step: the proximal step.
        epsilon: ε > 0, the size at which the slope has halved.

    Example:
        >>> u = torch.tensor([0.5, 1.5, 4.0])
        >>> log_threshold(u, torch.tensor(1.0), torch.tensor(1.0), epsilon=1.0)
        tensor([0.0000, 1.0000, 3.7913])

    References:
        Candès, Wakin and Boyd, "Enhancing sparsity by reweighted ℓ1 minimization", J. Fourier Anal. Appl. 14
        (2008).  The map: Gong, Zhang, Lu, Huang and Ye, "A general iterative shrinkage and thresholding
        algorithm for non-convex regularized optimization problems", ICML 2013.
    """
    t = _bounded(step * level)
    q = 4 * (t / (u + epsilon)) * (epsilon / (u + epsilon))
    # The root of the discriminant in units of u + ε, kept off 0 where it would have an infinite derivative.
    root = (1 - q).clamp_min(torch.finfo(u.dtype).tiny).sqrt()
    soft = (u - t).clamp_min(0.0)
    # Twice the same root of the quadratic: for u < ε the usual form would subtract nearly equal numbers.
    small = u < epsilon
    ratio = torch.where(small, u, 0.0) / epsilon
    below = 2 * soft / ((1 - ratio) + (1 + ratio) * root)
    above = 0.5 * (u - epsilon) + (0.5 * u + 0.5 * epsilon) * root
    # Rounding aside it lies between the soft threshold and u, and is u where nothing is to be shrunk.
    x = torch.maximum(torch.minimum(torch.where(small, below, above), u), soft)
    local = (x > 0) & (u <= t)
    # The objective at x less that at zero, divided by x.
    safe = torch.where(local, x, 1.0)
    gain = 0.5 * safe - u + t * (torch.log1p(safe / epsilon) / (safe / epsilon))
    return torch.where((local & ~(gain < 0)) | (q > 1), 0.0, x)


def hard_threshold(u: Tensor, level: Tensor, step: Tensor) -> Tensor:
    """Return the proximal map of ``λ·1[x ≠ 0]`` on magnitudes: ``u`` if ``u > √(2·step·λ)``, else zero.

    Args:
        u: magnitudes.
        level: the price λ of a nonzero entry.
        step: the proximal step.

    Example:
        >>> hard_threshold(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2.0), torch.tensor(1.0))
        tensor([0., 0., 3.])

    References:
        Blumensath and Davies, "Iterative thresholding for sparse approximations", J. Fourier Anal. Appl. 14
        (2008).
    """
    return _keep_above(u, _bounded(2 * step * level).sqrt())


def half_threshold(u: Tensor, level: Tensor, step: Tensor) -> Tensor:
    """Return the proximal map of ``λ√x`` on magnitudes.

    With ``t = step·λ``: zero up to ``u = 3/2·t^⅔``, else ``x = y²`` with the largest root ``y`` of
    ``y³ − u·y + t/2 = 0``, that is ``x = 4/3·u·cos²(arccos(−√27/4 · t/u^{3/2}) / 3)``.

    Args:
        u: magnitudes.
        level: the factor λ of the square root.
        step: the proximal step.

    Example:
        >>> half_threshold(torch.tensor([1.0, 1.5, 2.0, 9.0]), torch.tensor(1.0), torch.tensor(1.0))
        tensor([0.0000, 0.0000, 1.6054, 8.8318])

    References:
        Xu, Chang, Xu and Zhang, "L1/2 regularization: a thresholding representation theory and a fast
        solver", IEEE Trans. Neural Netw. Learn. Syst. 23 (2012).
    """
    t = _bounded(step * level)
    dead = u <= _bounded(1.5 * step.pow(2 / 3) * level.pow(2 / 3))
    safe = torch.where(dead, 1.0, u)
    # In units of u: z = √(x/u) is the largest root of z³ − z + r/2, at least √(2/3), with r = t/u^{3/2}.
    r = torch.where(dead, 0.0, (t / safe) / safe.sqrt()).clamp_max((2 / 3) ** 1.5)
    z = math.sqrt(4 / 3) * torch.cos(torch.acos(-math.sqrt(27 / 16) * r) / 3)
    # x = u − t/(2√x) once more: the cosine's rounding fades, an infinite u passes, u stays where t is zero.
    return torch.where(dead, 0.0, safe - 0.5 * t / (z * safe.sqrt()))


def _keep_above(u: Tensor, threshold: Tensor) -> Tensor:
    """Return ``u`` where it is above a threshold, else zero; NaN where either is."""
    threshold = _bounded(threshold)
    return torch.where(u <= threshold, 0.0, torch.maximum(u, threshold))


def _bounded(x: Tensor) -> Tensor:
    """Return ``x``, or the largest finite number where it overflowed: infinity less infinity would be NaN."""
    return x.clamp_max(torch.finfo(x.dtype).max)
