/* ir: one kernel in memory, at three levels, with one text form that parses back.
 *
 *   kernel.c  building, rewriting             print.c   kernel -> text
 *   shape.c   what an operation takes, gives  parse.c   text -> kernel
 *   verify.c  what is legal at each level     range.c   bounds of values
 *   past.c    what is remembered besides the state
 *   eval.c, eval_state.c, eval_lattice.c   the fp64 meaning of every operation: the oracle of passes
 *
 * A kernel is a straight line of instructions in SSA form: instruction number = value number.
 *
 * recurrence  One token. Values have no axes (scalars), [K] or [V]; STATE operations act on S[K,V]
 *             in program order. Every loop of the spec is unrolled, every axis other than the
 *             state's two is expanded to scalars.
 * chunk       One chunk of C tokens. Values that come from per-token inputs gain the axis C; the
 *             state is a value (`state`, `next`). With `slots` updates a token the chunk system has
 *             C*slots equations (axis R) for as many unknowns (axis U), both in time order:
 *                 T[R,U]  A[U,R]=(I+T)^-1  E[R,K]  X[R,V] = C - E S
 *                 O[C,V] = Q S + M X       S' = D S + P' X      M[C,R] = Aq A    P[R,K] = A' Kt
 *             Lattice: position m of the decays a[U,..] lies before update m. A left row l stands at
 *             p(l): p = l on axis R; p = l*slots + place on axis C (place = updates of the token
 *             that the read sees). It sees the updates u < p(l), decayed by a[u+1 .. p(l)-1];
 *             decays between update p(l)-1 and the read are already multiplied into the row.
 * tile        The same values, each given to a role (factor, chain) and a place to live in, with
 *             operand types chosen: what the code generators walk.
 *
 * A gradient kernel (at chunk and tile level with `conext`, at recurrence level with `rewind`) goes
 * over a sequence twice: forwards, for the state at every chunk's start (`state`, `next`) and what
 * prev and cumsum remember; then backwards over the chunks, with the state's cotangent (`costate` at
 * the chunk's end, `conext` at its start). At recurrence level a chunk is a token: what stands before
 * `rewind` runs forwards, all of it backwards, where operations behind `rewind` act on the cotangent
 * D of the state and look at S as it was at a place in the token.
 * Its outputs are gradients; those of params are sums over all chunks. Cotangents of the rows of a
 * padded chunk's missing tokens mean nothing: sums over C, `scores_y` and `carry_a` leave them out.
 */
#ifndef GDR_IR_H
#define GDR_IR_H

#include "base/base.h"

/* types ---------------------------------------------------------------------------------------- */

typedef enum Op {
#define OP(name, nargs, class, levels, doc) OP_##name,
#include "ir/ops.def"
#undef OP
    OP_count
} Op;

typedef enum {
    CLASS_DATA, CLASS_PURE, CLASS_REDUCE, CLASS_PAIR, CLASS_TIME, CLASS_STATE, CLASS_CHUNK
} OpClass;
typedef enum { LEVEL_recurrence, LEVEL_chunk, LEVEL_tile } Level;

typedef struct OpInfo {
    const char *name;
    int nargs; /* -1 = variable */
    OpClass class;
    unsigned levels; /* bit per Level */
    const char *doc;
} OpInfo;
extern const OpInfo op_info[OP_count];

/* Axes are numbered per kernel. The first five are fixed; spec dims other than the state's two
 * follow (they appear only in port shapes). */
enum { AXIS_C, AXIS_R, AXIS_U, AXIS_K, AXIS_V, AXIS_user };
typedef struct Axis { const char *name; int size; } Axis; /* C, R, U have size 0 before chunking */

typedef struct Shape { int8_t rank; int8_t axis[3]; } Shape; /* in the order C|R|U < K < V < user */

typedef enum { ELEM_f32, ELEM_bf16, ELEM_f16, ELEM_f64 } Elem;

/* An input, a parameter (per head, constant over time, always f32) or an output. An output may be a
 * param too: the gradient of one, the sum over all chunks of what `out` gives. */
typedef struct Port {
    const char *name;
    Shape shape;         /* of one token and head, as declared: [], [K], [V], [n], [n,K], [n,V] */
    bool is_param;
    double lo, hi;       /* declared range; -INFINITY / INFINITY where open */
    Elem elem;           /* type in memory; set by the compile options */
    Span span;           /* declaration */
} Port;

/* Where a tile-level value is computed and kept. */
typedef enum { ROLE_none, ROLE_factor, ROLE_chain, ROLE_reverse, ROLE_grad } Role;

typedef struct Inst {
    Op op;
    Role role;           /* tile level */
    bool keep;           /* tile level: later roles take it from the workspace */
    Elem elem;           /* tile level: type in the workspace and as a matrix operand */
    Shape shape;
    int nargs;
    int *arg;            /* value numbers; an optional absent operand is -1 */
    double num;          /* const; weave: what rows past the last token hold (1 decays, 0 else) */
    int index;           /* in, out: port number; rename: old axis; ops in _a: 1 = of the logarithm;
                            prev, cumsum: floats before theirs in what is remembered, see past_list */
    int row;             /* in: row of the first axis, or -1; out to a port [n,...]: the row */
    int axis;            /* sum, contract, weave, rename, slot, reread, coread */
    int place;           /* scores, carry and theirs on axis C: updates of the token that the read
                            sees; slot: which; reread, decay_a: decays and updates before it */
    Span span;           /* where in the spec it comes from */
} Inst;

/* What the spec is, decided by the passes from the recurrence alone (algorithm rules R1-R5). */
typedef enum { DECAY_none, DECAY_scalar, DECAY_key, DECAY_value, DECAY_mixed } DecayClass;
typedef struct Facts {
    bool known;             /* the normal form pass has run */
    DecayClass decay;
    bool decay_constant;    /* the decay depends on params and constants only */
    bool erases;            /* some update reads the state */
    bool reads_before_decay;
    bool chunkable;
    const char *why_not;    /* when not chunkable: the reason ... */
    Span where;             /* ... and the term that breaks it */
    int slots;              /* updates a token */
    int past;               /* floats that a head remembers besides its state */
} Facts;

typedef struct Kernel {
    Arena *arena;
    Interner *names;
    const Source *source;   /* for spans; NULL when parsed from IR text */
    const char *name;
    Level level;
    VEC(Axis) axis;
    VEC(Port) in;           /* inputs and params in order of declaration */
    VEC(Port) out;
    VEC(Inst) inst;
    const char *state_name;
    Facts facts;
} Kernel;

/* kernel.c ------------------------------------------------------------------------------------- */

Kernel *kernel_new(Arena *arena, Interner *names, const char *name);
/* A copy without instructions: same ports, axes, facts. The base of every rewriting pass. */
Kernel *kernel_like(const Kernel *k);
Kernel *kernel_clone(const Kernel *k);
int kernel_axis(Kernel *k, const char *name, int size);  /* finds or adds a user axis */
int kernel_find_port(const Kernel *k, const char *name, bool output); /* -1 if absent */

Shape shape_scalar(void);
Shape shape_of(int rank, const int *axis);
bool shape_has(Shape s, int axis);
bool shape_equal(Shape a, Shape b);
Shape shape_union(Shape a, Shape b);   /* broadcasting */
Shape shape_without(Shape s, int axis);
Shape shape_with(Shape s, int axis);   /* inserted in canonical order */
Shape shape_lattice(Shape s);          /* its axes among C, R, U */
Shape shape_features(Shape s);         /* the others */
int64_t shape_elements(const Kernel *k, Shape s);

/* shape.c -------------------------------------------------------------------------------------- */

/* What an operation takes and gives, for the kernel's level: NULL and the result's shape in *out, or
 * why the operands are not legal. Values of operations without one have no axes.
 *   in      port shape without the row's axis; at chunk and tile level per-token inputs gain C, so
 *           set k->level before emitting
 *   PURE    one operand has all axes of the other, or only one of them has axes besides C, R, U
 *   turn    no feature axis but `axis`, which is of even size and which the result has
 *   prev, cumsum  at chunk and tile level always have axis C
 *   scores  x on C or R; an x with neither stands for every token (axis C). y, a on U. Gives [C|R,U]
 *   carry   as x, plus the K or V axis of a;  tail: y on U, likewise;  total: a without U
 *   weave   operands on C or (constant) without; gives axis + the operands' K or V axis; onto R also
 *           operands [C,U], giving [R,U]
 *   solve   [R,U] (equation, unknown) gives [R,U], read as A[unknown U, equation R]
 *   slot    as weave, backwards: [R|U,K] gives [C,K], [R,U] over R gives [C,U]
 *   scores_x  G on [C|R,U], y and a on U; gives G's left axis and their feature axis. scores_y: x on
 *           that left axis, gives U. scores_a, carry_a (w as x of carry), tail_a, total_a: a's shape
 *   reread, coread  an operand along `axis`, K or V, or a scalar; gives the other one
 *   out     the port's axes, plus C at chunk and tile level unless constant; no C to a param. In a
 *           gradient kernel the value is repeated along axes that it lacks, and is one row of a port
 *           whose first axis is none of K, V
 * The decays `a` of scores, carry and tail may be left out or -1: no decay. */
const char *inst_shape(const Kernel *k, const Inst *in, Shape *out);

/* Append; the result's shape is inferred from the table and the operands (BUG when illegal). */
int emit(Kernel *k, Inst inst);
int emit_const(Kernel *k, double x);
int emit_in(Kernel *k, int port, int row, Span span);
int emit1(Kernel *k, Op op, int a, Span span);
int emit2(Kernel *k, Op op, int a, int b, Span span);
int emit_sum(Kernel *k, int a, int axis, Span span);
int emit_turn(Kernel *k, int a, int axis, Span span);
void emit_decay(Kernel *k, int a, Span span);
int emit_read(Kernel *k, int a, Span span);
void emit_update(Kernel *k, int p, int z, Span span);
void emit_out(Kernel *k, int port, int a, Span span);
/* One instruction with given operands, shape not inferred: for rewriting passes. */
int emit_copy(Kernel *k, const Inst *model, const int *arg);

static inline const Inst *inst_at(const Kernel *k, int v) { return &k->inst.at[v]; }
bool op_commutes(Op op); /* not min, max: of equal operands they have the first one's derivative */
bool op_gives_value(Op op); /* false: decay, update and their like, out, next, conext, rewind */
bool kernel_is_gradient(const Kernel *k); /* has `conext` or `rewind` */
/* By value: whether it depends on what comes later in the sequence (costate, after, ...). */
bool *values_from_later(const Kernel *k);
/* True when v is the same for every token: elementwise and sums of constants and params only. */
bool value_is_constant(const Kernel *k, int v);
/* Whether v is used, and by cosines and sines alone: whole turns of it do not count. */
bool value_is_angle(const Kernel *k, int v);
/* Marks every value that `v` needs, v included. `mark` has k->inst.count entries. */
void value_mark(const Kernel *k, int v, bool *mark);

/* past.c --------------------------------------------------------------------------------------- */

/* What a sequence and head remembers besides its state: facts.past floats. Whoever runs a sequence in
 * parts keeps them from one to the next. */
typedef struct Past {
    int value;           /* its last one is kept: what stands under prev, or a cumsum. -1: nothing of this
                            kernel depends on what is kept here */
    int at, floats;      /* place and size */
} Past;
/* Decides the places; `normal` does it, and they stay from there on. */
void past_place(Kernel *k);
/* In the order of the places, without gaps. */
Past *past_list(const Kernel *k, int *count);
/* The value whose last one prev or cumsum v looks back at; -1 for other operations. */
int past_value(const Kernel *k, int v);

/* range.c -------------------------------------------------------------------------------------- */

/* Bounds of an elementwise value over all inputs inside their declared ranges. */
typedef struct Range { double lo, hi; } Range;
Range value_range(const Kernel *k, int v);

/* print.c, parse.c ----------------------------------------------------------------------------- */

void kernel_print(const Kernel *k, Buf *out);
/* NULL with a message in `d` when the text is not a kernel. */
Kernel *kernel_parse(Arena *arena, Interner *names, const Source *text, Diag *d);
const char *level_name(Level l);
const char *elem_name(Elem e);
int elem_size(Elem e);
const char *role_name(Role r);
const char *decay_name(DecayClass d);
void shape_print(const Kernel *k, Shape s, Buf *out);

/* verify.c ------------------------------------------------------------------------------------- */

/* NULL when the kernel is well formed for its level, else one line that says what is not. */
const char *kernel_verify(const Kernel *k);
/* Recomputed wherever needed rather than kept: elementwise, loads, sums, time, weave, rename. */
bool value_is_cheap(const Inst *in);

/* eval.c --------------------------------------------------------------------------------------- */

/* One sequence and one head in fp64. Arrays are dense in order [time][port shape].
 * in[i] for inputs has T rows, for params one. state is [K,V], read and replaced.
 * out[o] has T rows. At chunk and tile level the sequence is cut into chunks of axis C's size and
 * the last one is padded with null tokens: their per-token inputs load as 0, and every weave gives
 * its `fill` (Inst.num) for their rows, whatever the operand holds there: 1 for decays, 0 for what
 * is read and written. Their outputs are not stored. `state` may be NULL: zero, not given back. */
typedef struct EvalArgs {
    int64_t T;
    const double *const *in;
    double *const *out;
    double *state;
    double *costate; /* gradient kernels: of the final state, replaced by that of the initial one */
} EvalArgs;
void kernel_eval(const Kernel *k, Arena *scratch, const EvalArgs *args);
/* One elementwise operation; b is ignored by unary ones. */
double op_eval(Op op, double a, double b);

#endif
