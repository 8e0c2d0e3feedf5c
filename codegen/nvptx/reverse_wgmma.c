/* The reverse kernel's products by warpgroups.
 *
 *     issue sum of M_f' dO_f and P dS', one on top of the other, then D dS' + sum of Qg_f' dO_f;
 *         meanwhile the next chunk's copies, and dS' to the record
 *     wait; dX
 *     issue - E' dX on top of the latter; meanwhile dX to the record
 *     wait for dS
 *
 * Everything is divided by the columns' units (chain_unit.c), dO and dX on their way to operands as
 * X is forwards.
 */
#include "codegen/nvptx/chain.h"

/* Registers while the first products are under way: the costate, its operand, the sum, the dO_f. */
bool reverse_wgmma_fits(const Chain *c) {
    const System *s = c->s;
    int outs = s->families - s->erase, rows = chain_fragment(c);
    return s->kp / 2 + s->kp / 4 + rows + outs * rows / 2 <= 224;
}

/* sign / unit */
static void unit_factor(Chain *c, double sign, Val factor[2]) {
    Cg *cg = c->cg;
    Val unit[2];
    chain_units(c, unit);
    for (int h = 0; h < 2; h++)
        factor[h] = cg_fmul(cg, nv_power_inverse(cg, unit[h]), cg_float(cg, sign));
}

/* Registers that a branch may set anew. */
static void keep(Chain *c, Var *kept, const Val *x, int count) {
    for (int i = 0; i < count; i++)
        kept[i] = cg_var(c->cg, c->cg->i32, x[i]);
}

static void take(Chain *c, const Var *kept, Val *x, int count) {
    for (int i = 0; i < count; i++)
        x[i] = cg_get(c->cg, kept[i]);
}

static void pack_left(Chain *c, Val (*left)[MAX_FRAGMENT]) {
    Val factor[2];
    unit_factor(c, 1, factor);
    for (int f = c->s->erase; f < c->s->families; f++)
        chain_pack(c, left[f], chain_fragment(c), factor, c->left_operand[f]);
}

/* By element the largest magnitude of the dO_f. */
static void largest_left(Chain *c, Val (*left)[MAX_FRAGMENT], Val *most) {
    Cg *cg = c->cg;
    for (int i = 0; i < chain_fragment(c); i++) {
        most[i] = nv_magnitude(cg, left[c->s->erase][i]);
        for (int f = c->s->erase + 1; f < c->s->families; f++)
            most[i] = nv_larger(cg, most[i], nv_magnitude(cg, left[f][i]));
    }
}

/* The operands of dS' and of all dO_f, in one unit. */
static void operands(Chain *c) {
    static const Val one[2];
    Cg *cg = c->cg;
    const System *s = c->s;
    int half = chain_fragment(c) / 2, elements = chain_state_elements(c);
    Val left[MAX_FAMILIES][MAX_FRAGMENT], state[128], most[MAX_FRAGMENT], ratio[2];
    Var kept[64], kept_left[MAX_FAMILIES][MAX_FRAGMENT / 2];
    for (int f = s->erase; f < s->families; f++)
        reverse_left(c, f, left[f]);
    chain_state_operand(c);
    if (s->families == s->erase)
        return;
    pack_left(c, left);
    Val wrong = c->empty_column;
    for (int f = s->erase; f < s->families; f++)
        wrong = cg_or(cg, wrong, chain_too_large(c, c->left_operand[f], half));
    keep(c, kept, c->state_operand, elements / 2);
    for (int f = s->erase; f < s->families; f++)
        keep(c, kept_left[f], c->left_operand[f], half);
    If seldom = cg_if(cg, wrong);
    largest_left(c, left, most);
    chain_fit_units(c, most, NULL, ratio);
    chain_get_state(c, state);
    chain_pack(c, state, elements, one, c->state_operand);
    chain_set_all(c, kept, c->state_operand, elements / 2);
    pack_left(c, left);
    for (int f = s->erase; f < s->families; f++)
        chain_set_all(c, kept_left[f], c->left_operand[f], half);
    cg_end_if(cg, &seldom);
    take(c, kept, c->state_operand, elements / 2);
    for (int f = s->erase; f < s->families; f++)
        take(c, kept_left[f], c->left_operand[f], half);
}

void reverse_wgmma_read(Chain *c) {
    const System *s = c->s;
    operands(c);
    chain_wgmma_settle(c);
    for (int f = s->erase; f < s->families; f++)
        chain_wgmma(c, chain_m(c, f), c->left_operand[f], c->product[0], f > s->erase);
    chain_wgmma(c, chain_p(c), c->state_operand, c->product[0], s->families > s->erase);
    chain_wgmma_decay(c);
    chain_get_state(c, c->next);
    for (int f = s->erase; f < s->families; f++)
        chain_wgmma(c, chain_w(c, f), c->left_operand[f], c->next, true);
}

/* sign times what M and P lack, and the columns' units or not. */
static void product_factor(Chain *c, double sign, bool units, Val factor[2]) {
    Cg *cg = c->cg;
    Val scale = cg_float(cg, sign), unit[2];
    if (c->s->has_scale)
        scale = cg_fmul(cg, chain_record_scale(c), scale);
    chain_units(c, unit);
    for (int h = 0; h < 2; h++)
        factor[h] = units ? cg_fmul(cg, unit[h], scale) : scale;
}

/* - dX's operand, of the product as it is: the units are on both sides. Nothing is under way. */
static void x_operand(Chain *c, Val *product) {
    Cg *cg = c->cg;
    int count = chain_fragment(c), half = count / 2;
    Val factor[2], ratio[2];
    Var kept[MAX_FRAGMENT / 2];
    product_factor(c, -1, false, factor);
    chain_pack(c, product, count, factor, c->x_operand);
    keep(c, kept, c->x_operand, half);
    If seldom = cg_if(cg, chain_too_large(c, c->x_operand, half));
    product_factor(c, 1, true, factor);
    chain_scale_columns(c, product, count, factor);
    chain_fit_units(c, product, NULL, ratio);
    unit_factor(c, -1, factor);
    chain_pack(c, product, count, factor, c->x_operand);
    chain_set_all(c, kept, c->x_operand, half);
    cg_end_if(cg, &seldom);
    take(c, kept, c->x_operand, half);
}

void reverse_wgmma_mix(Chain *c) {
    const System *s = c->s;
    int count = chain_fragment(c);
    Val *product = c->product[0], x[MAX_FRAGMENT], factor[2];
    nv_wgmma_wait(c->cg, s->families - s->erase, product, count);
    chain_scale_keys(c, product);
    memcpy(x, product, sizeof x);
    product_factor(c, 1, true, factor);
    chain_scale_columns(c, x, count, factor);
    chain_set(c, c->gradient->dX, x);
    if (!s->erase)
        return;
    chain_scale_rows(c, 0, product);
    nv_wgmma_wait(c->cg, 0, c->next, chain_state_elements(c));
    chain_set_state(c, c->next);
    x_operand(c, product);
    chain_wgmma_settle(c);
    chain_wgmma(c, chain_w(c, 0), c->x_operand, c->next, true);
}

void reverse_wgmma_advance(Chain *c) {
    nv_wgmma_wait(c->cg, 0, c->next, chain_state_elements(c));
    chain_set_state(c, c->next);
}
