/* The memory that a launch needs besides its tensors, and how a pass on a GPU is cut into segments so that it
 * needs no more than that.
 *
 *     CPU, backward   states of all chunks | a token of zeros | gradients of single heads
 *     GPU, forward    records of a segment, unless all are saved | values made ahead: of all tokens, of
 *                     all stretches | states at the borders of segments
 *     GPU, backward   records of a segment, unless all were saved | scratch of the grad kernel's blocks | values made ahead, of
 *                     all tokens and stretches | states at the borders of segments, a costate for either
 *                     direction of the swing | a token of zeros | parts of sums: inputs' for a segment's
 *                     tokens, params' for all chunks
 *
 * Segments of a backward pass. Slots 0 .. slots-1 fall into groups of `group` slots, a group into pieces of
 * `piece`. At a border between pieces a sequence may go on: its state is made by an extra pass over the pieces
 * before, or was saved by the forward pass. Between groups none goes on, so that costs nothing. Dense
 * batches have borders of their own:
 *
 *     a piece holds several sequences     pieces of whole sequences, one group
 *     a sequence takes several pieces     a group a sequence; with saved states one group, and pieces
 *                                         that end where states were saved; anywhere when all was saved
 *
 * Packed ones are one group: only the device knows where their sequences are. Gradients that wait for
 * those of later tokens take one piece for everything.
 *
 * Segments of a forward pass: pieces of one group, all but the last as long as memory allows. What to cut
 * was weighed by the chain, which walks a sequence's chunks one after another while other sequences and
 * heads are walked side by side:
 *
 *     whole sequences   nothing crosses; but the pieces' chains come one behind the other, so a piece must
 *                       have enough of them to fill the GPU
 *     windows           the same chunks of every sequence: chains as without a cut. Every sequence's
 *                       state crosses, as much as a record or two, in one place that it is read from and
 *                       left in; so a window of one sequence is the range that takes one slot less
 *     ranges            any slots: for a single sequence, for packed ones (whose lengths only the device
 *                       knows), and for memory that is too small for anything else. States at the ends take
 *                       two places by turns: the sequence that comes in may be another than the one that
 *                       goes on
 *
 * The first that applies is taken. A pass that saves states is part of training, so its budget is a part of
 * what training holds; one that does not is not cut unless the caller's workspace is too small.
 */
#include "runtime/runtime.h"

/* A record is a block's work: with fewer a multiprocessor waits for memory half of the time. */
enum { GPU_ALIGN = 256, RECORDS_A_PROCESSOR = 4 };
/* Of the bytes of all inputs, outputs and gradients, in percent: a training step's peak is below 1.35 times
 * these bytes. The backward pass takes a little less than the forward pass asks for, whether that needs it or
 * not: so a pool, or a caller's allocator, gives out the same memory again, and never both. */
enum { BUDGET = 30, FORWARD_BUDGET = 31 };

/* laying out ----------------------------------------------------------------------------------- */

typedef struct Layout {
    int64_t at, align;
    bool over; /* more than 64 bits */
} Layout;

/* The place of a * b * c bytes behind what is laid out. */
static size_t place(Layout *l, int64_t a, int64_t b, int64_t c) {
    int64_t bytes, start = l->at;
    l->over = l->over || __builtin_mul_overflow(a, b, &bytes) ||
              __builtin_mul_overflow(bytes, c, &bytes) ||
              __builtin_add_overflow(bytes, l->align - 1, &bytes) ||
              __builtin_add_overflow(l->at, bytes / l->align * l->align, &l->at);
    return (size_t)start;
}

static int64_t divide_up(int64_t x, int64_t y) {
    return x / y + (x % y != 0);
}

static int64_t port_bytes(const Record *r, const Port *p) {
    return shape_elements(r->shell, p->shape) * elem_size(p->elem);
}

/* The widest row of an upstream gradient that is not given. */
static int64_t zeros_bytes(const Record *r, const BoundLaunch *b) {
    int64_t widest = 0;
    for (int i = r->inputs; i < r->shell->in.count; i++)
        if (!b->tensor[i] && port_bytes(r, &r->shell->in.at[i]) > widest)
            widest = port_bytes(r, &r->shell->in.at[i]);
    return widest;
}

/* Rows and params of gradients that are summed afterwards. */
static void place_parts(const Record *r, BoundLaunch *b, Layout *l, int64_t rows, int64_t params) {
    for (int i = 0; i < r->shell->out.count; i++) {
        const Port *p = &r->shell->out.at[i];
        b->partial[i] = SIZE_MAX;
        if (gradient_is_partial(r, b, i))
            b->partial[i] = place(l, p->is_param ? params : rows, gradient_heads(r, b, i),
                                  port_bytes(r, p));
    }
}

static bool finish(const Layout *l, BoundLaunch *b) {
    b->workspace = (size_t)l->at;
    return !l->over;
}

/* segments ------------------------------------------------------------------------------------- */

int64_t chunks_a_sequence(const Record *r, const BoundLaunch *b) {
    return divide_up(b->T, r->module.chunk);
}

/* Rows that a piece's tokens lie in. Packed sequences begin anywhere: slot j of sequence n begins at
 * row C * (j - n) or up to C - 1 behind it, and n is only known to be one of N. */
static void piece_rows(const Record *r, const BoundLaunch *b, int64_t first, int64_t count,
                       int64_t *lo, int64_t *hi) {
    int64_t C = r->module.chunk, last = first + count - 1;
    if (b->packed) {
        *lo = C * (first - (b->N - 1));
        *hi = C * (last + 2);
        *lo = *lo < 0 ? 0 : *lo;
        *hi = *hi > b->T ? b->T : *hi;
        return;
    }
    int64_t each = chunks_a_sequence(r, b), end = (last % each + 1) * C;
    *lo = first / each * b->T + first % each * C;
    *hi = last / each * b->T + (end < b->T ? end : b->T);
}

/* The most rows that any piece has. */
static int64_t most_rows(const Record *r, const BoundLaunch *b) {
    int64_t C = r->module.chunk, rows = b->B * b->T;
    int64_t most = (b->seg.piece + (b->packed ? b->N : 0)) * C;
    return b->seg.count == 1 || most > rows ? rows : most;
}

/* Whether gradients wait for those of later tokens. */
static bool has_late(const Record *r) {
    for (int i = 0; i < r->module.entry.count; i++)
        if (r->module.entry.at[i].kind == ENTRY_late)
            return true;
    return false;
}

/* Pieces of at most `most` slots; without any slot there is one, of none. */
static void cut(const Record *r, BoundLaunch *b, int64_t most) {
    Segments *s = &b->seg;
    int64_t every = b->saved && !b->all ? b->save_every : 1, each = b->packed ? 0 : chunks_a_sequence(r, b);
    if (!b->slots)
        return;
    s->group = b->slots;
    s->use_saved = false;
    if (most >= b->slots) {
        s->piece = b->slots;
    } else if (each && most >= each) {
        int64_t pieces = divide_up(b->N, most / each);
        s->piece = divide_up(b->N, pieces) * each;
    } else if (b->saved && most >= every) {
        int64_t pieces = divide_up(b->slots, most / every * every);
        s->piece = divide_up(divide_up(b->slots, pieces), every) * every;
        s->use_saved = true;
    } else {
        s->group = each ? each : b->slots;
        s->piece = divide_up(s->group, divide_up(s->group, most));
    }
    s->pieces = divide_up(s->group, s->piece);
    s->count = s->pieces * divide_up(b->slots, s->group);
    s->crossed = s->pieces > 1 && !(each && s->piece % each == 0);
}

void segment_at(const Record *r, const BoundLaunch *b, int64_t i, Segment *out) {
    const Segments *s = &b->seg;
    int64_t group = i / s->pieces, piece = i % s->pieces;
    int64_t left = s->group - piece * s->piece;
    *out = (Segment){.first = group * s->group + piece * s->piece,
                     .slots = left < s->piece ? left : s->piece};
    if (out->slots > 0)
        piece_rows(r, b, out->first, out->slots, &out->row, &out->end_row);
}

/* Values made ahead: codegen.h at SCAN_TOKENS. */
static bool place_scan(const Record *r, const BoundLaunch *b, Layout *l) {
    int64_t tokens, most;
    if (__builtin_mul_overflow(b->B, b->T, &tokens) ||
        __builtin_mul_overflow(b->N, divide_up(b->T, SCAN_TOKENS) + 1, &most))
        return false;
    place(l, tokens, b->H, r->module.scan_token_bytes);
    place(l, frame_slots(b->T, b->N, b->packed, SCAN_TOKENS), b->H, r->module.scan_carry_bytes);
    return true;
}

/* The layout with pieces of at most `most` slots. */
static bool lay_out(const Record *r, BoundLaunch *b, int64_t most) {
    Layout l = {.align = GPU_ALIGN};
    int64_t state = border_bytes(r), tasks;
    cut(r, b, most);
    place(&l, b->all ? 0 : b->seg.piece, b->H, r->module.ws_bytes_per_slot_head);
    b->grad_blocks = 0;
    for (int i = 0; i < r->module.entry.count && !l.over; i++) {
        const CgEntry *e = &r->module.entry.at[i];
        if (e->kind == ENTRY_recurrent_grad)
            b->scratch = place(&l, b->N, b->H, e->scratch_bytes);
        if (e->kind != ENTRY_grad)
            continue;
        l.over = __builtin_mul_overflow(b->seg.piece, b->H / b->group, &tasks);
        b->grad_blocks = (int64_t)b->processors * e->per_sm;
        b->grad_blocks = tasks < b->grad_blocks ? tasks : b->grad_blocks;
        b->scratch = place(&l, b->grad_blocks, e->scratch_bytes, 1);
    }
    b->ahead = (size_t)l.at;
    if (!place_scan(r, b, &l))
        l.over = true;
    b->states = place(&l, b->seg.crossed && !b->seg.use_saved ? b->seg.pieces - 1 : 0, b->H, state);
    b->costates = place(&l, b->seg.crossed ? 2 : 0, b->H, state);
    b->zeros_bytes = (size_t)zeros_bytes(r, b);
    b->zeros = place(&l, 1, 1, (int64_t)b->zeros_bytes);
    place_parts(r, b, &l, most_rows(r, b), b->slots);
    return finish(&l, b);
}

/* The layout with the longest pieces, of `least` slots or more, that stays within `bytes`. False: there
 * is none, then it is the smallest layout; b->workspace is 0 when sizes overflow. */
static bool fit(const Record *r, BoundLaunch *b, int64_t least, size_t bytes) {
    size_t fewest = SIZE_MAX;
    int64_t at_fewest = least;
    for (int64_t most = b->slots; most >= least && most > 0; most = b->seg.piece - 1) {
        bool ok = lay_out(r, b, most);
        if (ok && b->workspace <= bytes)
            return true;
        if (ok && b->workspace < fewest) {
            fewest = b->workspace;
            at_fewest = most;
        }
    }
    if (!lay_out(r, b, at_fewest))
        b->workspace = 0;
    return false;
}

static double tensor_bytes(const gdr_tensor *t) {
    double n = t ? (double)gdr_dtype_size(t->dtype) : 0;
    for (int i = 0; t && i < t->ndim; i++)
        n *= (double)t->shape[i];
    return n;
}

/* Of what any backward pass reads and writes, and of the outputs that gradients came to. */
static double traffic(const Record *r, const BoundLaunch *b, const gdr_launch *l) {
    double bytes = tensor_bytes(l->S0) + tensor_bytes(l->dS) + tensor_bytes(l->dS0);
    for (int i = 0; i < r->shell->in.count + r->shell->out.count; i++)
        bytes += tensor_bytes(b->tensor[i]);
    for (int i = r->inputs; i < r->shell->in.count; i++)
        bytes += (double)b->B * (double)b->T * (double)(b->H * port_bytes(r, &r->shell->in.at[i]));
    return bytes;
}

static bool plan_segments(const Record *r, BoundLaunch *b, const gdr_launch *l, BindFor what) {
    if (b->slots == 0 || b->H == 0)
        return lay_out(r, b, 1);
    if (r->algo != ALGO_chunk) /* all of a sequence is one block's */
        return lay_out(r, b, b->slots);
    if (has_late(r))
        return lay_out(r, b, b->slots);
    if (what == BIND_least || (what == BIND_launch && l->workspace))
        return fit(r, b, 1, what == BIND_launch ? l->workspace_bytes : 0) || b->workspace;
    double states = b->saved && !b->all ? (double)b->saved_bytes : 0;
    double budget = traffic(r, b, l) * BUDGET / 100 - states;
    if (b->all && lay_out(r, b, b->slots)) /* shorter pieces take less for sums alone */
        budget += (double)b->states;
    int64_t least = divide_up(RECORDS_A_PROCESSOR * b->group * b->processors, b->H);
    least = least < 1 ? 1 : least > b->slots ? b->slots : least;
    return fit(r, b, least, budget > 0 ? (size_t)budget : 0) || lay_out(r, b, least);
}

/* segments of a forward pass ------------------------------------------------------------------- */

/* The layout with pieces of `units` times `unit` slots, windows or not. */
static bool lay_pieces(const Record *r, BoundLaunch *b, int64_t units, int64_t unit, bool window) {
    Layout l = {.align = GPU_ALIGN};
    Segments *s = &b->seg;
    int64_t piece;
    if (__builtin_mul_overflow(units, unit, &piece) || piece >= b->slots)
        piece = b->slots;
    int64_t each = b->packed || !b->slots ? 0 : chunks_a_sequence(r, b);
    *s = (Segments){.group = b->slots, .piece = piece};
    s->pieces = s->count = piece ? divide_up(b->slots, piece) : 1;
    s->window = window && s->count > 1 ? units : 0;
    s->crossed = s->count > 1 && (s->window || !each || piece % each != 0);
    place(&l, b->saved && b->all ? 0 : piece, b->HF, r->module.ws_bytes_per_slot_head);
    b->ahead = (size_t)l.at;
    if (!place_scan(r, b, &l))
        l.over = true;
    int64_t states = !s->crossed ? 0 : s->window ? b->N : 2;
    b->states = place(&l, states, b->H, border_bytes(r));
    return finish(&l, b);
}

/* A way to cut: pieces of at least `least` times `unit` slots. */
typedef struct Cut {
    int64_t unit, least;
    bool window;
} Cut;

/* The longest pieces within `bytes`, short of all slots; false: there are none. */
static bool fit_pieces(const Record *r, BoundLaunch *b, size_t bytes, const Cut *way) {
    int64_t low = way->least, high = divide_up(b->slots, way->unit) - 1;
    while (low <= high) {
        int64_t middle = low + (high - low) / 2;
        bool fits = lay_pieces(r, b, middle, way->unit, way->window) && b->workspace <= bytes;
        *(fits ? &low : &high) = fits ? middle + 1 : middle - 1;
    }
    return high >= way->least && lay_pieces(r, b, high, way->unit, way->window);
}

/* Pieces within `bytes`, of at least `least` slots; where there are none, those that take the least. */
static bool cut_forward(const Record *r, BoundLaunch *b, size_t bytes, int64_t least) {
    int64_t each = b->packed ? b->slots : chunks_a_sequence(r, b);
    int64_t full = divide_up(2 * (int64_t)b->processors, b->H); /* sequences that fill the GPU */
    const Cut way[] = {{each, full > 0 ? full : 1, false},
                       {b->N, divide_up(least, b->N), true},
                       {1, least, false},
                       {each, divide_up(least, each), false},
                       {b->slots, 1, false}};
    enum { WAYS = sizeof way / sizeof *way, ALL = WAYS - 1 };
    size_t fewest = SIZE_MAX;
    int best = ALL;
    if (lay_pieces(r, b, 1, b->slots, false) && b->workspace <= bytes)
        return true;
    for (int i = 0; i < ALL; i++)
        if (!(way[i].window && b->packed) && fit_pieces(r, b, bytes, &way[i]))
            return true;
    for (int i = 0; i < WAYS; i++)
        if (!(way[i].window && b->packed) &&
            lay_pieces(r, b, way[i].least, way[i].unit, way[i].window) && b->workspace < fewest) {
            fewest = b->workspace;
            best = i;
        }
    return lay_pieces(r, b, way[best].least, way[best].unit, way[best].window);
}

static bool plan_forward(const Record *r, BoundLaunch *b, const gdr_launch *l, BindFor what) {
    bool given = what == BIND_least || (what == BIND_launch && l->workspace);
    if (b->all || b->slots == 0 || b->H == 0 || !(given || b->saved))
        return lay_pieces(r, b, 1, b->slots, false);
    if (given)
        return cut_forward(r, b, what == BIND_launch ? l->workspace_bytes : 0, 1);
    double tensors = tensor_bytes(l->S0) + tensor_bytes(l->S);
    for (int i = 0; i < r->shell->in.count + r->shell->out.count; i++)
        tensors += tensor_bytes(b->tensor[i]);
    double budget = 2 * tensors * FORWARD_BUDGET / 100 - (double)b->saved_bytes;
    int64_t least = divide_up((int64_t)RECORDS_A_PROCESSOR * b->processors, b->HF);
    size_t bytes = budget > 0 ? (size_t)budget / GPU_ALIGN * GPU_ALIGN : 0;
    if (!cut_forward(r, b, bytes, least > 0 ? least : 1))
        return false;
    b->workspace = b->workspace < bytes ? bytes : b->workspace;
    return true;
}

/* what is saved -------------------------------------------------------------------------------- */

int record_save_every(const Record *r) {
    int64_t K = r->shell->axis.at[AXIS_K].size, V = r->shell->axis.at[AXIS_V].size;
    bool gpu = target_find(r->target) && target_find(r->target)->gpu;
    if (!gpu || r->algo != ALGO_chunk || (r->pass == GDR_PASS_FORWARD && !r->save))
        return 0;
    return save_every(K, V, r->module.chunk);
}

bool record_saves_all(const Record *r) {
    return r->pass == GDR_PASS_FORWARD && r->save == GDR_SAVE_ALL && record_save_every(r) > 0;
}

/* Of a head: what is kept of a state in the midst of a sequence, GRAD_STATE_IN. */
int64_t border_bytes(const Record *r) {
    const Axis *axis = r->shell->axis.at;
    return 4 * ((int64_t)axis[AXIS_K].size + 1) * axis[AXIS_V].size;
}

static bool size_saved(const Record *r, BoundLaunch *b) {
    int64_t bytes, states = 0;
    b->save_every = record_save_every(r);
    if (b->save_every && b->slots > 0)
        states = (b->slots - 1) / b->save_every;
    int64_t each = b->all ? r->module.ws_bytes_per_slot_head : border_bytes(r);
    bool over = __builtin_mul_overflow(b->all ? b->slots : states, b->H, &bytes) ||
                __builtin_mul_overflow(bytes, each, &bytes);
    b->saved_bytes = (size_t)bytes;
    return !over;
}

/* all of it ------------------------------------------------------------------------------------ */

bool workspace_plan(const Record *r, BoundLaunch *b, const gdr_launch *l, BindFor what) {
    const Target *t = target_find(r->target);
    bool gpu = t && t->gpu, backward = r->pass == GDR_PASS_BACKWARD;
    b->slots = 0;
    b->workspace = 0;
    b->seg = (Segments){.pieces = 1, .count = 1};
    b->group = 1;
    for (int i = 0; i < r->shell->out.count; i++)
        b->partial[i] = SIZE_MAX;
    if (r->algo != ALGO_chunk && r->module.chunk <= 1) /* token by token, nothing kept */
        return true;
    if (__builtin_mul_overflow(b->N, divide_up(b->T, r->module.chunk) + 1, &b->slots))
        return false;
    b->slots = frame_slots(b->T, b->N, b->packed, r->module.chunk);
    if (!size_saved(r, b))
        return false;
    if (gpu && backward) {
        b->group = gradient_group(r, b);
        return plan_segments(r, b, l, what);
    }
    if (gpu)
        return plan_forward(r, b, l, what);
    Layout lay = {.align = HOST_ALIGN};
    place(&lay, b->slots, b->H, r->module.ws_bytes_per_slot_head);
    if (!backward)
        return finish(&lay, b);
    b->zeros_bytes = (size_t)zeros_bytes(r, b);
    b->zeros = place(&lay, 1, 1, (int64_t)b->zeros_bytes);
    int64_t rows;
    if (__builtin_mul_overflow(b->B, b->T, &rows))
        return false;
    place_parts(r, b, &lay, rows, b->N);
    return finish(&lay, b);
}
