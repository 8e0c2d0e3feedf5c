/* PTX -> cubin by the ptxas command; PTX of one kernel alone; what a log says about slow code. */
#define _GNU_SOURCE
#include "runtime/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

char *ptxas_find(void) {
    const char *path = getenv("PATH");
    while (path && *path) {
        size_t n = strcspn(path, ":");
        char *full = NULL;
        if (n && asprintf(&full, "%.*s/ptxas", (int)n, path) >= 0) {
            struct stat st;
            if (!stat(full, &st) && S_ISREG(st.st_mode) && access(full, X_OK) == 0)
                return full;
            free(full);
        }
        path += n + (path[n] == ':');
    }
    return NULL;
}

/* LLVM writes everything that kernels share before the first, and each from a line
 * `.visible .entry NAME(` to the next such line; braces do not count, inline code has its own. */
char *ptx_only(Arena *arena, const char *ptx, const char *symbol) {
    static const char start[] = "\n.visible .entry ";
    size_t n = strlen(symbol);
    const char *entry = strstr(ptx, start);
    Buf out;
    buf_init(&out, arena);
    if (entry)
        buf_put(&out, ptx, (size_t)(entry - ptx));
    while (entry) {
        const char *name = entry + strlen(start), *next = strstr(name, start);
        if (!strncmp(name, symbol, n) && name[n] == '(') {
            buf_put(&out, entry, next ? (size_t)(next - entry) : strlen(entry));
            buf_puts(&out, "\n");
            return out.text;
        }
        entry = next;
    }
    return NULL;
}

static bool write_file(const char *path, const char *text) {
    FILE *f = fopen(path, "we");
    if (!f)
        return false;
    bool ok = fputs(text, f) >= 0;
    return fclose(f) == 0 && ok;
}

/* The whole file as malloc'ed bytes with a NUL behind; NULL when it cannot be read. */
static char *read_file(const char *path, size_t *len) {
    FILE *f = fopen(path, "re");
    if (!f)
        return NULL;
    char *data = NULL;
    size_t used = 0, cap = 0, n;
    do {
        if (cap - used < 65536) {
            cap = 2 * cap + 65536;
            char *more = realloc(data, cap + 1);
            if (!more) {
                free(data);
                fclose(f);
                return NULL;
            }
            data = more;
        }
        n = fread(data + used, 1, cap - used, f);
        used += n;
    } while (n);
    fclose(f);
    data[used] = '\0';
    *len = used;
    return data;
}

static bool spawn_ptxas(const char *ptxas, const char *arch, const char *in, const char *out,
                        const char *log, int *exit_status) {
    char arch_option[64];
    snprintf(arch_option, sizeof arch_option, "-arch=%s", arch);
    const char *argv[] = {ptxas, arch_option, "-v", "--warn-on-spills", in, "-o", out, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t pid;
    int error = posix_spawn(&pid, ptxas, &actions, NULL, (char **)(uintptr_t)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error) {
        errno = error;
        return false;
    }
    int status;
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return false;
    }
    *exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    return true;
}

bool ptxas_run(const char *ptxas, const char *ptx, const char *arch, void **cubin, size_t *len,
               char **log, char *why, size_t why_size) {
    *cubin = NULL;
    *log = NULL;
    const char *tmp = getenv("TMPDIR");
    char dir[512], in[560], out[560], text[560];
    snprintf(dir, sizeof dir, "%s/gdrc-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    if (!mkdtemp(dir)) {
        snprintf(why, why_size, "%s: cannot be made: %s", dir, strerror(errno));
        return false;
    }
    snprintf(in, sizeof in, "%s/k.ptx", dir);
    snprintf(out, sizeof out, "%s/k.cubin", dir);
    snprintf(text, sizeof text, "%s/log", dir);
    int status = 0;
    bool ok = write_file(in, ptx) && spawn_ptxas(ptxas, arch, in, out, text, &status);
    if (!ok) {
        snprintf(why, why_size, "%s: cannot be run: %s", ptxas, strerror(errno));
    } else {
        size_t log_len;
        *log = read_file(text, &log_len);
        if (status) {
            ok = false;
            snprintf(why, why_size, "ptxas refused the code: %.*s",
                     *log ? (int)strcspn(*log, "\n") : 0, *log ? *log : "");
        } else if (!(*cubin = read_file(out, len))) {
            ok = false;
            snprintf(why, why_size, "ptxas made no file: %s", strerror(errno));
        }
    }
    unlink(in);
    unlink(out);
    unlink(text);
    rmdir(dir);
    return ok;
}

/* "..., 12 bytes spill stores, ..." with a number other than 0. */
static bool line_spills(const char *line, size_t n) {
    const char *end = line + n, *from = line, *at;
    while ((at = memmem(from, (size_t)(end - from), " bytes spill", 12))) {
        for (const char *p = at; p > line && p[-1] >= '0' && p[-1] <= '9'; p--)
            if (p[-1] != '0')
                return true;
        from = at + 1;
    }
    return false;
}

/* C75xx: wgmma operations serialised, or waits the compiler had to add. */
static bool line_serialised(const char *line, size_t n) {
    const char *at = memmem(line, n, "C75", 3);
    return at && at + 5 <= line + n && at[3] >= '0' && at[3] <= '9' && at[4] >= '0' && at[4] <= '9';
}

int cubin_scan_log(const char *log, void (*warn)(void *user, const char *line), void *user) {
    int found = 0;
    while (log && *log) {
        size_t n = strcspn(log, "\n");
        if (line_spills(log, n) || line_serialised(log, n)) {
            char line[512];
            while (n && (*log == ' ' || *log == '\t')) {
                log++;
                n--;
            }
            snprintf(line, sizeof line, "%.*s", (int)(n < 500 ? n : 500), log);
            warn(user, line);
            found++;
        }
        log += n + (log[n] == '\n');
    }
    return found;
}
