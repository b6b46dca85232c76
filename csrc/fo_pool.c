/*
 * fo_pool.c: a pool of persistent workers with a short fork and join.
 *
 * Slot 0 is the caller of the job, slots 1 to n_threads - 1 are the workers of the job. Each slot
 * has a contiguous range of parts. Jobs of the same size have the same ranges, so the data of a
 * part stays in the caches of one core.
 *
 * Calling a worker. Each slot has an atomic state, alone on its cache line:
 *
 *     IDLE    -> CALLED    a job was published (by the owner of the lock, with an exchange)
 *     CALLED  -> RUNNING   the worker has accepted; back to IDLE when no part is left
 *     CALLED  -> IDLE      the caller revoked the call because the worker had not accepted yet
 *     IDLE    -> ASLEEP    the worker stopped spinning and waits on its condition variable
 *     any     -> STOPPING  the worker must end (only between jobs)
 *
 * ASLEEP and CALLED are values of one atomic, so no wake-up is lost: a thread that exchanges ASLEEP
 * for another state must signal the condition variable, and a worker falls asleep only if its state
 * is still IDLE. There is no system call unless a worker is asleep. A job writes only the states of
 * its own workers.
 *
 * End of a job. `pending` counts the slots that may still be running. The thread that decrements it
 * to zero ends the job. If that is a worker, it calls slot 0, which waits like a worker does.
 *
 * Work stealing. Parts are claimed one by one, and a thread that has finished its own range
 * continues with the ranges of the others. The caller finally revokes the calls that no worker has
 * accepted. A job therefore never waits for a thread to wake up, and waits at most one part for a
 * core that is in use by another process.
 *
 * Waking. Waking a worker takes its caller some microseconds, and the worker starts about ten
 * microseconds later, in a virtual machine up to a hundred. A job shorter than the wake threshold
 * runs serially if one of its workers is asleep, unless the last few jobs followed one another so
 * closely that woken workers would stay awake.
 *
 * Cores. In a virtual machine, Linux takes idle cores for unavailable, and often wakes a thread on
 * the core of the thread that wakes it, where both take turns. The workers are therefore kept off
 * the core of the caller. The caller of a job might be woken on the core of a worker, so it spins
 * for much longer than a worker does before it falls asleep.
 *
 * Teams. Idle threads of OpenMP keep spinning for some milliseconds after they were used. A worker
 * that is woken on the same core has to share it with them. A job whose caller has just used OpenMP
 * therefore runs on these threads: they start within a microsecond. If they are asleep, the caller
 * has run most parts itself before they begin. A forked child does not have them, so it does not
 * use teams.
 *
 * Fork. A child process has one thread and a copy of the pool, possibly from the middle of a job of
 * another thread. A pthread_atfork handler drops the workers and initializes slot 0 again.
 * Comparing getpid() at each job would be less robust, because process ids repeat (the first
 * process of every container is 1), and would need a system call per job.
 *
 * Exit. Workers that are asleep do not delay exit(). On Windows, exiting kills the workers first,
 * and joining them from DllMain or a destructor would deadlock on the loader lock. Nothing here
 * runs automatically at unloading, so fo_pool_stop() must be called before a DLL is unloaded.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for sched_getcpu and the affinity of threads */
#endif

#include "fo_pool.h"

#include "fo_affinity.h"
#include "fo_thread.h"

#include <string.h>

enum {
    CACHE_LINE = 64,
    STACK_BYTES = 1 << 20,     /* virtual memory; tasks keep their tiles on the stack */
    SPIN_NANOSECONDS = 100000, /* the cost of falling asleep and being woken in a virtual machine */
    PAUSES_PER_CLOCK_READ = 16,
    WAKE_THRESHOLD = 250000, /* default, in nanoseconds on one thread */
    WAIT_NANOSECONDS = 20000000, /* for the end of a job, before the caller falls asleep */
    MOVE_NANOSECONDS = 100000, /* per thread, between changes of cores: 1 to 2 % of the time */
    TEAM_THRESHOLD = 40000, /* in nanoseconds on one thread: shorter jobs do not run on a team */
    MIN_RECENT_JOBS = 4 /* after so many in a row, the next is expected soon */
};

enum { IDLE, CALLED, RUNNING, ASLEEP, STOPPING };

struct worker {
    _Alignas(CACHE_LINE) fo_atomic state;
    _Alignas(CACHE_LINE) fo_atomic next_part; /* of the worker's own range */
    fo_mutex mutex;
    fo_cond cond;
    fo_thread thread;
    fo_affinity affinity;
};

struct job {
    fo_task task;
    void *context;
    int parts;
    int n_threads;
};

/* `locked` protects all fields except itself and `n_threads`. Atomics written during a job have a
   cache line each. */
static struct {
    struct worker workers[FO_POOL_MAX_THREADS]; /* slot 0 belongs to the caller */
    _Alignas(CACHE_LINE) fo_atomic pending;
    _Alignas(CACHE_LINE) fo_atomic locked;
    _Alignas(CACHE_LINE) fo_atomic n_threads; /* as set by the user */
    fo_atomic n_started; /* slots in use, including the caller's */
    int core; /* of a caller; the workers are kept off it */
    int64_t last_move;
    int max_threads; /* 1 if forks cannot be detected */
    int is_child; /* of a process that had this pool */
    int recent_jobs; /* jobs in a row that followed one another closely */
    int64_t last_end;
    int64_t wake_threshold;
    struct job job;
} pool = {.n_threads = 1, .n_started = 1, .core = -1, .wake_threshold = WAKE_THRESHOLD};

/* ---- One worker ---- */

static void worker_init(struct worker *worker)
{
    fo_store_relaxed(&worker->state, IDLE);
    fo_mutex_init(&worker->mutex);
    fo_cond_init(&worker->cond);
    memset(&worker->affinity, 0, sizeof worker->affinity);
}

static void worker_destroy(struct worker *worker)
{
    fo_cond_destroy(&worker->cond);
    fo_mutex_destroy(&worker->mutex);
}

static void set_state(struct worker *worker, int state)
{
    if (fo_exchange(&worker->state, state) == ASLEEP) {
        fo_mutex_lock(&worker->mutex);
        fo_cond_signal(&worker->cond);
        fo_mutex_unlock(&worker->mutex);
    }
}

/* Returns whether the state changed. Yields before each look at the clock: otherwise a worker that
   shares its core with another thread would block that thread while it spins. */
static int spin(const struct worker *worker, int64_t nanoseconds)
{
    const int64_t deadline = fo_nanoseconds() + nanoseconds;
    do {
        for (int i = 0; i < PAUSES_PER_CLOCK_READ; i++) {
            if (fo_load_relaxed(&worker->state) != IDLE)
                return 1;
            fo_pause();
        }
        fo_yield();
    } while (fo_nanoseconds() < deadline);
    return 0;
}

/* Spins, then sleeps. Returns the new state: IDLE if a call was revoked in the meantime. */
static int wait_for_call(struct worker *worker, int64_t nanoseconds)
{
    if (!spin(worker, nanoseconds) && fo_compare_exchange(&worker->state, IDLE, ASLEEP)) {
        fo_mutex_lock(&worker->mutex);
        while (fo_load(&worker->state) == ASLEEP)
            fo_cond_wait(&worker->cond, &worker->mutex);
        fo_mutex_unlock(&worker->mutex);
    }
    return fo_load(&worker->state);
}

/* ---- Running parts ---- */

/* First part in the range of a slot. For slot n_threads it is the number of parts. */
static int part_begin(const struct job *job, int slot)
{
    return (int)((int64_t)job->parts * slot / job->n_threads);
}

/* Runs parts until none is left, starting with the range of `slot`. */
static void run_parts(const struct job *job, int slot)
{
    for (int k = 0; k < job->n_threads; k++) {
        const int owner = (slot + k) % job->n_threads;
        const int end = part_begin(job, owner + 1);
        int part;
        while ((part = fo_fetch_add(&pool.workers[owner].next_part, 1)) < end)
            job->task(job->context, part, job->parts);
    }
}

/* Marks slots as finished. Returns whether they were the last of the job. */
static int finish(int n_slots) { return fo_fetch_add(&pool.pending, -n_slots) == n_slots; }

static fo_thread_result FO_THREAD_CALL worker_main(void *argument)
{
    struct worker *const worker = argument;
    while (wait_for_call(worker, SPIN_NANOSECONDS) != STOPPING) {
        if (fo_compare_exchange(&worker->state, CALLED, RUNNING)) {
            run_parts(&pool.job, (int)(worker - pool.workers));
            /* Before finish(): after it the next call may follow at once. */
            fo_store_relaxed(&worker->state, IDLE);
            if (finish(1))
                set_state(&pool.workers[0], CALLED);
        }
    }
    return 0;
}

/* ---- Starting and stopping workers; the caller holds the lock ---- */

static void stop_workers(int n_kept)
{
    const int n_started = fo_load_relaxed(&pool.n_started);
    for (int k = n_kept; k < n_started; k++)
        set_state(&pool.workers[k], STOPPING);
    for (int k = n_kept; k < n_started; k++) {
        fo_thread_join(pool.workers[k].thread);
        worker_destroy(&pool.workers[k]);
    }
    if (n_kept < n_started)
        fo_store_relaxed(&pool.n_started, n_kept);
}

static int start_worker(struct worker *worker)
{
    worker_init(worker);
    if (fo_thread_start(&worker->thread, worker_main, worker, STACK_BYTES)) {
        fo_keep_off(worker->thread, pool.core, &worker->affinity);
        return 1;
    }
    worker_destroy(worker);
    return 0;
}

/* Returns the number of threads of a job: fewer than wanted if the system refuses to start more. */
static int ensure_workers(int parts)
{
    const int requested = fo_load_relaxed(&pool.n_threads);
    const int limit = requested < pool.max_threads ? requested : pool.max_threads;
    const int n_threads = parts < limit ? parts : limit;
    stop_workers(limit);
    int n_started = fo_load_relaxed(&pool.n_started);
    while (n_started < n_threads && start_worker(&pool.workers[n_started]))
        n_started++;
    fo_store_relaxed(&pool.n_started, n_started);
    return n_threads < n_started ? n_threads : n_started;
}

/* Returns whether to run a job of this duration (on one thread) in parallel. */
static int is_parallel(int n_threads, int64_t nanoseconds)
{
    const int soon = fo_nanoseconds() - pool.last_end < SPIN_NANOSECONDS;
    if (!soon)
        pool.recent_jobs = 0;
    else if (pool.recent_jobs < MIN_RECENT_JOBS)
        pool.recent_jobs++;
    if (nanoseconds >= pool.wake_threshold || pool.recent_jobs == MIN_RECENT_JOBS)
        return 1;
    for (int k = 1; k < n_threads; k++)
        if (fo_load_relaxed(&pool.workers[k].state) == ASLEEP)
            return 0;
    return 1;
}

/* ---- Locking ---- */

static void reset_pool(void)
{
    worker_init(&pool.workers[0]);
    fo_store_relaxed(&pool.n_started, 1);
    fo_store(&pool.locked, 0);
}

/* The handler in a forked child, which has no workers and no other threads. */
static void reset_child(void)
{
    reset_pool();
    pool.is_child = 1;
}

static void init_pool(void)
{
    reset_pool();
    pool.max_threads = fo_at_fork_child(reset_child) ? FO_POOL_MAX_THREADS : 1;
}

static int try_lock(void)
{
    static fo_once once = FO_ONCE_INIT;
    fo_once_run(&once, init_pool);
    return fo_compare_exchange(&pool.locked, 0, 1);
}

static void unlock(void) { fo_store(&pool.locked, 0); }

/* ---- Public functions ---- */

int fo_pool_threads(void) { return fo_load_relaxed(&pool.n_threads); }

void fo_pool_set_threads(int threads)
{
    const int positive = threads < 1 ? 1 : threads;
    fo_store_relaxed(&pool.n_threads,
                     positive < FO_POOL_MAX_THREADS ? positive : FO_POOL_MAX_THREADS);
}

static void run_serial(fo_task task, void *context, int parts)
{
    for (int part = 0; part < parts; part++)
        task(context, part, parts);
}

static void set_job(fo_task task, void *context, int parts, int n_threads)
{
    pool.job = (struct job){task, context, parts, n_threads};
    for (int k = 0; k < n_threads; k++)
        fo_store_relaxed(&pool.workers[k].next_part, part_begin(&pool.job, k));
}

/* Keeps the workers off the core of the caller. */
static void leave_core_to_caller(void)
{
    const int core = fo_core(), n_started = fo_load_relaxed(&pool.n_started);
    if (core == pool.core)
        return;
    const int64_t now = fo_nanoseconds();
    if (now - pool.last_move < (int64_t)MOVE_NANOSECONDS * n_started)
        return;
    pool.core = core;
    pool.last_move = now;
    for (int k = 1; k < n_started; k++)
        fo_keep_off(pool.workers[k].thread, core, &pool.workers[k].affinity);
}

static void run_parallel(fo_task task, void *context, int parts, int n_threads)
{
    leave_core_to_caller();
    set_job(task, context, parts, n_threads);
    fo_store_relaxed(&pool.pending, n_threads);
    fo_store_relaxed(&pool.workers[0].state, IDLE);
    for (int k = 1; k < n_threads; k++)
        set_state(&pool.workers[k], CALLED);

    int n_finished = 1;
    run_parts(&pool.job, 0);
    for (int k = 1; k < n_threads; k++)
        n_finished += fo_compare_exchange(&pool.workers[k].state, CALLED, IDLE);
    if (!finish(n_finished))
        wait_for_call(&pool.workers[0], WAIT_NANOSECONDS);
}

static void run_as_member(void *team)
{
    run_parts(&pool.job, ((const struct fo_team *)team)->thread_index() % pool.job.n_threads);
}

/* Returns whether a team runs a job of this duration: with as many threads as it has anyway, since
   another number would make it stop or start threads. */
static int has_team(const struct fo_team *team, int64_t nanoseconds)
{
    const int n_threads = fo_load_relaxed(&pool.n_threads);
    return team && !pool.is_child && n_threads > 1 && pool.max_threads > 1 &&
           nanoseconds >= TEAM_THRESHOLD && team->max_threads() == n_threads;
}

void fo_pool_run(fo_task task, void *context, int parts, int64_t nanoseconds,
                 const struct fo_team *team)
{
    if (parts < 2 || !try_lock()) {
        run_serial(task, context, parts);
        return;
    }
    if (has_team(team, nanoseconds)) {
        const int n_threads = fo_load_relaxed(&pool.n_threads);
        set_job(task, context, parts, n_threads);
        team->run(run_as_member, (void *)team, (unsigned)n_threads, 0);
    } else {
        const int n_threads = ensure_workers(parts);
        if (is_parallel(n_threads, nanoseconds))
            run_parallel(task, context, parts, n_threads);
        else
            run_serial(task, context, parts);
    }
    pool.last_end = fo_nanoseconds();
    unlock();
}

void fo_pool_stop(void)
{
    while (!try_lock())
        fo_yield();
    stop_workers(1);
    unlock();
}

int64_t fo_pool_set_wake_threshold(int64_t nanoseconds)
{
    const int64_t previous = pool.wake_threshold;
    pool.wake_threshold = nanoseconds;
    return previous;
}

int fo_pool_workers(void) { return fo_load_relaxed(&pool.n_started) - 1; }
