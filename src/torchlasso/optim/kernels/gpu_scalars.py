"""Triton kernels for the scalars of each row of the GPU's table: before a step, and after it."""

# mypy: ignore-errors
# (Triton's language is no Python that a type checker knows.)

from types import SimpleNamespace

try:
    import triton.language as tl
    from triton import jit
except ImportError:  # torch's builds without a GPU do not bring it: then nobody calls what is here
    tl = SimpleNamespace(constexpr=int)

    def jit(function):
        """Return a function as it is."""
        return function


# Columns of the tables; gpu.py has their names in the same order.
W, G, M, V, VMAX, C, RHO, STEP, LR = (tl.constexpr(column) for column in range(9))
POINTERS = tl.constexpr(9)
RATE, BETA1, BETA2, EPS, DECAY, MOMENTUM, DAMPENING = (tl.constexpr(column) for column in range(7))
DECOUPLED, MAXIMIZE, NESTEROV = (tl.constexpr(column) for column in range(7, 10))
SLOPE, RIDGE, MEMORY, NONNEGATIVE, STRETCH = (tl.constexpr(column) for column in range(10, 15))
NUMBERS = tl.constexpr(15)
NOISE, GAIN = (tl.constexpr(column) for column in range(2))
STATES = tl.constexpr(2)
# Columns of the scalars as the step needs them, in the type of its arithmetic.
R_ACTIVE, R_LOOKS, R_SCALE, R_KEEP, R_L2, R_MEAN, R_BETA2, R_SQUARE = (tl.constexpr(c) for c in range(8))
R_SIZE, R_ROOT, R_EPS, R_MOMENTUM, R_SHARE, R_FRESH, R_NESTEROV = (tl.constexpr(c) for c in range(8, 15))
R_FREE, R_UNIT, R_METRIC, R_LIMIT, R_RIDGE, R_MEMORY, R_NONNEGATIVE = (tl.constexpr(c) for c in range(15, 22))
READY = tl.constexpr(22)


@jit
def prepare(
    pointers,
    numbers,
    state,
    clock,
    ready,
    found_inf,
    grad_scale,
    count,
    ADAM: tl.constexpr,
    EVERY: tl.constexpr,
    MARGIN: tl.constexpr,
    LEAST: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count the step, and work out in double precision what is the same for all entries of a row."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = row < count
    p, n, s, r = pointers + row * POINTERS, numbers + row * NUMBERS, state + row * STATES, ready + row * READY
    able = count
    if found_inf is not None:
        able = tl.where(tl.load(found_inf) == 0, count, 0)
    active = (row < able) & (tl.load(p + G, mask=here, other=0) != 0)
    tl.store(r + R_ACTIVE, tl.where(active, 1.0, 0.0), mask=here)
    rate_at = tl.load(p + LR, mask=active, other=0)
    on_device = active & (rate_at != 0)
    rate = tl.load(rate_at.to(tl.pointer_type(tl.float32)), mask=on_device, other=0.0).to(tl.float64)
    lr = tl.where(on_device, rate, tl.load(n + RATE, mask=active, other=0.0))
    slope, ridge = tl.load(n + SLOPE, mask=active, other=0.0), tl.load(n + RIDGE, mask=active, other=0.0)
    free = slope <= 0
    unit = tl.where(free, ridge, slope)
    if ADAM:
        metric = _prepare_adam(p, n, r, lr, active)
        tl.store(r + R_LIMIT, MARGIN * lr, mask=active)
    else:
        metric = _prepare_sgd(n, s, r, lr, active)
        tl.store(r + R_LIMIT, tl.where(active, float("inf"), 0.0), mask=active)
    sign = 1 - 2 * tl.load(n + MAXIMIZE, mask=active, other=0.0)
    if grad_scale is not None:
        sign = sign / tl.load(grad_scale)
    weight_decay = tl.load(n + DECAY, mask=active, other=0.0)
    decoupled = tl.load(n + DECOUPLED, mask=active, other=0.0)
    tl.store(r + R_SCALE, sign, mask=active)
    tl.store(r + R_KEEP, 1 - decoupled * lr * weight_decay, mask=active)
    tl.store(r + R_L2, (1 - decoupled) * weight_decay, mask=active)
    tl.store(r + R_FREE, tl.where(free, 1.0, 0.0), mask=active)
    tl.store(r + R_UNIT, unit, mask=active)
    tl.store(r + R_METRIC, metric * unit, mask=active)
    alone = tl.where(ridge > 0, 1.0, 0.0)
    tl.store(r + R_RIDGE, tl.where(free, alone, ridge / tl.where(free, 1.0, slope)), mask=active)
    tl.store(r + R_NONNEGATIVE, tl.load(n + NONNEGATIVE, mask=active, other=0.0), mask=active)

    steps = tl.load(clock)
    taken = (steps + 1).to(tl.float64)
    wanted = tl.load(n + MEMORY, mask=active, other=0.0)
    automatic = wanted == float("inf")
    noise = tl.load(s + NOISE, mask=active, other=0.0)
    measured = FACTOR * noise
    measured = tl.where(measured > LEAST, measured, LEAST)
    memory = tl.where(automatic, tl.where(noise > 0, measured, taken), wanted)  # 0: nothing was measured yet
    weighed = active & (slope > 0) & (tl.load(p + RHO, mask=active, other=0) != 0)
    memory = tl.where(memory < taken, memory, taken) * tl.load(n + STRETCH, mask=active, other=1.0)
    tl.store(r + R_MEMORY, tl.where(weighed, memory, 0.0), mask=active)
    looking = tl.where(steps % EVERY == 0, count, 0) if EVERY > 0 else 0
    tl.store(r + R_LOOKS, tl.where(weighed & automatic & (row < looking), 1.0, 0.0), mask=here)


@jit
def _prepare_adam(p, n, r, lr, active):
    counter = tl.load(p + STEP, mask=active, other=0).to(tl.pointer_type(tl.float32))
    step = tl.load(counter, mask=active, other=0.0) + 1
    tl.store(counter, step, mask=active)
    beta1, beta2 = tl.load(n + BETA1, mask=active, other=0.5), tl.load(n + BETA2, mask=active, other=0.5)
    times = tl.where(active, step, 1.0).to(tl.float64)
    first, second = 1 - _power(beta1, times), 1 - _power(beta2, times)
    tl.store(r + R_MEAN, 1 - beta1, mask=active)
    tl.store(r + R_BETA2, beta2, mask=active)
    tl.store(r + R_SQUARE, 1 - beta2, mask=active)
    tl.store(r + R_SIZE, lr / first, mask=active)
    tl.store(r + R_ROOT, 1 / tl.sqrt(second), mask=active)
    tl.store(r + R_EPS, tl.load(n + EPS, mask=active, other=0.0), mask=active)
    return lr


@jit
def _power(base, exponent):
    positive = base > 0
    return tl.where(positive, tl.exp(exponent * tl.log(tl.where(positive, base, 1.0))), 0.0)


@jit
def _prepare_sgd(n, s, r, lr, active):
    momentum, dampening = (
        tl.load(n + MOMENTUM, mask=active, other=0.0),
        tl.load(n + DAMPENING, mask=active, other=0.0),
    )
    nesterov = tl.load(n + NESTEROV, mask=active, other=0.0)
    before = tl.load(s + GAIN, mask=active, other=1.0)
    fresh = before == 0  # torch's buffer begins as the gradient
    gain = tl.where(fresh, 1.0, momentum * before + 1 - dampening)
    tl.store(s + GAIN, gain, mask=active & (momentum != 0))
    tl.store(r + R_SIZE, lr, mask=active)
    tl.store(r + R_MOMENTUM, momentum, mask=active)
    tl.store(r + R_SHARE, 1 - dampening, mask=active)
    tl.store(r + R_FRESH, tl.where(fresh, 1.0, 0.0), mask=active)
    tl.store(r + R_NESTEROV, nesterov, mask=active)
    along = tl.where(nesterov != 0, 1 + momentum * gain, gain)
    return lr * tl.where(momentum != 0, along, 1.0)


@jit
def conclude(state, clock, ready, spans, sums, found_inf, SMOOTHING: tl.constexpr, BLOCK: tl.constexpr):
    """Take what the step saw of the gradient noise into its average, chunk by chunk, and count the step."""
    row = tl.program_id(0)
    if tl.load(ready + row * READY + R_LOOKS) != 0:
        first, last = tl.load(spans + 2 * row), tl.load(spans + 2 * row + 1)
        squares, counts = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
        for at in range(first, last, BLOCK):
            i = at + tl.arange(0, BLOCK)
            squares += tl.load(sums + 2 * i, mask=i < last, other=0.0).to(tl.float64)
            counts += tl.load(sums + 2 * i + 1, mask=i < last, other=0.0).to(tl.float64)
        square, count = tl.sum(squares, 0), tl.sum(counts, 0)
        mean = square / tl.where(count > 0, count, 1.0)
        before = tl.load(state + row * STATES + NOISE)
        average = tl.where(before == 0, mean, SMOOTHING * before + (1 - SMOOTHING) * mean)
        seen = (count > 0) & (mean < float("inf"))
        tl.store(state + row * STATES + NOISE, tl.where(seen, average, before))
    if row == 0:
        counted = tl.load(clock) + 1
        if found_inf is not None:
            counted = tl.where(tl.load(found_inf) == 0, counted, counted - 1)
        tl.store(clock, counted)
