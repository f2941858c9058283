/* The kernel of low_rank.h: alone, or in one go with the product that it adds to. */

#include "low_rank.h"

#include <stdlib.h>

enum { ROWS = 4, PARTS = 4, MOST_RANK = 1024, BLOCK = ROWS * WIDTH, AHEAD = 4 };

#define UNROLL _Pragma("GCC unroll 4")

/* What numbers i to i + count of x and of `rows` ranks of A, from k on, add to sums. */
INLINE void add_down(lanes *sums, const void *x, const void *A, int64_t in, int64_t k, const int rows, int64_t i, int64_t count,
                     int dtype) {
    lanes here, a;
    get_lanes(&here, x, dtype, i, count);
    UNROLL for (int r = 0; r < rows; r++) {
        get_lanes(&a, A, dtype, (k + r) * in + i, count);
        sums[r] += here * a;
    }
}

/* scaling x A^T, `rows` ranks from k on. */
INLINE void down(const void *x, const void *A, int64_t in, int64_t k, const int rows, float scaling, float *h, int dtype) {
    lanes sums[ROWS] = {0};
    int64_t i = 0;
    for (; i + WIDTH <= in; i += WIDTH) add_down(sums, x, A, in, k, rows, i, WIDTH, dtype);
    if (i < in) add_down(sums, x, A, in, k, rows, i, in - i, dtype);
    UNROLL for (int r = 0; r < rows; r++) h[k + r] = scaling * sum_of(&sums[r]);
}

/* How many numbers a line has. */
INLINE int64_t line_of(int dtype) { return dtype == FLOAT32 ? LINE / 4 : LINE / 2; }

/* Where column o of rank k is in B^T. */
INLINE int64_t place(int64_t rank, int64_t k, int64_t o, int dtype) {
    return (o / line_of(dtype) * rank + k) * line_of(dtype) + o % line_of(dtype);
}

/* y += h B^T, `vectors` of `count` numbers from the o-th on. */
INLINE void up(const float *h, const void *B, int64_t rank, int64_t o, const int vectors, const int count, void *y, int dtype) {
    lanes sums[ROWS], b;
    UNROLL for (int n = 0; n < vectors; n++) get_lanes(&sums[n], y, dtype, o + n * WIDTH, count);
    for (int64_t k = 0; k < rank; k++)
        UNROLL for (int n = 0; n < vectors; n++) {
            get_lanes(&b, B, dtype, place(rank, k, o + n * WIDTH, dtype), WIDTH);
            sums[n] += h[k] * b;
        }
    UNROLL for (int n = 0; n < vectors; n++) put_lanes(&sums[n], y, dtype, o + n * WIDTH, count);
}

/* Which ranks part i of x A^T is, of entry i / PARTS. */
INLINE int64_t begin_of_part(const struct added *a, int64_t i, int64_t part) {
    const int64_t rank = a->ranks[i / PARTS], groups = (rank + ROWS - 1) / ROWS, k = groups * part / PARTS * ROWS;
    return k < rank ? k : rank;
}

/* Bytes first <= i < last will be wanted soon. */
INLINE void ask_for(const void *first, const void *last) {
    for (const char *i = first; i < (const char *)last; i += LINE) __builtin_prefetch(i, 0, 2);
}

/* Part i of x A^T; and that part is asked for which this thread is likely to be given next. */
INLINE void downs(const struct added *a, float *h, int64_t i, int dtype) {
    const int64_t e = i / PARTS, stop = begin_of_part(a, i, i % PARTS + 1), row = a->in * (dtype == FLOAT32 ? 4 : 2), soon = i + AHEAD;
    const void *x = (const char *)a->x + a->tokens[e] * row;
    if (soon < a->entries * PARTS) {
        const char *A = a->A[soon / PARTS];
        ask_for(A + begin_of_part(a, soon, soon % PARTS) * row, A + begin_of_part(a, soon, soon % PARTS + 1) * row);
    }
    int64_t k = begin_of_part(a, i, i % PARTS);
    for (; k + ROWS <= stop; k += ROWS) down(x, a->A[e], a->in, k, ROWS, a->scalings[e], h + e * a->most, dtype);
    for (; k < stop; k++) down(x, a->A[e], a->in, k, 1, a->scalings[e], h + e * a->most, dtype);
}

/* Outputs start <= o < stop, of all entries. */
INLINE void ups(const struct added *a, const float *h, int64_t start, int64_t stop, int dtype) {
    for (int64_t e = 0; e < a->entries; e++, h += a->most) {
        void *y = (char *)a->y + a->tokens[e] * a->out * (dtype == FLOAT32 ? 4 : 2);
        int64_t o = start, rank = a->ranks[e];
        for (; o + BLOCK <= stop; o += BLOCK) up(h, a->B[e], rank, o, ROWS, WIDTH, y, dtype);
        for (; o + WIDTH <= stop; o += WIDTH) up(h, a->B[e], rank, o, 1, WIDTH, y, dtype);
        if (o < stop) up(h, a->B[e], rank, o, 1, stop - o, y, dtype);
    }
}

/* The columns of B that `ups` will take. */
static void ask_for_columns(const struct added *a, int64_t start, int64_t stop) {
    const int64_t line = line_of(a->dtype), first = start / line, last = (stop + line - 1) / line;
    for (int64_t e = 0; e < a->entries; e++)
        ask_for((const char *)a->B[e] + first * a->ranks[e] * LINE, (const char *)a->B[e] + last * a->ranks[e] * LINE);
}

typedef void downs_of(const struct added *, float *h, int64_t i);
typedef void ups_of(const struct added *, const float *h, int64_t start, int64_t stop);

#define ADDING(variant, target)                                                                           \
    target static void downs_##variant(const struct added *a, float *h, int64_t i) {                      \
        if (a->dtype == FLOAT32) downs(a, h, i, FLOAT32);                                                 \
        else downs(a, h, i, BFLOAT16);                                                                    \
    }                                                                                                     \
    target static void ups_##variant(const struct added *a, const float *h, int64_t start, int64_t stop) { \
        if (a->dtype == FLOAT32) ups(a, h, start, stop, FLOAT32);                                         \
        else ups(a, h, start, stop, BFLOAT16);                                                            \
    }

ADDING(plain, )
#ifdef __x86_64__
ADDING(avx2, __attribute__((target("avx2,fma,f16c"))))
ADDING(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif

static const struct {
    downs_of *downs;
    ups_of *ups;
} ADDING[VARIANTS] = {
    [PLAIN] = {downs_plain, ups_plain},
    [NEON] = {downs_plain, ups_plain},
#ifdef __x86_64__
    [AVX2_FMA_F16C] = {downs_avx2, ups_avx2},
    [AVX512_F_BW_DQ_VL] = {downs_avx512, ups_avx512},
#endif
};

struct adding {
    const struct added *added;
    float *h; /* (entries, most) */
    range *work;
    const struct job *job;
    int64_t rows, total, chunk, next, next_part, parts_done;
    int variant;
};

/* What each thread does: parts of x A^T until there are none; then runs of outputs, which are added to once all parts are there. */
static void adder(void *shared) {
    struct adding *team = shared;
    const struct added *added = team->added;
    const int64_t parts = added->entries * PARTS;
    for (int64_t i; (i = __atomic_fetch_add(&team->next_part, 1, __ATOMIC_RELAXED)) < parts;) {
        ADDING[team->variant].downs(added, team->h, i);
        __atomic_fetch_add(&team->parts_done, 1, __ATOMIC_RELEASE);
    }
    for (int64_t start; (start = __atomic_fetch_add(&team->next, team->chunk, __ATOMIC_RELAXED)) < team->total;) {
        const int64_t stop = team->total - start < team->chunk ? team->total : start + team->chunk;
        const int64_t end = stop * team->rows < added->out ? stop * team->rows : added->out;
        ask_for_columns(added, start * team->rows, end);
        if (team->work != NULL) team->work(team->job, start, stop);
        for (int spins = 0; __atomic_load_n(&team->parts_done, __ATOMIC_ACQUIRE) < parts; spins++) wait_a_little(spins);
        ADDING[team->variant].ups(added, team->h, start * team->rows, end);
    }
}

static void one_by_one(const struct adding *team) {
    struct added one = *team->added;
    float h[MOST_RANK];
    if (team->work != NULL) team->work(team->job, 0, team->total);
    for (one.entries = 1; one.tokens < team->added->tokens + team->added->entries; one.tokens++, one.A++, one.B++, one.ranks++, one.scalings++) {
        for (int64_t i = 0; i < PARTS; i++) ADDING[team->variant].downs(&one, h, i);
        ADDING[team->variant].ups(&one, h, 0, one.out);
    }
}

void inlay_share_added(range *work, const struct job *job, int64_t total, int64_t chunk, int64_t rows, const struct added *added,
                       int variant, int threads, parallel *omp) {
    const int64_t line = line_of(added->dtype), unit = rows < line ? line / rows : 1;
    struct adding team = {added, malloc(added->entries * added->most * sizeof(float)), work, job, rows, total,
                          (chunk + unit - 1) / unit * unit, 0, 0, 0, variant};
    if (team.h == NULL) { /* the same, one entry after the other */
        one_by_one(&team);
        return;
    }
    if (omp != NULL && threads > 1)
        omp(adder, &team, threads, 0);
    else
        adder(&team);
    free(team.h);
}

/* The caller's idea of a job has to be of this size. */
int inlay_low_rank_job_bytes(void) { return sizeof(struct added); }

/* Units: runs of WIDTH outputs. */
void inlay_low_rank_run(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads,
                        parallel *omp) {
    (void)function;
    inlay_share_added(NULL, NULL, total, chunk, WIDTH, (const struct added *)job, variant, threads, omp);
}
