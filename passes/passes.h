/* passes: from a recurrence to a tile program. One pass, one file; listed once, in order, in
 * passes.def; pipeline.c is the only place that dumps, times, verifies and checks levels.
 */
#ifndef GDR_PASSES_H
#define GDR_PASSES_H

#include "ir/ir.h"

typedef struct PassInfo {
    const char *name;
    Level from, to;
    void (*run)(Kernel *k);
    const char *doc;
} PassInfo;
extern const PassInfo pass_info[];
extern const int pass_count;

#define PASS(name, from, to, doc) void pass_##name(Kernel *k);
#include "passes/passes.def"
#undef PASS

/* How a pipeline run is watched. `dump` receives the text after each pass that is asked for. */
typedef struct PassWatch {
    const char *dump_after;              /* a pass, "all", or NULL */
    bool time_passes, verify_each;
    void (*dump)(void *user, const char *pass, const char *text, bool changed);
    void (*time)(void *user, const char *pass, double seconds);
    void *user;
} PassWatch;

/* Run every pass up to and including `stop_after` (NULL = all). The chunk size is the size of
 * k->axis[AXIS_C] set by kernel_set_chunk. Stops before `chunk` when the facts say that no chunk
 * form exists; k->level says how far it came. */
void passes_run(Kernel *k, const char *stop_after, const PassWatch *watch);
/* The same from the pass that follows `after` (NULL = the first) on, for a kernel that has come as
 * far as `after`. */
void passes_run_after(Kernel *k, const char *after, const char *stop_after, const PassWatch *watch);
int pass_find(const char *name); /* -1 if there is none */

/* fold.c: folding, merging and dropping in place, at any level; every pass may end with it. Shapes,
 * roles and effects stay; NaN and infinities are never lost. */
void kernel_simplify(Kernel *k);

/* Tokens per chunk for a chunk of at most `rows` equations: rows / slots, at least 1. Call after
 * `normal`; sets the axes C, R and U. */
void kernel_set_chunk(Kernel *k, int rows);

/* adjoint.c ------------------------------------------------------------------------------------ */

/* The gradient kernel (ir.h) of a forward kernel. Of one at chunk level, after `peel`, so that both compute
 * states in one way, bit for bit: `peel`, of what is new, and `roles` come next,
 * passes_run_after(k, "collapse", ...). Of one at recurrence level: done. Bit o of `outs`: the gradient of output o is given,
 * as input d<out>; without it, it is zero. Bit i of `ins`: the gradient of input i is wanted, as
 * output d<in>. At most GRADIENT_PORTS of each. The state's gradients are EvalArgs.costate. */
enum { GRADIENT_PORTS = 64 };
Kernel *kernel_adjoint(const Kernel *forward, uint64_t outs, uint64_t ins);

/* token.c -------------------------------------------------------------------------------------- */

/* A recurrence kernel in normal form as lists. Numbers are values of that kernel; -1 = absent. */
typedef struct TokenEvent {
    Op op;          /* decay or update */
    int inst;
    int a;          /* decay: the factor */
    int p, c, read; /* update: S += p (c + read)', or c - read when `minus` */
    bool minus;
    int place;      /* events before that read */
} TokenEvent;
typedef struct TokenRead {
    int inst, x;    /* x'S */
    int place;      /* events before it */
    bool by_out;    /* an output looks at it */
} TokenRead;
typedef struct Token {
    VEC(TokenEvent) event;
    VEC(TokenRead) read;
    VEC(int) out;   /* instructions */
    int updates;
} Token;
/* False when the kernel is not in the form that `normal` gives. */
bool token_read(const Kernel *k, Token *t);
/* By value: whether it depends on the state or its cotangent. */
bool *value_touches_state(const Kernel *k);

/* expr.c --------------------------------------------------------------------------------------- */

/* Values printed as the spec would write them. `name` may be set for further values. */
typedef struct Names {
    const Kernel *k;
    const char **name; /* by value, NULL = written out */
    bool *used;        /* by value: its name was printed */
    int left;          /* values that the expression at hand may still write out */
} Names;
Names names_new(const Kernel *k);
/* `as_factor`: with parentheses where it stands in a product. */
void names_print(Names *n, int v, bool as_factor, Buf *out);
/* The value written out although it has a name. */
void names_define(Names *n, int v, Buf *out);

/* system.c ------------------------------------------------------------------------------------- */

/* Of one token and head, in bf16; milliseconds for 10^6 of them on an H100 (rates measured). */
#define COST_TERABYTES 3.0
#define COST_TERAFLOPS 800.0
typedef struct Cost { int chunk; double flops, bytes, ms_memory, ms_compute; } Cost;
typedef struct SystemRow { const char *name, *shape, *text; } SystemRow;
typedef struct SystemTable { VEC(SystemRow) row; Cost cost; } SystemTable;
/* Of a tile kernel, forward or gradient. */
void system_cost(const Kernel *tile, Cost *c);
double system_flops(const Kernel *tile, Role role); /* a token and head */
/* Chunks from one saved state to the next: so many that its f32 K*V cost a token an eighth of the bf16 row
 * of a key and a value. */
int save_every(int64_t K, int64_t V, int64_t chunk);
/* The matrices of the chunk system, each with its definition, and what it costs. */
void system_describe(const Kernel *tile, SystemTable *t);

/* explain.c ------------------------------------------------------------------------------------ */

typedef enum { EXPLAIN_text, EXPLAIN_markdown, EXPLAIN_json } ExplainFormat;
/* What a target's kernels need for themselves, of one head: its code generator knows. */
typedef struct Footprint {
    const char *why_not; /* there are none, or none by chunks: the reason; else NULL */
    bool any;            /* there are kernels, */
    bool by_chunks;      /* by chunks, not the recurrence */
    int chunk;           /* tokens of a chunk; recurrence: from one state that is kept to the next */
    int64_t bytes;       /* of each of these */
    double ahead;        /* a token: values made ahead of the chunks */
    int save_every;      /* chunks from one state that a forward pass may save to the next; 0: it cannot */
    int64_t saved_bytes; /* of such a state */
} Footprint;
typedef struct Footprints {
    Footprint forward;   /* GPU */
    Footprint gpu, cpu;  /* backward */
} Footprints;
/* What a spec is: `normal` is its recurrence after the pass of that name; `tile` its kernel after
 * all passes, or NULL where no chunk form exists; `grad` its gradient kernel after all passes, or
 * NULL. */
void explain(const Kernel *normal, const Kernel *tile, const Kernel *grad, const Footprints *need,
             ExplainFormat f, Buf *out);

#endif
