/* What stands around products of int8, each in one pass over the memory; see w8a8.py:

       QUANTIZE   q[i] = round(127 z[i] / max |z|),   s = max |z| / 127      per row; z is x rotated, or x times `columns`
       SCALE      y[i] = s[row] sums[i] columns[i],   or y is s[row] sums, rotated

   A rotation is by Hadamard's matrix over sqrt(64), 64 numbers at a time: it is symmetric, and its own inverse. Where `columns`
   are given nothing is rotated. There are no instructions by name, and all variants give the same bits. */

#include "../src/inlay/kernels/team.h"

enum { BLOCK = 64, PARTS = BLOCK / WIDTH };
enum { QUANTIZE, SCALE };

struct job {
    const void *x;        /* (rows, width), what is rounded; or int32 sums */
    const float *columns; /* (width,), or NULL */
    float *s;             /* (rows,) */
    void *y;              /* (rows, width), int8; or what sums are scaled to */
    int64_t width;        /* of what is rotated, a multiple of BLOCK */
    int32_t mode, dtype;  /* that of x to be rounded, or of y */
};

typedef int32_t wholes __attribute__((vector_size(4 * WIDTH)));

#ifdef __clang__
#define SHUFFLED(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define SHUFFLED(x, ...) __builtin_shuffle(x, (wholes){__VA_ARGS__})
#endif
#define EACH(i) for (int i = 0; i < PARTS; i++)

static const float UPPER1[WIDTH] = {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1};
static const float UPPER2[WIDTH] = {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1};
static const float UPPER4[WIDTH] = {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1};
static const float UPPER8[WIDTH] = {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1};

#define BUTTERFLY(upper, ...)                             \
    {                                                     \
        lanes sign;                                       \
        memcpy(&sign, upper, sizeof sign);                \
        EACH(i) x[i] = x[i] * sign + SHUFFLED(x[i], __VA_ARGS__); \
    }

/* Without the factor. */
INLINE void rotate(lanes *x) {
    BUTTERFLY(UPPER1, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
    BUTTERFLY(UPPER2, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
    BUTTERFLY(UPPER4, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
    BUTTERFLY(UPPER8, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
    lanes a = x[0] + x[1], b = x[0] - x[1], c = x[2] + x[3], d = x[2] - x[3];
    x[0] = a + c, x[1] = b + d, x[2] = a - c, x[3] = b - d;
}

#define FACTOR 0.125f /* 1 / sqrt(BLOCK) */

/* The block of x from number i on that is rounded, of which `count` are there, as float32. */
INLINE void given(const struct job *job, const void *x, int dtype, int columned, int64_t i, int64_t count, lanes *to) {
    lanes z[PARTS]; /* in registers */
    EACH(k) {
        int64_t left = count - k * WIDTH;
        z[k] = (lanes){0};
        if (left <= 0) continue;
        get_lanes(z + k, x, dtype, i + k * WIDTH, left);
        if (columned) {
            lanes by;
            get_lanes(&by, job->columns, FLOAT32, i + k * WIDTH, left);
            z[k] *= by;
        }
    }
    if (!columned) rotate(z);
    memcpy(to, z, sizeof z);
}

INLINE void take_larger(wholes *most, const lanes *z) {
    EACH(k) { /* of what is not below zero, the bits are in the order of the numbers */
        wholes size = (wholes)z[k] & 0x7fffffff, more = size > *most;
        *most = (size & more) | (*most & ~more);
    }
}

INLINE void rounded(const float *z, float by, int8_t *q, int64_t count) {
    for (int64_t i = 0; i < count; i++) /* the sum's last bit is worth one: to the nearest even */
        q[i] = (int8_t)(int32_t)(z[i] * by + 12582912.0f - 12582912.0f);
}

INLINE void quantize(const struct job *job, int64_t row, int dtype, int columned) {
    int64_t width = job->width, whole = width / BLOCK * BLOCK;
    const void *x = (const char *)job->x + row * width * (dtype == FLOAT32 ? 4 : 2);
    int8_t *q = (int8_t *)job->y + row * width;
    lanes held[(width + BLOCK - 1) / BLOCK * PARTS]; /* some hundred kilobytes at most */
    wholes most = {0};
    for (int64_t i = 0; i < width; i += BLOCK) {
        lanes *z = held + i / WIDTH;
        if (i < whole)
            given(job, x, dtype, columned, i, BLOCK, z);
        else
            given(job, x, dtype, columned, i, width - whole, z);
        take_larger(&most, z);
    }
    int32_t bits = 0;
    for (int j = 0; j < WIDTH; j++) bits = most[j] > bits ? most[j] : bits;
    float largest = float_of(bits), by = 127 / largest;
    if (!(by <= 3.4028235e38f)) by = 0; /* a row of zeros, or nearly; or one with what is no number, which its scale tells */
    rounded((const float *)held, by, q, width);
    job->s[row] = largest / 127 * (columned ? 1 : FACTOR);
}

INLINE void scaled(const struct job *job, const int32_t *sums, float s, void *y, int dtype, int columned, int64_t i,
                   int64_t count) {
    lanes z[PARTS];
    EACH(k) {
        int64_t left = count - k * WIDTH;
        wholes some = {0};
        if (left >= WIDTH)
            memcpy(&some, sums + i + k * WIDTH, sizeof some);
        else if (left > 0)
            memcpy(&some, sums + i + k * WIDTH, 4 * left);
        z[k] = __builtin_convertvector(some, lanes) * s;
        if (columned && left > 0) {
            lanes by;
            get_lanes(&by, job->columns, FLOAT32, i + k * WIDTH, left);
            z[k] *= by;
        }
    }
    if (!columned) rotate(z);
    EACH(k) if (count > k * WIDTH) put_lanes(z + k, y, dtype, i + k * WIDTH, count - k * WIDTH);
}

INLINE void scale(const struct job *job, int64_t row, int dtype, int columned) {
    int64_t width = job->width, whole = width / BLOCK * BLOCK;
    const int32_t *sums = (const int32_t *)job->x + row * width;
    void *y = (char *)job->y + row * width * (dtype == FLOAT32 ? 4 : 2);
    float s = job->s[row] * (columned ? 1 : FACTOR);
    for (int64_t i = 0; i < whole; i += BLOCK) scaled(job, sums, s, y, dtype, columned, i, BLOCK);
    if (whole < width) scaled(job, sums, s, y, dtype, columned, whole, width - whole);
}

INLINE void unit(const struct job *job, int64_t row, int dtype) {
    if (job->mode == QUANTIZE && job->columns)
        quantize(job, row, dtype, 1);
    else if (job->mode == QUANTIZE)
        quantize(job, row, dtype, 0);
    else if (job->columns)
        scale(job, row, dtype, 1);
    else
        scale(job, row, dtype, 0);
}

KERNEL(w8a8)
