/* Arenas: alignment, zeroed memory, growth, limits, running out. */
#include "base/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

static void pieces(void **state) {
    (void)state;
    Arena a;
    arena_init(&a, NULL);
    char *piece[2000];
    for (int i = 0; i < 2000; i++) {
        size_t size = (size_t)(i * 37 % 501);
        piece[i] = arena_alloc(&a, size);
        assert_int_equal((uintptr_t)piece[i] % 16, 0);
        for (size_t j = 0; j < size; j++)
            assert_int_equal(piece[i][j], 0);
        memset(piece[i], i & 127, size);
    }
    for (int i = 0; i < 2000; i++) /* nothing overlaps */
        for (size_t j = 0; j < (size_t)(i * 37 % 501); j++)
            assert_int_equal(piece[i][j], i & 127);
    assert_int_equal(a.count, 2000);
    char *big = arena_alloc(&a, 5 << 20);
    big[(5 << 20) - 1] = 1;
    arena_free(&a);
    assert_null(a.head);
    assert_non_null(arena_alloc(&a, 1)); /* reusable */
    arena_free(&a);
}

static void growing(void **state) {
    (void)state;
    Arena a;
    VEC(int) v = {0};
    arena_init(&a, NULL);
    for (int i = 0; i < 10000; i++)
        VEC_PUSH(&a, &v, i * i);
    for (int i = 0; i < 10000; i++)
        assert_int_equal(v.at[i], i * i);
    char *s = arena_strndup(&a, "abcdef", 3);
    assert_string_equal(s, "abc");
    assert_ptr_equal(arena_grow(&a, s, 4, 4), s);
    assert_string_equal((char *)arena_grow(&a, s, 4, 100), "abc");
    arena_free(&a);
}

static void running_out(void **state) {
    (void)state;
    jmp_buf oom;
    Arena a;
    volatile int unwound = 0;
    arena_init(&a, &oom);
    if (setjmp(oom))
        unwound++;
    else
        arena_array(&a, SIZE_MAX / 4, 8);
    if (setjmp(oom))
        unwound++;
    else
        arena_alloc(&a, SIZE_MAX - 8);
    a.fail_after = a.count + 3;
    if (setjmp(oom))
        unwound++;
    else
        for (int i = 0; i < 3; i++)
            arena_alloc(&a, 10);
    assert_int_equal(unwound, 2);
    if (setjmp(oom))
        unwound++;
    else
        arena_alloc(&a, 10);
    assert_int_equal(unwound, 3);
    arena_free(&a);
}

/* Text: numbers read back as they were, JSON strings are escaped. */
static void text(void **state) {
    (void)state;
    Arena a;
    Buf b;
    arena_init(&a, NULL);
    static const struct { double x; const char *text; } number[] = {
        {0, "0"},      {100, "100"},         {-2.5, "-2.5"},   {1e-6, "1e-06"},
        {1e20, "1e+20"}, {0.1, "0.1"},       {1.0 / 3, "0.3333333333333333"},
        {123456789, "123456789"}, {-1.0 / 0.0, "-inf"}, {5e-324, "5e-324"},
    };
    for (size_t i = 0; i < sizeof number / sizeof *number; i++) {
        buf_init(&b, &a);
        buf_number(&b, number[i].x);
        assert_string_equal(b.text, number[i].text);
    }
    buf_init(&b, &a);
    buf_json_string(&b, "a\"b\\c\n\t\x01é");
    assert_string_equal(b.text, "\"a\\\"b\\\\c\\n\\t\\u0001é\"");
    buf_init(&b, &a);
    for (int i = 0; i < 1000; i++)
        buf_printf(&b, "%d,", i);
    assert_int_equal(b.len, 3890);
    assert_int_equal(b.text[b.len], 0);
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces),
        cmocka_unit_test(growing),
        cmocka_unit_test(running_out),
        cmocka_unit_test(text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
