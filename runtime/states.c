/* Where a forward launch's states lie: S0 and S as they are or as pools, the indices into them, the
 * counts of accepted tokens, and what is remembered beside states. Everything that can be said
 * without running is said here; contents of indices on the CPU alone, since nothing of the GPU's is
 * read.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

#define FAIL(c, ...) ctx_fail((c)->kernel->ctx, GDR_EINPUT, __VA_ARGS__)
#define TRY(call)                    \
    do {                             \
        gdr_status status_ = (call); \
        if (status_)                 \
            return status_;          \
    } while (0)

typedef struct Check {
    const gdr_kernel *kernel;
    const gdr_launch *l;
    const BoundLaunch *b;
    bool look;           /* data are there */
    bool read;           /* and may be read */
    const char *indexed; /* the first index tensor, which the others must be typed like */
    gdr_dtype index_type;
} Check;

static bool recurrent(const Check *c) {
    return c->kernel->rec.algo == ALGO_recurrent;
}

/* shapes --------------------------------------------------------------------------------------- */

static gdr_status check_shape(const Check *c, const char *name, const gdr_tensor *t, int ndim,
                              const int64_t *need) {
    char have[SHAPE_TEXT], want[SHAPE_TEXT];
    if (t->ndim == ndim && !memcmp(t->shape, need, (size_t)ndim * sizeof *need))
        return GDR_OK;
    return FAIL(c, "%s: shape is %s, need %s", name, shape_text(t->ndim, t->shape, have),
                shape_text(ndim, need, want));
}

/* [states,H,K,V] in the kernel's layout; `states` < 0: however many there are. */
static gdr_status check_state(const Check *c, const char *name, const gdr_tensor *t,
                              int64_t states) {
    const Record *r = &c->kernel->rec;
    int64_t K = r->shell->axis.at[AXIS_K].size, V = r->shell->axis.at[AXIS_V].size;
    int64_t need[4] = {states, c->b->H, r->state_vk ? V : K, r->state_vk ? K : V};
    TRY(tensor_check(c->kernel, name, t, c->look, states < 0));
    TRY(tensor_check_type(c->kernel, name, t, dtype_of_elem(r->state)));
    if (states < 0 && t->ndim == 4)
        need[0] = t->shape[0];
    return check_shape(c, name, t, 4, need);
}

/* A vector for the sequences, or with `columns` perhaps a matrix. */
static gdr_status check_index(Check *c, const char *name, const gdr_tensor *t, bool columns) {
    char text[SHAPE_TEXT];
    TRY(tensor_check(c->kernel, name, t, c->look, false));
    if (t->dtype != GDR_I32 && t->dtype != GDR_I64)
        return FAIL(c, "%s: data type is %s, need i32 or i64", name, gdr_dtype_name(t->dtype));
    if (c->indexed && t->dtype != c->index_type)
        return FAIL(c, "%s: data type is %s, but that of %s is %s", name, gdr_dtype_name(t->dtype),
                    c->indexed, gdr_dtype_name(c->index_type));
    c->indexed = name;
    c->index_type = t->dtype;
    bool ok = t->ndim >= 1 && t->ndim <= (columns ? 2 : 1) && t->shape[0] == c->b->N;
    if (!ok || (t->ndim == 2 && t->shape[1] < 1))
        return FAIL(c, "%s: shape is %s, need [%lld]%s", name, shape_text(t->ndim, t->shape, text),
                    (long long)c->b->N, columns ? " or [N,M]" : "");
    return GDR_OK;
}

/* contents ------------------------------------------------------------------------------------- */

static gdr_status check_slots(const Check *c, const char *name, const gdr_tensor *t, int64_t pool) {
    int64_t n = c->b->N * (t->ndim == 2 ? t->shape[1] : 1);
    for (int64_t i = 0; c->read && i < n; i++)
        if (tensor_integer(t, i) >= pool)
            return FAIL(c, "%s: slot %lld at entry %lld, the pool has %lld", name,
                        (long long)tensor_integer(t, i), (long long)i, (long long)pool);
    return GDR_OK;
}

static int64_t tokens_of(const Check *c, int64_t n) {
    const gdr_tensor *cu = c->l->cu_seqlens;
    return cu ? tensor_integer(cu, n + 1) - tensor_integer(cu, n) : c->b->T;
}

static gdr_status check_counts(const Check *c, const char *name, const gdr_tensor *t, bool final,
                               int64_t most) {
    for (int64_t n = 0; c->read && n < c->b->N; n++) {
        int64_t x = tensor_integer(t, n), limit = final ? tokens_of(c, n) : most;
        if (x < 0 || x > limit)
            return FAIL(c, "%s: %lld at entry %lld, where there are %lld%s", name, (long long)x,
                        (long long)n, (long long)limit, final ? " tokens" : " columns");
        /* A row of nothing but negative slots is one to be skipped. */
        if (!final && x == 0 && tensor_integer(c->l->S0_slots, n * most) >= 0)
            return FAIL(c, "%s: 0 at entry %lld, columns count from 1", name, (long long)n);
    }
    return GDR_OK;
}

/* Every token's state needs a place. */
static gdr_status check_columns(const Check *c, const char *name, int64_t columns) {
    bool packed = c->l->cu_seqlens != NULL;
    for (int64_t n = 0; n < (packed && !c->read ? 0 : packed ? c->b->N : 1); n++)
        if (tokens_of(c, n) > columns)
            return FAIL(c, "%s: room for the states after %lld tokens, there are %lld", name,
                        (long long)columns, (long long)tokens_of(c, n));
    return GDR_OK;
}

static gdr_status needs_recurrent(const Check *c, const char *name) {
    return recurrent(c) ? GDR_OK
                        : FAIL(c,
                               "%s: states after single tokens are of the recurrent algorithm, "
                               "this kernel works by chunks",
                               name);
}

/* the two states ------------------------------------------------------------------------------- */

static gdr_status check_first(Check *c) {
    const gdr_launch *l = c->l;
    if (!l->S0 && (l->S0_slots || l->S0_accepted))
        return FAIL(c, "%s: needs S0", l->S0_slots ? "S0_slots" : "S0_accepted");
    if (l->S0)
        TRY(check_state(c, "S0", l->S0, l->S0_slots ? -1 : c->b->N));
    if (l->S0_slots) {
        TRY(check_index(c, "S0_slots", l->S0_slots, true));
        TRY(check_slots(c, "S0_slots", l->S0_slots, l->S0->shape[0]));
    }
    bool columns = l->S0_slots && l->S0_slots->ndim == 2;
    if (columns != (l->S0_accepted != NULL))
        return FAIL(c, columns ? "S0_accepted: missing, S0_slots is [N,M]"
                               : "S0_accepted: needs S0_slots of [N,M]");
    if (!columns)
        return GDR_OK;
    TRY(check_index(c, "S0_accepted", l->S0_accepted, false));
    return check_counts(c, "S0_accepted", l->S0_accepted, false, l->S0_slots->shape[1]);
}

/* [N,M,H,K,V]: a state for every token. */
static gdr_status check_each(const Check *c, const gdr_tensor *t) {
    if (c->l->S_slots)
        return FAIL(c, "S_slots: S is [N,M,H,K,V], a state for every token, and no pool");
    TRY(tensor_check(c->kernel, "S", t, c->look, false));
    gdr_tensor one = *t;
    int64_t shape[4] = {t->shape[0], t->shape[2], t->shape[3], t->shape[4]};
    one.ndim = 4;
    one.shape = shape;
    one.strides = NULL;
    TRY(check_state(c, "S", &one, c->b->N));
    TRY(needs_recurrent(c, "S"));
    return check_columns(c, "S", t->shape[1]);
}

static gdr_status check_last(Check *c) {
    const gdr_launch *l = c->l;
    if (!l->S && (l->S_slots || l->S_accepted))
        return FAIL(c, "%s: needs S", l->S_slots ? "S_slots" : "S_accepted");
    bool each = l->S && l->S->ndim == 5;
    if (each)
        TRY(check_each(c, l->S));
    else if (l->S)
        TRY(check_state(c, "S", l->S, l->S_slots ? -1 : c->b->N));
    if (l->S_slots) {
        TRY(check_index(c, "S_slots", l->S_slots, true));
        TRY(check_slots(c, "S_slots", l->S_slots, l->S->shape[0]));
        each = l->S_slots->ndim == 2;
        TRY(each ? needs_recurrent(c, "S_slots") : GDR_OK);
        TRY(each ? check_columns(c, "S_slots", l->S_slots->shape[1]) : GDR_OK);
    }
    if (!l->S_accepted)
        return GDR_OK;
    if (each)
        return FAIL(c, "S_accepted: S has the states after all tokens");
    TRY(needs_recurrent(c, "S_accepted"));
    TRY(check_index(c, "S_accepted", l->S_accepted, false));
    return check_counts(c, "S_accepted", l->S_accepted, true, 0);
}

/* Bytes from state to state; 0: dense. */
static int64_t stride_of(const gdr_tensor *t) {
    bool pool = t && t->ndim == 4 && t->strides && t->shape[0] > 1;
    return pool ? t->strides[0] * (int64_t)gdr_dtype_size(t->dtype) : 0;
}

/* who writes what ------------------------------------------------------------------------------ */

static bool writes_each(const gdr_launch *l) {
    return l->S_slots ? l->S_slots->ndim == 2 : l->S->ndim == 5;
}

static int64_t columns_of(const gdr_launch *l) {
    return !writes_each(l) ? 1 : l->S_slots ? l->S_slots->shape[1] : l->S->shape[1];
}

/* The state that sequence n starts from; negative: it is skipped. */
static int64_t start_of(const gdr_launch *l, int64_t n) {
    if (!l->S0_slots)
        return n;
    int64_t columns = l->S0_slots->ndim == 2 ? l->S0_slots->shape[1] : 1;
    int64_t column = l->S0_accepted ? tensor_integer(l->S0_accepted, n) - 1 : 0;
    return tensor_integer(l->S0_slots, n * columns + (column > 0 ? column : 0));
}

/* Of each state in S the number of the entry that writes it, from 1. */
static gdr_status mark_writers(const Check *c, int64_t *writer) {
    const gdr_launch *l = c->l;
    int64_t columns = columns_of(l);
    bool each = writes_each(l);
    for (int64_t n = 0; n < c->b->N; n++)
        for (int64_t t = 0, end = each ? tokens_of(c, n) : 1; t < end && start_of(l, n) >= 0; t++) {
            int64_t entry = n * columns + t, slot = l->S_slots ? tensor_integer(l->S_slots, entry) : entry;
            if (slot >= 0 && writer[slot])
                return FAIL(c, "S_slots: entries %lld and %lld both write slot %lld",
                            (long long)writer[slot] - 1, (long long)entry, (long long)slot);
            if (slot >= 0)
                writer[slot] = entry + 1;
        }
    return GDR_OK;
}

static gdr_status check_starts(const Check *c, const int64_t *writer, int64_t states) {
    const gdr_launch *l = c->l;
    int64_t columns = columns_of(l);
    bool skips = l->S_slots && l->S_slots->ndim == 1;
    for (int64_t n = 0; n < c->b->N; n++) {
        int64_t slot = start_of(l, n);
        if (slot < 0 || slot >= states || (skips && tensor_integer(l->S_slots, n) < 0) || !writer[slot])
            continue;
        int64_t other = (writer[slot] - 1) / columns;
        if (other != n)
            return FAIL(c, "%s: sequence %lld writes state %lld, from which sequence %lld starts",
                        l->S_slots ? "S_slots" : "S", (long long)other, (long long)slot, (long long)n);
    }
    return GDR_OK;
}

/* What came of two that meet in one state would depend on who was first. */
static gdr_status check_meetings(const Check *c) {
    const gdr_launch *l = c->l;
    if (!c->read || !l->S || (!l->S0_slots && !l->S_slots))
        return GDR_OK;
    int64_t states = l->S_slots ? l->S->shape[0] : c->b->N * columns_of(l);
    int64_t *writer = calloc((size_t)states + 1, sizeof *writer);
    if (!writer)
        return ctx_fail(c->kernel->ctx, GDR_ENOMEM, "out of memory");
    gdr_status status = mark_writers(c, writer);
    if (!status && l->S0 && l->S0->data == l->S->data && stride_of(l->S0) == stride_of(l->S))
        status = check_starts(c, writer, states);
    free(writer);
    return status;
}

/* As many records as there are states beside them. */
static gdr_status check_past(const Check *c, const char *name, const gdr_tensor *t,
                             const gdr_tensor *state, const gdr_tensor *slots) {
    if (!t)
        return GDR_OK;
    int past = c->kernel->rec.module.past;
    if (!past)
        return FAIL(c, "%s: the variant %s remembers nothing, it has neither prev nor cumsum", name,
                    c->kernel->rec.shell->name);
    if (slots && !state)
        return FAIL(c, "%s: there are slots but no states", name);
    bool each = state && state->ndim == 5;
    const int64_t need[4] = {state ? state->shape[0] : c->b->N, each ? state->shape[1] : c->b->H,
                             each ? c->b->H : past, past};
    TRY(tensor_check(c->kernel, name, t, c->look, false));
    TRY(tensor_check_type(c->kernel, name, t, GDR_F32));
    return check_shape(c, name, t, each ? 4 : 3, need);
}

gdr_status states_check(const gdr_kernel *kernel, const gdr_launch *launch, bool look,
                        const BoundLaunch *b) {
    bool host = !kernel->rec.target || strcmp(kernel->rec.target, "host") == 0;
    Check c = {.kernel = kernel, .l = launch, .b = b, .look = look, .read = look && host};
    if (kernel->rec.pass == GDR_PASS_BACKWARD &&
        (launch->S0_slots || launch->S0_accepted || launch->S_slots || launch->S_accepted ||
         launch->past0 || launch->past))
        return FAIL(&c, "a backward pass has no slots and no past: in it prev and cumsum start at zero");
    if (launch->past0 && launch->saved)
        return FAIL(&c, "past0: what is saved is for a backward pass, in which prev and cumsum start at "
                        "zero");
    TRY(check_first(&c));
    TRY(check_last(&c));
    TRY(check_meetings(&c));
    TRY(check_past(&c, "past0", launch->past0, launch->S0, launch->S0_slots));
    return check_past(&c, "past", launch->past, launch->S, launch->S_slots);
}

/* the frame ------------------------------------------------------------------------------------ */

static int64_t address(const gdr_tensor *t) {
    return t ? (int64_t)(uintptr_t)t->data : 0;
}

void states_fill_frame(const gdr_launch *l, int64_t *f) {
    const gdr_tensor *index = l->S0_slots ? l->S0_slots : l->S_slots ? l->S_slots : l->S_accepted;
    bool each = l->S_slots && l->S_slots->ndim == 2;
    f[FRAME_S0] = address(l->S0);
    f[FRAME_S0_STRIDE] = stride_of(l->S0);
    f[FRAME_S0_SLOTS] = address(l->S0_slots);
    f[FRAME_S0_COLUMNS] = l->S0_slots && l->S0_slots->ndim == 2 ? l->S0_slots->shape[1] : 1;
    f[FRAME_S0_POOL] = l->S0_slots ? l->S0->shape[0] : 0;
    f[FRAME_S0_ACCEPTED] = address(l->S0_accepted);
    f[FRAME_S] = address(l->S);
    f[FRAME_S_STRIDE] = stride_of(l->S);
    f[FRAME_S_SLOTS] = address(l->S_slots);
    f[FRAME_S_POOL] = l->S_slots ? l->S->shape[0] : 0;
    f[FRAME_S_ACCEPTED] = address(l->S_accepted);
    f[FRAME_S_EACH] = each ? l->S_slots->shape[1] : l->S && l->S->ndim == 5 ? l->S->shape[1] : 0;
    f[FRAME_INDEX_WIDTH] = index && index->dtype == GDR_I32 ? 4 : 8;
    f[FRAME_PAST0] = address(l->past0);
    f[FRAME_PAST] = address(l->past);
}
