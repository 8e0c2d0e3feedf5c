/* From a kernel to PTX: one entry for the recurrent algorithm; factor and chain for the chunk
 * algorithm, on Hopper with a second chain for narrower tiles, before them what makes values ahead,
 * behind them what remembers the last token;
 * for gradients reverse likewise, grad and sums too. For the gradient of a recurrence one, and sums.
 *
 *     build every entry      serial, quick: LLVM modules of their own, each in its own context
 *     optimise, emit         one thread a module: LLVM alone, nothing of ours is written
 *     join                   the texts, with what they share said once
 *
 * LLVM IR for people to read is one module with all entries.
 */
#include "codegen/nvptx/gradient.h"
#include "codegen/nvptx/scan.h"

#include <pthread.h>
#include <string.h>

enum { PARTS_MAX = 8 + 3 * SCAN_ROUNDS_MAX, NARROW_TILE = 64, STACK_BYTES = 8 << 20 };

/* One LLVM module on its way to text. */
typedef struct Part {
    Cg *cg;
    pthread_t thread;
    bool started, done;
    const char *why;
} Part;

typedef struct Work {
    Arena *arena;
    const Kernel *k;
    const CgOptions *opt;
    Part part[PARTS_MAX];
    int parts;
    CgModule *out;
} Work;

/* building ------------------------------------------------------------------------------------- */

static bool is_gpu_type(const Port *p) {
    return p->is_param || p->elem == ELEM_f32 || p->elem == ELEM_bf16 || p->elem == ELEM_f16;
}

/* What no kernel of this target can do: NULL, or why. */
static const char *refuse(const Kernel *k) {
    for (int i = 0; i < k->in.count; i++)
        if (!is_gpu_type(&k->in.at[i]))
            return "GPU kernels read f32, bf16 and f16 tensors";
    for (int o = 0; o < k->out.count; o++)
        if (!is_gpu_type(&k->out.at[o]))
            return "GPU kernels write f32, bf16 and f16 tensors";
    return NULL;
}

/* A module to build the next entry into; NULL with *why. */
static Cg *next_module(Work *w, const CgOptions *opt, const char **why) {
    if (w->opt->want_llvm && w->parts) {
        w->part[0].cg->opt = opt;
        return w->part[0].cg;
    }
    CHECK(w->parts < PARTS_MAX);
    Cg *cg = cg_open(w->arena, w->k, opt, why);
    if (cg)
        w->part[w->parts++].cg = cg;
    return cg;
}

static bool add(Work *w, bool (*build)(Cg *, CgModule *, const char **), int v_tile,
                const char **why) {
    CgOptions *opt = NEW(w->arena, CgOptions);
    *opt = *w->opt;
    opt->v_tile = v_tile;
    Cg *cg = next_module(w, opt, why);
    return cg && build(cg, w->out, why);
}

/* What makes values ahead of the factor kernel, or those behind the grad kernel. */
static bool add_scans(Work *w, bool back, const char **why) {
    System s;
    if (!nv_system_of(w->arena, w->k, w->opt, &s, why))
        return false;
    for (int i = 0; i < scan_entries(w->k, s.scan, back); i++) {
        Cg *cg = next_module(w, w->opt, why);
        if (!cg)
            return false;
        scan_build(cg, s.scan, back, i, w->out);
    }
    return !back || !s.scan->late || add(w, nv_build_late, 0, why);
}

static bool add_past(Work *w, const char **why) {
    System s;
    if (!nv_system_of(w->arena, w->k, w->opt, &s, why))
        return false;
    Cg *cg = next_module(w, w->opt, why);
    if (cg)
        scan_build_past(cg, s.scan, w->out);
    return cg != NULL;
}

/* Without a wish there are two tiles on Hopper, the widest and one warpgroup's, for the launcher to
 * choose between: blocks that share a record, or enough blocks for the GPU. */
static bool add_tiles(Work *w, bool (*build)(Cg *, CgModule *, const char **), const char **why) {
    const CgOptions *opt = w->opt;
    if (!add(w, build, opt->v_tile, why))
        return false;
    int widest = w->out->entry.at[w->out->entry.count - 1].v_tile;
    bool two = opt->v_tile <= 0 && target_find(opt->target)->wgmma && !opt->no_wgmma;
    return !two || widest <= NARROW_TILE || add(w, build, NARROW_TILE, why);
}

static bool build_all(Work *w, const char **why) {
    const CgOptions *opt = w->opt;
    bool recurrent = w->k->level == LEVEL_recurrence;
    w->out->chunk = recurrent ? 1 : w->k->axis.at[AXIS_C].size;
    bool gradient = kernel_is_gradient(w->k);
    if (recurrent && gradient)
        return add(w, nv_build_recurrent_grad, 0, why) && add(w, nv_build_sums, 0, why);
    if (recurrent)
        return add(w, nv_build_recurrent, opt->v_tile, why);
    bool forward = add_scans(w, false, why) && add(w, nv_build_factor, 0, why) &&
                   add_tiles(w, nv_build_chain, why);
    if (!gradient && forward && w->k->facts.past) {
        w->out->past = w->k->facts.past;
        return add_past(w, why);
    }
    if (!gradient || !forward)
        return forward;
    return add_tiles(w, nv_build_reverse, why) && add(w, nv_build_grad, 0, why) &&
           add_scans(w, true, why) && add(w, nv_build_sums, 0, why);
}

/* LLVM's work ---------------------------------------------------------------------------------- */

static void *translate(void *user) {
    Part *p = user;
    p->done = cg_optimize(p->cg, &p->why) && cg_translate(p->cg, &p->why);
    return NULL;
}

/* LLVM recurses: its threads get the stack that a process starts with. */
static bool start(Part *p) {
    pthread_attr_t attr;
    if (pthread_attr_init(&attr))
        return false;
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    bool ok = pthread_create(&p->thread, &attr, translate, p) == 0;
    pthread_attr_destroy(&attr);
    return ok;
}

/* All at once; the calling thread does the first, and those that got no thread. */
static bool translate_all(Work *w, const char **why) {
    for (int i = 1; i < w->parts; i++)
        w->part[i].started = start(&w->part[i]);
    for (int i = 0; i < w->parts; i++)
        if (!w->part[i].started)
            translate(&w->part[i]);
    for (int i = 1; i < w->parts; i++)
        if (w->part[i].started)
            pthread_join(w->part[i].thread, NULL);
    for (int i = 0; i < w->parts; i++)
        if (!w->part[i].done) {
            *why = w->part[i].why;
            return false;
        }
    return true;
}

/* joining -------------------------------------------------------------------------------------- */

/* Where the kernels begin: before that stands what they share, one line each, and comments. */
static const char *first_entry(const char *ptx) {
    const char *at = strstr(ptx, "\n.visible .entry ");
    if (!at)
        BUG("no entry in the PTX");
    return at + 1;
}

static bool is_comment(const char *line) {
    return strncmp(line + strspn(line, " \t"), "//", 2) == 0;
}

static bool has_line(const Buf *text, const char *line, size_t n) {
    for (const char *at = text->text; at && at < text->text + text->len;) {
        size_t m = strcspn(at, "\n") + 1;
        if (m == n && memcmp(at, line, n) == 0)
            return true;
        at += m;
    }
    return false;
}

static void join(Work *w) {
    const char *text[PARTS_MAX];
    size_t len;
    Buf all;
    buf_init(&all, w->arena);
    for (int i = 0; i < w->parts; i++) {
        CgModule m = {0};
        cg_take(w->part[i].cg, &m);
        text[i] = m.text;
        const char *entry = first_entry(m.text);
        for (const char *line = m.text; line < entry; line += len) {
            len = strcspn(line, "\n") + 1;
            if (!is_comment(line) && !has_line(&all, line, len))
                buf_put(&all, line, len);
        }
    }
    for (int i = 0; i < w->parts; i++)
        buf_puts(&all, first_entry(text[i]) - 1);
    w->out->text = all.text;
    w->out->text_len = all.len;
}

/* ---------------------------------------------------------------------------------------------- */

static bool generate(Work *w, const char **why) {
    w->out = NEW(w->arena, CgModule);
    w->out->target = w->opt->target;
    if (!build_all(w, why) || !translate_all(w, why))
        return false;
    if (w->parts > 1)
        join(w);
    else
        cg_take(w->part[0].cg, w->out);
    return true;
}

static void close_all(Work *w) {
    for (int i = 0; i < w->parts; i++)
        cg_close(w->part[i].cg);
}

CgModule *codegen_nvptx(Arena *arena, const Kernel *k, const CgOptions *opt, const char **why) {
    CHECK(k->level == (opt->algo == ALGO_chunk ? LEVEL_tile : LEVEL_recurrence));
    *why = refuse(k);
    if (*why)
        return NULL;
    Work *w = NEW(arena, Work);
    *w = (Work){.arena = arena, .k = k, .opt = opt};
    /* LLVM's memory is not the arena's: catch exhaustion here, then pass it on. */
    jmp_buf here, *outer = arena->oom;
    if (setjmp(here)) {
        arena->oom = outer;
        close_all(w);
        longjmp(*outer, 1);
    }
    if (outer)
        arena->oom = &here;
    bool done = generate(w, why);
    arena->oom = outer;
    close_all(w);
    return done ? w->out : NULL;
}
