/* What the kernels of this folder have in common: the processors they know, the numbers they read, and how threads share a job.

   A variant is a set of instructions that the processor is asked for when the library is used: AVX-512 means F, BW, DQ and VL;
   AVX2 means FMA and F16C too. Threads are those of the OpenMP library that the caller has: it hands over the address of
   GOMP_parallel, and nothing is linked.

   Bits depend on no product and sum being fused elsewhere: compile with -ffp-contract=off, and never with -ffast-math. */

#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "rounding is promised to the bit: not with -ffast-math"
#endif

enum dtype { FLOAT32, BFLOAT16, FLOAT16 };
enum variant { PLAIN, AVX2_FMA_F16C, AVX512_F_BW_DQ_VL, NEON, VARIANTS };

#define INLINE static inline __attribute__((always_inline))

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE uint32_t word_at(const void *address) {
    uint32_t word;
    memcpy(&word, address, 4);
    return word;
}

INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits = bits_of(value);
    return value != value ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

struct job; /* each kernel has its own */
typedef void range(const struct job *, int64_t start, int64_t stop);
typedef void parallel(void (*)(void *), void *, unsigned num_threads, unsigned flags);

struct team {
    range *work;
    const struct job *job;
    int64_t total, chunk, next;
};

/* What each thread does: it takes the next chunk until there is none. */
static void member(void *shared) {
    struct team *team = shared;
    for (;;) {
        int64_t start = __atomic_fetch_add(&team->next, team->chunk, __ATOMIC_RELAXED);
        if (start >= team->total) return;
        team->work(team->job, start, team->total - start < team->chunk ? team->total : start + team->chunk);
    }
}

/* Units 0 <= i < total of a job; `omp` is GOMP_parallel, or NULL for one thread. */
static void share(range *work, const struct job *job, int64_t total, int64_t chunk, int threads, parallel *omp) {
    struct team team = {work, job, total, chunk, 0};
    if (omp != NULL && threads > 1)
        omp(member, &team, threads, 0);
    else
        work(job, 0, total);
}
