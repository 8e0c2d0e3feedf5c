/* The reverse kernel of gradients: the chain's walk from a sequence's last chunk to its first, with
 * the cotangent dS' of the state where the chunk ends in place of the state.
 *
 *     dX = P dS' + sum_f M_f' dO_f          dS = D dS' + sum_f Qg_f' dO_f - E' dX
 *
 * The walk, the schedules and the products are the chain's (chain.h), with the record's matrices
 * turned. dO_f, an elementwise value of inputs, stands where W_f and M_f keep their rows: on each
 * token's last lattice row. Here is what both schedules share, and the one by warps.
 */
#include "codegen/nvptx/chain.h"

/* Rows of dO that are another token's repeated, or of none, become zeros. */
static void clear_rows(Chain *c, Val *x) {
    Cg *cg = c->cg;
    const System *s = c->s;
    Val left = chain_tokens_left(c, c->start);
    for (int i = 0; i < chain_fragment(c); i++) {
        Val row = cg_add(cg, cg_shl(cg, c->t, 1), cg_int(cg, 8 * (i / 4) + i % 2));
        Val token = s->slots > 1 ? cg_udiv(cg, row, cg_int(cg, s->slots)) : row;
        Val live = cg_cmp(cg, LLVMIntSLT, token, left);
        if (s->slots > 1)
            live = cg_and(cg, live,
                          cg_cmp(cg, LLVMIntEQ, cg_urem(cg, row, cg_int(cg, s->slots)),
                                 cg_int(cg, s->slots - 1)));
        x[i] = cg_select(cg, live, x[i], cg_float(cg, 0));
    }
}

void reverse_left(Chain *c, int f, Val *x) {
    const System *s = c->s;
    int left = c->gradient->family[f].left;
    memcpy(x, chain_get(c, left), (size_t)chain_fragment(c) * sizeof *x);
    if (s->slots > 1 || s->chunk < s->rows || value_at_rest(c->k, left) != 0)
        clear_rows(c, x);
    chain_scale_rows(c, f, x);
}

/* The schedule by warps ------------------------------------------------------------------------ */

static void zero(Chain *c, Val *x, int count) {
    for (int i = 0; i < count; i++)
        x[i] = cg_float(c->cg, 0);
}

/* acc (tiles n, n + 1) += the operand of rows times m, whose rows from `first` on count, times
 * scale. */
static void add_product(Chain *c, Matrix m, int n, int first, const Val *operand,
                        const Val scale[2], Val acc[8]) {
    Val part[8];
    zero(c, part, 8);
    for (int step = first; step < c->s->rows / 16; step++)
        chain_multiply(c, m, n, step, operand, part);
    chain_scale_fragment(c, part, 8, scale);
    for (int i = 0; i < 8; i++)
        acc[i] = cg_fadd(c->cg, acc[i], part[i]);
}

void reverse_read(Chain *c) {
    if (c->wgmma) {
        reverse_wgmma_read(c);
        return;
    }
    const System *s = c->s;
    Val state[128], left[MAX_FRAGMENT], *acc = c->product[0];
    chain_get_state(c, state);
    chain_operand(c, state, chain_state_elements(c), c->state_operand, c->state_scale);
    zero(c, acc, chain_fragment(c));
    for (int step = 0; step < s->kp / 16; step++)
        for (int n = 0; n < s->rows / 8; n += 2)
            chain_multiply(c, chain_p(c), n, step, c->state_operand, &acc[4 * n]);
    chain_scale_fragment(c, acc, chain_fragment(c), c->state_scale);
    for (int f = s->erase; f < s->families; f++) {
        reverse_left(c, f, left);
        chain_operand(c, left, chain_fragment(c), c->left_operand[f], c->left_scale[f]);
        for (int n = 0; n < s->rows / 8;
             n += 2) /* lower triangle: rows from the columns' block on */
            add_product(c, chain_m(c, f), n, n / 2, c->left_operand[f], c->left_scale[f],
                        &acc[4 * n]);
    }
}

/* P dS' + M' dO becomes dX. */
static void set_dx(Chain *c, Val *x) {
    Cg *cg = c->cg;
    Val scale = c->s->has_scale ? chain_record_scale(c) : NULL;
    for (int i = 0; scale && i < chain_fragment(c); i++)
        x[i] = cg_fmul(cg, x[i], scale);
    chain_scale_keys(c, x);
    chain_set(c, c->gradient->dX, x);
}

void reverse_mix(Chain *c) {
    if (c->wgmma) {
        reverse_wgmma_mix(c);
        return;
    }
    Val x[MAX_FRAGMENT];
    set_dx(c, c->product[0]);
    if (!c->s->erase)
        return;
    memcpy(x, c->product[0], sizeof x);
    chain_scale_rows(c, 0, x);
    for (int i = 0; i < chain_fragment(c); i++)
        x[i] = LLVMBuildFNeg(c->cg->b, x[i], "");
    chain_operand(c, x, chain_fragment(c), c->x_operand, c->x_scale);
}

void reverse_advance(Chain *c) {
    if (c->wgmma) {
        reverse_wgmma_advance(c);
        return;
    }
    const System *s = c->s;
    for (int n = 0; n < s->kp / 8; n += 2) {
        Val acc[8];
        zero(c, acc, 8);
        for (int f = s->erase; f < s->families; f++)
            add_product(c, chain_w(c, f), n, 0, c->left_operand[f], c->left_scale[f], acc);
        if (s->erase)
            add_product(c, chain_w(c, 0), n, 0, c->x_operand, c->x_scale, acc);
        chain_advance_state(c, n, acc);
    }
}

/* ---------------------------------------------------------------------------------------------- */

bool nv_build_reverse(Cg *cg, CgModule *out, const char **why) {
    Gradient *g = NEW(cg->arena, Gradient);
    if (!nv_gradient(cg->arena, cg->k, g, why))
        return false;
    Chain *c = NEW(cg->arena, Chain);
    c->cg = cg;
    c->k = cg->k;
    c->s = &g->s;
    c->gradient = g;
    c->back = true;
    c->copied = g->s.ws_reversed;
    return chain_build(c, out, why);
}
