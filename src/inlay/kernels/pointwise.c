/* What a layer does between its matrix products, each in one pass over the memory:

       norm             y = w x s,                s = 1 / sqrt(mean(x^2) + eps)         per token
       norm_backward    dx = s h - s^3 mean(h x) x,   h = g w
       gate             y = a f(a) b,             f(a) = 1 / (1 + exp(-a))
       gate_backward    da = g b f(a) (1 + a (1 - f(a))),   db = g a f(a)

       rotate           y1 = x1 c1 - x2 s1,   y2 = x2 c2 + x1 s2        the halves of a head, by the cosines and sines of its token
       rotate_backward  the transpose: y1 = x1 c1 + x2 s2,   y2 = x2 c2 - x1 s1

       add              y = x + w

   A row has an even number of numbers, one that is rotated a multiple of four. In float32 within, whatever the dtype in memory, and rounded once. There are no instructions by name: loops over WIDTH numbers
   side by side, which a compiler turns into those of the variant. Sums have WIDTH parts, in the same order everywhere, so that
   all variants give the same bits.

   What the argument of exp is clamped to leaves f(a) a normal number or nought. */

#include "team.h"

#ifdef __clang__
#define APART
#else
#define APART _Pragma("GCC ivdep") /* what is written is never read */
#endif
#define COMMA , /* between the arguments of one that are arguments of another */

struct job {
    const void *x;    /* (rows, width): x, or a */
    const void *w;    /* (width,): w; or (rows, width): b; or (rows / heads, width): cosines; or (heads, width): what is added */
    const void *g;    /* (rows, width): the gradient of y; or (rows / heads, width): sines */
    void *y;          /* (rows, width): y, dx, or da */
    void *z;          /* (rows, width): db */
    float *s;         /* (rows,) */
    int64_t width, heads;
    float eps;
    int32_t dtype;    /* of all but s */
};

/* Numbers are taken two at a time: of bfloat16 the two of a word, so that nothing moves between lanes; of float32 number i and
   number i + half. */
struct pair {
    float first, second;
};

INLINE struct pair get(const void *values, int dtype, int64_t i, int64_t half) {
    if (dtype == FLOAT32) return (struct pair){((const float *)values)[i], ((const float *)values)[i + half]};
    uint32_t word;
    memcpy(&word, (const char *)values + 4 * i, 4);
    return (struct pair){float_of(word << 16), float_of(word & 0xffff0000)};
}

INLINE void put(void *values, int dtype, int64_t i, int64_t half, float first, float second) {
    if (dtype == FLOAT32) {
        ((float *)values)[i] = first;
        ((float *)values)[i + half] = second;
    } else {
        uint32_t word = (uint32_t)to_bfloat16(second) << 16 | to_bfloat16(first);
        memcpy((char *)values + 4 * i, &word, 4);
    }
}

INLINE void *row_of(const void *values, int dtype, int64_t i) {
    return (char *)values + i * (dtype == FLOAT32 ? 4 : 2);
}

INLINE float sigmoid(float a) {
    float x = -a < -87 ? -87 : -a > 87 ? 87 : -a;
    return 1 / (1 + exponential(x));
}

/* The sum of `first` and `second`, expressions of i, over the pairs of a row. */
#define SUM(sum, setup, first, second)                                  \
    do {                                                                \
        float parts[WIDTH] = {0}, others[WIDTH] = {0};                  \
        int64_t start = 0, i;                                           \
        for (; start + WIDTH <= half; start += WIDTH)                   \
            for (int j = 0; j < WIDTH; j++) {                           \
                i = start + j;                                          \
                setup;                                                  \
                parts[j] = fmaf(first, parts[j]);                       \
                others[j] = fmaf(second, others[j]);                    \
            }                                                           \
        for (i = start; i < half; i++) {                                \
            setup;                                                      \
            parts[i - start] = fmaf(first, parts[i - start]);           \
            others[i - start] = fmaf(second, others[i - start]);        \
        }                                                               \
        sum = total(parts) + total(others);                             \
    } while (0)

INLINE void norm(const struct job *job, int64_t row, int dtype) {
    int64_t width = job->width, half = width / 2;
    const void *x = row_of(job->x, dtype, row * width), *w = job->w;
    void *y = row_of(job->y, dtype, row * width);
    float sum;
    SUM(sum, struct pair p = get(x, dtype, i, half), p.first COMMA p.first, p.second COMMA p.second);
    float s = 1 / sqrtf(sum / width + job->eps);
    job->s[row] = s;
    APART for (int64_t i = 0; i < half; i++) {
        struct pair p = get(x, dtype, i, half), q = get(w, dtype, i, half);
        put(y, dtype, i, half, q.first * (p.first * s), q.second * (p.second * s));
    }
}

INLINE void norm_backward(const struct job *job, int64_t row, int dtype) {
    int64_t width = job->width, half = width / 2;
    const void *x = row_of(job->x, dtype, row * width), *g = row_of(job->g, dtype, row * width), *w = job->w;
    void *y = row_of(job->y, dtype, row * width);
    float sum, s = job->s[row];
    SUM(sum, struct pair p = get(x, dtype, i, half); struct pair q = get(w, dtype, i, half);
        struct pair h = get(g, dtype, i, half), p.first COMMA q.first * h.first, p.second COMMA q.second * h.second);
    float mean = s * s * (sum / width);
    APART for (int64_t i = 0; i < half; i++) {
        struct pair p = get(x, dtype, i, half), q = get(w, dtype, i, half), h = get(g, dtype, i, half);
        put(y, dtype, i, half, s * (h.first * q.first - mean * p.first), s * (h.second * q.second - mean * p.second));
    }
}

INLINE void gate(const struct job *job, int64_t row, int dtype) {
    int64_t width = job->width, half = width / 2;
    const void *a = row_of(job->x, dtype, row * width), *b = row_of(job->w, dtype, row * width);
    void *y = row_of(job->y, dtype, row * width);
    APART for (int64_t i = 0; i < half; i++) {
        struct pair p = get(a, dtype, i, half), q = get(b, dtype, i, half);
        put(y, dtype, i, half, p.first * sigmoid(p.first) * q.first, p.second * sigmoid(p.second) * q.second);
    }
}

INLINE void gate_backward(const struct job *job, int64_t row, int dtype) {
    int64_t width = job->width, half = width / 2;
    const void *a = row_of(job->x, dtype, row * width), *b = row_of(job->w, dtype, row * width);
    const void *g = row_of(job->g, dtype, row * width);
    void *da = row_of(job->y, dtype, row * width), *db = row_of(job->z, dtype, row * width);
    APART for (int64_t i = 0; i < half; i++) {
        struct pair p = get(a, dtype, i, half), q = get(b, dtype, i, half), h = get(g, dtype, i, half);
        float f = sigmoid(p.first), k = sigmoid(p.second);
        put(da, dtype, i, half, h.first * q.first * f * (1 + p.first * (1 - f)),
            h.second * q.second * k * (1 + p.second * (1 - k)));
        put(db, dtype, i, half, h.first * p.first * f, h.second * p.second * k);
    }
}

INLINE void turned(const struct job *job, int64_t row, int dtype, float way) {
    int64_t width = job->width, half = width / 2, quarter = width / 4, token = row / job->heads;
    const void *x = row_of(job->x, dtype, row * width), *others = row_of(x, dtype, half);
    const void *c = row_of(job->w, dtype, token * width), *s = row_of(job->g, dtype, token * width);
    const void *c2 = row_of(c, dtype, half), *s2 = row_of(s, dtype, half);
    const void *forth = way > 0 ? s : s2, *back = way > 0 ? s2 : s;
    void *y = row_of(job->y, dtype, row * width), *rest = row_of(y, dtype, half);
    APART for (int64_t i = 0; i < quarter; i++) {
        struct pair p = get(x, dtype, i, quarter), q = get(others, dtype, i, quarter);
        struct pair k = get(c, dtype, i, quarter), m = get(forth, dtype, i, quarter);
        struct pair l = get(c2, dtype, i, quarter), n = get(back, dtype, i, quarter);
        put(y, dtype, i, quarter, p.first * k.first - way * (q.first * m.first), p.second * k.second - way * (q.second * m.second));
        put(rest, dtype, i, quarter, q.first * l.first + way * (p.first * n.first),
            q.second * l.second + way * (p.second * n.second));
    }
}

INLINE void rotate(const struct job *job, int64_t row, int dtype) { turned(job, row, dtype, 1); }
INLINE void rotate_backward(const struct job *job, int64_t row, int dtype) { turned(job, row, dtype, -1); }

/* x may be y. */
INLINE void add(const struct job *job, int64_t row, int dtype) {
    int64_t width = job->width, half = width / 2;
    const void *x = row_of(job->x, dtype, row * width), *w = row_of(job->w, dtype, row % job->heads * width);
    void *y = row_of(job->y, dtype, row * width);
    APART for (int64_t i = 0; i < half; i++) {
        struct pair p = get(x, dtype, i, half), q = get(w, dtype, i, half);
        put(y, dtype, i, half, p.first + q.first, p.second + q.second);
    }
}

/* The ranges of a function for one variant, its dtype known to the compiler. */
#define RANGE(function, variant, target)                                                                  \
    target static void function##_##variant(const struct job *job, int64_t start, int64_t stop) {         \
        if (job->dtype == FLOAT32)                                                                        \
            for (int64_t row = start; row < stop; row++) function(job, row, FLOAT32);                     \
        else                                                                                              \
            for (int64_t row = start; row < stop; row++) function(job, row, BFLOAT16);                    \
    }
#define VARIANT(variant, target)           \
    RANGE(norm, variant, target)           \
    RANGE(norm_backward, variant, target)  \
    RANGE(gate, variant, target)           \
    RANGE(gate_backward, variant, target)  \
    RANGE(rotate, variant, target)         \
    RANGE(rotate_backward, variant, target) \
    RANGE(add, variant, target)
#define ROW(variant)                                                                                 \
    {norm_##variant, norm_backward_##variant, gate_##variant, gate_backward_##variant, rotate_##variant, \
     rotate_backward_##variant, add_##variant}

VARIANT(plain, )
#ifdef __x86_64__
VARIANT(avx2, __attribute__((target("avx2,fma,f16c"))))
VARIANT(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif

static range *const RANGES[VARIANTS][7] = {
    [PLAIN] = ROW(plain),
#ifdef __x86_64__
    [AVX2_FMA_F16C] = ROW(avx2),
    [AVX512_F_BW_DQ_VL] = ROW(avx512),
#endif
    [NEON] = ROW(plain), /* which compilers for such processors vectorise */
};

/* The caller's idea of a job has to be of this size. */
int inlay_pointwise_job_bytes(void) { return sizeof(struct job); }

/* Rows 0 <= row < total of a job; `omp` is GOMP_parallel, or NULL for one thread. */
void inlay_pointwise_run(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads,
                         parallel *omp) {
    share(RANGES[variant][function], job, total, chunk, threads, omp);
}
