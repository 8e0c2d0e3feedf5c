/* Interning: equal strings are one pointer, others are not, also when the table has grown. */
#include "base/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

static void equality(void **state) {
    (void)state;
    Arena a;
    Interner t;
    const char *first[3000];
    char name[32];
    arena_init(&a, NULL);
    intern_init(&t, &a);
    for (int i = 0; i < 3000; i++) {
        snprintf(name, sizeof name, "name%d", i);
        first[i] = intern_z(&t, name);
        assert_string_equal(first[i], name);
    }
    for (int i = 0; i < 3000; i++) {
        int n = snprintf(name, sizeof name, "name%d and more", i) - 9;
        assert_ptr_equal(intern(&t, name, (size_t)n), first[i]);
    }
    assert_int_equal(t.used, 3000);
    arena_free(&a);
}

static void edges(void **state) {
    (void)state;
    Arena a;
    Interner t;
    arena_init(&a, NULL);
    intern_init(&t, &a);
    const char *empty = intern(&t, "", 0);
    assert_string_equal(empty, "");
    assert_ptr_equal(intern_z(&t, ""), empty);
    assert_ptr_not_equal(intern_z(&t, "a"), empty);
    assert_ptr_not_equal(intern_z(&t, "ab"), intern_z(&t, "a"));
    assert_ptr_equal(intern(&t, "a\0b", 3), intern_z(&t, "a")); /* names end at a NUL */
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(equality), cmocka_unit_test(edges)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
