/* The C header of a backward pass on a GPU: what runtime/workspace.c and backward.c do, as C text for
 * programs that carry only the kernels. Here is its plan: whether what was saved is of use, pieces, the
 * workspace. Where the runtime takes the longest pieces that its memory has room for the caller says how long
 * they may be; the rest is the same, so the same pieces give the same launches (header_queue.c). A gradient
 * token by token is called in the same way and takes one piece, whose work is two kernels. */
#include "driver/header.h"

#include <string.h>

static int64_t number_of(const Writer *w, char letter) {
    const CgModule *m = &w->r->module;
    switch (letter) {
    case 'C': return m->chunk;
    case 'W': return m->ws_bytes_per_slot_head;
    case 'S': return w->grad->scratch_bytes;
    case 'B': return border_bytes(w->r);
    case 'E': return record_save_every(w->r);
    case 'G': return w->grad->per_sm;
    case 'A': return m->scan_token_bytes;
    case 'R': return m->scan_carry_bytes;
    case 'K': return SCAN_TOKENS;
    case 'N': return w->r->shell->out.count > 0 ? w->r->shell->out.count : 1;
    case 'M': return TASKS_A_BLOCK;
    case 'X': return GRID_MAX;
    }
    BUG("no $%c in the header's templates", letter);
}

bool header_by_token(const Writer *w) {
    return w->grad->kind == ENTRY_recurrent_grad;
}

/* What stands in the plan where there is one piece whatever the caller asks for. */
static const char *whole_text(const Writer *w) {
    if (header_by_token(w))
        return "    piece = 0; /* a block walks a sequence from end to end */\n";
    return header_entry(w->r, ENTRY_late) ? "    piece = 0; /* gradients wait for those of later tokens */\n"
                                          : "";
}

/* Blocks of the grad entry, each with scratch of its own. */
static const char *blocks_text(const Writer *w) {
    return header_by_token(w) ? "f->N * f->H"
                              : "p.piece * f->H / p.group < processors * $G\n"
                                "                        ? p.piece * f->H / p.group : processors * $G";
}

void header_text(const Writer *w, const char *text) {
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
            buf_printf(w->out, "%s_bwd_frame", w->name);
        else if (at[1] == 'V')
            buf_printf(w->out, "%s_saved", w->name);
        else if (at[1] == 'P')
            buf_puts(w->out, whole_text(w));
        else if (at[1] == 'T')
            header_text(w, blocks_text(w));
        else if (at[1] == 'Y')
            buf_printf(w->out, "%llu", (unsigned long long)w->r->module.records);
        else
            buf_printf(w->out, "%lld", (long long)number_of(w, at[1]));
    }
}

const char *header_member(const Writer *w, int i) {
    return header_field(w->out->arena, &w->r->shell->out.at[i]);
}

const char *header_source(const Writer *w, int i) {
    const Kernel *k = w->r->shell;
    int of = kernel_find_port(k, w->r->of[k->in.count + i], false);
    return header_field(w->out->arena, &k->in.at[of]);
}

long long header_row_bytes(const Writer *w, int i) {
    const Port *p = &w->r->shell->out.at[i];
    return shape_elements(w->r->shell, p->shape) * elem_size(p->elem);
}

void header_gradient_fields(const Kernel *k, Buf *out) {
    buf_puts(out, "    /* GPU, set by ..._run: the chunk slots at work, what crosses their borders, where\n"
                  "     * sums over heads and chunks go. */\n"
                  "    int64_t slot, slot_count, state_in, state_out, ahead, costate_in, costate_out, scratch;\n"
                  "    int64_t save_every; /* chunks from one saved state to the next that a walk may start at */\n"
                  "    int64_t group;      /* heads that a block takes one after another */\n");
    for (int i = 0; i < k->out.count; i++) {
        const char *field = header_field(out->arena, &k->out.at[i]);
        buf_printf(out, "    int64_t %s_sum, %s_sum_heads, %s_out_heads;\n", field, field, field);
    }
}

/* plan ----------------------------------------------------------------------------------------- */

static const char plan_text[] =
    "/* A backward pass: kernels on a stream. `launch` queues one with a 1-D grid and the frame by\n"
    " * value as its parameter, `zero` queues so many zero bytes; both return 0 when that worked.\n"
    " * Gradients go where the frame says, [B,T,heads,..] and params [heads,..], sums done. No tokens:\n"
    " * nothing is queued, no param has a gradient and dS0 is dS. */\n"
    "typedef int $L_launch(void *user, const char *symbol, int64_t blocks, int threads, int shared,\n"
    "                      const $F *f);\n"
    "typedef int $L_zero(void *user, int64_t address, int64_t bytes);\n"
    "typedef struct $L_plan {\n"
    "    const char *refused;               /* why what was saved cannot be used; NULL: it is not refused */\n"
    "    int64_t processors;                /* multiprocessors */\n"
    "    int64_t every, all;                /* states were saved, so many chunks apart; or all was */\n"
    "    int64_t range, ranges;             /* chunk slots that no sequence leaves; how many of such */\n"
    "    int64_t piece, pieces;             /* chunk slots at a time; pieces of a range */\n"
    "    int64_t crossed;                   /* whether a sequence may go on behind a piece */\n"
    "    int64_t from_saved;                /* whether its state there was saved */\n"
    "    int64_t group;                     /* heads that share inputs and are summed as they are made */\n"
    "    int64_t grad_blocks, scratch, ahead, states, costates;\n"
    "    int64_t heads[$N], part[$N];         /* of gradients as kernels leave them; where, -1: in place */\n"
    "    int64_t bytes;                     /* of the workspace, aligned to 256 bytes */\n"
    "} $L_plan;\n\n"
    "static inline int64_t $L_take($L_plan *p, int64_t bytes)\n{\n"
    "    int64_t at = p->bytes;\n"
    "    p->bytes += (bytes + 255) / 256 * 256;\n"
    "    return at;\n}\n\n"
    "static inline int64_t $L_up(int64_t x, int64_t y)\n{\n"
    "    return x / y + (x % y != 0);\n}\n\n";

static const char use_text[] =
    "/* Whether what was saved is of use to these kernels: they have chunks as long, records with the same\n"
    " * values in the same places, and it is all there. */\n"
    "static inline void $L_use($F *f, $L_plan *p, const $V *saved)\n{\n"
    "    int64_t bytes;\n"
    "    if (!saved || !saved->chunk)\n"
    "        return;\n"
    "    bytes = saved->records ? f->slots * f->H * INT64_C($W)\n"
    "            : f->slots > 0 ? (f->slots - 1) / $E * f->H * INT64_C($B) : 0;\n"
    "    if (saved->chunk != $C)\n"
    "        p->refused = \"saved by a forward pass with chunks of another length\";\n"
    "    else if (saved->records && saved->records != UINT64_C($Y))\n"
    "        p->refused = \"saved by a forward pass whose chunks hold other values\";\n"
    "    else if (saved->bytes < bytes)\n"
    "        p->refused = \"saved: too few bytes\";\n"
    "    else if (bytes && (!saved->data || saved->data % 256))\n"
    "        p->refused = \"saved: no address that is a multiple of 256\";\n"
    "    if (p->refused)\n"
    "        return;\n"
    "    f->saved = saved->data;\n"
    "    p->all = saved->records != 0;\n"
    "    p->every = p->all ? 0 : $E;\n"
    "}\n\n";

static const char cut_text[] =
    "/* Pieces of at most `most` slots: of whole sequences where these are short; that begin where states were\n"
    " * saved, or anywhere when all was; else of one sequence after another, packed ones as if they were one. */\n"
    "static inline void $L_cut(const $F *f, $L_plan *p, int64_t most)\n{\n"
    "    int64_t each = f->cu ? 0 : (f->T + $C - 1) / $C, every = p->every ? p->every : 1;\n"
    "    p->range = p->piece = f->slots;\n"
    "    p->from_saved = p->ranges = p->pieces = p->crossed = 0;\n"
    "    if (!f->T || !f->N || !f->H)\n"
    "        return;\n"
    "    if (most <= 0 || most >= f->slots) {\n"
    "        p->piece = f->slots;\n"
    "    } else if (each && most >= each) {\n"
    "        p->piece = $L_up(f->N, $L_up(f->N, most / each)) * each;\n"
    "    } else if ((p->every || p->all) && most >= every) {\n"
    "        int64_t n = $L_up(f->slots, most / every * every);\n"
    "        p->piece = $L_up($L_up(f->slots, n), every) * every;\n"
    "        p->from_saved = 1;\n"
    "    } else {\n"
    "        p->range = each ? each : f->slots;\n"
    "        p->piece = $L_up(p->range, $L_up(p->range, most));\n"
    "    }\n"
    "    p->pieces = $L_up(p->range, p->piece);\n"
    "    p->ranges = $L_up(f->slots, p->range);\n"
    "    p->crossed = p->pieces > 1 && !(each && p->piece % each == 0);\n"
    "}\n\n";

static const char prepare_text[] =
    "{\n"
    "    $L_plan p;\n"
    "    int64_t rows = f->cu ? f->T : f->N * f->T, most;\n"
    "    f->slots = f->cu ? f->T / $C + f->N : f->N * ((f->T + $C - 1) / $C);\n"
    "    f->HF = f->H;\n"
    "    f->saved = 0;\n"
    "    p.refused = 0;\n"
    "    p.processors = processors;\n"
    "    p.every = p.all = p.bytes = 0;\n";

static const char layout_text[] =
    "$P"
    "    $L_cut(f, &p, piece);\n"
    "    most = (p.piece + (f->cu ? f->N : 0)) * $C;\n"
    "    if (p.pieces * p.ranges > 1 && most < rows)\n"
    "        rows = most;\n"
    "    p.group = $L_group(f, processors);\n"
    "    p.grad_blocks = $T;\n"
    "    $L_take(&p, p.all ? 0 : p.piece * f->H * INT64_C($W));\n"
    "    p.scratch = $L_take(&p, p.grad_blocks * INT64_C($S));\n"
    "    p.ahead = $L_take(&p, (f->cu ? f->T : f->N * f->T) * f->H * INT64_C($A));\n"
    "    $L_take(&p, (f->cu ? f->T / $K + f->N : f->N * ((f->T + $K - 1) / $K)) * f->H * INT64_C($R));\n"
    "    p.states = $L_take(&p, p.crossed && !p.from_saved ? (p.pieces - 1) * f->H * INT64_C($B) : 0);\n"
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
    header_text(w, "/* Heads that a block of the grad kernel takes one after another. */\n"
                   "static inline int64_t $L_group(const $F *f, int64_t processors)\n{\n");
    if (header_by_token(w)) {
        header_text(w, "    (void)f, (void)processors;\n    return 1;\n}\n\n");
        return;
    }
    header_text(w, "    int64_t n = f->H, wanted = 0;\n");
    for (int i = 0; i < k->out.count; i++)
        if (!is_param(w, i))
            buf_printf(w->out, "    wanted |= f->%s && f->%s_heads != f->H;\n", header_member(w, i),
                       header_source(w, i));
    for (int i = 0; i < w->r->inputs; i++)
        if (!k->in.at[i].is_param && elem_size(k->in.at[i].elem) < 4)
            buf_printf(w->out, "    n = f->%s_heads != f->H && n > %d ? %d : n; /* 16 bits */\n",
                       header_field(w->out->arena, &k->in.at[i]), GROUP_16_BIT, GROUP_16_BIT);
    header_text(w, "    for (; wanted && n > 1; n--)\n"
                   "        if (f->slots * f->H / n >= $M * $G * processors");
    put_divides_all(w);
    header_text(w, ")\n            return n;\n    return 1;\n}\n\n");
}

static void put_parts(const Writer *w) {
    for (int i = 0; i < w->r->shell->out.count; i++) {
        const char *of = header_source(w, i);
        if (is_param(w, i))
            buf_printf(w->out, "    p.heads[%d] = f->H;\n", i);
        else
            buf_printf(w->out, "    p.heads[%d] = f->%s_heads != f->H ? f->H / p.group : f->H;\n", i, of);
        buf_printf(w->out, "    p.part[%d] = -1;\n    if (f->%s", i, header_member(w, i));
        if (!is_param(w, i))
            buf_printf(w->out, " && f->%s_heads != p.heads[%d]", of, i);
        header_text(w, ")\n");
        buf_printf(w->out, "        p.part[%d] = %s_take(&p, %s * p.heads[%d] * INT64_C(%lld));\n", i,
                   w->label, is_param(w, i) ? "f->slots" : "rows", i, header_row_bytes(w, i));
    }
}

/* Two ways to call it; what was saved concerns gradients by chunks alone. */
static void put_prepare(const Writer *w) {
    static const char what[] =
        "/* Plans a pass over a frame whose T, N, H, cu, heads and gradients are set, at most `piece` chunk\n"
        " * slots at a time (0: all; fewer need less workspace and more time), and fills its slots, HF and\n"
        " * saved. */\n";
    static const char plain[] =
        "static inline $L_plan $L_prepare($F *f, int64_t processors, int64_t piece)\n";
    bool uses = header_uses_saved(w->r);
    header_text(w, what);
    header_text(w, uses ? "static inline $L_plan $L_prepare_saved($F *f, int64_t processors, int64_t piece,\n"
                          "                                        const $V *saved)\n"
                        : plain);
    header_text(w, prepare_text);
    if (uses)
        header_text(w, "    $L_use(f, &p, saved);\n");
    header_text(w, layout_text);
    put_parts(w);
    header_text(w, "    return p;\n}\n\n");
    if (!uses)
        return;
    header_text(w, "/* The same where nothing was saved. */\n");
    header_text(w, plain);
    header_text(w, "{\n    return $L_prepare_saved(f, processors, piece, 0);\n}\n\n");
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
    w.grad = header_entry(r, chunks ? ENTRY_grad : ENTRY_recurrent_grad);
    w.sums = header_entry(r, ENTRY_sums);
    CHECK(w.grad && w.sums);
    w.label = label_of(r, w.grad, chunks ? "_grad" : "_recurrent_grad", out->arena);
    header_text(&w, plan_text);
    if (header_uses_saved(r))
        header_text(&w, use_text);
    header_text(&w, cut_text);
    put_group(&w);
    put_prepare(&w);
    header_queue(&w);
}
