r"""LassoNet's proximal map: the weights of a row are bounded by the norm of the first few of it.

A row holds ``θ`` (the skip weights of a feature) and ``W`` (its weights into the first hidden layer).  The
map is the minimiser of

    ½·Σ_i (x_i − θ_i)²/d_i + ½·Σ_j (y_j − W_j)²/d_j + λ·‖x‖₂ + μ·Σ_j |y_j|   with   |y_j| ≤ M·‖x‖₂ .

At a given radius ``b = ‖x‖`` the best ``y_j`` is ``sign(W_j)·min(a_j, M·b)``, where
``a_j = max(|W_j| − d_j·μ, 0)``, and the best ``x`` is the point of a sphere nearest to ``θ``.  What is then
left is a *convex* function of ``b`` alone, although the whole is not convex.  With ``c_j = a_j/M`` and
``m_j = M²/d_j`` its slope vanishes where

    Σ_i θ_i²/u_i(b)² = 1,   u_i(b) = b + d_i·τ(b),   τ(b) = λ − Σ_j m_j·max(c_j − b, 0),

and then ``x_i = θ_i·b/u_i(b)``.  Every ``u_i`` is concave, increasing and piecewise linear in ``b``, so
sorting ``c`` and bisecting over it finds the piece of the root.  There it is a division if all ``d_i`` are
one number or ``θ`` has one entry, which is the algorithm of the paper, and else Newton's method, which rises
to the root from any lower bound.  Where ``θ = 0`` the direction of ``x`` is free: the first entry with the
largest ``d_i`` takes all of it.

References:
    Lemhadri, Ruan, Abraham and Tibshirani, "LassoNet: a neural network with feature sparsity", J. Mach.
    Learn. Res. 22 (2021).
"""

import torch
from torch import Tensor

from torchlasso.prox import at_least_float32


def hierarchical_prox(
    w: Tensor, step: float | Tensor, skip: int, strength: float, inner: float, bound: float
) -> Tensor:
    """Return the map for every row of a matrix, whose first ``skip`` columns are ``θ`` and the others ``W``.

    Args:
        w: a real matrix.
        step: ``d ≥ 0``, a number or a tensor that broadcasts to ``w``; an entry with step 0 stays as it is.
        skip: how many columns are ``θ``.
        strength: λ.
        inner: ``μ``.
        bound: ``M ≥ 0``.

    Returns:
        A new tensor of the shape and dtype of ``w``; a row with an entry or a step that is not a number, or
        with an infinite entry, is NaN.

    Example:
        >>> w = torch.tensor([[2.0, 8.0, 1.0], [0.3, 0.2, 0.1]])
        >>> hierarchical_prox(w, 1.0, skip=1, strength=1.0, inner=0.0, bound=2.0)
        tensor([[3.4000, 6.8000, 1.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    wide = at_least_float32(w)
    if not wide.shape[0]:
        return w.clone()
    plain = not isinstance(step, Tensor) or step.numel() == 1
    d = torch.as_tensor(step, dtype=wide.dtype, device=w.device).clamp(max=torch.finfo(wide.dtype).max)
    d = (d.reshape(()) if plain else d).expand_as(wide)
    broken = ~(wide.isfinite() & ~d.isnan()).all(1, keepdim=True)
    # In units of the row's largest weight and step nothing overflows: λ takes up both.
    size, longest = _usable(wide.abs().amax(1, keepdim=True)), _usable(d.amax(1, keepdim=True))
    most = torch.finfo(wide.dtype).max * 1e-6
    price, inner_price = ((longest * c / size).clamp(max=most) for c in (strength, inner))
    unit, d = (wide / size).nan_to_num(0.0, 0.0, 0.0), (d / longest).nan_to_num(0.0)
    theta, d_theta = unit[:, :skip], d[:, :skip]
    rest, d_rest = unit[:, skip:].abs(), d[:, skip:]
    a = torch.where(d_rest > 0, rest - d_rest * inner_price, rest).clamp_min(0.0)
    if plain:  # only the norm of θ counts
        norm = torch.linalg.vector_norm(theta, dim=1, keepdim=True)
        b = _radius(norm, torch.ones_like(norm), a, d_rest, price, bound)
        x = _along(theta, norm, b)
    else:
        b = _radius(theta, d_theta, a, d_rest, price, bound)
        x = _on_sphere(theta, d_theta, b)
    x = torch.where(d_theta == 0, wide[:, :skip], (x * size).to(w.dtype))
    # Within the bound of the θ that is returned, not only of the exact one: rounding must not leave the set.
    y = torch.minimum(torch.minimum(a, bound * b) * size, _limit(x, bound)) * wide[:, skip:].sign()
    y = torch.where(d_rest == 0, wide[:, skip:], y)
    return torch.where(broken, torch.nan, torch.cat([x, y], dim=1)).to(w.dtype) + 0.0


def _radius(theta: Tensor, d: Tensor, a: Tensor, d_rest: Tensor, price: Tensor, bound: float) -> Tensor:
    """Return the best ``b``, as a column.

    Args:
        theta: one row a feature.
        d: its steps.
        a: the absolute values that ``W`` would have without the bound.
        d_rest: the steps of ``W``; what cannot move keeps ``b`` from falling below its ``a/M``.
        price: λ, a column.
        bound: ``M``.
    """
    zero = torch.zeros_like(price)
    free = (d_rest > 0) & (bound > 0)
    needed = a / bound if bound > 0 else torch.zeros_like(a)
    c, order = torch.where(free, needed, 0.0).sort(dim=1, descending=True)
    stiff = torch.finfo(a.dtype).max ** 0.5  # what is stiffer than that does not give way at all
    m = (bound / torch.where(free, d_rest, 1.0) * bound).clamp(max=stiff)
    m = torch.where(free, m, 0.0).gather(1, order)
    sums, pulls = (torch.cat([zero, part.cumsum(1)], dim=1) for part in (m, m * c))
    count = _pieces_above(theta, d, c, sums, pulls, price)
    edges = torch.cat([torch.full_like(zero, torch.inf), c, zero], dim=1)
    upper, lower = edges.gather(1, count), edges.gather(1, count + 1)
    base, slope = price - pulls.gather(1, count), sums.gather(1, count)
    root = _norm_root(theta, 1 + d * slope, d * base)
    root = torch.where(
        _is_above(theta, d, zero, base), 0.0, root
    )  # the row is zero; a root may round to more
    root = torch.minimum(torch.maximum(root, lower), upper)
    held = torch.where(d_rest == 0, needed, 0.0).amax(1, keepdim=True) if a.shape[1] else zero
    return torch.where((d > 0).any(1, keepdim=True), torch.maximum(root, held), root)


def _pieces_above(theta: Tensor, d: Tensor, c: Tensor, sums: Tensor, pulls: Tensor, price: Tensor) -> Tensor:
    """Return how many of each row's sorted ``c`` lie at or above the root, as a column."""
    low = torch.zeros_like(price, dtype=torch.int64)
    high = torch.full_like(low, c.shape[1])
    for _ in range(c.shape[1].bit_length()):
        middle = (low + high + 1) // 2  # the question is whether so many are
        index = (middle - 1).clamp_min(0)
        at = c.gather(1, index)
        tau = price - (pulls.gather(1, index) - at * sums.gather(1, index))
        above = _is_above(theta, d, at, tau) | (middle == 0)
        low, high = torch.where(above, middle, low), torch.where(above, high, middle - 1)
    return low


def _is_above(theta: Tensor, d: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    """Return whether ``b`` is at or above the root, as a column: all ``u ≥ 0`` and ``Σ θ²/u² ≤ 1``."""
    u = b + d * tau
    ratio = torch.where(theta == 0, 0.0, theta.abs() / u)
    return (u >= 0).all(1, keepdim=True) & (ratio.square().sum(1, keepdim=True) <= 1)


def _norm_root(theta: Tensor, slope: Tensor, base: Tensor, iterations: int = 60) -> Tensor:
    """Return the smallest ``s`` with ``Σ_i θ_i²/u_i² ≤ 1``, ``u_i = slope_i·s + base_i ≥ 0``, as a column.

    At ``s = max_i (|θ_i| − base_i)/slope_i`` no term is above 1, and one is 1 or its ``θ`` is zero.  So this
    is the root, or a lower bound from which Newton's method on the concave ``1/‖θ/u‖ − 1`` rises to it.

    Args:
        theta: one row a problem.
        slope: zero or more; where it is 0 the divisor is ``base``.
        base: of any sign.
        iterations: at most so many; a handful are needed.
    """
    size, moves = theta.abs(), slope > 0
    divisor = torch.where(moves, slope, 1.0)
    s = torch.where(moves, (size - base) / divisor, -torch.inf).amax(1, keepdim=True)
    s = torch.where(s.isfinite(), s, 0.0)
    if theta.shape[1] == 1:
        return s
    on = size > 0
    for _ in range(iterations):
        u = torch.maximum(slope * s + base, size)  # rounding aside it is that much
        squares = torch.where(on, size / torch.where(on, u, 1.0), 0.0).square()
        total = squares.sum(1, keepdim=True)
        way = torch.where(on & moves, u / divisor, torch.inf)  # to the pole of each term
        nearest = way.amin(1, keepdim=True)
        usable = nearest.isfinite() & (nearest > 0)
        weight = (squares * torch.where(usable, nearest, 1.0) / way).sum(1, keepdim=True)
        move = (total.sqrt() - 1) * total / torch.where(weight > 0, weight, 1.0) * nearest
        move = torch.where(usable & (weight > 0), move.clamp_min(0.0), 0.0)
        s = s + move
        if not bool((total > 1 + 8 * torch.finfo(theta.dtype).eps).logical_and(move > 0).any()):
            break
    return s


def _along(theta: Tensor, norm: Tensor, b: Tensor) -> Tensor:
    """Return ``θ`` at another norm, along the first axis if it is zero."""
    first = torch.zeros_like(theta)
    first[:, :1] = b
    return torch.where(norm > 0, theta * (b / torch.where(norm > 0, norm, 1.0)), first)


def _on_sphere(theta: Tensor, d: Tensor, b: Tensor) -> Tensor:
    """Return the point with ``‖x‖ = b`` that is nearest to ``θ`` in the metric ``d``: ``θ_i·b/(b + d_i·τ)``.

    If even the smallest ``τ`` leaves that too short, the entry with the largest ``d``, whose ``θ`` is then 0,
    makes up for it.
    """
    tau = _norm_root(theta, d, b.expand_as(theta))
    size = theta.abs()
    on = size > 0
    u = torch.maximum(b + d * tau, size)
    share = torch.where(on, size / torch.where(on, u, 1.0), 0.0)
    missing = (1 - share.square().sum(1, keepdim=True)).clamp_min(0.0).sqrt()
    # Where the largest bound on τ comes from an entry that is not zero, what is missing is rounding.
    first = torch.where(d > 0, (size - b) / torch.where(d > 0, d, 1.0), -torch.inf).argmax(1, keepdim=True)
    open_ended = (theta.gather(1, first) == 0) & (d.gather(1, first) > 0)
    share = share.scatter_add(1, first, torch.where(open_ended, missing, 0.0))
    return torch.where(theta < 0, -share, share) * b


def _limit(theta: Tensor, bound: float) -> Tensor:
    """Return ``M·‖θ‖`` of every row, as a column."""
    size = _usable(theta.abs().amax(1, keepdim=True))
    norm: Tensor = torch.linalg.vector_norm(theta / size, dim=1, keepdim=True) * size
    return (bound * norm).clamp(max=torch.finfo(theta.dtype).max)


def _usable(size: Tensor) -> Tensor:
    """Return the sizes where one can divide by them, else 1."""
    return torch.where((size > 0) & size.isfinite(), size, 1.0)
