/* Gradients to memory: a token's rows, in the type of the port, as wide as its alignment allows; and a
 * chunk's parts of the gradients of params, f32.
 *
 * Heads of a group that share an input add to what the ones before them left of its gradient. A lane has
 * the same token and channels for every head, so it finds what it has written itself and nobody waits.
 * Where sums are kept was weighed:
 *
 *     f32 in the block's scratch     exact but for f32, and twice the bytes of a 16-bit gradient: all
 *                                    blocks' would be as much as the rest of the scratch, and whether
 *                                    it is still in the L2 cache a task later is not sure
 *     the gradient's own memory      rounded with each head, which few heads bear (runtime/gradient.c);
 *                                    no memory of its own, and at worst a row moves three times
 *     cotangents of rows and keys,   one turn through the tokens for all heads; but where a head's own
 *     before the tokens phase        gate or strength scales a row, they are no sum to share
 *
 * The second won.
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

/* This lane's elements in row `row` (i64) of what begins at p. */
static Val row_pointer(Tokens *x, Val p, const Row *r, Val row) {
    Cg *cg = x->g->cg;
    int width = elem_size(r->elem);
    p = cg_gep8(cg, p, cg_mul(cg, row, cg_int64(cg, r->elements * width)));
    p = cg_gep8(cg, p, cg_int64(cg, r->first * width));
    if (r->axis < 0)
        return p;
    Val base = r->axis == AXIS_K ? x->at.base_k : x->at.base_v;
    return cg_gep8(cg, p, cg_zext64(cg, cg_mul(cg, base, cg_int(cg, width))));
}

/* Elements of an access. */
static int access_of(const Tokens *x, const Row *r) {
    return grad_group(r->axis < 0 ? 1 : x->g->k->axis.at[r->axis].size, r->count, r->elem);
}

/* y[] to p, n elements; where `more` (NULL: nowhere), added to what is there, or to its copy. */
static void store_access(Tokens *x, Elem e, Val p, int n, Val more, Val copy, const Val *y) {
    Cg *cg = x->g->cg;
    Val sum[TOKEN_RUN];
    if (!more) {
        grad_store(cg, e, p, n, y);
        return;
    }
    If some = cg_if(cg, more);
    grad_load(cg, e, copy ? copy : p, n, sum);
    for (int j = 0; j < n; j++)
        sum[j] = cg_fadd(cg, sum[j], y[j]);
    grad_store(cg, e, p, n, sum);
    cg_else(cg, &some);
    grad_store(cg, e, p, n, y);
    cg_end_if(cg, &some);
}

/* Where `cond`: y[] to p, from row_pointer. `copy`: of the accesses, or NULL. */
static void store_row(Tokens *x, Val p, const Row *r, Val cond, Val more, const Val *copy,
                      const Val *y) {
    Cg *cg = x->g->cg;
    int width = elem_size(r->elem), group = access_of(x, r);
    if (r->axis < 0)
        cond = cg_and(cg, cond, cg_cmp(cg, LLVMIntEQ, x->lane, cg_int(cg, 0)));
    for (int j = 0; j < r->count; j += group) {
        Val exists = r->axis < 0 ? NULL : value_exists(&x->at, r->axis, j);
        Val at = cg_gep8(cg, p, cg_int64(cg, (int64_t)j * width));
        If here = cg_if(cg, exists ? cg_and(cg, cond, exists) : cond);
        store_access(x, r->elem, at, group, more, copy ? copy[j / group] : NULL, y + j);
        cg_end_if(cg, &here);
    }
}

static void repeat(const Val *y, int have, int n, Val *out) {
    for (int j = 0; j < n; j++)
        out[j] = y[have > 1 ? j : 0];
}

/* Output `out`'s memory (i64, 0: nobody wants it), and whether heads share its rows (i1). */
static Val memory_of(Tokens *x, const Inst *out) {
    return cg_frame_field(x->g->cg, frame_out_ptr(x->g->k, out->index));
}

static Val heads_of(Tokens *x, const Inst *out) {
    return cg_trunc32(x->g->cg, cg_frame_field(x->g->cg, frame_out_heads(x->g->k, out->index)));
}

static Val shared(Tokens *x, const Inst *out) {
    return cg_cmp(x->g->cg, LLVMIntNE, heads_of(x, out), x->g->heads);
}

/* Row (token, head) of [B*T, heads, ...] (i64). */
static Val row_at(Tokens *x, Val heads, Val head) {
    Cg *cg = x->g->cg;
    return cg_add(cg, cg_mul(cg, x->at.token, cg_zext64(cg, heads)), cg_zext64(cg, head));
}

/* This lane's part of the head's row, or its group's. */
static Val token_pointer(Tokens *x, const Inst *out, const Row *r) {
    Cg *cg = x->g->cg;
    Val sum = row_at(x, heads_of(x, out), x->g->own), alone = row_at(x, x->g->heads, x->g->head);
    Val p = LLVMBuildIntToPtr(cg->b, memory_of(x, out), cg->ptr_global, "");
    return row_pointer(x, p, r, cg_select(cg, shared(x, out), sum, alone));
}

static Val wanted(Tokens *x, const Inst *out) {
    return cg_cmp(x->g->cg, LLVMIntNE, memory_of(x, out), cg_int64(x->g->cg, 0));
}

static void value_of(Tokens *x, const Inst *out, int n, Val *y) {
    repeat(value_get(&x->at, out->arg[0]), value_count(&x->at, out->arg[0]), n, y);
}

void tokens_store(Tokens *x, int v) {
    Cg *cg = x->g->cg;
    const Inst *out = inst_at(x->g->k, v);
    Row r = row_of(x, out);
    Val y[TOKEN_RUN], copy[TOKEN_RUN], cond = cg_and(cg, x->live, wanted(x, out));
    value_of(x, out, r.count, y);
    bool copied = tokens_copy_of(x, v, PLACE_SUM, copy);
    Val more = cg_and(cg, x->g->more, shared(x, out));
    store_row(x, token_pointer(x, out, &r), &r, cond, more, copied ? copy : NULL, y);
}

int tokens_sum_units(const Tokens *x, int out) {
    Row r = row_of(x, inst_at(x->g->k, out));
    int group = access_of(x, &r);
    return r.axis >= 0 && group * elem_size(r.elem) == GRAD_ACCESS ? r.count / group : 0;
}

void tokens_sum_at(Tokens *x, int v, Val *address, Val *bytes) {
    Cg *cg = x->g->cg;
    const Inst *out = inst_at(x->g->k, v);
    Row r = row_of(x, out);
    Val p = token_pointer(x, out, &r), all = cg_int(cg, GRAD_ACCESS), none = cg_int(cg, 0);
    Val cond = cg_and(cg, cg_and(cg, x->live, wanted(x, out)), shared(x, out));
    int group = access_of(x, &r);
    for (int j = 0; j < r.count; j += group) {
        Val exists = value_exists(&x->at, r.axis, j);
        address[j / group] = cg_gep8(cg, p, cg_int64(cg, (int64_t)j * elem_size(r.elem)));
        bytes[j / group] = cg_select(cg, exists ? cg_and(cg, cond, exists) : cond, all, none);
    }
}

void tokens_store_made(Tokens *x, const ScanValue *made) {
    Cg *cg = x->g->cg;
    const Kernel *k = x->g->k;
    Row r = {.axis = made->axis, .elem = ELEM_f32};
    r.elements = made->axis < 0 ? 1 : k->axis.at[made->axis].size;
    r.count = tokens_count(x, inst_at(k, made->value)->shape);
    Val row = row_at(x, x->g->heads, x->g->head);
    Val p = row_pointer(x, scan_rows(cg, made), &r, row);
    store_row(x, p, &r, x->live, NULL, NULL, value_get(&x->at, made->value));
}

/* Row (slot, head) of [slots, H, ...]; the lanes of the warp's other tokens hold the same. */
void tokens_store_param(Tokens *x, const Inst *out) {
    Cg *cg = x->g->cg;
    Row r = row_of(x, out);
    Val y[TOKEN_RUN], row = cg_mul(cg, grad_slot(x->g), cg_zext64(cg, x->g->heads));
    Val first = cg_cmp(cg, LLVMIntULT, x->g->lane, cg_int(cg, x->lanes));
    value_of(x, out, r.count, y);
    row = cg_add(cg, row, cg_zext64(cg, x->g->head));
    Val p = LLVMBuildIntToPtr(cg->b, memory_of(x, out), cg->ptr_global, "");
    store_row(x, row_pointer(x, p, &r, row), &r, cg_and(cg, first, wanted(x, out)), NULL, NULL, y);
}
