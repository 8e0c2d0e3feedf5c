/* driver: the command `gdrc`.
 *
 *   main.c       which call, its help, the version
 *   options.c    the command line
 *   driver.c     what all calls share
 *   spec.c       opening specs, printing their messages
 *   convert.c    tensors in memory
 *   problem.c    tensors of one pass; running it
 *   device.c     its tensors on a GPU
 *   timing.c     the time of launches
 *   reference.c  running it by the reference
 *   nearby.c     and gradients next to it, moved by as much as kernels round
 *   inputs.c     random inputs for any spec
 *   measure.c    how far results are from the reference
 *   sgemm.c      what one core can do
 *   decode.c     decoding steps: pools, what must hold
 *   header_*.c   the rest of it: what is saved, backward passes on a GPU (header.h)
 *   check.c explain.c compile.c header.c run.c verify.c cases.c property.c bench.c   the calls
 *
 * Exit status: 0 done; 1 the input was refused or a check failed; 2 usage; 3 the environment
 * cannot.
 */
#ifndef GDR_DRIVER_H
#define GDR_DRIVER_H

#include "frontend/frontend.h"
#include "runtime/runtime.h"

enum { EXIT_done, EXIT_refused, EXIT_usage, EXIT_environment };

/* options.c ------------------------------------------------------------------------------------ */

typedef enum { FORMAT_text, FORMAT_markdown, FORMAT_json } Format;
typedef enum { DEVICE_cpu, DEVICE_cuda } Device;
typedef enum { METHOD_auto, METHOD_chunk, METHOD_recurrent, METHOD_reference } Method;

/* B, T, H as in bench's --shape; key_heads is H when not given. */
typedef struct BenchShape {
    int64_t B, T, H, key_heads;
} BenchShape;

/* What the command line said. Unset texts are NULL, unset numbers 0. */
typedef struct Options {
    VEC(const char *) file;
    const char *variant, *in, *out, *dir, *json, *cache_dir, *cpu;
    const char *targets, *passes, *emit, *dump_after;
    VEC(gdr_dim) dim;
    VEC(BenchShape) shape;
    bool has_dtype;
    gdr_dtype dtype;
    int device, method, format, diag_format, chunk, threads, case_number, input_sets, opt_level;
    int v_tile;
    int state_type, state_layout; /* gdr_dtype, gdr_layout */
    int pool, keep_all;
    int save; /* gdr_save */
    bool has_seed, no_cache, check_ranges, full, in_place, check_only, step;
    uint64_t seed;
    bool time_passes, verify_each, list_passes, help, grad;
} Options;

typedef struct Driver {
    Arena arena; /* lives as long as the command */
    Options opt;
    gdr_context *ctx; /* made by driver_context */
    PassWatch watch;
} Driver;

typedef struct Command {
    const char *name, *operands, *doc, *example;
    unsigned bit; /* which options it takes */
    int min_files, max_files;
    int (*run)(Driver *d);
} Command;
extern const Command command_list[];
extern const int command_count;

/* Fills d->opt from the arguments after the call's name; 0 or EXIT_usage after a message. */
int options_parse(Driver *d, const Command *c, int argc, char **argv);
void options_help(const Command *c, Buf *out);

/* The calls. */
int command_check(Driver *d);
int command_fmt(Driver *d);
int command_explain(Driver *d);
int command_compile(Driver *d);
int command_run(Driver *d);
int command_verify(Driver *d);
int command_bench(Driver *d);

/* driver.c ------------------------------------------------------------------------------------- */

/* Prints "gdrc: ..." and returns `exit_status`. */
int fail(int exit_status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same for a call of the library that failed. */
int fail_status(Driver *d, gdr_status status);
/* The library's context, made at the first use; NULL after a message. */
gdr_context *driver_context(Driver *d);
/* The watch that the options ask for, or NULL. */
const PassWatch *driver_watch(Driver *d);
/* Writes a text to standard output. */
void put(const Buf *text);

/* spec.c --------------------------------------------------------------------------------------- */

typedef struct Spec {
    const char *path;
    Source *source;
    Interner names;
    SpecFile *file;
    Diag diag;
} Spec;

/* Reads, parses and checks; prints messages. 0 or the exit status. */
int spec_open(Driver *d, const char *path, Spec *s);
/* Lowers a variant (NULL: the only one); NULL after messages. Warnings are not repeated. */
Kernel *spec_kernel(Driver *d, Spec *s, const char *variant, const gdr_dim *dims, int ndims);
void print_diag(Driver *d, const Diag *diag);
/* compile_input's callback, which prints errors: user is the Driver. */
void print_diag_callback(void *driver, const Diag *diag);

/* convert.c ------------------------------------------------------------------------------------ */

/* A tensor in the arena, its data zero. */
Tensor tensor_new(Arena *a, const char *name, gdr_dtype type, int ndim, const int64_t *shape);
/* The same numbers in another type. */
Tensor tensor_convert(Arena *a, const Tensor *t, gdr_dtype type);
void tensor_poison(Tensor *t); /* NaN everywhere */
int64_t tensor_count(const Tensor *t);

/* problem.c ------------------------------------------------------------------------------------ */

/* One pass: a variant with its sizes and the tensors that go in. */
typedef struct Problem {
    Spec *spec;
    const char *variant;
    const gdr_dim *dims;
    int ndims;
    Kernel *k;     /* recurrence level: ports and their types */
    Tensor *in;    /* per port */
    Tensor S0, cu; /* data NULL: none */
    bool want_cu;
    int64_t B, T, N, H;
    /* States: their type and layout in memory, and what gdr_launch says of pools; data NULL: none. */
    gdr_dtype state_type;
    gdr_layout state_layout;
    Tensor S0_slots, S0_accepted, S_slots, S_accepted, past0;
    bool in_place;      /* S is S0, and past past0 */
    int64_t each;       /* S is [N,each,...]: the states after every token; 0: the last ones */
    int past;           /* what is remembered beside a state, if that is wanted (facts.past) */
    bool grad;          /* the backward pass: */
    const char **dname; /* of the gradients of outputs, then of inputs (gradient_names) */
    Tensor *dout;       /* per output; data NULL: not given */
    Tensor dS;          /* data NULL: none */
    Roundings rounded;  /* the reference's alone */
} Problem;

/* What comes out: outputs and the final state, or the gradients of inputs and params and that of
 * the initial state. */
typedef struct Outcome {
    Tensor *out; /* f64 from the reference, else the port's type */
    Tensor S;    /* [N,H,K,V], in the problem's layout */
    Tensor past; /* data NULL: none */
} Outcome;
int problem_results(const Problem *p);               /* entries of Outcome.out */
const Port *problem_result(const Problem *p, int i); /* the port it is, or is the gradient of */
const char *problem_result_name(const Problem *p, int i);

/* Where a GPU's workspace comes from, and how much it is; half: between the least and the default. */
typedef enum { MEMORY_default, MEMORY_least, MEMORY_half, MEMORY_pool } Memory;

/* How to compute it. */
typedef struct Engine {
    Method method;
    Device device;
    int chunk;          /* rows of the chunk; 0: the target's choice */
    bool only_given;    /* backward: for those upstream gradients alone that the problem has */
    gdr_save save;      /* forward on a GPU: what is kept for a backward pass */
    Memory memory;
    gdr_kernel *kernel; /* NULL for the reference */
} Engine;

/* A launch of the problem's host tensors. args has room for problem_args, results come first. */
enum {
    EXTRA_cu, /* data NULL: none */
    EXTRA_S0,
    EXTRA_S, /* or dS0 */
    EXTRA_dS,
    EXTRA_S0_slots,
    EXTRA_S0_accepted,
    EXTRA_S_slots,
    EXTRA_S_accepted,
    EXTRA_past0,
    EXTRA_past,
    PROBLEM_EXTRA
};
int problem_args(const Problem *p);
gdr_launch problem_launch(const Problem *p, const Outcome *o, gdr_arg *args,
                          gdr_tensor extra[PROBLEM_EXTRA]);

/* Sizes of in[] into B, T, N, H; false after a message when they make no sense. */
gdr_status problem_sizes(Driver *d, Problem *p);
/* The public options that describe the problem. */
gdr_compile_options problem_options(Driver *d, const Problem *p, const Engine *e);
/* Compiles the engine's kernel; nothing to do for the reference. */
gdr_status engine_open(Driver *d, const Problem *p, Engine *e);
void engine_close(Engine *e);
/* Runs it. Outputs are poisoned first; `out` lives in `arena`. */
gdr_status engine_run(Driver *d, const Problem *p, const Engine *e, Arena *arena, Outcome *out);

/* Outputs and final states, poisoned, or as they start where the problem says in place; f64 for the
 * reference. */
Outcome outcome_new(Arena *arena, const Problem *p, bool reference);
/* The CPU kernel again on an outcome of engine_run; nothing is poisoned. */
gdr_status engine_relaunch(const Problem *p, const Engine *e, Outcome *out);

/* reference.c: the problem by the fp64 reference, on as many threads as the CPU has. */
gdr_status run_reference(Driver *d, const Problem *p, Outcome *o);

/* device.c ------------------------------------------------------------------------------------- */

/* Device copies of a problem's tensors, for repeated launches. What is in `host` must outlive the set,
 * as must the set whose tensors it shares. */
typedef struct DeviceSet {
    const void **host; /* what the device memory is a copy of, or poisoned for */
    uint64_t *memory, workspace;
    int count;
    size_t tensor_bytes; /* of all that is not shared, without workspace and what is saved */
    gdr_saved saved;
    gdr_arg *arg;
    gdr_tensor extra[PROBLEM_EXTRA];
    gdr_launch launch;
} DeviceSet;
/* `shared`: the forward pass whose inputs are used, and what it saved; NULL: none. */
gdr_status device_set_open(Driver *d, const Problem *p, const Engine *e, const Outcome *host,
                           DeviceSet *shared, DeviceSet *s, Arena *arena);
void device_set_close(Driver *d, DeviceSet *s);
gdr_status device_set_launch(const Problem *p, const Engine *e, const DeviceSet *s);
/* engine_run on a GPU, after its checks. */
gdr_status device_run(Driver *d, const Problem *p, const Engine *e, Arena *arena, Outcome *o);
/* Forward, saving as the engine says, then backward; the gradients. */
gdr_status device_run_training(Driver *d, const Problem *p, const Engine *forward,
                               const Engine *backward, Arena *arena, Outcome *o);

/* timing.c ------------------------------------------------------------------------------------- */

typedef struct Sample {
    double seconds, least, most;
    int count;
} Sample;

/* Launches in turn through several sets of tensors: a forward pass, and with `backward.kernel` the
 * backward pass of the same inputs. */
typedef struct Timing {
    Driver *d;
    Arena *arena;
    Problem forward_problem, backward_problem;
    Engine forward, backward;
    int sets, turn;
    DeviceSet *forward_set, *backward_set; /* GPU */
    Outcome *forward_out, *backward_out;
    bool run_forward, run_backward; /* what is being timed */
    double peak_bytes, tensor_bytes; /* GPU: memory of one step of all, and of its tensors */
    gdr_status status;
} Timing;
/* Tensors, and every launch once; engines are open, problems, d, arena and sets filled in. */
gdr_status timing_open(Timing *t);
void timing_close(Timing *t);
gdr_status timing_measure(Timing *t, bool forward, bool backward, Sample *s);
double seconds_now(void);

/* inputs.c ------------------------------------------------------------------------------------- */

/* Patterns of log-decays, keys and unit-range gates that are hard in different ways. */
typedef enum { GATE_uniform, GATE_zero, GATE_tiny, GATE_strong, GATE_resets, GATE_mixed } Gate;
typedef enum { KEYS_random, KEYS_close9, KEYS_close99, KEYS_same, KEYS_onehot, KEYS_growth } Keys;
typedef enum { UNIT_uniform, UNIT_low, UNIT_high } Unit;
/* Which gradients come from outside: of every output and of the state, or some of them. */
typedef enum { UPSTREAM_all, UPSTREAM_outs, UPSTREAM_first, UPSTREAM_state } Upstream;

enum { SEQUENCES_MAX = 16 };

/* One case of random inputs: sizes, types, patterns. */
typedef struct Case {
    gdr_dtype type;
    int K, V;
    int64_t B, T, H, key_heads;
    int sequences; /* 0: dense; else packed with these lengths */
    int64_t length[SEQUENCES_MAX];
    int64_t spare;  /* packed: rows that belong to no sequence */
    int64_t repeat; /* tokens after which the numbers come again; 0: never */
    Gate gate;
    Keys keys;
    Unit unit;
    bool S0;
    bool grad; /* a backward pass */
    Upstream upstream;
} Case;

/* What varies one case's numbers: tokens of sequence `sequence` from `from` on are drawn anew, or
 * with `upstream` its upstream gradients before `from`. */
typedef struct Change {
    bool any;
    int64_t sequence, from;
    bool upstream;
} Change;

/* The problem of a case. Numbers depend on seed, tensor, sequence, token, head and element, not on
 * where a sequence lies: sequence n of the problem is number (n + rotate) % N. Tensors live in
 * `arena`. NULL kernel (p->k) after messages. */
void case_problem(Driver *d, Arena *arena, Spec *s, const char *variant, const Case *c,
                  uint64_t seed, int rotate, const Change *change, Problem *p);

/* Whether it is like a key or a value, and not a gate, a decay or a plain number. */
bool input_is_vector(const Kernel *k, int port);

/* decode.c ------------------------------------------------------------------------------------- */

/* The problem's sequences in slots, all over the place, of a pool of so many states at least, updated
 * in place, and what is remembered beside them. */
void decode_pool(Arena *arena, Problem *p, int64_t slots);
/* As property_check, of decoding steps. */
gdr_status decode_check(Driver *d, Spec *s, const char *variant, const Case *c, Engine *e,
                        const char **broken);

/* measure.c ------------------------------------------------------------------------------------ */

/* References of a gradient nearby: whatever a kernel rounds is moved by so much, see nearby.c. */
enum { NEARBY = 4 };
gdr_status nearby_references(Driver *d, const Problem *p, Arena *arena, Outcome near[NEARBY]);

/* ratio = rms(x - ref) / (rms(ref) + 1e-8), over all elements, and the worst head and sequence: see
 * measure.c. `near`: the nearby references' [NEARBY], for gradients by f16 operands, or NULL. */
typedef struct Distance {
    double whole, head, sequence, max_abs;
    bool finite;
    bool moves; /* the reference does, by a fraction of the whole difference */
} Distance;
Distance measure_out(const Problem *p, const Tensor *reference, const Tensor *const *near,
                     const Tensor *x);
Distance measure_state(const Problem *p, const Tensor *reference, const Tensor *const *near,
                       const Tensor *x);
Distance measure_param(const Tensor *reference, const Tensor *const *near,
                       const Tensor *x); /* [heads, ...] */
/* testing.md's rule: the whole within the threshold, heads and sequences within three times it. */
bool distance_ok(const Distance *x, double threshold);
/* Whether rows that belong to no sequence still hold the poison. */
bool spare_rows_untouched(const Problem *p, const Tensor *out);
/* First row and length of sequence n. */
void problem_sequence(const Problem *p, int64_t n, int64_t *begin, int64_t *length);

/* sgemm.c -------------------------------------------------------------------------------------- */

/* Operations a second of one thread's matrix product in the BLAS library found (*name); 0: none. */
double sgemm_measure(const char **name);

/* header.c ------------------------------------------------------------------------------------- */

/* The C header of a variant's kernels: one frame struct, then each entry and how to call it. */
void header_print(const char *name, gdr_kernel *const *kernel, int count, Buf *out);
/* A port's name as a member of the frame. */
const char *header_field(Arena *a, const Port *p);

/* cases.c, property.c -------------------------------------------------------------------------- */

/* The cases of a run, in the order of their numbers. */
int case_list(Driver *d, bool full, const Case **list);
int case_list_grad(Driver *d, bool full, const Case **list);
void case_print(const Case *c, Buf *out);
/* What must hold bit for bit: causality, repeatability, independence of the place in a batch and of
 * the neighbours in a pack. *broken: the first that does not hold, or NULL. `e` is open. */
gdr_status property_check(Driver *d, Spec *s, const char *variant, const Case *c, Engine *e,
                          const char **broken);

#endif
