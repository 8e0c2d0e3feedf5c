/* The C header of a backward pass on a GPU: what runtime/workspace.c and backward.c do, as C text for
 * programs that carry only the kernels. The pieces are simpler: equal ones of a size that the caller
 * chooses, and the caller's own launch function queues the kernels. A gradient token by token is called in
 * the same way and takes one piece, whose work is two kernels.
 *
 * Texts are templates: $L the label of functions, $F the frame's type, and numbers by one letter each. */
#include "driver/driver.h"

#include <string.h>

typedef struct Writer {
    Buf *out;
    const Record *r;
    const char *name, *label;
    const CgEntry *grad, *sums; /* grad: of chunks, or recurrent_grad */
} Writer;

static int64_t number_of(const Writer *w, char letter) {
    const CgModule *m = &w->r->module;
    switch (letter) {
    case 'C': return m->chunk;
    case 'W': return m->ws_bytes_per_slot_head;
    case 'S': return w->grad->scratch_bytes;
    case 'B': return border_bytes(w->r);
    case 'G': return w->grad->per_sm;
    case 'A': return m->scan_token_bytes;
    case 'R': return m->scan_carry_bytes;
    case 'K': return SCAN_TOKENS;
    case 'N': return w->r->shell->out.count > 0 ? w->r->shell->out.count : 1;
    case 'M': return TASKS_A_BLOCK;
    }
    BUG("no $%c in the header's templates", letter);
}

static const CgEntry *find(const Record *r, EntryKind kind) {
    for (int i = 0; i < r->module.entry.count; i++)
        if (r->module.entry.at[i].kind == kind)
            return &r->module.entry.at[i];
    return NULL;
}

static bool has(const Record *r, EntryKind kind) {
    return find(r, kind) != NULL;
}

static bool by_token(const Writer *w) {
    return w->grad->kind == ENTRY_recurrent_grad;
}

/* What stands in the plan for one piece. */
static const char *whole_text(const Writer *w) {
    if (by_token(w))
        return "    p.piece = f->slots; /* a block walks a sequence from end to end */\n";
    return has(w->r, ENTRY_late) ? "    p.piece = f->slots; /* gradients wait for those of later tokens */\n"
                                 : "";
}

/* Blocks of the grad entry, each with scratch of its own. */
static const char *blocks_text(const Writer *w) {
    return by_token(w) ? "f->N * f->H"
                       : "p.piece * f->H / p.group < processors * $G ? p.piece * f->H / p.group\n"
                         "                                                  : processors * $G";
}

static void put_text(const Writer *w, const char *text) {
    for (const char *at; *text; text = at + 2) {
        at = strchr(text, '$');
        if (!at) {
            buf_puts(w->out, text);
            return;
        }
        buf_put(w->out, text, (size_t)(at - text));
        if (at[1] == 'L')
            buf_puts(w->out, w->label);
        else if (at[1] == 'F')
            buf_printf(w->out, "%s_frame", w->name);
        else if (at[1] == 'P')
            buf_puts(w->out, whole_text(w));
        else if (at[1] == 'T')
            put_text(w, blocks_text(w));
        else
            buf_printf(w->out, "%lld", (long long)number_of(w, at[1]));
    }
}

/* Gradient i of the frame: its member, that of what it is a gradient of, bytes of a row and head. */
static const char *member(const Writer *w, int i) {
    return header_field(w->out->arena, &w->r->shell->out.at[i]);
}

static const char *source_member(const Writer *w, int i) {
    const Kernel *k = w->r->shell;
    int of = kernel_find_port(k, w->r->of[k->in.count + i], false);
    return header_field(w->out->arena, &k->in.at[of]);
}

static long long row_bytes(const Writer *w, int i) {
    const Port *p = &w->r->shell->out.at[i];
    return shape_elements(w->r->shell, p->shape) * elem_size(p->elem);
}

void header_gradient_fields(const Kernel *k, Buf *out) {
    buf_puts(out, "    /* GPU, set by ..._run: the chunk slots at work, what crosses their borders, where\n"
                  "     * sums over heads and chunks go. */\n"
                  "    int64_t slot, slot_count, state_in, state_out, ahead, costate_in, costate_out, scratch;\n"
                  "    int64_t save_every; /* 0 */\n"
                  "    int64_t group;      /* heads that a block takes one after another */\n");
    for (int i = 0; i < k->out.count; i++) {
        const char *field = header_field(out->arena, &k->out.at[i]);
        buf_printf(out, "    int64_t %s_sum, %s_sum_heads, %s_out_heads;\n", field, field, field);
    }
}

/* plan ----------------------------------------------------------------------------------------- */

static const char plan_text[] =
    "/* A backward pass: kernels on one stream. `launch` queues one with a 1-D grid and the frame by\n"
    " * value as its parameter, `zero` queues so many zero bytes; both return 0 when that worked.\n"
    " * Gradients go where the frame says, [B,T,heads,..] and params [heads,..], sums done. No tokens:\n"
    " * nothing is queued, no param has a gradient and dS0 is dS. */\n"
    "typedef int $L_launch(void *user, const char *symbol, int64_t blocks, int threads, int shared,\n"
    "                      const $F *f);\n"
    "typedef int $L_zero(void *user, int64_t address, int64_t bytes);\n"
    "typedef struct $L_plan {\n"
    "    int64_t processors, piece, pieces; /* multiprocessors; chunk slots at a time */\n"
    "    int64_t crossed;                   /* whether a sequence may go on behind a piece */\n"
    "    int64_t group;                     /* heads that share inputs and are summed as they are made */\n"
    "    int64_t grad_blocks, scratch, ahead, states, costates;\n"
    "    int64_t heads[$N], part[$N];         /* of gradients as kernels leave them; where, -1: in place */\n"
    "    int64_t bytes;                     /* of the workspace, aligned to 256 bytes */\n"
    "} $L_plan;\n\n"
    "static inline int64_t $L_take($L_plan *p, int64_t bytes)\n{\n"
    "    int64_t at = p->bytes;\n"
    "    p->bytes += (bytes + 255) / 256 * 256;\n"
    "    return at;\n}\n\n";

static const char prepare_text[] =
    "/* Plans a pass over a frame whose T, N, H, cu, heads and gradients are set, `piece` chunk slots at a\n"
    " * time (0: all; fewer need less workspace and more time), and fills its slots and HF. */\n"
    "static inline $L_plan $L_prepare($F *f, int64_t processors, int64_t piece)\n{\n"
    "    $L_plan p;\n"
    "    int64_t each = (f->T + $C - 1) / $C, rows = f->cu ? f->T : f->N * f->T, most;\n"
    "    f->slots = f->cu ? f->T / $C + f->N : f->N * each;\n"
    "    f->HF = f->H;\n"
    "    p.processors = processors;\n"
    "    p.piece = piece > 0 && piece < f->slots ? piece : f->slots;\n"
    "$P"
    "    p.pieces = f->T && p.piece ? (f->slots + p.piece - 1) / p.piece : 0;\n"
    "    p.crossed = p.pieces > 1 && (f->cu || p.piece % each != 0);\n"
    "    most = (p.piece + (f->cu ? f->N : 0)) * $C;\n"
    "    if (p.pieces > 1 && most < rows)\n"
    "        rows = most;\n"
    "    p.group = $L_group(f, processors);\n"
    "    p.grad_blocks = $T;\n"
    "    p.bytes = 0;\n"
    "    $L_take(&p, p.piece * f->H * INT64_C($W));\n"
    "    p.scratch = $L_take(&p, p.grad_blocks * INT64_C($S));\n"
    "    p.ahead = $L_take(&p, (f->cu ? f->T : f->N * f->T) * f->H * INT64_C($A));\n"
    "    $L_take(&p, (f->cu ? f->T / $K + f->N : f->N * ((f->T + $K - 1) / $K)) * f->H * INT64_C($R));\n"
    "    p.states = $L_take(&p, p.crossed ? (p.pieces - 1) * f->H * INT64_C($B) : 0);\n"
    "    p.costates = $L_take(&p, p.crossed ? 2 * f->H * INT64_C($B) : 0);\n";

static bool is_param(const Writer *w, int i) {
    return w->r->shell->out.at[i].is_param;
}

/* The condition that groups of n heads divide those that share an input, whichever. */
static void put_divides_all(const Writer *w) {
    for (int i = 0; i < w->r->inputs; i++) {
        const char *in = header_field(w->out->arena, &w->r->shell->in.at[i]);
        if (!w->r->shell->in.at[i].is_param)
            buf_printf(w->out, " &&\n            (f->%s_heads == f->H || f->H / f->%s_heads %% n == 0)", in,
                       in);
    }
}

/* What gradient_group does. */
static void put_group(const Writer *w) {
    const Kernel *k = w->r->shell;
    put_text(w, "/* Heads that a block of the grad kernel takes one after another. */\n"
                "static inline int64_t $L_group(const $F *f, int64_t processors)\n{\n");
    if (by_token(w)) {
        put_text(w, "    (void)f, (void)processors;\n    return 1;\n}\n\n");
        return;
    }
    put_text(w, "    int64_t n = f->H, wanted = 0;\n");
    for (int i = 0; i < k->out.count; i++)
        if (!is_param(w, i))
            buf_printf(w->out, "    wanted |= f->%s && f->%s_heads != f->H;\n", member(w, i),
                       source_member(w, i));
    for (int i = 0; i < w->r->inputs; i++)
        if (!k->in.at[i].is_param && elem_size(k->in.at[i].elem) < 4)
            buf_printf(w->out, "    n = f->%s_heads != f->H && n > %d ? %d : n; /* 16 bits */\n",
                       header_field(w->out->arena, &k->in.at[i]), GROUP_16_BIT, GROUP_16_BIT);
    put_text(w, "    for (; wanted && n > 1; n--)\n"
                "        if (f->slots * f->H / n >= $M * $G * processors");
    put_divides_all(w);
    put_text(w, ")\n            return n;\n    return 1;\n}\n\n");
}

static void put_plan(const Writer *w) {
    put_text(w, plan_text);
    put_group(w);
    put_text(w, prepare_text);
    for (int i = 0; i < w->r->shell->out.count; i++) {
        const char *of = source_member(w, i);
        if (is_param(w, i))
            buf_printf(w->out, "    p.heads[%d] = f->H;\n", i);
        else
            buf_printf(w->out, "    p.heads[%d] = f->%s_heads != f->H ? f->H / p.group : f->H;\n", i, of);
        buf_printf(w->out, "    p.part[%d] = -1;\n    if (f->%s", i, member(w, i));
        if (!is_param(w, i))
            buf_printf(w->out, " && f->%s_heads != p.heads[%d]", of, i);
        put_text(w, ")\n");
        buf_printf(w->out, "        p.part[%d] = %s_take(&p, %s * p.heads[%d] * INT64_C(%lld));\n", i,
                   w->label, is_param(w, i) ? "f->slots" : "rows", i, row_bytes(w, i));
    }
    put_text(w, "    return p;\n}\n\n");
}

/* run ------------------------------------------------------------------------------------------ */

static void put_simple(const Writer *w, const CgEntry *e, const char *blocks) {
    buf_printf(w->out, "launch(user, \"%s\", %s, %d, %d, f)", e->symbol, blocks, e->threads,
               e->smem_bytes);
}

/* The function that launches the best of the entries of a kind. */
static void put_choice(const Writer *w, EntryKind kind, const char *what) {
    const CgModule *m = &w->r->module;
    int V = w->r->shell->axis.at[AXIS_V].size, n = 0;
    buf_printf(w->out, "static inline int %s_%s(const %s_frame *f, const %s_plan *p, %s_launch *launch,\n"
                       "                        void *user)\n{\n"
                       "    static const struct { const char *symbol; int threads, shared, tiles, "
                       "columns; } e[] = {\n",
               w->label, what, w->name, w->label, w->label);
    for (int i = 0; i < m->entry.count; i++) {
        const CgEntry *e = &m->entry.at[i];
        if (e->kind != kind)
            continue;
        buf_printf(w->out, "        {\"%s\", %d, %d, %d, %d},\n", e->symbol, e->threads,
                   e->smem_bytes, e->v_tile ? (V + e->v_tile - 1) / e->v_tile : 1, e->v_tile);
        n++;
    }
    buf_printf(w->out,
               "    };\n    int best = 0;\n    int64_t least = INT64_MAX;\n"
               "    int64_t heads = f->H * (f->N * f->slot_count / f->slots + 1); /* at work */\n"
               "    for (int i = 0; i < %d; i++) {\n"
               "        int64_t turns = (heads * e[i].tiles + p->processors - 1) / p->processors;\n"
               "        if (turns * (64 + e[i].columns) < least) {\n"
               "            least = turns * (64 + e[i].columns);\n"
               "            best = i;\n        }\n    }\n"
               "    return launch(user, e[best].symbol, f->N * f->H * e[best].tiles, "
               "e[best].threads,\n                  e[best].shared, f);\n}\n\n",
               n);
}

static const char place_text[] =
    "/* The frame at piece i. */\n"
    "static inline void $L_place($F *f, const $L_plan *p, int64_t i, const int64_t *out)\n{\n"
    "    int64_t each = (f->T + $C - 1) / $C, state = f->H * INT64_C($B), row;\n"
    "    f->slot = i * p->piece;\n"
    "    f->slot_count = f->slots - f->slot < p->piece ? f->slots - f->slot : p->piece;\n"
    "    f->state_in = p->crossed && i > 0 ? f->workspace + p->states + (i - 1) * state : 0;\n"
    "    f->state_out = f->save_every = 0;\n"
    "    f->costate_in = p->crossed && i + 1 < p->pieces\n"
    "                        ? f->workspace + p->costates + (i + 1) % 2 * state : 0;\n"
    "    f->costate_out = p->crossed && i > 0 ? f->workspace + p->costates + i % 2 * state : 0;\n"
    "    row = f->cu ? $C * (f->slot - f->N + 1) : f->slot / each * f->T + f->slot % each * $C;\n"
    "    row = p->pieces > 1 && row > 0 ? row : 0;\n";

static void put_place(const Writer *w) {
    put_text(w, place_text);
    for (int i = 0; i < w->r->shell->out.count; i++) {
        const char *f = member(w, i);
        buf_printf(w->out, "    f->%s = p->part[%d] < 0 ? out[%d] : f->workspace + p->part[%d]", f,
                   i, i, i);
        if (!w->r->shell->out.at[i].is_param)
            buf_printf(w->out, " - row * p->heads[%d] * INT64_C(%lld)", i, row_bytes(w, i));
        put_text(w, ";\n");
    }
    put_text(w, "    (void)row;\n    (void)out;\n}\n\n");
}

static void put_sums(const Writer *w) {
    for (int i = 0; i < w->r->shell->out.count; i++) {
        const char *f = member(w, i);
        buf_printf(w->out,
                   "    f->%s_sum = p->part[%d] < 0 ? 0 : out[%d];\n"
                   "    f->%s_sum_heads = f->%s_heads;\n"
                   "    f->%s_out_heads = p->heads[%d];\n"
                   "    sums |= p->part[%d] >= 0;\n",
                   f, i, i, f, source_member(w, i), f, i, i);
        if (w->r->shell->out.at[i].is_param)
            buf_printf(w->out,
                       "    if (f->cu && p->part[%d] >= 0 &&\n"
                       "        (status = zero(user, f->workspace + p->part[%d],\n"
                       "                       f->slots * f->H * INT64_C(%lld))) != 0)\n"
                       "        return status;\n",
                       i, i, row_bytes(w, i));
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
        put_text(w, ";\n");
    }
}

static void put_queue_sums(const Writer *w, const char *indent) {
    Buf blocks;
    buf_init(&blocks, w->out->arena);
    buf_printf(&blocks, "p->processors * %d", w->sums->per_sm);
    buf_printf(w->out, "%sif (!status && sums)\n%s    status = ", indent, indent);
    put_simple(w, w->sums, blocks.text);
    put_text(w, ";\n");
}

/* All pieces, by chunks: the states at their borders, then backwards. */
static void put_chunks(const Writer *w) {
    put_scans(w, false, "    ");
    put_text(w, "    for (int64_t i = 0; !status && p->crossed && i + 1 < p->pieces; i++) {\n"
                "        $L_place(f, p, i, out);\n"
                "        f->state_out = f->workspace + p->states + i * f->H * INT64_C($B);\n"
                "        status = ");
    put_simple(w, find(w->r, ENTRY_factor), "f->slot_count * f->H");
    put_text(w, ";\n        status = status ? status : $L_chain(f, p, launch, user);\n    }\n"
                "    for (int64_t i = p->pieces - 1; !status && i >= 0; i--) {\n"
                "        int64_t tasks;\n"
                "        $L_place(f, p, i, out);\n"
                "        tasks = f->slot_count * f->H;\n"
                "        status = ");
    put_simple(w, find(w->r, ENTRY_factor), "tasks");
    put_text(w, ";\n        status = status ? status : $L_chain(f, p, launch, user);\n"
                "        status = status ? status : $L_reverse(f, p, launch, user);\n"
                "        status = status ? status : ");
    put_simple(w, w->grad, "tasks / p->group < p->grad_blocks ? tasks / p->group : p->grad_blocks");
    put_text(w, ";\n");
    put_scans(w, true, "        ");
    put_queue_sums(w, "        ");
    put_text(w, "    }\n");
}

static void put_tokens(const Writer *w) {
    put_text(w, "    $L_place(f, p, 0, out);\n    status = ");
    put_simple(w, w->grad, "p->grad_blocks");
    put_text(w, ";\n");
    put_queue_sums(w, "    ");
}

static void put_run(const Writer *w) {
    put_text(w, "/* Queues the pass of a frame that was prepared and has its workspace. */\n"
                "static inline int $L_run(const $F *given, const $L_plan *p, $L_launch *launch,\n"
                "                         $L_zero *zero, void *user)\n{\n"
                "    $F copy = *given, *f = &copy;\n"
                "    int status = 0, sums = 0;\n    const int64_t out[$N] = {");
    for (int i = 0; i < w->r->shell->out.count; i++)
        buf_printf(w->out, "%sf->%s", i ? ", " : "", member(w, i));
    put_text(w, w->r->shell->out.count ? "};\n" : "0};\n");
    put_text(w, "    if (!p->pieces)\n        return 0;\n"
                "    f->scratch = f->workspace + p->scratch;\n"
                "    f->ahead = f->workspace + p->ahead;\n    f->group = p->group;\n    (void)zero;\n");
    put_sums(w);
    (by_token(w) ? put_tokens : put_chunks)(w);
    put_text(w, "    return status;\n}\n\n");
}

/* What all functions are called by: the entry's symbol without what this entry is. */
static const char *label_of(const Record *r, const CgEntry *grad, const char *suffix, Arena *a) {
    size_t all = strlen(grad->symbol), last = strlen(suffix);
    Buf label;
    buf_init(&label, a);
    CHECK(all > last && !strcmp(grad->symbol + all - last, suffix));
    buf_put(&label, grad->symbol, all - last);
    buf_printf(&label, "_%s", r->target);
    return label.text;
}

void header_gradient(const char *name, const gdr_kernel *kernel, Buf *out) {
    const Record *r = &kernel->rec;
    bool chunks = r->algo == ALGO_chunk;
    Writer w = {.out = out, .r = r, .name = name};
    w.grad = find(r, chunks ? ENTRY_grad : ENTRY_recurrent_grad);
    w.sums = find(r, ENTRY_sums);
    CHECK(w.grad && w.sums);
    w.label = label_of(r, w.grad, chunks ? "_grad" : "_recurrent_grad", out->arena);
    put_plan(&w);
    if (chunks) {
        put_choice(&w, ENTRY_chain, "chain");
        put_choice(&w, ENTRY_reverse, "reverse");
    }
    put_place(&w);
    put_run(&w);
}
