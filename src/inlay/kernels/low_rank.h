/* What adapters add to the output of a linear map, for a few tokens of any adapters:

       y[t] += (scaling x[t] A^T) B^T,    A (r, in), B^T (lines, r, line),    for every entry of token t, in their order

   in float32, rounded once for each entry. x A^T is made in parts of some ranks, y in runs of outputs: a number depends on
   nothing beside it. A line is 64 bytes, and the outputs of a line are those of all ranks, one line after the other: what some
   outputs take of B lies together. The last line may have more than there are. */

#include "team.h"

enum { LINE = 64 }; /* bytes */

struct added {
    const void *x;         /* (tokens, in) */
    void *y;               /* (tokens, out) */
    const int64_t *tokens; /* by entry, rising */
    const void *const *A;
    const void *const *B;
    const int64_t *ranks;
    const float *scalings;
    int64_t entries, most; /* the largest rank, at most 1024 */
    int64_t in, out;
    int32_t dtype;         /* of x, y, A and B */
};

/* Units 0 <= i < total of a kernel's job, each `rows` outputs of its y, and what is added to that y; or that alone, without
   `work`. Like `share` of team.h. */
void inlay_share_added(range *work, const struct job *job, int64_t total, int64_t chunk, int64_t rows, const struct added *added,
                       int variant, int threads, parallel *omp);
