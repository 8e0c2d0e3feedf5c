/* Shared by the tests of the public API on the CPU: contexts without a cache, kernels from a text, and what a
 * wrong call is answered with. */
#ifndef GDR_TESTS_API_TEST_H
#define GDR_TESTS_API_TEST_H

#include "runtime/runtime.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static inline gdr_context *open_context(int threads) {
    gdr_context *ctx;
    gdr_context_options o = {.size = sizeof o, .cache_dir = "", .threads = threads};
    assert_int_equal(gdr_context_create(&o, &ctx), GDR_OK);
    return ctx;
}

static inline gdr_kernel *compile_text(gdr_context *ctx, const char *text, gdr_compile_options o) {
    gdr_kernel *k = NULL;
    o.size = sizeof o;
    if (gdr_compile_string(ctx, "s", text, strlen(text), &o, &k))
        fail_msg("%s", gdr_last_error(ctx));
    return k;
}

/* `status` is what the call gave that was to fail, for a reason with this text in it. */
static inline void assert_refused(gdr_context *ctx, gdr_status status, gdr_status want,
                                  const char *text) {
    if (status != want || !strstr(gdr_last_error(ctx), text))
        fail_msg("status %d, \"%s\" where %d, \"%s\" was expected", (int)status,
                 gdr_last_error(ctx), (int)want, text);
}

#endif
