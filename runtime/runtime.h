/* runtime: what stands between the compiler and a caller's tensors.
 *
 *   api.c          the public functions of gdr.h: contexts, inspection
 *   compile.c      spec text -> loaded kernel, through the cache
 *   build.c        spec text -> record: front end, passes, code generation
 *   assemble.c     all PTX of a record -> cubins
 *   cubin.c        PTX -> cubin
 *   record.c       what a compiled kernel must remember, as bytes
 *   manifest.c     the same as JSON
 *   cache.c        on-disk entries
 *   bind.c         tensors -> frame: every check of shapes and types
 *   tensor.c       those of one tensor alone
 *   states.c       those of states, pools and their indices
 *   workspace.c    how much memory a launch needs, segments of a backward pass on a GPU
 *   launch.c       frame -> threads or GPU launches: forward passes
 *   backward.c     the same for backward passes
 *   gradient.c     names of gradients; sums over heads and sequences after one on a CPU
 *   cuda.c         the driver, by dlopen
 *   side.c         streams beside the caller's
 *   hostjit.c      object file -> callable code
 *   pool.c         CPU threads
 *   scalar.c       numbers of all types
 *   safetensors.c  reading and writing tensor files (used by the command)
 *
 * LLVM headers stay inside codegen/, hostjit.c, cache.c and api.c; CUDA's are not used at all.
 */
#ifndef GDR_RUNTIME_H
#define GDR_RUNTIME_H

#include "codegen/codegen.h"
#include "passes/passes.h"
#include "runtime/gdr.h"

#define GDR_TEXT_(x) #x
#define GDR_TEXT(x) GDR_TEXT_(x)
#define GDR_VERSION \
    GDR_TEXT(GDR_VERSION_MAJOR) "." GDR_TEXT(GDR_VERSION_MINOR) "." GDR_TEXT(GDR_VERSION_PATCH)

/* hostjit.c ------------------------------------------------------------------------------------ */

/* Host machine code loaded from an object file that codegen_host made. Thread-safe. */
typedef struct HostCode HostCode;

/* The signature of a host entry: tasks first..last-1, task = sequence * H + head. */
typedef void HostEntry(const int64_t *frame, int64_t first, int64_t last, void *scratch);

/* The object's bytes are copied. NULL with one line in `why` on failure. */
HostCode *hostjit_load(const void *object, size_t len, char *why, size_t why_size);
/* NULL when there is no such symbol. */
HostEntry *hostjit_symbol(HostCode *code, const char *name);
void hostjit_free(HostCode *code); /* NULL is allowed */

/* cuda.c --------------------------------------------------------------------------------------- */

typedef struct Cuda Cuda;
typedef struct CudaModule CudaModule;

/* The driver, the device and a context: the caller's current one, else the device's primary one.
 * NULL with one line in `why` when there is no driver or no device. */
Cuda *cuda_open(int device, char *why, size_t why_size);
/* The same over any source of the driver's symbols: symbol(library, name), as dlsym. */
typedef void *CudaLookup(void *library, const char *name);
Cuda *cuda_open_with(CudaLookup *symbol, void *library, int device, char *why, size_t why_size);
void cuda_close(Cuda *cuda);
const char *cuda_device_name(const Cuda *cuda);
int cuda_compute_capability(const Cuda *cuda); /* 90 for 9.0 */
int cuda_driver_version(const Cuda *cuda);     /* 13000 for CUDA 13.0 */
int cuda_multiprocessors(const Cuda *cuda);
/* Nominal bytes/s of the memory, and operations/s of the matrix units on 2-byte types; 0: unknown.
 */
double cuda_bandwidth(const Cuda *cuda);
double cuda_matrix_rate(const Cuda *cuda);
/* Version of the installed driver without opening a device; 0 when there is none. */
int cuda_probe_version(void);

/* All of these make the context current for the call and restore what was. On failure they return
 * false (NULL) with one line in `why`. Streams are CUstream, NULL = the default stream. */
typedef struct CudaError {
    char text[512];
    bool no_memory;
} CudaError;
bool cuda_alloc(Cuda *cuda, size_t bytes, uint64_t *ptr, CudaError *e);
void cuda_free(Cuda *cuda, uint64_t ptr);
bool cuda_alloc_async(Cuda *cuda, size_t bytes, void *stream, uint64_t *ptr, CudaError *e);
bool cuda_free_async(Cuda *cuda, uint64_t ptr, void *stream, CudaError *e);
bool cuda_upload(Cuda *cuda, uint64_t dst, const void *src, size_t bytes, CudaError *e);
bool cuda_download(Cuda *cuda, void *dst, uint64_t src, size_t bytes, CudaError *e);
bool cuda_fill(Cuda *cuda, uint64_t dst, unsigned char byte, size_t bytes, CudaError *e);
/* Queued on the stream: zeros; device memory to other device memory. */
bool cuda_zero_async(Cuda *cuda, uint64_t dst, size_t bytes, void *stream, CudaError *e);
bool cuda_copy_async(Cuda *cuda, uint64_t dst, uint64_t src, size_t bytes, void *stream,
                     CudaError *e);
/* Waits, then gives back what stream-ordered memory keeps for later although nobody has it. */
bool cuda_trim(Cuda *cuda, CudaError *e);
/* Bytes of the device's memory that nobody has. */
bool cuda_free_memory(Cuda *cuda, size_t *bytes, CudaError *e);
bool cuda_synchronize(Cuda *cuda, CudaError *e);
/* Seconds that `run` takes on the device, between two events on the default stream. */
bool cuda_time(Cuda *cuda, bool (*run)(void *user), void *user, double *seconds, CudaError *e);

/* A stream of one's own, which waits for no other and whose blocks go before those of a stream with the
 * lowest priority, as streams have where nobody asked for another. Also while a graph is captured. */
bool cuda_stream_open(Cuda *cuda, void **stream, CudaError *e);
void cuda_stream_close(Cuda *cuda, void *stream);
/* The number of the graph capture that a stream is in, 0: none. False also when that has failed. */
bool cuda_stream_capture(Cuda *cuda, void *stream, uint64_t *capture, CudaError *e);
bool cuda_event_open(Cuda *cuda, void **event, CudaError *e);
void cuda_event_close(Cuda *cuda, void *event);
/* What is queued on `then` from now on waits for what `first` has. The event is free again at once. */
bool cuda_wait(Cuda *cuda, void *event, void *first, void *then, CudaError *e);

/* cubin: an image that cuModuleLoadData takes (a cubin or NUL-terminated PTX). */
CudaModule *cuda_module_load(Cuda *cuda, const void *cubin, CudaError *e);
void cuda_module_free(Cuda *cuda, CudaModule *m);
/* The kernel `symbol`, allowed to use `smem_bytes` of dynamic shared memory. */
void *cuda_function(Cuda *cuda, CudaModule *m, const char *symbol, int smem_bytes, CudaError *e);
/* A 1-D grid; the frame is the kernel's one parameter, by value. */
bool cuda_launch(Cuda *cuda, void *function, int64_t blocks, int threads, int smem_bytes,
                 void *stream, const int64_t *frame, int fields, CudaError *e);
/* PTX -> cubin for this device through the driver's linker. *cubin is malloc'ed; *log is the
 * compiler's output (malloc'ed, may be empty). */
bool cuda_link(Cuda *cuda, const char *ptx, void **cubin, size_t *len, char **log, CudaError *e);

/* side.c --------------------------------------------------------------------------------------- */

typedef struct Side Side;
/* A stream of the context's that only the caller queues on until it is given back; NULL: there is none to be
 * had beside `stream`. */
Side *side_take(gdr_context *ctx, void *stream);
void side_give(gdr_context *ctx, Side *s); /* NULL is allowed */
void *side_stream(const Side *s);
/* The side goes on from where `stream` is; `stream` waits for all that the side has. */
bool side_fork(Cuda *cuda, Side *s, void *stream, CudaError *e);
bool side_join(Cuda *cuda, Side *s, void *stream, CudaError *e);
void sides_free(gdr_context *ctx); /* all of them */

/* scalar.c ------------------------------------------------------------------------------------- */

double scalar_get(gdr_dtype type, const void *data, int64_t i);
void scalar_put(gdr_dtype type, void *data, int64_t i, double x); /* rounded to nearest even */

/* cubin.c -------------------------------------------------------------------------------------- */

/* Path of ptxas on PATH, or NULL; malloc'ed. */
char *ptxas_find(void);
/* The PTX without its kernels other than `symbol`; NULL when it has no such kernel. */
char *ptx_only(Arena *arena, const char *ptx, const char *symbol);
/* PTX -> cubin for `arch` by the ptxas command. *cubin and *log are malloc'ed. */
bool ptxas_run(const char *ptxas, const char *ptx, const char *arch, void **cubin, size_t *len,
               char **log, char *why, size_t why_size);
/* What in a ptxas or JIT log makes a kernel slow: spills, serialised matrix operations. Calls
 * `warn` for each finding, one line; returns how many. */
int cubin_scan_log(const char *log, void (*warn)(void *user, const char *line), void *user);

/* cache.c -------------------------------------------------------------------------------------- */

typedef struct {
    uint8_t byte[32];
} CacheKey;
typedef struct CacheHash CacheHash;                           /* a key being made */
CacheHash *cache_hash_new(void);                              /* NULL: out of memory */
void cache_hash_bytes(CacheHash *h, const void *p, size_t n); /* length and bytes */
void cache_hash_text(CacheHash *h, const char *s);            /* NULL differs from "" */
void cache_hash_int(CacheHash *h, int64_t x);
void cache_hash_build(CacheHash *h);   /* the version and build of this compiler */
CacheKey cache_hash_end(CacheHash *h); /* frees h */

/* The directory to use: `given`, else the environment's; malloc'ed; NULL = no cache. */
char *cache_directory(const char *given);
/* One entry's payload, malloc'ed; NULL when absent, damaged or unreadable. */
void *cache_read(const char *dir, CacheKey key, size_t *len);
/* Written beside and renamed, so readers see all or nothing. False with one line in `why`. */
bool cache_write(const char *dir, CacheKey key, const void *payload, size_t len, char *why,
                 size_t why_size);

/* A file written beside its place and renamed: all of it or nothing. */
typedef struct FilePart {
    const void *bytes;
    size_t len;
} FilePart;
bool file_write_atomic(const char *path, const FilePart *part, int parts, char *why,
                       size_t why_size);

/* pool.c --------------------------------------------------------------------------------------- */

typedef struct Pool Pool;
Pool *pool_new(int threads); /* 0: the CPUs this process may use; NULL: out of memory */
void pool_free(Pool *p);
int pool_threads(const Pool *p);
/* Calls entry(frame, first, last, scratch) for all tasks 0..tasks-1 and waits. False: no memory. */
bool pool_run(Pool *p, HostEntry *entry, const int64_t *frame, int64_t tasks,
              int64_t scratch_bytes);

/* compile.c ------------------------------------------------------------------------------------ */

typedef struct Image {
    const void *bytes;
    size_t len;
} Image;

/* A compiled kernel as it is remembered: what inspection and launches need, and its code. */
typedef struct Record {
    Kernel *shell;   /* ports, axes, facts; no instructions */
    CgModule module; /* object/text: host object, or PTX */
    Algo algo;
    Elem state;      /* of states in memory */
    bool state_vk;   /* [V,K] */
    const char *target;
    gdr_pass pass;
    gdr_save save;             /* forward: whether a launch may save */
    int inputs;                /* in ports that are the spec's; the others are upstream gradients */
    const char **of;           /* per in, then per out port of a gradient kernel: gradient of which;
                                  NULL for the spec's own */
    bool *factor_reads;        /* per input: read by the factor role */
    VEC(Image) cubin;          /* GPU, loaded code: one for each entry */
    VEC(const char *) warning; /* of the GPU assembler */
} Record;

struct gdr_kernel {
    gdr_context *ctx;
    Arena arena;
    Record rec;
    bool from_cache;
    const char *manifest;
    HostCode *host;
    HostEntry *host_entry;
    CudaModule **cuda_module; /* per entry */
    void **cuda_function;
};

typedef struct ThreadError ThreadError;
struct gdr_context {
    char *cache_dir;
    int device, threads;
    gdr_diag_fn diag;
    gdr_log_fn log;
    void *user;
    void *lock;          /* pthread_mutex_t: guards what follows */
    ThreadError *errors; /* last error text a thread */
    Pool *pool;          /* made at the first CPU launch */
    Cuda *cuda;          /* opened at the first use */
    Side *sides;         /* made when launches need them */
    bool cache_warned;
};

gdr_status ctx_fail(gdr_context *ctx, gdr_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void ctx_log(gdr_context *ctx, gdr_severity severity, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The context's GPU, opened on demand; NULL after ctx_fail(ENODEV). */
Cuda *ctx_cuda(gdr_context *ctx);
Pool *ctx_pool(gdr_context *ctx); /* NULL after ctx_fail(ENOMEM) */

/* Options beyond the public ones, for the command. */
typedef struct CompileExtra {
    const PassWatch *watch; /* dumps and times; the cache is then not used */
    void (*diag)(void *user,
                 const Diag *d); /* all messages of the spec, instead of the context's */
    void *diag_user;
    bool no_cache;
    bool no_load;               /* make code but do not load it: no device needed, no cubin made */
    bool want_llvm;             /* rec.module.text is LLVM IR */
    bool sizes_only;            /* with no_load, no_cache: what rec says of memory; it has no code */
    int v_tile;                 /* GPU, chunk: CgOptions.v_tile */
    const char *prefix;         /* of symbols; the variant's name follows it */
    const char *cpu, *features; /* of the host target; NULL: this machine's */
    int64_t fail_after; /* test hook: arena requests after which memory has run out; 0: never */
} CompileExtra;

/* What is compiled: a Source, or text, or a file's path. */
typedef struct CompileInput {
    const Source *source;
    const char *name, *text;
    size_t length;
    const char *path;
} CompileInput;
/* `options` and `extra` may be NULL. */
gdr_status compile_input(gdr_context *ctx, const CompileInput *input,
                         const gdr_compile_options *options, const CompileExtra *extra,
                         gdr_kernel **kernel);
/* The name of the target for a GPU of this compute capability, or NULL. */
const char *target_for_gpu(int compute_capability);

/* build.c -------------------------------------------------------------------------------------- */

/* One compilation under way. */
typedef struct Job {
    gdr_context *ctx;
    const CompileInput *input;
    gdr_compile_options opt; /* defaults filled in */
    CompileExtra extra;
    const char *target; /* "host" or an sm_ name */
    Cuda *cuda;         /* when GPU code is to be loaded */
    Arena arena;        /* everything temporary */
    const Source *source;
    gdr_kernel *kernel;
    uint64_t upstream, gradients; /* backward: bits of the outputs and inputs that have gradients */
    struct Assembly *assembly;    /* per entry, while PTX becomes cubins */
    int assemblies;
    VEC(const char *) warning; /* found in the assembler's logs */
} Job;
/* Front end, passes and code generation; the record's memory is the job's arena. */
gdr_status job_build(Job *job, Record *out);
void job_free(Job *job);

/* assemble.c: the PTX of r->module -> r->cubin and r->warning, for the job's device. */
gdr_status job_assemble(Job *job, Record *r);

/* record.c, manifest.c ------------------------------------------------------------------------- */

/* Record -> bytes (in `out`), and back: false when the bytes do not make sense. */
void record_write(const Record *r, Buf *out);
bool record_read(Arena *arena, const void *bytes, size_t len, Record *r);
/* The record as one JSON object. */
void manifest_print(const Record *r, Buf *out);
int record_entries(const Record *r, EntryKind kind); /* how many of a kind */
/* Fields of its frame: frame_fields, although the shell has no instructions. */
int record_frame_fields(const Record *r);

/* bind.c --------------------------------------------------------------------------------------- */

enum { HOST_ALIGN = 64 }; /* of workspaces and of the parts they have */

/* How a pass by chunks on a GPU goes over its chunk slots: see workspace.c. */
typedef struct Segments {
    int64_t group, pieces, piece; /* slots a group, pieces a group, slots a piece */
    int64_t count;                /* pieces in all */
    bool crossed;                 /* a sequence may go on from a piece to the next one */
    bool use_saved;               /* backward: pieces begin where the forward pass saved states */
    int64_t window;               /* forward: pieces are so many chunks of every sequence; 0: they are ranges */
} Segments;

/* A checked launch: the frame and the sizes that grids are made of. */
typedef struct BoundLaunch {
    int64_t *frame;            /* record_frame_fields, malloc'ed */
    const gdr_tensor **tensor; /* per in, then per out port, malloc'ed; NULL: left out */
    int64_t B, T, N, H, HF, slots;
    bool packed;
    int64_t first_row, rows; /* CPU: the tokens that sequences own, counted over the batch */
    size_t workspace;        /* bytes needed */
    size_t *partial; /* backward, per out port, malloc'ed: where in the workspace the gradients of
                        single heads go; SIZE_MAX: straight to the tensor */
    size_t ahead;              /* GPU: where in the workspace values made ahead lie */
    size_t zeros, zeros_bytes; /* backward: where in the workspace a token of zeros lies */
    bool saved;                /* what the forward pass saves is kept, or there: states, or with `all` */
    bool all;                  /*   its records, which such a kernel has in FRAME_SAVED in any case */
    int save_every;            /* chunks from one state to the next; 0: none */
    size_t saved_bytes;
    int processors; /* GPU: multiprocessors */
    Segments seg;   /* GPU, by chunks */
    size_t states;  /*   where in the workspace states at borders of pieces lie */
    /* GPU, backward: */
    int64_t group;                    /* GRAD_GROUP: of all launches of this shape, however they are cut */
    int64_t grad_blocks;              /* of the grad kernel */
    size_t scratch, costates;         /* where in the workspace */
} BoundLaunch;
/* What is bound for: a launch, or the size of a workspace; then data pointers may be NULL and
 * cu_seqlens' contents are not looked at. */
typedef enum { BIND_launch, BIND_default, BIND_least } BindFor;
gdr_status launch_bind(gdr_kernel *kernel, const gdr_launch *launch, BindFor what,
                       BoundLaunch *out);
void launch_free(BoundLaunch *b);

/* tensor.c ------------------------------------------------------------------------------------- */

/* Checks what does not depend on other tensors; EINPUT says what is wrong. `look`: there must be data.
 * `apart`: parts along the first dimension may be further apart than their size. */
gdr_status tensor_check(const gdr_kernel *kernel, const char *name, const gdr_tensor *t, bool look,
                        bool apart);
gdr_status tensor_check_type(const gdr_kernel *kernel, const char *name, const gdr_tensor *t,
                             gdr_dtype want);
enum { SHAPE_TEXT = 200 };
const char *shape_text(int ndim, const int64_t *shape, char text[SHAPE_TEXT]); /* "[2,3]" */
/* Element i of a tensor of i32 or i64 in CPU memory. */
int64_t tensor_integer(const gdr_tensor *t, int64_t i);

/* states.c ------------------------------------------------------------------------------------- */

/* S0, S and all that says where they lie, of a forward launch whose sizes are in *b. `look`: data are
 * there. */
gdr_status states_check(const gdr_kernel *kernel, const gdr_launch *launch, bool look,
                        const BoundLaunch *b);
void states_fill_frame(const gdr_launch *launch, int64_t *frame);

/* workspace.c ---------------------------------------------------------------------------------- */

/* Sizes and places of a bound launch's workspace; false when they overflow. */
bool workspace_plan(const Record *r, BoundLaunch *b, const gdr_launch *l, BindFor what);
/* Piece i of all; rows of [B*T] that its tokens lie in. */
typedef struct Segment {
    int64_t first, slots, row, end_row;
} Segment;
void segment_at(const Record *r, const BoundLaunch *b, int64_t i, Segment *out);
int64_t chunks_a_sequence(const Record *r, const BoundLaunch *b); /* of a dense batch */
/* Chunks from one saved state to the next; 0: the kernel has none, and saves nothing at all. */
int record_save_every(const Record *r);
bool record_saves_all(const Record *r); /* a forward kernel with GDR_SAVE_ALL that has something to save */
int64_t border_bytes(const Record *r); /* of a saved state and head */

/* launch.c, backward.c ------------------------------------------------------------------------- */

enum { GRID_MAX = 0x7fffffff };
gdr_status driver_failed(gdr_context *ctx, const CudaError *e);
bool record_on_gpu(const Record *r);
/* V tiles of an entry: blocks a sequence and head. */
int64_t entry_tiles(const gdr_kernel *kernel, const CgEntry *e);
/* Blocks of an entry that a multiprocessor holds for sure. */
int record_blocks_at_once(const Record *r, const CgEntry *e);
/* Of several entries of a kind with different tiles the one that is fastest for so many sequences and
 * heads at a time; -1: there is none. */
int choose_entry(const gdr_kernel *kernel, EntryKind kind, int64_t sequences_heads);
/* Calls `queue` with the caller's workspace, or stream-ordered memory of the context's. */
typedef gdr_status QueueFn(gdr_kernel *kernel, const BoundLaunch *b, void *stream);
gdr_status queue_with_workspace(gdr_kernel *kernel, const gdr_launch *launch, BoundLaunch *b,
                                QueueFn *queue);
/* The caller's workspace against the bytes that are needed. */
gdr_status check_workspace(gdr_context *ctx, const gdr_launch *launch, const BoundLaunch *b,
                           int align);
/* CPU: all tasks on the context's threads. */
gdr_status run_tasks(gdr_kernel *kernel, const BoundLaunch *b);

/* gradient.c ----------------------------------------------------------------------------------- */

/* Names of the gradients of a spec's outputs, then of its inputs and params: d and the name, with
 * more d's where a port, a state or an earlier one is called that. */
void gradient_names(const Kernel *forward, const char **name);
/* Tasks for each of the grad kernel's blocks: with fewer the last ones leave many blocks without work. */
enum { TASKS_A_BLOCK = 4 };
/* A sum of n heads that is kept in 16 bits is rounded with each of them: in all sqrt((n + 1) / 2) times
 * what one rounding does, where n parts and their sum come to sqrt(2). With 4 heads that is 1.6. */
enum { GROUP_16_BIT = 4 };
/* Heads whose gradients of what they share are added up as they are made; 1: none are. */
int64_t gradient_group(const Record *r, const BoundLaunch *b);
/* Heads of gradient `out` as its kernel leaves it: frame_out_heads. */
int64_t gradient_heads(const Record *r, const BoundLaunch *b, int out);
/* Whether what the kernel leaves of output `out` is still to be summed. */
bool gradient_is_partial(const Record *r, const BoundLaunch *b, int out);
/* The sums, in a fixed order, from the workspace to the tensors. False: no memory. */
bool gradient_sum(Pool *pool, const Record *r, const BoundLaunch *b, const void *workspace);

/* safetensors.c -------------------------------------------------------------------------------- */

enum { TENSOR_NDIM_MAX = 8 };

/* A dense row-major tensor in memory. */
typedef struct Tensor {
    const char *name;
    gdr_dtype dtype;
    int ndim;
    int64_t shape[TENSOR_NDIM_MAX];
    void *data;
    size_t bytes;
} Tensor;

typedef struct TensorFile {
    VEC(Tensor) tensor;      /* those of a type gdr_dtype has */
    VEC(const char *) other; /* names of those of other types, with the type: "x (U8)" */
    void *map;               /* the file, mapped; tensors point into it */
    size_t map_len;
} TensorFile;

/* Every length and offset of the header is checked against the file before use. Names live in
 * `arena`, data until tensors_close. False with one line in `why`. */
bool tensors_open(Arena *arena, const char *path, TensorFile *f, char *why, size_t why_size);
/* The same over bytes in memory. */
bool tensors_parse(Arena *arena, void *bytes, size_t len, TensorFile *f, char *why,
                   size_t why_size);
void tensors_close(TensorFile *f);
const Tensor *tensors_find(const TensorFile *f, const char *name);
/* All of the file or nothing: written beside its place, then renamed. */
bool tensors_write(Arena *arena, const char *path, const Tensor *tensor, int count, char *why,
                   size_t why_size);
/* Elements of a shape; -1 on a negative size or overflow of bytes. */
int64_t tensor_elements(int ndim, const int64_t *shape, size_t elem_size);

gdr_dtype dtype_of_elem(Elem e);
bool elem_of_dtype(gdr_dtype type, Elem *e); /* false for integers */

#endif
