/*
 * failing_malloc.c: replaces the allocation functions of glibc in a test process. After
 * fault_arm(n), the n-th call from an extension module of NumPy or fastopt returns NULL, once.
 * Calls without the interpreter lock do not count: NumPy's iterators raise a MemoryError there,
 * which crashes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);

static long calls_left = -1; /* until one fails; -1: none does */
static int (*holds_gil)(void);

void fault_arm(long calls)
{
    if (!holds_gil)
        *(void **)&holds_gil = dlsym(RTLD_DEFAULT, "PyGILState_Check");
    calls_left = calls;
}

/* Returns whether no call has failed since fault_arm(). */
int fault_is_armed(void) { return calls_left >= 0; }

static int fails(const void *caller)
{
    Dl_info info;
    if (calls_left < 0 || !dladdr(caller, &info) || !info.dli_fname)
        return 0;
    if (!strstr(info.dli_fname, "numpy") && !strstr(info.dli_fname, "fastopt"))
        return 0;
    if (!holds_gil() || calls_left-- > 0)
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_realloc(block, size);
}
