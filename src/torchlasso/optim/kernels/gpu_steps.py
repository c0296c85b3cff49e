"""The arithmetic of ``gpu.py`` on the entries of a tensor, as a Triton kernel.

It is that of ``stages.h``; what evidence is can be read in ``evidence.py``.  Comparisons are written so that
NaN comes out as NaN.
"""

# mypy: ignore-errors
# (Triton's language is no Python that a type checker knows.)

from torchlasso.optim.kernels.gpu_scalars import (
    POINTERS,
    R_ACTIVE,
    R_BETA2,
    R_EPS,
    R_FREE,
    R_FRESH,
    R_KEEP,
    R_L2,
    R_LIMIT,
    R_LOOKS,
    R_MEAN,
    R_MEMORY,
    R_METRIC,
    R_MOMENTUM,
    R_NESTEROV,
    R_NONNEGATIVE,
    R_RIDGE,
    R_ROOT,
    R_SCALE,
    R_SHARE,
    R_SIZE,
    R_SQUARE,
    R_UNIT,
    READY,
    RHO,
    VMAX,
    C,
    G,
    M,
    V,
    W,
    jit,
    tl,
)


@jit
def step(
    pointers,
    ready,
    chunks,
    sums,
    T: tl.constexpr,
    F: tl.constexpr,
    ADAM: tl.constexpr,
    FROZEN: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Take the step of one chunk; T is the type in memory, F that of the arithmetic."""
    chunk = tl.program_id(0)
    row, size = tl.load(chunks + 3 * chunk), tl.load(chunks + 3 * chunk + 2)
    p, r, at = pointers + row * POINTERS, ready + row * READY, sums + 2 * chunk
    start = tl.multiple_of(tl.load(chunks + 3 * chunk + 1), BLOCK)
    if tl.load(r + R_ACTIVE) != 0:
        if start + BLOCK <= size:  # a whole chunk can be moved in wide pieces
            end = tl.multiple_of(start + BLOCK, BLOCK)
            _entries(p, r, at, start, end, T, F, ADAM, FROZEN, ALIGN, BLOCK)
        else:
            _entries(p, r, at, start, size, T, F, ADAM, FROZEN, ALIGN, BLOCK)


@jit
def _entries(
    p,
    r,
    sums,
    start,
    end,
    T: tl.constexpr,
    F: tl.constexpr,
    ADAM: tl.constexpr,
    FROZEN: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = start + tl.arange(0, BLOCK)
    here = i < end
    w_at = _tensor(p + W, T, ALIGN)
    stored = tl.load(w_at + i, mask=here, other=0.0).to(F)
    given = tl.load(_tensor(p + G, T, ALIGN) + i, mask=here, other=0.0).to(F) * tl.load(r + R_SCALE)
    marked, rho_at = _beside(i, end, p + RHO), _tensor(p + RHO, F, ALIGN)
    rho = tl.load(rho_at + i, mask=marked, other=4.0)
    alive = tl.abs(rho) > 2
    w = stored
    if T.primitive_bitwidth == 16:
        w = stored + tl.where(alive, tl.abs(rho) - 4, 0.0) * _ulp(stored, T)
    if ADAM:
        x, metric = _adam(p, r, i, end, w, given, T, F, ALIGN)
    else:
        x, metric = _sgd(p, r, i, end, w, given, T, F, ALIGN)
    weighted = _beside(i, end, p + C)
    c = tl.load(_tensor(p + C, F, ALIGN) + i, mask=weighted, other=1.0)
    kept, excluded = c == 0, c == float("inf")
    metric = tl.where(kept | excluded, 0.0, metric * c)

    positive = tl.load(r + R_NONNEGATIVE) != 0
    constrained = tl.where(positive, tl.where(x < 0, 0.0, x), x)
    if FROZEN:
        new = tl.where(alive & (stored != 0), constrained, 0.0)
        after = tl.where(alive, _side(new, rho), rho)
    else:
        new, after = _proximal(r, x, metric, rho, alive, positive)
        new = tl.where(excluded, 0.0, tl.where(kept, constrained, new))
        after = tl.where(excluded, tl.where(alive, _side(rho, rho), rho), after)
        after = tl.where(kept, _side(new, rho), after)
        if tl.load(r + R_LOOKS) != 0:
            counts = marked & (tl.abs(rho) <= 2) & (c > 0) & (c < float("inf"))
            ratio = tl.where(counts, given / (tl.load(r + R_UNIT) * tl.where(counts, c, 1.0)), 0.0)
            tl.store(sums, tl.sum(ratio * ratio, 0))
            tl.store(sums + 1, tl.sum(tl.where(counts, 1.0, 0.0), 0))
    saved = new.to(T)
    back = saved.to(F)
    tl.store(w_at + i, tl.where(back == 0, 0.0, saved), mask=here)  # never -0.0
    if T.primitive_bitwidth == 16:
        left = (new - back) / _ulp(back, T)
        left = tl.where(tl.abs(left) <= 1, left, 0.0)  # beyond, or NaN: the weight overflowed
        after = tl.where(tl.abs(after) > 2, tl.where(after < 0, -4 - left, 4 + left), after)
    tl.store(rho_at + i, after, mask=marked)


@jit
def _beside(i, end, at):
    """Return where there is an entry of a tensor that a row may lack."""
    return i < tl.where(tl.load(at) != 0, end, 0)


@jit
def _tensor(at, T: tl.constexpr, ALIGN: tl.constexpr):
    return tl.multiple_of(tl.load(at).to(tl.pointer_type(T)), ALIGN)


@jit
def _adam(p, r, i, end, w, given, T: tl.constexpr, F: tl.constexpr, ALIGN: tl.constexpr):
    """Return where AdamW moves the weights, and the metric times the slope."""
    here, l2, share = i < end, tl.load(r + R_L2), tl.load(r + R_MEAN)
    grad = given + tl.where(l2 != 0, l2 * w, 0.0)
    m_at, v_at = _tensor(p + M, T, ALIGN), _tensor(p + V, T, ALIGN)
    before = tl.load(m_at + i, mask=here, other=0.0).to(F)
    away = grad - before
    mean = tl.where(share < 0.5, before + share * away, grad - away * (1 - share))
    square = tl.load(v_at + i, mask=here, other=0.0).to(F) * tl.load(r + R_BETA2)
    square = square + tl.load(r + R_SQUARE) * grad * grad
    tl.store(m_at + i, mean.to(T), mask=here)
    tl.store(v_at + i, square.to(T), mask=here)
    extreme, top_at = _beside(i, end, p + VMAX), _tensor(p + VMAX, T, ALIGN)
    top = tl.load(top_at + i, mask=extreme, other=0.0).to(F)
    square = tl.where(extreme & (square <= top), top, square)
    tl.store(top_at + i, square.to(T), mask=extreme)
    divisor = tl.sqrt(square) * tl.load(r + R_ROOT) + tl.load(r + R_EPS)
    x = w * tl.load(r + R_KEEP) - tl.load(r + R_SIZE) * mean / divisor
    return x, tl.load(r + R_METRIC) / divisor


@jit
def _sgd(p, r, i, end, w, given, T: tl.constexpr, F: tl.constexpr, ALIGN: tl.constexpr):
    """Return where SGD moves the weights, and the metric times the slope."""
    l2, momentum = tl.load(r + R_L2), tl.load(r + R_MOMENTUM)
    grad = given + tl.where(l2 != 0, l2 * w, 0.0)
    fresh, nesterov = tl.load(r + R_FRESH) != 0, tl.load(r + R_NESTEROV) != 0
    buffered, m_at = _beside(i, end, p + M), _tensor(p + M, T, ALIGN)
    before = tl.load(m_at + i, mask=buffered, other=0.0).to(F)
    mean = tl.where(fresh, grad, momentum * before + tl.load(r + R_SHARE) * grad)
    tl.store(m_at + i, mean.to(T), mask=buffered)
    along = tl.where(momentum != 0, tl.where(nesterov, grad + momentum * mean, mean), grad)
    return w - tl.load(r + R_SIZE) * along, tl.zeros_like(w) + tl.load(r + R_METRIC)


@jit
def _proximal(r, x, metric, rho, alive, positive):
    """Return the weights and their evidence after the proximal step."""
    free, limit, memory = tl.load(r + R_FREE) != 0, tl.load(r + R_LIMIT), tl.load(r + R_MEMORY)
    bounded = tl.where(limit < metric, limit, metric)
    t = tl.where(free, 0.0, bounded)
    shrunk, ridge = _soft(x, t, positive), tl.load(r + R_RIDGE)
    proximal = tl.where(ridge > 0, shrunk / (1 + tl.where(free, metric, bounded) * ridge), shrunk)

    still = t == 0
    span = tl.where(memory > 0, memory, 1.0)
    gain = tl.where(still, 0.0, x / tl.where(still, 1.0, t * span))
    drift = tl.where(still, 0.0, 1 / span)
    # A weight that dies counts as one whose evidence had been at the edge.
    total = _clamp(rho, 1.0) + gain
    drifted = tl.where(alive, total - tl.where(rho < 0, -drift, drift), _soft(total, drift, positive))
    dies = tl.where(alive, (shrunk * rho <= 0) & (t > 0), tl.abs(drifted) <= 1)
    back = (drifted - tl.where(drifted < 0, -1.0, 1.0)) * (span * t)
    new = tl.where(dies, 0.0, tl.where(alive, proximal, back))
    evidence = tl.where(dies, _clamp(drifted, 1.0), _side(tl.where(alive, shrunk, drifted), rho))
    weighed = memory > 0
    return tl.where(weighed, new, proximal), tl.where(weighed, evidence, _side(proximal, rho))


@jit
def _soft(x, t, positive):
    above = x - t
    return tl.where(positive, tl.where(above < 0, 0.0, above), x - _clamp(x, t))


@jit
def _clamp(x, t):
    return tl.where(x < -t, -t, tl.where(x > t, t, x))


@jit
def _side(new, rho):
    """Return 4 with the sign of the new weight, or of the old evidence where it is zero."""
    return tl.where(tl.where(new == 0, rho, new) < 0, -4.0, 4.0).to(rho.dtype)


@jit
def _ulp(w, T: tl.constexpr):
    """Return the spacing of half-precision numbers around w, but never less than a normal float32."""
    exponent = w.to(tl.int32, bitcast=True) & 0x7F800000
    if tl.bfloat16 == T:
        bits = tl.where(exponent > (8 << 23), exponent - (7 << 23), 1 << 23)
    else:
        bits = tl.where(exponent > (113 << 23), exponent - (10 << 23), 103 << 23)
    return bits.to(tl.float32, bitcast=True)
