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
int pass_find(const char *name); /* -1 if there is none */

/* Tokens per chunk for a chunk of at most `rows` equations: rows / slots, at least 1. Call after
 * `normal`; sets the axes C, R and U. */
void kernel_set_chunk(Kernel *k, int rows);

#endif
