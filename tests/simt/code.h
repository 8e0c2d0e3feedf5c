/* Decoded functions and the machine that runs them; inside tests/simt alone.
 *
 * Registers: each scalar, and each element of a vector or struct, has 64 bits of its own, zeros
 * above its value. A value is a run of registers, `lanes` long. Extracting an element, or reading
 * bits as another type of the same size, costs no code: the result is the operand's register.
 * Constants are registers too, written once.
 *
 * Addresses: those of this machine, except in shared memory, which begins at SHARED_BASE. */
#ifndef GDR_TESTS_SIMT_CODE_H
#define GDR_TESTS_SIMT_CODE_H

#include "tests/simt/number.h"
#include "tests/simt/simt.h"

enum { WARP = 32, GROUP = 4 * WARP, SHARED_BASE = 1024, GRANULE = 2, ARRIVALS_MAX = 16 };

typedef struct Code Code;
typedef struct Thread Thread;
typedef struct Warp Warp;

/* What one thread does; it may change the program counter, which is one past this instruction. */
typedef void Run(Thread *t, const Code *c);
/* What all threads of a warp do together, or of the warpgroup that begins with it. */
typedef void Together(Warp *w, const Code *c);

typedef enum Scope { SCOPE_thread, SCOPE_warp, SCOPE_group, SCOPE_block } Scope;

/* Where a branch leads, and what phis take from where on the way, all at once. */
typedef struct Edge {
    const Code *target;
    int block; /* number of the target, until targets are known */
    int count;
    int *dst, *src;
} Edge;

struct Code {
    Run *run; /* NULL: together, by all threads of `scope` */
    Together *together;
    Scope scope;
    NumberKind kind;     /* of the operands */
    int bits, from_bits; /* of an element of the result, of the first operand */
    uint64_t mask;       /* of the result */
    int lanes;           /* of the result */
    int dst;             /* its first register */
    const int *arg;      /* first register of each operand */
    int nargs;
    int predicate;                   /* of a comparison; of an insertion, how many registers */
    int64_t number;                  /* what else the handler needs, and */
    const int64_t *table;            /* likewise: it says what */
    Edge *edge;                      /* of a branch: [then, else] */
    int space, align, element_bytes; /* of an access */
    int hit;                         /* the allocation found last */
    bool early;                      /* a warpgroup product's result is used before it is there */
    LLVMValueRef from;
};

typedef struct Memory {
    uintptr_t at;
    size_t size;
    bool writable;
} Memory;

/* The last accesses of two bytes of shared memory. Times count barriers; 0 is never. */
typedef struct Granule {
    uint32_t written, written_warp; /* the block's time, the writing warp's own time */
    uint32_t read, read_warp;
    int16_t writer, reader;
    bool in_flight;             /* an asynchronous copy goes here */
    bool agreed;                /* several lanes wrote the same */
    bool readers, reader_warps; /* several since then */
} Granule;

typedef struct Copy {
    const void *src;
    uint64_t dst;
    int bytes, size; /* read from src, then zeros up to size */
    int group;
} Copy;

struct Thread {
    uint64_t *reg;
    const Code *pc;
    Warp *warp;
    Simt *s;
    int id;
    bool done, blocked; /* blocked: waits for an arrival that nobody has announced yet */
    VEC(Copy) copy;     /* under way */
    int groups;         /* committed so far */
};

/* A warpgroup's product that nobody has waited for. */
typedef struct Product {
    const Code *code;
    uint64_t descriptor, digest;
} Product;

struct Warp {
    Simt *s;
    Thread *thread[WARP];
    uint32_t time;
    int waiting_for;      /* a Scope; SCOPE_thread = for nothing */
    VEC(Product) product; /* of the warpgroup that begins here */
};

/* A barrier in shared memory that opens once a copy. */
typedef struct Arrival {
    uint64_t at;
    int phase;
    bool announced; /* a copy is under way */
    Copy copy;
} Arrival;

struct Simt {
    Arena *arena;
    const char *symbol;
    VEC(Code) code;
    int registers, frame_register;
    VEC(int) constant; /* registers, and below what they hold */
    VEC(uint64_t) constant_value;
    VEC(Memory) memory;
    int own_memory; /* the first so many are the module's globals */
    int phis_max;
    /* the launch */
    int threads, warps, shared_bytes, shared_room;
    int64_t block, blocks;
    uint32_t time;
    Thread *thread;
    Warp *warp;
    int thread_room;
    uint64_t *phi; /* values between registers */
    unsigned char *shared;
    Granule *granule;
    Arrival arrival[ARRIVALS_MAX];
    int arrivals;
    jmp_buf failed;
    const char *why;
};

_Noreturn void simt_fail(Thread *t, const Code *c, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* memory.c */
/* Where `size` bytes at an address of global or parameter memory are. */
void *memory_global(Thread *t, const Code *c, uint64_t address, int size, bool write);
/* The same in shared memory, and the access is remembered for the checks. `data`: what will be
 * written there, or memory_unknown; NULL for a read. */
extern const char memory_unknown[];
void *memory_shared(Thread *t, const Code *c, uint64_t address, int size, int align,
                    const void *data);
/* Two bytes that a warpgroup's product reads. */
const void *memory_shared_product(Thread *t, const Code *c, uint64_t address);
void memory_copy_begin(Thread *t, const Code *c, const Copy *copy);
/* `own`: what arrives is this thread's write; otherwise anybody may read it. */
void memory_copy_end(Thread *t, const Copy *copy, bool own);
void memory_forget(Simt *s, int bytes);

/* Handlers; what they do is what LLVM's language reference says of the instruction of that name,
 * and of the intrinsics, PTX's. */
Run run_add, run_sub, run_mul, run_udiv, run_urem, run_sdiv, run_srem, run_and, run_or, run_xor,
    run_shl, run_lshr, run_ashr, run_smin, run_smax, run_umin, run_umax, run_usub_sat, run_ctpop,
    run_icmp, run_select, run_trunc, run_sext, run_copy, run_tied, run_bitcast, run_insert,
    run_extract, run_shuffle, run_gep, run_fadd, run_fsub, run_fmul, run_fdiv, run_fneg, run_fabs,
    run_fma, run_maxnum, run_minnum, run_maximum, run_minimum, run_fcmp, run_fconvert, run_sitofp,
    run_uitofp, run_fptosi, run_fptoui, run_tid, run_ctaid, run_nctaid, run_pack, run_tf32,
    run_ex2, run_rcp, run_rsqrt, run_copysign, run_truncate, run_sqrt, run_br, run_condbr, run_ret,
    run_load, run_store, run_store_words, run_cp_async, run_cp_async_some, run_cp_async_if, run_cp_commit,
    run_cp_wait, run_discard, run_arrival_init, run_arrival_wait, run_copy_bulk;
Together warp_sync, warp_shuffle_xor, warp_shuffle_from, warp_ballot, warp_ldmatrix,
    warp_ldmatrix_trans, warp_movmatrix, warp_mma, warp_mma_tf32, warp_barrier, group_product,
    group_wait;

/* call.c: what a call does; false when it is not known. */
bool decode_call(Arena *arena, LLVMValueRef call, Code *c);
/* group.c: a warpgroup's product from its text. */
bool decode_product(Arena *arena, const char *text, Code *c);

#endif
