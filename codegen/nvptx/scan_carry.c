/* The kernel between the sums of stretches and the values made from them (scan.h): one block takes a
 * sequence and head, and puts what a sequence adds up to before a stretch in the place of that stretch's
 * own sum. A sequence that goes on from another launch begins with what that one has left. */
#include "codegen/nvptx/scan.h"

enum {
    CARRY_EACH = 8 /* stretches a warp sums at a time */
};

/* One running sum of a block's sequence and head. A warp takes CARRY_EACH stretches of as many as the
 * block takes at a time; what the warps before it have comes through shared memory. */
typedef struct Carry {
    Cg *cg;
    const Scan *scan;
    const ScanValue *m;
    bool angle, back;
    Val lane, warp, head, stretches; /* i32; i64 of the sequence */
    Seq seq;
    Val past;                        /* from value_past */
    Var *total;                      /* of everything before */
} Carry;

static Val shared_part(Carry *c, Val warp) {
    Cg *cg = c->cg;
    Val at = cg_add(cg, cg_mul(cg, warp, cg_int(cg, SCAN_LANES)), c->lane);
    return cg_gep8(cg, nv_shared(cg, 0), cg_mul(cg, at, cg_int(cg, 4 * c->m->n)));
}

/* Where this lane's elements of a stretch (i64) of the sequence stand, counted in the order of sums. */
static Val carry_place(Carry *c, Val stretch) {
    Cg *cg = c->cg;
    if (c->back)
        stretch = cg_sub(cg, cg_sub(cg, c->stretches, cg_int64(cg, 1)), stretch);
    Val row = scan_carry_row(cg, c->scan, cg_add(cg, c->seq.slot, stretch), c->head);
    Val at = cg_add(cg, cg_mul(cg, c->lane, cg_int(cg, c->m->n)), cg_int(cg, c->m->carry_at));
    return cg_gep8(cg, row, cg_zext64(cg, cg_shl(cg, at, 2)));
}

/* Adds up the warps' parts: those before ours on top of `total` are `before`. */
static void add_parts(Carry *c, Val *before) {
    Cg *cg = c->cg;
    Val all[SCAN_LANES], part[SCAN_LANES];
    int n = c->m->n;
    for (int j = 0; j < n; j++)
        all[j] = before[j] = cg_get(cg, c->total[j]);
    for (int u = 0; u < CARRY_WARPS; u++) {
        Val ours = cg_cmp(cg, LLVMIntSLT, cg_int(cg, u), c->warp);
        scan_load_lane(cg, shared_part(c, cg_int(cg, u)), n, part);
        for (int j = 0; j < n; j++) {
            all[j] = scan_add(cg, c->angle, all[j], part[j]);
            before[j] = cg_select(cg, ours, all[j], before[j]);
        }
    }
    for (int j = 0; j < n; j++)
        cg_set(cg, c->total[j], all[j]);
}

static void carry_tile(Carry *c, Val first) {
    Cg *cg = c->cg;
    int n = c->m->n;
    Val x[CARRY_EACH][SCAN_LANES], sum[SCAN_LANES], place[CARRY_EACH], live[CARRY_EACH];
    Val mine = cg_add(cg, first, cg_zext64(cg, cg_mul(cg, c->warp, cg_int(cg, CARRY_EACH))));
    for (int e = 0; e < CARRY_EACH; e++) {
        Val stretch = cg_add(cg, mine, cg_int64(cg, e));
        live[e] = cg_cmp(cg, LLVMIntSLT, stretch, c->stretches);
        place[e] = carry_place(c, cg_select(cg, live[e], stretch, first));
        scan_load_lane(cg, place[e], n, x[e]);
    }
    for (int e = 0; e < CARRY_EACH; e++)
        for (int j = 0; j < n; j++) {
            x[e][j] = cg_select(cg, live[e], x[e][j], cg_float(cg, 0));
            sum[j] = e ? scan_add(cg, c->angle, sum[j], x[e][j]) : x[e][j];
        }
    scan_store_lane(cg, shared_part(c, c->warp), n, sum);
    nv_barrier(cg);
    add_parts(c, sum);
    nv_barrier(cg);
    for (int e = 0; e < CARRY_EACH; e++) {
        If there = cg_if(cg, live[e]);
        scan_store_lane(cg, place[e], n, sum);
        cg_end_if(cg, &there);
        for (int j = 0; j < n; j++)
            sum[j] = scan_add(cg, c->angle, sum[j], x[e][j]);
    }
}

/* What the sequence adds up to before its first token; this lane's elements. */
static void open_total(Carry *c) {
    Cg *cg = c->cg;
    int n = c->m->n, axis = c->m->axis;
    bool ragged = axis >= 0 && SCAN_LANES * n > cg->k->axis.at[axis].size;
    Val base = cg_mul(cg, c->lane, cg_int(cg, n)), x[SCAN_LANES];
    ValueAt at = {.cg = cg, .base_k = base, .base_v = base, .n_k = n, .n_v = n, .past_k = ragged,
                  .past_v = ragged, .past = c->past};
    c->total = NEW_ARRAY(cg->arena, Var, n);
    for (int j = 0; j < n; j++)
        x[j] = cg_float(cg, 0);
    if (!c->back)
        value_recall(&at, c->m->value, NULL, x);
    for (int j = 0; j < n; j++)
        c->total[j] = cg_var(cg, cg->f32, x[j]);
}

int scan_build_carry(Cg *cg, const Scan *scan, int round) {
    int widest = 0;
    Val H = cg_trunc32(cg, cg_frame_field(cg, FRAME_H)), tid = nv_tid(cg), block = nv_block(cg);
    Carry c = {.cg = cg, .scan = scan, .lane = cg_and(cg, tid, cg_int(cg, SCAN_LANES - 1)),
               .warp = cg_shr(cg, tid, 5), .head = cg_urem(cg, block, H)};
    c.seq = seq_of_index(cg, cg_udiv(cg, block, H), SCAN_TOKENS);
    c.past = value_past(cg, c.seq.index, c.head, H);
    Val up = cg_add(cg, c.seq.length, cg_int64(cg, SCAN_TOKENS - 1));
    c.stretches = cg_udiv(cg, up, cg_int64(cg, SCAN_TOKENS));
    for (int i = 0; i < scan->count; i++) {
        const ScanValue *m = &scan->value[i];
        if (m->round != round || !scan_is_sum(cg->k, m))
            continue;
        c.m = m;
        c.back = round > scan->grad_round;
        c.angle = value_is_angle(cg->k, m->value);
        open_total(&c);
        Loop tile = cg_for(cg, cg_int64(cg, 0), c.stretches, CARRY_WARPS * CARRY_EACH, false);
        carry_tile(&c, tile.i);
        cg_end_for(cg, &tile);
        widest = m->n > widest ? m->n : widest;
    }
    return CARRY_WARPS * SCAN_LANES * widest * 4;
}
