/* A program: jobs of any kernels, one after the other, as `inlay.kernels.program` has recorded them. */

#include "team.h"

typedef void kernel(int variant, int function, const struct job *job, int64_t total, int64_t chunk, int threads, parallel *omp);

struct step {
    kernel *run;
    const struct job *job;
    int64_t total, chunk;
    int32_t variant, function, threads, padding;
};

int inlay_program_step_bytes(void) { return sizeof(struct step); }

void inlay_program_run(const struct step *steps, int64_t count, parallel *omp) {
    for (const struct step *s = steps; s < steps + count; s++)
        s->run(s->variant, s->function, s->job, s->total, s->chunk, s->threads, omp);
}
