/* The pull phase: planning, and what its files share.
 *
 *     left     units, Zt = A X, left rows and dG: everything with a V axis but the states
 *     slabs    32 channels at a time: dW and dKt, then rows, keys and decays    two barriers each
 *
 * Memory is far, and a block has no others to work on meanwhile but one more. So everything that comes
 * before the first slab's products is on its way to shared memory from the start on, each thing to a
 * place that waits for it; a slab's inputs and states are copied while the slab before it is worked on.
 */
#include "codegen/nvptx/grad_pull.h"

/* shared memory -------------------------------------------------------------------------------- */

Val pull_f32(Pull *p, int base, Val index) {
    return cg_gep8(p->cg, nv_shared(p->cg, base), cg_shl(p->cg, index, 2));
}

Val pull_load(Pull *p, int base, Val index) {
    return cg_load(p->cg, p->cg->f32, pull_f32(p, base, index), 4);
}

void pull_load8(Pull *p, int base, Val index, Val out[8]) {
    Cg *cg = p->cg;
    for (int q = 0; q < 2; q++) {
        Val at = pull_f32(p, base, cg_add(cg, index, cg_int(cg, 4 * q)));
        Val v = cg_load(cg, LLVMVectorType(cg->f32, 4), at, 16);
        for (int j = 0; j < 4; j++)
            out[4 * q + j] = cg_extract(cg, v, j);
    }
}

/* tiles ---------------------------------------------------------------------------------------- */

void pull_pack(Pull *p, Packed *out, const Tile *x) {
    for (int h = 0; h < 2; h++)
        factor_pack(p->cg, p->s->operand, out->pair[h], x->x[h]);
}

void pull_unpack(Pull *p, Tile *out, const Packed *x) {
    for (int h = 0; h < 2; h++)
        for (int j = 0; j < 4; j++)
            nv_unpack(p->cg, p->s->operand, x->pair[h][j], &out->x[h][2 * j]);
}

void pull_get(Pull *p, Tile *out, const TileVar *v) {
    for (int h = 0; h < 2; h++)
        for (int e = 0; e < 8; e++)
            out->x[h][e] = cg_get(p->cg, v->x[h][e]);
}

void pull_set(Pull *p, const TileVar *v, const Tile *x) {
    for (int h = 0; h < 2; h++)
        for (int e = 0; e < 8; e++)
            cg_set(p->cg, v->x[h][e], x->x[h][e]);
}

void pull_scale(Pull *p, Tile *x, const Val factor[2]) {
    for (int h = 0; h < 2; h++)
        for (int e = 0; e < 8; e++)
            x->x[h][e] = cg_fmul(p->cg, x->x[h][e], factor[h]);
}

TileVar pull_var(Pull *p, const Tile *init) {
    TileVar v;
    for (int h = 0; h < 2; h++)
        for (int e = 0; e < 8; e++)
            v.x[h][e] = cg_var(p->cg, p->cg->f32, init ? init->x[h][e] : cg_float(p->cg, 0));
    return v;
}

Val pull_quad_sum(Pull *p, Val x) {
    x = cg_fadd(p->cg, x, nv_shuffle_xor(p->cg, x, 1));
    return cg_fadd(p->cg, x, nv_shuffle_xor(p->cg, x, 2));
}

Val pull_quad_most(Pull *p, Val x) {
    x = nv_larger(p->cg, x, nv_shuffle_xor(p->cg, x, 1));
    return nv_larger(p->cg, x, nv_shuffle_xor(p->cg, x, 2));
}

/* Halving what a lane holds three times: bit b of g says which half of 2^(b+1) it keeps. */
Val pull_rows_sum(Pull *p, const Val x[8]) {
    Cg *cg = p->cg;
    Val v[8];
    memcpy(v, x, sizeof v);
    for (int b = 2; b >= 0; b--) {
        Val upper = cg_cmp(cg, LLVMIntNE, cg_and(cg, p->f.g, cg_int(cg, 1 << b)), cg_int(cg, 0));
        for (int i = 0; i < 1 << b; i++) {
            Val sent = cg_select(cg, upper, v[i], v[i + (1 << b)]);
            Val kept = cg_select(cg, upper, v[i + (1 << b)], v[i]);
            v[i] = cg_fadd(cg, kept, nv_shuffle_xor(cg, sent, 4 << b));
        }
    }
    return v[0];
}

Val pull_lane_channel(Pull *p) {
    return cg_add(p->cg, cg_shl(p->cg, p->f.t, 3), p->f.g);
}

/* operands ------------------------------------------------------------------------------------- */

/* Pair n of the rows of one parity is an 8x8 matrix (g, 2t + c); its transpose is half a fragment.
 */
void pull_turn(Pull *p, const Packed *x, Val b[4][2]) {
    for (int n = 0; n < 4; n++)
        for (int h = 0; h < 2; h++)
            b[n][h] = nv_movmatrix(p->cg, x->pair[h][n]);
}

/* Pairs stand as 8x8 matrices, 128 bytes each, of which ldmatrix makes fragments either way. */
static Val matrix(Pull *p, int base, Val first, int number) {
    Cg *cg = p->cg;
    Val at = nv_shared(cg, base + 128 * number);
    return cg_gep8(cg, at, cg_shl(cg, first, 7));
}

static void put_pair(Pull *p, int base, Val first, int number, Val pair) {
    Val at = cg_gep8(p->cg, matrix(p, base, first, number), cg_shl(p->cg, p->f.lane, 2));
    cg_store(p->cg, pair, at, 4);
}

/* Four matrices: number order[i] behind `first` as out[i]. `swap`: 0, 2, 1, 3. */
static void get_pairs(Pull *p, int base, Val first, bool swap, bool turned, Val out[4]) {
    Cg *cg = p->cg;
    Val m = cg_shr(cg, p->f.lane, 3), r = cg_and(cg, p->f.lane, cg_int(cg, 7));
    if (swap)
        m = cg_or(cg, cg_shr(cg, m, 1), cg_shl(cg, cg_and(cg, m, cg_int(cg, 1)), 1));
    Val byte = cg_add(cg, cg_shl(cg, m, 7), cg_shl(cg, r, 4));
    nv_ldmatrix4(cg, cg_gep8(cg, matrix(p, base, first, 0), byte), turned, out);
}

/* The first matrix of a block's rows. */
static Val operand_first(Pull *p, int operand, Val block) {
    return cg_add(p->cg, cg_shl(p->cg, block, 3), cg_int(p->cg, 8 * operand * p->s->warps));
}

void pull_put_operand(Pull *p, int operand, const Packed *x) {
    Val first = operand_first(p, operand, p->f.warp);
    for (int n = 0; n < 4; n++)
        for (int h = 0; h < 2; h++)
            put_pair(p, p->sh_exchange, first, 2 * n + h, x->pair[h][n]);
}

void pull_get_operand(Pull *p, int operand, Val block, Val b[4][2]) {
    Val first = operand_first(p, operand, block);
    for (int half = 0; half < 2; half++) {
        Val four[4];
        get_pairs(p, p->sh_exchange + 512 * half, first, false, true, four);
        memcpy(b[2 * half], four, sizeof four);
    }
}

void pull_get_back(Pull *p, int operand, Packed *x) {
    Val first = operand_first(p, operand, p->f.warp);
    for (int half = 0; half < 2; half++) {
        Val four[4];
        get_pairs(p, p->sh_exchange + 512 * half, first, false, false, four);
        for (int i = 0; i < 4; i++)
            x->pair[i % 2][2 * half + i / 2] = four[i];
    }
}

static Val block_first(Pull *p, int family, Val pair) {
    return cg_shl(p->cg, cg_add(p->cg, pair, cg_int(p->cg, family * p->pairs)), 2);
}

void pull_put_block(Pull *p, int base, int family, Val pair, const Val a[4]) {
    for (int i = 0; i < 4; i++)
        put_pair(p, base, block_first(p, family, pair), i, a[i]);
}

void pull_get_block(Pull *p, int base, int family, Val pair, bool turned, Val a[4]) {
    get_pairs(p, base, block_first(p, family, pair), turned, turned, a);
}

void pull_multiply(Pull *p, Tile *acc, const Val a[4], Val b[4][2]) {
    for (int n = 0; n < 4; n++) {
        Val c[4];
        for (int i = 0; i < 4; i++)
            c[i] = acc->x[i / 2][2 * n + i % 2];
        nv_mma(p->cg, p->s->operand, c, a, b[n]);
        for (int i = 0; i < 4; i++)
            acc->x[i / 2][2 * n + i % 2] = c[i];
    }
}

/* to the scratch ------------------------------------------------------------------------------- */

void pull_store_row(Pull *p, int64_t base, int h, Val slab, const Val x[8]) {
    Cg *cg = p->cg;
    Elem e = p->grad->scratch_elem;
    int size = elem_size(e), group = GRAD_ACCESS / size;
    Val channel = cg_add(cg, cg_shl(cg, slab, 5), cg_shl(cg, p->f.t, 3));
    Val at = cg_add(cg, cg_mul(cg, p->f.row[h], cg_int(cg, p->s->kp)), channel);
    at = cg_mul(cg, at, cg_int(cg, size));
    Val to = cg_gep8(cg, p->grad->scratch, cg_zext64(cg, at));
    for (int j = 0; j < 8; j += group)
        grad_store(cg, e, cg_gep8(cg, to, cg_int64(cg, base + j * size)), group, x + j);
}

/* What dx over sigma of a family's row lacks. */
static Val dx_unit(Pull *p, int f, int h) {
    Cg *cg = p->cg;
    Val unit = p->sigma;
    if (p->f.row_shrink[f][h])
        unit = cg_fmul(cg, unit, p->f.row_shrink[f][h]);
    return p->g->family[f].minus ? LLVMBuildFNeg(cg->b, unit, "") : unit;
}

/* Families of one root are given as their sum, at the first. */
void pull_store_dx(Pull *p, Val slab, Tile *dx) {
    Cg *cg = p->cg;
    const Gradient *g = p->g;
    for (int f = 0; f < p->s->families; f++) {
        bool first = g->family[f].root >= 0;
        for (int i = 0; i < f; i++)
            first = first && g->family[i].root != g->family[f].root;
        for (int h = 0; first && h < 2; h++) {
            Val sum[8] = {NULL};
            for (int i = f; i < p->s->families; i++)
                for (int e = 0; e < 8 && g->family[i].root == g->family[f].root; e++) {
                    Val x = cg_fmul(cg, dx[i].x[h][e], dx_unit(p, i, h));
                    sum[e] = i == f ? x : cg_fadd(cg, sum[e], x);
                }
            pull_store_row(p, p->grad->scratch_dx[f], h, slab, sum);
        }
    }
}

void pull_store_dp(Pull *p, Val slab, Tile *dp) {
    Cg *cg = p->cg;
    for (int h = 0; h < 2 && p->g->p_root >= 0; h++) {
        Val x[8], unit = p->sigma;
        if (p->f.key_shrink[h])
            unit = cg_fmul(cg, unit, p->f.key_shrink[h]);
        for (int e = 0; e < 8; e++)
            x[e] = cg_fmul(cg, dp->x[h][e], unit);
        pull_store_row(p, p->grad->scratch_dp, h, slab, x);
    }
}

/* plan ----------------------------------------------------------------------------------------- */

static int larger_of(int a, int b) {
    return a > b ? a : b;
}

static int take(int *at, int bytes) {
    int here = *at;
    *at += (bytes + 15) / 16 * 16;
    return here;
}

/* What comes after the left rows stands in place of X, A and Zt; but a slab's inputs, if they are to be
 * copied while Zt is used, beside it. */
static void plan_shared(Pull *p) {
    const System *s = p->s;
    int at = 0, threads = 32 * s->warps, square = s->rows * s->rows * 2, fragment = 32 * 16;
    p->pairs = s->a_key ? s->warps * (s->warps - 1) / 2 : s->warps * (s->warps + 1) / 2;
    p->sh_unit = take(&at, (2 * UNITS - UNITS_f16) * p->vq * 2);
    p->sh_most = take(&at, 2 * MAX_WARPS * 4);
    p->sh_left = take(&at, (s->families + 1) * 2 * (p->vq / SLAB) * threads * 16);
    p->sh_state = take(&at, 2 * p->vq * SLAB * 2);
    p->sh_dg = take(&at, s->families * p->pairs * fragment);
    p->sh_raw =
        take(&at, p->decays && !s->a_key && !p->g->a_log ? s->families * p->pairs * fragment : 0);
    p->sh_total = take(&at, s->a_key ? s->warps * SLAB * 4 : 0);
    p->sh_sum = take(&at, s->a_key ? pull_key_bytes(p) : pull_scalar_bytes(p));
    p->f.sh_row =
        take(&at, s->a >= 0 && !s->a_key ? s->rows * (ROW_TABLE + 2) * 4 + MAX_WARPS * 4 : 0);
    p->sh_zt = at;
    int before = larger_of(s->rows * s->vp * 2 + square, s->rows * p->vq * 2);
    p->sh_exchange = take(&at, (s->families + 1) * s->warps * 2 * fragment);
    p->sh_keys = take(&at, p->decays && !s->a_key ? s->warps * 2 * fragment : 0);
    if (p->early)
        at = larger_of(at, p->sh_zt + s->rows * p->vq * 2);
    p->f.sh_stage = take(&at, factor_stage_bytes(&p->f));
    p->sh_bytes = larger_of(at, p->sh_zt + before);
}

/* Whether `blocks` of them share a multiprocessor's memory. */
static bool fits(const Pull *p, int blocks) {
    int reserved = blocks > 1 ? 1024 : 0; /* of each, by the system */
    return blocks * (p->sh_bytes + GRAD_KEPT + reserved) <= p->cg->target->smem_limit;
}

/* As many inputs are copied ahead as leave room for eight warps, or else for one block. */
static void plan_copies(Pull *p) {
    int inputs = p->f.nstaged, wanted = 8 / p->s->warps;
    for (int blocks = wanted; blocks > 0; blocks = blocks > 1 ? 1 : 0)
        for (p->f.nstaged = inputs; p->f.nstaged >= 0; p->f.nstaged--)
            for (int early = 1; early >= 0; early--) {
                p->early = early;
                plan_shared(p);
                if (fits(p, blocks))
                    return;
            }
    p->f.nstaged = 0;
}

/* Left rows are evaluated where they are used: nothing in them may need other threads. What is
 * made ahead is read. */
static bool plan_left(Pull *p, const char **why) {
    const Kernel *k = p->grad->k;
    bool *needed = NEW_ARRAY(p->cg->arena, bool, k->inst.count);
    for (int f = p->s->erase; f < p->s->families; f++)
        scan_mark(k, p->s->scan, SCAN_ALL, p->g->family[f].left, needed);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        bool plain = op_info[i->op].class == CLASS_PURE || i->op == OP_const || i->op == OP_in ||
                     scan_stored(p->s->scan, v);
        if (needed[v] && (!plain || shape_has(i->shape, AXIS_K))) {
            *why = "the cotangent of a read is more than inputs, element by element";
            return false;
        }
    }
    return true;
}

/* Rows of one root are given as one sum, row by row of the lattice. */
static bool plan_roots(Pull *p, const char **why) {
    const Gradient *g = p->g;
    for (int f = 0; f < p->s->families; f++)
        for (int i = 0; i < f; i++)
            if (g->family[f].root >= 0 && g->family[f].root == g->family[i].root &&
                p->s->family[f].position != p->s->family[i].position) {
                *why =
                    "one row reads the state at two places of a token, which has no GPU gradient";
                return false;
            }
    return true;
}

static Pull *pull_new(Grad *g) {
    Pull *p = NEW(g->cg->arena, Pull);
    const System *s = &g->g->s;
    *p = (Pull){.grad = g,
                .cg = g->cg,
                .g = g->g,
                .s = s,
                .vq = (s->V + SLAB - 1) / SLAB * SLAB,
                .decays = g->g->a_root >= 0};
    p->f = (Factor){.cg = g->cg, .k = g->k, .s = s};
    factor_plan_stage(&p->f);
    for (int i = 0; i < p->f.nparked && p->f.nstaged < MAX_STAGED_INPUTS; i++)
        p->f.staged[p->f.nstaged++] = p->f.parked[i]; /* there is no place that waits for them */
    p->f.nparked = 0;
    plan_copies(p);
    return p;
}

bool grad_pull_plan(Grad *g, int *sh_bytes, const char **why) {
    Pull *p = pull_new(g);
    *sh_bytes = p->sh_bytes;
    return factor_sums_fit(&p->f, why) && plan_left(p, why) && plan_roots(p, why);
}

/* the chunk ------------------------------------------------------------------------------------ */

Val pull_record_f32(Pull *p, int64_t base, Val index) {
    Val at = cg_add(p->cg, cg_shl(p->cg, index, 2), cg_int(p->cg, (int)base));
    return cg_load(p->cg, p->cg->f32, cg_gep8(p->cg, p->f.record, at), 4);
}

/* Powers of two that rows and keys are divided by. A corrected row's factor is nearly one. */
static void row_scales(Pull *p) {
    Cg *cg = p->cg;
    const System *s = p->s;
    for (int h = 0; h < 2; h++) {
        for (int f = 0; f < s->families; f++) {
            if (!s->family[f].unbounded)
                continue;
            Val scale = pull_record_f32(p, s->family[f].ws_rows, p->f.stored_row[f][h]);
            scale = nv_power_below(cg, cg_fmul(cg, scale, cg_float(cg, 1.25)));
            p->rescale[f][h] = scale;
            p->f.row_shrink[f][h] = nv_power_inverse(cg, scale);
        }
        if (!s->p_scaled)
            continue;
        p->key_scale[h] = pull_record_f32(p, s->ws_keys, p->f.row[h]);
        p->f.key_shrink[h] = nv_power_inverse(cg, p->key_scale[h]);
    }
}

void grad_pull(Grad *g) {
    Pull *p = pull_new(g);
    Cg *cg = p->cg;
    p->f.lane = g->lane;
    p->f.warp = g->warp;
    p->f.g = g->lane_g;
    p->f.t = g->lane_t;
    p->f.record = g->record;
    factor_place_rows(&p->f, g->seq, g->start, g->head, g->heads);
    pull_state_begin(p);
    factor_hold_scalars(&p->f);
    factor_load_sums(&p->f);
    row_scales(p);
    pull_copy_left(p);
    pull_copy_state(p, cg_int(cg, 0));
    if (!p->s->a_key)
        pull_scalar_begin(p);
    pull_left(p);
    nv_barrier(cg);
    if (!p->early)
        factor_copy_ahead(&p->f, cg_int(cg, 0));
    nv_copy_wait(cg, 0);
    (p->s->a_key ? pull_key_chunk : pull_scalar_chunk)(p);
}
