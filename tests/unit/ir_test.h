/* Shared by the tests of the IR: reading kernels, comparing them, and making random ones.
 *
 * A random kernel is made by proposing random instructions and keeping those that `inst_shape`
 * allows, so it exercises whatever the operation table says, without a list of its own. */
#ifndef GDR_TESTS_IR_TEST_H
#define GDR_TESTS_IR_TEST_H

#include "ir/ir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One arena and its names; every test opens one and closes it. */
typedef struct World { Arena arena; Interner names; } World;

static inline World *world_open(void) {
    World *w = calloc(1, sizeof *w);
    assert_non_null(w);
    arena_init(&w->arena, NULL);
    intern_init(&w->names, &w->arena);
    return w;
}

static inline void world_close(World *w) {
    arena_free(&w->arena);
    free(w);
}

static inline const char *printed(World *w, const Kernel *k) {
    Buf b;
    buf_init(&b, &w->arena);
    kernel_print(k, &b);
    return b.text;
}

/* The kernel, or NULL and the messages in *why. */
static inline Kernel *try_parse(World *w, const char *text, const char **why) {
    const Source *s = source_from_text(&w->arena, "t", text, strlen(text));
    Diag *d = NEW(&w->arena, Diag);
    diag_init(d, &w->arena, s);
    Kernel *k = kernel_parse(&w->arena, &w->names, s, d);
    Buf b;
    buf_init(&b, &w->arena);
    buf_puts(&b, "");
    diag_print_text(d, &b, false);
    *why = b.text;
    assert_true((k == NULL) == (d->errors > 0));
    return k;
}

static inline Kernel *parse(World *w, const char *text) {
    const char *why;
    Kernel *k = try_parse(w, text, &why);
    if (!k)
        fail_msg("%s\n%s", why, text);
    return k;
}

/* Parses and insists that it is legal. */
static inline Kernel *parse_legal(World *w, const char *text) {
    Kernel *k = parse(w, text);
    const char *why = kernel_verify(k);
    if (why)
        fail_msg("%s\n%s", why, text);
    return k;
}

/* equality ------------------------------------------------------------------------------------- */

static inline bool same_double(double a, double b) {
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

static inline void assert_same_port(const Port *a, const Port *b) {
    assert_ptr_equal(a->name, b->name);
    assert_true(shape_equal(a->shape, b->shape));
    assert_int_equal(a->is_param, b->is_param);
    assert_int_equal(a->elem, b->elem);
    assert_true(same_double(a->lo, b->lo) && same_double(a->hi, b->hi));
}

static inline void assert_same_inst(const Inst *a, const Inst *b) {
    assert_int_equal(a->op, b->op);
    assert_int_equal(a->role, b->role);
    assert_int_equal(a->keep, b->keep);
    assert_int_equal(a->elem, b->elem);
    assert_true(shape_equal(a->shape, b->shape));
    assert_int_equal(a->nargs, b->nargs);
    for (int i = 0; i < a->nargs; i++)
        assert_int_equal(a->arg[i], b->arg[i]);
    assert_true(same_double(a->num, b->num));
    assert_int_equal(a->index, b->index);
    assert_int_equal(a->row, b->row);
    assert_int_equal(a->axis, b->axis);
    assert_int_equal(a->place, b->place);
}

static inline void assert_same_kernel(const Kernel *a, const Kernel *b) {
    assert_ptr_equal(a->name, b->name);
    assert_int_equal(a->level, b->level);
    assert_ptr_equal(a->state_name, b->state_name);
    assert_int_equal(a->axis.count, b->axis.count);
    for (int i = 0; i < a->axis.count; i++) {
        assert_ptr_equal(a->axis.at[i].name, b->axis.at[i].name);
        assert_int_equal(a->axis.at[i].size, b->axis.at[i].size);
    }
    assert_int_equal(a->in.count, b->in.count);
    for (int i = 0; i < a->in.count; i++)
        assert_same_port(&a->in.at[i], &b->in.at[i]);
    assert_int_equal(a->out.count, b->out.count);
    for (int i = 0; i < a->out.count; i++)
        assert_same_port(&a->out.at[i], &b->out.at[i]);
    const Facts *f = &a->facts, *g = &b->facts;
    assert_true(f->known == g->known && f->decay == g->decay && f->erases == g->erases &&
                f->decay_constant == g->decay_constant && f->chunkable == g->chunkable &&
                f->reads_before_decay == g->reads_before_decay && f->slots == g->slots);
    assert_true((f->why_not == NULL) == (g->why_not == NULL));
    if (f->why_not)
        assert_string_equal(f->why_not, g->why_not);
    assert_int_equal(a->inst.count, b->inst.count);
    for (int v = 0; v < a->inst.count; v++)
        assert_same_inst(inst_at(a, v), inst_at(b, v));
}

/* random --------------------------------------------------------------------------------------- */

typedef struct Rng { uint64_t s; } Rng; /* splitmix64 */

static inline uint64_t rng_next(Rng *r) {
    uint64_t z = (r->s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline int rng_below(Rng *r, int n) {
    return (int)(rng_next(r) % (uint64_t)n);
}

/* Uniform in [-1, 1). */
static inline double rng_unit(Rng *r) {
    return (double)(int64_t)rng_next(r) * 0x1p-63;
}

static inline double rng_number(Rng *r) {
    static const double special[] = {0, -0.0, 1, -1, 2, 0.5, 1e-300, 1e300, 5e-324};
    return rng_below(r, 3) ? rng_unit(r) : special[rng_below(r, (int)(sizeof special / 8))];
}

static inline void random_ports(World *w, Rng *r, Kernel *k) {
    static const struct { const char *name; int rank, axis[2]; } in[] = {
        {"q", 1, {AXIS_K}}, {"v", 1, {AXIS_V}}, {"b", 0, {0}}, {"kk", 2, {AXIS_user, AXIS_K}},
        {"A", 0, {0}}, {"D", 1, {AXIS_V}}};
    kernel_axis(k, intern_z(&w->names, "n"), 3);
    for (int i = 0; i < 6; i++) {
        Port p = {.name = intern_z(&w->names, in[i].name), .is_param = i >= 4, .lo = -INFINITY,
                  .hi = INFINITY, .elem = i >= 4 ? ELEM_f32 : (Elem)rng_below(r, 3)};
        for (int j = 0; j < in[i].rank; j++)
            p.shape.axis[p.shape.rank++] = (int8_t)in[i].axis[j]; /* memory order */
        if (rng_below(r, 2))
            p.lo = rng_number(r);
        if (rng_below(r, 2))
            p.hi = rng_number(r);
        VEC_PUSH(k->arena, &k->in, p);
    }
    for (int i = 0; i < 2; i++)
        VEC_PUSH(k->arena, &k->out,
                 ((Port){.name = intern_z(&w->names, i ? "p" : "o"), .lo = -INFINITY, .hi = INFINITY,
                         .shape = shape_of(1, (int[]){i ? AXIS_K : AXIS_V}), .elem = ELEM_bf16}));
}

static inline bool of_gradients(Op op) {
    return op == OP_costate || op == OP_conext || op == OP_after || op == OP_cumsum_back ||
           op == OP_reread || op == OP_coread || op == OP_codecay || op == OP_coupdate ||
           op == OP_decay_a;
}

/* Of what acts on the state token by token, and of memories: those of the first half of a token. */
static inline bool runs_forwards(Op op) {
    return op == OP_decay || op == OP_read || op == OP_update || op == OP_prev || op == OP_cumsum;
}

static inline int decays_and_updates(const Kernel *k) {
    int n = 0;
    for (int v = 0; v < k->inst.count; v++)
        n += inst_at(k, v)->op == OP_decay || inst_at(k, v)->op == OP_update;
    return n;
}

static inline bool has_place(Op op) {
    return op == OP_scores || op == OP_carry || op == OP_scores_x || op == OP_scores_y ||
           op == OP_scores_a || op == OP_carry_a;
}

/* One random proposal; fields that the operation does not have stay 0. */
static inline Inst random_inst(Rng *r, Kernel *k, int slots) {
    Inst in = {.op = (Op)rng_below(r, OP_count)};
    int n = op_info[in.op].nargs;
    in.nargs = n >= 0 ? n : in.op == OP_weave ? slots : op_info[in.op].class == CLASS_CHUNK &&
                in.op != OP_carry && in.op != OP_tail ? 3 : 2;
    in.arg = NEW_ARRAY(k->arena, int, in.nargs + 1);
    for (int i = 0; i < in.nargs; i++) {
        in.arg[i] = rng_below(r, k->inst.count ? k->inst.count : 1);
        if (n < 0 && in.op != OP_weave && i == in.nargs - 1 && rng_below(r, 4) == 0)
            in.arg[i] = -1;
    }
    if (in.op == OP_const)
        in.num = rng_number(r);
    if (in.op == OP_weave)
        in.num = rng_below(r, 2);
    if (in.op == OP_in) {
        in.index = rng_below(r, k->in.count);
        in.row = k->in.at[in.index].shape.rank == 2 ? rng_below(r, 3) : -1;
    }
    if (in.op == OP_slot)
        in.place = rng_below(r, slots);
    if (in.op == OP_reread || in.op == OP_decay_a)
        in.place = rng_below(r, decays_and_updates(k) + 1);
    if (in.op == OP_scores_a || in.op == OP_carry_a || in.op == OP_tail_a || in.op == OP_total_a)
        in.index = rng_below(r, 2);
    if (in.op == OP_sum || in.op == OP_turn || in.op == OP_contract || in.op == OP_weave || in.op == OP_rename ||
        in.op == OP_slot || in.op == OP_reread || in.op == OP_coread)
        in.axis = rng_below(r, AXIS_user);
    if (in.op == OP_rename)
        in.index = rng_below(r, AXIS_user);
    return in;
}

/* Appends `in` if it is legal here. */
static inline int try_emit(Kernel *k, Inst in) {
    Shape s;
    return inst_shape(k, &in, &s) ? -1 : emit(k, in);
}

/* Effects that a kernel may have only once are given at its end. */
static inline void random_body(Rng *r, Kernel *k, int wanted, int slots, bool gradient) {
    int place = 0;
    for (int tries = 0; k->inst.count < wanted && tries < 200 * wanted; tries++) {
        Inst in = random_inst(r, k, slots);
        if (in.op == OP_out || in.op == OP_next || in.op == OP_conext || in.op == OP_rewind ||
            (!gradient && of_gradients(in.op)))
            continue;
        if (gradient && k->level == LEVEL_recurrence && runs_forwards(in.op))
            continue;
        if ((in.op == OP_prev || in.op == OP_cumsum) && k->inst.count &&
            values_from_later(k)[in.arg[0]])
            continue;
        int v = try_emit(k, in);
        bool left = v >= 0 && has_place(in.op), row = in.op == OP_scores || in.op == OP_carry;
        if (left && shape_has(inst_at(k, row ? v : in.arg[0])->shape, AXIS_C) &&
            (place = rng_below(r, slots + 1)))
            k->inst.at[v].place = place;
    }
}

static inline void random_end(Rng *r, Kernel *k, bool gradient) {
    bool given[2] = {false, false};
    int n = k->inst.count, state = -1, q, v;
    for (int tries = 0; tries < 40; tries++) {
        int port = rng_below(r, 2), a = rng_below(r, n);
        bool whole = shape_equal(shape_without(inst_at(k, a)->shape, AXIS_C), k->out.at[port].shape);
        if (!given[port] && (whole || gradient))
            given[port] = try_emit(k, (Inst){.op = OP_out, .nargs = 1, .arg = &a,
                                             .index = port}) >= 0;
    }
    q = emit_in(k, 0, -1, (Span){0, 0});
    v = emit_in(k, 1, -1, (Span){0, 0});
    if (!given[0])
        emit_out(k, 0, v, (Span){0, 0});
    if (!given[1])
        emit_out(k, 1, q, (Span){0, 0});
    if (k->level == LEVEL_recurrence)
        return;
    for (int i = 0; i < n; i++)
        if (shape_equal(inst_at(k, i)->shape, shape_of(2, (int[]){AXIS_K, AXIS_V})) &&
            !values_from_later(k)[i])
            state = i;
    if (state < 0)
        state = emit(k, (Inst){.op = OP_state});
    emit1(k, OP_next, state, (Span){0, 0});
    if (gradient)
        emit1(k, OP_conext, state, (Span){0, 0});
}

/* A legal kernel of about `wanted` instructions at recurrence or chunk level, perhaps of gradients. */
static inline Kernel *random_kernel(World *w, Rng *r, Level level, int wanted) {
    Kernel *k = kernel_new(&w->arena, &w->names, intern_z(&w->names, "random"));
    int slots = 1 + rng_below(r, 2), tokens = 1 + rng_below(r, 4);
    k->level = level;
    k->state_name = intern_z(&w->names, "S");
    k->axis.at[AXIS_K].size = 3;
    k->axis.at[AXIS_V].size = 2;
    if (level != LEVEL_recurrence) {
        k->axis.at[AXIS_C].size = tokens;
        k->axis.at[AXIS_R].size = k->axis.at[AXIS_U].size = tokens * slots;
    }
    random_ports(w, r, k);
    bool gradient = rng_below(r, 2);
    if (gradient && level == LEVEL_recurrence) {
        random_body(r, k, wanted / 2, slots, false);
        emit(k, (Inst){.op = OP_rewind});
    }
    random_body(r, k, wanted, slots, gradient);
    random_end(r, k, gradient);
    const char *why = kernel_verify(k);
    if (why)
        fail_msg("%s\n%s", why, printed(w, k));
    return k;
}

#endif
