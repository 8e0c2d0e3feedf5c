/* Gradients to memory: a token's rows, in the type of the port, as wide as its alignment allows; and a
 * chunk's parts of the gradients of params, f32.
 *
 * An output may be one row of a port [n,...], and may lack axes of the port: it is then the same along
 * them. Where nobody wants an output it has no address.
 */
#include "codegen/nvptx/grad_token.h"

/* The port's row that `out` gives: its axis (or -1), elements before it, and those of the whole port. */
typedef struct Row {
    int axis;
    int64_t first, elements;
    int count;             /* this lane's elements */
    Elem elem;
} Row;

static Row row_of(const Tokens *x, const Inst *out) {
    const Kernel *k = x->g->k;
    const Port *port = &k->out.at[out->index];
    Shape s = port->shape;
    Row r = {.elements = shape_elements(k, s), .elem = port->is_param ? ELEM_f32 : port->elem};
    if (s.rank && s.axis[0] >= AXIS_user) {
        s = shape_without(s, s.axis[0]);
        r.first = out->row > 0 ? out->row * shape_elements(k, s) : 0;
    }
    r.axis = tokens_run_axis(s);
    r.count = tokens_count(x, s);
    return r;
}

/* Where `cond`: y[] to row `row` (i64) of what begins at p. */
static void store_row(Tokens *x, Val p, const Row *r, Val cond, Val row, const Val *y) {
    Cg *cg = x->g->cg;
    int64_t size = r->axis < 0 ? 1 : x->g->k->axis.at[r->axis].size;
    int width = elem_size(r->elem), group = grad_group(size, r->count, r->elem);
    p = cg_gep8(cg, p, cg_mul(cg, row, cg_int64(cg, r->elements * width)));
    p = cg_gep8(cg, p, cg_int64(cg, r->first * width));
    if (r->axis >= 0) {
        Val base = r->axis == AXIS_K ? x->at.base_k : x->at.base_v;
        p = cg_gep8(cg, p, cg_zext64(cg, cg_mul(cg, base, cg_int(cg, width))));
    } else {
        cond = cg_and(cg, cond, cg_cmp(cg, LLVMIntEQ, x->lane, cg_int(cg, 0)));
    }
    for (int j = 0; j < r->count; j += group) {
        Val exists = r->axis < 0 ? NULL : value_exists(&x->at, r->axis, j);
        If here = cg_if(cg, exists ? cg_and(cg, cond, exists) : cond);
        grad_store(cg, r->elem, cg_gep8(cg, p, cg_int64(cg, (int64_t)j * width)), group, y + j);
        cg_end_if(cg, &here);
    }
}

static void repeat(const Val *y, int have, int n, Val *out) {
    for (int j = 0; j < n; j++)
        out[j] = y[have > 1 ? j : 0];
}

static void store(Tokens *x, const Inst *out, Val cond, Val row) {
    Cg *cg = x->g->cg;
    Row r = row_of(x, out);
    Val y[TOKEN_RUN], to = cg_frame_field(cg, frame_out_ptr(x->g->k, out->index));
    repeat(value_get(&x->at, out->arg[0]), value_count(&x->at, out->arg[0]), r.count, y);
    cond = cg_and(cg, cond, cg_cmp(cg, LLVMIntNE, to, cg_int64(cg, 0)));
    store_row(x, LLVMBuildIntToPtr(cg->b, to, cg->ptr_global, ""), &r, cond, row, y);
}

static Val token_row(Tokens *x) {
    Cg *cg = x->g->cg;
    Val row = cg_mul(cg, x->at.token, cg_zext64(cg, x->g->heads));
    return cg_add(cg, row, cg_zext64(cg, x->g->head));
}

/* Row (token, head) of [B*T, H, ...]. */
void tokens_store(Tokens *x, const Inst *out) {
    store(x, out, x->live, token_row(x));
}

void tokens_store_made(Tokens *x, const ScanValue *made) {
    const Kernel *k = x->g->k;
    Row r = {.axis = made->axis, .elem = ELEM_f32};
    r.elements = made->axis < 0 ? 1 : k->axis.at[made->axis].size;
    r.count = tokens_count(x, inst_at(k, made->value)->shape);
    Val p = scan_rows(x->g->cg, made);
    store_row(x, p, &r, x->live, token_row(x), value_get(&x->at, made->value));
}

/* Row (slot, head) of [slots, H, ...]; the lanes of the warp's other tokens hold the same. */
void tokens_store_param(Tokens *x, const Inst *out) {
    Cg *cg = x->g->cg;
    Val row = cg_mul(cg, x->g->slot, cg_zext64(cg, x->g->heads));
    Val first = cg_cmp(cg, LLVMIntULT, x->g->lane, cg_int(cg, x->lanes));
    store(x, out, first, cg_add(cg, row, cg_zext64(cg, x->g->head)));
}
