/* What products of decays and their cotangents share: decay.c, decay_grad.c. */
#ifndef GDR_CODEGEN_HOST_DECAY_H
#define GDR_CODEGEN_HOST_DECAY_H

#include "codegen/host/host.h"

/* p(l) for row l of a matrix whose rows are those of `t`. */
Val decay_place_of(Host *h, const Tile *t, int place, Val l);
/* The columns of `col` at another row. */
At decay_at(const At *col, int row_axis, Val row);
/* A running product of decays `a`: one vector of columns, or a scalar where they have no feature axis. */
Var decay_open(Host *h, int a);
void decay_step(const At *col, Var w, int a, Val u); /* w *= a[u] */
/* Value v as a matrix on the given axes, copied out when it lacks one of them. */
Tile decay_matrix(Host *h, int v, int row, int col);
/* L[p,u] = a[u+1] .. a[p-1] for u < p, else 0, of scalar decays. */
Tile decay_running_products(Host *h, int a);
/* Keeps u < p(l) of a matrix on the rows of `out`, times the running product of scalar decays. */
typedef struct Scale {
    const Tile *out;
    int place;
    bool decays;
    Tile products;
} Scale;
Val decay_scale_scores(At *here, Val acc, void *scale);
Val decay_round_up_lanes(Host *h, Val n);
/* Runs `body` for every vector of columns of v's tile, once its operands are there; user is &v. */
void decay_run_columns(Host *h, int v, HostBody *body);

#endif
