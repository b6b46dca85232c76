/*
 * failing_calls.c: replaces the functions of glibc that change files in a test process. After
 * fault_arm(n, error, lasts), the n-th call (from 0) fails with this error, and so do those after
 * it if `lasts`. A write that fails has written half of its bytes. If `error` is 0, the process is
 * killed before the call instead.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static long calls_left = -1; /* until one fails; -1: none does */
static int error_code, is_lasting, count;

void fault_arm(long calls, int error, int lasts)
{
    count = 0;
    error_code = error;
    is_lasting = lasts;
    calls_left = calls;
}

/* Disarm; return the number of calls that have failed. */
int fault_disarm(void)
{
    calls_left = -1;
    return count;
}

static int fails(void)
{
    if (calls_left < 0 || (count && !is_lasting))
        return 0;
    if (!count && calls_left-- > 0)
        return 0;
    if (!error_code)
        kill(getpid(), SIGKILL);
    calls_left = 0;
    count++;
    errno = error_code;
    return 1;
}

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

ssize_t write(int file, const void *data, size_t size)
{
    ssize_t (*call)(int, const void *, size_t);
    *(void **)&call = next("write");
    if (fails()) {
        int error = errno;
        if (size > 1 && call(file, data, size / 2) < 0)
            return -1;
        errno = error;
        return -1;
    }
    return call(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int n)
{
    ssize_t (*call)(int, const struct iovec *, int);
    *(void **)&call = next("writev");
    return fails() ? -1 : call(file, parts, n);
}

/* Opening for reading does not count. */
static int open_with(const char *name, const char *path, int flags, mode_t mode)
{
    int (*call)(const char *, int, ...);
    *(void **)&call = next(name);
    return (flags & (O_CREAT | O_WRONLY | O_RDWR)) && fails() ? -1 : call(path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return open_with("open", path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return open_with("open64", path, flags, mode);
}

int fsync(int file)
{
    int (*call)(int);
    *(void **)&call = next("fsync");
    return fails() ? -1 : call(file);
}

int flock(int file, int operation)
{
    int (*call)(int, int);
    *(void **)&call = next("flock");
    return fails() ? -1 : call(file, operation);
}

int ftruncate64(int file, off64_t size)
{
    int (*call)(int, off64_t);
    *(void **)&call = next("ftruncate64");
    return fails() ? -1 : call(file, size);
}

int mkdir(const char *path, mode_t mode)
{
    int (*call)(const char *, mode_t);
    *(void **)&call = next("mkdir");
    return fails() ? -1 : call(path, mode);
}

int rename(const char *from, const char *to)
{
    int (*call)(const char *, const char *);
    *(void **)&call = next("rename");
    return fails() ? -1 : call(from, to);
}

int unlink(const char *path)
{
    int (*call)(const char *);
    *(void **)&call = next("unlink");
    return fails() ? -1 : call(path);
}

int unlinkat(int folder, const char *path, int flags)
{
    int (*call)(int, const char *, int);
    *(void **)&call = next("unlinkat");
    return fails() ? -1 : call(folder, path, flags);
}

int rmdir(const char *path)
{
    int (*call)(const char *);
    *(void **)&call = next("rmdir");
    return fails() ? -1 : call(path);
}

/* A file that cannot be closed properly is closed nevertheless. */
int close(int file)
{
    int (*call)(int);
    *(void **)&call = next("close");
    int status = call(file);
    return fails() ? -1 : status;
}
