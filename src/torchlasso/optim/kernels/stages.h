/* The step of one entry, and the loops over it, written once and included for each storage type.
 *
 * T is the type in memory, C the one of the arithmetic and U the integer of its size.  ULP exists for types of
 * two bytes: there the rho of an alive weight also holds what rounding has left, in units in the last place.
 * Where it pays, one loop does all that happens to an entry: the divisions of Adam leave the processor time
 * for the rest.  Comparisons are written so that NaN comes out as NaN, and no weight is saved as -0.0.
 */

/* The scalars of a row in the type of the arithmetic. */
struct FN(scalars) {
    C scale, decay, l2, mean, keep, square, step_size, root, eps;
    C lr, momentum, share;         /* SGD */
    C unit, to_metric, to_inverse; /* the slope (the ridge where it is 0): the metric is counted in it */
    C metric, inverse, limit, bound, ridge, knee, epsilon, memory, rate, edge;
    U lerp_far, momentous, fresh, nesterov, extreme, weighted, free, nonnegative, ridged, kneed, curved; /* masks */
};

/* Choices are made with masks of all ones or none: no loop with a branch in it becomes one over vectors. */
INLINE U FN(mask)(int condition) { return -(U)(condition != 0); }
INLINE C FN(pick)(U mask, C a, C b) { return NUMBER((BITS(a) & mask) | (BITS(b) & ~mask)); }

INLINE struct FN(scalars) FN(scalars_of)(const struct call *call, const struct row *row) {
    const struct settings *group = &call->settings[row->group];
    const int decoupled = group->decoupled;
    const double unit = row->slope > 0 ? row->slope : row->ridge;
    const C to_metric = (C)group->lr * (C)unit, metric = (C)row->metric * (C)unit, rate = 1 / (C)row->memory;
    struct FN(scalars) s = {
        .scale = (C)(group->maximize ? -call->scale : call->scale),
        .decay = (C)(decoupled ? 1 - group->lr * group->weight_decay : 1),
        .l2 = (C)(decoupled ? 0 : group->weight_decay),
        .mean = (C)(1 - group->beta1),
        .keep = (C)group->beta2,
        .square = (C)(1 - group->beta2),
        .step_size = (C)row->step_size,
        .root = (C)row->root,
        .eps = (C)group->eps,
        .lr = (C)group->lr,
        .momentum = (C)group->momentum,
        .share = (C)(1 - group->dampening),
        .unit = (C)unit,
        .to_metric = to_metric,
        .to_inverse = rate / to_metric,
        .metric = metric,
        .inverse = rate / metric,
        .limit = (C)row->limit,
        .bound = rate / (C)row->limit,
        .ridge = (C)(row->slope > 0 ? row->ridge / row->slope : row->ridge > 0),
        .knee = (C)row->knee,
        .epsilon = (C)row->epsilon,
        .memory = (C)row->memory,
        .rate = rate,
        .edge = 1 - rate,
        .lerp_far = FN(mask)(1 - group->beta1 >= 0.5),
        .momentous = FN(mask)(group->momentum != 0),
        .fresh = FN(mask)(row->fresh),
        .nesterov = FN(mask)(group->nesterov),
        .extreme = FN(mask)(row->vmax != NULL),
        .weighted = FN(mask)(row->c != NULL),
        .free = FN(mask)(row->slope == 0),
        .nonnegative = FN(mask)(row->nonnegative),
        .ridged = FN(mask)(row->ridge > 0),
        .kneed = FN(mask)(row->knee > 0),
        .curved = FN(mask)(row->epsilon > 0),
    };
    return s;
}

/* The tensors of a row from some entry on.  None is null: what a row lacks is a block of scratch memory. */
struct FN(tensors) {
    T *w, *m, *v, *vmax;
    const T *g;
    const C *c, *d;
    C *rho, *x, *a, *q;
};

/* Where the optimizer moves a weight; a: the metric times the slope; q: 1/(a·memory). */
struct FN(moved) {
    C x, a, q;
};

/* ---- numbers --------------------------------------------------------------------------------------------- */

/* NaN in the second argument comes out; x86 has one instruction for each of these. */
INLINE C FN(least)(C a, C b) { return a < b ? a : b; }
INLINE C FN(most)(C a, C b) { return a > b ? a : b; }
INLINE C FN(clamp)(C x, C t) { return FN(least)(t, FN(most)(-t, x)); }
INLINE C FN(soft)(C x, C t, const int nonnegative) {
    return nonnegative ? FN(most)(0, x - t) : x - FN(clamp)(x, t);
}

INLINE U FN(alive)(C rho) { return FN(mask)(ABS(rho) > 2); }
INLINE C FN(side)(C new, C rho) { return COPYSIGN((C)4, FN(pick)(FN(mask)(new == 0), rho, new)); }

#ifdef ULP
INLINE C FN(widened)(T stored, C rho) {
    const C w = LOAD(stored);
    return w + FN(pick)(FN(alive)(rho), ABS(rho) - 4, 0) * ULP(w);
}
INLINE C FN(rest)(C wide, T stored, C rho) {
    const C w = LOAD(stored), left = (wide - w) / ULP(w);
    const C whole = FN(pick)(FN(mask)(ABS(left) <= 1), left, 0); /* beyond, or NaN: the weight overflowed */
    return FN(pick)(FN(alive)(rho), COPYSIGN(4 + whole, rho), rho);
}
#else
INLINE C FN(widened)(T stored, C rho) { return (void)rho, stored; }
INLINE C FN(rest)(C wide, T stored, C rho) { return (void)wide, (void)stored, rho; }
#endif

/* ---- the optimizer's own step, or the metric of one that was taken elsewhere ----------------------------- */

INLINE struct FN(moved) FN(adam)(const struct FN(scalars) s, const struct FN(tensors) t, int64_t i, C w,
                                 const int usual) {
    C grad = LOAD(t.g[i]) * s.scale;
    if (!usual) grad += FN(pick)(FN(mask)(s.l2 != 0), s.l2 * w, 0);
    C mean = LOAD(t.m[i]), difference = grad - mean;
    mean += s.mean * difference;
    if (!usual) mean = FN(pick)(s.lerp_far, grad - difference * (1 - s.mean), mean);
    C square = LOAD(t.v[i]) * s.keep + s.square * grad * grad;
    t.m[i] = SAVE(mean);
    t.v[i] = SAVE(square);
    if (!usual) {
        C before = LOAD(t.vmax[i]);
        C highest = FN(pick)(FN(mask)(square > before) | FN(mask)(square != square), square, before);
        square = FN(pick)(s.extreme, highest, square);
        t.vmax[i] = SAVE(square);
    }
    const C divisor = SQRT(square) * s.root + s.eps, inverse = 1 / divisor;
    return (struct FN(moved)){w * s.decay - s.step_size * mean * inverse, s.to_metric * inverse,
                              s.to_inverse * divisor};
}

INLINE struct FN(moved) FN(sgd)(const struct FN(scalars) s, const struct FN(tensors) t, int64_t i, C w,
                                const int usual) {
    C grad = LOAD(t.g[i]) * s.scale;
    if (!usual) grad += FN(pick)(FN(mask)(s.l2 != 0), s.l2 * w, 0);
    const C average = s.momentum * LOAD(t.m[i]) + s.share * grad;
    const C mean = usual ? average : FN(pick)(s.fresh, grad, average);
    t.m[i] = SAVE(mean);
    C along = mean;
    if (!usual) along = FN(pick)(s.momentous, FN(pick)(s.nesterov, grad + s.momentum * mean, mean), grad);
    return (struct FN(moved)){w - s.lr * along, s.metric, s.inverse};
}

INLINE struct FN(moved) FN(adam_metric)(const struct FN(scalars) s, const struct FN(tensors) t, int64_t i, C w,
                                        const int usual) {
    C square = LOAD(t.v[i]);
    if (!usual) square = FN(pick)(s.extreme, LOAD(t.vmax[i]), square);
    const C divisor = SQRT(square) * s.root + s.eps;
    return (struct FN(moved)){w, s.to_metric / divisor, s.to_inverse * divisor};
}

INLINE struct FN(moved) FN(metric)(const struct FN(scalars) s, const struct FN(tensors) t, int64_t i, C w,
                                   const int kind) {
    const C each = s.unit * t.d[i];
    if (kind == SHRINK) return (struct FN(moved)){w, s.metric, s.inverse};
    return (struct FN(moved)){w, each, s.rate / each};
}

/* ---- the proximal step ----------------------------------------------------------------------------------- */

INLINE C FN(shrunk)(const struct FN(scalars) s, C x, C t, const int usual) {
    const C both = FN(soft)(x, t, 0);
    return usual ? both : FN(pick)(s.nonnegative, FN(soft)(x, t, 1), both);
}

INLINE C FN(ridge)(const struct FN(scalars) s, C x, C a, const int usual) {
    return usual ? x : FN(pick)(s.ridged, x / (1 + a * s.ridge), x);
}

INLINE C FN(constrained)(const struct FN(scalars) s, C x) {
    return FN(pick)(s.nonnegative & FN(mask)(x < 0), 0, x);
}

/* Firm thresholding: the slope falls to 0 at the knee.  Hard where the metric makes the problem concave. */
INLINE C FN(firm)(C size, C t, C knee) {
    const C slowed = FN(most)(0, size - t) / FN(most)((C)1e-30, 1 - t / knee);
    return t >= knee ? (size <= SQRT(t * knee) ? 0 : size) : size < knee ? slowed : size;
}

/* log(x) of a normal x ≥ 1 as its exponent and a series of its mantissa, to about 1e-10. */
INLINE C FN(logarithm)(C x) {
    const U exponent = BITS(x) >> MANTISSA, bias = BITS((C)1) >> MANTISSA;
    const C m = NUMBER((BITS(x) & (((U)1 << MANTISSA) - 1)) | BITS((C)1)), z = (m - 1) / (m + 1), y = z * z;
    C sum = (C)1 / 19;
    for (int odd = 17; odd > 0; odd -= 2) sum = sum * y + (C)1 / odd;
    return (C)(int32_t)(exponent - bias) * (C)0.69314718055994531 + 2 * z * sum;
}

/* The log-sum penalty: see log_threshold in proximal/nonconvex.py. */
INLINE C FN(reweighted)(C size, C t, C epsilon) {
    const C both = size + epsilon, q = 4 * (t / both) * (epsilon / both);
    const C root = SQRT(FN(most)(0, 1 - q)), soft = FN(most)(0, size - t), ratio = size / epsilon;
    const C below = 2 * soft / ((1 - ratio) + (1 + ratio) * root);
    const C above = (C)0.5 * (size - epsilon) + (C)0.5 * both * root;
    const C x = FN(most)(soft, FN(least)(size, size < epsilon ? below : above));
    const C gain = (C)0.5 * x * x - size * x + t * epsilon * FN(logarithm)(1 + x / epsilon);
    const U local = FN(mask)(size <= t) & FN(mask)(gain >= 0), none = FN(mask)(q > 1);
    return FN(pick)(local | none, 0, x);
}

/* A slope that falls with the weight; the step moves it by no more than the limit. */
INLINE C FN(concave)(const struct FN(scalars) s, C x, C t, C knee, const int shape) {
    const C size = shape == KNEED ? FN(firm)(ABS(x), t, knee) : FN(reweighted)(ABS(x), t, s.epsilon);
    const C new = COPYSIGN(size, x);
    return FN(constrained)(s, FN(most)(x - s.limit, FN(least)(x + s.limit, new)));
}

INLINE C FN(thresholded)(const struct FN(scalars) s, struct FN(moved) to, C t, C knee, const int usual,
                         const int shape) {
    return shape == STRAIGHT ? FN(shrunk)(s, to.x, t, usual) : FN(concave)(s, to.x, to.a, knee, shape);
}

INLINE C FN(prox)(const struct FN(scalars) s, struct FN(moved) to, C knee, const int usual,
                  const int shape) {
    C a = FN(least)(s.limit, to.a), t = a;
    if (!usual) a = FN(pick)(s.free, to.a, a), t = FN(pick)(s.free, 0, t);
    return FN(ridge)(s, FN(thresholded)(s, to, t, knee, usual, shape), a, usual);
}

/* See evidence.py for what is done here and why. */
INLINE C FN(weigh)(const struct FN(scalars) s, struct FN(moved) to, C knee, C one, C *rho,
                   const int usual, const int shape) {
    const C t = FN(least)(s.limit, to.a), old = *rho;
    C gain = to.x * FN(most)(s.bound, to.q), drift = s.rate;
    const U still = usual ? 0 : FN(mask)(t == 0); /* where the metric is 0 nothing has moved */
    if (!usual) gain = FN(pick)(still, 0, gain), drift = FN(pick)(still, 0, drift);
    const int alive = ABS(old) > 2;
    const C shrunk = FN(thresholded)(s, to, t, knee, usual, shape);
    /* A weight that dies counts as one whose evidence had been at the edge. */
    const C sum = FN(clamp)(old, one) + gain;
    C drifted = alive ? sum - COPYSIGN(drift, old) : FN(shrunk)(s, sum, drift, usual);
    if (!usual) drifted = FN(pick)(still, sum, drifted);
    const C now = alive ? shrunk : drifted, side = COPYSIGN((C)4, now);
    const C back = (drifted - COPYSIGN((C)1, now)) * (s.memory * t);
    /* Not above 0 for a weight that is dead from now on: it crossed zero, or its evidence is inside. */
    C life = alive ? shrunk * old : ABS(drifted) - 1;
    if (!usual) life = FN(pick)(still & FN(alive)(old), 1, life);
    const C new = alive ? FN(ridge)(s, shrunk, t, usual) : back;
    *rho = life <= 0 ? FN(clamp)(drifted, one) : side;
    return life <= 0 ? 0 : new;
}

/* ---- loops over a block ---------------------------------------------------------------------------------- */

INLINE struct FN(moved) FN(moved_by)(const struct FN(scalars) s, const struct FN(tensors) t, int64_t i, C rho,
                                     const int kind, const int usual) {
    const C w = FN(widened)(t.w[i], rho);
    return kind == STEP_ADAM     ? FN(adam)(s, t, i, w, usual)
           : kind == STEP_SGD    ? FN(sgd)(s, t, i, w, usual)
           : kind == SHRINK_ADAM ? FN(adam_metric)(s, t, i, w, usual)
                                 : FN(metric)(s, t, i, w, kind);
}

INLINE void FN(put)(const struct FN(tensors) t, int64_t i, C new, C rho) {
    const T saved = SAVE(new + 0);
    t.w[i] = saved;
    t.rho[i] = FN(rest)(new, saved, rho);
}

/* The usual case in one loop: kind and evidence are constants, and so each combination a loop of its own. */
INLINE void FN(usual)(const struct FN(scalars) s, const struct FN(tensors) t, int64_t n, const int kind,
                      const int evidence) {
    C one = 1;
    HIDE(one); /* clamping between constants would cost three comparisons */
    INDEPENDENT
    for (int64_t i = 0; i < n; i++) {
        C rho = evidence ? t.rho[i] : 4;
        const struct FN(moved) to = FN(moved_by)(s, t, i, rho, kind, 1);
        if (evidence) {
            const C new = FN(weigh)(s, to, 0, one, &rho, 1, STRAIGHT);
            FN(put)(t, i, new, rho);
        } else {
            t.w[i] = SAVE(FN(prox)(s, to, 0, 1, STRAIGHT) + 0);
        }
    }
}

/* Any other case, and Adam's with evidence, in two loops: too much would have to wait for each division. */
INLINE void FN(move)(const struct FN(scalars) s, const struct FN(tensors) t, int64_t n, const int kind,
                     const int usual) {
    INDEPENDENT
    for (int64_t i = 0; i < n; i++) {
        struct FN(moved) to = FN(moved_by)(s, t, i, t.rho[i], kind, usual);
        if (!usual) {
            const C c = t.c[i];
            to.a = FN(pick)(FN(mask)(c > 0), to.a * c, 0);
            to.q = FN(pick)(s.weighted, to.q / c, to.q);
        }
        t.x[i] = to.x;
        t.a[i] = to.a;
        t.q[i] = to.q;
    }
}

INLINE C FN(settled)(const struct FN(scalars) s, const struct FN(tensors) t, int64_t i, C one, C *rho,
                     const int mode, const int usual, const int shape) {
    const struct FN(moved) to = {t.x[i], t.a[i], t.q[i]};
    if (usual) return FN(weigh)(s, to, 0, one, rho, 1, STRAIGHT);
    if (mode == FROZEN) {
        const U alive = FN(alive)(*rho), zero = FN(mask)(LOAD(t.w[i]) == 0);
        const C new = FN(pick)(alive & ~zero, FN(constrained)(s, to.x), 0);
        *rho = FN(pick)(alive, FN(side)(new, *rho), *rho);
        return new;
    }
    const U kept = FN(mask)(t.c[i] == 0), excluded = FN(mask)(t.c[i] == (C)INFINITY);
    const C old = *rho, knee = s.knee * t.c[i];
    C new = mode == WEIGHED ? FN(weigh)(s, to, knee, one, rho, 0, shape)
                               : FN(prox)(s, to, knee, 0, shape);
    new = FN(pick)(excluded, 0, FN(pick)(kept, FN(constrained)(s, to.x), new));
    *rho = FN(pick)(kept | excluded | FN(mask)(mode == MARKED), FN(side)(new, old), *rho);
    return new;
}

INLINE void FN(settle)(const struct FN(scalars) s, const struct FN(tensors) t, int64_t n, const int mode,
                       const int usual, const int shape) {
    C one = 1;
    HIDE(one);
    INDEPENDENT
    for (int64_t i = 0; i < n; i++) {
        C rho = t.rho[i];
        const C new = FN(settled)(s, t, i, one, &rho, mode, usual, shape);
        FN(put)(t, i, new, rho);
    }
}

/* Choose the loops. */
INLINE void FN(block)(const struct FN(scalars) s, const struct FN(tensors) t, int64_t n, int kind, int mode,
                      int usual) {
    if (usual && mode == PLAIN) {
        switch (kind) {
            case STEP_ADAM: FN(usual)(s, t, n, STEP_ADAM, 0); return;
            case STEP_SGD: FN(usual)(s, t, n, STEP_SGD, 0); return;
            case SHRINK_ADAM: FN(usual)(s, t, n, SHRINK_ADAM, 0); return;
            default: FN(usual)(s, t, n, SHRINK, 0); return;
        }
    }
    if (usual) {
        switch (kind) {
            case STEP_ADAM: FN(move)(s, t, n, STEP_ADAM, 1); FN(settle)(s, t, n, WEIGHED, 1, STRAIGHT); return;
            case STEP_SGD: FN(usual)(s, t, n, STEP_SGD, 1); return;
            case SHRINK_ADAM: FN(usual)(s, t, n, SHRINK_ADAM, 1); return;
            default: FN(usual)(s, t, n, SHRINK, 1); return;
        }
    }
    switch (kind) {
        case STEP_ADAM: FN(move)(s, t, n, STEP_ADAM, 0); break;
        case STEP_SGD: FN(move)(s, t, n, STEP_SGD, 0); break;
        case SHRINK_ADAM: FN(move)(s, t, n, SHRINK_ADAM, 0); break;
        case SHRINK: FN(move)(s, t, n, SHRINK, 0); break;
        default: FN(move)(s, t, n, SHRINK_EACH, 0);
    }
    switch (mode) {
        case FROZEN: FN(settle)(s, t, n, FROZEN, 0, STRAIGHT); return;
        case WEIGHED:
            if (s.kneed) FN(settle)(s, t, n, WEIGHED, 0, KNEED);
            else if (s.curved) FN(settle)(s, t, n, WEIGHED, 0, CURVED);
            else FN(settle)(s, t, n, WEIGHED, 0, STRAIGHT);
            return;
        default:
            if (s.kneed) FN(settle)(s, t, n, MARKED, 0, KNEED);
            else if (s.curved) FN(settle)(s, t, n, MARKED, 0, CURVED);
            else FN(settle)(s, t, n, MARKED, 0, STRAIGHT);
    }
}

/* Add up the squares of gradient over slope of the dead weights that are penalised, pairwise: in the same
 * order on any processor. */
INLINE void FN(count)(const struct FN(scalars) s, const struct FN(tensors) t, int64_t n, struct chunk *chunk) {
    C squares[BLOCK];
    int32_t dead = 0;
    INDEPENDENT
    for (int64_t i = 0; i < n; i++) {
        const C c = t.c[i], share = LOAD(t.g[i]) * s.scale / (s.unit * c);
        const U counts = ~FN(alive)(t.rho[i]) & FN(mask)(c > 0) & FN(mask)(c < (C)INFINITY);
        squares[i] = FN(pick)(counts, share * share, 0);
        dead += (int32_t)(counts & 1);
    }
    for (int64_t i = n; i < BLOCK; i++) squares[i] = 0;
    for (int64_t half = BLOCK / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; i++) squares[i] += squares[i + half];
    chunk->noise += squares[0];
    chunk->dead += dead;
}

INLINE int FN(is_usual)(const struct FN(scalars) s, int kind, int mode) {
    if (kind == STEP_ADAM && (s.lerp_far || s.extreme || s.l2 != 0)) return 0;
    if (kind == STEP_SGD && (!s.momentous || s.fresh || s.nesterov || s.l2 != 0)) return 0;
    if (kind == SHRINK_EACH || (kind == SHRINK_ADAM && s.extreme)) return 0;
    return !s.free && !s.weighted && !s.nonnegative && !s.ridged && !s.kneed &&
           !s.curved && (mode == PLAIN || mode == WEIGHED);
}

/* ---- a chunk, block by block ----------------------------------------------------------------------------- */

VECTORS static void FN(chunk)(const struct call *call, const struct row *row, struct chunk *chunk) {
    const struct FN(scalars) s = FN(scalars_of)(call, row);
    const int kind = call->kind == SHRINK && row->d != NULL ? SHRINK_EACH : call->kind;
    const int evidence = row->rho != NULL && row->memory > 0 && row->slope != 0;
    const C metric = kind == STEP_ADAM || kind == SHRINK_ADAM ? s.to_metric : s.metric;
    /* Without a metric nothing has moved, and nothing is decided. */
    const int still = kind != SHRINK_EACH && row->slope > 0 && metric == 0;
    const int mode = call->frozen || still ? FROZEN : evidence ? WEIGHED : row->rho ? MARKED : PLAIN;
    const int usual = FN(is_usual)(s, kind, mode), counted = call->noise && mode == WEIGHED && row->g;
    T unused[BLOCK];
    C ones[BLOCK], rho[BLOCK], x[BLOCK], a[BLOCK], q[BLOCK];
    if (!usual || counted) {
        memset(unused, 0, sizeof unused);
        for (int i = 0; i < BLOCK; i++) ones[i] = 1;
    }
    for (int64_t at = chunk->start, end = at + chunk->length; at < end; at += BLOCK) {
        const int64_t n = end - at < BLOCK ? end - at : BLOCK;
#define PART(type, pointer, otherwise) (row->pointer ? (type *)row->pointer + at : (otherwise))
        const struct FN(tensors) t = {.w = PART(T, w, NULL),
                                      .m = PART(T, m, unused),
                                      .v = PART(T, v, unused),
                                      .vmax = PART(T, vmax, unused),
                                      .g = PART(const T, g, unused),
                                      .c = PART(const C, c, ones),
                                      .d = PART(const C, d, ones),
                                      .rho = PART(C, rho, rho),
                                      .x = x,
                                      .a = a,
                                      .q = q};
#undef PART
        if (!usual && !row->rho)
            for (int i = 0; i < BLOCK; i++) rho[i] = 4;
        if (counted) FN(count)(s, t, n, chunk);
        FN(block)(s, t, n, kind, mode, usual);
    }
}

#undef T
#undef U
#undef BITS
#undef NUMBER
#undef C
#undef FN
#undef LOAD
#undef SAVE
#undef ULP
#undef SQRT
#undef COPYSIGN
#undef ABS
#undef MANTISSA
