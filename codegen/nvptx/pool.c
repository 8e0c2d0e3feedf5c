/* Which states a block's sequence starts from and which it leaves behind, and where they lie.
 *
 * Without indices that is arithmetic. Indices are the caller's, in memory that only the device
 * sees: one that names no state of its pool never becomes an address.
 */
#include "codegen/nvptx/nvptx.h"

static Val field_given(Cg *cg, int field) {
    return cg_cmp(cg, LLVMIntNE, cg_frame_field(cg, field), cg_int64(cg, 0));
}

/* Entry `i` (i64) of the integers at frame field `field`. */
static Val entry_of(Cg *cg, int field, Val i) {
    Val width = cg_frame_field(cg, FRAME_INDEX_WIDTH);
    return nv_integer(cg, cg_gep8(cg, nv_global(cg, field), cg_mul(cg, i, width)), width);
}

/* x, or -1 where it is not below `size`. */
static Val within(Cg *cg, Val x, Val size) {
    return cg_select(cg, cg_cmp(cg, LLVMIntULT, x, size), x, cg_int64(cg, -1));
}

Val pool_first(Cg *cg, Val sequence) {
    Val n = cg_zext64(cg, sequence);
    Val zero = cg_int64(cg, 0), columns = cg_frame_field(cg, FRAME_S0_COLUMNS);
    Var number = cg_var(cg, cg->i64, n), column = cg_var(cg, cg->i64, zero);
    If indexed = cg_if(cg, field_given(cg, FRAME_S0_SLOTS));
    If counted = cg_if(cg, field_given(cg, FRAME_S0_ACCEPTED));
    Val accepted = entry_of(cg, FRAME_S0_ACCEPTED, n);
    cg_set(cg, column, within(cg, cg_sub(cg, accepted, cg_int64(cg, 1)), columns));
    cg_end_if(cg, &counted);
    Val c = cg_get(cg, column), none = cg_cmp(cg, LLVMIntSLT, c, zero);
    Val i = cg_add(cg, cg_mul(cg, n, columns), cg_select(cg, none, zero, c));
    Val x = within(cg, entry_of(cg, FRAME_S0_SLOTS, i), cg_frame_field(cg, FRAME_S0_POOL));
    cg_set(cg, number, cg_select(cg, none, cg_int64(cg, -1), x));
    cg_end_if(cg, &indexed);
    return cg_get(cg, number);
}

/* Number i of the states in S, or what S's indices say there. */
static Val named(Cg *cg, Val i, Val exists) {
    Var number = cg_var(cg, cg->i64, cg_select(cg, exists, i, cg_int64(cg, -1)));
    If indexed = cg_if(cg, cg_and(cg, exists, field_given(cg, FRAME_S_SLOTS)));
    Val pool = cg_frame_field(cg, FRAME_S_POOL);
    cg_set(cg, number, within(cg, entry_of(cg, FRAME_S_SLOTS, i), pool));
    cg_end_if(cg, &indexed);
    return cg_get(cg, number);
}

/* After how many tokens the state is the one to keep. */
static Val committed(Cg *cg, const Seq *s, Val n) {
    Val zero = cg_int64(cg, 0);
    Var commit = cg_var(cg, cg->i64, s->length);
    If counted = cg_if(cg, field_given(cg, FRAME_S_ACCEPTED));
    Val x = entry_of(cg, FRAME_S_ACCEPTED, n);
    x = cg_select(cg, cg_cmp(cg, LLVMIntSLT, x, s->length), x, s->length);
    cg_set(cg, commit, cg_select(cg, cg_cmp(cg, LLVMIntSGT, x, zero), x, zero));
    cg_end_if(cg, &counted);
    return cg_get(cg, commit);
}

Pool pool_of_sequence(Cg *cg, Seq *s) {
    Val zero = cg_int64(cg, 0), none = cg_int64(cg, -1), n = cg_zext64(cg, s->index);
    Pool p = {.each = cg_frame_field(cg, FRAME_S_EACH)};
    p.first = pool_first(cg, s->index);
    p.last = named(cg, n, cg_cmp(cg, LLVMIntEQ, p.each, zero));
    Val lost =
        cg_and(cg, cg_cmp(cg, LLVMIntSLT, p.last, zero), cg_cmp(cg, LLVMIntEQ, p.each, zero));
    Val skip = cg_or(cg, cg_cmp(cg, LLVMIntSLT, p.first, zero), lost);
    p.commit = committed(cg, s, n);
    p.first = cg_select(cg, skip, none, p.first);
    p.last = cg_select(cg, skip, none, p.last);
    s->length = cg_select(cg, skip, zero, s->length);
    return p;
}

Val pool_after(Cg *cg, const Pool *p, const Seq *s, Val t) {
    Val i = cg_add(cg, cg_mul(cg, cg_zext64(cg, s->index), p->each), t);
    return named(cg, i, cg_cmp(cg, LLVMIntULT, t, p->each));
}

Val pool_state(Cg *cg, int field, Val number, Val head) {
    int64_t bytes = (int64_t)cg->k->axis.at[AXIS_K].size * cg->k->axis.at[AXIS_V].size *
                    elem_size(cg->opt->state);
    Val each = cg_int64(cg, bytes), dense = cg_mul(cg, cg_frame_field(cg, FRAME_H), each);
    Val stride = cg_frame_field(cg, field == FRAME_S0 ? FRAME_S0_STRIDE : FRAME_S_STRIDE);
    Val given = cg_cmp(cg, LLVMIntNE, stride, cg_int64(cg, 0));
    Val at = cg_mul(cg, number, cg_select(cg, given, stride, dense));
    at = cg_add(cg, at, cg_mul(cg, cg_zext64(cg, head), each));
    return cg_gep8(cg, nv_global(cg, field), at);
}

int64_t pool_step(const Cg *cg, int axis) {
    int other = axis == AXIS_K ? AXIS_V : AXIS_K;
    bool near = (axis == AXIS_K) == cg->opt->state_vk;
    return (near ? 1 : cg->k->axis.at[other].size) * elem_size(cg->opt->state);
}

Val pool_element(Cg *cg, Val k, Val v) {
    Val row = cg_mul(cg, k, cg_int(cg, pool_step(cg, AXIS_K)));
    return cg_zext64(cg, cg_add(cg, row, cg_mul(cg, v, cg_int(cg, pool_step(cg, AXIS_V)))));
}

Val pool_get(Cg *cg, Val p) {
    Elem e = cg->opt->state;
    Val pair[2];
    if (elem_size(e) == 4)
        return cg_load(cg, cg->f32, p, 4);
    nv_unpack(cg, e, LLVMBuildZExt(cg->b, cg_load(cg, cg->i16, p, 2), cg->i32, ""), pair);
    return pair[0];
}

void pool_put(Cg *cg, Val x, Val p) {
    Elem e = cg->opt->state;
    cg_store(cg, cg_from_f32(cg, x, e), p, elem_size(e));
}
