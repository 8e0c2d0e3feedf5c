/* Shared by the run-time property tests: random tensors for any compiled spec, launched through the
 * public API on the CPU.
 *
 * A Case owns the tensors of one launch, dense ([B,T,...]) or packed (B = 1 and cu). Values depend
 * on the seed, the tensor, the sequence's label, the token's number in it, the head and the
 * element, never on where the sequence lies: the same label gives the same sequence anywhere.
 */
#ifndef GDR_TESTS_CASE_H
#define GDR_TESTS_CASE_H

#include "runtime/gdr.h"
#include <stdbool.h>

enum { MAX_PORTS = 32, MAX_SEQUENCES = 16 };

typedef struct Case {
    gdr_kernel *kernel;
    int64_t H, K, V;
    int nports, N;
    bool packed;
    int64_t length[MAX_SEQUENCES]; /* of each sequence; dense: all equal */
    int label[MAX_SEQUENCES];      /* which random sequence it is */
    int64_t T;                     /* rows in all when packed, per sequence when dense */
    gdr_port port[MAX_PORTS];
    int64_t width[MAX_PORTS]; /* elements of one token and head */
    float *data[MAX_PORTS];
    float *S0, *S; /* [N,H,K,V] */
    int64_t cu[MAX_SEQUENCES + 1];
} Case;

/* `spare` rows after the last sequence belong to none (packed only). */
Case *case_new(gdr_kernel *kernel, int64_t H, int N, const int64_t *length, const int *label,
               bool packed, int64_t spare, uint64_t seed);
void case_free(Case *c);
gdr_status case_run(Case *c);

/* The first row of sequence n in tensors of width * heads elements a row. */
int64_t case_row(const Case *c, int n);
/* Elements of one row (a token of all heads) of port p, of one state. */
int64_t case_row_size(const Case *c, int p);
int64_t case_state_size(const Case *c);
/* Whether outputs and final state of sequence n of `a` equal those of m of `b`, bit for bit. The
 * first `tokens` outputs only (and no state) if tokens >= 0. */
bool case_same(const Case *a, int n, const Case *b, int m, int64_t tokens);
/* A number in [0,1) that depends on all of these alone. */
double uniform(uint64_t seed, uint64_t a, uint64_t b, uint64_t c, uint64_t d);

#endif
