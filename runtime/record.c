/* A compiled kernel as bytes: what a cache entry holds, so that a hit needs neither the front end
 * nor the passes. One function walks the record in order and either writes or reads each field, so
 * the two directions cannot disagree.
 *
 * Reading trusts nothing: every length is checked against what is left, every count and enum
 * against its range; the first contradiction makes the whole record unreadable.
 */
#include "runtime/runtime.h"

#include <string.h>

typedef struct Tape {
    Buf *out;     /* writing when not NULL */
    Arena *arena; /* reading */
    const uint8_t *at, *end;
    bool bad;
} Tape;

static void tape_bytes(Tape *t, void *p, size_t n) {
    if (t->out) {
        buf_put(t->out, p, n);
    } else if (t->bad || (size_t)(t->end - t->at) < n) {
        t->bad = true;
        memset(p, 0, n);
    } else {
        memcpy(p, t->at, n);
        t->at += n;
    }
}

static void tape_i64(Tape *t, int64_t *x) {
    tape_bytes(t, x, sizeof *x);
}
static void tape_double(Tape *t, double *x) {
    tape_bytes(t, x, sizeof *x);
}

/* An int within [lo, hi]. */
static void tape_int(Tape *t, int *x, int lo, int hi) {
    int64_t wide = *x;
    tape_i64(t, &wide);
    if (wide < lo || wide > hi) {
        t->bad = true;
        wide = lo;
    }
    *x = (int)wide;
}

static void tape_bool(Tape *t, bool *x) {
    int i = *x;
    tape_int(t, &i, 0, 1);
    *x = i;
}

/* Bytes with their length; read ones get a NUL behind. */
static void tape_blob(Tape *t, const void **p, size_t *len) {
    int64_t n = t->out ? (*p ? (int64_t)*len : -1) : 0;
    tape_i64(t, &n);
    if (t->out) {
        if (n > 0)
            buf_put(t->out, *p, (size_t)n);
        return;
    }
    *p = NULL;
    *len = 0;
    if (t->bad || n < -1 || n > t->end - t->at)
        t->bad = true;
    else if (n >= 0) {
        *p = arena_strndup(t->arena, (const char *)t->at, (size_t)n);
        *len = (size_t)n;
        t->at += n;
    }
}

static void tape_text(Tape *t, const char **s) {
    const void *p = *s;
    size_t len = *s ? strlen(*s) : 0;
    tape_blob(t, &p, &len);
    *s = p;
}

/* A name that must be there. */
static void tape_name(Tape *t, const char **s) {
    tape_text(t, s);
    if (!*s) {
        t->bad = true;
        *s = "";
    }
}

/* A vector's length; when reading, that many zeroed items are pushed. */
#define TAPE_COUNT(t, vec, T, limit)             \
    do {                                         \
        int n_ = (vec)->count;                   \
        tape_int((t), &n_, 0, (limit));          \
        while (!(t)->out && (vec)->count < n_)   \
            VEC_PUSH((t)->arena, (vec), (T){0}); \
    } while (0)

enum { AXES_MAX = 127, PORTS_MAX = 4096, ENTRIES_MAX = 64, SIZE_MAX_AXIS = 1 << 24 };

static void tape_port(Tape *t, Port *p, int axes) {
    int rank = p->shape.rank, elem = p->elem;
    tape_name(t, &p->name);
    tape_int(t, &rank, 0, 3);
    for (int i = 0; i < rank; i++) {
        int axis = p->shape.axis[i];
        tape_int(t, &axis, 0, axes - 1);
        p->shape.axis[i] = (int8_t)axis;
    }
    p->shape.rank = (int8_t)rank;
    tape_bool(t, &p->is_param);
    tape_double(t, &p->lo);
    tape_double(t, &p->hi);
    tape_int(t, &elem, ELEM_f32, ELEM_f64);
    p->elem = (Elem)elem;
}

static void tape_shell(Tape *t, Kernel *k) {
    tape_name(t, &k->name);
    tape_text(t, &k->state_name);
    TAPE_COUNT(t, &k->axis, Axis, AXES_MAX);
    if (k->axis.count < AXIS_user)
        t->bad = true;
    for (int i = 0; i < k->axis.count; i++) {
        tape_name(t, &k->axis.at[i].name);
        tape_int(t, &k->axis.at[i].size, 0, SIZE_MAX_AXIS);
    }
    TAPE_COUNT(t, &k->in, Port, PORTS_MAX);
    TAPE_COUNT(t, &k->out, Port, PORTS_MAX);
    for (int i = 0; i < k->in.count && !t->bad; i++)
        tape_port(t, &k->in.at[i], k->axis.count);
    for (int i = 0; i < k->out.count && !t->bad; i++)
        tape_port(t, &k->out.at[i], k->axis.count);
    Facts *f = &k->facts;
    int decay = f->decay;
    tape_int(t, &decay, DECAY_none, DECAY_mixed);
    f->decay = (DecayClass)decay;
    tape_bool(t, &f->known);
    tape_bool(t, &f->decay_constant);
    tape_bool(t, &f->erases);
    tape_bool(t, &f->reads_before_decay);
    tape_bool(t, &f->chunkable);
    tape_text(t, &f->why_not);
    tape_int(t, &f->slots, 0, 1 << 16);
}

static void tape_module(Tape *t, CgModule *m) {
    const void *object = m->object, *text = m->text;
    tape_name(t, &m->target);
    tape_blob(t, &text, &m->text_len);
    tape_blob(t, &object, &m->object_len);
    m->text = (char *)(uintptr_t)text;
    m->object = (void *)(uintptr_t)object;
    TAPE_COUNT(t, &m->entry, CgEntry, ENTRIES_MAX);
    for (int i = 0; i < m->entry.count && !t->bad; i++) {
        CgEntry *e = &m->entry.at[i];
        int kind = e->kind;
        tape_int(t, &kind, ENTRY_scan, ENTRY_host);
        e->kind = (EntryKind)kind;
        tape_name(t, &e->symbol);
        tape_int(t, &e->threads, 0, 1024);
        tape_int(t, &e->smem_bytes, 0, 1 << 20);
        tape_int(t, &e->v_tile, 0, SIZE_MAX_AXIS);
        tape_int(t, &e->per_sm, 0, 64);
        tape_i64(t, &e->scratch_bytes);
        if (e->scratch_bytes < 0)
            t->bad = true;
    }
    tape_i64(t, &m->ws_bytes_per_slot_head);
    tape_bytes(t, &m->records, sizeof m->records);
    tape_i64(t, &m->scan_token_bytes);
    tape_i64(t, &m->scan_carry_bytes);
    tape_int(t, &m->chunk, 0, SIZE_MAX_AXIS);
    tape_int(t, &m->past, 0, SIZE_MAX_AXIS);
    if (m->ws_bytes_per_slot_head < 0 || m->scan_token_bytes < 0 || m->scan_carry_bytes < 0)
        t->bad = true;
}

/* Every gradient is that of a port; the gradients of inputs of one that is there. */
static void tape_gradients(Tape *t, Record *r) {
    const Kernel *k = r->shell;
    int pass = r->pass, save = r->save, ports = k->in.count + k->out.count;
    tape_int(t, &pass, GDR_PASS_FORWARD, GDR_PASS_BACKWARD);
    r->pass = (gdr_pass)pass;
    tape_int(t, &save, GDR_SAVE_NOTHING, GDR_SAVE_ALL);
    r->save = (gdr_save)save;
    tape_int(t, &r->inputs, 0, k->in.count);
    if (!t->out)
        r->of = NEW_ARRAY(t->arena, const char *, ports + 1);
    if (r->pass == GDR_PASS_FORWARD && r->inputs != k->in.count)
        t->bad = true;
    for (int i = r->inputs; r->pass == GDR_PASS_BACKWARD && i < ports && !t->bad; i++) {
        tape_name(t, &r->of[i]);
        int port = i < k->in.count ? 0 : kernel_find_port(k, r->of[i], false);
        if (port < 0 || port >= r->inputs)
            t->bad = t->bad || i >= k->in.count;
    }
}

static void tape_record(Tape *t, Record *r) {
    int algo = r->algo, state = r->state;
    tape_shell(t, r->shell);
    if (!t->bad)
        tape_module(t, &r->module);
    tape_int(t, &algo, ALGO_chunk, ALGO_recurrent);
    r->algo = (Algo)algo;
    tape_int(t, &state, ELEM_f32, ELEM_f16);
    r->state = (Elem)state;
    tape_bool(t, &r->state_vk);
    tape_name(t, &r->target);
    tape_gradients(t, r);
    if (!t->out)
        r->factor_reads = NEW_ARRAY(t->arena, bool, r->shell->in.count + 1);
    for (int i = 0; i < r->shell->in.count; i++)
        tape_bool(t, &r->factor_reads[i]);
    TAPE_COUNT(t, &r->cubin, Image, ENTRIES_MAX);
    for (int i = 0; i < r->cubin.count && !t->bad; i++)
        tape_blob(t, &r->cubin.at[i].bytes, &r->cubin.at[i].len);
    TAPE_COUNT(t, &r->warning, const char *, 1024);
    for (int i = 0; i < r->warning.count && !t->bad; i++)
        tape_name(t, &r->warning.at[i]);
}

void record_write(const Record *r, Buf *out) {
    Tape t = {.out = out};
    tape_record(&t, (Record *)(uintptr_t)r); /* writing changes nothing */
}

bool record_read(Arena *arena, const void *bytes, size_t len, Record *r) {
    Tape t = {.arena = arena, .at = bytes, .end = (const uint8_t *)bytes + len};
    *r = (Record){.shell = NEW(arena, Kernel)};
    r->shell->arena = arena;
    tape_record(&t, r);
    return !t.bad && t.at == t.end;
}
