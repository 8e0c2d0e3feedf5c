/* What the pull phase reads before its slabs, on its way to shared memory from a task's start on: each thing
 * to a place that waits for it, so that one wait is for all of it.
 *
 *     units       to every warp, where Zt's fragments will be                     grad_pull_unit.c
 *     X, A        where Zt will be, and behind it
 *     left rows   where the fragments made of them will be, by the lanes that make them
 */
#include "codegen/nvptx/grad_pull.h"

/* All threads' passes over `bytes` of the record: four in a row, but with a loop around them, before which the
 * assembler leaves what is to be under way first. */
static void copy_part(Pull *p, int64_t from, int to, int bytes) {
    Cg *cg = p->cg;
    int pass = 32 * 16 * p->s->warps, passes = bytes / pass, together = passes % 4 ? 1 : 4;
    CHECK(bytes % pass == 0);
    Loop l = cg_for(cg, cg_shl(cg, nv_tid(cg), 4), cg_int(cg, bytes), together * pass, false);
    Val source = cg_gep8(cg, p->f.record, cg_zext64(cg, l.i));
    for (int i = 0; i < together; i++)
        nv_copy_async(cg, cg_gep8(cg, nv_shared(cg, to + i * pass), l.i),
                      cg_gep8(cg, source, cg_int64(cg, from + i * pass)), cg_int(cg, 16));
    cg_end_for(cg, &l);
}

/* X and A as they lie in the record; nothing erased: X where Zt will be, by the lanes that make it of it. */
static void copy_matrices(Pull *p) {
    const System *s = p->s;
    copy_part(p, s->ws_x, p->sh_zt, s->rows * s->vp * 2);
    copy_part(p, s->ws_a, pull_a_base(p), s->rows * s->rows * 2);
}

static void copy_x(Pull *p) {
    Cg *cg = p->cg;
    const System *s = p->s;
    for (int h = 0; h < 2; h++) {
        Loop u = cg_for(cg, p->f.t, cg_int(cg, s->vp / 8), 4, false);
        Val from = factor_ws_unit(&p->f, s->ws_x, s->vp, p->f.row[h], u.i);
        nv_copy_async(cg, pull_zt_unit(p, p->f.row[h], u.i), from, cg_int(cg, 16));
        cg_end_for(cg, &u);
    }
}

/* The place of this lane's unit of dX in the record. Past the end, where factors are 0, the first one's. */
static Val dx_place(Pull *p, int h, Val slab) {
    Cg *cg = p->cg;
    const System *s = p->s;
    Val unit = cg_add(cg, cg_shl(cg, slab, 2), p->f.t);
    if (p->vq > s->vp) {
        Val there = cg_cmp(cg, LLVMIntSLT, unit, cg_int(cg, s->vp / 8));
        unit = cg_select(cg, there, unit, cg_int(cg, 0));
    }
    return factor_ws_unit(&p->f, s->ws_dx, s->vp, p->f.row[h], unit);
}

/* Half h's row at this lane's columns of a slab. */
ValueAt pull_left_at(Pull *p, int h, Val slab) {
    ValueAt at = p->f.at[h];
    at.n_v = 8;
    at.base_v = pull_first_column(p, slab);
    at.past_v = p->vq > p->s->V;
    at.lookup = NULL;
    at.memo = NULL;
    value_begin(&at);
    return at;
}

/* Whether a family's left rows are copied: those of dX, or an input's where a lane's columns are 16 bytes. */
bool pull_is_copied(Pull *p, int f) {
    if (pull_erase(p, f))
        return true;
    int v = p->g->family[f].left;
    const Kernel *k = p->grad->k;
    const Inst *i = inst_at(k, v);
    if (i->op != OP_in || k->in.at[i->index].is_param || !shape_has(i->shape, AXIS_V))
        return false;
    ValueAt at = {.cg = p->cg, .n_k = 1, .n_v = 8};
    return value_access_bytes(&at, v) == 16 && value_accesses(&at, v) == 1;
}

/* To where the fragments made of them will be, which take as much. */
static void copy_left(Pull *p) {
    Cg *cg = p->cg;
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, p->vq / SLAB), 1, false);
    for (int f = 0; f < p->s->families; f++)
        for (int h = 0; h < 2 && pull_is_copied(p, f); h++) {
            Val from;
            ValueAt at = pull_left_at(p, h, slab.i);
            if (pull_erase(p, f))
                from = dx_place(p, h, slab.i);
            else
                value_addresses(&at, p->g->family[f].left, &from);
            nv_copy_async(cg, pull_stash_unit(p, f, h, slab.i), from, cg_int(cg, 16));
        }
    cg_end_for(cg, &slab);
}

void pull_copy_left(Pull *p) {
    Cg *cg = p->cg;
    (p->s->erase ? copy_matrices : copy_x)(p);
    pull_copy_units(p);
    nv_copy_commit(cg);
    copy_left(p);
    nv_copy_commit(cg);
}
