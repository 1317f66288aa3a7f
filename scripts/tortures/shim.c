/* Lets the Nth call of the system that concerns some folders fail, be cut short, or be the last of the process.
 *
 * Preloaded into Python, it counts the calls whose path or descriptor lies in a watched folder, and no others. It is
 * armed by torture_watch and torture_arm, or by TORTURE_WATCH, TORTURE_AT, TORTURE_ACTION, TORTURE_ERROR,
 * TORTURE_FOREVER, TORTURE_CLASSES and TORTURE_UNLOCKED in the environment. Counts are shared with forked children.
 */
#include "shim.h"

/* --- opening ------------------------------------------------------------------------------------------------- */

static unsigned kind_of(int flags) { return flags & O_CREAT ? CREATE : OPEN; }

#define MODE(flags)                                                                                                   \
    mode_t mode = 0;                                                                                                  \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                                                                          \
        va_list rest;                                                                                                 \
        va_start(rest, flags);                                                                                        \
        mode = va_arg(rest, mode_t);                                                                                  \
        va_end(rest);                                                                                                 \
    }

#define OPENING(name)                                                                                                 \
    int name(const char *path, int flags, ...)                                                                        \
    {                                                                                                                 \
        MODE(flags)                                                                                                   \
        REAL(int, name, const char *, int, ...);                                                                      \
        struct call c = by_path(kind_of(flags), "open", AT_FDCWD, path);                                              \
        if (failed(&c))                                                                                               \
            return -1;                                                                                                \
        int fd = real(path, flags, mode);                                                                             \
        told(&c, flags, fd);                                                                                          \
        return fd;                                                                                                    \
    }

#define OPENING_AT(name)                                                                                              \
    int name(int folder, const char *path, int flags, ...)                                                            \
    {                                                                                                                 \
        MODE(flags)                                                                                                   \
        REAL(int, name, int, const char *, int, ...);                                                                 \
        struct call c = by_path(kind_of(flags), "open", folder, path);                                                \
        if (failed(&c))                                                                                               \
            return -1;                                                                                                \
        int fd = real(folder, path, flags, mode);                                                                     \
        told(&c, flags, fd);                                                                                          \
        return fd;                                                                                                    \
    }

OPENING(open)
OPENING(open64)
OPENING_AT(openat)
OPENING_AT(openat64)

DIR *opendir(const char *path)
{
    REAL(DIR *, opendir, const char *);
    struct call c = by_path(LIST, "opendir", AT_FDCWD, path);
    if (failed(&c))
        return NULL;
    DIR *folder = real(path);
    told(&c, 0, folder ? 0 : -1);
    return folder;
}

DIR *fdopendir(int fd)
{
    REAL(DIR *, fdopendir, int);
    struct call c = by_fd(LIST, "fdopendir", fd);
    if (failed(&c))
        return NULL;
    DIR *folder = real(fd);
    told(&c, 0, folder ? 0 : -1);
    return folder;
}

struct dirent64 *readdir64(DIR *folder)
{
    REAL(struct dirent64 *, readdir64, DIR *);
    struct call c = by_fd(LIST, "readdir", dirfd(folder));
    if (failed(&c))
        return NULL;
    struct dirent64 *entry = real(folder);
    told(&c, 0, 0);
    return entry;
}

/* --- reading and writing ------------------------------------------------------------------------------------- */

ssize_t read(int fd, void *data, size_t size)
{
    REAL(ssize_t, read, int, void *, size_t);
    struct call c = by_fd(READ, "read", fd);
    if (failed(&c))
        return -1;
    ssize_t done = real(fd, data, less(&c, size));
    told(&c, 0, done);
    return done;
}

ssize_t pread64(int fd, void *data, size_t size, off64_t offset)
{
    REAL(ssize_t, pread64, int, void *, size_t, off64_t);
    struct call c = by_fd(READ, "pread", fd);
    if (failed(&c))
        return -1;
    ssize_t done = real(fd, data, less(&c, size), offset);
    told(&c, offset, done);
    return done;
}

static ssize_t read_parts(struct call *c, int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    struct iovec first = parts[0];
    first.iov_len = less(c, first.iov_len);
    return syscall(SYS_preadv2, fd, c->shorten ? &first : parts, c->shorten ? 1 : count, (long)offset, 0L, flags);
}

ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    struct call c = by_fd(READ, "preadv", fd);
    if (failed(&c))
        return -1;
    ssize_t done = read_parts(&c, fd, parts, count, offset, 0);
    told(&c, offset, done);
    return done;
}

ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    struct call c = by_fd(READ, "preadv", fd);
    if (failed(&c))
        return -1;
    ssize_t done = read_parts(&c, fd, parts, count, offset, flags);
    told(&c, offset, done);
    return done;
}

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    struct call c = by_fd(WRITE, "write", fd);
    if (failed(&c))
        return -1;
    long offset = c.number ? lseek64(fd, 0, SEEK_CUR) : 0;
    ssize_t done = real(fd, data, less(&c, size));
    told(&c, offset, done);
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    struct call c = by_fd(WRITE, "pwrite", fd);
    if (failed(&c))
        return -1;
    ssize_t done = real(fd, data, less(&c, size), offset);
    told(&c, offset, done);
    return done;
}

ssize_t copy_file_range(int from, off64_t *here, int to, off64_t *there, size_t size, unsigned flags)
{
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    struct call c = by_fd(WRITE, "copy_file_range", to);
    if (failed(&c))
        return -1;
    ssize_t done = real(from, here, to, there, less(&c, size), flags);
    told(&c, 0, done);
    return done;
}

/* --- sizes and syncs ----------------------------------------------------------------------------------------- */

#define ON_FD(class, name)                                                                                            \
    int name(int fd)                                                                                                  \
    {                                                                                                                 \
        REAL(int, name, int);                                                                                         \
        struct call c = by_fd(class, #name, fd);                                                                      \
        if (failed(&c))                                                                                               \
            return -1;                                                                                                \
        int result = real(fd);                                                                                        \
        told(&c, 0, result);                                                                                          \
        return result;                                                                                                \
    }

ON_FD(SYNC, fsync)
ON_FD(SYNC, fdatasync)

#define TRUNCATING(name)                                                                                              \
    int name(int fd, off64_t size)                                                                                    \
    {                                                                                                                 \
        REAL(int, name, int, off64_t);                                                                                \
        struct call c = by_fd(SIZE, "ftruncate", fd);                                                                 \
        if (failed(&c))                                                                                               \
            return -1;                                                                                                \
        int result = real(fd, size);                                                                                  \
        told(&c, size, result);                                                                                       \
        return result;                                                                                                \
    }

TRUNCATING(ftruncate)
TRUNCATING(ftruncate64)

int posix_fallocate64(int fd, off64_t offset, off64_t size)
{
    REAL(int, posix_fallocate64, int, off64_t, off64_t);
    struct call c = by_fd(SIZE, "fallocate", fd);
    if (failed(&c))
        return error_number; /* it returns the error */
    int result = real(fd, offset, size);
    told(&c, offset + size, result);
    return result;
}

int flock(int fd, int operation)
{
    REAL(int, flock, int, int);
    struct call c = by_fd(LOCK, "flock", fd);
    if (failed(&c))
        return -1;
    int result = unlocked && c.number ? 0 : real(fd, operation);
    told(&c, operation, result);
    return result;
}

/* --- names --------------------------------------------------------------------------------------------------- */

int rename(const char *from, const char *to)
{
    REAL(int, rename, const char *, const char *);
    struct call c = by_paths(NAME, "rename", AT_FDCWD, from, AT_FDCWD, to);
    if (failed(&c))
        return -1;
    int result = real(from, to);
    told(&c, 0, result);
    return result;
}

int renameat(int f, const char *from, int t, const char *to)
{
    REAL(int, renameat, int, const char *, int, const char *);
    struct call c = by_paths(NAME, "rename", f, from, t, to);
    if (failed(&c))
        return -1;
    int result = real(f, from, t, to);
    told(&c, 0, result);
    return result;
}

int unlinkat(int folder, const char *path, int flags)
{
    REAL(int, unlinkat, int, const char *, int);
    struct call c = by_path(NAME, flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path);
    if (failed(&c))
        return -1;
    int result = real(folder, path, flags);
    told(&c, 0, result);
    return result;
}

#define ON_PATH(class, name)                                                                                          \
    int name(const char *path)                                                                                        \
    {                                                                                                                 \
        REAL(int, name, const char *);                                                                                \
        struct call c = by_path(class, #name, AT_FDCWD, path);                                                        \
        if (failed(&c))                                                                                               \
            return -1;                                                                                                \
        int result = real(path);                                                                                      \
        told(&c, 0, result);                                                                                          \
        return result;                                                                                                \
    }

ON_PATH(NAME, unlink)
ON_PATH(NAME, rmdir)

int mkdir(const char *path, mode_t mode)
{
    REAL(int, mkdir, const char *, mode_t);
    struct call c = by_path(CREATE, "mkdir", AT_FDCWD, path);
    if (failed(&c))
        return -1;
    int result = real(path, mode);
    told(&c, 0, result);
    return result;
}

int mkdirat(int folder, const char *path, mode_t mode)
{
    REAL(int, mkdirat, int, const char *, mode_t);
    struct call c = by_path(CREATE, "mkdir", folder, path);
    if (failed(&c))
        return -1;
    int result = real(folder, path, mode);
    told(&c, 0, result);
    return result;
}

/* --- looking ------------------------------------------------------------------------------------------------- */

#define LOOKING(name)                                                                                                 \
    int name(const char *path, struct stat64 *found)                                                                  \
    {                                                                                                                 \
        REAL(int, name, const char *, struct stat64 *);                                                               \
        struct call c = by_path(STAT, "stat", AT_FDCWD, path);                                                        \
        if (failed(&c))                                                                                               \
            return -1;                                                                                                \
        int result = real(path, found);                                                                               \
        told(&c, 0, result);                                                                                          \
        return result;                                                                                                \
    }

LOOKING(stat64)
LOOKING(lstat64)

int fstatat64(int folder, const char *path, struct stat64 *found, int flags)
{
    REAL(int, fstatat64, int, const char *, struct stat64 *, int);
    struct call c = by_path(STAT, "stat", folder, path);
    if (failed(&c))
        return -1;
    int result = real(folder, path, found, flags);
    told(&c, 0, result);
    return result;
}

int fstat64(int fd, struct stat64 *found)
{
    REAL(int, fstat64, int, struct stat64 *);
    struct call c = by_fd(STAT, "fstat", fd);
    if (failed(&c))
        return -1;
    int result = real(fd, found);
    told(&c, 0, result);
    return result;
}
