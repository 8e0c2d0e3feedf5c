/* The C header of a backward pass on a GPU: its launches, in the order and with the grids of
 * runtime/backward.c. The caller's own functions queue them; a second stream, on which the runtime has the
 * reverse kernel beside the chain, is the caller's choice. */
#include "driver/header.h"

static void put_simple(const Writer *w, const CgEntry *e, const char *blocks) {
    buf_printf(w->out, "launch(user, \"%s\", %s, %d, %d, f)", e->symbol, blocks, e->threads,
               e->smem_bytes);
}

/* walks ---------------------------------------------------------------------------------------- */

static const char walk_text[] =
    "/* A kernel that walks over chunks, one of several with other tiles. at_once: of its blocks on a\n"
    " * multiprocessor. */\n"
    "typedef struct $L_walk {\n"
    "    const char *symbol;\n"
    "    int threads, shared, tiles, columns, at_once;\n"
    "} $L_walk;\n\n"
    "/* Sequences that the piece has tokens of, as far as that is known here. */\n"
    "static inline int64_t $L_sequences(const $F *f)\n{\n"
    "    int64_t each = f->cu ? 0 : f->slots / f->N;\n"
    "    return each ? (f->slot + f->slot_count - 1) / each - f->slot / each + 1\n"
    "                : $L_up(f->N * f->slot_count, f->slots);\n}\n\n"
    "/* The one whose blocks, taking turns on the multiprocessors, end first. */\n"
    "static inline int $L_first(const $F *f, const $L_plan *p, const $L_walk *e, int n)\n{\n"
    "    int best = 0;\n"
    "    int64_t least = INT64_MAX;\n"
    "    for (int i = 0; i < n; i++) {\n"
    "        int64_t turns = $L_up($L_sequences(f) * f->H * e[i].tiles, p->processors);\n"
    "        if (turns * (64 + e[i].columns) < least) {\n"
    "            least = turns * (64 + e[i].columns);\n"
    "            best = i;\n"
    "        }\n"
    "    }\n"
    "    return best;\n}\n\n"
    "/* Blocks of walks over every interval between saved states: of as many sequences as one may have. */\n"
    "static inline int64_t $L_interval_blocks(const $F *f, int64_t every, int64_t tiles)\n{\n"
    "    int64_t each = f->cu ? 1 : f->slots / f->N;\n"
    "    int64_t n = every % each == 0 || each % every == 0 ? $L_up(every, each) : (every + each - 2) / each + 1;\n"
    "    n = n < f->N ? n : f->N;\n"
    "    return ((f->slot + f->slot_count - 1) / every - f->slot / every + 1) * n * f->H * tiles;\n}\n\n"
    "static inline int $L_launch_walk(const $F *f, const $L_walk *e, $L_launch *launch, void *user)\n{\n"
    "    int64_t walks = f->slot_count < f->N ? f->slot_count : f->N;\n"
    "    return launch(user, e->symbol, walks * f->H * e->tiles, e->threads, e->shared, f);\n}\n\n";

static const char chain_text[] =
    "static inline int $L_first_chain(const $F *f, const $L_plan *p, $L_launch *launch, void *user)\n{\n"
    "    int n;\n"
    "    const $L_walk *e = $L_chains(&n);\n"
    "    return $L_launch_walk(f, &e[$L_first(f, p, e, n)], launch, user);\n}\n\n"
    "static inline int $L_reverse(const $F *f, const $L_plan *p, $L_launch *launch, void *user)\n{\n"
    "    int n;\n"
    "    const $L_walk *e = $L_reverses(&n);\n"
    "    return $L_launch_walk(f, &e[$L_first(f, p, e, n)], launch, user);\n}\n\n"
    "/* How long walks of so many slots (0: from end to end) take that are under way at the same time. */\n"
    "static inline int64_t $L_walk_time(const $F *f, const $L_plan *p, const $L_walk *e, int64_t every)\n{\n"
    "    int64_t walks = $L_sequences(f), chunks = $L_up(f->slot_count, walks), blocks;\n"
    "    if (every && every < chunks) {\n"
    "        walks = $L_up(f->slot_count, every) + (!f->cu && f->slots / f->N % every == 0 ? 0 : walks - 1);\n"
    "        chunks = every;\n"
    "    }\n"
    "    blocks = $L_up(walks * f->H * e->tiles, p->processors);\n"
    "    return (chunks + 1) * ($L_up(blocks, e->at_once) * 64 + blocks * e->columns);\n}\n\n"
    "/* The chain of a piece backwards; sets save_every where it walks from every saved state on. */\n"
    "static inline int $L_choose_chain($F *f, const $L_plan *p)\n{\n"
    "    int n, best = 0;\n"
    "    const $L_walk *e = $L_chains(&n);\n"
    "    int64_t least = INT64_MAX;\n"
    "    for (int i = 0; i < n; i++) {\n"
    "        int64_t whole = $L_walk_time(f, p, &e[i], 0), parts = whole;\n"
    "        if (p->every && $L_interval_blocks(f, p->every, e[i].tiles) <= $X)\n"
    "            parts = $L_walk_time(f, p, &e[i], p->every);\n"
    "        if (whole > least && parts > least)\n"
    "            continue;\n"
    "        best = i;\n"
    "        f->save_every = parts < whole ? p->every : 0;\n"
    "        least = parts < whole ? parts : whole;\n"
    "    }\n"
    "    return best;\n}\n\n"
    "static inline int $L_chain(const $F *f, int number, $L_launch *launch, void *user)\n{\n"
    "    int n;\n"
    "    const $L_walk *e = &$L_chains(&n)[number];\n"
    "    return f->save_every\n"
    "               ? launch(user, e->symbol, $L_interval_blocks(f, f->save_every, e->tiles), e->threads,\n"
    "                        e->shared, f)\n"
    "               : $L_launch_walk(f, e, launch, user);\n}\n\n";

/* The entries of a kind, as a function. */
static void put_walks(const Writer *w, EntryKind kind, const char *what) {
    const CgModule *m = &w->r->module;
    int V = w->r->shell->axis.at[AXIS_V].size;
    buf_printf(w->out, "static inline const %s_walk *%s_%s(int *n)\n{\n    static const %s_walk e[] = {\n",
               w->label, w->label, what, w->label);
    for (int i = 0; i < m->entry.count; i++) {
        const CgEntry *e = &m->entry.at[i];
        if (e->kind == kind)
            buf_printf(w->out, "        {\"%s\", %d, %d, %d, %d, %d},\n", e->symbol, e->threads,
                       e->smem_bytes, e->v_tile ? (V + e->v_tile - 1) / e->v_tile : 1, e->v_tile,
                       record_blocks_at_once(w->r, e));
    }
    buf_puts(w->out, "    };\n    *n = (int)(sizeof e / sizeof *e);\n    return e;\n}\n\n");
}

/* a piece -------------------------------------------------------------------------------------- */

static const char place_text[] =
    "/* The frame at piece i of a range. */\n"
    "static inline void $L_place($F *f, const $L_plan *p, int64_t range, int64_t i, int64_t workspace,\n"
    "                            int64_t saved, const int64_t *out)\n{\n"
    "    int64_t each = (f->T + $C - 1) / $C, left = p->range - i * p->piece, row;\n"
    "    f->slot = range * p->range + i * p->piece;\n"
    "    f->slot_count = left < p->piece ? left : p->piece;\n"
    "    f->state_in = f->state_out = f->save_every = 0;\n"
    "    if (p->crossed && i > 0 && !p->all)\n"
    "        f->state_in = $L_border(f, p, i - 1, workspace, saved);\n"
    "    if (p->all)\n"
    "        f->workspace = saved + f->slot * f->H * INT64_C($W);\n"
    "    row = f->cu ? $C * (f->slot - f->N + 1) : f->slot / each * f->T + f->slot % each * $C;\n"
    "    row = row > 0 ? row : 0;\n";

static const char border_text[] =
    "/* Where the state at the end of piece i is. */\n"
    "static inline int64_t $L_border(const $F *f, const $L_plan *p, int64_t i, int64_t workspace,\n"
    "                                int64_t saved)\n{\n"
    "    int64_t state = f->H * INT64_C($B);\n"
    "    return p->from_saved ? saved + ((i + 1) * p->piece / (p->every ? p->every : 1) - 1) * state\n"
    "                         : workspace + p->states + i * state;\n}\n\n";

static void put_place(const Writer *w) {
    header_text(w, border_text);
    header_text(w, place_text);
    for (int i = 0; i < w->r->shell->out.count; i++) {
        buf_printf(w->out, "    f->%s = p->part[%d] < 0 ? out[%d] : workspace + p->part[%d]",
                   header_member(w, i), i, i, i);
        if (!w->r->shell->out.at[i].is_param)
            buf_printf(w->out, " - row * p->heads[%d] * INT64_C(%lld)", i, header_row_bytes(w, i));
        header_text(w, ";\n");
    }
    header_text(w, "    (void)row;\n    (void)out;\n}\n\n");
}

/* sums and scans ------------------------------------------------------------------------------- */

static void put_sums(const Writer *w) {
    for (int i = 0; i < w->r->shell->out.count; i++) {
        const char *f = header_member(w, i);
        buf_printf(w->out,
                   "    f->%s_sum = p->part[%d] < 0 ? 0 : out[%d];\n"
                   "    f->%s_sum_heads = f->%s_heads;\n"
                   "    f->%s_out_heads = p->heads[%d];\n"
                   "    sums |= p->part[%d] >= 0;\n",
                   f, i, i, f, header_source(w, i), f, i, i);
        if (w->r->shell->out.at[i].is_param)
            buf_printf(w->out,
                       "    if (f->cu && p->part[%d] >= 0 &&\n"
                       "        (status = zero(user, workspace + p->part[%d],\n"
                       "                       f->slots * f->H * INT64_C(%lld))) != 0)\n"
                       "        return status;\n",
                       i, i, header_row_bytes(w, i));
    }
}

/* What makes values ahead of the factor entry, or goes back behind the grad entry. */
static void put_scans(const Writer *w, bool back, const char *indent) {
    const CgModule *m = &w->r->module;
    int grad = (int)(w->grad - m->entry.at);
    for (int i = back ? grad + 1 : 0; i < (back ? m->entry.count : grad); i++) {
        const CgEntry *e = &m->entry.at[i];
        Buf blocks;
        buf_init(&blocks, w->out->arena);
        if (e->kind == ENTRY_scan)
            buf_printf(&blocks, "(f->cu ? f->T / %d + f->N : f->N * ((f->T + %d) / %d)) * f->H",
                       SCAN_TOKENS, SCAN_TOKENS - 1, SCAN_TOKENS);
        else if (e->kind == ENTRY_carry)
            buf_puts(&blocks, "f->N * f->H");
        else if (e->kind == ENTRY_late)
            buf_printf(&blocks, "f->slots * f->H / p->group < p->processors * %d\n"
                                "            ? f->slots * f->H / p->group : p->processors * %d",
                       e->per_sm, e->per_sm);
        else
            continue;
        buf_printf(w->out, "%sstatus = status ? status : ", indent);
        put_simple(w, e, blocks.text);
        header_text(w, ";\n");
    }
}

static void put_queue_sums(const Writer *w, const char *indent) {
    Buf blocks;
    buf_init(&blocks, w->out->arena);
    buf_printf(&blocks, "p->processors * %d", w->sums->per_sm);
    buf_printf(w->out, "%sif (!status && sums)\n%s    status = ", indent, indent);
    put_simple(w, w->sums, blocks.text);
    header_text(w, ";\n");
}

/* the whole pass ------------------------------------------------------------------------------- */

/* Chain and reverse of a piece. Reverse takes longer, so it comes first. To fork and to join takes as long as
 * a few chunks do. */
static const char walks_text[] =
    "/* Chain and reverse, which need nothing of each other; records that were saved need no chain. */\n"
    "static inline int $L_walks(const $F *f, const $L_plan *p, int chain, $L_launch *launch, $L_side *side,\n"
    "                           void *user)\n{\n"
    "    int beside = side && !p->all && $L_up(f->slot_count, $L_sequences(f)) >= 4, joined;\n"
    "    int status = beside ? side(user, 1) : 0;\n"
    "    if (status)\n"
    "        return status;\n"
    "    status = $L_reverse(f, p, launch, user);\n"
    "    if (beside && (joined = side(user, 0)) != 0)\n"
    "        return status ? status : joined;\n"
    "    if (!status && !p->all)\n"
    "        status = $L_chain(f, chain, launch, user);\n"
    "    joined = beside ? side(user, 2) : 0;\n"
    "    return status ? status : joined;\n}\n\n";

/* All pieces, by chunks: of a range the states at their borders, then backwards. */
static void put_chunks(const Writer *w) {
    const CgEntry *factor = header_entry(w->r, ENTRY_factor);
    put_scans(w, false, "    ");
    header_text(w, "    for (int64_t range = p->ranges - 1; !status && range >= 0; range--) {\n"
                   "        int64_t forwards = p->crossed && !p->from_saved ? p->pieces - 1 : 0;\n"
                   "        for (int64_t i = 0; !status && i < forwards; i++) {\n"
                   "            $L_place(f, p, range, i, workspace, given->saved, out);\n"
                   "            f->state_out = $L_border(f, p, i, workspace, given->saved);\n"
                   "            status = ");
    put_simple(w, factor, "f->slot_count * f->H");
    header_text(w, ";\n            status = status ? status : $L_first_chain(f, p, launch, user);\n        }\n"
                   "        for (int64_t i = p->pieces - 1; !status && i >= 0; i--) {\n"
                   "            int64_t costate = workspace + p->costates, state = f->H * INT64_C($B), tasks;\n"
                   "            int chain;\n"
                   "            $L_place(f, p, range, i, workspace, given->saved, out);\n"
                   "            chain = $L_choose_chain(f, p);\n"
                   "            f->costate_in = p->crossed && i + 1 < p->pieces ? costate + (i + 1) % 2 * state : 0;\n"
                   "            f->costate_out = p->crossed && i > 0 ? costate + i % 2 * state : 0;\n"
                   "            tasks = f->slot_count * f->H;\n"
                   "            status = p->all ? 0 : ");
    put_simple(w, factor, "tasks");
    header_text(w, ";\n            status = status ? status : $L_walks(f, p, chain, launch, side, user);\n"
                   "            status = status ? status : ");
    put_simple(w, w->grad, "tasks / p->group < p->grad_blocks ? tasks / p->group : p->grad_blocks");
    header_text(w, ";\n");
    put_scans(w, true, "            ");
    put_queue_sums(w, "            ");
    header_text(w, "        }\n    }\n");
}

static void put_tokens(const Writer *w) {
    header_text(w, "    $L_place(f, p, 0, 0, workspace, 0, out);\n    status = ");
    put_simple(w, w->grad, "p->grad_blocks");
    header_text(w, ";\n");
    put_queue_sums(w, "    ");
}

static const char begin_text[] =
    "    if (p->refused)\n        return -1;\n"
    "    if (!p->pieces)\n        return 0;\n"
    "    f->scratch = workspace + p->scratch;\n"
    "    f->ahead = workspace + p->ahead;\n    f->group = p->group;\n"
    "    f->costate_in = f->costate_out = 0;\n    (void)zero;\n";

static const char beside_text[] =
    "/* Queues the pass of a frame that was prepared and has its workspace. `side` may be 0: all is queued on\n"
    " * one stream. Else a piece's reverse kernel runs beside the chain, and of these calls each returns 0 when\n"
    " * that worked:\n"
    " *     side(user, 1)    what is launched now goes on a second stream, which goes on from where the first\n"
    " *                      one is; it is faster if blocks of the second one go before those of the first\n"
    " *     side(user, 0)    what is launched now goes on the first one again\n"
    " *     side(user, 2)    and that waits for all that the second one has\n"
    " * -1: what was saved is refused, nothing was queued. */\n"
    "static inline int $L_run_beside(const $F *given, const $L_plan *p, $L_launch *launch,\n"
    "                                $L_zero *zero, $L_side *side, void *user)\n{\n";

static const char alone_text[] =
    "/* Queues the pass of a frame that was prepared and has its workspace. */\n"
    "static inline int $L_run(const $F *given, const $L_plan *p, $L_launch *launch, $L_zero *zero,\n"
    "                         void *user)\n{\n";

static void put_run(const Writer *w, bool beside) {
    header_text(w, beside ? beside_text : alone_text);
    header_text(w, "    $F copy = *given, *f = &copy;\n"
                   "    int status = 0, sums = 0;\n"
                   "    const int64_t workspace = given->workspace, out[$N] = {");
    for (int i = 0; i < w->r->shell->out.count; i++)
        buf_printf(w->out, "%sf->%s", i ? ", " : "", header_member(w, i));
    header_text(w, w->r->shell->out.count ? "};\n" : "0};\n");
    header_text(w, begin_text);
    put_sums(w);
    (beside ? put_chunks : put_tokens)(w);
    header_text(w, "    return status;\n}\n\n");
}

void header_queue(const Writer *w) {
    bool chunks = !header_by_token(w);
    if (chunks) {
        header_text(w, "typedef int $L_side(void *user, int to);\n\n");
        header_text(w, walk_text);
        put_walks(w, ENTRY_chain, "chains");
        put_walks(w, ENTRY_reverse, "reverses");
        header_text(w, chain_text);
        header_text(w, walks_text);
    }
    put_place(w);
    put_run(w, chunks);
    if (chunks)
        header_text(w, "/* The same on one stream. */\n"
                       "static inline int $L_run(const $F *given, const $L_plan *p, $L_launch *launch,\n"
                       "                         $L_zero *zero, void *user)\n{\n"
                       "    return $L_run_beside(given, p, launch, zero, 0, user);\n}\n\n");
}
