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

enum { ROWS_AT_ONCE = 6 }; /* in registers, on their way to memory */

/* A port's row: its axis (or -1), elements before it, and those of the whole port. */
typedef struct Row {
    int axis;
    int64_t first, elements;
    int count;             /* this lane's elements */
    Elem elem;
} Row;

/* Where an output's rows of this head are, or of its group where heads share them: this lane's part at the
 * chunk's first token, and how many rows the next token is away. */
struct TokenRows {
    Val base, heads;       /* global byte pointer, i32 */
    Val wanted, shared;    /* i1 */
};

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

static int64_t row_bytes(const Row *r) {
    return r->elements * elem_size(r->elem);
}

/* This lane's elements in row `row` (i64) of what begins at p. */
static Val row_pointer(Tokens *x, Val p, const Row *r, Val row) {
    Cg *cg = x->g->cg;
    int width = elem_size(r->elem);
    p = cg_gep8(cg, p, cg_mul(cg, row, cg_int64(cg, row_bytes(r))));
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

static bool is_stored(const Tokens *x, int v) {
    const Inst *i = inst_at(x->g->k, v);
    return i->op == OP_out && !x->g->k->out.at[i->index].is_param && tokens_gives(x, i);
}

/* Output `out`'s memory (i64, 0: nobody wants it). */
static Val memory_of(Tokens *x, const Inst *out) {
    return cg_frame_field(x->g->cg, frame_out_ptr(x->g->k, out->index));
}

static Val wanted(Tokens *x, const Inst *out) {
    return cg_cmp(x->g->cg, LLVMIntNE, memory_of(x, out), cg_int64(x->g->cg, 0));
}

/* Row (token, head) of [B*T, heads, ...] (i64). */
static Val row_at(Tokens *x, Val token, Val heads, Val head) {
    Cg *cg = x->g->cg;
    return cg_add(cg, cg_mul(cg, token, cg_zext64(cg, heads)), cg_zext64(cg, head));
}

static TokenRows place_rows(Tokens *x, const Inst *out) {
    Grad *g = x->g;
    Cg *cg = g->cg;
    Row r = row_of(x, out);
    Val of_port = cg_trunc32(cg, cg_frame_field(cg, frame_out_heads(g->k, out->index)));
    Val shared = cg_cmp(cg, LLVMIntNE, of_port, g->heads);
    Val heads = cg_select(cg, shared, of_port, g->heads), head = cg_select(cg, shared, g->own, g->head);
    Val p = LLVMBuildIntToPtr(cg->b, memory_of(x, out), cg->ptr_global, "");
    return (TokenRows){.base = row_pointer(x, p, &r, row_at(x, x->at.origin, heads, head)),
                       .heads = heads, .wanted = wanted(x, out), .shared = shared};
}

void tokens_place_rows(Tokens *x) {
    const Kernel *k = x->g->k;
    x->rows = NEW_ARRAY(x->g->cg->arena, TokenRows, k->inst.count);
    for (int v = 0; v < k->inst.count; v++)
        if (is_stored(x, v))
            x->rows[v] = place_rows(x, inst_at(k, v));
}

/* This lane's part of output v's row at the present token. A chunk's records alone take so much memory that
 * its rows of all heads are less than 2^32. */
static Val token_pointer(Tokens *x, int v) {
    Cg *cg = x->g->cg;
    Row r = row_of(x, inst_at(x->g->k, v));
    Val row = cg_zext64(cg, cg_mul(cg, x->t, x->rows[v].heads));
    return cg_gep8(cg, x->rows[v].base, cg_mul(cg, row, cg_int64(cg, row_bytes(&r))));
}

/* Where `cond`, i1, or everywhere: y[] to p. */
static void store_row(Tokens *x, Val p, const Row *r, Val cond, const Val *y) {
    Cg *cg = x->g->cg;
    int group = access_of(x, r);
    if (r->axis < 0)
        cond = cg_and(cg, cond, cg_cmp(cg, LLVMIntEQ, x->lane, cg_int(cg, 0)));
    for (int j = 0; j < r->count; j += group) {
        Val exists = r->axis < 0 ? NULL : value_exists(&x->at, r->axis, j);
        Val at = cg_gep8(cg, p, cg_int64(cg, (int64_t)j * elem_size(r->elem)));
        If here = cg_if(cg, exists ? cg_and(cg, cond, exists) : cond);
        grad_store(cg, r->elem, at, group, y + j);
        cg_end_if(cg, &here);
    }
}

/* What is at p, from row_pointer, or in its copies, is added to y[]. */
static void add_row(Tokens *x, Val p, const Row *r, Val cond, const Val *copy, const Var *y) {
    Cg *cg = x->g->cg;
    int group = access_of(x, r);
    Val more[TOKEN_RUN];
    for (int j = 0; j < r->count; j += group) {
        Val exists = r->axis < 0 ? NULL : value_exists(&x->at, r->axis, j);
        Val at = cg_gep8(cg, p, cg_int64(cg, (int64_t)j * elem_size(r->elem)));
        If here = cg_if(cg, exists ? cg_and(cg, cond, exists) : cond);
        grad_load(cg, r->elem, copy ? copy[j / group] : at, group, more);
        for (int m = 0; m < group; m++)
            cg_set(cg, y[j + m], cg_fadd(cg, more[m], cg_get(cg, y[j + m])));
        cg_end_if(cg, &here);
    }
}

/* This lane's elements of a row that is `value`'s. */
static void row_values(Tokens *x, int value, int n, Val *y) {
    const Val *have = value_get(&x->at, value);
    for (int j = 0; j < n; j++)
        y[j] = have[value_count(&x->at, value) > 1 ? j : 0];
}

/* Rows of this token between registers and memory; y: by value, NULL where it is none of them. */
typedef struct Batch {
    Var **y;
    int from, to; /* instructions */
} Batch;

/* What heads of the group before this one have left of the rows that it shares. */
static void add_shared(Tokens *x, const Batch *b) {
    Cg *cg = x->g->cg;
    If more = cg_if(cg, x->g->more);
    for (int v = b->from; v < b->to; v++) {
        if (!b->y[v])
            continue;
        Row r = row_of(x, inst_at(x->g->k, v));
        Val copy[TOKEN_RUN], there = cg_and(cg, x->rows[v].wanted, x->rows[v].shared);
        there = cg_and(cg, x->live, there);
        bool copied = tokens_copy_of(x, v, PLACE_SUM, copy);
        add_row(x, token_pointer(x, v), &r, there, copied ? copy : NULL, b->y[v]);
    }
    cg_end_if(cg, &more);
}

/* The next outputs' elements, as many as there are registers for. */
static void work_out(Tokens *x, Batch *b) {
    Cg *cg = x->g->cg;
    const Kernel *k = x->g->k;
    int elements = 0;
    for (b->from = b->to; b->to < k->inst.count && elements < ROWS_AT_ONCE * TOKEN_RUN; b->to++) {
        Val made[TOKEN_RUN];
        if (!is_stored(x, b->to))
            continue;
        int n = row_of(x, inst_at(k, b->to)).count;
        row_values(x, inst_at(k, b->to)->arg[0], n, made);
        nv_work_out(cg, made, n);
        b->y[b->to] = NEW_ARRAY(cg->arena, Var, n);
        for (int j = 0; j < n; j++)
            b->y[b->to][j] = cg_var(cg, cg->f32, made[j]);
        elements += n;
    }
}

/* Rows are worked out before the first one of them is stored, so that sums over channels, each a few dependent
 * shuffles, wait side by side: what is made under a store's condition would stay there. */
void tokens_store(Tokens *x) {
    Cg *cg = x->g->cg;
    int count = x->g->k->inst.count;
    Batch b = {.y = NEW_ARRAY(cg->arena, Var *, count)};
    while (b.to < count) {
        work_out(x, &b);
        add_shared(x, &b);
        for (int v = b.from; v < b.to; v++) {
            if (!b.y[v])
                continue;
            Row r = row_of(x, inst_at(x->g->k, v));
            Val made[TOKEN_RUN];
            for (int j = 0; j < r.count; j++)
                made[j] = cg_get(cg, b.y[v][j]);
            store_row(x, token_pointer(x, v), &r, cg_and(cg, x->live, x->rows[v].wanted), made);
        }
    }
}

int tokens_sum_units(const Tokens *x, int out) {
    Row r = row_of(x, inst_at(x->g->k, out));
    int group = access_of(x, &r);
    return r.axis >= 0 && group * elem_size(r.elem) == GRAD_ACCESS ? r.count / group : 0;
}

void tokens_sum_at(Tokens *x, int v, Val *address, Val *bytes) {
    Cg *cg = x->g->cg;
    Row r = row_of(x, inst_at(x->g->k, v));
    Val p = token_pointer(x, v), all = cg_int(cg, GRAD_ACCESS), none = cg_int(cg, 0);
    Val cond = cg_and(cg, x->live, cg_and(cg, x->rows[v].wanted, x->rows[v].shared));
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
    Val y[TOKEN_RUN];
    Row r = {.axis = made->axis, .elem = ELEM_f32};
    r.elements = made->axis < 0 ? 1 : k->axis.at[made->axis].size;
    r.count = tokens_count(x, inst_at(k, made->value)->shape);
    Val row = row_at(x, x->at.token, x->g->heads, x->g->head);
    row_values(x, made->value, r.count, y);
    store_row(x, row_pointer(x, scan_rows(cg, made), &r, row), &r, x->live, y);
}

/* Row (slot, head) of [slots, H, ...]; the lanes of the warp's other tokens hold the same. */
void tokens_store_param(Tokens *x, const Inst *out) {
    Cg *cg = x->g->cg;
    Row r = row_of(x, out);
    Val y[TOKEN_RUN], row = cg_mul(cg, grad_slot(x->g), cg_zext64(cg, x->g->heads));
    Val first = cg_cmp(cg, LLVMIntULT, x->g->lane, cg_int(cg, x->lanes));
    row_values(x, out->arg[0], r.count, y);
    row = cg_add(cg, row, cg_zext64(cg, x->g->head));
    Val p = LLVMBuildIntToPtr(cg->b, memory_of(x, out), cg->ptr_global, "");
    store_row(x, row_pointer(x, p, &r, row), &r, cg_and(cg, first, wanted(x, out)), y);
}
