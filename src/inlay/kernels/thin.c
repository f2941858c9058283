/* Many tokens through the factors of one adapter, and back, in bfloat16 on a processor that multiplies it:

       FORWARD     h = x A^T,          y += scaling h B^T
       BACKWARD    e = scaling g B,    dx += e A,    dA = e^T x,    dB = scaling g^T h

   Sums are float32; h, e and what is added to are rounded once. One instruction adds two products to each of 16 sums, so that all
   numbers are multiplied as words of two that follow each other in a sum. A (r, in) and B (out, r) are float32, and become such
   words first. h and e are kept as words of two tokens, (tokens / 2, filled), which is how sums over tokens want them; ranks are
   filled up to a multiple of LANES with noughts, and so is an odd number of tokens.

   The work has phases: PACKED columns of the factors at a time become words, BLOCK tokens at a time go through both products, and
   backward COLUMNS columns at a time are summed over all tokens. All threads share a phase, and begin the next one when it is done. A number
   is made in one order, however many there are. */

#include "team.h"

enum { FORWARD, BACKWARD };

struct job {
    const uint16_t *x, *g;  /* (tokens, in), (tokens, out) */
    uint16_t *y;            /* (tokens, out); backward dx (tokens, in), or NULL */
    uint32_t *h;            /* words (tokens / 2, filled): made forward, read backward */
    const float *A, *B;     /* (r, in), (out, r) */
    float *dA, *dB;         /* likewise, or NULL */
    uint32_t *words;        /* memory for (in + out) / 2 filled of them, and backward for (tokens / 2) filled more */
    int64_t tokens, in, out, r; /* in and out are multiples of COLUMNS, r is at most MOST_RANK */
    float scaling;
};

int inlay_thin_job_bytes(void) { return sizeof(struct job); }

#ifdef __x86_64__
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")))
#define EACH(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); i++)

enum { LANES = 16, MOST_RANK = 32, COLUMNS = 2 * LANES, PACKED = 64 };
enum { BLOCK = 16, TOGETHER = 8 };     /* sums of so many tokens, or twice as many of these, are what registers hold */
enum { DEPTH = 512, CROWD = 1024 };    /* numbers of a token that are copied at a time, where widths are a multiple of CROWD */
enum { NEAR = 64 };                    /* tokens whose words stay in the first cache for all ranks */

struct phase {
    int64_t units, taken, done;
};

struct step {
    const struct job *job;
    int is_backward;
    int64_t filled;        /* r, filled up to a multiple of LANES */
    const uint16_t *given; /* x or g, (tokens, inner) */
    int64_t inner, outer;
    uint32_t *down, *up;   /* words of the factors: (inner / 2, filled) and (filled / 2, outer) */
    uint32_t *made;        /* those of h or e */
    struct phase pack, pass, sum;
};

INLINE uint32_t word(float one, float two) { return to_bfloat16(one) | (uint32_t)to_bfloat16(two) << 16; }

/* Words of a factor, whose numbers are `column` apart along its width and `row` apart along its rank, for columns start <= i < stop:
   of two columns (width / 2, filled), or of two ranks (filled / 2, width). */
TARGET INLINE void words_of_columns(const float *factor, int64_t column, int64_t row, int64_t r, int64_t filled, int64_t start, int64_t stop,
                                    uint32_t *to) {
    for (int64_t i = start; i < stop; i += 2)
        for (int64_t k = 0; k < filled; k++) {
            const float *own = factor + i * column + k * row;
            to[i / 2 * filled + k] = k < r ? word(own[0], own[column]) : 0;
        }
}

TARGET INLINE void words_of_ranks(const float *factor, int64_t column, int64_t row, int64_t r, int64_t width, int64_t filled, int64_t start,
                                  int64_t stop, uint32_t *to) {
    for (int64_t k = 0; k < filled; k += 2)
        for (int64_t i = start; i < stop; i++) {
            const float *own = factor + i * column + k * row;
            to[k / 2 * width + i] = k < r ? word(own[0], k + 1 < r ? own[row] : 0) : 0;
        }
}

/* Unit i: PACKED columns of A; of B, after those. */
TARGET static void pack(const struct step *s, int64_t i) {
    const struct job *job = s->job;
    const int64_t units = (job->in + PACKED - 1) / PACKED;
    const int is_a = i < units, goes_down = is_a != s->is_backward;
    const int64_t width = is_a ? job->in : job->out, start = (is_a ? i : i - units) * PACKED;
    const int64_t stop = start + PACKED < width ? start + PACKED : width, r = job->r;
    if (goes_down && is_a) words_of_columns(job->A, 1, width, r, s->filled, start, stop, s->down);
    else if (goes_down) words_of_columns(job->B, r, 1, r, s->filled, start, stop, s->down);
    else if (is_a) words_of_ranks(job->A, 1, width, r, width, s->filled, start, stop, s->up);
    else words_of_ranks(job->B, r, 1, r, width, s->filled, start, stop, s->up);
}

TARGET INLINE __m512bh spread(const void *address) { return (__m512bh)_mm512_set1_epi32(word_at(address)); }
TARGET INLINE __m512bh words_at(const void *address) { return (__m512bh)_mm512_loadu_si512(address); }
TARGET INLINE __m512 widened(__m256i some) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(some), 16)); }

/* `count` tokens from `token` on through the first product: `rows` are of h or e, and its words of two tokens. */
TARGET INLINE void go_down(const struct step *s, int64_t token, int count, uint16_t rows[BLOCK][MOST_RANK]) {
    const float by = s->is_backward ? s->job->scaling : 1;
    const int is_crowded = s->inner % CROWD == 0; /* then the first cache has the same few places for the rows of all tokens */
    const uint16_t *x[BLOCK], *own[BLOCK];
    uint16_t near[BLOCK][DEPTH];
    EACH(t, BLOCK) x[t] = s->given + (token + (t < count ? t : 0)) * s->inner;
    for (int64_t k = 0; k < s->filled; k += LANES) {
        __m512 sums[BLOCK];
        EACH(t, BLOCK) sums[t] = _mm512_setzero_ps();
        const uint32_t *down = s->down + k;
        for (int64_t from = 0; from < s->inner; from += DEPTH) {
            const int64_t depth = s->inner - from < DEPTH ? s->inner - from : DEPTH;
            EACH(t, BLOCK) {
                own[t] = x[t] + from;
                if (is_crowded) own[t] = memcpy(near[t], own[t], depth * sizeof **near);
            }
            for (int64_t i = 0; i < depth; i += 2, down += s->filled) {
                const __m512bh some = words_at(down);
                EACH(t, BLOCK) sums[t] = _mm512_dpbf16_ps(sums[t], some, spread(own[t] + i));
            }
        }
        EACH(t, BLOCK) {
            const __m512 sum = t < count ? _mm512_mul_ps(sums[t], _mm512_set1_ps(by)) : _mm512_setzero_ps();
            _mm256_storeu_si256((__m256i *)(rows[t] + k), (__m256i)_mm512_cvtneps_pbh(sum));
        }
        for (int t = 0; t < count; t += 2) {
            const __m512i one = _mm512_cvtepu16_epi32(_mm256_loadu_si256((__m256i *)(rows[t] + k)));
            const __m512i two = _mm512_cvtepu16_epi32(_mm256_loadu_si256((__m256i *)(rows[t + 1] + k)));
            _mm512_storeu_si512(s->made + (token + t) / 2 * s->filled + k, _mm512_or_si512(one, _mm512_slli_epi32(two, 16)));
        }
    }
}

/* What they add to `count` tokens of y, by the second product: TOGETHER tokens of COLUMNS columns at a time. */
TARGET INLINE void go_up(const struct step *s, int64_t token, int count, uint16_t rows[BLOCK][MOST_RANK]) {
    const __m512 by = _mm512_set1_ps(s->is_backward ? 1 : s->job->scaling);
    for (int64_t o = 0; o < s->outer; o += COLUMNS)
        for (int t = 0; t < count; t += TOGETHER) {
            __m512 low[TOGETHER], high[TOGETHER];
            EACH(j, TOGETHER) low[j] = high[j] = _mm512_setzero_ps();
            const uint32_t *up = s->up + o;
            for (int64_t k = 0; k < s->filled; k += 2, up += s->outer) {
                const __m512bh one = words_at(up), two = words_at(up + LANES);
                EACH(j, TOGETHER) {
                    const __m512bh own = spread(rows[t + j] + k);
                    low[j] = _mm512_dpbf16_ps(low[j], one, own);
                    high[j] = _mm512_dpbf16_ps(high[j], two, own);
                }
            }
            uint16_t *y = s->job->y + (token + t) * s->outer + o;
            EACH(j, TOGETHER) if (t + j < count) {
                const __m512i before = _mm512_loadu_si512(y + j * s->outer);
                const __m512 one = _mm512_fmadd_ps(low[j], by, widened(_mm512_castsi512_si256(before)));
                const __m512 two = _mm512_fmadd_ps(high[j], by, widened(_mm512_extracti64x4_epi64(before, 1)));
                _mm512_storeu_si512(y + j * s->outer, (__m512i)_mm512_cvtne2ps_pbh(two, one));
            }
        }
}

/* Unit i: BLOCK tokens, of which the last may be missing. */
TARGET static void pass(const struct step *s, int64_t i) {
    const int64_t token = i * BLOCK, left = s->job->tokens - token;
    uint16_t rows[BLOCK][MOST_RANK];
    go_down(s, token, left < BLOCK ? left : BLOCK, rows);
    if (s->job->y != NULL) go_up(s, token, left < BLOCK ? left : BLOCK, rows);
}

/* COLUMNS columns of NEAR tokens as words of two tokens; those after the last are noughts. */
TARGET INLINE void words_of_tokens(const uint16_t *x, int64_t width, int64_t count, uint32_t near[NEAR / 2][COLUMNS]) {
    for (int64_t t = 0; t < count; t += 2, x += 2 * width) {
        __builtin_prefetch(x + NEAR * width, 0, 2); /* rows are too far apart for the processor to see what comes */
        __builtin_prefetch(x + (NEAR + 1) * width, 0, 2);
        const __m512i one = _mm512_loadu_si512(x), two = t + 1 < count ? _mm512_loadu_si512(x + width) : _mm512_setzero_si512();
        _mm512_storeu_si512(near[t / 2], _mm512_unpacklo_epi16(one, two));
        _mm512_storeu_si512(near[t / 2] + LANES, _mm512_unpackhi_epi16(one, two));
    }
}

/* sums[k] = the sum over all tokens of rank k of the words `own` times COLUMNS columns of x. */
TARGET INLINE void sum_tokens(const uint16_t *x, int64_t width, int64_t tokens, const uint32_t *own, int64_t filled,
                              float sums[MOST_RANK][COLUMNS]) {
    uint32_t near[NEAR / 2][COLUMNS];
    memset(sums, 0, filled * sizeof *sums);
    for (int64_t t = 0; t < tokens; t += NEAR) {
        const int64_t count = tokens - t < NEAR ? tokens - t : NEAR;
        words_of_tokens(x + t * width, width, count, near);
        for (int64_t k = 0; k < filled; k += TOGETHER) {
            __m512 low[TOGETHER], high[TOGETHER];
            EACH(j, TOGETHER) low[j] = _mm512_loadu_ps(sums[k + j]), high[j] = _mm512_loadu_ps(sums[k + j] + LANES);
            for (int64_t i = 0; i < count; i += 2) {
                const __m512bh first = words_at(near[i / 2]), second = words_at(near[i / 2] + LANES);
                EACH(j, TOGETHER) {
                    const __m512bh by = spread(own + (t + i) / 2 * filled + k + j);
                    low[j] = _mm512_dpbf16_ps(low[j], first, by);
                    high[j] = _mm512_dpbf16_ps(high[j], second, by);
                }
            }
            EACH(j, TOGETHER) _mm512_storeu_ps(sums[k + j], low[j]), _mm512_storeu_ps(sums[k + j] + LANES, high[j]);
        }
    }
    /* quarter q of the first half has columns 8 q to 8 q + 3, that of the second the four after those */
    const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i back = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int64_t k = 0; k < filled; k++) {
        const __m512 first = _mm512_loadu_ps(sums[k]), second = _mm512_loadu_ps(sums[k] + LANES);
        _mm512_storeu_ps(sums[k], _mm512_permutex2var_ps(first, front, second));
        _mm512_storeu_ps(sums[k] + LANES, _mm512_permutex2var_ps(first, back, second));
    }
}

/* Unit i: COLUMNS columns of dA; of dB, after those. */
TARGET static void sum(const struct step *s, int64_t i) {
    const struct job *job = s->job;
    const int64_t units = job->in / COLUMNS, r = job->r;
    const int is_a = i < units;
    const int64_t column = (is_a ? i : i - units) * COLUMNS;
    float sums[MOST_RANK][COLUMNS];
    if (is_a && job->dA != NULL) {
        sum_tokens(job->x + column, job->in, job->tokens, s->made, s->filled, sums);
        for (int64_t k = 0; k < r; k++) memcpy(job->dA + k * job->in + column, sums[k], sizeof sums[k]);
    }
    if (!is_a && job->dB != NULL) {
        sum_tokens(job->g + column, job->out, job->tokens, job->h, s->filled, sums);
        for (int64_t o = 0; o < COLUMNS; o++)
            for (int64_t k = 0; k < r; k++) job->dB[(column + o) * r + k] = job->scaling * sums[k][o];
    }
}

/* Units until there are none; it returns when all are done. */
INLINE void share_phase(const struct step *s, struct phase *phase, void (*unit)(const struct step *, int64_t)) {
    for (int64_t i; (i = __atomic_fetch_add(&phase->taken, 1, __ATOMIC_RELAXED)) < phase->units;) {
        unit(s, i);
        __atomic_fetch_add(&phase->done, 1, __ATOMIC_RELEASE);
    }
    for (int spins = 0; __atomic_load_n(&phase->done, __ATOMIC_ACQUIRE) < phase->units; spins++) wait_a_little(spins);
}

static void all_phases(void *shared) {
    struct step *s = shared;
    share_phase(s, &s->pack, pack);
    share_phase(s, &s->pass, pass);
    share_phase(s, &s->sum, sum);
}

void inlay_thin_run(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads, parallel *omp) {
    (void)variant, (void)total, (void)chunk, (void)share;
    const int is_backward = function == BACKWARD;
    struct step s = {.job = job, .is_backward = is_backward, .filled = (job->r + LANES - 1) / LANES * LANES};
    s.given = is_backward ? job->g : job->x;
    s.inner = is_backward ? job->out : job->in;
    s.outer = is_backward ? job->in : job->out;
    s.down = job->words;
    s.up = s.down + s.inner / 2 * s.filled;
    s.made = is_backward ? s.up + s.filled / 2 * s.outer : job->h;
    s.pack.units = (job->in + PACKED - 1) / PACKED + (job->out + PACKED - 1) / PACKED;
    s.pass.units = (job->tokens + BLOCK - 1) / BLOCK;
    s.sum.units = is_backward ? (job->in + job->out) / COLUMNS : 0;
    if (omp != NULL && threads > 1) omp(all_phases, &s, threads, 0);
    else all_phases(&s);
}
#else
void inlay_thin_run(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads, parallel *omp) {
    (void)variant, (void)function, (void)job, (void)total, (void)chunk, (void)threads, (void)omp, (void)share;
}
#endif
