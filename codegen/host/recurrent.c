/* The recurrence token by token: its sweeps over the state, then outputs and what the next token
 * looks back at.
 */
#include "codegen/host/host.h"

static void run_token(Host *h) {
    const Kernel *k = h->k;
    host_sweeps(h, false);
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_out)
            host_out(h, v);
    host_need_histories(h);
    host_roll_history(h);
}

void host_recurrent_task(Host *h) {
    Cg *cg = h->cg;
    Val zero = cg_int64(cg, 0);
    h->token0 = zero;
    host_open_axes(h, cg_int64(cg, 1));
    host_start_past(h);
    host_constants(h);
    Loop t = cg_for(cg, zero, cg_add(cg, h->length, cg_int64(cg, 1)), 1, false);
    host_leave_state_after(h, t.i);
    If more = cg_if(cg, cg_cmp(cg, LLVMIntSLT, t.i, h->length));
    h->token0 = t.i;
    run_token(h);
    cg_end_if(cg, &more);
    cg_end_for(cg, &t);
}
