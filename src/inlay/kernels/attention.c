/* Causal attention over packed documents on a processor that multiplies bfloat16: what `inlay.core.attention` says, with S and
   sums in float32.

       S = scaling q k^T,   P = softmax(S),   out = P v                              each token up to itself, in its document
       dv = P^T g,   dS = P (g v^T - rowsum(P (g v^T))),   dq = scaling dS k,   dk = scaling dS^T q

   The unit of work is a head of keys in one document, with the heads of queries that share it; forward, where there are few of
   those, a head of queries. QUERIES rows of S are held at a time; the backward pass makes them again, and P from them with the
   logarithm of its sum that was kept.

   One product serves all six: C += A B, where the 32-bit word A[m, k] holds numbers 2k and 2k + 1 of row m, and B[k, n] those of
   column n, so that one instruction adds two products to each of 16 sums. k and v are put into such words once for a document;
   P and dS are written as words of two rows of queries, which is what their transposes need, and dS as rows too. A tile of 6 x 64
   sums stays in registers. */

#include "team.h"

struct job {
    const uint16_t *q, *k, *v; /* bfloat16 (tokens, heads, dim), strides below */
    const uint16_t *g;         /* (tokens, heads, dim) dense, the gradient of out */
    uint16_t *out;             /* (tokens, heads, dim) dense */
    uint16_t *dq, *dk, *dv;    /* (tokens, heads or kv_heads, dim) dense */
    int32_t *failed;           /* set to 1 where there was no memory */
    float *logs;               /* (heads, tokens): of the sum of exp(S) */
    const int64_t *starts;     /* where each document begins, and the number of tokens */
    int64_t q_token, q_head, k_token, k_head, v_token, v_head; /* strides in numbers, all even */
    int64_t heads, kv_heads, dim, tokens;
    int64_t together;          /* heads of queries of a unit: all that share a head of keys; or one, forward */
    float scaling;             /* above 0 */
};

int inlay_attention_job_bytes(void) { return sizeof(struct job); }

#ifdef __x86_64__
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define PART TARGET INLINE

enum { QUERIES = 48, ROWS = 6, COLUMNS = 4, LANES = 16 };

/* A tile of C, `rows` x `columns` vectors, over `depth` words. Row m of A is `a_row` words after the one before it, k `a_word`. */
PART void tile(const int rows, const int columns, int64_t depth, const void *A, int64_t a_row, int64_t a_word, const uint32_t *B,
               int64_t b_row, float *C, int64_t c_row, int adds) {
    __m512 sums[ROWS][COLUMNS];
    _Pragma("GCC unroll 8") for (int m = 0; m < rows; m++)
        _Pragma("GCC unroll 8") for (int n = 0; n < columns; n++)
            sums[m][n] = adds ? _mm512_loadu_ps(C + m * c_row + n * LANES) : _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k++) {
        __m512bh b[COLUMNS];
        _Pragma("GCC unroll 8") for (int n = 0; n < columns; n++)
            b[n] = (__m512bh)_mm512_loadu_si512(B + k * b_row + n * LANES);
        _Pragma("GCC unroll 8") for (int m = 0; m < rows; m++) {
            __m512bh a = (__m512bh)_mm512_set1_epi32(word_at((const char *)A + 4 * (m * a_row + k * a_word)));
            _Pragma("GCC unroll 8") for (int n = 0; n < columns; n++) sums[m][n] = _mm512_dpbf16_ps(sums[m][n], a, b[n]);
        }
    }
    _Pragma("GCC unroll 8") for (int m = 0; m < rows; m++)
        _Pragma("GCC unroll 8") for (int n = 0; n < columns; n++) _mm512_storeu_ps(C + m * c_row + n * LANES, sums[m][n]);
}

#define TILES(rows)                                                                                                    \
    case rows:                                                                                                         \
        for (; n + COLUMNS <= columns; n += COLUMNS)                                                                   \
            tile(rows, COLUMNS, depth, a, a_row, a_word, B + n * LANES, b_row, c + n * LANES, c_row, adds);            \
        for (; n < columns; n++)                                                                                       \
            tile(rows, 1, depth, a, a_row, a_word, B + n * LANES, b_row, c + n * LANES, c_row, adds);                  \
        break;

/* C = A B, or C += A B; `columns` in vectors. */
TARGET static void product(int64_t rows, int64_t columns, int64_t depth, const void *A, int64_t a_row, int64_t a_word,
                           const uint32_t *B, int64_t b_row, float *C, int64_t c_row, int adds) {
    for (int64_t m = 0; m < rows; m += ROWS) {
        const char *a = (const char *)A + 4 * m * a_row;
        float *c = C + m * c_row;
        int64_t n = 0;
        switch (rows - m) {
            TILES(1) TILES(2) TILES(3) TILES(4) TILES(5)
            default: TILES(6)
        }
    }
}

/* Vectors that hold the keys which rows of queries up to `last`, the first of a tile among them, can see. */
INLINE int64_t seen_vectors(int64_t first, int64_t m, int64_t count) {
    int64_t last = (m / ROWS + 1) * ROWS < count ? (m / ROWS + 1) * ROWS : count;
    return (first + last + LANES - 1) / LANES;
}

/* Queries times the columns that they can see, tile of rows by tile. */
TARGET static void scores(int64_t first, int64_t count, int64_t depth, const uint16_t *A, int64_t a_row, const uint32_t *B,
                          int64_t padded, float *C) {
    for (int64_t m = 0; m < count; m += ROWS)
        product(count - m < ROWS ? count - m : ROWS, seen_vectors(first, m, count), depth, A + 2 * m * a_row, a_row, 1, B,
                padded, C + m * padded, padded, 0);
}

/* What the rows of queries hold of the keys that they can see, times the rows of those. */
TARGET static void mixed(int64_t first, int64_t count, int64_t dim, const uint16_t *A, int64_t padded, const uint32_t *B, float *C) {
    for (int64_t m = 0; m < count; m += ROWS)
        product(count - m < ROWS ? count - m : ROWS, dim / LANES, seen_vectors(first, m, count) * LANES / 2, A + m * padded,
                padded / 2, 1, B, dim, C + m * dim, dim, 0);
}

/* Words of a row's neighbours, for products over the columns: to[c / 2, row]. Rows up to `padded` are zeros. */
TARGET static void columns_first(const uint16_t *from, int64_t row, int64_t rows, int64_t padded, int64_t dim, uint32_t *to) {
    for (int64_t c = 0; c < dim / 2; c++) {
        for (int64_t r = 0; r < rows; r++) to[c * padded + r] = word_at(from + r * row + 2 * c);
        for (int64_t r = rows; r < padded; r++) to[c * padded + r] = 0;
    }
}

/* Words of two rows, for products over the rows: to[row / 2, c]. */
TARGET static void rows_paired(const uint16_t *from, int64_t row, int64_t rows, int64_t padded, int64_t dim, uint32_t *to) {
    for (int64_t r = 0; r < padded; r += 2) {
        const uint16_t *first = from + r * row, *second = first + row;
        uint32_t *out = to + r / 2 * dim;
        if (r + 1 < rows)
            for (int64_t c = 0; c < dim; c++) out[c] = (uint32_t)second[c] << 16 | first[c];
        else if (r < rows)
            for (int64_t c = 0; c < dim; c++) out[c] = first[c];
        else
            memset(out, 0, dim * 4);
    }
}

/* 2^n times a polynomial in what is left: Cephes' expf, within two units of its last place; nought below e^-87. */
PART __m512 exponentials(__m512 x) {
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693359375f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1)));
    return _mm512_scalef_ps(p, n);
}

/* Of 16 numbers from number `first` on, those before number `count`. */
PART __mmask16 before(int64_t count, int64_t first) {
    int64_t left = count - first;
    return left >= LANES ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
}

/* In the low half of each lane. */
PART __m512i rounded(__m512 x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
}

PART void store_rounded(uint16_t *to, __m512 x) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

struct unit {
    const struct job *job;
    int64_t start, padded;
    float *S, *dP;             /* (QUERIES, padded) */
    float *made;               /* (QUERIES, dim) */
    uint16_t *rows;            /* (QUERIES, padded): P, or dS */
    uint32_t *k_columns;       /* (dim / 2, padded) */
    uint32_t *v_columns, *k_rows, *v_rows;
    uint32_t *P_pairs, *dS_pairs; /* (QUERIES / 2, padded) */
    uint32_t *q_pairs, *g_pairs;  /* (QUERIES / 2, dim) */
    float *dk, *dv;            /* (padded, dim) */
};

TARGET static void forward_block(const struct unit *u, int64_t head, int64_t first, int64_t count) {
    const struct job *job = u->job;
    int64_t dim = job->dim, token = u->start + first;
    const uint16_t *q = job->q + token * job->q_token + head * job->q_head;
    scores(first, count, dim / 2, q, job->q_token / 2, u->k_columns, u->padded, u->S);
    __m512 scaling = _mm512_set1_ps(job->scaling);
    float inverses[QUERIES];
    for (int64_t m = 0; m < count; m++) {
        float *S = u->S + m * u->padded;
        int64_t seen = first + m + 1;
        __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (int64_t n = 0; n < seen; n += LANES)
            top = _mm512_mask_max_ps(top, before(seen, n), top, _mm512_loadu_ps(S + n));
        float largest = _mm512_reduce_max_ps(top) * job->scaling;
        __m512 shift = _mm512_set1_ps(-largest);
        for (int64_t n = 0; n < seen_vectors(first, m, count) * LANES; n += LANES) {
            __m512 p = exponentials(_mm512_fmadd_ps(_mm512_loadu_ps(S + n), scaling, shift));
            p = _mm512_maskz_mov_ps(before(seen, n), p);
            sum = _mm512_add_ps(sum, p);
            store_rounded(u->rows + m * u->padded + n, p);
        }
        float total = _mm512_reduce_add_ps(sum);
        inverses[m] = 1 / total;
        job->logs[head * job->tokens + token + m] = largest + logf(total);
    }
    mixed(first, count, dim, u->rows, u->padded, u->v_rows, u->made);
    for (int64_t m = 0; m < count; m++)
        for (int64_t c = 0; c < dim; c += LANES)
            store_rounded(job->out + ((token + m) * job->heads + head) * dim + c,
                          _mm512_mul_ps(_mm512_loadu_ps(u->made + m * dim + c), _mm512_set1_ps(inverses[m])));
}

TARGET static void backward_block(const struct unit *u, int64_t head, int64_t first, int64_t count) {
    const struct job *job = u->job;
    int64_t dim = job->dim, padded = u->padded, token = u->start + first, vectors = (first + count + LANES - 1) / LANES;
    const uint16_t *q = job->q + token * job->q_token + head * job->q_head;
    const uint16_t *g = job->g + (token * job->heads + head) * dim;
    int64_t even = (count + 1) / 2 * 2;
    scores(first, count, dim / 2, q, job->q_token / 2, u->k_columns, padded, u->S);
    scores(first, count, dim / 2, g, job->heads * dim / 2, u->v_columns, padded, u->dP);
    rows_paired(q, job->q_token, count, even, dim, u->q_pairs);
    rows_paired(g, job->heads * dim, count, even, dim, u->g_pairs);
    __m512 scaling = _mm512_set1_ps(job->scaling);
    for (int64_t m = 0; m < even; m++) {
        float *S = u->S + m * padded, *dP = u->dP + m * padded;
        int64_t seen = m < count ? first + m + 1 : 0, end = m < count ? seen_vectors(first, m, count) * LANES : 0;
        __m512 shift = _mm512_set1_ps(m < count ? -job->logs[head * job->tokens + token + m] : 0), sum = _mm512_setzero_ps();
        for (int64_t n = 0; n < end; n += LANES) {
            __mmask16 mask = before(seen, n);
            __m512 P = _mm512_maskz_mov_ps(mask, exponentials(_mm512_fmadd_ps(_mm512_loadu_ps(S + n), scaling, shift)));
            sum = _mm512_add_ps(sum, _mm512_maskz_mul_ps(mask, P, _mm512_loadu_ps(dP + n)));
            _mm512_storeu_ps(S + n, P);
        }
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
        uint32_t *P_pairs = u->P_pairs + m / 2 * padded, *dS_pairs = u->dS_pairs + m / 2 * padded;
        for (int64_t n = 0; n < end; n += LANES) {
            __m512 P = _mm512_loadu_ps(S + n);
            __m512 dS = _mm512_mul_ps(_mm512_mul_ps(P, scaling), _mm512_sub_ps(_mm512_loadu_ps(dP + n), mean));
            dS = _mm512_maskz_mov_ps(before(seen, n), dS);
            store_rounded(u->rows + m * padded + n, dS);
            __m512i p = rounded(P), s = rounded(dS);
            if (m % 2) {
                p = _mm512_or_si512(_mm512_slli_epi32(p, 16), _mm512_loadu_si512(P_pairs + n));
                s = _mm512_or_si512(_mm512_slli_epi32(s, 16), _mm512_loadu_si512(dS_pairs + n));
            }
            _mm512_storeu_si512(P_pairs + n, p);
            _mm512_storeu_si512(dS_pairs + n, s);
        }
        for (int64_t n = end; m % 2 == 0 && n < vectors * LANES; n += LANES) { /* which the row below may see */
            _mm512_storeu_si512(P_pairs + n, _mm512_setzero_si512());
            _mm512_storeu_si512(dS_pairs + n, _mm512_setzero_si512());
        }
    }
    mixed(first, count, dim, u->rows, padded, u->k_rows, u->made);
    for (int64_t m = 0; m < count; m++)
        for (int64_t c = 0; c < dim; c += LANES)
            store_rounded(job->dq + ((token + m) * job->heads + head) * dim + c, _mm512_loadu_ps(u->made + m * dim + c));
    int64_t keys = first + count;
    product(keys, dim / LANES, even / 2, u->P_pairs, 1, padded, u->g_pairs, dim, u->dv, dim, 1);
    product(keys, dim / LANES, even / 2, u->dS_pairs, 1, padded, u->q_pairs, dim, u->dk, dim, 1);
}

/* A piece of the working memory. */
#define TAKE(type, count) (type *)(memory += size, size = ((count) * sizeof(type) + 63) / 64 * 64, memory)

/* Heads first_head to first_head + together, of queries, in a document. */
TARGET static void unit(const struct job *job, int64_t document, int64_t first_head, int is_backward, char *memory) {
    int64_t dim = job->dim, start = job->starts[document], length = job->starts[document + 1] - start, size = 0;
    int64_t kv_head = first_head / (job->heads / job->kv_heads);
    int64_t padded = (length + LANES - 1) / LANES * LANES;
    struct unit u = {.job = job, .start = start, .padded = padded};
    u.S = TAKE(float, QUERIES * padded);
    u.made = TAKE(float, QUERIES * dim);
    u.rows = TAKE(uint16_t, QUERIES * padded);
    u.k_columns = TAKE(uint32_t, dim / 2 * padded);
    const uint16_t *k = job->k + start * job->k_token + kv_head * job->k_head;
    const uint16_t *v = job->v + start * job->v_token + kv_head * job->v_head;
    columns_first(k, job->k_token, length, padded, dim, u.k_columns);
    if (is_backward) {
        u.dP = TAKE(float, QUERIES * padded);
        u.v_columns = TAKE(uint32_t, dim / 2 * padded);
        u.k_rows = TAKE(uint32_t, padded / 2 * dim);
        u.P_pairs = TAKE(uint32_t, QUERIES / 2 * padded);
        u.dS_pairs = TAKE(uint32_t, QUERIES / 2 * padded);
        u.q_pairs = TAKE(uint32_t, QUERIES / 2 * dim);
        u.g_pairs = TAKE(uint32_t, QUERIES / 2 * dim);
        u.dk = TAKE(float, padded * dim);
        u.dv = TAKE(float, padded * dim);
        columns_first(v, job->v_token, length, padded, dim, u.v_columns);
        rows_paired(k, job->k_token, length, padded, dim, u.k_rows);
        memset(u.dk, 0, padded * dim * 4);
        memset(u.dv, 0, padded * dim * 4);
    } else {
        u.v_rows = TAKE(uint32_t, padded / 2 * dim);
        rows_paired(v, job->v_token, length, padded, dim, u.v_rows);
    }
    for (int64_t head = first_head; head < first_head + job->together; head++)
        for (int64_t first = 0; first < length; first += QUERIES) {
            int64_t count = length - first < QUERIES ? length - first : QUERIES;
            (is_backward ? backward_block : forward_block)(&u, head, first, count);
        }
    if (is_backward)
        for (int64_t t = 0; t < length; t++)
            for (int64_t c = 0; c < dim; c += LANES) {
                int64_t to = ((start + t) * job->kv_heads + kv_head) * dim + c;
                store_rounded(job->dk + to, _mm512_loadu_ps(u.dk + t * dim + c));
                store_rounded(job->dv + to, _mm512_loadu_ps(u.dv + t * dim + c));
            }
}

/* Units begin <= i < end, in memory of their own. */
INLINE void units(const struct job *job, int64_t begin, int64_t end, int is_backward) {
    int64_t longest = 0, per_document = job->heads / job->together;
    for (int64_t i = begin; i < end; i++) {
        int64_t document = i / per_document, length = job->starts[document + 1] - job->starts[document];
        longest = length > longest ? length : longest;
    }
    int64_t padded = (longest + LANES - 1) / LANES * LANES, dim = job->dim;
    int64_t size = padded * (QUERIES * (4 + 4 + 2 + 2 + 2) + dim * (2 + 2 + 2 + 4 + 4)) + QUERIES * dim * (4 + 2 + 2);
    char *memory = NULL; /* all of the pieces above, and what rounds each up */
    if (posix_memalign((void **)&memory, 64, size + 16 * 64)) {
        *job->failed = 1;
        return;
    }
    for (int64_t i = begin; i < end; i++) unit(job, i / per_document, i % per_document * job->together, is_backward, memory);
    free(memory);
}

static void forward(const struct job *job, int64_t begin, int64_t end) { units(job, begin, end, 0); }
static void backward(const struct job *job, int64_t begin, int64_t end) { units(job, begin, end, 1); }

/* Units 0 <= i < total: those of the first document, then of the next. */
void inlay_attention_run(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads,
                         parallel *omp) {
    (void)variant;
    share(function ? backward : forward, job, total, chunk, threads, omp);
}
#else
void inlay_attention_run(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads,
                         parallel *omp) {
    (void)variant, (void)function, (void)job, (void)total, (void)chunk, (void)threads, (void)omp, (void)share;
}
#endif
