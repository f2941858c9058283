/* Weights in ggml's types read and multiplied by a processor: what `inlay.core.ggml` says, to the bit.

       w = d q + m,    y = x W^T

   A group of 32 weights is brought to one form, whatever its type: 32 whole numbers q in bytes, and for each half of it a factor
   d and a term m. Where a type has no term, m is -0, which changes nothing when it is added: not even the sign of a nought. Each
   product and sum is rounded by itself. The types differ in `unpack` alone; it and the loops around it (ggml_rows.h) are compiled
   anew for each type, variant and dtype, so that a compiler makes a few instructions of them.

   Rows are named by number where they stand in another order (`numbers`). A product adds up in float32, in one order whatever
   tokens are beside a token: its bits do not depend on them. */

#include "team.h"

enum { Q8_0, Q4_0, Q4_1, Q4_K, Q5_K, Q6_K, KINDS };

enum {
    GROUP = 32,
    HALF = GROUP / 2,
    TOKENS = 4,  /* rows of x that one pass over a row of W takes */
    AHEAD = 4096 /* bytes that are asked for before they are needed */
};

struct job {
    const uint8_t *data;    /* the rows of a weight, packed */
    const int32_t *numbers; /* (rows,) which of them; NULL: from the first on */
    void *values;           /* (rows, in) in `dtype`: `dequantize` writes them */
    const void *x;          /* (tokens, in) in `dtype` */
    void *y;                /* (tokens, rows) in `dtype` */
    int64_t row_bytes, in, tokens, rows;
    int32_t kind, dtype;
};

/* The bytes of a group, or of half of one: as whole numbers, and two by two, since bytes have no shifts. */
typedef int8_t codes __attribute__((vector_size(GROUP)));
typedef int8_t half_codes __attribute__((vector_size(HALF)));
typedef uint16_t pairs __attribute__((vector_size(GROUP)));
typedef uint16_t few __attribute__((vector_size(HALF)));

#define UNROLL _Pragma("GCC unroll 8") /* the groups of a block */

static const int WEIGHTS[KINDS] = {32, 32, 32, 256, 256, 256}, BYTES[KINDS] = {34, 18, 20, 144, 176, 210};

/* A float16. Those below its smallest normal number, which factors often are, are found as what they are above 2^-14: a product
   with a float32 that is not normal takes a processor a hundred times as long. */
INLINE float half_at(const uint8_t *address) {
    uint16_t bits;
    memcpy(&bits, address, 2);
    uint32_t size = bits & 0x7fff, sign = (uint32_t)(bits & 0x8000) << 16;
    float small = float_of(size << 13 | 113 << 23) - 0x1p-14f, usual = float_of((size << 13) + (size < 0x7c00 ? 112u << 23 : 7u << 28));
    return float_of(bits_of(size < 0x400 ? small : usual) | sign);
}

/* The six bits of the scale, or with `least` of the minimum, of group g of Q4_K and Q5_K. */
INLINE int six_bits(const uint8_t *packed, int g, int least) {
    if (g < 4) return packed[g + 4 * least] & 63;
    return (packed[g + 4] >> 4 * least & 15) | (packed[g - 4 + 4 * least] >> 2 & 48);
}

/* Group g of a block: its whole numbers, and the factor and term of each half. */
INLINE void unpack(const uint8_t *block, const int kind, int g, int8_t *q, float *d, float *m) {
    m[0] = m[1] = -0.0f;
    if (kind == Q8_0) {
        d[0] = d[1] = half_at(block);
        memcpy(q, block + 2, GROUP);
    } else if (kind == Q4_0 || kind == Q4_1) {
        few packed;
        memcpy(&packed, block + (kind == Q4_0 ? 2 : 4), sizeof packed);
        for (int h = 0; h < 2; h++) {
            const half_codes some = (half_codes)(packed >> 4 * h & 0x0f0f) - (int8_t)(kind == Q4_0 ? 8 : 0);
            memcpy(q + HALF * h, &some, sizeof some);
        }
        d[0] = d[1] = half_at(block);
        if (kind == Q4_1) m[0] = m[1] = half_at(block + 2);
    } else if (kind == Q6_K) {
        pairs low, high;
        memcpy(&low, block + 64 * (g / 4) + 32 * (g & 1), sizeof low);
        memcpy(&high, block + 128 + 32 * (g / 4), sizeof high);
        const codes all = (codes)((low >> 2 * (g & 2) & 0x0f0f) | (high >> 2 * (g & 3) & 0x0303) << 4) - 32;
        memcpy(q, &all, sizeof all);
        for (int h = 0; h < 2; h++) d[h] = half_at(block + 208) * (float)((const int8_t *)block)[192 + 2 * g + h];
    } else {
        pairs low, high;
        memcpy(&low, block + (kind == Q4_K ? 16 : 48) + 32 * (g / 2), sizeof low);
        memcpy(&high, block + 16, sizeof high);
        low = low >> 4 * (g & 1) & 0x0f0f;
        if (kind == Q5_K) low |= (high >> g & 0x0101) << 4;
        memcpy(q, &low, sizeof low);
        d[0] = d[1] = half_at(block) * (float)six_bits(block + 4, g, 0);
        m[0] = m[1] = -(half_at(block + 2) * (float)six_bits(block + 4, g, 1));
    }
}

INLINE const uint8_t *packed_row(const struct job *job, int64_t i) {
    return job->data + (job->numbers == NULL ? i : job->numbers[i]) * job->row_bytes;
}

INLINE void widen_plain(const int8_t *q, lanes *w) {
    float floats[GROUP];
    for (int j = 0; j < GROUP; j++) floats[j] = (float)q[j];
    memcpy(w, floats, sizeof floats);
}

/* Compilers for NEON vectorise the plain way. */
#define NAMED(name) name##_plain
#define TARGET
#define WIDEN widen_plain
#include "ggml_rows.h"

#ifdef __x86_64__
#include <immintrin.h>

#define NAMED(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define WIDEN widen_plain
#include "ggml_rows.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
AVX512 INLINE void widen_avx512(const int8_t *q, lanes *w) {
    for (int h = 0; h < 2; h++)
        w[h] = (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(q + HALF * h))));
}
#define NAMED(name) name##_avx512
#define TARGET AVX512
#define WIDEN widen_avx512
#include "ggml_rows.h"
#endif

static range *const *const RANGES[VARIANTS][2] = {
    [PLAIN] = {dequantize_ranges_plain, product_ranges_plain},
    [NEON] = {dequantize_ranges_plain, product_ranges_plain},
#ifdef __x86_64__
    [AVX2_FMA_F16C] = {dequantize_ranges_avx2, product_ranges_avx2},
    [AVX512_F_BW_DQ_VL] = {dequantize_ranges_avx512, product_ranges_avx512},
#endif
};

/* The caller's idea of a job has to be of this size. */
int inlay_ggml_job_bytes(void) { return sizeof(struct job); }

/* Units 0 <= i < total of a job: rows. `omp` is GOMP_parallel, or NULL for one thread. */
void inlay_ggml_run(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads, parallel *omp) {
    share(RANGES[variant][function][job->kind], job, total, chunk, threads, omp);
}
