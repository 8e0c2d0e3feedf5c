/* Messages: order, notes, carets, limits, JSON; line maps; suggestions. */
#include "base/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct Test {
    Arena arena;
    Diag d;
} Test;

static void open_test(Test *t, const char *text) {
    arena_init(&t->arena, NULL);
    diag_init(&t->d, &t->arena, source_from_text(&t->arena, "f.gdr", text, strlen(text)));
}

static const char *printed(Test *t, bool json) {
    Buf b;
    buf_init(&b, &t->arena);
    if (json)
        diag_print_json(&t->d, &b);
    else
        diag_print_text(&t->d, &b, false);
    return b.text ? b.text : "";
}

static void order_and_notes(void **state) {
    (void)state;
    Test t;
    open_test(&t, "one two\n\tthree\nfour");
    diag_error(&t.d, (Span){9, 14}, "second %d", 2);
    diag_note(&t.d, (Span){4, 7}, "see here");
    diag_help(&t.d, "do that");
    diag_warning(&t.d, (Span){0, 3}, "first");
    diag_error(&t.d, (Span){9, 14}, "second 2"); /* a repeat: dropped with its note */
    diag_note(&t.d, (Span){0, 1}, "nowhere");
    diag_error(&t.d, (Span){19, 19}, "at the end");
    assert_int_equal(t.d.errors, 2);
    assert_int_equal(t.d.warnings, 1);
    assert_string_equal(printed(&t, false),
                        "f.gdr:1:1: warning: first\n"
                        "    one two\n"
                        "    ^~~\n"
                        "f.gdr:2:2: error: second 2\n"
                        "     three\n"
                        "     ^~~~~\n"
                        "f.gdr:1:5: note: see here\n"
                        "    one two\n"
                        "        ^~~\n"
                        "help: do that\n"
                        "f.gdr:3:5: error: at the end\n"
                        "    four\n"
                        "        ^\n");
    arena_free(&t.arena);
}

static void json(void **state) {
    (void)state;
    Test t;
    open_test(&t, "a \"b\"\nc");
    assert_string_equal(printed(&t, true), "[]\n");
    diag_error(&t.d, (Span){2, 5}, "bad \"b\"");
    diag_help(&t.d, "x");
    assert_string_equal(printed(&t, true),
                        "[{\"file\":\"f.gdr\",\"line\":1,\"column\":3,\"end_line\":1,\"end_column\":6,"
                        "\"severity\":\"error\",\"message\":\"bad \\\"b\\\"\","
                        "\"notes\":[{\"message\":\"x\"}]}]\n");
    arena_free(&t.arena);
}

static void limit(void **state) {
    (void)state;
    Test t;
    open_test(&t, "x");
    for (int i = 0; i < 3 * DIAG_LIMIT; i++) {
        diag_error(&t.d, (Span){0, 1}, "number %d", i);
        diag_help(&t.d, "help %d", i);
    }
    assert_int_equal(t.d.errors, 3 * DIAG_LIMIT);
    assert_int_equal(t.d.item.count, DIAG_LIMIT);
    assert_int_equal(t.d.item.at[DIAG_LIMIT - 1].note.count, 1);
    assert_non_null(strstr(printed(&t, false), "40 more errors not shown"));
    arena_free(&t.arena);
}

/* Long lines are shown around the place, control characters do not reach the terminal, carets stand
 * under code points. */
static void excerpts(void **state) {
    (void)state;
    Test t;
    char line[2001];
    memset(line, 'x', 2000);
    line[2000] = 0;
    line[1000] = '@';
    open_test(&t, line);
    diag_error(&t.d, (Span){1000, 1001}, "m");
    const char *text = printed(&t, false);
    assert_true(strlen(text) < 500);
    const char *at = strchr(text, '@'), *caret = strchr(text, '^');
    assert_int_equal(at - (strchr(text, '\n') + 1), caret - (strchr(at, '\n') + 1));
    arena_free(&t.arena);
    open_test(&t, "\033[31mé§x");
    diag_error(&t.d, (Span){9, 10}, "m");
    assert_string_equal(printed(&t, false), "f.gdr:1:10: error: m\n    ?[31mé§x\n           ^\n");
    arena_free(&t.arena);
}

static void lines(void **state) {
    (void)state;
    Test t;
    open_test(&t, "ab\n\ncd\n");
    static const int want[][3] = {{0, 1, 1}, {2, 1, 3}, {3, 2, 1}, {4, 3, 1}, {6, 3, 3}, {7, 4, 1},
                                  {99, 4, 1}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        int line, column;
        source_locate(t.d.source, (uint32_t)want[i][0], &line, &column);
        assert_int_equal(line, want[i][1]);
        assert_int_equal(column, want[i][2]);
    }
    arena_free(&t.arena);
}

static void files(void **state) {
    (void)state;
    Arena a;
    char path[] = "/tmp/gdr_diag_XXXXXX";
    arena_init(&a, NULL);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "x\ny", 3), 3);
    const Source *s = source_from_file(&a, path);
    assert_non_null(s);
    assert_int_equal(s->nlines, 2);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    assert_non_null(source_from_file(&a, path));
    assert_int_equal(ftruncate(fd, (1 << 20) + 1), 0);
    assert_null(source_from_file(&a, path));
    assert_int_equal(errno, EFBIG);
    close(fd);
    unlink(path);
    assert_null(source_from_file(&a, path));
    assert_int_equal(errno, ENOENT);
    assert_null(source_from_file(&a, "/"));
    arena_free(&a);
}

static void suggestions(void **state) {
    (void)state;
    static const char *const known[] = {"l2norm", "softplus", "sigmoid", "k", "beta", "w"};
    static const struct { const char *name, *want; } test[] = {
        {"l2nrom", "l2norm"}, {"sigmiod", "sigmoid"}, {"bta", "beta"}, {"kk", "k"},
        {"wv", "w"},          {"gamma", NULL},        {"x", NULL},     {"", NULL},
        {"Softplus", "softplus"}, {"beta", "beta"},
    };
    for (size_t i = 0; i < sizeof test / sizeof *test; i++) {
        const char *got = diag_closest(test[i].name, known, 6);
        if (test[i].want)
            assert_string_equal(got, test[i].want);
        else
            assert_null(got);
    }
    assert_null(diag_closest("x", known, 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_and_notes), cmocka_unit_test(json),  cmocka_unit_test(limit),
        cmocka_unit_test(excerpts),        cmocka_unit_test(lines), cmocka_unit_test(files),
        cmocka_unit_test(suggestions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
