/*
 * fo_pool.h: runs the parts of one job on a few threads that stay.
 *
 * One fork and join a job, on a pool of this library's own rather than OpenMP's: no second OpenMP
 * runtime in the process, no hang in a forked child, no thread that spins while somebody else's
 * matrix product wants the core.
 *
 * Every part of a job is run exactly once, on some thread; parts must not wait for one another. A
 * job that comes while the pool is at work, from another thread or from inside a task, is run
 * whole by the thread that brought it. A task must not fork, stop the pool, or leave by longjmp.
 */
#ifndef FO_POOL_H
#define FO_POOL_H

#include <stdint.h>

enum { FO_POOL_MAX_THREADS = 256 };

/* What threadpoolctl looks for in the loaded library; all else is hidden. */
#ifdef _WIN32
#define FO_EXPORT __declspec(dllexport)
#else
#define FO_EXPORT __attribute__((visibility("default")))
#endif

/* One part of a job: called once for each part in [0, parts), each on some thread. */
typedef void (*fo_task)(void *context, int part, int parts);

/* How many threads a job may use, its caller among them. It is 1 until somebody sets it. */
FO_EXPORT int fo_pool_threads(void);

/* Sets that number, clamped to [1, FO_POOL_MAX_THREADS], from the next job of more than one part
   on; that job also joins the surplus workers. May be called at any time, from any thread. */
FO_EXPORT void fo_pool_set_threads(int threads);

/* Runs all parts and returns when all are done. What the caller wrote before is seen by every
   part, and what the parts wrote is seen by the caller after. `nanoseconds` is about how long one
   thread would take: a short job is left to the caller if the workers would have to be woken. */
void fo_pool_run(fo_task task, void *context, int parts, int64_t nanoseconds);

/* Sets from which length of a job on sleeping workers are woken for it, and returns what that was.
   It has a good value from the start; tests set 0. */
int64_t fo_pool_set_waking(int64_t nanoseconds);

/* Waits for the job at work, if any, and joins every worker; the next job starts new ones. To be
   called before a process exits, from an ordinary function: see fo_pool.c on Windows. */
void fo_pool_stop(void);

/* How many workers live now, asleep or not (the caller of a job is not a worker). */
int fo_pool_workers(void);

#endif
