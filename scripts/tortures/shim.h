/* Which calls of the system count, and which of them meets a fault: see shim.c. */
#ifndef TORTURE_SHIM_H
#define TORTURE_SHIM_H
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

#endif
