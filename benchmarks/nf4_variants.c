/* Every variant of nf4.c against the plain one, on random jobs: nf4_variants.sh builds and runs it.

   Codes, constants, weights and results lie at the end of a page whose next one can't be touched. With INLAY_SIMDE the
   instructions of AVX-512 are functions in C: SIMDe's, and a few for which its release has none. */

#ifdef INLAY_SIMDE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#define AVX512

/* What its release in Debian 12 does not have. */

static inline simde__m256i narrowed(simde__m512i numbers) {
    int32_t from[16];
    int16_t to[16];
    simde_mm512_storeu_si512(from, numbers);
    for (int i = 0; i < 16; i++) to[i] = (int16_t)from[i];
    return simde_mm256_loadu_si256((const simde__m256i *)to);
}

static inline simde__m512i widened(simde__m256i words) {
    uint16_t from[16];
    uint32_t to[16];
    simde_mm256_storeu_si256((simde__m256i *)from, words);
    for (int i = 0; i < 16; i++) to[i] = from[i];
    return simde_mm512_loadu_si512(to);
}

static inline simde__m256i to_halves(simde__m512 numbers) {
    float from[16];
    simde_mm512_storeu_ps(from, numbers);
    __m128i low = _mm256_cvtps_ph(_mm256_loadu_ps(from), 0), high = _mm256_cvtps_ph(_mm256_loadu_ps(from + 8), 0);
    return _mm256_set_m128i(high, low);
}

static inline simde__m512 from_halves(simde__m256i halves) {
    float to[16];
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm256_castsi256_si128(halves)));
    _mm256_storeu_ps(to + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)));
    return simde_mm512_loadu_ps(to);
}

static inline __m128i low_bytes(simde__m512i numbers) {
    uint64_t from[8];
    uint8_t to[16] = {0};
    simde_mm512_storeu_si512(from, numbers);
    for (int i = 0; i < 8; i++) to[i] = (uint8_t)from[i];
    return _mm_loadu_si128((const __m128i *)to);
}

static inline int32_t largest_of(simde__m512i numbers) {
    int32_t from[16], found;
    simde_mm512_storeu_si512(from, numbers);
    found = from[0];
    for (int i = 1; i < 16; i++) found = from[i] > found ? from[i] : found;
    return found;
}

static inline simde__m512i some_of(simde__mmask16 mask, const void *words) {
    int32_t to[16] = {0};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) memcpy(to + i, (const char *)words + 4 * i, 4);
    return simde_mm512_loadu_si512(to);
}

static inline float summed(simde__m512 numbers) {
    float from[16], found = 0;
    simde_mm512_storeu_ps(from, numbers);
    for (int i = 0; i < 16; i++) found += from[i];
    return found;
}

#define _mm512_maskz_loadu_epi32(mask, words) some_of(mask, words)
#define _mm512_reduce_add_ps(numbers) summed(numbers)
#define _mm512_cvtepi64_epi8(numbers) low_bytes(numbers)
#define _mm512_reduce_max_epi32(numbers) largest_of(numbers)
#define _mm512_cvtepi32_epi16(numbers) narrowed(numbers)
#define _mm512_cvtepu16_epi32(words) widened(words)
#define _mm512_cvtps_ph(numbers, rounding) to_halves(numbers)
#define _mm512_cvtph_ps(halves) from_halves(halves)
#endif

#define _GNU_SOURCE
#include "../src/inlay/kernels/nf4.c"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static const char *const NAMES[VARIANTS] = {"plain", "avx2", "avx512", "neon"};
static const float CODE[16] = {-1, -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0,
                               0.0795803f, 0.1609302f, 0.2461123f, 0.33791524f, 0.44070983f, 0.562617f, 0.72295684f, 1};

static uint32_t state = 1;

static uint32_t random_below(uint32_t limit) {
    state = state * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)state * limit >> 32);
}

static float random_float(void) { return (float)random_below(1 << 24) / (1 << 23) - 1; }

/* `size` bytes before a page that can't be touched. */
static void *at_the_end_of_a_page(size_t size) {
    size_t page = 1 << 16, whole = (size + page - 1) / page * page;
    char *start = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(start + whole, page, PROT_NONE)) exit(2);
    return start + whole - size;
}

static void give_back(void *data, size_t size) {
    size_t page = 1 << 16, whole = (size + page - 1) / page * page;
    munmap((char *)data + size - whole, whole + page);
}

/* Weights of a dtype: blocks of zeros, of ties between places, of subnormal numbers, and of any finite ones. */
static void fill(void *values, int dtype, int64_t block, int64_t size, const float *steps) {
    float scale = 1;
    int kind = 0;
    for (int64_t i = 0; i < size; i++) {
        if (i % block == 0) {
            kind = random_below(8);
            scale = ldexpf(1 + random_float() / 2, (int)random_below(20) - 12);
        }
        float value = kind == 0 ? 0 : kind == 1 ? -0.0f : kind == 2 ? steps[random_below(16)] : random_float() * scale;
        if (kind == 2 && i % block == 0) value = 1;
        if (kind == 3) value *= 0x1p-115f;
        if (kind == 4 && dtype == FLOAT32) value *= 0x1p-135f;
        if (kind == 5) value *= dtype == FLOAT16 ? 0x1p-14f : 0x1p115f;
        if (dtype == FLOAT32)
            ((float *)values)[i] = value;
        else
            ((uint16_t *)values)[i] = dtype == BFLOAT16 ? to_bfloat16(value) : to_float16(value);
    }
}

static int failures;

static void check(int same, const char *what, int variant, const struct job *job) {
    if (!same && failures++ < 20)
        printf("%s of %s differs: block %d, dtype %d, first %d\n", what, NAMES[variant], (int)job->block, job->dtype,
               (int)job->first);
}

static int same_floats(const void *a, const void *b, size_t size) { return memcmp(a, b, size) == 0; }

static void one_job(int variant) {
    static const int BLOCK_SIZES[] = {32, 64, 128, 256, 1024};
    int64_t block = BLOCK_SIZES[random_below(5)], per_row = 1 + random_below(5), rows = 1 + random_below(5);
    int64_t first = random_below(2) ? 0 : per_row * random_below(70), num_blocks = rows * per_row, size = num_blocks * block;
    int dtype = random_below(3), nested = random_below(2), width = dtype == FLOAT32 ? 4 : 2;
    float steps[16], map[256];
    uint8_t code_bytes[64];
    for (int i = 0; i < 16; i++) {
        steps[i] = i ? (CODE[i - 1] + CODE[i]) / 2 : 0;
        for (int k = 0; k < 4; k++) code_bytes[16 * k + i] = bits_of(CODE[i]) >> 8 * k;
    }
    for (int i = 0; i < 256; i++) map[i] = random_float();
    size_t absmax_bytes = (first + num_blocks) * (nested ? 1 : 4), nested_bytes = ((first + num_blocks + 255) / 256) * 4;
    uint8_t *codes = at_the_end_of_a_page(size / 2), *found_codes = at_the_end_of_a_page(size / 2);
    void *absmax = at_the_end_of_a_page(absmax_bytes), *shared = at_the_end_of_a_page(nested_bytes);
    char *expected = at_the_end_of_a_page(size * width), *found = at_the_end_of_a_page(size * width);
    float *constants = at_the_end_of_a_page(num_blocks * 4), *found_constants = at_the_end_of_a_page(num_blocks * 4);
    for (int64_t i = 0; i < size / 2; i++) codes[i] = random_below(256);
    for (int64_t b = 0; b < first + num_blocks; b++)
        if (nested)
            ((uint8_t *)absmax)[b] = random_below(256);
        else
            ((float *)absmax)[b] = ldexpf(random_float(), (int)random_below(40) - 30 - (random_below(8) == 0 ? 110 : 0));
    for (size_t i = 0; i < nested_bytes / 4; i++) ((float *)shared)[i] = random_float();

    struct job job = {.code = CODE, .code_bytes = code_bytes, .steps = steps, .codes = codes, .absmax = absmax, .map = map,
                      .nested = nested ? shared : NULL, .values = expected, .first = first, .block = block, .offset = 0.37f,
                      .smallest = 1e-38f, .nested_shift = 8, .dtype = dtype};
    RANGES[PLAIN][0](&job, 0, num_blocks);
    job.values = found;
    RANGES[variant][0](&job, 0, num_blocks);
    check(same_floats(expected, found, size * width), "dequantize", variant, &job);

    struct job writing = job;
    fill(expected, dtype, block, size, steps);
    writing.values = expected;
    writing.first = 0;
    writing.absmax = constants;
    writing.codes = codes;
    uint8_t *kept = malloc(size / 2);
    memcpy(kept, codes, size / 2);
    RANGES[PLAIN][1](&writing, 0, num_blocks);
    writing.absmax = found_constants;
    writing.codes = found_codes;
    RANGES[variant][1](&writing, 0, num_blocks);
    check(memcmp(codes, found_codes, size / 2) == 0 && memcmp(constants, found_constants, num_blocks * 4) == 0, "quantize",
          variant, &writing);
    memcpy(codes, kept, size / 2);
    free(kept);

    for (int narrow = 0; narrow < 2 && block % 64 == 0; narrow++) {
        int64_t in = per_row * block, tokens = 1 + random_below(9), bytes = narrow ? 2 : 4;
        void *x = at_the_end_of_a_page(tokens * in * bytes), *y = at_the_end_of_a_page(tokens * rows * bytes);
        float *own = at_the_end_of_a_page(tokens * ((in + 127) / 128 * 128) * 4), *weights = malloc(size * 4);
        job.values = weights;
        job.dtype = FLOAT32;
        RANGES[PLAIN][0](&job, 0, num_blocks);
        job.dtype = narrow ? BFLOAT16 : FLOAT32;
        for (int64_t i = 0; i < tokens * in; i++) put_number(x, job.dtype, i, random_float());
        job.x = x;
        job.own = own;
        job.y = y;
        job.tokens = tokens;
        job.rows = rows;
        job.in = in;
        inlay_nf4_run(variant, 2, &job, rows, rows, 1, NULL);
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t r = 0; r < rows; r++) {
                double sum = 0, sizes = 0;
                for (int64_t i = 0; i < in; i++) {
                    double term = (double)number(x, job.dtype, t * in + i) * weights[r * in + i];
                    sum += term;
                    sizes += fabs(term);
                }
                /* of bfloat16 the code and the sum are rounded, and numbers below the normal ones may be zeros */
                double most = narrow ? sizes * 0x1p-7 + (double)in * 0x1p-126 : sizes * 0x1p-21 + (double)in * 0x1p-149;
                check(fabs(number(y, job.dtype, t * rows + r) - sum) <= most, "product", variant, &job);
            }
        free(weights);
        give_back(x, tokens * in * bytes);
        give_back(own, tokens * ((in + 127) / 128 * 128) * 4);
        give_back(y, tokens * rows * bytes);
    }
    give_back(codes, size / 2);
    give_back(found_codes, size / 2);
    give_back(absmax, absmax_bytes);
    give_back(shared, nested_bytes);
    give_back(expected, size * width);
    give_back(found, size * width);
    give_back(constants, num_blocks * 4);
    give_back(found_constants, num_blocks * 4);
}

int main(int count, char **arguments) {
    int jobs = count > 1 ? atoi(arguments[1]) : 1000;
    for (int variant = 0; variant < VARIANTS; variant++) {
        int runs = inlay_supports(variant);
#ifdef INLAY_SIMDE
        runs = runs || variant == AVX512_F_BW_DQ_VL;
#endif
        for (int i = 0; runs && i < jobs; i++) one_job(variant);
        printf("%-8s %s\n", NAMES[variant], !runs ? "not on this processor" : failures ? "DIFFERS" : "the same");
    }
    return failures != 0;
}
