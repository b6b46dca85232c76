/*
 * fo_thread.h: threads, locks and atomics for the thread pool, on POSIX and Windows.
 *
 * Threads, mutexes and condition variables are those of pthreads or, on Windows, SRWLOCK,
 * CONDITION_VARIABLE and _beginthreadex. Atomics are those of C11. MSVC has them only behind an
 * experimental flag, so the Interlocked functions, which are full barriers, replace them there, and
 * MSVC needs only /std:c11 (for _Alignas). Other compilers need their default dialect or
 * -std=gnu11: a strict -std=c11 hides POSIX.
 *
 * Every atomic is one int. Loads acquire, stores release, and read-modify-write operations do both.
 * The functions named "relaxed" do not order other memory accesses.
 */
#ifndef FO_THREAD_H
#define FO_THREAD_H

#include <stdint.h>

#ifdef _WIN32
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#include <process.h>
#else
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#endif

#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)
#include <immintrin.h>
#elif defined(_MSC_VER)
#include <intrin.h>
#endif

/* ---- Atomics ---- */

#if defined(_MSC_VER) && !defined(__clang__)

typedef volatile LONG fo_atomic;

static inline int fo_load(const fo_atomic *word) { return (int)ReadAcquire(word); }
static inline int fo_load_relaxed(const fo_atomic *word) { return (int)ReadNoFence(word); }
static inline void fo_store(fo_atomic *word, int value) { WriteRelease(word, value); }
static inline void fo_store_relaxed(fo_atomic *word, int value) { WriteNoFence(word, value); }

static inline int fo_exchange(fo_atomic *word, int value)
{
    return (int)InterlockedExchange(word, value);
}

static inline int fo_fetch_add(fo_atomic *word, int amount) /* returns the previous value */
{
    return (int)InterlockedExchangeAdd(word, amount);
}

/* Returns whether the value was exchanged. */
static inline int fo_compare_exchange(fo_atomic *word, int expected, int value)
{
    return InterlockedCompareExchange(word, value, expected) == expected;
}

#else

#include <stdatomic.h>

typedef atomic_int fo_atomic;

static inline int fo_load(const fo_atomic *word)
{
    return atomic_load_explicit((fo_atomic *)word, memory_order_acquire);
}

static inline int fo_load_relaxed(const fo_atomic *word)
{
    return atomic_load_explicit((fo_atomic *)word, memory_order_relaxed);
}

static inline void fo_store(fo_atomic *word, int value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

static inline void fo_store_relaxed(fo_atomic *word, int value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

static inline int fo_exchange(fo_atomic *word, int value)
{
    return atomic_exchange_explicit(word, value, memory_order_acq_rel);
}

static inline int fo_fetch_add(fo_atomic *word, int amount) /* returns the previous value */
{
    return atomic_fetch_add_explicit(word, amount, memory_order_acq_rel);
}

/* Returns whether the value was exchanged. */
static inline int fo_compare_exchange(fo_atomic *word, int expected, int value)
{
    return atomic_compare_exchange_strong_explicit(word, &expected, value, memory_order_acq_rel,
                                                   memory_order_acquire);
}

#endif

/* ---- Waiting ---- */

/* Tells the core that this is a spin loop. On most ARM cores `yield` does nothing; an instruction
   barrier takes about as long as the pause instruction of x86. */
static inline void fo_pause(void)
{
#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#elif defined(_M_ARM64)
    __isb(_ARM64_BARRIER_SY);
#endif
}

#ifdef _WIN32

static inline void fo_yield(void) { SwitchToThread(); }

static inline int64_t fo_nanoseconds(void)
{
    LARGE_INTEGER count, per_second;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&per_second);
    return (int64_t)((double)count.QuadPart * 1e9 / (double)per_second.QuadPart);
}

/* ---- Mutexes and condition variables ---- */

typedef SRWLOCK fo_mutex;
typedef CONDITION_VARIABLE fo_cond;

static inline void fo_mutex_init(fo_mutex *mutex) { InitializeSRWLock(mutex); }
static inline void fo_mutex_lock(fo_mutex *mutex) { AcquireSRWLockExclusive(mutex); }
static inline void fo_mutex_unlock(fo_mutex *mutex) { ReleaseSRWLockExclusive(mutex); }
static inline void fo_mutex_destroy(fo_mutex *mutex) { (void)mutex; }

static inline void fo_cond_init(fo_cond *cond) { InitializeConditionVariable(cond); }
static inline void fo_cond_signal(fo_cond *cond) { WakeConditionVariable(cond); }
static inline void fo_cond_destroy(fo_cond *cond) { (void)cond; }

static inline void fo_cond_wait(fo_cond *cond, fo_mutex *mutex)
{
    SleepConditionVariableSRW(cond, mutex, INFINITE, 0);
}

/* ---- One-time initialization; Windows has no fork ---- */

typedef INIT_ONCE fo_once;
#define FO_ONCE_INIT INIT_ONCE_STATIC_INIT

static inline void fo_once_run(fo_once *once, void (*body)(void))
{
    BOOL first = FALSE;
    InitOnceBeginInitialize(once, 0, &first, NULL);
    if (first) {
        body();
        InitOnceComplete(once, 0, NULL);
    }
}

static inline int fo_at_fork_child(void (*body)(void)) /* returns whether it is registered */
{
    (void)body;
    return 1;
}

/* ---- Threads ---- */

typedef HANDLE fo_thread;
typedef unsigned fo_thread_result;
#define FO_THREAD_CALL __stdcall

/* Returns whether the thread was started. */
static inline int fo_thread_start(fo_thread *thread, fo_thread_result(FO_THREAD_CALL *body)(void *),
                                  void *argument, unsigned stack_bytes)
{
    *thread = (HANDLE)_beginthreadex(NULL, stack_bytes, body, argument,
                                     STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
    return *thread != NULL;
}

static inline void fo_thread_join(fo_thread thread)
{
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}

#else

static inline void fo_yield(void) { sched_yield(); }

static inline int64_t fo_nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- Mutexes and condition variables ---- */

typedef pthread_mutex_t fo_mutex;
typedef pthread_cond_t fo_cond;

static inline void fo_mutex_init(fo_mutex *mutex) { pthread_mutex_init(mutex, NULL); }
static inline void fo_mutex_lock(fo_mutex *mutex) { pthread_mutex_lock(mutex); }
static inline void fo_mutex_unlock(fo_mutex *mutex) { pthread_mutex_unlock(mutex); }
static inline void fo_mutex_destroy(fo_mutex *mutex) { pthread_mutex_destroy(mutex); }

static inline void fo_cond_init(fo_cond *cond) { pthread_cond_init(cond, NULL); }
static inline void fo_cond_signal(fo_cond *cond) { pthread_cond_signal(cond); }
static inline void fo_cond_destroy(fo_cond *cond) { pthread_cond_destroy(cond); }

static inline void fo_cond_wait(fo_cond *cond, fo_mutex *mutex) { pthread_cond_wait(cond, mutex); }

/* ---- One-time initialization and the handler in a forked child ---- */

typedef pthread_once_t fo_once;
#define FO_ONCE_INIT PTHREAD_ONCE_INIT

static inline void fo_once_run(fo_once *once, void (*body)(void)) { pthread_once(once, body); }

static inline int fo_at_fork_child(void (*body)(void)) /* returns whether it is registered */
{
    return pthread_atfork(NULL, NULL, body) == 0;
}

/* ---- Threads ---- */

typedef pthread_t fo_thread;
typedef void *fo_thread_result;
#define FO_THREAD_CALL

/* Returns whether the thread was started. It blocks every signal, so that SIGINT is delivered to
   a thread of the application. */
static inline int fo_thread_start(fo_thread *thread, fo_thread_result (*body)(void *),
                                  void *argument, unsigned stack_bytes)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0)
        return 0;
    pthread_attr_setstacksize(&attributes, stack_bytes);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(thread, &attributes, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error == 0;
}

static inline void fo_thread_join(fo_thread thread) { pthread_join(thread, NULL); }

#endif

#endif
