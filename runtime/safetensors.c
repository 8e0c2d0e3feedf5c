/* Tensor files in the safetensors format:
 *
 *     header length (u64, little endian) | header: JSON, padded with blanks | data
 *     header = { "name": {"dtype": "F32", "shape": [2,3], "data_offsets": [0,24]}, ...,
 *                "__metadata__": {"key": "text", ...} }
 *
 * The header's depth is fixed, so it is read by a scanner without recursion that takes exactly this
 * shape and nothing else. A file may lie in every number: lengths are checked against the file,
 * offsets against the data, shapes against the offsets, tensors against each other.
 */
#include "runtime/runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEADER_MAX = 100 << 20, PREFIX = 8 };

int64_t tensor_elements(int ndim, const int64_t *shape, size_t elem_size) {
    int64_t n = 1, bytes;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0)
            return -1;
        if (shape[i] == 0)
            n = 0;
    }
    for (int i = 0; i < ndim && n; i++)
        if (__builtin_mul_overflow(n, shape[i], &n))
            return -1;
    return __builtin_mul_overflow(n, (int64_t)elem_size, &bytes) ? -1 : n;
}

/* scanning ------------------------------------------------------------------------------------- */

typedef struct Scan {
    Arena *arena;
    const char *at, *end;
    char *why;
    size_t why_size;
    bool bad;
} Scan;

static bool scan_fail(Scan *s, const char *fmt, const char *what) {
    if (!s->bad)
        snprintf(s->why, s->why_size, fmt, what);
    s->bad = true;
    return false;
}

static void skip_blanks(Scan *s) {
    while (s->at < s->end && strchr(" \t\r\n", *s->at) && *s->at)
        s->at++;
}

/* Takes the character if it comes next. */
static bool take(Scan *s, char c) {
    skip_blanks(s);
    if (s->bad || s->at == s->end || *s->at != c)
        return false;
    s->at++;
    return true;
}

static bool expect(Scan *s, char c) {
    char what[2] = {c, '\0'};
    return take(s, c) || scan_fail(s, "damaged header: no '%s' where one must be", what);
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* \uXXXX as UTF-8; surrogates pair up only in names that nobody uses, and are refused. */
static bool scan_unicode(Scan *s, Buf *out) {
    unsigned code = 0;
    if (s->end - s->at < 4)
        return scan_fail(s, "damaged header: %s", "a cut escape");
    for (int i = 0; i < 4; i++) {
        int d = hex_digit(*s->at++);
        if (d < 0)
            return scan_fail(s, "damaged header: %s", "a wrong escape");
        code = code * 16 + (unsigned)d;
    }
    if (code == 0 || (code >= 0xd800 && code < 0xe000))
        return scan_fail(s, "damaged header: %s", "a character that names cannot have");
    char utf8[3];
    if (code < 0x80) {
        utf8[0] = (char)code;
        buf_put(out, utf8, 1);
    } else if (code < 0x800) {
        utf8[0] = (char)(0xc0 | code >> 6);
        utf8[1] = (char)(0x80 | (code & 63));
        buf_put(out, utf8, 2);
    } else {
        utf8[0] = (char)(0xe0 | code >> 12);
        utf8[1] = (char)(0x80 | (code >> 6 & 63));
        utf8[2] = (char)(0x80 | (code & 63));
        buf_put(out, utf8, 3);
    }
    return true;
}

/* A string; NULL after a failure. */
static const char *scan_string(Scan *s) {
    static const char escape[] = "\"\\/bfnrt", meaning[] = "\"\\/\b\f\n\r\t";
    Buf out;
    buf_init(&out, s->arena);
    buf_puts(&out, "");
    if (!expect(s, '"'))
        return NULL;
    while (s->at < s->end && *s->at != '"') {
        char c = *s->at++;
        if ((unsigned char)c < 0x20) {
            scan_fail(s, "damaged header: %s", "a control character in a name");
            return NULL;
        }
        if (c == '\\') {
            const char *e = s->at < s->end && *s->at ? strchr(escape, *s->at) : NULL;
            if (e) {
                s->at++;
                buf_put(&out, &meaning[e - escape], 1);
            } else if (s->at < s->end && *s->at == 'u') {
                s->at++;
                if (!scan_unicode(s, &out))
                    return NULL;
            } else {
                scan_fail(s, "damaged header: %s", "a wrong escape");
                return NULL;
            }
        } else {
            buf_put(&out, &c, 1);
        }
    }
    return expect(s, '"') ? out.text : NULL;
}

/* A whole number >= 0. */
static bool scan_count(Scan *s, int64_t *x) {
    skip_blanks(s);
    const char *from = s->at;
    int64_t n = 0;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9') {
        if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, *s->at - '0', &n))
            return scan_fail(s, "damaged header: %s", "a number beyond 64 bits");
        s->at++;
    }
    *x = n;
    return s->at > from || scan_fail(s, "damaged header: %s", "no number where one must be");
}

/* the header ----------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    gdr_dtype type;
} dtype_table[] = {
    {"F32", GDR_F32}, {"BF16", GDR_BF16}, {"F16", GDR_F16},
    {"F64", GDR_F64}, {"I32", GDR_I32},   {"I64", GDR_I64},
};
enum { DTYPES = sizeof dtype_table / sizeof dtype_table[0] };

typedef struct Entry {
    Tensor tensor;
    const char *dtype;
    bool has_shape, has_offsets;
    int64_t lo, hi; /* bytes of the data */
} Entry;

static bool scan_shape(Scan *s, Entry *e) {
    int64_t n;
    if (e->has_shape)
        return scan_fail(s, "tensor %s: two shapes", e->tensor.name);
    e->has_shape = true;
    if (!expect(s, '['))
        return false;
    if (take(s, ']'))
        return true;
    do {
        if (!scan_count(s, &n))
            return false;
        if (e->tensor.ndim == TENSOR_NDIM_MAX)
            return scan_fail(s, "tensor %s: more than 8 dimensions", e->tensor.name);
        e->tensor.shape[e->tensor.ndim++] = n;
    } while (take(s, ','));
    return expect(s, ']');
}

static bool scan_offsets(Scan *s, Entry *e) {
    if (e->has_offsets)
        return scan_fail(s, "tensor %s: two data_offsets", e->tensor.name);
    e->has_offsets = true;
    return expect(s, '[') && scan_count(s, &e->lo) && expect(s, ',') && scan_count(s, &e->hi) &&
           expect(s, ']');
}

static bool scan_entry(Scan *s, Entry *e) {
    if (!expect(s, '{'))
        return false;
    do {
        const char *key = scan_string(s);
        bool ok = key && expect(s, ':');
        if (!ok)
            return false;
        if (!strcmp(key, "dtype")) {
            if (e->dtype)
                return scan_fail(s, "tensor %s: two dtypes", e->tensor.name);
            ok = (e->dtype = scan_string(s)) != NULL;
        } else if (!strcmp(key, "shape")) {
            ok = scan_shape(s, e);
        } else if (!strcmp(key, "data_offsets")) {
            ok = scan_offsets(s, e);
        } else {
            ok = scan_fail(s, "damaged header: unknown field %s", key);
        }
        if (!ok)
            return false;
    } while (take(s, ','));
    if (!expect(s, '}'))
        return false;
    if (!e->dtype || !e->has_shape || !e->has_offsets)
        return scan_fail(s, "tensor %s: dtype, shape or data_offsets is missing", e->tensor.name);
    return true;
}

static bool scan_metadata(Scan *s) {
    if (!expect(s, '{'))
        return false;
    if (take(s, '}'))
        return true;
    do {
        if (!scan_string(s) || !expect(s, ':') || !scan_string(s))
            return false;
    } while (take(s, ','));
    return expect(s, '}');
}

typedef VEC(Entry) Entries;

static bool scan_header(Scan *s, Entries *out) {
    bool metadata = false;
    if (!expect(s, '{'))
        return false;
    bool more = !take(s, '}');
    while (more) {
        const char *name = scan_string(s);
        if (!name || !expect(s, ':'))
            return false;
        if (!strcmp(name, "__metadata__")) {
            if (metadata)
                return scan_fail(s, "damaged header: %s", "two __metadata__");
            metadata = true;
            if (!scan_metadata(s))
                return false;
        } else {
            Entry e = {.tensor.name = name};
            if (!scan_entry(s, &e))
                return false;
            VEC_PUSH(s->arena, out, e);
        }
        more = take(s, ',');
        if (!more && !expect(s, '}'))
            return false;
    }
    skip_blanks(s);
    return s->at == s->end || scan_fail(s, "damaged header: %s", "text after its end");
}

/* checks --------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
    return strcmp(((const Entry *)a)->tensor.name, ((const Entry *)b)->tensor.name);
}

static int by_offset(const void *a, const void *b) {
    const Entry *x = a, *y = b;
    return x->lo != y->lo ? (x->lo > y->lo ? 1 : -1) : (x->hi > y->hi) - (x->hi < y->hi);
}

/* Offsets lie within the data and no two tensors overlap; names are unique. */
static bool check_layout(Scan *s, Entries *entries, int64_t data_len) {
    Entry *e = entries->at;
    int n = entries->count;
    if (n)
        qsort(e, (size_t)n, sizeof *e, by_name);
    for (int i = 1; i < n; i++)
        if (!strcmp(e[i].tensor.name, e[i - 1].tensor.name))
            return scan_fail(s, "tensor %s appears twice", e[i].tensor.name);
    for (int i = 0; i < n; i++)
        if (e[i].lo > e[i].hi || e[i].hi > data_len)
            return scan_fail(s, "tensor %s: data_offsets lie outside the file", e[i].tensor.name);
    if (n)
        qsort(e, (size_t)n, sizeof *e, by_offset);
    for (int i = 1; i < n; i++)
        if (e[i].lo < e[i - 1].hi)
            return scan_fail(s, "tensor %s overlaps another", e[i].tensor.name);
    return true;
}

static bool finish_entry(Scan *s, Entry *e, char *data, TensorFile *f) {
    Tensor *t = &e->tensor;
    int type = 0;
    while (type < DTYPES && strcmp(dtype_table[type].name, e->dtype))
        type++;
    if (type == DTYPES) {
        Buf text;
        buf_init(&text, s->arena);
        buf_printf(&text, "%s (%s)", t->name, e->dtype);
        VEC_PUSH(s->arena, &f->other, text.text);
        return true;
    }
    t->dtype = dtype_table[type].type;
    size_t size = gdr_dtype_size(t->dtype);
    int64_t n = tensor_elements(t->ndim, t->shape, size);
    if (n < 0)
        return scan_fail(s, "tensor %s: its size overflows 64 bits", t->name);
    if (n * (int64_t)size != e->hi - e->lo)
        return scan_fail(s, "tensor %s: shape and data_offsets disagree", t->name);
    t->bytes = (size_t)(e->hi - e->lo);
    t->data = data + e->lo;
    /* Nothing promises that a tensor's bytes are aligned to its type. */
    if ((uintptr_t)t->data % size)
        t->data = memcpy(arena_alloc(s->arena, t->bytes), t->data, t->bytes);
    VEC_PUSH(s->arena, &f->tensor, *t);
    return true;
}

bool tensors_parse(Arena *arena, void *bytes, size_t len, TensorFile *f, char *why,
                   size_t why_size) {
    *f = (TensorFile){0};
    Scan s = {.arena = arena, .why = why, .why_size = why_size};
    if (len < PREFIX)
        return scan_fail(&s, "%s", "truncated: no header");
    uint64_t header = 0;
    const uint8_t *p = bytes;
    for (int i = 0; i < PREFIX; i++)
        header |= (uint64_t)p[i] << (8 * i);
    if (header > HEADER_MAX)
        return scan_fail(&s, "%s", "not a safetensors file: its header would exceed 100 MB");
    if (header > len - PREFIX)
        return scan_fail(&s, "%s", "truncated: the header is longer than the file");
    char *data = (char *)bytes + PREFIX + header;
    s.at = (char *)bytes + PREFIX;
    s.end = data;
    Entries entries = {0};
    if (!scan_header(&s, &entries) || !check_layout(&s, &entries, (int64_t)(len - PREFIX - header)))
        return false;
    for (int i = 0; i < entries.count; i++)
        if (!finish_entry(&s, &entries.at[i], data, f))
            return false;
    return true;
}

/* files ---------------------------------------------------------------------------------------- */

bool tensors_open(Arena *arena, const char *path, TensorFile *f, char *why, size_t why_size) {
    *f = (TensorFile){0};
    char reason[256] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        snprintf(reason, sizeof reason, "cannot be read: %s", strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        snprintf(reason, sizeof reason, "not a regular file");
    } else if (st.st_size < PREFIX) {
        snprintf(reason, sizeof reason, "truncated: no header");
    } else {
        /* Private and writable: callers may launch kernels that take mutable pointers. */
        void *map = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            snprintf(reason, sizeof reason, "cannot be mapped: %s", strerror(errno));
        } else if (tensors_parse(arena, map, (size_t)st.st_size, f, reason, sizeof reason)) {
            f->map = map;
            f->map_len = (size_t)st.st_size;
        } else {
            munmap(map, (size_t)st.st_size);
        }
    }
    if (fd >= 0)
        close(fd);
    if (f->map)
        return true;
    snprintf(why, why_size, "%s: %s", path, reason);
    return false;
}

void tensors_close(TensorFile *f) {
    if (f->map)
        munmap(f->map, f->map_len);
    *f = (TensorFile){0};
}

const Tensor *tensors_find(const TensorFile *f, const char *name) {
    for (int i = 0; i < f->tensor.count; i++)
        if (!strcmp(f->tensor.at[i].name, name))
            return &f->tensor.at[i];
    return NULL;
}

bool tensors_write(Arena *arena, const char *path, const Tensor *tensor, int count, char *why,
                   size_t why_size) {
    Buf head;
    buf_init(&head, arena);
    buf_puts(&head, "{");
    size_t offset = 0;
    for (int i = 0; i < count; i++) {
        const Tensor *t = &tensor[i];
        int type = 0;
        while (dtype_table[type].type != t->dtype)
            type++;
        buf_puts(&head, i ? "," : "");
        buf_json_string(&head, t->name);
        buf_printf(&head, ":{\"dtype\":\"%s\",\"shape\":[", dtype_table[type].name);
        for (int d = 0; d < t->ndim; d++)
            buf_printf(&head, "%s%lld", d ? "," : "", (long long)t->shape[d]);
        buf_printf(&head, "],\"data_offsets\":[%zu,%zu]}", offset, offset + t->bytes);
        offset += t->bytes;
    }
    buf_puts(&head, "}");
    while (head.len % 8) /* so that the data of the first tensor is aligned */
        buf_puts(&head, " ");
    uint8_t prefix[PREFIX];
    for (int i = 0; i < PREFIX; i++)
        prefix[i] = (uint8_t)((uint64_t)head.len >> (8 * i));
    FilePart *part = NEW_ARRAY(arena, FilePart, count + 2);
    part[0] = (FilePart){prefix, PREFIX};
    part[1] = (FilePart){head.text, head.len};
    for (int i = 0; i < count; i++)
        part[i + 2] = (FilePart){tensor[i].data, tensor[i].bytes};
    return file_write_atomic(path, part, count + 2, why, why_size);
}
