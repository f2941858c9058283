/* Attention of the newest token of each sequence over keys and values that lie in blocks:

       out = softmax_s(scaling q . k[s]) v[s],    s < length, and s >= length - window

   The token's own key and value are written into their place first. The keys of a block lie with its tokens side by side, so that
   a product takes all of them at a time. What a block adds is weighed against the largest score so far, so that no score is kept:

       m' = max(m, scores),   sum = sum exp(m - m') + sum_s exp(score[s] - m'),   out likewise

   The unit of work is a head of keys of one sequence. Each is computed in one order, whatever sequences are beside it. */

#include "team.h"

enum { BLOCK = WIDTH, WIDEST = 256 };

struct job {
    const void *q, *k, *v;    /* of the step: (tokens, heads, dim), strides below; without q keys and values are written, no more */
    void *keys, *values;      /* (blocks, kv_heads, dim, BLOCK), and (blocks, kv_heads, BLOCK, dim) */
    void *out;                /* (tokens, heads, dim) dense */
    const int64_t *tokens;    /* (rows,) which token of the step is a sequence's */
    const int64_t *lengths;   /* (rows,) with the token itself */
    const int64_t *tables;    /* (rows, most): its blocks */
    int64_t q_token, q_head, k_token, k_head, v_token, v_head; /* strides in numbers */
    int64_t heads, kv_heads, dim, most, window;
    float scaling;
    int32_t dtype;            /* of all floats */
};

/* What a head of queries has seen so far. */
struct seen {
    float largest, sum;
    lanes out[WIDEST / WIDTH];
};

/* Take the tokens begin <= s < end of a block. */
INLINE void take_block(const struct job *job, const float *q, int64_t block, int begin, int end, struct seen *seen, int dtype) {
    const int64_t dim = job->dim;
    lanes scores = {0}, some;
    for (int64_t i = 0; i < dim; i++) {
        get_lanes(&some, job->keys, dtype, (block * dim + i) * BLOCK, BLOCK);
        scores += q[i] * some;
    }
    float weights[BLOCK], largest = seen->largest;
    memcpy(weights, &scores, sizeof weights);
    for (int s = begin; s < end; s++) largest = weights[s] > largest || weights[s] != weights[s] ? weights[s] : largest;
    float before = seen->largest - largest, kept = before < -87 ? 0 : exponential(before);
    for (int s = 0; s < BLOCK; s++) {
        float x = weights[s] - largest;
        weights[s] = x < -87 || s < begin || s >= end ? 0 : exponential(x);
    }
    memcpy(&some, weights, sizeof some);
    seen->sum = seen->sum * kept + sum_of(&some);
    seen->largest = largest;
    for (int64_t i = 0; i < dim; i += WIDTH) {
        lanes sums = seen->out[i / WIDTH] * kept;
        for (int s = begin; s < end; s++) {
            get_lanes(&some, job->values, dtype, (block * BLOCK + s) * dim + i, WIDTH);
            sums += weights[s] * some;
        }
        seen->out[i / WIDTH] = sums;
    }
}

INLINE void unit(const struct job *job, int64_t i, int dtype) {
    const int64_t row = i / job->kv_heads, head = i % job->kv_heads, dim = job->dim;
    const int64_t token = job->tokens[row], last = job->lengths[row] - 1, group = job->heads / job->kv_heads;
    const int64_t *table = job->tables + row * job->most;
    const int64_t own = table[last / BLOCK] * job->kv_heads + head, place = last % BLOCK;
    for (int64_t d = 0; d < dim; d++) {
        float key = number(job->k, dtype, token * job->k_token + head * job->k_head + d);
        float value = number(job->v, dtype, token * job->v_token + head * job->v_head + d);
        put_number(job->keys, dtype, (own * dim + d) * BLOCK + place, key);
        put_number(job->values, dtype, (own * BLOCK + place) * dim + d, value);
    }
    if (job->q == NULL) return;
    int64_t first = last >= job->window ? last + 1 - job->window : 0;
    for (int64_t h = head * group; h < (head + 1) * group; h++) {
        float q[WIDEST];
        struct seen seen = {.largest = -INFINITY};
        for (int64_t d = 0; d < dim; d++) q[d] = job->scaling * number(job->q, dtype, token * job->q_token + h * job->q_head + d);
        for (int64_t b = first / BLOCK; b <= last / BLOCK; b++) {
            int begin = b == first / BLOCK ? first % BLOCK : 0, end = b == last / BLOCK ? place + 1 : BLOCK;
            take_block(job, q, table[b] * job->kv_heads + head, begin, end, &seen, dtype);
        }
        for (int64_t d = 0; d < dim; d += WIDTH) {
            lanes value = seen.out[d / WIDTH] / seen.sum;
            put_lanes(&value, job->out, dtype, (token * job->heads + h) * dim + d, WIDTH);
        }
    }
}

/* Units: heads of keys of the first sequence, then of the next. */
KERNEL(cache)
