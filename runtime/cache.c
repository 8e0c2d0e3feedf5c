/* The on-disk cache of compiled kernels.
 *
 *     DIR/ab/cdef...  (64 hex digits of the key)
 *     entry = magic[8] | payload length (u64, little endian) | payload | BLAKE3 of all before [32]
 *
 * The key hashes everything that the code depends on: the spec's text, the options, the versions of
 * gdrc and LLVM, the machine. An entry is written to a temporary file and renamed, so a reader (in
 * this process or another) sees a whole one or none; whatever fails the checksum counts as absent
 * and is written again. No locks: two writers of one key write the same bytes.
 */
#define _GNU_SOURCE
#include "runtime/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <llvm-c/blake3.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAGIC_BYTES = 8, HEADER_BYTES = MAGIC_BYTES + 8, SUM_BYTES = 32 };
static const char magic[MAGIC_BYTES + 1] = "gdrobj01";

/* keys ----------------------------------------------------------------------------------------- */

struct CacheHash {
    llvm_blake3_hasher blake3;
};

CacheHash *cache_hash_new(void) {
    CacheHash *h = malloc(sizeof *h);
    if (h)
        llvm_blake3_hasher_init(&h->blake3);
    return h;
}

void cache_hash_int(CacheHash *h, int64_t x) {
    llvm_blake3_hasher_update(&h->blake3, &x, sizeof x);
}

void cache_hash_bytes(CacheHash *h, const void *p, size_t n) {
    cache_hash_int(h, (int64_t)n);
    llvm_blake3_hasher_update(&h->blake3, p, n);
}

void cache_hash_text(CacheHash *h, const char *s) {
    if (s)
        cache_hash_bytes(h, s, strlen(s));
    else
        cache_hash_int(h, -1);
}

CacheKey cache_hash_end(CacheHash *h) {
    CacheKey key;
    llvm_blake3_hasher_finalize(&h->blake3, key.byte, sizeof key.byte);
    free(h);
    return key;
}

/* what the code depends on --------------------------------------------------------------------- */

typedef struct BuildId {
    const char *inside;
    CacheHash *into;
    bool found;
} BuildId;

static void hash_notes(const char *at, const char *end, BuildId *id) {
    while (end - at >= (ptrdiff_t)sizeof(ElfW(Nhdr))) {
        const ElfW(Nhdr) *note = (const ElfW(Nhdr) *)at;
        const char *name = at + sizeof *note;
        const char *desc = name + (note->n_namesz + 3) / 4 * 4;
        if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 && !memcmp(name, "GNU", 4)) {
            cache_hash_bytes(id->into, desc, note->n_descsz);
            id->found = true;
        }
        at = desc + (note->n_descsz + 3) / 4 * 4;
    }
}

static int hash_object(struct dl_phdr_info *info, size_t size, void *user) {
    (void)size;
    BuildId *id = user;
    bool ours = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        const char *at = (const char *)(info->dlpi_addr + p->p_vaddr);
        ours |= p->p_type == PT_LOAD && id->inside >= at && id->inside < at + p->p_memsz;
    }
    for (int i = 0; ours && i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        const char *at = (const char *)(info->dlpi_addr + p->p_vaddr);
        if (p->p_type == PT_NOTE)
            hash_notes(at, at + p->p_memsz, id);
    }
    return ours;
}

/* The linker's id of the binary that this compiler is part of: another build is another key. */
void cache_hash_build(CacheHash *h) {
    BuildId id = {.inside = magic, .into = h};
    cache_hash_text(h, GDR_VERSION);
    dl_iterate_phdr(hash_object, &id);
    if (!id.found)
        cache_hash_text(h, __DATE__ " " __TIME__);
}

static void checksum(const void *p, size_t n, uint8_t sum[SUM_BYTES]) {
    llvm_blake3_hasher h;
    llvm_blake3_hasher_init(&h);
    llvm_blake3_hasher_update(&h, p, n);
    llvm_blake3_hasher_finalize(&h, sum, SUM_BYTES);
}

/* files ---------------------------------------------------------------------------------------- */

char *cache_directory(const char *given) {
    const char *base = given, *tail = "";
    if (!base && (base = getenv("GDR_CACHE_DIR"))) {
        tail = "";
    } else if (!base && (base = getenv("XDG_CACHE_HOME")) && base[0] == '/') {
        tail = "/gdrc";
    } else if (!given) {
        base = getenv("HOME");
        tail = "/.cache/gdrc";
    }
    if (!base || !base[0])
        return NULL;
    size_t n = strlen(base) + strlen(tail) + 1;
    char *dir = malloc(n);
    if (dir)
        snprintf(dir, n, "%s%s", base, tail);
    return dir;
}

/* `mkdir -p` of the directory that holds `path`. */
static bool make_parents(const char *path) {
    char *copy = strdup(path);
    if (!copy)
        return false;
    bool ok = true;
    for (char *p = copy + 1; ok && (p = strchr(p, '/')); p++) {
        *p = '\0';
        ok = mkdir(copy, 0777) == 0 || errno == EEXIST;
        *p = '/';
    }
    free(copy);
    return ok;
}

static char *entry_path(const char *dir, CacheKey key) {
    size_t n = strlen(dir) + 2 * sizeof key.byte + 3;
    char *path = malloc(n);
    if (!path)
        return NULL;
    int at = snprintf(path, n, "%s/%02x/", dir, key.byte[0]);
    for (size_t i = 1; i < sizeof key.byte; i++)
        at += snprintf(path + at, n - (size_t)at, "%02x", key.byte[i]);
    return path;
}

static bool write_all(int fd, const void *bytes, size_t len) {
    const char *p = bytes;
    while (len) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

/* A new file beside `path`, as open to others as the umask lets any file be. -1 with errno set. */
static int open_beside(const char *path, char *temp, size_t size) {
    static _Thread_local unsigned serial;
    for (int tries = 0; tries < 100; tries++) {
        snprintf(temp, size, "%s.%ld-%lx-%u", path, (long)getpid(), (unsigned long)pthread_self(),
                 serial++);
        int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST)
            return fd;
    }
    return -1;
}

bool file_write_atomic(const char *path, const FilePart *part, int parts, char *why,
                       size_t why_size) {
    size_t n = strlen(path) + 64;
    char *temp = malloc(n);
    if (!temp) {
        snprintf(why, why_size, "%s: out of memory", path);
        return false;
    }
    int fd = open_beside(path, temp, n);
    bool ok = fd >= 0;
    for (int i = 0; ok && i < parts; i++)
        ok = write_all(fd, part[i].bytes, part[i].len);
    int error = errno;
    if (fd >= 0 && close(fd) && ok) {
        ok = false;
        error = errno;
    }
    if (ok && rename(temp, path)) {
        ok = false;
        error = errno;
    }
    if (!ok) {
        snprintf(why, why_size, "%s: cannot be written: %s", path, strerror(error));
        if (fd >= 0)
            unlink(temp);
    }
    free(temp);
    return ok;
}

static void *read_whole(const char *path, size_t *len) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0)
        return NULL;
    char *data = NULL;
    if (!fstat(fd, &st) && S_ISREG(st.st_mode) && (data = malloc((size_t)st.st_size + 1))) {
        size_t got = 0;
        ssize_t n;
        while (got < (size_t)st.st_size && (n = read(fd, data + got, (size_t)st.st_size - got)) > 0)
            got += (size_t)n;
        *len = got;
    }
    close(fd);
    return data;
}

/* entries -------------------------------------------------------------------------------------- */

static uint64_t get_u64(const uint8_t *p) {
    uint64_t x = 0;
    for (int i = 0; i < 8; i++)
        x |= (uint64_t)p[i] << (8 * i);
    return x;
}

void *cache_read(const char *dir, CacheKey key, size_t *len) {
    char *path = entry_path(dir, key);
    size_t size = 0;
    uint8_t *data = path ? read_whole(path, &size) : NULL;
    free(path);
    uint8_t sum[SUM_BYTES];
    bool ok = data && size >= HEADER_BYTES + SUM_BYTES && !memcmp(data, magic, MAGIC_BYTES) &&
              get_u64(data + MAGIC_BYTES) == size - HEADER_BYTES - SUM_BYTES;
    if (ok) {
        checksum(data, size - SUM_BYTES, sum);
        ok = !memcmp(sum, data + size - SUM_BYTES, SUM_BYTES);
    }
    if (!ok) {
        free(data);
        return NULL;
    }
    *len = size - HEADER_BYTES - SUM_BYTES;
    memmove(data, data + HEADER_BYTES, *len);
    return data;
}

bool cache_write(const char *dir, CacheKey key, const void *payload, size_t len, char *why,
                 size_t why_size) {
    size_t size = HEADER_BYTES + len + SUM_BYTES;
    char *path = entry_path(dir, key);
    uint8_t *data = malloc(size);
    bool ok = path && data;
    if (!ok) {
        snprintf(why, why_size, "out of memory");
    } else if (!make_parents(path)) {
        snprintf(why, why_size, "%s: cannot be made: %s", dir, strerror(errno));
        ok = false;
    } else {
        memcpy(data, magic, MAGIC_BYTES);
        for (int i = 0; i < 8; i++)
            data[MAGIC_BYTES + i] = (uint8_t)((uint64_t)len >> (8 * i));
        memcpy(data + HEADER_BYTES, payload, len);
        checksum(data, HEADER_BYTES + len, data + HEADER_BYTES + len);
        ok = file_write_atomic(path, &(FilePart){data, size}, 1, why, why_size);
    }
    free(path);
    free(data);
    return ok;
}
