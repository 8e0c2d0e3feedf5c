/* What a forward pass on a GPU saves for a backward pass, in the C header: its type, which carries all
 * that a backward pass checks before it uses it (runtime/bind.c), and how many bytes it has. */
#include "driver/header.h"

bool header_uses_saved(const Record *r) {
    return r->pass == GDR_PASS_BACKWARD && record_save_every(r) > 0;
}

static bool saves(const Record *r) {
    return r->pass == GDR_PASS_FORWARD && record_save_every(r) > 0;
}

void header_saved_type(const char *name, gdr_kernel *const *kernel, int count, Buf *out) {
    bool any = false;
    for (int i = 0; i < count; i++)
        any |= saves(&kernel[i]->rec) || header_uses_saved(&kernel[i]->rec);
    if (!any)
        return;
    buf_printf(out,
               "/* What a forward pass on a GPU saves for a backward pass: ..._saved says how much, the\n"
               " * caller has the memory, which must stay as it is until the backward pass is done. */\n"
               "typedef struct %s_saved {\n"
               "    int64_t data;     /* its address, a multiple of 256 */\n"
               "    int64_t bytes;\n"
               "    int64_t chunk;    /* tokens a chunk; 0: nothing is saved */\n"
               "    uint64_t records; /* where all is saved a number for what is where; else 0 */\n"
               "} %s_saved;\n\n",
               name, name);
}

const char *header_saved_comment(gdr_kernel *const *kernel, int count) {
    for (int i = 0; i < count; i++)
        if (saves(&kernel[i]->rec))
            return record_saves_all(&kernel[i]->rec)
                       ? "GPU, by chunks: where all that a backward pass works on goes; not 0"
                       : "GPU, by chunks: where states go; 0: not wanted";
    return NULL;
}

void header_saved_bytes(const char *name, const char *label, const Record *r, Buf *out) {
    const CgModule *m = &r->module;
    bool all = record_saves_all(r);
    if (!saves(r))
        return;
    buf_printf(out,
               "/* What a launch with a frame whose T, N, H and cu are set saves, without its address: that goes\n"
               " * here and to the frame's `saved`, before ..._prepare. */\n"
               "static inline %s_saved %s_saved(const %s_frame *f)\n{\n"
               "    %s_saved s = {0, 0, %d, UINT64_C(%llu)};\n"
               "    int64_t slots = f->cu ? f->T / %d + f->N : f->N * ((f->T + %d) / %d);\n",
               name, label, name, name, m->chunk, all ? (unsigned long long)m->records : 0ULL, m->chunk,
               m->chunk - 1, m->chunk);
    if (all)
        buf_printf(out, "    s.bytes = slots * f->H * INT64_C(%lld);\n",
                   (long long)m->ws_bytes_per_slot_head);
    else
        buf_printf(out, "    s.bytes = slots > 0 ? (slots - 1) / %d * f->H * INT64_C(%lld) : 0;\n",
                   record_save_every(r), (long long)border_bytes(r));
    buf_puts(out, "    return s;\n}\n\n");
}
