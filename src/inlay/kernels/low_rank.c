/* What adapters add to the output of a linear map, for a few tokens of any adapters:

       y[t] += sum of  scaling (x[t] A^T) B^T  over the entries of token t,    A (r, in), B^T (r, out)

   in float32, rounded once. The unit of work is a token with all its entries, in their order: an output depends on nothing beside
   it. */

#include "team.h"

enum { ROWS = 4, MOST_RANK = 1024 };

struct job {
    const void *x;            /* (tokens, in) */
    void *y;                  /* (tokens, out) */
    const int64_t *tokens;    /* (units,) */
    const int64_t *starts;    /* (units + 1,) where the entries of each unit begin */
    const void *const *A;     /* by entry */
    const void *const *B;
    const int64_t *ranks;     /* at most MOST_RANK */
    const float *scalings;
    int64_t in, out;
    int32_t dtype;            /* of x, y, A and B */
};

/* scaling x A^T, `rows` ranks from k on. */
INLINE void down(const void *x, const void *A, int64_t in, int64_t k, const int rows, float scaling, float *h, int dtype) {
    lanes sums[ROWS] = {0};
    for (int64_t i = 0; i < in; i += WIDTH) {
        int64_t count = in - i < WIDTH ? in - i : WIDTH;
        lanes here;
        get_lanes(&here, x, dtype, i, count);
        for (int r = 0; r < rows; r++) {
            lanes a;
            get_lanes(&a, A, dtype, (k + r) * in + i, count);
            sums[r] += here * a;
        }
    }
    for (int r = 0; r < rows; r++) h[k + r] = scaling * sum_of(&sums[r]);
}

/* y += h B^T, `vectors` of `count` numbers from the o-th on. */
INLINE void up(const float *h, const void *B, int64_t rank, int64_t out, int64_t o, const int vectors, const int count, void *y,
               int dtype) {
    lanes sums[ROWS], b;
    for (int n = 0; n < vectors; n++) get_lanes(&sums[n], y, dtype, o + n * WIDTH, count);
    for (int64_t k = 0; k < rank; k++)
        for (int n = 0; n < vectors; n++) {
            get_lanes(&b, B, dtype, k * out + o + n * WIDTH, count);
            sums[n] += h[k] * b;
        }
    for (int n = 0; n < vectors; n++) put_lanes(&sums[n], y, dtype, o + n * WIDTH, count);
}

INLINE void unit(const struct job *job, int64_t i, int dtype) {
    const int64_t in = job->in, out = job->out;
    const int size = dtype == FLOAT32 ? 4 : 2;
    const void *x = (const char *)job->x + job->tokens[i] * in * size;
    char *y = (char *)job->y + job->tokens[i] * out * size;
    for (int64_t e = job->starts[i]; e < job->starts[i + 1]; e++) {
        int64_t rank = job->ranks[e], k = 0, o = 0;
        float h[MOST_RANK];
        for (; k + ROWS <= rank; k += ROWS) down(x, job->A[e], in, k, ROWS, job->scalings[e], h, dtype);
        for (; k < rank; k++) down(x, job->A[e], in, k, 1, job->scalings[e], h, dtype);
        for (; o + ROWS * WIDTH <= out; o += ROWS * WIDTH) up(h, job->B[e], rank, out, o, ROWS, WIDTH, y, dtype);
        for (; o + WIDTH <= out; o += WIDTH) up(h, job->B[e], rank, out, o, 1, WIDTH, y, dtype);
        if (o < out) up(h, job->B[e], rank, out, o, 1, out - o, y, dtype);
    }
}

/* Units: tokens. */
KERNEL(low_rank)
