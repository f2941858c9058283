/* The product of tokens with a weight; of a few it is bound by the memory that the weight comes from:

       y[t, r] = sum_i x[t, i] W[r, i],    in float32, rounded once to the dtype of y

   A tile of ROWS rows of W and TOKENS tokens keeps its sums in registers, or one of FEWER_ROWS and MORE_TOKENS where there are
   registers for both of their inputs; a row is read from memory once, and from the cache for the tokens after the first few. Each
   sum is made in one order, whatever is computed beside it, so that a token's output does not depend on how many tokens there are.

   W is float32, or bfloat16: that is widened where x is float32. Where both are bfloat16 and the processor multiplies it, one
   instruction adds two products to each of 16 sums. Many tokens are for tiles alone. Or W is whole numbers of eight bits with a
   scale for each row, 127 times as large as what they are multiplied with; they and x are widened. */

#include <stdlib.h>

#include "low_rank.h"

enum { ROWS = 4, TOKENS = 4, FEWER_ROWS = 2, MORE_TOKENS = 8, SUMS = ROWS * TOKENS, ROWS_OF_TILES = 64 };
enum { TILES = 3, INT8 = 5, FUNCTIONS = 7 };

/* Bytes of W that are asked for before they are needed, along the rows of a tile and then along those of the next; for the second
   cache, since the first waits for fewer lines at a time than memory can have under way. */
enum { AHEAD = 8192 };

struct job {
    const void *x; /* (tokens, in); by tiles (in / 2, tokens) words of two numbers */
    const void *w; /* (rows, in) */
    void *y;       /* (tokens, rows) in the dtype of x */
    int64_t tokens, rows, in;
    const struct added *added; /* to y, once a unit is done; or NULL. Not beside many tokens, nor where tiles overlap */
    const float *scales;       /* (rows,) of W in whole numbers */
};

#define UNROLL_ALL _Pragma("GCC unroll 16")

INLINE void store_float32(const struct job *job, int64_t token, int64_t row, const float *sums, int rows) {
    memcpy((float *)job->y + token * job->rows + row, sums, rows * sizeof *sums);
}

INLINE void store_bfloat16(const struct job *job, int64_t token, int64_t row, const float *sums, int rows) {
    for (int r = 0; r < rows; r++) ((uint16_t *)job->y)[token * job->rows + row + r] = to_bfloat16(sums[r]);
}

#define STEP 7.874015718698502e-3f /* 1 / 127, as `inlay.quant.int8` has it */

INLINE void scale(const struct job *job, int64_t row, const float *sums, int rows, float *scaled) {
    for (int r = 0; r < rows; r++) scaled[r] = sums[r] * job->scales[row + r] * STEP;
}

INLINE void store_scaled(const struct job *job, int64_t token, int64_t row, const float *sums, int rows) {
    float scaled[SUMS];
    scale(job, row, sums, rows, scaled);
    store_float32(job, token, row, scaled, rows);
}

INLINE void store_scaled_bfloat16(const struct job *job, int64_t token, int64_t row, const float *sums, int rows) {
    float scaled[SUMS];
    scale(job, row, sums, rows, scaled);
    store_bfloat16(job, token, row, scaled, rows);
}

INLINE float from_int8(int8_t value) { return value; }
INLINE float from_float32(float value) { return value; }
INLINE float from_bfloat16(uint16_t value) { return float_of((uint32_t)value << 16); }

/* One function of a variant. `vector` holds sums; it takes `lanes` numbers of x and of W at a time, which `load_x` and `load_w`
   read, `add` multiplies and adds, and `totals` adds up in the end, all of a tile. `X` and `W` are x and w, of dtypes that `from_`
   makes floats of. `registers` are those of the processor. */
#define PRODUCT(name, target, registers, vector, lanes, zero, X, load_x, from_x, W, load_w, from_w, add, totals, store)   \
    target INLINE void tile_##name(const struct job *job, int64_t row, int64_t token, const int rows, const int tokens) { \
        const int64_t in = job->in;                                                                                       \
        const W *w = (const W *)job->w + row * in;                                                                        \
        const X *x = (const X *)job->x + token * in;                                                                      \
        vector sums[SUMS];                                                                                                \
        UNROLL_ALL for (int k = 0; k < SUMS; k++) sums[k] = zero;                                                         \
        const int64_t soon = AHEAD / rows / (int64_t)sizeof(W);                                                           \
        int64_t i = 0;                                                                                                    \
        for (; i + lanes <= in; i += lanes) {                                                                             \
            const W *next = w + i + soon + (i + soon < in ? 0 : (rows - 1) * in);                                         \
            __typeof__(load_x(x)) b[MORE_TOKENS];                                                                         \
            UNROLL_ALL for (int t = 0; t < tokens; t++) b[t] = load_x(x + t * in + i);                                    \
            UNROLL_ALL for (int r = 0; r < rows; r++) {                                                                   \
                __typeof__(load_w(w)) a = load_w(w + r * in + i);                                                         \
                if (token == 0 && i * sizeof(W) % LINE < lanes * sizeof(W)) __builtin_prefetch(next + r * in, 0, 2);      \
                UNROLL_ALL for (int t = 0; t < tokens; t++) sums[t * rows + r] = add(sums[t * rows + r], a, b[t]);        \
            }                                                                                                             \
        }                                                                                                                 \
        float all[SUMS];                                                                                                  \
        totals(sums, rows * tokens, all);                                                                                 \
        if (i < in)                                                                                                       \
            for (int t = 0; t < tokens; t++)                                                                              \
                for (int r = 0; r < rows; r++) {                                                                          \
                    float rest = 0;                                                                                       \
                    for (int64_t j = i; j < in; j++) rest += from_w(w[r * in + j]) * from_x(x[t * in + j]);               \
                    all[t * rows + r] += rest;                                                                            \
                }                                                                                                         \
        UNROLL_ALL for (int t = 0; t < tokens; t++) store(job, token + t, row, all + t * rows, rows);                     \
    }                                                                                                                     \
    target static void product_##name(const struct job *job, int64_t start, int64_t stop) {                               \
        int64_t row = start * ROWS, end = stop * ROWS < job->rows ? stop * ROWS : job->rows;                              \
        if (job->tokens == 1)                                                                                             \
            for (; row + SUMS <= end; row += SUMS) tile_##name(job, row, 0, SUMS, 1);                                     \
        if (job->tokens == 2)                                                                                             \
            for (; row + SUMS / 2 <= end; row += SUMS / 2) tile_##name(job, row, 0, SUMS / 2, 2);                         \
        if (registers > SUMS && job->tokens > TOKENS)                                                                     \
            for (; row + FEWER_ROWS <= end; row += FEWER_ROWS)                                                            \
                for (int64_t token = 0; token < job->tokens; token += MORE_TOKENS) switch (job->tokens - token) {         \
                        case 1: tile_##name(job, row, token, FEWER_ROWS, 1); break;                                       \
                        case 2: tile_##name(job, row, token, FEWER_ROWS, 2); break;                                       \
                        case 3: tile_##name(job, row, token, FEWER_ROWS, 3); break;                                       \
                        case 4: tile_##name(job, row, token, FEWER_ROWS, 4); break;                                       \
                        case 5: tile_##name(job, row, token, FEWER_ROWS, 5); break;                                       \
                        case 6: tile_##name(job, row, token, FEWER_ROWS, 6); break;                                       \
                        case 7: tile_##name(job, row, token, FEWER_ROWS, 7); break;                                       \
                        default: tile_##name(job, row, token, FEWER_ROWS, MORE_TOKENS);                                   \
                    }                                                                                                     \
        for (; row + ROWS <= end; row += ROWS)                                                                            \
            for (int64_t token = 0; token < job->tokens; token += TOKENS) switch (job->tokens - token) {                  \
                    case 1: tile_##name(job, row, token, ROWS, 1); break;                                                 \
                    case 2: tile_##name(job, row, token, ROWS, 2); break;                                                 \
                    case 3: tile_##name(job, row, token, ROWS, 3); break;                                                 \
                    default: tile_##name(job, row, token, ROWS, TOKENS);                                                  \
                }                                                                                                         \
        for (; row < end; row++)                                                                                          \
            for (int64_t token = 0; token < job->tokens; token++) tile_##name(job, row, token, 1, 1);                     \
    }

/* x in float32, W in float32 or bfloat16; and x in either, W in whole numbers. */
#define VARIANT(name, target, registers, vector, lanes, zero, load_float32, load_bfloat16, load_int8, add, totals)                        \
    PRODUCT(name##_int8, target, registers, vector, lanes, zero, float, load_float32, from_float32, int8_t, load_int8, from_int8, add,    \
            totals, store_scaled)                                                                                                         \
    PRODUCT(name##_int8_bfloat16, target, registers, vector, lanes, zero, uint16_t, load_bfloat16, from_bfloat16, int8_t, load_int8,      \
            from_int8, add, totals, store_scaled_bfloat16)                                                                                \
    PRODUCT(name##_float32, target, registers, vector, lanes, zero, float, load_float32, from_float32, float, load_float32, from_float32, \
            add, totals, store_float32)                                                                                                   \
    PRODUCT(name##_widened, target, registers, vector, lanes, zero, float, load_float32, from_float32, uint16_t, load_bfloat16,           \
            from_bfloat16, add, totals, store_float32)

#define PLAIN_LOAD(address) from_float32(*(address))
#define PLAIN_WIDEN(address) from_bfloat16(*(address))
#define PLAIN_INT8(address) from_int8(*(address))
#define PLAIN_ADD(sum, a, b) ((sum) + (a) * (b))
#define PLAIN_TOTALS(sums, count, all) memcpy(all, sums, (count) * sizeof(float))
VARIANT(plain, , 0, float, 1, 0.0f, PLAIN_LOAD, PLAIN_WIDEN, PLAIN_INT8, PLAIN_ADD, PLAIN_TOTALS)

#ifdef __x86_64__
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))
AVX2 INLINE __m256 widen_avx2(const uint16_t *address) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)address)), 16));
}
AVX2 INLINE __m256 int8_avx2(const int8_t *address) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)address)));
}
AVX2 INLINE float sum_avx2(__m256 sums) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
#define TOTALS_AVX2(sums, count, all) UNROLL_ALL for (int k = 0; k < (count); k++) (all)[k] = sum_avx2((sums)[k])
#define ADD_AVX2(sum, a, b) _mm256_fmadd_ps(a, b, sum)
VARIANT(avx2, AVX2, 16, __m256, 8, _mm256_setzero_ps(), _mm256_loadu_ps, widen_avx2, int8_avx2, ADD_AVX2, TOTALS_AVX2)

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
AVX512 INLINE __m512 widen_avx512(const uint16_t *address) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)address)), 16));
}
AVX512 INLINE __m512 int8_avx512(const int8_t *address) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)address)));
}
/* The sums of 16 vectors, each by halves: two vectors are added where one would be, then four, eight, sixteen. */
AVX512 INLINE void totals_avx512(const __m512 *sums, const int count, float *all) {
    __m512 a[SUMS];
    UNROLL_ALL for (int k = 0; k < SUMS; k++) a[k] = k < count ? sums[k] : _mm512_setzero_ps();
    UNROLL_ALL for (int k = 0; k < SUMS / 2; k++)
        a[k] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * k], a[2 * k + 1], 0x44), _mm512_shuffle_f32x4(a[2 * k], a[2 * k + 1], 0xee));
    UNROLL_ALL for (int k = 0; k < SUMS / 4; k++)
        a[k] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * k], a[2 * k + 1], 0x88), _mm512_shuffle_f32x4(a[2 * k], a[2 * k + 1], 0xdd));
    /* a[k] has a quarter for each of vectors 4 k to 4 k + 3 */
    UNROLL_ALL for (int k = 0; k < SUMS / 8; k++) {
        const __m512d one = _mm512_castps_pd(a[2 * k]), two = _mm512_castps_pd(a[2 * k + 1]);
        a[k] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(one, two)), _mm512_castpd_ps(_mm512_unpackhi_pd(one, two)));
    }
    a[0] = _mm512_add_ps(_mm512_shuffle_ps(a[0], a[1], 0x88), _mm512_shuffle_ps(a[0], a[1], 0xdd));
    /* in quarter q the sums of vectors q, 4 + q, 8 + q and 12 + q */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_ps(all, _mm512_permutexvar_ps(order, a[0]));
}
#define ADD_AVX512(sum, a, b) _mm512_fmadd_ps(a, b, sum)
VARIANT(avx512, AVX512, 32, __m512, 16, _mm512_setzero_ps(), _mm512_loadu_ps, widen_avx512, int8_avx512, ADD_AVX512, totals_avx512)

#define BFLOAT16_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
BFLOAT16_TARGET INLINE __m512bh pairs(const uint16_t *address) { return (__m512bh)_mm512_loadu_si512(address); }
PRODUCT(bfloat16, BFLOAT16_TARGET, 32, __m512, 32, _mm512_setzero_ps(), uint16_t, pairs, from_bfloat16, uint16_t, pairs,
        from_bfloat16, _mm512_dpbf16_ps, totals_avx512, store_bfloat16)

#if defined __linux__ && !defined __clang__ && __GNUC__ >= 11
#define HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>

/* The same by tiles, registers of 16 rows of 64 bytes: 16 rows of W times 16 tokens, 32 numbers deep, by one instruction. x comes
   as words of two numbers, (in / 2, tokens). */
#define TILES_TARGET __attribute__((target("amx-tile,amx-bf16,avx512f")))

enum { TILE = 16, DEPTH = 32, BLOCKS = 4 };

struct tiles {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Tiles 0 to 3 hold sums, 4 rows of W, 5 tokens. */
TILES_TARGET static void configure(int64_t tokens) {
    struct tiles config = {.palette = 1};
    for (int i = 0; i < 6; i++) {
        config.rows[i] = TILE;
        config.row_bytes[i] = i == 4 ? 2 * DEPTH : 4 * tokens;
    }
    _tile_loadconfig(&config);
}

#define MULTIPLY(block)                                         \
    if (blocks > block) {                                       \
        _tile_loadd(4, w + block * TILE * job->in + i, w_bytes); \
        _tile_dpbf16ps(block, 4, 5);                            \
    }
#define KEEP(block) \
    if (blocks > block) _tile_stored(block, sums[block * TILE], 4 * TILE);

TILES_TARGET INLINE void blocks_of_rows(const struct job *job, int64_t row, const int blocks, int64_t token, int64_t tokens) {
    const uint16_t *w = (const uint16_t *)job->w + row * job->in;
    const uint32_t *x = (const uint32_t *)job->x + token;
    const int64_t w_bytes = 2 * job->in, x_bytes = 4 * job->tokens;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < job->in; i += DEPTH) {
        _tile_loadd(5, x + i / 2 * job->tokens, x_bytes);
        MULTIPLY(0) MULTIPLY(1) MULTIPLY(2) MULTIPLY(3)
    }
    float sums[BLOCKS * TILE][TILE];
    KEEP(0) KEEP(1) KEEP(2) KEEP(3)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t r = 0; r < blocks * TILE; r++) store_bfloat16(job, token + t, row + r, &sums[r][t], 1);
}

/* Units of BLOCKS * TILE rows. The last tile may have rows of the one before it once more. */
TILES_TARGET static void product_tiles(const struct job *job, int64_t start, int64_t stop) {
    struct tiles before;
    _tile_storeconfig(&before); /* another library may count on it */
    for (int64_t token = 0; token < job->tokens; token += TILE) {
        int64_t tokens = job->tokens - token < TILE ? job->tokens - token : TILE;
        configure(tokens);
        for (int64_t row = start * BLOCKS * TILE; row < stop * BLOCKS * TILE && row < job->rows;)
            if (row + BLOCKS * TILE <= job->rows) {
                blocks_of_rows(job, row, BLOCKS, token, tokens);
                row += BLOCKS * TILE;
            } else {
                blocks_of_rows(job, row + TILE <= job->rows ? row : job->rows - TILE, 1, token, tokens);
                row += TILE;
            }
    }
    _tile_loadconfig(&before);
}

/* Many tokens: tiles of 16 tokens times 16 rows, two by two. The words of rows are put side by side, as tiles want them, for PANEL
   rows and as many numbers as the cache holds; what is left of the sum waits in memory where there are more. */
enum { PANEL = BLOCKS * TILE, DEEPEST = 1024, TOGETHER = 512 };
#define MANY_TARGET __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")))

/* 16 words of each of 16 rows, `stride` numbers apart, word by word. */
MANY_TARGET INLINE void turn(uint32_t *to, const uint16_t *from, int64_t stride) {
    __m512i a[TILE], b[TILE];
    UNROLL_ALL for (int i = 0; i < TILE; i++) a[i] = _mm512_loadu_si512(from + i * stride);
    UNROLL_ALL for (int i = 0; i < TILE; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    UNROLL_ALL for (int i = 0; i < TILE; i += 4) UNROLL_ALL for (int j = 0; j < 2; j++) {
        a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
        a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
    }
    UNROLL_ALL for (int i = 0; i < TILE; i += 8) UNROLL_ALL for (int j = 0; j < 4; j++) {
        b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
        b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
    }
    UNROLL_ALL for (int j = 0; j < 8; j++) {
        _mm512_storeu_si512(to + j * TILE, _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88));
        _mm512_storeu_si512(to + (j + 8) * TILE, _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd));
    }
}

/* Where tile number i of `count` things begins: the last ones may have things of the one before it once more. */
INLINE int64_t begin_of(int64_t i, int64_t count) { return i * TILE + TILE <= count ? i * TILE : count - TILE; }

/* Sums of two tiles of tokens and two of rows, over `depth` numbers; `sums` has what was added before, where that is so. */
MANY_TARGET INLINE void two_by_two(const uint16_t *x, const uint16_t *x2, int64_t in, const uint32_t *w, const uint32_t *w2,
                                   int64_t depth, float (*sums)[TILE * TILE], int goes_on) {
    if (goes_on) {
        _tile_loadd(0, sums[0], 4 * TILE);
        _tile_loadd(1, sums[1], 4 * TILE);
        _tile_loadd(2, sums[2], 4 * TILE);
        _tile_loadd(3, sums[3], 4 * TILE);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < depth; i += DEPTH) {
        _tile_loadd(4, x + i, 2 * in);
        _tile_loadd(6, w + i / 2 * TILE, 4 * TILE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w2 + i / 2 * TILE, 4 * TILE);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x2 + i, 2 * in);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums[0], 4 * TILE);
    _tile_stored(1, sums[1], 4 * TILE);
    _tile_stored(2, sums[2], 4 * TILE);
    _tile_stored(3, sums[3], 4 * TILE);
}

struct room {
    uint32_t words[BLOCKS][DEEPEST / 2 * TILE];
    float sums[TOGETHER / TILE / 2][BLOCKS / 2][4][TILE * TILE];
};

/* Tokens first <= t < first + count, for a panel of rows. */
MANY_TARGET static void panel(const struct job *job, int64_t row, int64_t first, int64_t count, struct room *room) {
    const int64_t in = job->in, rows = job->rows - row;
    const uint16_t *w = (const uint16_t *)job->w + row * in, *x = (const uint16_t *)job->x + first * in;
    uint16_t *y = (uint16_t *)job->y + first * job->rows + row;
    const int64_t pairs = (count + 2 * TILE - 1) / (2 * TILE), wide = rows < PANEL ? (rows + 2 * TILE - 1) / (2 * TILE) : BLOCKS / 2;
    int64_t begins[BLOCKS];
    for (int64_t b = 0; b < 2 * wide; b++) begins[b] = b * TILE + TILE <= rows ? b * TILE : rows - TILE;
    for (int64_t k = 0; k < in; k += DEEPEST) {
        const int64_t depth = in - k < DEEPEST ? in - k : DEEPEST;
        for (int64_t b = 0; b < 2 * wide; b++)
            for (int64_t i = 0; i < depth; i += DEPTH) turn(room->words[b] + i / 2 * TILE, w + begins[b] * in + k + i, in);
        for (int64_t p = 0; p < pairs; p++) {
            const int64_t one = begin_of(2 * p, count), two = begin_of(2 * p + 1, count);
            for (int64_t b = 0; b < wide; b++) {
                float(*sums)[TILE * TILE] = room->sums[p][b];
                two_by_two(x + one * in + k, x + two * in + k, in, room->words[2 * b], room->words[2 * b + 1], depth, sums, k > 0);
                if (k + depth < in) continue;
                for (int tile = 0; tile < 4; tile++) {
                    uint16_t *to = y + (tile < 2 ? one : two) * job->rows + begins[2 * b + tile % 2];
                    for (int t = 0; t < TILE; t++)
                        for (int r = 0; r < TILE; r++) to[t * job->rows + r] = to_bfloat16(sums[tile][t * TILE + r]);
                }
            }
        }
    }
}

/* Units of PANEL rows. */
MANY_TARGET static void product_many(const struct job *job, int64_t start, int64_t stop) {
    struct room *room = aligned_alloc(64, (sizeof *room + 63) / 64 * 64);
    if (room == NULL) { /* the same, another way */
        product_bfloat16(job, start * PANEL / ROWS, stop * PANEL / ROWS);
        return;
    }
    struct tiles before, config = {.palette = 1};
    _tile_storeconfig(&before);
    for (int i = 0; i < 8; i++) {
        config.rows[i] = TILE;
        config.row_bytes[i] = 4 * TILE;
    }
    _tile_loadconfig(&config);
    for (int64_t row = start * PANEL; row < stop * PANEL && row < job->rows; row += PANEL)
        for (int64_t first = 0; first < job->tokens; first += TOGETHER) {
            int64_t count = job->tokens - first < TOGETHER ? job->tokens - first : TOGETHER;
            if (count < TILE) first = job->tokens - (count = TILE);
            panel(job, row, first, count, room);
        }
    _tile_loadconfig(&before);
    free(room);
}
#endif
#endif

#ifdef __aarch64__
#include <arm_neon.h>

INLINE float32x4_t widen_neon(const uint16_t *address) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(address), 16));
}
INLINE float32x4_t int8_neon(const int8_t *address) {
    return (float32x4_t){address[0], address[1], address[2], address[3]};
}
#define ADD_NEON(sum, a, b) vfmaq_f32(sum, a, b)
#define TOTALS_NEON(sums, count, all) UNROLL_ALL for (int k = 0; k < (count); k++) (all)[k] = vaddvq_f32((sums)[k])
VARIANT(neon, , 32, float32x4_t, 4, vdupq_n_f32(0), vld1q_f32, widen_neon, int8_neon, ADD_NEON, TOTALS_NEON)
#endif

#ifdef HAS_TILES
#define TILES_OR_NOT product_tiles, product_many
#else
#define TILES_OR_NOT NULL, NULL
#endif

#define BY_INT8(name) [INT8] = product_##name##_int8, product_##name##_int8_bfloat16

/* By variant: W in float32, in bfloat16 that is widened, in bfloat16 as x, the same by tiles, and for many tokens; W in whole numbers
   and x in float32, in bfloat16. */
static range *const RANGES[VARIANTS][FUNCTIONS] = {
    [PLAIN] = {product_plain_float32, product_plain_widened, BY_INT8(plain)},
#ifdef __x86_64__
    [AVX2_FMA_F16C] = {product_avx2_float32, product_avx2_widened, BY_INT8(avx2)},
    [AVX512_F_BW_DQ_VL] = {product_avx512_float32, product_avx512_widened, product_bfloat16, TILES_OR_NOT,
                           BY_INT8(avx512)},
#endif
#ifdef __aarch64__
    [NEON] = {product_neon_float32, product_neon_widened, BY_INT8(neon)},
#endif
};

/* The caller's idea of a job has to be of this size. */
int inlay_product_job_bytes(void) { return sizeof(struct job); }

/* The processor has tiles, and the system lets this process use them, for which it has to be asked. */
int inlay_has_tiles(void) {
#ifdef HAS_TILES
    unsigned a = 7, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    enum { REQUEST = 0x1023, TILE_DATA = 18, BFLOAT16_BIT = 22, TILE_BIT = 24 };
    return d >> BFLOAT16_BIT & d >> TILE_BIT & 1 && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return 0;
#endif
}

/* Products of many tokens are slower in bfloat16 than in float32: where Intel's processors have no tiles, or their system gives none,
   two products of float32 take 0.34 ns, and those of one instruction for bfloat16 0.75 ns. */
int inlay_widens_bfloat16(void) {
#ifdef __x86_64__
    return __builtin_cpu_is("intel") && !inlay_has_tiles();
#else
    return 0;
#endif
}

/* Units 0 <= i < total of a job: ROWS rows of W each, or BLOCKS * TILE. `omp` is GOMP_parallel, or NULL for one thread. */
void inlay_product_run(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads,
                       parallel *omp) {
    struct job own = *job;
    uint32_t *words = NULL;
    if (function == TILES && job->tokens > 1) {
        words = malloc(job->in / 2 * job->tokens * sizeof *words);
        if (words == NULL) { /* the same tokens one after the other */
            for (own.tokens = 1; own.y != (char *)job->y + 2 * job->tokens * job->rows;) {
                share(RANGES[variant][function], &own, total, chunk, threads, omp);
                own.x = (const char *)own.x + 2 * job->in;
                own.y = (char *)own.y + 2 * job->rows;
            }
            return;
        }
        for (int64_t i = 0; i < job->in / 2; i++)
            for (int64_t t = 0; t < job->tokens; t++)
                words[i * job->tokens + t] = word_at((const char *)job->x + 2 * (t * job->in + 2 * i));
        own.x = words;
    }
    if (job->added != NULL)
        inlay_share_added(RANGES[variant][function], &own, total, chunk, function == TILES ? ROWS_OF_TILES : ROWS, job->added,
                          variant, threads, omp);
    else
        share(RANGES[variant][function], &own, total, chunk, threads, omp);
    free(words);
}
