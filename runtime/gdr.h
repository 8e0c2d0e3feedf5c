/* gdr.h: the public C API of libgdr, the gated delta-rule compiler and its runtime.
 *
 *     gdr_context *ctx;  gdr_kernel *kernel;
 *     gdr_context_create(NULL, &ctx);
 *     gdr_compile_file(ctx, "gdn2.gdr", NULL, &kernel);       spec text -> loaded machine code
 *     gdr_forward(kernel, &launch);                           tensors by name
 *     gdr_kernel_destroy(kernel);  gdr_context_destroy(ctx);
 *
 * Every function that can fail returns a gdr_status; gdr_last_error() then says in one line what
 * was wrong for the calling thread. Nothing is global: everything hangs off a gdr_context, and all
 * functions may be called from several threads at once (destroying an object that another thread
 * still uses excepted). Structs that callers fill begin with `size` = sizeof the struct, so that a
 * library with other fields refuses them instead of misreading them.
 */
#ifndef GDR_H
#define GDR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(GDR_STATIC)
#define GDR_API
#elif defined(__GNUC__)
#define GDR_API __attribute__((visibility("default")))
#else
#define GDR_API
#endif

#define GDR_VERSION_MAJOR 0
#define GDR_VERSION_MINOR 1
#define GDR_VERSION_PATCH 0

/* status --------------------------------------------------------------------------------------- */

/* X(name, exit status of the gdrc command, text) */
#define GDR_STATUS_LIST(X)                                    \
    X(OK, 0, "no error")                                      \
    X(ESPEC, 1, "the spec has errors")                        \
    X(EINPUT, 1, "a tensor, file or argument was refused")    \
    X(ELIMIT, 1, "beyond a limit of the target or algorithm") \
    X(EUSAGE, 2, "an option is not valid")                    \
    X(ENOMEM, 3, "out of memory")                             \
    X(ENODEV, 3, "no usable GPU or GPU driver")               \
    X(EDRIVER, 3, "the GPU driver reported an error")         \
    X(EUNSUPPORTED, 3, "not available in this build or environment")

typedef enum gdr_status {
#define GDR_X(name, exit_status, text) GDR_##name,
    GDR_STATUS_LIST(GDR_X)
#undef GDR_X
        GDR_STATUS_COUNT
} gdr_status;

/* A short text for a status; never NULL. */
GDR_API const char *gdr_strstatus(gdr_status status);
/* The exit status that the gdrc command gives for it: 0, 1, 2 or 3. */
GDR_API int gdr_exit_status(gdr_status status);
/* "gdrc 0.1.0" and LLVM's version, one line. */
GDR_API const char *gdr_version(void);

/* context -------------------------------------------------------------------------------------- */

typedef struct gdr_context gdr_context;
typedef struct gdr_kernel gdr_kernel;

typedef enum gdr_severity { GDR_NOTE, GDR_WARNING, GDR_ERROR } gdr_severity;

/* A message about the user's spec. Lines and columns count from 1; 0 where there is no place. */
typedef struct gdr_diagnostic {
    gdr_severity severity;
    const char *file;
    int line, column, end_line, end_column;
    const char *message;
} gdr_diagnostic;

/* Called on the thread that compiles; the texts live until the callback returns. */
typedef void (*gdr_diag_fn)(void *user, const gdr_diagnostic *d);
/* Messages about the environment: an unwritable cache, a compiler warning on a GPU kernel. */
typedef void (*gdr_log_fn)(void *user, gdr_severity severity, const char *message);

typedef struct gdr_context_options {
    size_t size; /* sizeof(gdr_context_options) */
    const char
        *cache_dir;   /* NULL: $GDR_CACHE_DIR, $XDG_CACHE_HOME/gdrc or ~/.cache/gdrc; "": none */
    int threads;      /* of CPU launches, the caller's included; 0: the CPUs this process may use */
    int device;       /* ordinal of the GPU; the caller's current CUDA context wins over it */
    gdr_diag_fn diag; /* may be NULL */
    gdr_log_fn log;   /* may be NULL */
    void *user;       /* handed to both */
} gdr_context_options;

/* `options` may be NULL. On failure *ctx is NULL. */
GDR_API gdr_status gdr_context_create(const gdr_context_options *options, gdr_context **ctx);
/* Kernels of the context must be destroyed first. NULL is allowed. */
GDR_API void gdr_context_destroy(gdr_context *ctx);
/* What the calling thread's last failing call on this context reported, one line, never NULL; valid
 * until that thread's next failing call or the context's end. */
GDR_API const char *gdr_last_error(gdr_context *ctx);

/* compile -------------------------------------------------------------------------------------- */

typedef enum gdr_dtype {
    GDR_F32,
    GDR_BF16,
    GDR_F16,
    GDR_F64,
    GDR_I32,
    GDR_I64,
    GDR_DTYPE_COUNT
} gdr_dtype;
/* "f32", "bf16", ... */
GDR_API const char *gdr_dtype_name(gdr_dtype type);
/* Bytes of one element. */
GDR_API size_t gdr_dtype_size(gdr_dtype type);

typedef enum gdr_algo {
    GDR_ALGO_AUTO,     /* chunk where the spec has a chunk form, else recurrent */
    GDR_ALGO_CHUNK,    /* chunk by chunk, matrix products: long sequences */
    GDR_ALGO_RECURRENT /* token by token: decoding steps, and every spec */
} gdr_algo;

typedef enum gdr_pass {
    GDR_PASS_FORWARD, /* outputs and final state: gdr_forward */
    GDR_PASS_BACKWARD /* gradients of inputs, params and the initial state: gdr_backward */
} gdr_pass;

/* What a forward pass on a GPU keeps for the backward pass, which otherwise makes it again. */
typedef enum gdr_save {
    GDR_SAVE_NOTHING,
    GDR_SAVE_STATES, /* a state every so many chunks, 2 % of the tensors of gdn2: gdr_saved_size */
    GDR_SAVE_ALL     /* all that a backward pass works on, 7/10 of them: it makes nothing again */
} gdr_save;

/* How a state's elements lie in memory: row by row of [K,V], or of its transpose. */
typedef enum gdr_layout { GDR_LAYOUT_KV, GDR_LAYOUT_VK } gdr_layout;

typedef struct gdr_dim {
    const char *name;
    int64_t size;
} gdr_dim;
typedef struct gdr_port_dtype {
    const char *name;
    gdr_dtype dtype;
} gdr_port_dtype;

typedef struct gdr_compile_options {
    size_t size;         /* sizeof(gdr_compile_options) */
    const char *variant; /* NULL: the file's only one */
    const gdr_dim *dims; /* sizes that override the spec's defaults */
    int ndims;
    gdr_dtype dtype;             /* of per-token inputs and outputs: F32, BF16 or F16 */
    const gdr_port_dtype *types; /* other types for named inputs */
    int ntypes;
    const char *target; /* NULL or "host"; "cuda": the context's GPU; "sm_90a", "sm_80" */
    gdr_algo algo;
    int chunk_rows; /* rows of the chunk system; 0: the target's choice */
    int opt_level;  /* 1..3; 0: the target's choice */
    gdr_pass pass;
    /* Backward: the outputs whose gradients a launch may give, and the inputs and params whose
     * gradients it may ask for, by the spec's names. NULL: all of them; fewer are less work. */
    const char *const *upstream;
    int nupstream;
    const char *const *gradients;
    int ngradients;
    /* Forward: states in memory; what is computed with them is f32 always. */
    gdr_dtype state_dtype; /* F32, BF16 or F16 */
    gdr_layout state_layout;
    gdr_save save; /* forward: what launches may save */
} gdr_compile_options;

/* Spec text (`length` bytes; `name` appears in messages) or a spec file -> a kernel ready to
 * launch. From the cache when the same text and options were compiled before on this kind of
 * machine. `options` may be NULL. ESPEC: the messages went to the context's diag callback, the
 * first one is also gdr_last_error(). ELIMIT: no chunk form where one was asked for, or more than
 * the target holds. On failure *kernel is NULL. */
GDR_API gdr_status gdr_compile_string(gdr_context *ctx, const char *name, const char *text,
                                      size_t length, const gdr_compile_options *options,
                                      gdr_kernel **kernel);
GDR_API gdr_status gdr_compile_file(gdr_context *ctx, const char *path,
                                    const gdr_compile_options *options, gdr_kernel **kernel);
GDR_API void gdr_kernel_destroy(gdr_kernel *kernel); /* no launch of it may be in flight */

/* inspect -------------------------------------------------------------------------------------- */

typedef enum gdr_port_kind {
    GDR_INPUT,
    GDR_PARAM,
    GDR_OUTPUT,
    /* of backward kernels: */
    GDR_UPSTREAM,      /* the gradient of an output, given */
    GDR_GRADIENT,      /* of an input */
    GDR_PARAM_GRADIENT /* of a param */
} gdr_port_kind;

/* The shape of one token and head: the tensor's is [B,T,heads,shape...], a param's
 * [heads,shape...]. */
typedef struct gdr_port {
    const char *name;
    const char *of; /* gradients: the port that they are gradients of; else NULL */
    gdr_port_kind kind;
    gdr_dtype dtype;
    int ndim;
    int64_t shape[3];
    double lo, hi; /* declared range; infinite where open */
} gdr_port;

typedef struct gdr_facts {
    const char *name;   /* the variant */
    const char *target; /* "host", "sm_90a", ... */
    gdr_pass pass;
    gdr_algo algo;       /* CHUNK or RECURRENT */
    int64_t K, V;        /* the state's rows and columns */
    int chunk;           /* tokens a chunk; 0 for the recurrent algorithm */
    int updates;         /* rank-1 updates a token */
    const char *decay;   /* "none", "scalar", "key", "value", "mixed" */
    int chunkable;       /* whether a chunk form exists ... */
    const char *why_not; /* ... and the reason when it does not, else NULL */
    gdr_dtype state_dtype;
    gdr_layout state_layout;
    int past;            /* forward: f32 numbers that a head remembers besides its state, past0 */
    int from_cache;      /* whether this kernel was loaded from the cache */
} gdr_facts;

/* Ports in order: inputs and params as declared, upstream gradients, then what is computed. The
 * gradient of x is called dx, with more d's where the spec has that name. */
GDR_API int gdr_kernel_ports(const gdr_kernel *kernel);
GDR_API gdr_status gdr_kernel_port(const gdr_kernel *kernel, int index, gdr_port *port);
/* Texts live as long as the kernel. */
GDR_API void gdr_kernel_facts(const gdr_kernel *kernel, gdr_facts *facts);
/* Names of the machine code's entry points; NULL past the last. */
GDR_API const char *gdr_kernel_symbol(const gdr_kernel *kernel, int index);
/* Everything above, launch rules included, as one JSON object; lives as long as the kernel. */
GDR_API const char *gdr_kernel_manifest(const gdr_kernel *kernel);

/* launch --------------------------------------------------------------------------------------- */

typedef enum gdr_device { GDR_CPU, GDR_CUDA } gdr_device;

/* A dense tensor, in the manner of DLPack: row-major; strides count elements and may be NULL.
 * Memory must be aligned to its element type (GPU: to 16 bytes, except for integers). */
typedef struct gdr_tensor {
    void *data;
    gdr_device device;
    gdr_dtype dtype;
    int ndim;
    const int64_t *shape;
    const int64_t *strides;
} gdr_tensor;

typedef struct gdr_arg {
    const char *name;
    gdr_tensor tensor;
} gdr_arg;

/* What a forward pass saves: GPU memory of gdr_saved_size() bytes, aligned to 256, which must stay
 * as it is until the backward pass. With GDR_SAVE_ALL that writes there too, what it does not mind
 * finding if it is run again. */
typedef struct gdr_saved {
    void *data;
    size_t bytes;
    int chunk; /* set by gdr_forward: tokens a chunk; 0: nothing was saved */
    uint64_t records; /* likewise, GDR_SAVE_ALL: a number for what is where in data; else 0 */
} gdr_saved;

/* One forward pass over B sequences of T tokens (dense), or over N packed ones (cu_seqlens, B = 1).
 *
 *   inputs   [B,T,Hi,shape...]; Hi divides H, the widest input's heads; head h uses head h*Hi/H
 *   params   [Hi,shape...], f32
 *   outputs  [B,T,H,shape...]
 *   S0, S    [N,H,K,V] or [N,H,V,K] of state_dtype: states before and after; NULL S0 = zero, NULL
 *            S = not wanted. S may be S0. Below, more ways to say where states lie.
 *   cu_seqlens  [N+1] i32 or i64: sequence n owns tokens cu[n] .. cu[n+1]-1. On the CPU it is
 *            checked; in GPU memory it is trusted. Tokens past the last entry are not written.
 *
 * GPU: queued on `stream` (a CUstream, NULL = the default one) without any synchronisation, and
 * capturable in a CUDA graph; a backward pass also on a stream of the context's, between two of its
 * kernels on `stream`. CPU: returns when done. A decoding step is T = 1 on a recurrent kernel
 * with S0 and S; one of several tokens, to be accepted or not, T <= 16 or so.
 *
 * Pools. With slots, S0 or S is a pool [P,H,K,V] of any size P, whose states may be further apart
 * than their size (strides[0]); they may be one pool, updated in place.
 *
 *   S0_slots  [N] i32 or i64: sequence n starts from state S0_slots[n]. Or [N,M], with
 *   S0_accepted  [N], each 1 or more: from state S0_slots[n][S0_accepted[n] - 1]. Where the last
 *             launch left a state after every token it is the one after as many as were accepted
 *   S_slots   [N]: sequence n leaves its final state in slot S_slots[n]. Or [N,M], M >= its tokens:
 *             the state after its token t in slot S_slots[n][t]; as well, without slots, S may be
 *             [N,M,H,K,V]
 *   S_accepted  [N]: S gets the state after S_accepted[n] tokens instead of all (0: as it started);
 *             outputs are those of all
 *
 * A negative slot skips its sequence: nothing is read of it, no output and no state is written. In
 * S_slots of [N,M] it skips that state alone. States that no slot names stay as they are. No two
 * states may be written to one slot, and what one sequence writes no other may start from. On the
 * CPU all of this is checked; on a GPU a slot that the pool does not have counts as negative and
 * counts are clamped. All these tensors have one type. States after single tokens, and S_accepted,
 * are of the recurrent algorithm.
 *
 *   past0, past  [N,H,facts.past] f32: what prev and cumsum remember before and after, for variants
 *             that have them; addressed like S0 and S ([P,..], [N,M,..]). Without past0 they start
 *             at zero, as at a sequence's first token. May be the same. Not with `saved`: a
 *             backward pass starts at zero.
 *
 * A launch that starts from what another one left continues exactly there: with f32 states, two
 * launches of the recurrent algorithm give the bits of one, and two by chunks on the CPU if the
 * first has whole chunks. */
typedef struct gdr_launch {
    size_t size;         /* sizeof(gdr_launch) */
    const gdr_arg *args; /* every input, param and output, in any order */
    int nargs;
    const gdr_tensor *cu_seqlens; /* NULL: dense */
    const gdr_tensor *S0, *S;
    void *workspace; /* memory of the kernel's device; NULL: from a pool of the context */
    size_t workspace_bytes;
    void *stream;
    const gdr_tensor *dS, *dS0; /* backward */
    const gdr_tensor *S0_slots, *S0_accepted, *S_slots, *S_accepted; /* forward; NULL: none */
    const gdr_tensor *past0, *past;
    gdr_saved *saved; /* forward: filled, NULL = not wanted; backward: used, NULL = none */
} gdr_launch;

/* EINPUT says which tensor is missing, unknown, or wrong, with both shapes. EUSAGE: a kernel of the
 * other pass. */
GDR_API gdr_status gdr_forward(gdr_kernel *kernel, const gdr_launch *launch);

/* One backward pass, of a kernel compiled with GDR_PASS_BACKWARD, over the same sequences.
 *
 *   inputs, params, S0, cu_seqlens   as they were in the forward pass; S must be NULL
 *   upstream   [B,T,H,shape...], typed like the outputs: gradients of the outputs; any subset, an
 *              output without one counts as one that nothing depends on
 *   dS         [N,H,K,V] f32: gradient of the final state; NULL = zero
 *   gradients  shaped and typed like the input or param: any subset, those that are there are
 *              written. Heads that share an input are summed, params are summed over all tokens
 *              and sequences as well.
 *   dS0        [N,H,K,V] f32: gradient of the initial state, S0 NULL or not; NULL = not wanted. May
 *              be dS.
 *
 * States are made again from the inputs, or from those of the forward pass (`saved`) where its
 * kernel had chunks as long. What GDR_SAVE_ALL saved is of use to a kernel that was compiled for
 * the same spec, sizes and types, and for gradients of all outputs: EINPUT says where it is not.
 * GPU: as gdr_forward, queued. Sums have a fixed order: the same call gives the same bits with
 * any number of threads, whatever the workspace and, with K up to 192, with or without `saved`.
 * Tokens outside of all sequences count for nothing, their rows are not written. Other errors:
 * ENOMEM, when the workspace cannot be had. */
GDR_API gdr_status gdr_backward(gdr_kernel *kernel, const gdr_launch *launch);

/* Bytes of workspace this launch takes when it gets it from the context: 0 for forward passes on
 * the CPU; backward the states at the start of every chunk, and per-head gradients that are still
 * to be summed. Aligned to 256 bytes on a GPU, 64 on the CPU. Data pointers are not looked at.
 *
 * A pass by chunks on a GPU goes over them in segments. A backward pass takes as many at once as
 * fit 30 % of the bytes of all inputs, outputs and gradients, a forward pass that saves states
 * as many as fit 31 % together with these, but no less than what keeps the GPU busy; other
 * forward passes take all. With a workspace of the caller's it is as many as fit: more make it
 * faster until all do. The results are the same bits. */
GDR_API gdr_status gdr_workspace_size(gdr_kernel *kernel, const gdr_launch *launch, size_t *bytes);
/* The fewest bytes with which this launch can be done. */
GDR_API gdr_status gdr_workspace_least(gdr_kernel *kernel, const gdr_launch *launch, size_t *bytes);
/* Bytes of `saved.data` for this launch, of a forward kernel compiled with GDR_SAVE_STATES or
 * GDR_SAVE_ALL; of the backward kernel those of states; 0 where there is nothing to save: on the
 * CPU, by the recurrent algorithm, for few tokens. */
GDR_API gdr_status gdr_saved_size(gdr_kernel *kernel, const gdr_launch *launch, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
