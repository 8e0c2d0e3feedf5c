/* A header that `gdrc compile` writes, compiled and called; what it queues is noted, as cuda_stub.h notes what
 * the runtime queues, and must be the same. */
#ifndef TESTS_HEADER_RUN_H
#define TESTS_HEADER_RUN_H

#include "driver/driver.h"
#include "tests/unit/cuda_stub.h"

#include <dlfcn.h>
#include <unistd.h>

enum { PROCESSORS = 132, NOTES = LAUNCHES_MAX, NEAR = 40 };

typedef int LaunchFn(void *user, const char *symbol, int64_t blocks, int threads, int shared,
                     const int64_t *frame);
typedef int ZeroFn(void *user, int64_t address, int64_t bytes);
static void write_text(const char *dir, const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0 && fclose(f) == 0);
}

/* The library made of the kernels' header "s.h" and of `wrapper`, which includes it. */
static void *header_open(gdr_kernel *const *k, int kernels, const char *wrapper) {
    char dir[] = "/tmp/gdr_header_XXXXXX", text[512];
    Arena arena;
    Buf b;
    arena_init(&arena, NULL);
    buf_init(&b, &arena);
    header_print("s", k, kernels, &b);
    assert_non_null(mkdtemp(dir));
    write_text(dir, "s.h", b.text);
    write_text(dir, "s.c", wrapper);
    arena_free(&arena);
    snprintf(text, sizeof text, "cd %s && '%s' -Wall -Wextra -Werror -shared -fPIC -o s.so s.c", dir,
             GDR_TEST_CC);
    assert_int_equal(system(text), 0);
    snprintf(text, sizeof text, "%s/s.so", dir);
    void *library = dlopen(text, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(library);
    snprintf(text, sizeof text, "rm -r %s", dir);
    assert_int_equal(system(text), 0);
    return library;
}

/* what is queued --------------------------------------------------------------------------------- */

/* Lane 1 is the stream beside the first one. */
typedef struct Notes {
    int count, lane;
    StubClock clock[2];
    StubLaunch at[NOTES];
} Notes;

static StubLaunch *note_next(Notes *n) {
    assert_true(n->count < NOTES);
    StubLaunch *l = &n->at[n->count++];
    *l = (StubLaunch){.number = n->count, .lane = n->lane, .after = n->clock[n->lane]};
    n->clock[n->lane].done[n->lane] = l->number;
    return l;
}

static int note_launch(void *user, const char *symbol, int64_t blocks, int threads, int shared,
                       const int64_t *frame) {
    StubLaunch *l = note_next(user);
    l->name = symbol;
    l->grid = (unsigned)blocks;
    l->block = (unsigned)threads;
    l->shared = (unsigned)shared;
    memcpy(l->frame, frame, (size_t)stub.fields * sizeof *frame);
    return 0;
}

static int note_zero(void *user, int64_t address, int64_t bytes) {
    StubLaunch *l = note_next(user);
    l->dst = (uint64_t)address;
    l->bytes = (uint64_t)bytes;
    return 0;
}

/* Where nothing is summed, how many heads there would be does not matter. */
static void same_queue(const gdr_kernel *kernel, const Notes *n) {
    const Kernel *k = kernel->rec.shell;
    const StubLaunch *same[NOTES]; /* as the notes */
    int at = 0;
    for (int i = 0; i < stub.launches; i++) {
        StubLaunch *want = &stub.launch[i];
        if (!want->name && !want->bytes)
            continue;
        assert_true(at < n->count);
        same[at] = want;
        StubLaunch have = n->at[at++];
        assert_int_equal(have.dst, want->dst);
        assert_int_equal(have.bytes, want->bytes);
        if (!want->name)
            continue;
        assert_string_equal(have.name, want->name);
        assert_int_equal(have.grid, want->grid);
        assert_int_equal(have.block, want->block);
        assert_int_equal(have.shared, want->shared);
        for (int o = 0; o < k->out.count; o++)
            if (!want->frame[frame_sum(k, o)])
                have.frame[frame_sum_heads(k, o)] = want->frame[frame_sum_heads(k, o)];
        for (int f = 0; f < stub.fields; f++)
            if (have.frame[f] != want->frame[f])
                fail_msg("%s: field %d is %lld, of the runtime %lld", want->name, f,
                         (long long)have.frame[f], (long long)want->frame[f]);
    }
    assert_int_equal(at, n->count);
    for (int i = 0; i < at; i++)
        for (int j = i > NEAR ? i - NEAR : 0; j < i; j++)
            assert_int_equal(ends_before(&n->at[j], &n->at[i]), ends_before(same[j], same[i]));
}

#endif
