/* The problem that the examples compute: random inputs of gated_delta.gdr, and what must come out.
 */
#ifndef EXAMPLE_PROBLEM_H
#define EXAMPLE_PROBLEM_H

#include <stddef.h>

enum { B = 2, T = 200, H = 3, K = 64, V = 64 };
enum { Q, KEY, VALUE, G, BETA, OUT, STATE, TENSORS };

/* Row-major f32: q, k [B,T,H,K]; v, o [B,T,H,V]; g, beta [B,T,H]; state [B,H,K,V]. */
typedef struct Problem {
    float *data[TENSORS];
    size_t count[TENSORS];
} Problem;

/* Allocates and fills; 0 when memory runs out. */
int problem_new(Problem *p);
void problem_free(Problem *p);
/* Root-mean-square error of OUT and STATE over that of a token-by-token loop in double. */
double problem_error(const Problem *p);

#endif
