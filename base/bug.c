/* Our own mistakes: report and abort. Nothing here is ever reached through a user's bad input. */
#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>

void bug_at(const char *file, int line, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "gdrc: internal error at %s:%d: ", file, line);
    vfprintf(stderr, fmt, ap);
    fputs("\nThis is a bug in gdrc; please report it together with the input that led here.\n",
          stderr);
    va_end(ap);
    abort();
}
