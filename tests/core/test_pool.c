/*
 * test_pool.c: tests of fo_pool.h without Python, for use with sanitizers.
 *
 * tools/sanitize.sh builds and runs it. Each test is one function. A failed check ends the program
 * with status 1, a hang ends it with SIGALRM. `test_pool latency` prints timings instead, and
 * `test_pool leave` exits with live workers. Some tests are skipped: forks on Windows and under
 * ThreadSanitizer (which does not support threads in the child of a multithreaded process), thread
 * counts without /proc, and failing thread creation unless the linker wraps pthread_create
 * (FO_WRAP_PTHREAD_CREATE).
 */
#ifdef __linux__
#define _GNU_SOURCE /* for the affinity of threads */
#endif

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/fo_pool.h"
#include "../../csrc/fo_thread.h"

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif
#ifdef __linux__
#include <dirent.h>
#endif

enum { MAX_PARTS = 20, DEADLINE_SECONDS = 300 };
static const int64_t MILLISECOND = 1000000;
static const int64_t LONG_JOB = INT64_MAX; /* duration of a job that wakes every worker */

static void check(int condition, const char *expectation)
{
    if (!condition) {
        fprintf(stderr, "FAILED: %s\n", expectation);
        fflush(stderr);
        _Exit(1);
    }
}

static void sleep_for(int64_t nanoseconds)
{
#ifdef _WIN32
    Sleep((DWORD)(nanoseconds / MILLISECOND));
#else
    const struct timespec span = {nanoseconds / 1000000000, nanoseconds % 1000000000};
    nanosleep(&span, NULL);
#endif
}

static void busy_for(int64_t nanoseconds)
{
    const int64_t end = fo_nanoseconds() + nanoseconds;
    while (fo_nanoseconds() < end)
        fo_pause();
}

/* ---- Tasks ---- */

/* The counts are not atomic, so that ThreadSanitizer checks that parts happen before the return. */
struct run_counts {
    int runs[MAX_PARTS + 1];
    int parts[MAX_PARTS + 1];
};

static void count_part(void *context, int part, int parts)
{
    struct run_counts *const counts = context;
    counts->runs[part]++;
    counts->parts[part] = parts;
}

static void run_and_check(int parts)
{
    struct run_counts counts;
    memset(&counts, 0, sizeof counts);
    fo_pool_run(count_part, &counts, parts, LONG_JOB, NULL);
    for (int part = 0; part <= MAX_PARTS; part++) {
        check(counts.runs[part] == (part < parts), "each part runs exactly once");
        check(part >= parts || counts.parts[part] == parts, "each part gets the number of parts");
    }
}

static void run_nested(void *context, int part, int parts)
{
    (void)context, (void)part, (void)parts;
    for (int inner = 1; inner <= 5; inner++)
        run_and_check(inner);
}

/* Every part waits until all parts have begun, so the job ends only if each part has its own
   thread. Real tasks must not do this. */
struct barrier {
    fo_atomic missing;
    fo_atomic sigint_blocked;
};

static void wait_for_all(void *context, int part, int parts)
{
    struct barrier *const barrier = context;
    (void)parts;
#ifndef _WIN32
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    if (part > 0 && sigismember(&blocked, SIGINT))
        fo_fetch_add(&barrier->sigint_blocked, 1);
#else
    (void)part;
#endif
    fo_fetch_add(&barrier->missing, -1);
    while (fo_load(&barrier->missing) > 0)
        fo_yield();
}

static void run_concurrently(int parts)
{
    struct barrier barrier;
    fo_store(&barrier.missing, parts);
    fo_store(&barrier.sigint_blocked, 0);
    fo_pool_run(wait_for_all, &barrier, parts, LONG_JOB, NULL);
#ifndef _WIN32
    check(fo_load(&barrier.sigint_blocked) == parts - 1, "workers block signals");
#endif
}

/* ---- Tests ---- */

static void test_threads_are_clamped(void)
{
    const int cases[][2] = {{-3, 1}, {0, 1}, {1, 1}, {7, 7}, {1 << 20, FO_POOL_MAX_THREADS}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fo_pool_set_threads(cases[i][0]);
        check(fo_pool_threads() == cases[i][1], "set_threads clamps to [1, max]");
    }
}

static void test_every_part_runs_once(void)
{
    const int threads[] = {1, 2, 3, 7, 2, 1};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        fo_pool_set_threads(threads[i]);
        for (int repeat = 0; repeat < 20; repeat++)
            for (int parts = 0; parts <= MAX_PARTS; parts++)
                run_and_check(parts);
        check(fo_pool_workers() == threads[i] - 1, "one worker per thread except the caller");
    }
}

static void test_workers_start_on_demand(void)
{
    fo_pool_stop();
    fo_pool_set_threads(7);
    check(fo_pool_workers() == 0, "no worker before the first job");
    run_and_check(1);
    check(fo_pool_workers() == 0, "no worker for one part");
    run_and_check(3);
    check(fo_pool_workers() == 2, "one worker per part except the caller's");
    run_and_check(2);
    check(fo_pool_workers() == 2, "a smaller job keeps the workers");
    fo_pool_set_threads(2);
    run_and_check(3);
    check(fo_pool_workers() == 1, "the next job joins surplus workers");
}

static void test_parts_run_concurrently(void)
{
    for (int threads = 2; threads <= 7; threads++) {
        fo_pool_set_threads(threads);
        for (int repeat = 0; repeat < 10; repeat++) {
            run_concurrently(threads);
            if (repeat % 2)
                sleep_for(MILLISECOND); /* the workers fall asleep */
        }
    }
}

static void test_nested_jobs(void)
{
    for (int threads = 1; threads <= 3; threads++) {
        fo_pool_set_threads(threads);
        fo_pool_run(run_nested, NULL, 8, LONG_JOB, NULL);
    }
}

/* A team, with new threads for each job. */
struct member {
    void (*function)(void *);
    void *argument;
    int index;
};

enum { TEAM_SIZE = 3 };
static _Thread_local int member_index;
static int team_runs;

static int team_size(void) { return TEAM_SIZE; }

static int index_in_team(void) { return member_index; }

static fo_thread_result FO_THREAD_CALL run_member(void *context)
{
    const struct member *const member = context;
    member_index = member->index;
    member->function(member->argument);
    return 0;
}

static void run_team(void (*function)(void *), void *argument, unsigned n_threads, unsigned flags)
{
    struct member members[TEAM_SIZE];
    fo_thread threads[TEAM_SIZE];
    check(n_threads == TEAM_SIZE && flags == 0, "a team runs with all its threads");
    for (int i = 1; i < TEAM_SIZE; i++) {
        members[i] = (struct member){function, argument, i};
        check(fo_thread_start(&threads[i], run_member, &members[i], 1 << 20), "a member starts");
    }
    function(argument);
    for (int i = 1; i < TEAM_SIZE; i++)
        fo_thread_join(threads[i]);
    team_runs++;
}

static const struct fo_team TEAM = {run_team, team_size, index_in_team};

static void run_with_team(int threads, int64_t nanoseconds, int is_used)
{
    fo_pool_set_threads(threads);
    for (int parts = 2; parts <= MAX_PARTS; parts++) {
        struct run_counts counts;
        memset(&counts, 0, sizeof counts);
        const int before = team_runs;
        fo_pool_run(count_part, &counts, parts, nanoseconds, &TEAM);
        check(team_runs - before == is_used, "a team runs long jobs of its size");
        for (int part = 0; part <= MAX_PARTS; part++)
            check(counts.runs[part] == (part < parts), "each part runs exactly once");
    }
}

static void test_team(void)
{
    run_with_team(TEAM_SIZE, LONG_JOB, 1);
    run_with_team(TEAM_SIZE, 1000, 0);
    run_with_team(TEAM_SIZE - 1, LONG_JOB, 0);
    run_with_team(TEAM_SIZE, LONG_JOB, 1);
    run_and_check(TEAM_SIZE);
}

static fo_thread_result FO_THREAD_CALL run_jobs(void *context)
{
    (void)context;
    for (int i = 0; i < 5000; i++)
        run_and_check(1 + i % MAX_PARTS);
    return 0;
}

static fo_thread_result FO_THREAD_CALL change_pool(void *context)
{
    (void)context;
    for (int i = 0; i < 300; i++) {
        fo_pool_set_threads(1 + i % 5);
        if (i % 3 == 0)
            fo_pool_stop();
        check(fo_pool_workers() >= 0 && fo_pool_workers() < 5, "the number of workers is in range");
        busy_for(50000);
    }
    return 0;
}

static void test_concurrent_callers_and_changes(void)
{
    fo_thread_result(FO_THREAD_CALL *const bodies[])(void *) = {run_jobs, run_jobs, change_pool};
    fo_thread threads[3];
    fo_pool_set_threads(3);
    for (int i = 0; i < 3; i++)
        check(fo_thread_start(&threads[i], bodies[i], NULL, 1 << 20),
              "the thread of the test starts");
    for (int i = 0; i < 3; i++)
        fo_thread_join(threads[i]);
}

static void test_many_tiny_jobs(void)
{
    struct run_counts counts;
    memset(&counts, 0, sizeof counts);
    fo_pool_set_threads(2);
    for (int i = 0; i < 200000; i++) {
        fo_pool_run(count_part, &counts, 2, LONG_JOB, NULL);
        if (i % 1000 == 0)
            sleep_for(MILLISECOND / 10); /* some jobs find the worker falling asleep */
    }
    check(counts.runs[0] == 200000 && counts.runs[1] == 200000, "200000 jobs ran all parts");
}

/* Gaps close to the spinning time make calls coincide with workers that fall asleep. */
static void test_calls_while_falling_asleep(void)
{
    fo_pool_set_threads(2);
    for (int i = 0; i < 4000; i++) {
        busy_for(20000 + 10 * (i % 2000));
        run_and_check(2);
    }
}

#ifdef __linux__
static int count_threads(void)
{
    int count = 0;
    DIR *const tasks = opendir("/proc/self/task");
    check(tasks != NULL, "/proc/self/task opens");
    for (const struct dirent *entry; (entry = readdir(tasks)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(tasks);
    return count;
}

static void set_cores(const cpu_set_t *cores)
{
    check(sched_setaffinity(0, sizeof *cores, cores) == 0, "the cores of a thread are set");
}

static void use_core(size_t core)
{
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    set_cores(&cores);
}

struct core_job {
    struct barrier barrier;
    pthread_t caller;
    size_t core;
    fo_atomic n_kept_off;
};

static void count_kept_off(void *context, int part, int parts)
{
    struct core_job *const job = context;
    cpu_set_t cores;
    wait_for_all(&job->barrier, part, parts);
    check(sched_getaffinity(0, sizeof cores, &cores) == 0, "the cores of a thread are read");
    if (!pthread_equal(pthread_self(), job->caller) && !CPU_ISSET(job->core, &cores))
        fo_fetch_add(&job->n_kept_off, 1);
}

static void restrict_worker(void *context, int part, int parts)
{
    struct core_job *const job = context;
    wait_for_all(&job->barrier, part, parts);
    if (!pthread_equal(pthread_self(), job->caller))
        use_core(job->core);
}

/* Returns how many workers must not use the core. */
static int run_on_cores(fo_task task, size_t core, int threads)
{
    struct core_job job;
    memset(&job, 0, sizeof job);
    fo_store(&job.barrier.missing, threads);
    job.caller = pthread_self();
    job.core = core;
    sleep_for(MILLISECOND); /* after which workers may be moved again */
    fo_pool_run(task, &job, threads, LONG_JOB, NULL);
    return fo_load(&job.n_kept_off);
}

static void test_workers_are_kept_off_the_core_of_the_caller(void)
{
    cpu_set_t before;
    size_t core = 0;
    check(sched_getaffinity(0, sizeof before, &before) == 0, "the cores of a thread are read");
    if (CPU_COUNT(&before) < 2)
        return;
    fo_pool_stop();
    fo_pool_set_threads(3);
    run_and_check(3);
    for (int n = 0; n < 2; core++) {
        if (CPU_ISSET(core, &before)) {
            use_core(core);
            check(run_on_cores(count_kept_off, core, 3) == 2, "workers leave the caller's core");
            n++;
        }
    }
    core--;
    run_on_cores(restrict_worker, core, 3);
    for (size_t other = 0; other < core; other++) {
        if (CPU_ISSET(other, &before)) {
            use_core(other);
            run_on_cores(count_kept_off, other, 3);
        }
    }
    use_core(core);
    check(run_on_cores(count_kept_off, core, 3) == 0, "a worker stays on its only core");
    set_cores(&before);
    fo_pool_stop();
}

/* A joined thread stays listed for a moment. */
static void check_thread_count(int expected)
{
    for (int tries = 0; tries < 1000 && count_threads() != expected; tries++)
        sleep_for(MILLISECOND);
    check(count_threads() == expected, "the process has the expected number of threads");
}

static void test_stop_and_restart(void)
{
    fo_pool_stop();
    const int before = count_threads();
    fo_pool_set_threads(4);
    for (int i = 0; i < 100; i++) {
        run_and_check(4);
        check(fo_pool_workers() == 3, "the pool restarts after a stop");
        check_thread_count(before + 3);
        fo_pool_stop();
        check(fo_pool_workers() == 0, "stop joins every worker");
    }
    check_thread_count(before);
}

static void test_idle_workers_sleep(void)
{
    fo_pool_set_threads(4);
    run_and_check(4);
    const clock_t before = clock();
    sleep_for(300 * MILLISECOND);
    check(clock() - before < CLOCKS_PER_SEC / 10, "idle workers use no processor time");
}
#endif

#ifdef FO_WRAP_PTHREAD_CREATE
static int creations_left = -1; /* -1: unlimited */

int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*body)(void *), void *argument)
{
    if (creations_left == 0)
        return EAGAIN;
    if (creations_left > 0)
        creations_left--;
    return __real_pthread_create(thread, attributes, body, argument);
}

static void test_failing_thread_creation(void)
{
    fo_pool_set_threads(6);
    for (int available = 0; available < 6; available++) {
        fo_pool_stop();
        creations_left = available;
        for (int parts = 0; parts <= MAX_PARTS; parts++)
            run_and_check(parts);
        check(fo_pool_workers() == available, "the workers that could be started");
        creations_left = -1;
        run_and_check(6);
        check(fo_pool_workers() == 5, "the other workers as soon as they can be started");
    }
}
#endif

#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)
static void run_in_child(int generations)
{
    fflush(NULL);
    const pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        alarm(60);
        check(fo_pool_workers() == 0, "a child starts without workers");
        fo_pool_stop();
        fo_pool_set_threads(3);
        run_concurrently(3);
        for (int parts = 0; parts <= MAX_PARTS; parts++)
            run_and_check(parts);
        run_with_team(TEAM_SIZE, LONG_JOB, 0);
        check(fo_pool_workers() == 2, "a child starts its own workers");
        if (generations > 1)
            run_in_child(generations - 1);
        fo_pool_stop();
        _exit(0);
    }
    int status = -1;
    while (waitpid(child, &status, 0) < 0)
        check(errno == EINTR, "waitpid");
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child runs jobs and exits");
}

static void test_fork(void)
{
    fo_pool_set_threads(3);
    run_and_check(3);
    run_in_child(3);
    run_concurrently(3);
    run_with_team(TEAM_SIZE, LONG_JOB, 1);
}

static void work_until_stopped(void *context, int part, int parts)
{
    (void)part, (void)parts;
    while (!fo_load((fo_atomic *)context))
        busy_for(MILLISECOND / 10);
}

static fo_thread_result run_long_job(void *context)
{
    fo_pool_run(work_until_stopped, context, 3, LONG_JOB, NULL);
    return NULL;
}

static fo_thread_result run_jobs_until_stopped(void *context)
{
    while (!fo_load((fo_atomic *)context))
        run_and_check(3);
    return NULL;
}

static void test_fork_during_a_job(void)
{
    fo_thread_result (*const bodies[])(void *) = {run_long_job, run_jobs_until_stopped};
    fo_pool_set_threads(3);
    for (int i = 0; i < 2; i++) {
        fo_thread thread;
        fo_atomic stop;
        fo_store(&stop, 0);
        check(fo_thread_start(&thread, bodies[i], &stop, 1 << 20), "the thread of the test starts");
        for (int fork = 0; fork < 20; fork++) {
            sleep_for(MILLISECOND);
            run_in_child(1);
        }
        run_and_check(5);
        fo_store(&stop, 1);
        fo_thread_join(thread);
        run_and_check(5);
    }
}
#endif

/* ---- Timings ---- */

static void do_nothing(void *context, int part, int parts)
{
    (void)context, (void)part, (void)parts;
}

static int compare(const void *left, const void *right)
{
    const int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static int64_t task_nanoseconds;

static void spin_task(void *context, int part, int parts)
{
    (void)context, (void)part, (void)parts;
    busy_for(task_nanoseconds);
}

static void print_latency(const char *label, fo_task task, int64_t gap)
{
    enum { REPEATS = 3000 };
    static int64_t times[REPEATS];
    for (int i = 0; i < REPEATS; i++) {
        struct barrier barrier;
        fo_store(&barrier.missing, 2);
        fo_store(&barrier.sigint_blocked, 0);
        if (gap > MILLISECOND)
            sleep_for(gap);
        else
            busy_for(gap);
        const int64_t start = fo_nanoseconds();
        fo_pool_run(task, &barrier, 2, LONG_JOB, NULL);
        times[i] = fo_nanoseconds() - start;
    }
    qsort(times, REPEATS, sizeof *times, compare);
    printf("%-44s median %7.2f us, 10%% %7.2f, 90%% %7.2f\n", label,
           1e-3 * (double)times[REPEATS / 2], 1e-3 * (double)times[REPEATS / 10],
           1e-3 * (double)times[REPEATS * 9 / 10]);
}

static void print_latencies(void)
{
    const int64_t asleep = 2 * MILLISECOND, hot = 3000;
    fo_pool_set_threads(2);
    print_latency("empty job, worker hot", do_nothing, hot);
    print_latency("empty job, worker asleep", do_nothing, asleep);
    print_latency("one thread per part, worker hot", wait_for_all, hot);
    print_latency("one thread per part, worker asleep", wait_for_all, asleep);
    const int64_t lengths[] = {20, 50, 100, 200, 1000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char label[64];
        task_nanoseconds = lengths[i] * 1000;
        snprintf(label, sizeof label, "two parts of %d us, hot", (int)lengths[i]);
        print_latency(label, spin_task, hot);
        snprintf(label, sizeof label, "two parts of %d us, asleep", (int)lengths[i]);
        print_latency(label, spin_task, asleep);
    }
    fo_pool_stop();
}

/* ---- Main program ---- */

static void run(const char *name, void (*test)(void))
{
    const int64_t start = fo_nanoseconds();
    test();
    printf("ok %s (%.2f s)\n", name, 1e-9 * (double)(fo_nanoseconds() - start));
    fflush(stdout);
}

int main(int count, char **arguments)
{
    if (count > 1 && strcmp(arguments[1], "latency") == 0) {
        print_latencies();
        return 0;
    }
#ifndef _WIN32
    alarm(DEADLINE_SECONDS);
#endif
    check(fo_pool_threads() == 1 && fo_pool_workers() == 0, "the default is one thread");
    run("threads are clamped", test_threads_are_clamped);
    run("every part runs once", test_every_part_runs_once);
    run("workers start on demand", test_workers_start_on_demand);
    run("parts run concurrently", test_parts_run_concurrently);
    run("nested jobs", test_nested_jobs);
    run("team", test_team);
    run("concurrent callers and changes", test_concurrent_callers_and_changes);
    run("many tiny jobs", test_many_tiny_jobs);
    run("calls while falling asleep", test_calls_while_falling_asleep);
#ifdef __linux__
    run("workers are kept off the core of the caller",
        test_workers_are_kept_off_the_core_of_the_caller);
    run("stop and restart", test_stop_and_restart);
    run("idle workers sleep", test_idle_workers_sleep);
#endif
#ifdef FO_WRAP_PTHREAD_CREATE
    run("failing thread creation", test_failing_thread_creation);
#endif
#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)
    run("fork", test_fork);
    run("fork during a job", test_fork_during_a_job);
#endif
    if (count > 1 && strcmp(arguments[1], "leave") == 0)
        return 0; /* with live workers: exit must neither hang nor crash */
    fo_pool_stop();
    return 0;
}
