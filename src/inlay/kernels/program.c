/* A program: jobs of any kernels, one after the other, as `inlay.kernels.program` has recorded them.

   Threads are asked for once. One of them goes through the program; whenever a kernel wants threads, it gives the others what they
   are to do, and they look for that all the time: to call them together for each job takes as long as many a job. */

#include "team.h"

typedef void kernel(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads, parallel *omp);

struct step {
    kernel *run;
    const struct job *job;
    int64_t total, chunk;
    int32_t variant, function, threads, padding;
};

struct crew {
    const struct step *steps;
    int64_t count;
    void (*work)(void *); /* of the job under way, whose number `open` is; 0 where there is none */
    void *shared;
    int64_t number, open, inside; /* how many others are at it */
    int leads, is_over;
};

static __thread struct crew *own; /* of the thread that goes through the program */

/* What kernels take for GOMP_parallel. Who comes too late finds nothing left to do. */
static void together(void (*work)(void *), void *shared, unsigned num_threads, unsigned flags) {
    (void)num_threads, (void)flags;
    struct crew *crew = own;
    crew->work = work;
    crew->shared = shared;
    __atomic_store_n(&crew->open, ++crew->number, __ATOMIC_SEQ_CST);
    work(shared);
    __atomic_store_n(&crew->open, 0, __ATOMIC_SEQ_CST);
    for (int spins = 0; __atomic_load_n(&crew->inside, __ATOMIC_SEQ_CST); spins++) wait_a_little(spins);
}

static void run(const struct step *steps, int64_t count, parallel *omp) {
    for (const struct step *s = steps; s < steps + count; s++)
        s->run(s->variant, s->function, s->job, s->total, s->chunk, s->threads, omp);
}

static void help(struct crew *crew) {
    int64_t seen = 0, open;
    for (int spins = 0; !__atomic_load_n(&crew->is_over, __ATOMIC_ACQUIRE); spins++) {
        if ((open = __atomic_load_n(&crew->open, __ATOMIC_ACQUIRE)) == 0 || open == seen) {
            wait_a_little(spins);
            continue;
        }
        /* either the leader sees this one inside and waits, or this one sees that the job is over */
        __atomic_fetch_add(&crew->inside, 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&crew->open, __ATOMIC_SEQ_CST) == open) crew->work(crew->shared);
        __atomic_fetch_sub(&crew->inside, 1, __ATOMIC_SEQ_CST);
        seen = open;
        spins = 0;
    }
}

/* The first thread that comes leads. */
static void member_of_crew(void *shared) {
    struct crew *crew = shared;
    if (__atomic_exchange_n(&crew->leads, 1, __ATOMIC_RELAXED)) {
        help(crew);
        return;
    }
    own = crew;
    run(crew->steps, crew->count, together);
    __atomic_store_n(&crew->is_over, 1, __ATOMIC_RELEASE);
}

int inlay_program_step_bytes(void) { return sizeof(struct step); }

void inlay_program_run(const struct step *steps, int64_t count, parallel *omp) {
    int32_t threads = 1;
    for (const struct step *s = steps; s < steps + count; s++) threads = s->threads > threads ? s->threads : threads;
    struct crew crew = {.steps = steps, .count = count};
    if (omp != NULL && threads > 1)
        omp(member_of_crew, &crew, threads, 0);
    else
        run(steps, count, omp);
}
