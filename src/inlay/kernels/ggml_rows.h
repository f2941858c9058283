/* Rows of ggml.c for one variant. Whoever includes it says first what it is called (NAMED), which instructions it may have
   (TARGET), and what makes floats of whole numbers (WIDEN). */

/* The weights of group g of a block. */
TARGET INLINE void NAMED(weights)(const uint8_t *block, const int kind, int g, lanes *w) {
    int8_t q[GROUP];
    float d[2], m[2];
    unpack(block, kind, g, q, d, m);
    WIDEN(q, w);
    for (int h = 0; h < 2; h++) w[h] = w[h] * d[h] + m[h];
}

TARGET INLINE void NAMED(dequantize)(const struct job *job, int64_t i, const int kind, const int dtype) {
    const uint8_t *block = packed_row(job, i);
    int64_t at = i * job->in;
    for (int64_t b = 0; b < job->in / WEIGHTS[kind]; b++, block += BYTES[kind])
        UNROLL for (int g = 0; g < WEIGHTS[kind] / GROUP; g++, at += GROUP) {
            lanes w[2];
            NAMED(weights)(block, kind, g, w);
            put_lanes(w, job->values, dtype, at, WIDTH);
            put_lanes(w + 1, job->values, dtype, at + WIDTH, WIDTH);
        }
}

/* The products of one row of W with T tokens from `token` on. */
TARGET INLINE void NAMED(tokens)(const struct job *job, int64_t i, int64_t token, const int T, const int kind, const int dtype) {
    const uint8_t *block = packed_row(job, i);
    lanes sums[TOKENS][2] = {{{0}}};
    int64_t column = 0;
    for (int64_t b = 0; b < job->in / WEIGHTS[kind]; b++, block += BYTES[kind])
        UNROLL for (int g = 0; g < WEIGHTS[kind] / GROUP; g++, column += GROUP) {
            lanes w[2], x;
            NAMED(weights)(block, kind, g, w);
            __builtin_prefetch(block + AHEAD);
            for (int t = 0; t < T; t++)
                for (int h = 0; h < 2; h++) {
                    get_lanes(&x, job->x, dtype, (token + t) * job->in + column + HALF * h, WIDTH);
                    sums[t][h] += w[h] * x;
                }
        }
    for (int t = 0; t < T; t++) {
        lanes both = sums[t][0] + sums[t][1];
        put_number(job->y, dtype, (token + t) * job->rows + i, sum_of(&both));
    }
}

TARGET INLINE void NAMED(product)(const struct job *job, int64_t i, const int kind, const int dtype) {
    int64_t token = 0;
    for (; token + TOKENS <= job->tokens; token += TOKENS) NAMED(tokens)(job, i, token, TOKENS, kind, dtype);
    for (; token < job->tokens; token++) NAMED(tokens)(job, i, token, 1, kind, dtype);
}

#define EACH(function, kind, dtype) \
    for (int64_t i = start; i < stop; i++) NAMED(function)(job, i, kind, dtype)

#define RANGE(function, kind)                                                                                  \
    TARGET static void NAMED(function##_##kind)(const struct job *job, int64_t start, int64_t stop) {          \
        if (job->dtype == FLOAT32) EACH(function, kind, FLOAT32);                                              \
        else EACH(function, kind, BFLOAT16);                                                                   \
    }

#define RANGES_OF(function)                                                                                    \
    RANGE(function, Q8_0) RANGE(function, Q4_0) RANGE(function, Q4_1)                                          \
    RANGE(function, Q4_K) RANGE(function, Q5_K) RANGE(function, Q6_K)                                          \
    static range *const NAMED(function##_ranges)[KINDS] = {                                                    \
        NAMED(function##_Q8_0), NAMED(function##_Q4_0), NAMED(function##_Q4_1),                                \
        NAMED(function##_Q4_K), NAMED(function##_Q5_K), NAMED(function##_Q6_K)};

RANGES_OF(dequantize)
RANGES_OF(product)

#undef NAMED
#undef TARGET
#undef WIDEN
#undef EACH
#undef RANGE
#undef RANGES_OF
