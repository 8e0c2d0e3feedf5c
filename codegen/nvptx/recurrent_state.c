/* The state between memory and the registers of the recurrent kernel, and what is remembered beside
 * it.
 *
 * A lane's piece of the state is read and written in accesses of up to 16 bytes along the axis that
 * is dense in memory. All loads are issued before any of them is used: what a step costs is decided
 * by how many bytes are under way.
 */
#include "codegen/nvptx/recurrent.h"

enum { MAX_ACCESS = 16 /* bytes */, MAX_WORDS = MAX_ACCESS / 4 };

int recurrent_group(int size, int run, Elem e) {
    int n = size | run;
    n &= -n;
    int most = MAX_ACCESS / elem_size(e);
    return n < most ? n : most;
}

/* accesses ------------------------------------------------------------------------------------- */

/* Neighbouring warps read a state whole: fetching 256 bytes at a time keeps DRAM pages open. The
 * words (i32, or one i16) of `bytes` bytes; how many. */
static int load_words(Cg *cg, Val p, int bytes, Val *out) {
    static const char *const text[] = {"ld.global.L2::256B.b16 $0, [$1];",
                                       "ld.global.L2::256B.b32 $0, [$1];",
                                       "ld.global.L2::256B.v2.b32 {$0, $1}, [$2];",
                                       "ld.global.L2::256B.v4.b32 {$0, $1, $2, $3}, [$4];"};
    static const char *const operands[] = {"=h,l", "=r,l", "=r,=r,l", "=r,=r,=r,=r,l"};
    int which = bytes == 2 ? 0 : bytes == 4 ? 1 : bytes == 8 ? 2 : 3;
    int n = bytes <= 4 ? 1 : bytes / 4;
    Ty word = bytes == 2 ? cg->i16 : cg->i32, part[MAX_WORDS] = {word, word, word, word};
    Ty t = n == 1 ? word : LLVMStructTypeInContext(cg->ctx, part, (unsigned)n, false);
    Val x = cg_asm(cg, t, text[which], operands[which], true, &p, 1);
    for (int j = 0; j < n; j++)
        out[j] = n == 1 ? x : cg_extract(cg, x, j);
    return n;
}

/* The n elements that were loaded as these words. */
static void unpack(Cg *cg, Elem e, const Val *word, int n, Val *out) {
    if (elem_size(e) == 4) {
        for (int j = 0; j < n; j++)
            out[j] = LLVMBuildBitCast(cg->b, word[j], cg->f32, "");
    } else if (n > 1) {
        for (int j = 0; j < n; j += 2)
            nv_unpack(cg, e, word[j / 2], out + j);
    } else {
        Val pair[2];
        nv_unpack(cg, e, LLVMBuildZExt(cg->b, word[0], cg->i32, ""), pair);
        out[0] = pair[0];
    }
}

void recurrent_store(Cg *cg, Elem e, Val p, int n, const Val *x) {
    Val item[MAX_COLUMNS] = {NULL};
    int width = elem_size(e), count = n;
    CHECK(n <= MAX_COLUMNS);
    if (width == 2 && n > 1) {
        count = n / 2;
        for (int j = 0; j < count; j++)
            item[j] = nv_pack(cg, e, x[2 * j], x[2 * j + 1]);
    } else {
        for (int j = 0; j < n; j++)
            item[j] = cg_from_f32(cg, x[j], e);
    }
    Val all = item[0];
    if (count > 1) {
        all = LLVMGetPoison(LLVMVectorType(LLVMTypeOf(item[0]), (unsigned)count));
        for (int j = 0; j < count; j++)
            all = cg_insert(cg, all, item[j], j);
    }
    cg_store(cg, all, p, n * width);
}

/* a lane's piece ------------------------------------------------------------------------------- */

/* Its accesses: `group` elements each along the dense axis, run / group of them in each of `lines`.
 */
typedef struct Piece {
    bool vk;
    Elem e;
    int group, run, lines;
} Piece;

static Piece piece_of(const Recurrent *r) {
    const CgOptions *opt = r->cg->opt;
    Piece p = {.vk = opt->state_vk, .e = opt->state};
    p.run = p.vk ? r->n_k : r->n_v;
    p.lines = p.vk ? r->n_v : r->n_k;
    p.group = recurrent_group(p.vk ? r->K : r->V, p.run, p.e);
    return p;
}

/* i1 that row i and column c exist, NULL for always. The elements of an access exist or not
 * together. */
static Val exists_at(Recurrent *r, int i, int c) {
    Val row = value_exists(&r->at, AXIS_K, i), column = value_exists(&r->at, AXIS_V, c);
    return !row ? column : !column ? row : cg_and(r->cg, row, column);
}

/* Bytes from the lane's first element to its element in row i, column c. */
static Val element_offset(const Recurrent *r, int i, int c) {
    return cg_int64(r->cg, i * pool_step(r->cg, AXIS_K) + c * pool_step(r->cg, AXIS_V));
}

static int accesses_of(Piece p) {
    return p.lines * p.run / p.group;
}

/* The first row and column of access n. */
static void place_of(Piece p, int n, int *i, int *c) {
    int line = n / (p.run / p.group), j = n % (p.run / p.group) * p.group;
    *i = p.vk ? j : line;
    *c = p.vk ? line : j;
}

static int words_of(Piece p) {
    int bytes = p.group * elem_size(p.e);
    return bytes <= 4 ? 1 : bytes / 4;
}

/* Places that do not exist read the state's first elements. */
static void load_piece(Recurrent *r) {
    Cg *cg = r->cg;
    Piece p = piece_of(r);
    Val word[MAX_ROWS * MAX_COLUMNS][MAX_WORDS];
    Val state = pool_state(cg, FRAME_S0, r->pool.first, r->at.head);
    Val lane = cg_gep8(cg, state, pool_element(cg, r->at.base_k, r->at.base_v));
    for (int n = 0; n < accesses_of(p); n++) {
        int i, c;
        place_of(p, n, &i, &c);
        Val exists = exists_at(r, i, c), from = cg_gep8(cg, lane, element_offset(r, i, c));
        from = exists ? cg_select(cg, exists, from, state) : from;
        load_words(cg, from, p.group * elem_size(p.e), word[n]);
    }
    for (int n = 0; n < accesses_of(p); n++)
        for (int w = 0; w < words_of(p); w++)
            cg_set(cg, r->word[n * words_of(p) + w], word[n][w]);
}

static void store_piece(Recurrent *r, Val number) {
    Cg *cg = r->cg;
    Piece p = piece_of(r);
    Val x[MAX_COLUMNS], state = pool_state(cg, FRAME_S, number, r->at.head);
    Val lane =
        cg_gep8(cg, state, pool_element(cg, nv_anew(cg, r->at.base_k), nv_anew(cg, r->at.base_v)));
    for (int n = 0; n < accesses_of(p); n++) {
        int i, c;
        place_of(p, n, &i, &c);
        for (int m = 0; m < p.group; m++)
            x[m] = cg_get(cg, p.vk ? r->state[i + m][c] : r->state[i][c + m]);
        Val exists = exists_at(r, i, c);
        If g = {0};
        if (exists)
            g = cg_if(cg, exists);
        recurrent_store(cg, p.e, cg_gep8(cg, lane, element_offset(r, i, c)), p.group, x);
        if (exists)
            cg_end_if(cg, &g);
    }
}

/* what is remembered --------------------------------------------------------------------------- */

/* The lane's first element of what v, a prev or a cumsum, looks back at in record `number`. */
static Val past_address(Recurrent *r, int field, Val number, int v) {
    Cg *cg = r->cg;
    Shape s = inst_at(r->k, v)->shape;
    Val record =
        cg_add(cg, cg_mul(cg, number, cg_frame_field(cg, FRAME_H)), cg_zext64(cg, r->at.head));
    Val at = cg_mul(cg, record, cg_int64(cg, r->k->facts.past));
    at = cg_add(cg, at, cg_int64(cg, inst_at(r->k, v)->index));
    if (shape_has(s, AXIS_K))
        at = cg_add(cg, at, cg_zext64(cg, r->at.base_k));
    if (shape_has(s, AXIS_V))
        at = cg_add(cg, at, cg_zext64(cg, r->at.base_v));
    return cg_gep8(cg, nv_global(cg, field), cg_shl(cg, at, 2));
}

static int past_axis(const Recurrent *r, int v) {
    Shape s = inst_at(r->k, v)->shape;
    return shape_has(s, AXIS_K) ? AXIS_K : shape_has(s, AXIS_V) ? AXIS_V : -1;
}

/* For every value that is carried: v by itself, or once for all that remember the same. */
static void each_carried(Recurrent *r, bool once, void (*visit)(Recurrent *, int v, Val number),
                         Val number) {
    bool *seen = NEW_ARRAY(r->cg->arena, bool, r->k->inst.count + 1);
    for (int v = 0; v < r->k->inst.count; v++) {
        if (!r->carried[v] || (once && seen[past_value(r->k, v)]))
            continue;
        seen[past_value(r->k, v)] = true;
        visit(r, v, number);
    }
}

static void load_carried(Recurrent *r, int v, Val number) {
    Cg *cg = r->cg;
    int axis = past_axis(r, v);
    Val p = past_address(r, FRAME_PAST0, number, v);
    for (int j = 0; j < value_count(&r->at, v); j++) {
        Val exists = axis < 0 ? NULL : value_exists(&r->at, axis, j);
        If f = {0};
        if (exists)
            f = cg_if(cg, exists);
        cg_set(cg, r->carried[v][j], cg_load(cg, cg->f32, cg_gep8(cg, p, cg_int64(cg, 4 * j)), 4));
        if (exists)
            cg_end_if(cg, &f);
    }
}

/* One lane of those of the block that hold the same elements, along K or no axis. */
static Val first_lane(Recurrent *r, int axis) {
    Cg *cg = r->cg;
    Val other = cg_or(cg, r->warp, axis == AXIS_K ? r->column_group : r->lane);
    return cg_cmp(cg, LLVMIntEQ, other, cg_int(cg, 0));
}

static void store_carried(Recurrent *r, int v, Val number) {
    Cg *cg = r->cg;
    int axis = past_axis(r, v);
    Val last = cg_cmp(cg, LLVMIntEQ, r->tile, cg_int(cg, r->turns - 1)); /* others still read */
    Val writes = axis == AXIS_V ? recurrent_writes(r, axis) : cg_and(cg, last, first_lane(r, axis));
    If writer = cg_if(cg, writes);
    Val p = past_address(r, FRAME_PAST, number, v);
    for (int j = 0; j < value_count(&r->at, v); j++) {
        Val exists = axis < 0 ? NULL : value_exists(&r->at, axis, j);
        If f = {0};
        if (exists)
            f = cg_if(cg, exists);
        cg_store(cg, cg_get(cg, r->carried[v][j]), cg_gep8(cg, p, cg_int64(cg, 4 * j)), 4);
        if (exists)
            cg_end_if(cg, &f);
    }
    cg_end_if(cg, &writer);
}

/* both ----------------------------------------------------------------------------------------- */

static Val is_given(Cg *cg, int field) {
    return cg_cmp(cg, LLVMIntNE, cg_frame_field(cg, field), cg_int64(cg, 0));
}

void recurrent_load_state(Recurrent *r) {
    Cg *cg = r->cg;
    Piece p = piece_of(r);
    int words = accesses_of(p) * words_of(p);
    Ty word = p.group * elem_size(p.e) == 2 ? cg->i16 : cg->i32;
    r->word = NEW_ARRAY(cg->arena, Var, words);
    for (int n = 0; n < words; n++)
        r->word[n] = cg_var(cg, word, LLVMConstInt(word, 0, false)); /* zeros of every type */
    Val numbered = cg_cmp(cg, LLVMIntSGE, r->pool.first, cg_int64(cg, 0));
    If given = cg_if(cg, cg_and(cg, numbered, is_given(cg, FRAME_S0)));
    load_piece(r);
    cg_end_if(cg, &given);
    recurrent_open_carried(r);
    if (r->k->facts.past == 0)
        return;
    If past = cg_if(cg, cg_and(cg, numbered, is_given(cg, FRAME_PAST0)));
    each_carried(r, false, load_carried, r->pool.first);
    cg_end_if(cg, &past);
    if (r->warps > 1)
        nv_barrier(cg); /* all have read what one of them may write over */
}

void recurrent_take_state(Recurrent *r) {
    Cg *cg = r->cg;
    Piece p = piece_of(r);
    Val zero = cg_float(cg, 0), word[MAX_WORDS], x[MAX_COLUMNS];
    for (int n = 0; n < accesses_of(p); n++) {
        int i, c;
        place_of(p, n, &i, &c);
        Val exists = exists_at(r, i, c);
        for (int w = 0; w < words_of(p); w++)
            word[w] = cg_get(cg, r->word[n * words_of(p) + w]);
        unpack(cg, p.e, word, p.group, x);
        for (int m = 0; m < p.group; m++)
            r->state[i + (p.vk ? m : 0)][c + (p.vk ? 0 : m)] =
                cg_var(cg, cg->f32, exists ? cg_select(cg, exists, x[m], zero) : x[m]);
    }
}

static Val wants_states(Recurrent *r) {
    Cg *cg = r->cg;
    Val wants = is_given(cg, FRAME_S);
    return r->k->facts.past ? cg_or(cg, wants, is_given(cg, FRAME_PAST)) : wants;
}

/* Said once, so that a token asks for its number only whether it is the one. */
void recurrent_open_stores(Recurrent *r) {
    Cg *cg = r->cg;
    Val zero = cg_int64(cg, 0), wants = wants_states(r);
    Val each = cg_cmp(cg, LLVMIntNE, r->pool.each, zero);
    Val last = cg_and(cg, wants, cg_cmp(cg, LLVMIntSGE, r->pool.last, zero));
    r->stores_each = cg_and(cg, wants, each);
    r->stores_at = cg_select(cg, cg_and(cg, last, cg_cmp(cg, LLVMIntEQ, r->pool.each, zero)),
                             r->pool.commit, cg_int64(cg, -1));
}

/* The number in S of the state after t tokens. */
static Val number_after(Recurrent *r, Val t) {
    Cg *cg = r->cg;
    Var number = cg_var(cg, cg->i64, r->pool.last);
    If each = cg_if(cg, r->stores_each);
    cg_set(cg, number, pool_after(cg, &r->pool, &r->seq, cg_sub(cg, t, cg_int64(cg, 1))));
    cg_end_if(cg, &each);
    return cg_get(cg, number);
}

void recurrent_store_state(Recurrent *r, Val t) {
    Cg *cg = r->cg;
    Val after = cg_and(cg, r->stores_each, cg_cmp(cg, LLVMIntSGT, t, cg_int64(cg, 0)));
    If stores = cg_if(cg, cg_or(cg, after, cg_cmp(cg, LLVMIntEQ, t, r->stores_at)));
    Val n = number_after(r, t), named = cg_cmp(cg, LLVMIntSGE, n, cg_int64(cg, 0));
    If wanted = cg_if(cg, cg_and(cg, named, is_given(cg, FRAME_S)));
    store_piece(r, n);
    cg_end_if(cg, &wanted);
    if (r->k->facts.past) {
        If past = cg_if(cg, cg_and(cg, named, is_given(cg, FRAME_PAST)));
        each_carried(r, true, store_carried, n);
        cg_end_if(cg, &past);
    }
    cg_end_if(cg, &stores);
}
