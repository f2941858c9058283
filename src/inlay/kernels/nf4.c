/* NF4 weights read, written and multiplied by a processor: what `inlay.core.blocks` says, to the bit.

       W[i] = code[c[i]] absmax[i / block],   absmax[b] = map[q[b]] nested[b / 256] + offset
       c[i] = how many midpoints of the code are strictly below w[i] / absmax[b]
       y = x W^T

   A byte holds two places in the code, that of the even column in its upper half; rows follow each other without a gap, and
   blocks divide rows. A block is a multiple of 32 weights. Constants may also be float32 as they are (`nested` is NULL).

   The code has 16 values and a block one constant, so a block is first given a table of its 16 finished values, rounded to the
   dtype that is wanted; then each weight is a look-up and nothing else. Tables live in registers:

       AVX-512   32 words of 16 bits, or 16 floats, permuted by one instruction (vpermw, vpermps)
       AVX2      low bytes and high bytes of 16 words apart (vpshufb); floats as two halves (vpermps) and a choice between them
       NEON      bytes 0 to 3 of the values apart (tbl), put together again by the store (st2, st4)
       plain     an array

   Whatever the width of a register, a lane is given the byte that holds its place, and shifts it into reach by an amount of its
   own: table look-ups disregard the bits above. To quantise is a binary search: `steps[j]` is the midpoint that place j - 1 has
   with place j, and j = p + 8, 4, 2, 1 from p = 0 on; NEON, which has no look-up of floats, counts midpoints.

   `product` looks up the code alone, and multiplies each sum of 64 products by its constant. All of it is float32, except where
   the processor multiplies bfloat16 and x is that: there the code is rounded to it. x is first put into the order that suits the
   look-up (`own`), and widened but for that case, so that nothing has to be moved where the weights come from:

       AVX-512   8 places in each of 16 words of 32 bits, two blocks at a time: a shift brings eighth k down in all of them;
                 4 in each of 32 words of 16 bits where x is bfloat16 and the processor multiplies it
       AVX2      bytes 0 to 3 of the code looked up apart, as NEON does: they are put together by unpacking, in another order

   A sum is made in one order, whatever tokens and rows are computed beside it: the bits of a token do not depend on those.
   One token takes one row after the other, and asks for codes AHEAD bytes before they are needed: one stream of memory; more
   tokens take a few rows at once, so that x is loaded once for all of them.

   No load goes beyond the last byte of the codes, and none has to be aligned beyond its element.

   What was not done: sums in 8-bit integers, for which newer processors have instructions: x and W would be rounded. Stores
   around the caches: a tile of rows is read again at once. */

#include "team.h"

enum {
    TOKENS = 4,   /* rows of x that one pass over a row of W takes */
    ROWS = 4,     /* of W at once, where a variant takes some */
    PIECE = 64,   /* weights whose products are added up before they are multiplied by a constant */
    CHUNK = 128,  /* weights, and columns of x, that are put into an order of their own */
    AHEAD = 8192, /* bytes */
};

struct job {
    const float *code;         /* (16,) ascending */
    const uint8_t *code_bytes; /* (4, 16) byte k of each value of the code */
    const float *steps;        /* (16,) the midpoints, from place 1 on */
    uint8_t *codes;            /* from the first row or block of the job on; `quantize` writes them */
    void *absmax;              /* of the whole weight: float32, or uint8 places in `map`; `quantize` writes from `first` on */
    const float *nested;       /* NULL where absmax is float32 */
    const float *map;
    void *values;              /* the weights in `dtype`: `dequantize` writes them, `quantize` reads them */
    const void *x;             /* (tokens, in) in `dtype` */
    float *own;                /* (tokens, in to the next whole CHUNK): x as a variant wants it, floats or less */
    void *y;                   /* (tokens, rows) in `dtype` */
    int64_t first;             /* number of the job's first block in the weight */
    int64_t block;             /* weights in a block */
    int64_t tokens, rows, in;
    float offset;
    float smallest;            /* what a block of zeros is divided by */
    int32_t nested_shift;      /* 2^this constants share one of `nested` */
    int32_t dtype;
};

#define UNROLL _Pragma("GCC unroll 8")

/* Each step is rounded by itself. */
INLINE float constant(const struct job *job, int64_t b) {
    b += job->first;
    if (job->nested == NULL) return ((const float *)job->absmax)[b];
    float product = job->map[((const uint8_t *)job->absmax)[b]] * job->nested[b >> job->nested_shift];
    return product + job->offset;
}

INLINE float inverse(const struct job *job, float absmax) {
    return 1 / (absmax < job->smallest ? job->smallest : absmax);
}

/* ---- The ranges of a job, for one variant: what threads are given. A variant defines

       block_float32   16-entry table and look-ups of one block, to float
       block_16_bits   the same to bfloat16 or float16
       block_quantize  one block of weights to codes; returns its absmax
       order           the column of a chunk that each place of `own` has
       row_product     the products of one row of W with T tokens from `token` on */

/* Numbers of one token in `own`. */
INLINE int64_t stride(const struct job *job) { return (job->in + CHUNK - 1) / CHUNK * CHUNK; }

INLINE const float *input(const struct job *job, int64_t token, int64_t column) {
    return job->own + token * stride(job) + column;
}

#define PRODUCT(name, target)                                                                                                 \
    target static void product_##name(const struct job *job, int64_t start, int64_t stop) {                                   \
        for (int64_t row = start; row < stop; row++)                                                                          \
            for (int64_t token = 0; token < job->tokens; token += TOKENS)                                                     \
                switch (job->tokens - token) {                                                                                \
                    case 1: row_product_##name(job, row, token, 1); break;                                                    \
                    case 2: row_product_##name(job, row, token, 2); break;                                                    \
                    case 3: row_product_##name(job, row, token, 3); break;                                                    \
                    default: row_product_##name(job, row, token, TOKENS);                                                     \
                }                                                                                                             \
    }

#define VARIANT(name, target)                                                                                                 \
    target static void dequantize_##name(const struct job *job, int64_t start, int64_t stop) {                                \
        for (int64_t b = start; b < stop; b++) {                                                                              \
            const uint8_t *codes = job->codes + b * (job->block / 2);                                                         \
            if (job->dtype == FLOAT32)                                                                                        \
                block_float32_##name(job, codes, constant(job, b), (float *)job->values + b * job->block);                    \
            else                                                                                                              \
                block_16_bits_##name(job, codes, constant(job, b), (uint16_t *)job->values + b * job->block);                 \
        }                                                                                                                     \
    }                                                                                                                         \
    target static void quantize_##name(const struct job *job, int64_t start, int64_t stop) {                                  \
        int width = job->dtype == FLOAT32 ? 4 : 2;                                                                            \
        for (int64_t b = start; b < stop; b++) {                                                                              \
            const char *values = (const char *)job->values + b * job->block * width;                                          \
            uint8_t *codes = job->codes + b * (job->block / 2);                                                               \
            ((float *)job->absmax)[job->first + b] = block_quantize_##name(job, values, codes);                               \
        }                                                                                                                     \
    }

/* ---- Plain C ---- */

/* To nearest even: below the smallest normal number by a sum whose last bit is that of the result, above it by a carry. */
INLINE uint16_t to_float16(float value) {
    uint32_t sign = bits_of(value) >> 16 & 0x8000, size = bits_of(value) & 0x7fffffff;
    if (size > 0x7f800000) return sign | 0x7e00;
    if (size >= 0x477ff000) return sign | 0x7c00;                                           /* 65520 and more: infinite */
    if (size < 0x38800000) return sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000);     /* less than 2^-14 */
    return sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
}

INLINE float from_float16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, size = half & 0x7fff;
    if (size < 0x400) return float_of(sign | bits_of((float)size * 0x1p-24f));
    return float_of(sign | ((size << 13) + (size < 0x7c00 ? 0x38000000 : 0x70000000)));
}

INLINE float weight_at(const void *values, int32_t dtype, int64_t i) {
    if (dtype == FLOAT32) return ((const float *)values)[i];
    uint16_t half = ((const uint16_t *)values)[i];
    return dtype == BFLOAT16 ? float_of((uint32_t)half << 16) : from_float16(half);
}

INLINE void put(const struct job *job, int64_t token, int64_t row, float sum) {
    int64_t i = token * job->rows + row;
    if (job->dtype == FLOAT32)
        ((float *)job->y)[i] = sum;
    else
        ((uint16_t *)job->y)[i] = job->dtype == BFLOAT16 ? to_bfloat16(sum) : to_float16(sum);
}

/* x, widened, the columns of each chunk in an order of their own, and noughts to fill the last chunk. */
INLINE void widen(const struct job *job, const int dtype, int order(int)) {
    for (int64_t token = 0; token < job->tokens; token++)
        for (int64_t start = 0; start < job->in; start += CHUNK) {
            float *to = (float *)input(job, token, start), from[CHUNK] = {0};
            int64_t count = job->in - start < CHUNK ? job->in - start : CHUNK;
            for (int64_t i = 0; i < count; i++) from[i] = weight_at(job->x, dtype, token * job->in + start + i);
            _Pragma("GCC unroll 128") for (int i = 0; i < CHUNK; i++) to[i] = from[order(i)];
        }
}

INLINE void widen_any(const struct job *job, int order(int)) {
    if (job->dtype == FLOAT32) widen(job, FLOAT32, order);
    else if (job->dtype == BFLOAT16) widen(job, BFLOAT16, order);
    else widen(job, FLOAT16, order);
}

INLINE void block_float32_plain(const struct job *job, const uint8_t *codes, float absmax, float *out) {
    float table[16];
    for (int i = 0; i < 16; i++) table[i] = job->code[i] * absmax;
    for (int64_t i = 0; i < job->block / 2; i++) {
        out[2 * i] = table[codes[i] >> 4];
        out[2 * i + 1] = table[codes[i] & 15];
    }
}

INLINE void block_16_bits_plain(const struct job *job, const uint8_t *codes, float absmax, uint16_t *out) {
    uint16_t table[16];
    for (int i = 0; i < 16; i++) {
        float value = job->code[i] * absmax;
        table[i] = job->dtype == BFLOAT16 ? to_bfloat16(value) : to_float16(value);
    }
    for (int64_t i = 0; i < job->block / 2; i++) {
        out[2 * i] = table[codes[i] >> 4];
        out[2 * i + 1] = table[codes[i] & 15];
    }
}

INLINE int place_plain(const float *steps, float scaled) {
    int place = 0;
    for (int step = 8; step; step /= 2) place += scaled > steps[place + step] ? step : 0;
    return place;
}

INLINE float block_quantize_plain(const struct job *job, const void *values, uint8_t *codes) {
    uint32_t largest = 0; /* magnitudes are ordered as their bits are */
    for (int64_t i = 0; i < job->block; i++) {
        uint32_t size = bits_of(weight_at(values, job->dtype, i)) & 0x7fffffff;
        largest = size > largest ? size : largest;
    }
    float scale = inverse(job, float_of(largest));
    for (int64_t i = 0; i < job->block / 2; i++) {
        int even = place_plain(job->steps, weight_at(values, job->dtype, 2 * i) * scale);
        int odd = place_plain(job->steps, weight_at(values, job->dtype, 2 * i + 1) * scale);
        codes[i] = even << 4 | odd;
    }
    return float_of(largest);
}

INLINE void row_product_plain(const struct job *job, int64_t row, int64_t token, const int T) {
    float sums[TOKENS][8] = {0};
    int64_t per_row = job->in / job->block;
    for (int64_t b = 0; b < per_row; b++) {
        const uint8_t *codes = job->codes + (row * job->in + b * job->block) / 2;
        const float *x = input(job, token, b * job->block);
        float absmax = constant(job, row * per_row + b), table[16];
        for (int i = 0; i < 16; i++) table[i] = job->code[i] * absmax;
        for (int64_t i = 0; i < job->block; i += 8)
            for (int j = 0; j < 8; j++) {
                float weight = table[codes[(i + j) / 2] >> (j % 2 ? 0 : 4) & 15];
                for (int t = 0; t < T; t++) sums[t][j] += weight * x[t * stride(job) + i + j];
            }
    }
    for (int t = 0; t < T; t++) {
        const float *s = sums[t];
        put(job, token + t, row, ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
    }
}

INLINE int order_plain(int i) { return i; }

VARIANT(plain, )
PRODUCT(plain, )

#ifdef __x86_64__
#ifndef AVX512 /* benchmarks/nf4_variants.c has functions of its own in the place of the instructions */
#include <immintrin.h>
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#endif

/* ---- AVX2 ---- */

#define AVX2 __attribute__((target("avx2,fma,f16c")))

/* Eight floats by the places in four bytes: the low three bits choose in each half; the fourth, as a sign, between the two. */
AVX2 INLINE __m256 look_up_avx2(__m256 low, __m256 high, const uint8_t *codes) {
    __m256i all = _mm256_set1_epi32(word_at(codes));
    __m256i place = _mm256_srlv_epi32(all, _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24));
    __m256i fourth = _mm256_sllv_epi32(all, _mm256_setr_epi32(24, 28, 16, 20, 8, 12, 0, 4));
    __m256 below = _mm256_permutevar8x32_ps(low, place), above = _mm256_permutevar8x32_ps(high, place);
    return _mm256_blendv_ps(below, above, _mm256_castsi256_ps(fourth));
}

AVX2 INLINE void block_float32_avx2(const struct job *job, const uint8_t *codes, float absmax, float *out) {
    __m256 low = _mm256_mul_ps(_mm256_loadu_ps(job->code), _mm256_set1_ps(absmax));
    __m256 high = _mm256_mul_ps(_mm256_loadu_ps(job->code + 8), _mm256_set1_ps(absmax));
    for (int64_t i = 0; i < job->block; i += 8) _mm256_storeu_ps(out + i, look_up_avx2(low, high, codes + i / 2));
}

AVX2 INLINE __m256i to_bfloat16_avx2(__m256 value) {
    __m256i bits = _mm256_castps_si256(value);
    __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), even);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan), 16);
}

AVX2 INLINE void block_16_bits_avx2(const struct job *job, const uint8_t *codes, float absmax, uint16_t *out) {
    __m256 low = _mm256_mul_ps(_mm256_loadu_ps(job->code), _mm256_set1_ps(absmax));
    __m256 high = _mm256_mul_ps(_mm256_loadu_ps(job->code + 8), _mm256_set1_ps(absmax));
    __m256i words; /* the table in order */
    if (job->dtype == BFLOAT16)
        words = _mm256_permute4x64_epi64(_mm256_packus_epi32(to_bfloat16_avx2(low), to_bfloat16_avx2(high)), 0xd8);
    else
        words = _mm256_set_m128i(_mm256_cvtps_ph(high, 0), _mm256_cvtps_ph(low, 0));
    __m256i bytes = _mm256_packus_epi16(_mm256_and_si256(words, _mm256_set1_epi16(255)), _mm256_srli_epi16(words, 8));
    __m256i lows = _mm256_permute4x64_epi64(bytes, 0x88), highs = _mm256_permute4x64_epi64(bytes, 0xdd);
    for (int64_t i = 0; i < job->block; i += 32) {
        /* quarters 0 and 2 in one lane, 1 and 3 in the other: below, each unpacking brings two neighbours together */
        __m128i packed = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(codes + i / 2)), 0xd8);
        __m256i pairs = _mm256_cvtepu8_epi16(packed);
        __m256i odd = _mm256_and_si256(_mm256_slli_epi16(pairs, 8), _mm256_set1_epi16(0xf00));
        __m256i places = _mm256_or_si256(_mm256_srli_epi16(pairs, 4), odd);
        __m256i low_bytes = _mm256_shuffle_epi8(lows, places), high_bytes = _mm256_shuffle_epi8(highs, places);
        _mm256_storeu_si256((__m256i *)(out + i), _mm256_unpacklo_epi8(low_bytes, high_bytes));
        _mm256_storeu_si256((__m256i *)(out + i + 16), _mm256_unpackhi_epi8(low_bytes, high_bytes));
    }
}

AVX2 INLINE __m256 weights_avx2(const void *values, int32_t dtype, int64_t i) {
    if (dtype == FLOAT32) return _mm256_loadu_ps((const float *)values + i);
    __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)values + i));
    if (dtype == FLOAT16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* Minus the places of eight weights. A comparison gives -1 where it holds, and sums of those are the index of the next midpoint
   in a table that is kept in that order: at -index, of which the look-up takes the low bits. */
AVX2 INLINE __m256i places_avx2(const float *steps, __m256 scaled) {
    const float *s = steps;
    __m256i first = _mm256_castps_si256(_mm256_cmp_ps(scaled, _mm256_set1_ps(s[8]), _CMP_GT_OQ));
    __m256 middle = _mm256_blendv_ps(_mm256_set1_ps(s[4]), _mm256_set1_ps(s[12]), _mm256_castsi256_ps(first));
    __m256i second = _mm256_castps_si256(_mm256_cmp_ps(scaled, middle, _CMP_GT_OQ));
    __m256i place = _mm256_add_epi32(_mm256_add_epi32(first, first), second);
    middle = _mm256_permutevar_ps(_mm256_setr_ps(s[2], s[14], s[10], s[6], s[2], s[14], s[10], s[6]), place);
    __m256i third = _mm256_castps_si256(_mm256_cmp_ps(scaled, middle, _CMP_GT_OQ));
    place = _mm256_add_epi32(_mm256_add_epi32(place, place), third);
    middle = _mm256_permutevar8x32_ps(_mm256_setr_ps(s[1], s[15], s[13], s[11], s[9], s[7], s[5], s[3]), place);
    __m256i fourth = _mm256_castps_si256(_mm256_cmp_ps(scaled, middle, _CMP_GT_OQ));
    return _mm256_add_epi32(_mm256_add_epi32(place, place), fourth);
}

AVX2 INLINE float block_quantize_avx2(const struct job *job, const void *values, uint8_t *codes) {
    __m256i largest = _mm256_setzero_si256(); /* magnitudes are ordered as their bits are */
    for (int64_t i = 0; i < job->block; i += 8) {
        __m256i bits = _mm256_castps_si256(weights_avx2(values, job->dtype, i));
        largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
    }
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    float absmax = float_of(_mm_cvtsi128_si32(four));
    __m256 scale = _mm256_set1_ps(inverse(job, absmax));
    for (int64_t i = 0; i < job->block; i += 32) {
        __m256i p[4];
        for (int j = 0; j < 4; j++) {
            __m256 weights = weights_avx2(values, job->dtype, i + 8 * j);
            p[j] = places_avx2(job->steps, _mm256_mul_ps(weights, scale));
        }
        __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(p[0], p[1]), _mm256_packs_epi32(p[2], p[3]));
        __m256i sums = _mm256_maddubs_epi16(_mm256_set1_epi16(0x0110), bytes); /* 16 even + odd, still negative */
        sums = _mm256_sub_epi16(_mm256_setzero_si256(), sums);
        __m128i out = _mm_packus_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        out = _mm_unpacklo_epi16(out, _mm_unpackhi_epi64(out, out)); /* each four places had their halves apart */
        _mm_storeu_si128((__m128i *)(codes + i / 2), out);
    }
    return absmax;
}

/* The order in which the weights of 64 bytes' halves come apart below. */
INLINE int order_avx2(int i) {
    int odd = i >> 5 & 1, quarter = i >> 3 & 3, lane = i >> 2 & 1, place = i & 3;
    return (i & 64) + 32 * lane + 8 * quarter + 2 * place + odd;
}

/* Bytes 0 to 3 of the code are looked up apart, 32 places at a time, and put together by unpacking. */
AVX2 INLINE void row_product_avx2(const struct job *job, int64_t row, int64_t token, const int T) {
    __m256 sums[TOKENS];
    for (int t = 0; t < T; t++) sums[t] = _mm256_setzero_ps();
    __m256i table[4];
    for (int k = 0; k < 4; k++)
        table[k] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(job->code_bytes + 16 * k)));
    const int64_t first = row * job->in, to_next = stride(job);
    for (int64_t i = 0; i < job->in; i += PIECE) {
        const uint8_t *codes = job->codes + (first + i) / 2;
        const float *x = input(job, token, i);
        __m256i packed = _mm256_loadu_si256((const __m256i *)codes);
        __m256 pieces[TOKENS];
        if (i % (2 * PIECE) == 0) __builtin_prefetch(codes + AHEAD);
        UNROLL for (int odd = 0; odd < 2; odd++) {
            __m256i places = _mm256_and_si256(odd ? packed : _mm256_srli_epi16(packed, 4), _mm256_set1_epi8(15));
            __m256i byte0 = _mm256_shuffle_epi8(table[0], places), byte1 = _mm256_shuffle_epi8(table[1], places);
            __m256i byte2 = _mm256_shuffle_epi8(table[2], places), byte3 = _mm256_shuffle_epi8(table[3], places);
            __m256i low01 = _mm256_unpacklo_epi8(byte0, byte1), high01 = _mm256_unpackhi_epi8(byte0, byte1);
            __m256i low23 = _mm256_unpacklo_epi8(byte2, byte3), high23 = _mm256_unpackhi_epi8(byte2, byte3);
            __m256i quarters[4] = {_mm256_unpacklo_epi16(low01, low23), _mm256_unpackhi_epi16(low01, low23),
                                   _mm256_unpacklo_epi16(high01, high23), _mm256_unpackhi_epi16(high01, high23)};
            UNROLL for (int q = 0; q < 4; q++)
                UNROLL for (int t = 0; t < T; t++) {
                    __m256 inputs = _mm256_loadu_ps(x + t * to_next + 32 * odd + 8 * q);
                    __m256 weights = _mm256_castsi256_ps(quarters[q]);
                    pieces[t] = odd + q ? _mm256_fmadd_ps(weights, inputs, pieces[t]) : _mm256_mul_ps(weights, inputs);
                }
        }
        __m256 absmax = _mm256_set1_ps(constant(job, (first + i) / job->block));
        UNROLL for (int t = 0; t < T; t++) sums[t] = _mm256_fmadd_ps(absmax, pieces[t], sums[t]);
    }
    UNROLL for (int t = 0; t < T; t++) {
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums[t]), _mm256_extractf128_ps(sums[t], 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        put(job, token + t, row, _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1))));
    }
}

VARIANT(avx2, AVX2)
PRODUCT(avx2, AVX2)

/* ---- AVX-512 ---- */

/* Sixteen floats by the places in eight bytes. */
AVX512 INLINE __m512 look_up_avx512(__m512 table, const uint8_t *codes) {
    const __m512i shifts = _mm512_set_epi32(24, 28, 16, 20, 8, 12, 0, 4, 24, 28, 16, 20, 8, 12, 0, 4);
    __m512i all = _mm512_mask_set1_epi32(_mm512_set1_epi32(word_at(codes)), 0xff00, word_at(codes + 4));
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(all, shifts), table);
}

AVX512 INLINE __m512 table_avx512(const struct job *job, float absmax) {
    return _mm512_mul_ps(_mm512_loadu_ps(job->code), _mm512_set1_ps(absmax));
}

AVX512 INLINE void block_float32_avx512(const struct job *job, const uint8_t *codes, float absmax, float *out) {
    __m512 table = table_avx512(job, absmax);
    for (int64_t i = 0; i < job->block; i += 16) _mm512_storeu_ps(out + i, look_up_avx512(table, codes + i / 2));
}

AVX512 INLINE __m256i to_bfloat16_avx512(__m512 value) {
    __m512i bits = _mm512_castps_si512(value);
    __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), even);
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

AVX512 INLINE void block_16_bits_avx512(const struct job *job, const uint8_t *codes, float absmax, uint16_t *out) {
    /* word k of the codes four times, and the shift that brings each of its places down */
    const __m512i spread = _mm512_set_epi16(7, 7, 7, 7, 6, 6, 6, 6, 5, 5, 5, 5, 4, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1,
                                            0, 0, 0, 0);
    const __m512i shifts = _mm512_set1_epi64(0x0008000c00000004);
    __m512 value = table_avx512(job, absmax);
    __m256i words = job->dtype == BFLOAT16 ? to_bfloat16_avx512(value) : _mm512_cvtps_ph(value, 0);
    __m512i table = _mm512_broadcast_i64x4(words); /* twice: the look-up takes five bits */
    for (int64_t i = 0; i < job->block; i += 32) {
        __m512i packed = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(codes + i / 2)));
        __m512i places = _mm512_srlv_epi16(_mm512_permutexvar_epi16(spread, packed), shifts);
        _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(places, table));
    }
}

AVX512 INLINE __m512 weights_avx512(const void *values, int32_t dtype, int64_t i) {
    if (dtype == FLOAT32) return _mm512_loadu_ps((const float *)values + i);
    __m256i half = _mm256_loadu_si256((const __m256i *)((const uint16_t *)values + i));
    if (dtype == FLOAT16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

AVX512 INLINE float block_quantize_avx512(const struct job *job, const void *values, uint8_t *codes) {
    __m512i largest = _mm512_setzero_si512(); /* magnitudes are ordered as their bits are */
    for (int64_t i = 0; i < job->block; i += 16) {
        __m512i bits = _mm512_castps_si512(weights_avx512(values, job->dtype, i));
        largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    float absmax = float_of(_mm512_reduce_max_epi32(largest));
    __m512 scale = _mm512_set1_ps(inverse(job, absmax)), steps = _mm512_loadu_ps(job->steps);
    for (int64_t i = 0; i < job->block; i += 16) {
        __m512 scaled = _mm512_mul_ps(weights_avx512(values, job->dtype, i), scale);
        __m512i place = _mm512_setzero_si512();
        UNROLL for (int step = 8; step; step /= 2) {
            __m512i higher = _mm512_or_si512(place, _mm512_set1_epi32(step));
            __mmask16 above = _mm512_cmp_ps_mask(scaled, _mm512_permutexvar_ps(higher, steps), _CMP_GT_OQ);
            place = _mm512_mask_mov_epi32(place, above, higher);
        }
        /* even places are the lower halves of eight numbers of 64 bits */
        __m512i pairs = _mm512_or_si512(_mm512_slli_epi64(place, 4), _mm512_srli_epi64(place, 32));
        _mm_storel_epi64((__m128i *)(codes + i / 2), _mm512_cvtepi64_epi8(pairs));
    }
    return absmax;
}

/* Word w of 16 holds columns 8 w to 8 w + 7 of a chunk, an even one in the upper half of its byte. */
INLINE int order_avx512(int i) {
    int eighth = i >> 4, word = i & 15;
    return 8 * word + (eighth ^ 1);
}

AVX512 INLINE __m512 halves_avx512(float low, float high) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(low), 0xff00, _mm512_set1_ps(high));
}

/* The constants of a piece in the lower half and, where `mask` has it, of the next one in the upper, each step rounded by itself. */
AVX512 INLINE __m512 constants_avx512(const struct job *job, int64_t piece, int shift, __mmask16 mask) {
    int64_t low = job->first + (piece >> shift), high = mask >> 8 ? job->first + ((piece + 1) >> shift) : low;
    if (job->nested == NULL) {
        const float *absmax = job->absmax;
        return _mm512_maskz_mov_ps(mask, halves_avx512(absmax[low], absmax[high]));
    }
    const uint8_t *places = job->absmax;
    __m512 values = halves_avx512(job->map[places[low]], job->map[places[high]]);
    int64_t group = low >> job->nested_shift, next = high >> job->nested_shift;
    __m512 scales = _mm512_set1_ps(job->nested[group]);
    if (next != group) scales = halves_avx512(job->nested[group], job->nested[next]);
    return _mm512_maskz_add_ps(mask, _mm512_mul_ps(values, scales), _mm512_set1_ps(job->offset));
}

/* Sixteen sums of products of part k of each word, whose places are looked up in the code, with inputs. */
typedef __m512 adding(__m512 sums, __m512i words, int k, __m512i code, const void *inputs);

AVX512 INLINE __m512i code_avx512(const struct job *job) { return _mm512_loadu_si512(job->code); }

AVX512 INLINE __m512 add_avx512(__m512 sums, __m512i words, int k, __m512i code, const void *inputs) {
    __m512 weights = _mm512_permutexvar_ps(k ? _mm512_srli_epi32(words, 4 * k) : words, _mm512_castsi512_ps(code));
    return _mm512_fmadd_ps(weights, _mm512_loadu_ps(inputs), sums);
}

/* What a chunk of R rows of W adds to the sums of T tokens: `codes` and `x` are where it begins in the first of each, `piece` is its
   number in the first row; `mask` has the words that there are. A part is a vector of inputs. */
AVX512 INLINE void chunk_avx512(const struct job *job, const uint8_t *codes, const char *x, int64_t piece, const int R, const int T,
                                const __mmask16 mask, __m512i code, __m512 sums[ROWS][TOKENS], const int parts, adding add) {
    const int64_t bytes = job->in >> 1, ahead = R == 1 ? AHEAD : R * bytes, to_next = stride(job) * parts * sizeof(__m512i) / CHUNK;
    const int shift = __builtin_ctzll((uint64_t)job->block / PIECE);
    __m512i words[ROWS];
    __m512 chunks[ROWS][TOKENS];
    UNROLL for (int r = 0; r < R; r++) {
        words[r] = _mm512_maskz_loadu_epi32(mask, codes + r * bytes);
        __builtin_prefetch(codes + r * bytes + ahead);
        UNROLL for (int t = 0; t < T; t++) chunks[r][t] = _mm512_setzero_ps();
    }
    UNROLL for (int k = 0; k < parts; k++)
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int t = 0; t < T; t++)
                chunks[r][t] = add(chunks[r][t], words[r], k, code, x + t * to_next + k * sizeof(__m512i));
    UNROLL for (int r = 0; r < R; r++) {
        __m512 constants = constants_avx512(job, piece + r * (job->in / PIECE), shift, mask);
        UNROLL for (int t = 0; t < T; t++) sums[r][t] = _mm512_fmadd_ps(constants, chunks[r][t], sums[r][t]);
    }
}

/* R rows of W with T tokens; what a product adds up to is multiplied by `factor` in the end. */
AVX512 INLINE void rows_product_avx512(const struct job *job, int64_t row, int64_t token, const int R, const int T, __m512i code,
                                       const float factor, const int parts, adding add) {
    const int64_t width = parts * sizeof(__m512i);
    const uint8_t *codes = job->codes + row * (job->in >> 1);
    const char *x = (const char *)job->own + token * stride(job) * width / CHUNK;
    __m512 sums[ROWS][TOKENS];
    int64_t left = job->in, piece = row * (job->in / PIECE);
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < T; t++) sums[r][t] = _mm512_setzero_ps();
    for (; left >= CHUNK; left -= CHUNK, codes += CHUNK / 2, x += width, piece += CHUNK / PIECE)
        chunk_avx512(job, codes, x, piece, R, T, 0xffff, code, sums, parts, add);
    if (left) chunk_avx512(job, codes, x, piece, R, T, 0xff, code, sums, parts, add);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int t = 0; t < T; t++) put(job, token + t, row + r, _mm512_reduce_add_ps(sums[r][t]) * factor);
}

#define PRODUCT_512(name, target, table, factor, parts)                                                                       \
    target static void product_##name(const struct job *job, int64_t start, int64_t stop) {                                   \
        const __m512i code = table(job);                                                                                      \
        for (int64_t row = start, step; row < stop; row += step) {                                                            \
            step = job->tokens > 1 && stop - row >= ROWS ? ROWS : 1;                                                          \
            for (int64_t token = 0; token < job->tokens; token += TOKENS) {                                                   \
                int64_t left = job->tokens - token;                                                                           \
                switch ((left < TOKENS ? left : TOKENS) + (step == ROWS ? TOKENS : 0)) {                                      \
                    case 1: rows_product_avx512(job, row, token, 1, 1, code, factor, parts, add_##name); break;               \
                    case 2: rows_product_avx512(job, row, token, 1, 2, code, factor, parts, add_##name); break;               \
                    case 3: rows_product_avx512(job, row, token, 1, 3, code, factor, parts, add_##name); break;               \
                    case TOKENS: rows_product_avx512(job, row, token, 1, TOKENS, code, factor, parts, add_##name); break;     \
                    case TOKENS + 1: rows_product_avx512(job, row, token, ROWS, 1, code, factor, parts, add_##name); break;   \
                    case TOKENS + 2: rows_product_avx512(job, row, token, ROWS, 2, code, factor, parts, add_##name); break;   \
                    case TOKENS + 3: rows_product_avx512(job, row, token, ROWS, 3, code, factor, parts, add_##name); break;   \
                    default: rows_product_avx512(job, row, token, ROWS, TOKENS, code, factor, parts, add_##name);             \
                }                                                                                                             \
            }                                                                                                                 \
        }                                                                                                                     \
    }

PRODUCT_512(avx512, AVX512, code_avx512, 1, 8)

/* ---- AVX-512 with products of bfloat16: for tokens in it ---- */

#ifndef INLAY_SIMDE
#define BFLOAT16_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

/* The code times this comes closest to numbers of bfloat16: what rounding it does to weights of a normal distribution is 8e-4 of
   them (root of mean squares), half of what rounding finished weights does. */
#define FACTOR 1.4367f

/* Twice: the look-up takes five bits, the fifth of which belongs to another place. */
BFLOAT16_TARGET INLINE __m512i code_bfloat16(const struct job *job) {
    __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(job->code), _mm512_set1_ps(FACTOR));
    return _mm512_broadcast_i64x4(to_bfloat16_avx512(scaled));
}

BFLOAT16_TARGET INLINE __m512 add_bfloat16(__m512 sums, __m512i words, int k, __m512i code, const void *inputs) {
    __m512i weights = _mm512_permutexvar_epi16(k ? _mm512_srli_epi16(words, 4 * k) : words, code);
    return _mm512_dpbf16_ps(sums, (__m512bh)weights, (__m512bh)_mm512_loadu_si512(inputs));
}

PRODUCT_512(bfloat16, BFLOAT16_TARGET, code_bfloat16, 1 / FACTOR, 4)

/* Word w of 32 holds columns 4 w to 4 w + 3 of a chunk. */
INLINE int order_bfloat16(int i) {
    int quarter = i >> 5, word = i & 31;
    return 4 * word + (quarter ^ 1);
}

/* x as it is, the columns of each chunk in that order, and noughts to fill the last chunk. */
INLINE void reorder(const struct job *job) {
    for (int64_t token = 0; token < job->tokens; token++)
        for (int64_t start = 0; start < job->in; start += CHUNK) {
            uint16_t *to = (uint16_t *)job->own + token * stride(job) + start, from[CHUNK] = {0};
            int64_t count = job->in - start < CHUNK ? job->in - start : CHUNK;
            memcpy(from, (const uint16_t *)job->x + token * job->in + start, count * sizeof *from);
            _Pragma("GCC unroll 128") for (int i = 0; i < CHUNK; i++) to[i] = from[order_bfloat16(i)];
        }
}
#endif

VARIANT(avx512, AVX512)
#endif

#if defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>

/* ---- NEON: part of every 64-bit ARM ---- */

/* The places in sixteen bytes, in order. */
INLINE uint8x16x2_t places_neon(const uint8_t *codes) {
    uint8x16_t packed = vld1q_u8(codes), even = vshrq_n_u8(packed, 4), odd = vandq_u8(packed, vdupq_n_u8(15));
    return (uint8x16x2_t){{vzip1q_u8(even, odd), vzip2q_u8(even, odd)}};
}

/* The finished values of a block, with byte k of all of them in `val[k]`. */
INLINE uint8x16x4_t table_neon(const struct job *job, float absmax) {
    float table[16];
    for (int i = 0; i < 16; i++) table[i] = job->code[i] * absmax;
    return vld4q_u8((const uint8_t *)table);
}

INLINE uint8x16x4_t look_up_neon(uint8x16x4_t table, uint8x16_t places) {
    for (int k = 0; k < 4; k++) table.val[k] = vqtbl1q_u8(table.val[k], places);
    return table;
}

INLINE void block_float32_neon(const struct job *job, const uint8_t *codes, float absmax, float *out) {
    uint8x16x4_t table = table_neon(job, absmax);
    for (int64_t i = 0; i < job->block; i += 32) {
        uint8x16x2_t places = places_neon(codes + i / 2);
        for (int j = 0; j < 2; j++) vst4q_u8((uint8_t *)(out + i + 16 * j), look_up_neon(table, places.val[j]));
    }
}

INLINE void block_16_bits_neon(const struct job *job, const uint8_t *codes, float absmax, uint16_t *out) {
    uint16_t words[16];
    for (int i = 0; i < 16; i++) {
        float value = job->code[i] * absmax;
        words[i] = job->dtype == BFLOAT16 ? to_bfloat16(value) : to_float16(value);
    }
    uint8x16x2_t table = vld2q_u8((const uint8_t *)words);
    for (int64_t i = 0; i < job->block; i += 32) {
        uint8x16x2_t places = places_neon(codes + i / 2);
        for (int j = 0; j < 2; j++) {
            uint8x16_t low = vqtbl1q_u8(table.val[0], places.val[j]), high = vqtbl1q_u8(table.val[1], places.val[j]);
            vst2q_u8((uint8_t *)(out + i + 16 * j), (uint8x16x2_t){{low, high}});
        }
    }
}

INLINE float32x4_t weights_neon(const void *values, int32_t dtype, int64_t i) {
    if (dtype == FLOAT32) return vld1q_f32((const float *)values + i);
    uint16x4_t half = vld1_u16((const uint16_t *)values + i);
    if (dtype == FLOAT16) return vcvt_f32_f16(vreinterpret_f16_u16(half));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

INLINE uint32x4_t place_neon(const float *steps, float32x4_t scaled) {
    uint32x4_t place = vdupq_n_u32(0);
    for (int j = 1; j < 16; j++) place = vsubq_u32(place, vcgtq_f32(scaled, vdupq_n_f32(steps[j])));
    return place;
}

INLINE float block_quantize_neon(const struct job *job, const void *values, uint8_t *codes) {
    uint32x4_t largest = vdupq_n_u32(0); /* magnitudes are ordered as their bits are */
    for (int64_t i = 0; i < job->block; i += 4) {
        uint32x4_t bits = vreinterpretq_u32_f32(weights_neon(values, job->dtype, i));
        largest = vmaxq_u32(largest, vandq_u32(bits, vdupq_n_u32(0x7fffffff)));
    }
    float absmax = float_of(vmaxvq_u32(largest)), scale = inverse(job, absmax);
    for (int64_t i = 0; i < job->block; i += 16) {
        uint16x4_t places[4];
        for (int j = 0; j < 4; j++) {
            float32x4_t weights = weights_neon(values, job->dtype, i + 4 * j);
            places[j] = vmovn_u32(place_neon(job->steps, vmulq_n_f32(weights, scale)));
        }
        uint8x8_t first = vmovn_u16(vcombine_u16(places[0], places[1]));
        uint8x8_t second = vmovn_u16(vcombine_u16(places[2], places[3]));
        vst1_u8(codes + i / 2, vorr_u8(vshl_n_u8(vuzp1_u8(first, second), 4), vuzp2_u8(first, second)));
    }
    return absmax;
}

INLINE void row_product_neon(const struct job *job, int64_t row, int64_t token, const int T) {
    float32x4_t sums[TOKENS][2]; /* two of one token do not wait for each other */
    for (int t = 0; t < T; t++) sums[t][0] = sums[t][1] = vdupq_n_f32(0);
    int64_t per_row = job->in / job->block;
    for (int64_t b = 0; b < per_row; b++) {
        const uint8_t *codes = job->codes + (row * job->in + b * job->block) / 2;
        const float *x = input(job, token, b * job->block);
        uint8x16x4_t table = table_neon(job, constant(job, row * per_row + b));
        for (int64_t i = 0; i < job->block; i += 32) {
            uint8x16x2_t places = places_neon(codes + i / 2);
            UNROLL for (int j = 0; j < 2; j++) {
                uint8x16x4_t bytes = look_up_neon(table, places.val[j]);
                uint16x8x2_t low = vzipq_u16(vreinterpretq_u16_u8(vzip1q_u8(bytes.val[0], bytes.val[1])),
                                             vreinterpretq_u16_u8(vzip1q_u8(bytes.val[2], bytes.val[3])));
                uint16x8x2_t high = vzipq_u16(vreinterpretq_u16_u8(vzip2q_u8(bytes.val[0], bytes.val[1])),
                                              vreinterpretq_u16_u8(vzip2q_u8(bytes.val[2], bytes.val[3])));
                uint16x8_t weights[4] = {low.val[0], low.val[1], high.val[0], high.val[1]};
                UNROLL for (int k = 0; k < 4; k++)
                    UNROLL for (int t = 0; t < T; t++) {
                        float32x4_t inputs = vld1q_f32(x + t * stride(job) + i + 16 * j + 4 * k);
                        sums[t][k % 2] = vfmaq_f32(sums[t][k % 2], vreinterpretq_f32_u16(weights[k]), inputs);
                    }
            }
        }
    }
    UNROLL for (int t = 0; t < T; t++)
        put(job, token + t, row, vaddvq_f32(vaddq_f32(sums[t][0], sums[t][1])));
}

VARIANT(neon, )
PRODUCT(neon, )
#endif

/* ---- What is called from outside ---- */

static range *const RANGES[VARIANTS][3] = {
    [PLAIN] = {dequantize_plain, quantize_plain, product_plain},
#ifdef __x86_64__
    [AVX2_FMA_F16C] = {dequantize_avx2, quantize_avx2, product_avx2},
    [AVX512_F_BW_DQ_VL] = {dequantize_avx512, quantize_avx512, product_avx512},
#endif
#if defined(__aarch64__) && defined(__ARM_NEON)
    [NEON] = {dequantize_neon, quantize_neon, product_neon},
#endif
};

int inlay_supports(int variant) {
    if (variant < 0 || variant >= VARIANTS || RANGES[variant][0] == NULL) return 0;
#ifdef __x86_64__
    __builtin_cpu_init();
    if (variant == AVX2_FMA_F16C) /* every processor with AVX2 has F16C, which not every compiler lets one ask for */
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (variant == AVX512_F_BW_DQ_VL)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return 1;
}

/* What attention needs, and the products of bfloat16 here and in `product.c`. */
int inlay_multiplies_bfloat16(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    return inlay_supports(AVX512_F_BW_DQ_VL) && __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}

/* The caller's idea of a job has to be of this size. */
int inlay_nf4_job_bytes(void) { return sizeof(struct job); }

/* Units 0 <= i < total of a job: blocks, or rows of a product. `omp` is GOMP_parallel, or NULL for one thread. */
void inlay_nf4_run(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads, parallel *omp) {
    range *work = RANGES[variant][function];
#ifdef __x86_64__
#ifndef INLAY_SIMDE
    if (work == product_avx512 && job->dtype == BFLOAT16 && inlay_multiplies_bfloat16()) {
        work = product_bfloat16;
        reorder(job);
    } else
#endif
    if (work == product_avx2) widen_any(job, order_avx2);
    else if (work == product_avx512) widen_any(job, order_avx512);
    else
#endif
        if (function == 2) widen_any(job, order_plain);
    share(work, job, total, chunk, threads, omp);
}
