/* From a kernel to PTX: one module, with one entry for the recurrent algorithm or two, factor and
 * chain, for the chunk algorithm.
 */
#include "codegen/nvptx/nvptx.h"

static bool is_gpu_type(const Port *p)
{
    return p->is_param || p->elem == ELEM_f32 || p->elem == ELEM_bf16 || p->elem == ELEM_f16;
}

/* What no kernel of this target can do: NULL, or why. */
static const char *refuse(const Kernel *k)
{
    for (int i = 0; i < k->in.count; i++)
        if (!is_gpu_type(&k->in.at[i]))
            return "GPU kernels read f32, bf16 and f16 tensors";
    for (int o = 0; o < k->out.count; o++)
        if (!is_gpu_type(&k->out.at[o]))
            return "GPU kernels write f32, bf16 and f16 tensors";
    return NULL;
}

static bool build(Cg *cg, CgModule *out, const char **why)
{
    const Kernel *k = cg->k;
    bool recurrent = k->level == LEVEL_recurrence;
    out->chunk = recurrent ? 1 : k->axis.at[AXIS_C].size;
    bool built = recurrent ? nv_build_recurrent(cg, out, why)
                           : nv_build_factor(cg, out, why) && nv_build_chain(cg, out, why);
    return built && cg_optimize(cg, why) && cg_emit(cg, out, why);
}

CgModule *codegen_nvptx(Arena *arena, const Kernel *k, const CgOptions *opt, const char **why)
{
    CHECK(k->level == (opt->algo == ALGO_chunk ? LEVEL_tile : LEVEL_recurrence));
    *why = refuse(k);
    if (*why)
        return NULL;
    Cg *volatile cg = cg_open(arena, k, opt, why);
    if (!cg)
        return NULL;
    CHECK(cg->target->gpu);
    /* LLVM's memory is not the arena's: catch exhaustion here, then pass it on. */
    jmp_buf here, *outer = arena->oom;
    if (setjmp(here)) {
        arena->oom = outer;
        cg_close(cg);
        longjmp(*outer, 1);
    }
    if (outer)
        arena->oom = &here;
    CgModule *out = NEW(arena, CgModule);
    bool done = build(cg, out, why);
    arena->oom = outer;
    cg_close(cg);
    return done ? out : NULL;
}
