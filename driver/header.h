/* What the files of the C header share. header.c writes the frames and all that is launched by rules,
 * header_saved.c what a forward pass on a GPU keeps for a backward pass, header_grad.c and
 * header_queue.c the functions that plan and queue a backward pass on a GPU. */
#ifndef GDR_DRIVER_HEADER_H
#define GDR_DRIVER_HEADER_H

#include "driver/driver.h"

/* The first entry of a kind; NULL: there is none. */
const CgEntry *header_entry(const Record *r, EntryKind kind);

/* header_saved.c: the type of what is saved, where any of the kernels saves it or uses it; what the
 * frame's member says (forward, and NULL where no kernel saves); bytes of it. `name` is the variant's. */
void header_saved_type(const char *name, gdr_kernel *const *kernel, int count, Buf *out);
const char *header_saved_comment(gdr_kernel *const *kernel, int count);
void header_saved_bytes(const char *name, const char *label, const Record *r, Buf *out);
/* Whether a launch of a backward kernel can use what was saved. */
bool header_uses_saved(const Record *r);

/* header_grad.c: what backward passes on a GPU add to the frame, and the functions that plan one. */
void header_gradient_fields(const Kernel *k, Buf *out);
void header_gradient(const char *name, const gdr_kernel *kernel, Buf *out);

/* Texts are templates: $L the label of functions, $F the frame's type, $V the type of what is saved, and
 * numbers by one letter each. */
typedef struct Writer {
    Buf *out;
    const Record *r;
    const char *name, *label;
    const CgEntry *grad, *sums; /* grad: of chunks, or recurrent_grad */
} Writer;
void header_text(const Writer *w, const char *text);
bool header_by_token(const Writer *w);
/* Gradient i of the frame: its member, that of what it is a gradient of, bytes of a row and head. */
const char *header_member(const Writer *w, int i);
const char *header_source(const Writer *w, int i);
long long header_row_bytes(const Writer *w, int i);

/* header_queue.c: the functions that queue one. */
void header_queue(const Writer *w);

#endif
