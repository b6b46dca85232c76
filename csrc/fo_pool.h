/*
 * fo_pool.h: a thread pool that runs the parts of one job at a time.
 *
 * There is one fork and join per job. The pool does not use OpenMP: no second OpenMP runtime is
 * loaded into the process, a forked child does not hang, and no idle thread keeps spinning while
 * another library needs its core.
 *
 * Every part of a job runs exactly once, on some thread. Parts must not wait for one another. If
 * the pool is busy, a job submitted from another thread or from inside a task runs serially in the
 * thread that submits it. A task must not fork, stop the pool or leave by longjmp.
 */
#ifndef FO_POOL_H
#define FO_POOL_H

#include <stdint.h>

enum { FO_POOL_MAX_THREADS = 256 };

/* Symbols that threadpoolctl looks up in the loaded library. All others are hidden. */
#ifdef _WIN32
#define FO_EXPORT __declspec(dllexport)
#else
#define FO_EXPORT __attribute__((visibility("default")))
#endif

/* One part of a job: called once for each part in [0, parts). */
typedef void (*fo_task)(void *context, int part, int parts);

/* Threads of an OpenMP library that is loaded already, led by the thread that calls `run`, which is
   its GOMP_parallel. The others are its omp_get_max_threads and omp_get_thread_num. */
struct fo_team {
    void (*run)(void (*function)(void *), void *argument, unsigned n_threads, unsigned flags);
    int (*max_threads)(void);
    int (*thread_index)(void);
};

/* Number of threads that a job may use, including its caller. The default is 1. */
FO_EXPORT int fo_pool_threads(void);

/* Sets the number of threads, clamped to [1, FO_POOL_MAX_THREADS]. The next job of more than one
   part uses it, and joins surplus workers. Thread-safe. */
FO_EXPORT void fo_pool_set_threads(int threads);

/* Runs all parts and returns when all have finished. Every part sees the caller's earlier writes,
   and the caller sees the writes of all parts afterwards. `nanoseconds` estimates the time of the
   job on one thread: a short job runs serially if its workers are asleep. With a team that is not
   NULL and has as many threads as the pool, a job that is not short runs on the team. */
void fo_pool_run(fo_task task, void *context, int parts, int64_t nanoseconds,
                 const struct fo_team *team);

/* Sets the duration from which a job wakes sleeping workers. Returns the previous value. Only tests
   change it. */
int64_t fo_pool_set_wake_threshold(int64_t nanoseconds);

/* Waits for the running job, if any, and joins every worker. The next job starts new workers. On
   Windows, call it before the process exits, from an ordinary function (see fo_pool.c). */
void fo_pool_stop(void);

/* Number of live workers, awake or asleep. The caller of a job is not counted. */
int fo_pool_workers(void);

#endif
