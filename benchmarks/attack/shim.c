/* Counts the file operations of a process below a folder; one of them can be made to fail, or a signal sent before it.

   Loaded by LD_PRELOAD; it does nothing until `attack_arm` is called. Used by benchmarks/attack/shim.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, CREATE = 2, READ = 4, WRITE = 8, RENAME = 16, SYNC = 32, REMOVE = 64, MOVE = 128 }; /* as in shim.py */

static char folder[PATH_MAX];
static size_t length;         /* of `folder`; 0: not armed */
static int kinds, code, lasts; /* which operations count; an errno, or minus a signal; whether all later ones fail */
static long number;           /* of the operation that fails, from 1; 0: none */
static atomic_long seen, by_kind[8];

void attack_arm(const char *below, int of_kinds, long at, int with, int all_later) {
    strncpy(folder, below, sizeof folder - 1);
    kinds = of_kinds, number = at, code = with, lasts = all_later;
    atomic_store(&seen, 0);
    length = strlen(folder);
}

long attack_seen(int kind) { return atomic_load(&by_kind[__builtin_ctz(kind)]); }

static int is_below(const char *path) {
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int is_open_below(int file) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return is_below(path);
}

static int is_named_below(int parent, const char *path) {
    char current[PATH_MAX];
    if (path[0] == '/') return is_below(path);
    if (parent != AT_FDCWD) return is_open_below(parent);
    return getcwd(current, sizeof current) && is_below(current);
}

/* Counts an operation. Returns whether it has to fail, with errno set; a signal is sent before. */
static int fails(int kind, int parent, const char *path) {
    int before = errno;
    if (!length || !(path ? is_named_below(parent, path) : is_open_below(parent))) {
        errno = before;
        return 0;
    }
    errno = before;
    atomic_fetch_add(&by_kind[__builtin_ctz(kind)], 1);
    if (!(kind & kinds)) return 0;
    long now = atomic_fetch_add(&seen, 1) + 1;
    if (!number || now < number || (now > number && !lasts)) return 0;
    if (code < 0) {
        kill(getpid(), -code);
        if (code == -SIGKILL) for (;;) pause(); /* what a thread did now would not be undone */
        return 0;
    }
    errno = code;
    return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define MODE(flags) mode_t mode = 0; if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) { \
    va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
#define KIND(flags) ((flags) & O_CREAT ? CREATE : OPEN)

#define OPENS(name) int name(const char *path, int flags, ...) { REAL(name); MODE(flags) \
    return fails(KIND(flags), AT_FDCWD, path) ? -1 : real(path, flags, mode); }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name) int name(int parent, const char *path, int flags, ...) { REAL(name); MODE(flags) \
    return fails(KIND(flags), parent, path) ? -1 : real(parent, path, flags, mode); }
OPENS_AT(openat)
OPENS_AT(openat64)

#define FOPENS(name) FILE *name(const char *path, const char *mode) { REAL(name); \
    return fails(mode[0] == 'r' ? OPEN : CREATE, AT_FDCWD, path) ? NULL : real(path, mode); }
FOPENS(fopen)
FOPENS(fopen64)

ssize_t read(int file, void *data, size_t size) { REAL(read); return fails(READ, file, 0) ? -1 : real(file, data, size); }

#define PREADS(name, offset_t) ssize_t name(int file, void *data, size_t size, offset_t offset) { REAL(name); \
    return fails(READ, file, 0) ? -1 : real(file, data, size, offset); }
PREADS(pread, off_t)
PREADS(pread64, off64_t)

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    return fails(WRITE, file, 0) ? -1 : real(file, data, size);
}

#define PWRITES(name, offset_t) ssize_t name(int file, const void *data, size_t size, offset_t offset) { REAL(name); \
    return fails(WRITE, file, 0) ? -1 : real(file, data, size, offset); }
PWRITES(pwrite, off_t)
PWRITES(pwrite64, off64_t)

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    return fails(WRITE, file, 0) ? -1 : real(file, parts, count);
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *stream) {
    REAL(fwrite);
    return fails(WRITE, fileno(stream), 0) ? 0 : real(data, size, count, stream);
}

/* MOVE if the operation could need another disk or layer: it is between folders, or of a folder. */
static int kind_of_rename(const char *from, const char *to) {
    const char *end = strrchr(from, '/'), *other = strrchr(to, '/');
    size_t size = end ? end - from : 0, other_size = other ? other - to : 0;
    int before = errno;
    struct stat about;
    int is_folder = stat(from, &about) == 0 && S_ISDIR(about.st_mode);
    errno = before;
    return !is_folder && size == other_size && strncmp(from, to, size) == 0 ? RENAME : MOVE;
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return fails(kind_of_rename(from, to), AT_FDCWD, to) ? -1 : real(from, to);
}

int renameat(int old, const char *from, int parent, const char *to) {
    REAL(renameat);
    return fails(kind_of_rename(from, to), parent, to) ? -1 : real(old, from, parent, to);
}

int link(const char *from, const char *to) {
    REAL(link);
    return fails(kind_of_rename(from, to), AT_FDCWD, to) ? -1 : real(from, to);
}

int fsync(int file) { REAL(fsync); return fails(SYNC, file, 0) ? -1 : real(file); }

int fdatasync(int file) { REAL(fdatasync); return fails(SYNC, file, 0) ? -1 : real(file); }

int ftruncate(int file, off_t size) { REAL(ftruncate); return fails(WRITE, file, 0) ? -1 : real(file, size); }

int ftruncate64(int file, off64_t size) { REAL(ftruncate64); return fails(WRITE, file, 0) ? -1 : real(file, size); }

int mkdir(const char *path, mode_t mode) { REAL(mkdir); return fails(CREATE, AT_FDCWD, path) ? -1 : real(path, mode); }

int unlink(const char *path) { REAL(unlink); return fails(REMOVE, AT_FDCWD, path) ? -1 : real(path); }

int unlinkat(int parent, const char *path, int flags) {
    REAL(unlinkat);
    return fails(REMOVE, parent, path) ? -1 : real(parent, path, flags);
}

int rmdir(const char *path) { REAL(rmdir); return fails(REMOVE, AT_FDCWD, path) ? -1 : real(path); }
