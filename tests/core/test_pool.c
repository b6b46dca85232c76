/*
 * test_pool.c: what fo_pool.h promises, without Python, so that the sanitizers see nothing else.
 *
 * Built and run by tools/sanitize.sh. Each test is one function; a failed check ends the
 * program with status 1, a hang with SIGALRM. `test_pool latency` prints timings instead.
 * Left out where they cannot be: forks on Windows and under ThreadSanitizer (which does not follow
 * threads started in a child of a threaded process); the counts of threads where there is no /proc;
 * failing thread creation unless the linker wraps pthread_create (FO_WRAP_PTHREAD_CREATE).
 */
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

enum { MANY_PARTS = 20, DEADLINE_SECONDS = 300 };
static const int64_t millisecond = 1000000;
static const int64_t LONG = INT64_MAX; /* a job that is worth waking every worker for */

static void check(int condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "FAILED: %s\n", what);
        fflush(stderr);
        _Exit(1);
    }
}

static void sleep_for(int64_t nanoseconds)
{
#ifdef _WIN32
    Sleep((DWORD)(nanoseconds / millisecond));
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

/* Plain ints on purpose: ThreadSanitizer then checks that parts are ordered before the return. */
struct tally {
    int runs[MANY_PARTS + 1];
    int parts_seen[MANY_PARTS + 1];
};

static void count_part(void *context, int part, int parts)
{
    struct tally *const tally = context;
    tally->runs[part]++;
    tally->parts_seen[part] = parts;
}

static void run_and_check(int parts)
{
    struct tally tally;
    memset(&tally, 0, sizeof tally);
    fo_pool_run(count_part, &tally, parts, LONG);
    for (int part = 0; part <= MANY_PARTS; part++) {
        check(tally.runs[part] == (part < parts), "each part runs exactly once");
        check(part >= parts || tally.parts_seen[part] == parts, "each part is told their number");
    }
}

static void nest(void *context, int part, int parts)
{
    (void)context, (void)part, (void)parts;
    for (int inner = 1; inner <= 5; inner++)
        run_and_check(inner);
}

/* Every part waits until as many parts have begun as the job has: a task that only ends if each
   part has a thread of its own. Real tasks must not do this; here it shows that threads help. */
struct meeting {
    fo_atomic missing;
    fo_atomic sigint_blocked;
};

static void meet(void *context, int part, int parts)
{
    struct meeting *const meeting = context;
    (void)parts;
#ifndef _WIN32
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    if (part > 0 && sigismember(&blocked, SIGINT))
        fo_subtract(&meeting->sigint_blocked, -1);
#else
    (void)part;
#endif
    fo_subtract(&meeting->missing, 1);
    while (fo_load(&meeting->missing) > 0)
        fo_yield();
}

static void run_meeting(int parts)
{
    struct meeting meeting;
    fo_store(&meeting.missing, parts);
    fo_store(&meeting.sigint_blocked, 0);
    fo_pool_run(meet, &meeting, parts, LONG);
#ifndef _WIN32
    check(fo_load(&meeting.sigint_blocked) == parts - 1, "workers block signals");
#endif
}

/* ---- Tests ---- */

static void test_threads_are_clamped(void)
{
    const int tables[][2] = {{-3, 1}, {0, 1}, {1, 1}, {7, 7}, {1 << 20, FO_POOL_MAX_THREADS}};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        fo_pool_set_threads(tables[i][0]);
        check(fo_pool_threads() == tables[i][1], "set_threads clamps to [1, max]");
    }
}

static void test_all_parts_once(void)
{
    const int threads[] = {1, 2, 3, 7, 2, 1};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        fo_pool_set_threads(threads[i]);
        for (int repeat = 0; repeat < 20; repeat++)
            for (int parts = 0; parts <= MANY_PARTS; parts++)
                run_and_check(parts);
        check(fo_pool_workers() == threads[i] - 1, "one worker a thread but the caller");
    }
}

static void test_workers_are_lazy(void)
{
    fo_pool_stop();
    fo_pool_set_threads(7);
    check(fo_pool_workers() == 0, "no worker before the first job");
    run_and_check(1);
    check(fo_pool_workers() == 0, "no worker for one part");
    run_and_check(3);
    check(fo_pool_workers() == 2, "as many workers as the job needs");
    run_and_check(2);
    check(fo_pool_workers() == 2, "a smaller job keeps them");
    fo_pool_set_threads(2);
    run_and_check(3);
    check(fo_pool_workers() == 1, "the next job joins the surplus");
}

static void test_parts_run_at_once(void)
{
    for (int threads = 2; threads <= 7; threads++) {
        fo_pool_set_threads(threads);
        for (int repeat = 0; repeat < 10; repeat++) {
            run_meeting(threads);
            if (repeat % 2)
                sleep_for(millisecond); /* so that the workers are asleep */
        }
    }
}

static void test_nested(void)
{
    for (int threads = 1; threads <= 3; threads++) {
        fo_pool_set_threads(threads);
        fo_pool_run(nest, NULL, 8, LONG);
    }
}

static fo_thread_result FO_THREAD_CALL run_jobs(void *context)
{
    (void)context;
    for (int i = 0; i < 5000; i++)
        run_and_check(1 + i % MANY_PARTS);
    return 0;
}

static fo_thread_result FO_THREAD_CALL change_pool(void *context)
{
    (void)context;
    for (int i = 0; i < 300; i++) {
        fo_pool_set_threads(1 + i % 5);
        if (i % 3 == 0)
            fo_pool_stop();
        check(fo_pool_workers() >= 0 && fo_pool_workers() < 5, "as many workers as were asked for");
        busy_for(50000);
    }
    return 0;
}

static void test_callers_and_changes_at_once(void)
{
    fo_thread_result(FO_THREAD_CALL *const bodies[])(void *) = {run_jobs, run_jobs, change_pool};
    fo_thread threads[3];
    fo_pool_set_threads(3);
    for (int i = 0; i < 3; i++)
        check(fo_thread_start(&threads[i], bodies[i], NULL, 1 << 20), "a test's thread starts");
    for (int i = 0; i < 3; i++)
        fo_thread_join(threads[i]);
}

static void test_many_tiny_jobs(void)
{
    struct tally tally;
    memset(&tally, 0, sizeof tally);
    fo_pool_set_threads(2);
    for (int i = 0; i < 200000; i++) {
        fo_pool_run(count_part, &tally, 2, LONG);
        if (i % 1000 == 0)
            sleep_for(millisecond / 10); /* so that some jobs find the worker just falling asleep */
    }
    check(tally.runs[0] == 200000 && tally.runs[1] == 200000, "200000 jobs ran all their parts");
}

/* Gaps around the spinning time hit the moments at which a member goes to sleep or is called. */
static void test_gaps_around_falling_asleep(void)
{
    fo_pool_set_threads(2);
    for (int i = 0; i < 4000; i++) {
        busy_for(20000 + 10 * (i % 2000));
        run_and_check(2);
    }
}

#ifdef __linux__
static int threads_of_process(void)
{
    int count = 0;
    DIR *const tasks = opendir("/proc/self/task");
    check(tasks != NULL, "/proc/self/task opens");
    for (const struct dirent *entry; (entry = readdir(tasks)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(tasks);
    return count;
}

/* A joined thread may stay visible for a moment. */
static void check_threads_of_process(int expected)
{
    for (int tries = 0; tries < 1000 && threads_of_process() != expected; tries++)
        sleep_for(millisecond);
    check(threads_of_process() == expected, "no thread is left, none is missing");
}

static void test_stop_and_start(void)
{
    fo_pool_stop();
    const int before = threads_of_process();
    fo_pool_set_threads(4);
    for (int i = 0; i < 100; i++) {
        run_and_check(4);
        check(fo_pool_workers() == 3, "the pool starts anew after a stop");
        check_threads_of_process(before + 3);
        fo_pool_stop();
        check(fo_pool_workers() == 0, "stop joins every worker");
    }
    check_threads_of_process(before);
}

static void test_idle_workers_sleep(void)
{
    fo_pool_set_threads(4);
    run_and_check(4);
    const clock_t before = clock();
    sleep_for(300 * millisecond);
    check(clock() - before < CLOCKS_PER_SEC / 10, "idle workers use no processor time");
}
#endif

#ifdef FO_WRAP_PTHREAD_CREATE
static int creations_left = -1; /* negative: no limit */

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

static void test_too_few_threads(void)
{
    fo_pool_set_threads(6);
    for (int available = 0; available < 6; available++) {
        fo_pool_stop();
        creations_left = available;
        for (int parts = 0; parts <= MANY_PARTS; parts++)
            run_and_check(parts);
        check(fo_pool_workers() == available, "the workers that could be had");
        creations_left = -1;
        run_and_check(6);
        check(fo_pool_workers() == 5, "the others as soon as they can be had");
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
        run_meeting(3);
        for (int parts = 0; parts <= MANY_PARTS; parts++)
            run_and_check(parts);
        check(fo_pool_workers() == 2, "a child has workers of its own");
        if (generations > 1)
            run_in_child(generations - 1);
        fo_pool_stop();
        _exit(0);
    }
    int status = -1;
    while (waitpid(child, &status, 0) < 0)
        check(errno == EINTR, "waitpid");
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child runs jobs and ends");
}

static void test_fork(void)
{
    fo_pool_set_threads(3);
    run_and_check(3);
    run_in_child(3);
    run_meeting(3);
}

static void work_until_told(void *context, int part, int parts)
{
    (void)part, (void)parts;
    while (!fo_load((fo_atomic *)context))
        busy_for(millisecond / 10);
}

static fo_thread_result run_long_job(void *context)
{
    fo_pool_run(work_until_told, context, 3, LONG);
    return NULL;
}

static fo_thread_result run_jobs_until_told(void *context)
{
    while (!fo_load((fo_atomic *)context))
        run_and_check(3);
    return NULL;
}

static void test_fork_while_another_thread_has_a_job(void)
{
    fo_thread_result (*const bodies[])(void *) = {run_long_job, run_jobs_until_told};
    fo_pool_set_threads(3);
    for (int i = 0; i < 2; i++) {
        fo_thread thread;
        fo_atomic stop;
        fo_store(&stop, 0);
        check(fo_thread_start(&thread, bodies[i], &stop, 1 << 20), "a test's thread starts");
        for (int fork = 0; fork < 20; fork++) {
            sleep_for(millisecond);
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

static void be_busy(void *context, int part, int parts)
{
    (void)context, (void)part, (void)parts;
    busy_for(task_nanoseconds);
}

static void print_latency(const char *what, fo_task task, int64_t gap)
{
    enum { REPEATS = 3000 };
    static int64_t times[REPEATS];
    for (int i = 0; i < REPEATS; i++) {
        struct meeting meeting;
        fo_store(&meeting.missing, 2);
        fo_store(&meeting.sigint_blocked, 0);
        if (gap > millisecond)
            sleep_for(gap);
        else
            busy_for(gap);
        const int64_t start = fo_nanoseconds();
        fo_pool_run(task, &meeting, 2, LONG);
        times[i] = fo_nanoseconds() - start;
    }
    qsort(times, REPEATS, sizeof *times, compare);
    printf("%-44s median %7.2f us, 10%% %7.2f, 90%% %7.2f\n", what,
           1e-3 * (double)times[REPEATS / 2], 1e-3 * (double)times[REPEATS / 10],
           1e-3 * (double)times[REPEATS * 9 / 10]);
}

static void print_latencies(void)
{
    const int64_t asleep = 2 * millisecond, hot = 3000;
    fo_pool_set_threads(2);
    print_latency("empty job, worker hot", do_nothing, hot);
    print_latency("empty job, worker asleep", do_nothing, asleep);
    print_latency("both parts on threads of their own, hot", meet, hot);
    print_latency("both parts on threads of their own, asleep", meet, asleep);
    const int64_t lengths[] = {20, 50, 100, 200, 1000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char what[64];
        task_nanoseconds = lengths[i] * 1000;
        snprintf(what, sizeof what, "two parts of %d us, hot", (int)lengths[i]);
        print_latency(what, be_busy, hot);
        snprintf(what, sizeof what, "two parts of %d us, asleep", (int)lengths[i]);
        print_latency(what, be_busy, asleep);
    }
    fo_pool_stop();
}

/* ---- All of them ---- */

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
    check(fo_pool_threads() == 1 && fo_pool_workers() == 0, "one thread unless told otherwise");
    run("threads are clamped", test_threads_are_clamped);
    run("all parts once", test_all_parts_once);
    run("workers are lazy", test_workers_are_lazy);
    run("parts run at once", test_parts_run_at_once);
    run("nested", test_nested);
    run("callers and changes at once", test_callers_and_changes_at_once);
    run("many tiny jobs", test_many_tiny_jobs);
    run("gaps around falling asleep", test_gaps_around_falling_asleep);
#ifdef __linux__
    run("stop and start", test_stop_and_start);
    run("idle workers sleep", test_idle_workers_sleep);
#endif
#ifdef FO_WRAP_PTHREAD_CREATE
    run("too few threads", test_too_few_threads);
#endif
#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)
    run("fork", test_fork);
    run("fork while another thread has a job", test_fork_while_another_thread_has_a_job);
#endif
    if (count > 1 && strcmp(arguments[1], "leave") == 0)
        return 0; /* with a live pool: exit must neither hang nor crash */
    fo_pool_stop();
    return 0;
}
