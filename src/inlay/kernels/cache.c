/* Attention of the newest token of each sequence over keys and values that lie in blocks:

       out = softmax_s(scaling q . k[s]) v[s],    s < length, and s >= length - window

   The token's own key and value are written into their place first. A block is made float32 once for the heads of queries that
   share it; what it adds is weighed against the largest score so far, so that no score is kept:

       m' = max(m, scores),   sum = sum exp(m - m') + sum_s exp(score[s] - m'),   out likewise

   The unit of work is a head of keys of one sequence. Each is computed in one order, whatever sequences are beside it. */

#include "team.h"

enum { BLOCK = 16, WIDEST = 256, HEADS = 8 };

struct job {
    const void *q, *k, *v;    /* of the step: (tokens, heads, dim), strides below */
    void *keys, *values;      /* (blocks, kv_heads, BLOCK, dim) */
    void *out;                /* (tokens, heads, dim) dense */
    const int64_t *tokens;    /* (rows,) which token of the step is a sequence's */
    const int64_t *lengths;   /* (rows,) with the token itself */
    const int64_t *tables;    /* (rows, most): its blocks */
    int64_t q_token, q_head, k_token, k_head, v_token, v_head; /* strides in numbers */
    int64_t heads, kv_heads, dim, most, window;
    float scaling;
    int32_t dtype;            /* of all floats */
};

INLINE float number(const void *values, int dtype, int64_t i) {
    return dtype == FLOAT32 ? ((const float *)values)[i] : float_of((uint32_t)((const uint16_t *)values)[i] << 16);
}

INLINE void copy(void *to, int64_t at, const void *from, int64_t first, int64_t count, int dtype) {
    int width = dtype == FLOAT32 ? 4 : 2;
    memcpy((char *)to + at * width, (const char *)from + first * width, count * width);
}

/* What the heads of a group have seen so far. */
struct seen {
    float largest, sum, out[WIDEST];
};

INLINE void take_block(const struct job *job, const float *q, const float *k, const float *v, int64_t count, struct seen *seen) {
    float scores[BLOCK], largest = seen->largest;
    for (int64_t s = 0; s < count; s++) {
        float parts[WIDTH] = {0};
        for (int64_t i = 0; i < job->dim; i += WIDTH)
            for (int j = 0; j < WIDTH; j++) parts[j] = fmaf(q[i + j], k[s * job->dim + i + j], parts[j]);
        scores[s] = total(parts) * job->scaling;
        largest = scores[s] > largest ? scores[s] : largest;
    }
    float before = seen->largest - largest, kept = before < -87 ? 0 : exponential(before);
    for (int64_t s = count; s < BLOCK; s++) scores[s] = largest - 88;
    for (int s = 0; s < BLOCK; s++) {
        float x = scores[s] - largest;
        float clamped = x < -87 ? -87 : x;
        scores[s] = x < -87 ? 0 : exponential(clamped);
    }
    seen->sum = seen->sum * kept + total(scores);
    seen->largest = largest;
    for (int64_t i = 0; i < job->dim; i += WIDTH) {
        float parts[WIDTH];
        for (int j = 0; j < WIDTH; j++) parts[j] = seen->out[i + j] * kept;
        for (int64_t s = 0; s < count; s++)
            for (int j = 0; j < WIDTH; j++) parts[j] = fmaf(scores[s], v[s * job->dim + i + j], parts[j]);
        for (int j = 0; j < WIDTH; j++) seen->out[i + j] = parts[j];
    }
}

INLINE void unit(const struct job *job, int64_t number_of_unit, int dtype) {
    int64_t row = number_of_unit / job->kv_heads, head = number_of_unit % job->kv_heads, dim = job->dim;
    int64_t token = job->tokens[row], length = job->lengths[row], group = job->heads / job->kv_heads;
    const int64_t *table = job->tables + row * job->most;
    int64_t own = ((table[(length - 1) / BLOCK] * job->kv_heads + head) * BLOCK + (length - 1) % BLOCK) * dim;
    copy(job->keys, own, job->k, token * job->k_token + head * job->k_head, dim, dtype);
    copy(job->values, own, job->v, token * job->v_token + head * job->v_head, dim, dtype);
    int64_t begin = length > job->window ? length - job->window : 0;
    float q[HEADS][WIDEST], k[BLOCK * WIDEST], v[BLOCK * WIDEST];
    struct seen seen[HEADS];
    for (int64_t first = 0; first < group; first += HEADS) {
        int64_t heads = group - first < HEADS ? group - first : HEADS;
        for (int64_t h = 0; h < heads; h++) {
            int64_t at = token * job->q_token + (head * group + first + h) * job->q_head;
            for (int64_t i = 0; i < dim; i++) q[h][i] = number(job->q, dtype, at + i);
            seen[h].largest = -INFINITY;
            seen[h].sum = 0;
            memset(seen[h].out, 0, sizeof seen[h].out);
        }
        for (int64_t s = begin; s < length;) {
            int64_t place = s % BLOCK, count = length - s < BLOCK - place ? length - s : BLOCK - place;
            int64_t at = ((table[s / BLOCK] * job->kv_heads + head) * BLOCK + place) * dim;
            for (int64_t i = 0; i < count * dim; i++) k[i] = number(job->keys, dtype, at + i);
            for (int64_t i = 0; i < count * dim; i++) v[i] = number(job->values, dtype, at + i);
            for (int64_t h = 0; h < heads; h++) take_block(job, q[h], k, v, count, &seen[h]);
            s += count;
        }
        for (int64_t h = 0; h < heads; h++) {
            int64_t at = (token * job->heads + head * group + first + h) * dim;
            for (int64_t i = 0; i < dim; i++) {
                float value = seen[h].out[i] / seen[h].sum;
                if (dtype == FLOAT32) ((float *)job->out)[at + i] = value;
                else ((uint16_t *)job->out)[at + i] = to_bfloat16(value);
            }
        }
    }
}

#define VARIANT(variant, target)                                                                  \
    target static void newest_##variant(const struct job *job, int64_t start, int64_t stop) {     \
        if (job->dtype == FLOAT32)                                                                \
            for (int64_t i = start; i < stop; i++) unit(job, i, FLOAT32);                         \
        else                                                                                      \
            for (int64_t i = start; i < stop; i++) unit(job, i, BFLOAT16);                        \
    }

VARIANT(plain, )
#ifdef __x86_64__
VARIANT(avx2, __attribute__((target("avx2,fma,f16c"))))
VARIANT(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif

static range *const RANGES[VARIANTS] = {
    [PLAIN] = newest_plain,
#ifdef __x86_64__
    [AVX2_FMA_F16C] = newest_avx2,
    [AVX512_F_BW_DQ_VL] = newest_avx512,
#endif
    [NEON] = newest_plain, /* which compilers for such processors vectorise */
};

/* The caller's idea of a job has to be of this size. */
int inlay_cache_job_bytes(void) { return sizeof(struct job); }

/* Units 0 <= i < total: heads of keys of the first sequence, then of the next. */
void inlay_cache_run(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads, parallel *omp) {
    (void)function;
    share(RANGES[variant], job, total, chunk, threads, omp);
}
