/* The pipeline: the passes of passes.def in order. The only place that dumps, times, verifies and
 * checks levels; passes do no I/O and need not look at where they stand. */
#include "passes/passes.h"

#include <string.h>
#include <time.h>

const PassInfo pass_info[] = {
#define PASS(name, from, to, doc) {#name, LEVEL_##from, LEVEL_##to, pass_##name, doc},
#include "passes/passes.def"
#undef PASS
};
const int pass_count = sizeof pass_info / sizeof *pass_info;

int pass_find(const char *name) {
    for (int i = 0; i < pass_count; i++)
        if (strcmp(pass_info[i].name, name) == 0)
            return i;
    return -1;
}

void kernel_set_chunk(Kernel *k, int rows) {
    int slots = k->facts.slots > 1 ? k->facts.slots : 1;
    int tokens = rows / slots > 1 ? rows / slots : 1;
    k->axis.at[AXIS_C].size = tokens;
    k->axis.at[AXIS_R].size = k->axis.at[AXIS_U].size = tokens * slots;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const char *printed(Arena *scratch, const Kernel *k) {
    Buf text;
    buf_init(&text, scratch);
    kernel_print(k, &text);
    return text.text;
}

static void run_one(Kernel *k, const PassInfo *pass, const PassWatch *watch) {
    bool dump = watch && watch->dump && watch->dump_after &&
                (!strcmp(watch->dump_after, "all") || !strcmp(watch->dump_after, pass->name));
    const char *before = dump ? printed(k->arena, k) : NULL;
    double start = now();
    CHECK(k->level == pass->from);
    pass->run(k);
    if (watch && watch->time_passes && watch->time)
        watch->time(watch->user, pass->name, now() - start);
    if (dump) {
        const char *after = printed(k->arena, k);
        watch->dump(watch->user, pass->name, after, strcmp(before, after) != 0);
    }
    if (k->level != pass->to)
        BUG("%s: pass %s leaves level %s", k->name, pass->name, level_name(k->level));
    const char *why = watch && watch->verify_each ? kernel_verify(k) : NULL;
    if (why)
        BUG("%s: after pass %s: %s", k->name, pass->name, why);
}

void passes_run_after(Kernel *k, const char *after, const char *stop_after,
                      const PassWatch *watch) {
    int first = after ? pass_find(after) + 1 : 0;
    int last = stop_after ? pass_find(stop_after) : pass_count - 1;
    CHECK(last >= 0 && (!after || first > 0));
    for (int i = first; i <= last; i++) {
        const PassInfo *pass = &pass_info[i];
        if (pass->from < k->level)
            continue; /* the kernel came in at a later level */
        bool makes_chunks = pass->from == LEVEL_recurrence && pass->to != LEVEL_recurrence;
        if (makes_chunks && !k->facts.chunkable)
            return;
        run_one(k, pass, watch);
    }
}

void passes_run(Kernel *k, const char *stop_after, const PassWatch *watch) {
    passes_run_after(k, NULL, stop_after, watch);
}
