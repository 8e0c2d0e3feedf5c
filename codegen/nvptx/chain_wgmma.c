/* The chain's products by warpgroups: A from registers, B as it lies in the stage.
 *
 *     issue W_f S' of every family; meanwhile what X needs of the inputs, and S *= D
 *     wait for the erase family; X
 *     issue M_f X', on top of the outs' W_f S', then S' += X' P; meanwhile the outs
 *     wait for S
 *
 * S and X are divided by units (chain_unit.c).
 */
#include "codegen/nvptx/chain.h"

/* planning ------------------------------------------------------------------------------------- */

static int uses_of(const Kernel *k, int v) {
    int uses = 0;
    for (int u = 0; u < k->inst.count; u++)
        for (int j = 0; j < inst_at(k, u)->nargs; j++)
            uses += inst_at(k, u)->arg[j] == v;
    return uses;
}

static int find_total(const Kernel *k, const Family *f) {
    if (uses_of(k, f->read) != 1 || uses_of(k, f->mixed) != 1)
        return -1;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op == OP_add && ((i->arg[0] == f->read && i->arg[1] == f->mixed) ||
                                (i->arg[0] == f->mixed && i->arg[1] == f->read)))
            return v;
    }
    return -1;
}

void chain_wgmma_plan(Chain *c) {
    for (int f = c->s->erase; f < c->s->families; f++)
        c->total[f] = find_total(c->k, &c->s->family[f]);
    for (int h = 0; h < 2; h++)
        c->unit[h] = cg_var(c->cg, c->cg->f32, cg_float(c->cg, 1));
}

/* Registers while the reads are under way: the state, its operand, the reads. */
static int registers(const Chain *c) {
    return c->s->kp / 2 + c->s->kp / 4 + c->s->families * chain_fragment(c);
}

/* Of 255; the rest is for X and addresses. */
bool chain_wgmma_fits(const Chain *c) { return registers(c) <= 224; }

/* Working on X's inputs before the reads are done takes what is loaded and what becomes of it. */
static bool room_ahead(const Chain *c) {
    int words = chain_fragment(c);
    for (int i = 0; i < c->nstaged; i++)
        words += chain_fragment(c) * elem_size(c->staged[i].elem) / 4;
    return registers(c) + words <= 224;
}

void chain_wgmma(Chain *c, Matrix m, const Val *operand, Val *acc, bool accumulate) {
    Wgmma w = nv_wgmma_matrix(c->cg, chain_stage_pointer(c, m.offset), c->s->rows, m.columns,
                              m.along_rows);
    nv_wgmma(c->cg, c->s->operand, acc, operand, &w, accumulate);
}

/* the steps of a chunk ------------------------------------------------------------------------- */

void chain_wgmma_decay(Chain *c) {
    Cg *cg = c->cg;
    for (int n = 0; n < c->s->kp / 8; n++) {
        Val d[2];
        chain_decay(c, n, d);
        for (int j = 0; d[0] && j < 4; j++)
            cg_set(cg, c->state[n][j], cg_fmul(cg, cg_get(cg, c->state[n][j]), d[j % 2]));
    }
}

/* Nothing is under way, but the assembler forgets that where branches meet, and would wait for all
 * products before anything touches the state. */
void chain_wgmma_settle(Chain *c) {
    chain_get_state(c, c->next);
    nv_wgmma_wait(c->cg, 0, c->next, chain_state_elements(c));
    chain_set_state(c, c->next);
}

void chain_wgmma_read_state(Chain *c) {
    const System *s = c->s;
    chain_state_operand(c);
    chain_wgmma_settle(c);
    for (int f = 0; f < s->families; f++)
        chain_wgmma(c, chain_w(c, f), c->state_operand, c->product[f], false);
    chain_wgmma_decay(c);
}

/* A product that is done, as a value. */
static void set_product(Chain *c, int f, int v) {
    Val x[MAX_FRAGMENT], unit[2];
    chain_units(c, unit);
    memcpy(x, c->product[f], sizeof x);
    chain_scale_columns(c, x, chain_fragment(c), unit);
    chain_scale_rows(c, f, x);
    chain_set(c, v, x);
}

/* What turns X into its operand: M and P lack their record's scale. */
static void x_factor(Chain *c, Val factor[2]) {
    Cg *cg = c->cg;
    for (int h = 0; h < 2; h++) {
        factor[h] = nv_power_inverse(cg, cg_get(cg, c->unit[h]));
        if (c->s->has_scale)
            factor[h] = cg_fmul(cg, factor[h], chain_record_scale(c));
    }
}

/* X's operand; the outs' reads are done, and still in the unit of before. */
static void x_operand(Chain *c) {
    Cg *cg = c->cg;
    const System *s = c->s;
    int count = chain_fragment(c);
    Val factor[2];
    const Val *x = chain_x(c);
    Var kept[MAX_FRAGMENT / 2], product[MAX_FAMILIES][MAX_FRAGMENT];
    x_factor(c, factor);
    chain_pack(c, x, count, factor, c->x_operand);
    for (int f = s->erase; f < s->families; f++) {
        nv_wgmma_wait(cg, 0, c->product[f], count);
        if (c->total[f] < 0)
            set_product(c, f, s->family[f].read);
    }
    for (int i = 0; i < count / 2; i++)
        kept[i] = cg_var(cg, cg->i32, c->x_operand[i]);
    for (int f = s->erase; f < s->families; f++)
        for (int i = 0; i < count; i++)
            product[f][i] = cg_var(cg, cg->f32, c->product[f][i]);
    If seldom = cg_if(cg, cg_or(cg, chain_too_large(c, c->x_operand, count / 2), c->empty_column));
    Val ratio[2];
    chain_fit_units(c, x, s->has_scale ? chain_record_scale(c) : NULL, ratio);
    x_factor(c, factor);
    chain_pack(c, x, count, factor, c->x_operand);
    chain_set_all(c, kept, c->x_operand, count / 2);
    for (int f = s->erase; f < s->families; f++) {
        if (c->total[f] >= 0)
            chain_scale_columns(c, c->product[f], count, ratio);
        chain_set_all(c, product[f], c->product[f], count);
    }
    cg_end_if(cg, &seldom);
    for (int i = 0; i < count / 2; i++)
        c->x_operand[i] = cg_get(cg, kept[i]);
    for (int f = s->erase; f < s->families; f++)
        for (int i = 0; i < count; i++)
            c->product[f][i] = cg_get(cg, product[f][i]);
}

void chain_wgmma_mix(Chain *c) {
    Cg *cg = c->cg;
    const System *s = c->s;
    if (room_ahead(c))
        chain_prefetch(c, s->X);
    if (s->erase) {
        nv_wgmma_wait(cg, s->families - 1, c->product[0], chain_fragment(c));
        set_product(c, 0, s->family[0].read);
    }
    x_operand(c);
    for (int f = s->erase; f < s->families; f++)
        chain_wgmma(c, chain_m(c, f), c->x_operand, c->product[f], c->total[f] >= 0);
    chain_get_state(c, c->next);
    chain_wgmma(c, chain_p(c), c->x_operand, c->next, true);
    for (int f = s->erase; f < s->families; f++) {
        nv_wgmma_wait(cg, 1, c->product[f], chain_fragment(c));
        set_product(c, f, c->total[f] >= 0 ? c->total[f] : s->family[f].mixed);
    }
}

void chain_wgmma_advance(Chain *c) {
    nv_wgmma_wait(c->cg, 0, c->next, chain_state_elements(c));
    chain_set_state(c, c->next);
}
