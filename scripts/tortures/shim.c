/* Lets the Nth call of the system that concerns some folders fail, be cut short, or be the last of the process.
 *
 * Preloaded into Python, it counts the calls whose path or descriptor lies in a watched folder, and no others. It is
 * armed by torture_watch and torture_arm, or by TORTURE_WATCH, TORTURE_AT, TORTURE_ACTION, TORTURE_ERROR,
 * TORTURE_FOREVER, TORTURE_CLASSES and TORTURE_UNLOCKED in the environment. Counts are shared with forked children.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, CREATE = 2, READ = 4, WRITE = 8, SYNC = 16, NAME = 32, SIZE = 64, LOCK = 128, STAT = 256, LIST = 512 };
enum { COUNT, FAIL, KILL_BEFORE, KILL_AFTER, SHORT, TORN, SIGNAL };

#define FOLDERS 8

static char folders[FOLDERS][PATH_MAX];
static long at;
static int action, error_number, forever, unlocked;
static unsigned classes = ~0u;
static int log_fd = -1;
static pthread_mutex_t in_order = PTHREAD_MUTEX_INITIALIZER;

static struct shared {
    atomic_long calls, met;
    char what[PATH_MAX + 64];
} *shared;

struct call {
    long number;
    int fail, shorten, kill_after;
    const char *name;
    char path[PATH_MAX], second[PATH_MAX];
};

/* --- arming -------------------------------------------------------------------------------------------------- */

static void map_shared(void)
{
    if (shared == NULL)
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void torture_watch(const char *paths)
{
    memset(folders, 0, sizeof folders);
    for (int i = 0; i < FOLDERS && *paths; i++) {
        size_t length = strcspn(paths, ":");
        if (length < PATH_MAX)
            memcpy(folders[i], paths, length);
        paths += length + (paths[length] == ':');
    }
}

void torture_arm(long call, int what, int number, int again, unsigned which)
{
    map_shared();
    at = call, action = what, error_number = number, forever = again, classes = which;
    shared->calls = shared->met = 0;
    shared->what[0] = 0;
}

void torture_unlocked(int yes) { unlocked = yes; }
void torture_log(int fd) { log_fd = fd; }
long torture_calls(void) { return shared->calls; }
long torture_met(void) { return shared->met; }
const char *torture_what(void) { return shared->what; }

static long number_of(const char *name, long otherwise)
{
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : otherwise;
}

__attribute__((constructor)) static void start(void)
{
    map_shared();
    torture_watch(getenv("TORTURE_WATCH") ? getenv("TORTURE_WATCH") : "");
    torture_arm(number_of("TORTURE_AT", 0), (int)number_of("TORTURE_ACTION", COUNT),
                (int)number_of("TORTURE_ERROR", EIO), (int)number_of("TORTURE_FOREVER", 0),
                (unsigned)number_of("TORTURE_CLASSES", -1));
    unlocked = (int)number_of("TORTURE_UNLOCKED", 0);
}

/* --- counting ------------------------------------------------------------------------------------------------ */

static int is_watched(const char *path)
{
    for (int i = 0; i < FOLDERS && folders[i][0]; i++) {
        size_t length = strlen(folders[i]);
        if (strncmp(path, folders[i], length) == 0 && (path[length] == 0 || path[length] == '/'))
            return 1;
    }
    return 0;
}

/* What a descriptor, or AT_FDCWD, leads to. */
static void path_of(int fd, char *out)
{
    char link[64];
    snprintf(link, sizeof link, fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", fd);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
    out[length < 0 ? 0 : length] = 0;
}

static void absolute(int folder, const char *path, char *out)
{
    out[0] = 0;
    if (path[0] != '/') {
        path_of(folder, out);
        if (path[0] == 0)
            return;
        strncat(out, "/", PATH_MAX - 1 - strlen(out));
    }
    strncat(out, path, PATH_MAX - 1 - strlen(out));
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static struct call count(struct call c, unsigned class)
{
    if (!(class & classes) || !(is_watched(c.path) || is_watched(c.second)))
        return c;
    c.number = atomic_fetch_add(&shared->calls, 1) + 1;
    if (log_fd >= 0)
        pthread_mutex_lock(&in_order);
    if (at == 0 || c.number < at || (c.number > at && !forever))
        return c;
    if (atomic_fetch_add(&shared->met, 1) == 0)
        snprintf(shared->what, sizeof shared->what, "%s %s", c.name, c.path);
    c.fail = action == FAIL;
    c.shorten = action == SHORT || action == TORN;
    c.kill_after = action == KILL_AFTER || action == TORN;
    if (action == KILL_BEFORE)
        die();
    if (action == SIGNAL)
        kill(getpid(), error_number);
    return c;
}

static struct call by_path(unsigned class, const char *name, int folder, const char *path)
{
    struct call c = {.name = name};
    int before = errno;
    absolute(folder, path, c.path);
    errno = before;
    return count(c, class);
}

static struct call by_paths(unsigned class, const char *name, int f, const char *from, int t, const char *to)
{
    struct call c = {.name = name};
    int before = errno;
    absolute(f, from, c.path);
    absolute(t, to, c.second);
    errno = before;
    return count(c, class);
}

static struct call by_fd(unsigned class, const char *name, int fd)
{
    struct call c = {.name = name};
    int before = errno;
    path_of(fd, c.path);
    errno = before;
    return count(c, class);
}

/* After a call: `place` is an offset, flags or a size, `result` what it returned. */
static void told(struct call *c, long place, long result)
{
    if (c->number == 0)
        return;
    int before = errno;
    if (log_fd >= 0) {
        char line[2 * PATH_MAX + 128];
        int length = snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\t%ld\t%ld\n", c->number, c->name, c->path, c->second,
                              place, result);
        syscall(SYS_write, log_fd, line, length);
        pthread_mutex_unlock(&in_order);
    }
    if (c->kill_after)
        die();
    errno = before;
}

static int failed(struct call *c)
{
    if (!c->fail)
        return 0;
    told(c, 0, -1);
    errno = error_number;
    return 1;
}

static size_t less(struct call *c, size_t count) { return c->shorten && count > 1 ? count / 2 : count; }

#define REAL(type, name, ...)                                                                                         \
    static type (*real)(__VA_ARGS__);                                                                                 \
    if (real == NULL)                                                                                                 \
        real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

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
