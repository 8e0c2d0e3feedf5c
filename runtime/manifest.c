/* A compiled kernel described in JSON: what a program that calls it needs to know, in the words of
 * codegen.h: ports and shapes, the frame's fields, entries and their launch rules, workspace. */
#include "runtime/runtime.h"

/* What a kernel computes has all heads, and a row a sequence where it is a param's gradient. */
static void put_shape(const Kernel *k, const Port *p, bool computed, Buf *out) {
    buf_puts(out, p->is_param ? "[" : "[\"B\", \"T\", ");
    buf_puts(out, p->is_param && computed ? "\"N\", " : "");
    buf_puts(out, computed ? "\"H\"" : "\"heads\"");
    for (int i = 0; i < p->shape.rank; i++)
        buf_printf(out, ", %d", k->axis.at[p->shape.axis[i]].size);
    buf_puts(out, "]");
}

static void put_range(const Port *p, Buf *out) {
    const double bound[2] = {p->lo, p->hi};
    buf_puts(out, ", \"range\": [");
    for (int i = 0; i < 2; i++) {
        if (i)
            buf_puts(out, ", ");
        if (bound[i] - bound[i] == 0) /* finite */
            buf_number(out, bound[i]);
        else
            buf_puts(out, "null");
    }
    buf_puts(out, "]");
}

static void put_port(const Record *r, const Port *p, const char *of, const char *kind, int pointer,
                     int heads, Buf *out) {
    buf_puts(out, "    {\"name\": ");
    buf_json_string(out, p->name);
    buf_printf(out, ", \"kind\": \"%s\", \"dtype\": \"%s\", \"shape\": ", kind, elem_name(p->elem));
    put_shape(r->shell, p, heads < 0, out);
    put_range(p, out);
    if (of) {
        buf_puts(out, ", \"gradient_of\": ");
        buf_json_string(out, of);
    }
    buf_printf(out, ", \"pointer_field\": %d", pointer);
    if (heads >= 0)
        buf_printf(out, ", \"heads_field\": %d", heads);
    buf_puts(out, "}");
}

static void put_ports(const Record *r, Buf *out) {
    const Kernel *k = r->shell;
    buf_puts(out, "  \"ports\": [");
    for (int i = 0; i < k->in.count; i++) {
        buf_puts(out, i ? ",\n" : "\n");
        const char *kind = i >= r->inputs ? "upstream" : k->in.at[i].is_param ? "param" : "input";
        put_port(r, &k->in.at[i], r->of[i], kind, frame_in_ptr(k, i), frame_in_heads(k, i), out);
    }
    for (int i = 0; i < k->out.count; i++) {
        buf_puts(out, i || k->in.count ? ",\n" : "\n");
        const char *of = r->of[k->in.count + i];
        put_port(r, &k->out.at[i], of, of ? "gradient" : "output", frame_out_ptr(k, i), -1, out);
    }
    buf_puts(out, "\n  ],\n");
}

static void put_segment_fields(const Record *r, Buf *out) {
    static const char *const shared[SEGMENT_SHARED] = {
        [SEGMENT_SLOT] = "slot",
        [SEGMENT_SLOTS] = "slot_count",
        [SEGMENT_STATE_IN] = "state_in",
        [SEGMENT_STATE_OUT] = "state_out",
        [SEGMENT_AHEAD] = "ahead",
    };
    static const char *const gradient[GRAD_FIELDS] = {
        [GRAD_COSTATE_IN] = "costate_in",
        [GRAD_COSTATE_OUT] = "costate_out",
        [GRAD_SCRATCH] = "scratch",
        [GRAD_SAVE_EVERY] = "save_every",
        [GRAD_GROUP] = "group",
    };
    bool backward = r->pass == GDR_PASS_BACKWARD;
    for (int i = 0; i < SEGMENT_SHARED; i++)
        buf_printf(out, ", \"%s\": %d", shared[i],
                   backward ? frame_gradient(r->shell, i) : frame_segment(r->shell, i));
    for (int i = SEGMENT_SHARED; i < GRAD_FIELDS && backward; i++)
        buf_printf(out, ", \"%s\": %d", gradient[i], frame_gradient(r->shell, i));
    if (!backward)
        buf_printf(out, ", \"first_chunk\": %d, \"chunk_count\": %d",
                   frame_segment(r->shell, SEGMENT_CHUNK), frame_segment(r->shell, SEGMENT_CHUNKS));
}

static void put_frame(const Record *r, Buf *out) {
    static const char *const field[FRAME_PORTS] = {
        [FRAME_T] = "T",         [FRAME_N] = "N",   [FRAME_H] = "H",
        [FRAME_HF] = "HF",       [FRAME_CU] = "cu", [FRAME_CU_WIDTH] = "cu_width",
        [FRAME_S0] = "S0",       [FRAME_S] = "S",   [FRAME_WS] = "workspace",
        [FRAME_SLOTS] = "slots",
        [FRAME_S0_STRIDE] = "S0_stride",     [FRAME_S0_SLOTS] = "S0_slots",
        [FRAME_S0_COLUMNS] = "S0_columns",   [FRAME_S0_POOL] = "S0_pool",
        [FRAME_S0_ACCEPTED] = "S0_accepted", [FRAME_S_STRIDE] = "S_stride",
        [FRAME_S_SLOTS] = "S_slots",         [FRAME_S_POOL] = "S_pool",
        [FRAME_S_ACCEPTED] = "S_accepted",   [FRAME_S_EACH] = "S_each",
        [FRAME_INDEX_WIDTH] = "index_width", [FRAME_PAST0] = "past0",
        [FRAME_PAST] = "past",               [FRAME_SAVED] = "saved",
    };
    buf_printf(out, "  \"frame\": {\"fields\": %d, \"type\": \"int64\"", record_frame_fields(r));
    for (int i = 0; i < FRAME_PORTS; i++)
        if (field[i])
            buf_printf(out, ", \"%s\": %d", field[i], i);
    if (r->pass == GDR_PASS_BACKWARD)
        buf_printf(out, ", \"dS\": %d, \"dS0\": %d", frame_costate(r->shell),
                   frame_costate(r->shell) + 1);
    if (record_on_gpu(r) && (r->pass == GDR_PASS_BACKWARD || r->algo == ALGO_chunk))
        put_segment_fields(r, out);
    buf_puts(out, "},\n");
}

int record_frame_fields(const Record *r) {
    if (r->pass == GDR_PASS_FORWARD)
        return frame_segment(r->shell, 0) + SEGMENT_FIELDS;
    return record_on_gpu(r) ? frame_sum(r->shell, r->shell->out.count)
                            : frame_costate(r->shell) + 2;
}

static const char *entry_name(EntryKind kind) {
    switch (kind) {
    case ENTRY_scan: return "scan";
    case ENTRY_carry: return "carry";
    case ENTRY_factor: return "factor";
    case ENTRY_chain: return "chain";
    case ENTRY_past: return "past";
    case ENTRY_reverse: return "reverse";
    case ENTRY_grad: return "grad";
    case ENTRY_late: return "late";
    case ENTRY_sums: return "sums";
    case ENTRY_recurrent: return "recurrent";
    case ENTRY_recurrent_grad: return "recurrent_grad";
    case ENTRY_host: return "host";
    }
    BUG("entry kind %d", (int)kind);
}

static void put_entry(const Record *r, const CgEntry *e, Buf *out) {
    int V = r->shell->axis.at[AXIS_V].size;
    buf_printf(out, "    {\"kind\": \"%s\", \"symbol\": ", entry_name(e->kind));
    buf_json_string(out, e->symbol);
    if (e->kind == ENTRY_host) {
        buf_printf(out, ", \"tasks\": \"N*H\", \"scratch_bytes\": %lld, \"scratch_align\": 64}",
                   (long long)e->scratch_bytes);
        return;
    }
    buf_printf(out, ", \"threads\": %d, \"dynamic_shared_bytes\": %d, ", e->threads, e->smem_bytes);
    if (e->kind == ENTRY_grad || e->kind == ENTRY_late || e->kind == ENTRY_sums)
        buf_printf(out, "\"blocks\": \"any\", \"blocks_per_multiprocessor\": %d, "
                        "\"scratch_bytes_per_block\": %lld}",
                   e->per_sm, (long long)e->scratch_bytes);
    else if (e->kind == ENTRY_factor)
        buf_printf(out, "\"blocks\": \"slot_count*%s\"}",
                   r->pass == GDR_PASS_BACKWARD || record_saves_all(r) ? "H" : "HF");
    else if (e->kind == ENTRY_scan)
        buf_puts(out, "\"blocks\": \"stretches*H\"}");
    else if (e->kind == ENTRY_carry || e->kind == ENTRY_past)
        buf_puts(out, "\"blocks\": \"N*H\"}");
    else
        buf_printf(out, "\"v_tile\": %d, \"blocks\": \"N*H*%d\"}", e->v_tile,
                   e->v_tile ? (V + e->v_tile - 1) / e->v_tile : 1);
}

/* Workspace behind the records, each part from the next multiple of 256 bytes on. */
static void put_scan(const CgModule *m, Buf *out) {
    if (m->scan_token_bytes + m->scan_carry_bytes == 0)
        return;
    buf_printf(out,
               ",\n    \"bytes_per_token_and_head\": %lld, \"bytes_per_stretch_and_head\": %lld, "
               "\"stretches_dense\": \"N*ceil(T/%d)\", \"stretches_packed\": \"floor(T/%d)+N\", "
               "\"align\": 256",
               (long long)m->scan_token_bytes, (long long)m->scan_carry_bytes, SCAN_TOKENS,
               SCAN_TOKENS);
}

/* What a forward pass saves, or a backward pass may use. A number of 64 bits is text: readers of JSON
 * would round it. */
static void put_saved(const Record *r, Buf *out) {
    bool backward = r->pass == GDR_PASS_BACKWARD, all = record_saves_all(r);
    int every = record_save_every(r);
    if (!every)
        return;
    buf_printf(out, "  \"saved\": {\"choice\": \"%s\", \"chunk\": %d, \"align\": 256",
               backward ? "any" : all ? "all" : "states", r->module.chunk);
    if (!all)
        buf_printf(out, ", \"slots_per_state\": %d, \"states\": \"floor((slots-1)/%d)\", "
                        "\"bytes_per_state_and_head\": %lld",
                   every, every, (long long)border_bytes(r));
    if (all || backward)
        buf_printf(out, ", \"records\": \"%016llx\", \"bytes_per_slot_and_head\": %lld",
                   (unsigned long long)r->module.records, (long long)r->module.ws_bytes_per_slot_head);
    buf_puts(out, "},\n");
}

int record_entries(const Record *r, EntryKind kind) {
    int n = 0;
    for (int i = 0; i < r->module.entry.count; i++)
        n += r->module.entry.at[i].kind == kind;
    return n;
}

static void put_facts(const Kernel *k, Buf *out) {
    const Facts *f = &k->facts;
    buf_printf(out, "  \"decay\": \"%s\", \"updates\": %d, \"chunkable\": %s", decay_name(f->decay),
               f->slots, f->chunkable ? "true" : "false");
    if (!f->chunkable && f->why_not) {
        buf_puts(out, ", \"why_not_chunkable\": ");
        buf_json_string(out, f->why_not);
    }
    buf_puts(out, ",\n");
}

void manifest_print(const Record *r, Buf *out) {
    const Kernel *k = r->shell;
    buf_puts(out, "{\n  \"variant\": ");
    buf_json_string(out, k->name);
    buf_printf(out, ", \"target\": \"%s\", \"pass\": \"%s\", \"algorithm\": \"%s\", \"compiler\": ",
               r->target, r->pass == GDR_PASS_BACKWARD ? "backward" : "forward",
               r->algo == ALGO_chunk ? "chunk" : "recurrent");
    buf_json_string(out, gdr_version());
    buf_printf(out, ",\n  \"K\": %d, \"V\": %d, \"chunk\": %d,\n", k->axis.at[AXIS_K].size,
               k->axis.at[AXIS_V].size, r->module.chunk > 1 ? r->module.chunk : 0);
    put_facts(k, out);
    buf_printf(out, "  \"state\": {\"shape\": [\"N\", \"H\", \"%s\", \"%s\"], \"dtype\": \"%s\"",
               r->state_vk ? "V" : "K", r->state_vk ? "K" : "V", elem_name(r->state));
    buf_printf(out, ", \"past\": %d},\n", r->module.past);
    put_ports(r, out);
    put_frame(r, out);
    buf_printf(out,
               "  \"workspace\": {\"bytes_per_slot_and_%s\": %lld, "
               "\"slots_dense\": \"N*ceil(T/chunk)\", \"slots_packed\": \"floor(T/chunk)+N\"",
               r->pass == GDR_PASS_BACKWARD ? "head" : "factor_head",
               record_saves_all(r) ? 0LL : (long long)r->module.ws_bytes_per_slot_head);
    put_scan(&r->module, out);
    buf_puts(out, "},\n");
    put_saved(r, out);
    buf_puts(out, "  \"factor_inputs\": [");
    bool any = false;
    for (int i = 0; i < k->in.count; i++) {
        if (!r->factor_reads[i])
            continue;
        buf_puts(out, any ? ", " : "");
        buf_json_string(out, k->in.at[i].name);
        any = true;
    }
    buf_puts(out, "],\n  \"entries\": [");
    for (int i = 0; i < r->module.entry.count; i++) {
        buf_puts(out, i ? ",\n" : "\n");
        put_entry(r, &r->module.entry.at[i], out);
    }
    buf_puts(out, "\n  ],\n");
    if (record_entries(r, ENTRY_chain) > 1)
        buf_puts(out, "  \"choose\": \"one chain entry: that with the least turns * (64 + v_tile), turns = "
                      "ceil(blocks / multiprocessors)\",\n");
    buf_puts(out, "  \"warnings\": [");
    for (int i = 0; i < r->warning.count; i++) {
        buf_puts(out, i ? ", " : "");
        buf_json_string(out, r->warning.at[i]);
    }
    buf_puts(out, "]\n}\n");
}
