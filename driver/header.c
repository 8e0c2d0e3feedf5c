/* The C header that goes with kernels compiled ahead of time.
 *
 * All kernels of a variant share one launch frame (codegen.h): int64 fields in the order of the
 * ports. The header gives it as a struct whose fields carry the spec's names, and for every entry
 * its prototype (CPU) or its symbol and launch rule (GPU), so that a caller never counts fields.
 */
#include "driver/header.h"

#include <ctype.h>
#include <string.h>

static void put_upper(Buf *out, const char *s) {
    for (; *s; s++) {
        char c = (char)toupper((unsigned char)*s);
        buf_put(out, &c, 1);
    }
}

/* A port's name as a member: with a line behind it where C or the frame uses the name itself. */
const char *header_field(Arena *a, const Port *p) {
    static const char *const taken[] = {
        "T",          "N",           "H",          "HF",         "cu",          "cu_width",
        "S0",         "S",           "dS",         "dS0",        "workspace",   "slots",
        "S0_stride",  "S0_slots",    "S0_columns", "S0_pool",    "S0_accepted", "S_stride",
        "S_slots",    "S_pool",      "S_accepted", "S_each",     "index_width", "past0",
        "past",       "saved",       "slot",       "slot_count", "state_in",    "state_out",
        "costate_in", "costate_out", "scratch",    "ahead",      "first_chunk", "chunk_count",
        "auto",       "break",
        "case",       "char",        "const",      "continue",   "default",     "do",
        "double",     "else",        "enum",       "extern",     "float",       "for",
        "goto",       "if",          "inline",     "int",        "long",        "register",
        "restrict",   "return",      "short",      "signed",     "sizeof",      "static",
        "struct",     "switch",      "typedef",    "union",      "unsigned",    "void",
        "volatile",   "while",       "bool",       "class",      "new",         "delete",
        "this",       "template",    "private",    "public",     "protected",   "operator",
        "namespace",  "using",       "try",        "catch",      "throw",       "friend",
        "virtual",    "true",        "false",      "and",        "or",          "not",
        "xor",        "save_every",  "group",
    };
    Buf name;
    buf_init(&name, a);
    buf_puts(&name, p->name);
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
        if (!strcmp(p->name, taken[i]))
            buf_puts(&name, "_");
    return name.text;
}

static void put_shape_comment(const Kernel *k, const Port *p, const char *lead, Buf *out) {
    buf_printf(out, "/* %s %s", elem_name(p->elem), lead);
    for (int i = 0; i < p->shape.rank; i++)
        buf_printf(out, ",%d", k->axis.at[p->shape.axis[i]].size);
    buf_puts(out, "] */\n");
}

static void put_gradients(const Record *r, bool gpu, Buf *out) {
    const Kernel *k = r->shell;
    for (int i = 0; i < k->out.count; i++) {
        const Port *p = &k->out.at[i];
        buf_printf(out, "    int64_t %s; ", header_field(out->arena, p));
        put_shape_comment(k, p, p->is_param ? "[N,H" : "[B,T,H", out);
    }
    buf_printf(
        out,
        "    int64_t dS, dS0;    /* f32 [N,H,%d,%d]; 0: zero, not wanted; may be the same */\n",
        k->axis.at[AXIS_K].size, k->axis.at[AXIS_V].size);
    if (gpu)
        header_gradient_fields(k, out);
}

/* Where states lie when they are not [N,H,..] one after the other. */
static void put_pools(int past, const char *saved, Buf *out) {
    buf_puts(out,
             "    /* Pools of states; all 0: none. Indices and counts are integers of\n"
             "     * index_width (4 or 8) bytes. A sequence starts from state S0_slots[n] of the\n"
             "     * S0_pool states in S0; with S0_accepted from\n"
             "     *     S0_slots[n*S0_columns + S0_accepted[n] - 1]   (else S0_columns is 1).\n"
             "     * It leaves state S_slots[n] of the S_pool states in S, the one after\n"
             "     * S_accepted[n] tokens, or after all; with S_each the states after each of so\n"
             "     * many tokens t, in S_slots[n*S_each + t], or without S_slots in\n"
             "     * [N,S_each,H,..]. Negative: the sequence is skipped. S_each and S_accepted:\n"
             "     * step kernels. Strides: bytes from state to state; 0: no gaps. */\n"
             "    int64_t S0_stride, S0_slots, S0_columns, S0_pool, S0_accepted;\n"
             "    int64_t S_stride, S_slots, S_pool, S_accepted, S_each;\n"
             "    int64_t index_width;\n");
    if (past)
        buf_printf(
            out,
            "    int64_t past0, past; /* f32 [N,H,%d], what prev and cumsum remember, as\n"
            "                          * many as states; 0: zero, not wanted */\n",
            past);
    else
        buf_puts(out, "    int64_t past0, past; /* 0: nothing is remembered beside states */\n");
    buf_printf(out, "    int64_t saved;       /* %s */\n", saved ? saved : "0");
}

static void put_frame(const char *name, const Record *r, int past, bool gpu, const char *saved, Buf *out) {
    const Kernel *k = r->shell;
    bool backward = r->pass == GDR_PASS_BACKWARD;
    buf_puts(out,
             "/* One launch. Addresses are stored as integers: (int64_t)(uintptr_t)pointer.\n"
             " * Dense: N = B sequences of T tokens. Packed: cu is the address of N+1 offsets of\n"
             " * cu_width bytes, B = 1 and T counts all tokens. Head h uses head h*heads/H. */\n");
    if (backward)
        buf_puts(
            out,
            "/* Gradients are those of every head of every sequence; 0: not wanted. Whoever\n"
            " * launches sums over heads that share an input, and params over sequences; on a\n"
            " * GPU ..._run does. An upstream gradient that is zero: heads 0, and one token's\n"
            " * zeros. S is 0. */\n");
    buf_printf(out, "typedef struct %s_frame {\n", name);
    buf_puts(out, "    int64_t T, N;\n"
                  "    int64_t H;          /* heads of outputs and states: the widest input's */\n"
                  "    int64_t HF;         /* heads of the factor kernel: set by ..._prepare */\n"
                  "    int64_t cu, cu_width;\n");
    int rows = k->axis.at[r->state_vk ? AXIS_V : AXIS_K].size;
    int columns = k->axis.at[r->state_vk ? AXIS_K : AXIS_V].size;
    buf_printf(out, "    int64_t S0, S;      /* %s [N,H,%d,%d]; 0: zero, not wanted */\n",
               elem_name(r->state), rows, columns);
    buf_puts(out, "    int64_t workspace, slots;\n");
    put_pools(past, saved, out);
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        const char *field = header_field(out->arena, p);
        buf_printf(out, "    int64_t %s, %s_heads; ", field, field);
        put_shape_comment(k, p, p->is_param ? "[heads" : "[B,T,heads", out);
    }
    for (int i = 0; i < k->out.count && !backward; i++) {
        buf_printf(out, "    int64_t %s; ", header_field(out->arena, &k->out.at[i]));
        put_shape_comment(k, &k->out.at[i], "[B,T,H", out);
    }
    if (backward)
        put_gradients(r, gpu, out);
    if (!backward && gpu)
        buf_puts(out, "    /* GPU, by chunks, set by ..._segment: the chunk slots at work, what crosses their\n"
                      "     * borders, where values made ahead lie. */\n"
                      "    int64_t slot, slot_count, state_in, state_out, ahead, first_chunk, chunk_count;\n");
    buf_printf(out, "} %s_frame;\n\n", name);
}

static void put_host_entry(const char *name, const CgEntry *e, Buf *out) {
    buf_printf(
        out,
        "/* CPU: computes tasks first .. last-1 of N*H, task = sequence*H + head. scratch: "
        "64-byte\n * aligned, one a thread. */\nvoid %s(const %s_frame *frame, int64_t first, "
        "int64_t last, void *scratch);\n",
        e->symbol, name);
    buf_puts(out, "#define ");
    put_upper(out, e->symbol);
    buf_printf(out, "_SCRATCH %lld\n\n", (long long)e->scratch_bytes);
}

/* Slots and workspace of a backward pass on the CPU. */
static void put_host_workspace(const char *name, const Record *r, const CgEntry *e, Buf *out) {
    buf_puts(out,
             "/* Fills slots of a frame whose T, N, H and cu are set, and returns the bytes of\n"
             " * workspace, 64-byte aligned, that the pass needs. */\n");
    buf_printf(out, "static inline int64_t %s_prepare(%s_frame *f)\n{\n", e->symbol, name);
    buf_printf(out, "    f->slots = f->cu ? f->T / %d + f->N : f->N * ((f->T + %d) / %d);\n",
               r->module.chunk, r->module.chunk - 1, r->module.chunk);
    buf_printf(out, "    return f->slots * f->H * INT64_C(%lld);\n}\n\n",
               (long long)r->module.ws_bytes_per_slot_head);
}

static void put_gpu_entry(const char *name, const char *target, const gdr_kernel *kernel,
                          const CgEntry *e, Buf *out) {
    int V = kernel->rec.shell->axis.at[AXIS_V].size;
    int tiles = e->v_tile ? (V + e->v_tile - 1) / e->v_tile : 1;
    const char *rule = "";
    if (e->kind == ENTRY_chain && record_entries(&kernel->rec, ENTRY_chain) > 1)
        rule = "\n * Of several chain kernels launch one: that with the least "
               "turns * (64 + V columns of a block),\n * turns = blocks / "
               "multiprocessors, rounded up.";
    else if (e->kind == ENTRY_past)
        rule = "\n * Once, behind all others; not needed where past is 0.";
    buf_printf(out, "/* %s: kernel \"%s\", one parameter: the frame by value.%s */\n", target,
               e->symbol, rule);
    buf_printf(out, "static inline int64_t %s_%s_blocks(const %s_frame *f)\n{\n    return ",
               e->symbol, target, name);
    if (e->kind == ENTRY_factor)
        buf_puts(out, "f->slot_count * f->HF;\n}\n");
    else if (e->kind == ENTRY_scan)
        buf_printf(out, "(f->cu ? f->T / %d + f->N : f->N * ((f->T + %d) / %d)) * f->H;\n}\n",
                   SCAN_TOKENS, SCAN_TOKENS - 1, SCAN_TOKENS);
    else
        buf_printf(out, "f->N * f->H * %d;\n}\n", tiles);
    buf_printf(out, "enum { %s_%s_threads = %d, %s_%s_shared = %d };\n\n", e->symbol, target,
               e->threads, e->symbol, target, e->smem_bytes);
}

/* The slots of a piece, at most all, and bytes of its records in the workspace, up to the next multiple of
 * 256. Saved records are all there at once, elsewhere. */
static void put_piece(const Record *r, Buf *out) {
    if (record_saves_all(r))
        buf_puts(out, "    piece = f->slots; /* all is saved */\n    int64_t records = 0;\n");
    else
        buf_printf(out,
                   "    piece = piece > 0 && piece < f->slots ? piece : f->slots;\n"
                   "    int64_t records = (piece * f->HF * INT64_C(%lld) + 255) / 256 * 256;\n",
                   (long long)r->module.ws_bytes_per_slot_head);
}

/* The workspace in bytes: records, states at borders, then what is made ahead (codegen.h at SCAN_TOKENS). */
static void put_workspace_bytes(const Record *r, Buf *out) {
    const CgModule *m = &r->module;
    put_piece(r, out);
    buf_printf(out, "    int64_t bytes = records + (piece < f->slots ? 2 * f->H * INT64_C(%lld) : 0);\n",
               (long long)border_bytes(r));
    if (m->scan_token_bytes + m->scan_carry_bytes > 0)
        buf_printf(out,
                   "    bytes = (bytes + 255) / 256 * 256;\n"
                   "    bytes += (f->cu ? f->T : f->N * f->T) * f->H * INT64_C(%lld);\n"
                   "    bytes = (bytes + 255) / 256 * 256;\n"
                   "    bytes += (f->cu ? f->T / %d + f->N : f->N * ((f->T + %d) / %d)) * f->H *\n"
                   "             INT64_C(%lld);\n",
                   (long long)m->scan_token_bytes, SCAN_TOKENS, SCAN_TOKENS - 1, SCAN_TOKENS,
                   (long long)m->scan_carry_bytes);
    buf_puts(out, "    return bytes;\n}\n\n");
}

/* What runtime/launch.c does for ranges of slots. */
static void put_segment(const char *name, const char *label, const Record *r, Buf *out) {
    long long state = (long long)border_bytes(r);
    buf_printf(out,
               "/* Moves a prepared frame that has its workspace to segment number i, so many slots at a time\n"
               " * as it was prepared for; 0: there is no such segment. What stands before the factor kernel\n"
               " * is launched once, at segment 0, then factor and chain at every one, in one stream. */\n"
               "static inline int %s_segment(%s_frame *f, int64_t piece, int64_t i)\n{\n",
               label, name);
    put_piece(r, out);
    buf_printf(out,
               "    int64_t state = f->workspace + records, first = i * piece;\n"
               "    int64_t border = f->H * INT64_C(%lld), all = piece < f->slots ? 2 * border : 0;\n"
               "    f->slot = first;\n"
               "    f->slot_count = f->slots - first < piece ? f->slots - first : piece;\n"
               "    f->first_chunk = f->chunk_count = 0;\n"
               "    f->state_in = i > 0 ? state + (i - 1) %% 2 * border : 0;\n"
               "    f->state_out = first + piece < f->slots ? state + i %% 2 * border : 0;\n"
               "    f->ahead = (state + all + 255) / 256 * 256;\n"
               "    return i == 0 || first < f->slots;\n}\n\n",
               state);
}

/* The least common multiple of the heads of what the factor kernel reads; a saved record is one head's. */
static void put_factor_heads(const Record *r, Buf *out) {
    if (record_saves_all(r)) {
        buf_puts(out, "    f->HF = f->H;\n");
        return;
    }
    buf_puts(out, "    f->HF = 1;\n");
    for (int i = 0; i < r->shell->in.count; i++)
        if (r->factor_reads[i])
            buf_printf(out,
                       "    for (int64_t step = f->HF; f->HF %% f->%s_heads;)\n"
                       "        f->HF += step;\n",
                       header_field(out->arena, &r->shell->in.at[i]));
}

/* What the runtime refuses: a place for what is saved that is none; a start that no backward pass has. */
static void put_refusal(const Record *r, Buf *out) {
    if (record_save_every(r))
        buf_printf(out, "    if (f->saved %% 256 || %s)\n        return -1;\n",
                   record_saves_all(r) ? "!f->saved || f->past0" : "(f->saved && f->past0)");
}

/* Slots, factor heads and workspace of a kernel that works by chunks on the GPU. */
static void put_workspace(const char *name, const char *label, const gdr_kernel *kernel, Buf *out) {
    const Record *r = &kernel->rec;
    buf_printf(out,
               "/* Fills slots and HF of a frame whose T, N, H, cu and heads are set, and returns the bytes of\n"
               " * workspace, aligned to 256 bytes, that the %s kernels need for `piece` chunk\n"
               " * slots at a time (0: all; fewer need less and take longer).%s */\n",
               label,
               record_saves_all(r)    ? " All is saved and stays, so piece says\n"
                                        " * nothing. -1: `saved` is not set or not aligned, or past0 is set."
               : record_save_every(r) ? "\n * -1: `saved` is not aligned, or is set and past0 as well."
                                      : "");
    buf_printf(out, "static inline int64_t %s_prepare(%s_frame *f, int64_t piece)\n{\n", label, name);
    buf_printf(out, "    f->slots = f->cu ? f->T / %d + f->N : f->N * ((f->T + %d) / %d);\n",
               r->module.chunk, r->module.chunk - 1, r->module.chunk);
    put_factor_heads(r, out);
    put_refusal(r, out);
    put_workspace_bytes(r, out);
    put_segment(name, label, r, out);
}

static void put_kernel(const char *name, const gdr_kernel *kernel, Buf *out) {
    const CgModule *m = &kernel->rec.module;
    const char *target = kernel->rec.target;
    for (int i = 0; i < m->entry.count; i++) {
        const CgEntry *e = &m->entry.at[i];
        if (e->kind == ENTRY_host) {
            put_host_entry(name, e, out);
            if (kernel->rec.pass == GDR_PASS_BACKWARD)
                put_host_workspace(name, &kernel->rec, e, out);
            continue;
        }
        if (e->kind == ENTRY_factor) {
            Buf label;
            buf_init(&label, out->arena);
            buf_printf(&label, "%s_%s", e->symbol, target);
            header_saved_bytes(name, label.text, &kernel->rec, out);
            put_workspace(name, label.text, kernel, out);
        }
        put_gpu_entry(name, target, kernel, e, out);
    }
}

/* Kernels of backward passes remember nothing. */
static int past_of(gdr_kernel *const *kernel, int count) {
    int past = 0;
    for (int i = 0; i < count; i++)
        past = kernel[i]->rec.module.past > past ? kernel[i]->rec.module.past : past;
    return past;
}

/* Whether such a pass on a GPU is among them. */
static bool any_on_gpu(gdr_kernel *const *kernel, int count, gdr_pass pass) {
    bool any = false;
    for (int i = 0; i < count; i++)
        any |= kernel[i]->rec.pass == pass && record_on_gpu(&kernel[i]->rec);
    return any;
}

const CgEntry *header_entry(const Record *r, EntryKind kind) {
    for (int i = 0; i < r->module.entry.count; i++)
        if (r->module.entry.at[i].kind == kind)
            return &r->module.entry.at[i];
    return NULL;
}

void header_print(const char *name, gdr_kernel *const *kernel, int count, Buf *out) {
    const Kernel *k = kernel[0]->rec.shell;
    Buf backward;
    buf_init(&backward, out->arena);
    buf_printf(&backward, "%s_bwd", name);
    buf_printf(out, "/* Kernels of the variant %s, made by %s. Do not edit. */\n#ifndef GDR_",
               k->name, gdr_version());
    put_upper(out, name);
    buf_puts(out, "_H\n#define GDR_");
    put_upper(out, name);
    buf_puts(out, "_H\n\n#include <stdint.h>\n\n#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n");
    header_saved_type(name, kernel, count, out);
    for (int pass = GDR_PASS_FORWARD; pass <= GDR_PASS_BACKWARD; pass++) {
        bool first = true;
        for (int i = 0; i < count; i++) {
            if ((int)kernel[i]->rec.pass != pass)
                continue;
            const char *prefix = pass == GDR_PASS_BACKWARD ? backward.text : name;
            bool gpu = any_on_gpu(kernel, count, (gdr_pass)pass);
            if (first)
                put_frame(prefix, &kernel[i]->rec, past_of(kernel, count), gpu,
                          pass == GDR_PASS_FORWARD ? header_saved_comment(kernel, count)
                          : gpu                    ? "GPU: set by ..._prepare" : NULL, out);
            first = false;
            if (pass == GDR_PASS_BACKWARD && record_on_gpu(&kernel[i]->rec))
                header_gradient(name, kernel[i], out);
            else
                put_kernel(prefix, kernel[i], out);
        }
    }
    buf_puts(out, "#ifdef __cplusplus\n}\n#endif\n#endif\n");
}
