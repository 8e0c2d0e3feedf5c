/* Runs GPU kernels on this machine: an interpreter of the LLVM IR that codegen/nvptx builds.
 *
 *   decode.c   LLVM function -> code: one handler an instruction, operands as register numbers
 *   thread.c   what one thread does alone: arithmetic, control flow
 *   memory.c   loads, stores, asynchronous copies, all checked
 *   warp.c     what the threads of a warp do together: shuffles, matrix products
 *   group.c    what Hopper adds: warpgroup products, bulk copies, the barriers that count them
 *   block.c    blocks: who runs, who waits for whom
 *
 * Threads run one after another, each until it needs others; then the others run, and what they
 * do together is done once for all. So branches may diverge as they like between such places, and
 * a place that only a part of a warp reaches is found at once.
 *
 * Checked: bounds and alignment of every access; shared memory read before it is written (it starts
 * as NaN), while an asynchronous copy into it is under way, or with no barrier between the write
 * and the read, the read and the write, or two writes (of different threads; a warp's own sync is
 * enough inside a warp). Results of approximate instructions are correctly rounded, or nearly.
 */
#ifndef GDR_TESTS_SIMT_H
#define GDR_TESTS_SIMT_H

#include "base/base.h"
#include <llvm-c/Core.h>

typedef struct Simt Simt;

/* The function `symbol` of a module, decoded; NULL with *why (in the arena) when it has something
 * that is not interpreted. The module must live as long. */
Simt *simt_open(Arena *arena, LLVMModuleRef mod, const char *symbol, const char **why);

/* Memory that kernels may read, and write if `writable`. Everything else they may not touch. */
void simt_memory(Simt *s, const void *at, size_t size, bool writable);
/* All that simt_memory told. */
void simt_forget(Simt *s);

/* One grid; the kernel's parameter is `fields` words at `frame`. False with *why after the first
 * error: where, and what. */
bool simt_launch(Simt *s, const int64_t *frame, int fields, int64_t blocks, int threads,
                 int shared_bytes, const char **why);

#endif
