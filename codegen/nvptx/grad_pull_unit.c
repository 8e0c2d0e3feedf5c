/* The pull phase's units of columns of V: what S, dS', X and dX in the record were divided by, and their
 * products, each divided by its largest, to shared memory. What multiplies f16 operands is f16.
 *
 * Every warp has a copy of the record's units, so that none waits for another, where Zt's rows for dKt
 * will be.
 */
#include "codegen/nvptx/grad_pull.h"

static int units_bytes(const Pull *p) {
    return 4 * p->s->vp * 4;
}

static Val own_units(Pull *p) {
    Cg *cg = p->cg;
    int base = p->sh_left + p->s->families * 2 * (p->vq / SLAB) * 32 * p->s->warps * 16;
    return cg_gep8(cg, nv_shared(cg, base), cg_mul(cg, p->f.warp, cg_int(cg, units_bytes(p))));
}

/* The four arrays lie one after another in the record. */
void pull_copy_units(Pull *p) {
    Cg *cg = p->cg;
    const System *s = p->s;
    CHECK(s->ws_unit_dx - s->ws_unit_s == 3 * s->vp * 4);
    int all = units_bytes(p), pass = 32 * 16;
    Val byte = cg_shl(cg, p->f.lane, 4), to = cg_gep8(cg, own_units(p), byte);
    Val from = cg_gep8(cg, p->f.record, cg_zext64(cg, byte));
    for (int at = 0; at < all; at += pass) {
        bool whole = at + pass <= all;
        If there = {0};
        if (!whole)
            there = cg_if(cg, cg_cmp(cg, LLVMIntSLT, byte, cg_int(cg, all - at)));
        nv_copy_async(cg, cg_gep8(cg, to, cg_int64(cg, at)),
                      cg_gep8(cg, from, cg_int64(cg, s->ws_unit_s + at)), cg_int(cg, 16));
        if (!whole)
            cg_end_if(cg, &there);
    }
}

/* Columns that do not exist have unit 0: they are no one's largest. */
static void load_units(Pull *p, Val v, Val out[UNITS]) {
    Cg *cg = p->cg;
    const System *s = p->s;
    Val there = p->vq > s->V ? cg_cmp(cg, LLVMIntSLT, v, cg_int(cg, s->V)) : NULL, x[4];
    Val at = there ? cg_select(cg, there, v, cg_int(cg, 0)) : v;
    for (int i = 0; i < 4; i++) {
        Val byte = cg_add(cg, cg_shl(cg, at, 2), cg_int(cg, i * s->vp * 4));
        x[i] = cg_load(cg, cg->f32, cg_gep8(cg, own_units(p), byte), 4);
        if (there)
            x[i] = cg_select(cg, there, x[i], cg_float(cg, 0));
    }
    out[UNIT_s] = x[0];
    out[UNIT_x] = x[2];
    out[UNIT_xds] = cg_fmul(cg, x[2], x[1]);
    out[UNIT_sds] = cg_fmul(cg, x[0], x[1]);
    out[UNIT_rest] = out[UNIT_s];
    out[UNIT_dx] = x[3];
}

/* The power of two nearest to the root of one from 2^-126 to 1, above it. */
static Val half_power(Cg *cg, Val power) {
    Val exponent = cg_shr(cg, LLVMBuildBitCast(cg->b, power, cg->i32, ""), 23);
    exponent = cg_shr(cg, cg_add(cg, exponent, cg_int(cg, 128)), 1);
    return LLVMBuildBitCast(cg->b, cg_shl(cg, exponent, 23), cg->f32, "");
}

/* Every warp finds the largest ones by itself. */
void pull_make_units(Pull *p) {
    Cg *cg = p->cg;
    Var most[UNITS];
    Val x[UNITS];
    nv_warp_sync(cg);
    for (int i = 0; i < UNITS; i++)
        most[i] = cg_var(cg, cg->f32, cg_float(cg, 0x1p-100));
    Loop look = cg_for(cg, p->f.lane, cg_int(cg, p->vq), 32, false);
    load_units(p, look.i, x);
    for (int i = 0; i < UNITS; i++)
        cg_set(cg, most[i], nv_larger(cg, cg_get(cg, most[i]), x[i]));
    cg_end_for(cg, &look);
    for (int i = 0; i < UNIT_dx; i++) {
        Val m = cg_get(cg, most[i]);
        for (int lane = 1; lane < 32; lane *= 2)
            m = nv_larger(cg, m, nv_shuffle_xor(cg, m, lane));
        p->most[i] = nv_power_below(cg, m);
    }
    Loop put = cg_for(cg, nv_tid(cg), cg_int(cg, p->vq), 32 * p->s->warps, false);
    load_units(p, put.i, x);
    for (int i = 0; i < UNIT_dx; i++)
        x[i] = cg_fmul(cg, x[i], nv_power_inverse(cg, p->most[i]));
    Val half = half_power(cg, x[UNIT_sds]);
    x[UNIT_rest] = cg_fmul(cg, x[UNIT_sds], nv_power_inverse(cg, half));
    x[UNIT_sds] = half;
    for (int i = UNITS_f16; i < UNITS; i++)
        cg_store(cg, x[i], pull_f32(p, pull_unit_base(p, i), put.i), 4);
    for (int i = 0; i < UNITS_f16; i++) {
        Val at = cg_gep8(cg, nv_shared(cg, pull_unit_base(p, i)), cg_shl(cg, put.i, 1));
        cg_store(cg, cg_from_f32(cg, x[i], p->s->operand), at, 2);
    }
    cg_end_for(cg, &put);
}
