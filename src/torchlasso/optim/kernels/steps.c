/* Optimizer steps with their proximal step in one pass over the weights, on the CPU.
 *
 * A call walks over a table: rows are tensors, chunks are their parts, and the threads of a small pool take
 * chunks one after the other.  Whatever is summed is summed chunk by chunk and then in order, so that no
 * result depends on the number of threads.  The layouts below are mirrored in table.py.
 */

#define _POSIX_C_SOURCE 200809L /* for pool.h */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "pool.h"

enum kind { STEP_ADAM, STEP_SGD, SHRINK_ADAM, SHRINK, SHRINK_EACH };
/* Without rho; with it, but nothing dies; with evidence; zeros stay. */
enum mode { PLAIN, MARKED, WEIGHED, FROZEN };
/* Of the penalty: a constant slope, one that is 0 from a knee on, or one that halves at epsilon.  Constants, so
 * that what one of them costs the others do not pay. */
enum shape { STRAIGHT, KNEED, CURVED };
enum dtype { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };

enum { BLOCK = 256 }; /* entries for which scratch memory is at hand */

/* One parameter group of the optimizer. */
struct settings {
    double lr, beta1, beta2, eps, weight_decay, momentum, dampening;
    int32_t decoupled, maximize, nesterov;
};

/* One tensor.  m and v are the optimizer's averages, c the penalty's weights, d an elementwise metric. */
struct row {
    void *w, *g, *m, *v, *vmax, *c, *rho, *d;
    float *step;
    int64_t n;
    double slope, ridge, knee, epsilon, limit, memory, metric;
    int32_t dtype, group, nonnegative, fresh;
    double step_size, root, noise; /* the bias corrections, set here; the sum of squares, for the caller */
    int64_t dead;
};

struct chunk {
    int64_t row, start, length;
    double noise;
    int64_t dead;
};

struct call {
    struct row *rows;
    struct chunk *chunks;
    const struct settings *settings;
    int64_t count; /* of the chunks */
    double scale;  /* of the gradients */
    int32_t kind, frozen, noise;
};

/* ---- numbers of two bytes, in plain integer arithmetic that every compiler turns into vectors ------------ */

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline double double_of(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint64_t bits_of_double(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float load_bfloat16(uint16_t h) { return float_of((uint32_t)h << 16); }

static inline uint16_t save_bfloat16(float x) {
    uint32_t bits = bits_of(x);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t h = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded;
    return (uint16_t)((h & 0x7fffu) ? h : 0u);
}

static inline float load_float16(uint16_t h) {
    uint32_t shifted = (uint32_t)(h & 0x7fffu) << 13, exponent = shifted & 0x0f800000u;
    uint32_t normal = shifted + (exponent == 0x0f800000u ? (224u << 23) : (112u << 23));
    float subnormal = float_of(shifted + (113u << 23)) - float_of(113u << 23);
    uint32_t magnitude = exponent ? normal : bits_of(subnormal);
    return float_of(magnitude | (uint32_t)(h & 0x8000u) << 16);
}

static inline uint16_t save_float16(float x) {
    uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffffu;
    uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t h = magnitude >= (143u << 23) ? special : magnitude < (113u << 23) ? subnormal : normal;
    return (uint16_t)(h ? h | (bits >> 16 & 0x8000u) : 0u);
}

/* The spacing of the numbers around x, but never so small that it is no normal float32. */
static inline float ulp_bfloat16(float x) {
    uint32_t exponent = bits_of(x) & 0x7f800000u;
    return float_of(exponent > (8u << 23) ? exponent - (7u << 23) : 1u << 23);
}

static inline float ulp_float16(float x) {
    uint32_t exponent = bits_of(x) & 0x7f800000u;
    return float_of(exponent > (113u << 23) ? exponent - (10u << 23) : 103u << 23);
}

/* ---- the stages, once for each type ---------------------------------------------------------------------- */

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef VECTORS
#define VECTORS
#endif
#define INLINE static inline __attribute__((always_inline))
#define HIDE(constant) __asm__("" : "+m"(constant))
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

#define T float
#define C float
#define U uint32_t
#define BITS bits_of
#define NUMBER float_of
#define FN(name) name##_float32
#define LOAD(x) (x)
#define SAVE(x) (x)
#define SQRT sqrtf
#define COPYSIGN copysignf
#define ABS fabsf
#define MANTISSA 23
#include "stages.h"

#define T double
#define C double
#define U uint64_t
#define BITS bits_of_double
#define NUMBER double_of
#define FN(name) name##_float64
#define LOAD(x) (x)
#define SAVE(x) (x)
#define SQRT sqrt
#define COPYSIGN copysign
#define ABS fabs
#define MANTISSA 52
#include "stages.h"

#define T uint16_t
#define C float
#define U uint32_t
#define BITS bits_of
#define NUMBER float_of
#define FN(name) name##_bfloat16
#define LOAD(x) load_bfloat16(x)
#define SAVE(x) save_bfloat16(x)
#define ULP(x) ulp_bfloat16(x)
#define SQRT sqrtf
#define COPYSIGN copysignf
#define ABS fabsf
#define MANTISSA 23
#include "stages.h"

#define T uint16_t
#define C float
#define U uint32_t
#define BITS bits_of
#define NUMBER float_of
#define FN(name) name##_float16
#define LOAD(x) load_float16(x)
#define SAVE(x) save_float16(x)
#define ULP(x) ulp_float16(x)
#define SQRT sqrtf
#define COPYSIGN copysignf
#define ABS fabsf
#define MANTISSA 23
#include "stages.h"

/* ---- the walk over the table ----------------------------------------------------------------------------- */

/* A row that lacks what its step needs is left alone. */
static int moves(const struct call *call, const struct row *row) {
    switch (call->kind) {
        case STEP_ADAM: return row->w && row->g && row->m && row->v && row->step;
        case STEP_SGD: return row->w && row->g && (row->m || call->settings[row->group].momentum == 0);
        case SHRINK_ADAM: return row->w && row->v && row->step;
        default: return row->w != NULL;
    }
}

static void walk(void *context, int64_t index) {
    const struct call *call = context;
    /* What an optimizer wrote last is still in the cache. */
    struct chunk *chunk = &call->chunks[call->kind >= SHRINK_ADAM ? call->count - 1 - index : index];
    const struct row *row = &call->rows[chunk->row];
    chunk->noise = 0;
    chunk->dead = 0;
    if (!moves(call, row)) return;
    switch (row->dtype) {
        case FLOAT32: chunk_float32(call, row, chunk); break;
        case FLOAT64: chunk_float64(call, row, chunk); break;
        case BFLOAT16: chunk_bfloat16(call, row, chunk); break;
        case FLOAT16: chunk_float16(call, row, chunk); break;
    }
}

/* Count the step and work out the bias corrections, as torch does in double precision. */
static void correct(const struct call *call, int64_t rows) {
    double step = -1, first = 0, second = 0;
    int32_t group = -1;
    for (int64_t i = 0; i < rows; i++) {
        struct row *row = &call->rows[i];
        if (!moves(call, row)) continue;
        if (call->kind == STEP_ADAM) *row->step += 1;
        const struct settings *settings = &call->settings[row->group];
        if (*row->step != step || row->group != group) {
            step = *row->step;
            group = row->group;
            first = 1 - pow(settings->beta1, step);
            second = 1 - pow(settings->beta2, step);
        }
        row->step_size = settings->lr / first;
        row->root = 1 / sqrt(second);
    }
}

void torchlasso_walk(int32_t kind, struct row *rows, int64_t row_count, struct chunk *chunks, int64_t chunk_count,
                     const struct settings *settings, double scale, int32_t frozen, int32_t noise,
                     int32_t threads) {
    struct call call = {rows, chunks, settings, chunk_count, scale, kind, frozen, noise};
    if (kind == STEP_ADAM || kind == SHRINK_ADAM) correct(&call, row_count);
    pool_run(walk, &call, chunk_count, threads);
    if (!noise) return;
    for (int64_t i = 0; i < row_count; i++) rows[i].noise = 0, rows[i].dead = 0;
    for (int64_t i = 0; i < chunk_count; i++) {
        rows[chunks[i].row].noise += chunks[i].noise;
        rows[chunks[i].row].dead += chunks[i].dead;
    }
}

const char *torchlasso_source(void) { return TORCHLASSO_SOURCE; }
