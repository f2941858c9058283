/* What the kernels of this folder have in common: the processors they know, the numbers they read, and how threads share a job.

   A variant is a set of instructions that the processor is asked for when the library is used: AVX-512 means F, BW, DQ and VL;
   AVX2 means FMA and F16C too. Threads are those of the OpenMP library that the caller has: it hands over the address of
   GOMP_parallel, and nothing is linked.

   Bits depend on no product and sum being fused elsewhere: compile with -ffp-contract=off, and never with -ffast-math. */

#include <math.h>
#ifdef __linux__
#include <sched.h>
#endif
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

enum { WIDTH = 16 }; /* numbers that loops take side by side, which a compiler turns into a variant's instructions */

/* The sum of WIDTH parts, in one order. */
INLINE float total(const float *parts) {
    float sum = 0;
    for (int j = 0; j < WIDTH; j++) sum += parts[j];
    return sum;
}

/* exp(x), -87 <= x <= 87: 2^n times a polynomial in what is left between -ln 2 / 2 and ln 2 / 2. Cephes' expf, within two units
   of its last place. */
INLINE float exponential(float x) {
    float n = fmaf(x, 1.44269504f, 12582912.0f) - 12582912.0f; /* to the nearest whole number */
    float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p * r, r, r + 1);
    return p * float_of((uint32_t)((int32_t)n + 127) << 23);
}

/* WIDTH numbers side by side, as kernels have them that name no instructions; a compiler makes them of what a variant has. */
typedef float lanes __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t words __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t halves __attribute__((vector_size(2 * WIDTH)));

INLINE float number(const void *values, int dtype, int64_t i) {
    return dtype == FLOAT32 ? ((const float *)values)[i] : float_of((uint32_t)((const uint16_t *)values)[i] << 16);
}

INLINE void put_number(void *values, int dtype, int64_t i, float value) {
    if (dtype == FLOAT32) ((float *)values)[i] = value;
    else ((uint16_t *)values)[i] = to_bfloat16(value);
}

/* `count` numbers from the i-th on, and zeros. */
INLINE void get_lanes(lanes *to, const void *values, int dtype, int64_t i, int64_t count) {
    if (count < WIDTH) {
        float some[WIDTH] = {0};
        for (int64_t j = 0; j < count; j++) some[j] = number(values, dtype, i + j);
        memcpy(to, some, sizeof *to);
    } else if (dtype == FLOAT32) {
        memcpy(to, (const float *)values + i, sizeof *to);
    } else {
        halves some;
        memcpy(&some, (const uint16_t *)values + i, sizeof some);
        *to = (lanes)(__builtin_convertvector(some, words) << 16);
    }
}

INLINE void put_lanes(const lanes *from, void *values, int dtype, int64_t i, int64_t count) {
    if (count < WIDTH) {
        float some[WIDTH];
        memcpy(some, from, sizeof some);
        for (int64_t j = 0; j < count; j++) put_number(values, dtype, i + j, some[j]);
    } else if (dtype == FLOAT32) {
        memcpy((float *)values + i, from, sizeof *from);
    } else { /* like to_bfloat16 */
        const words bits = (words)*from, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nans = (words)(*from != *from);
        const halves some = __builtin_convertvector((rounded & ~nans) | (nans & 0x7fc0), halves);
        memcpy((uint16_t *)values + i, &some, sizeof some);
    }
}

/* The sum of all lanes, by halves. */
INLINE float sum_of(const lanes *from) {
    float parts[WIDTH];
    memcpy(parts, from, sizeof parts);
    for (int n = WIDTH / 2; n; n /= 2)
        for (int j = 0; j < n; j++) parts[j] += parts[j + n];
    return parts[0];
}

enum { MOST_SPINS = 1 << 12 };

/* For who waits for another thread, and has looked `spins` times. */
INLINE void wait_a_little(int spins) {
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
#ifdef __linux__
    if (spins > MOST_SPINS) sched_yield(); /* that thread may wait for this one's core */
#else
    (void)spins;
#endif
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
INLINE void share(range *work, const struct job *job, int64_t total, int64_t chunk, int threads, parallel *omp) {
    struct team team = {work, job, total, chunk, 0};
    if (omp != NULL && threads > 1)
        omp(member, &team, threads, 0);
    else
        work(job, 0, total);
}

/* ---- A kernel of one function, `unit(job, i, dtype)`, whose instructions a compiler chooses by the variant: its ranges, and what
   callers know it by. */

#define UNITS(variant, target)                                                                 \
    target static void units_##variant(const struct job *job, int64_t start, int64_t stop) {   \
        if (job->dtype == FLOAT32)                                                             \
            for (int64_t i = start; i < stop; i++) unit(job, i, FLOAT32);                      \
        else                                                                                   \
            for (int64_t i = start; i < stop; i++) unit(job, i, BFLOAT16);                     \
    }

#ifdef __x86_64__
#define UNITS_X86                                        \
    UNITS(avx2, __attribute__((target("avx2,fma,f16c")))) \
    UNITS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))
#define RANGES_X86 [AVX2_FMA_F16C] = units_avx2, [AVX512_F_BW_DQ_VL] = units_avx512,
#else
#define UNITS_X86
#define RANGES_X86
#endif

/* The caller's idea of a job has to be of this size; `omp` is GOMP_parallel, or NULL for one thread. Compilers for NEON vectorise
   the plain way. */
#define KERNEL(name)                                                                                                  \
    UNITS(plain, )                                                                                                    \
    UNITS_X86                                                                                                         \
    static range *const RANGES[VARIANTS] = {[PLAIN] = units_plain, RANGES_X86[NEON] = units_plain};                    \
    int inlay_##name##_job_bytes(void) { return sizeof(struct job); }                                                 \
    void inlay_##name##_run(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads, \
                            parallel *omp) {                                                                          \
        (void)function;                                                                                               \
        share(RANGES[variant], job, total, chunk, threads, omp);                                                      \
    }
