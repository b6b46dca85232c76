/*
 * fo_pool.c: a pool of persistent workers with the shortest fork and join we know how to write.
 *
 * A team is the caller (member 0) and the workers 1 to team - 1. Each has a share, a run of
 * neighboring parts that is the same at every job of the same size, so that what a part touches
 * stays in the caches of one core.
 *
 * Calling a member. Each has one atomic word, alone on its cache line, that holds what it is doing:
 *
 *     IDLE    -> CALLED    a job was published (by the one who owns the pool, with an exchange)
 *     CALLED  -> WORKING   the worker has come; back to IDLE when no part is left
 *     CALLED  -> IDLE      the caller took the call back, because the worker had not come yet
 *     IDLE    -> ASLEEP    the member spun for a while in vain and waits on its condition variable
 *     any     -> LEAVING   the worker shall end (only between jobs)
 *
 * Because "is asleep" and "is called" are values of one word, no wake-up can be lost: whoever
 * exchanges ASLEEP for something else knows that it must ring, and a member goes to sleep only if
 * its word is still IDLE. Nobody enters the kernel unless somebody sleeps there. A job touches the
 * words of its own team only, so a short job does not wake a long table of sleepers.
 *
 * The end. `pending` counts the members that may still be at work. Whoever brings it to zero ends
 * the job: if it is a worker, it calls the caller, who waits exactly as a worker does.
 *
 * Helping. Parts are claimed one by one, and who is done with its own share goes on with those of
 * the others; at last the caller takes back the calls that nobody has answered. So a job never
 * waits for a thread to wake up, nor longer than a part for a core that somebody else wants.
 *
 * Waking. To wake a thread costs its caller some microseconds, and it comes another ten later, more
 * in a virtual machine. So a job of less than WAKING_PAYS is run by its caller alone if a worker of
 * its team is asleep, unless the last few jobs came so close upon one another that workers, once
 * awake, would stay so.
 *
 * Fork. A child has one thread and a copy of our memory, perhaps from the midst of another thread's
 * job. A handler of pthread_atfork forgets the workers and renews what the caller sleeps on. That
 * is more robust than comparing getpid() at each job: process ids repeat (each first process of a
 * container is 1, its forks into containers too), and no job pays for a system call.
 *
 * Exit. Workers asleep in a condition variable do not hold up exit(). On Windows a process that
 * exits kills them first, and joining them from DllMain or a destructor would deadlock on the
 * loader's lock: nothing here runs by itself at unloading. A DLL with live workers must not be
 * unloaded; whoever may unload it calls fo_pool_stop() before.
 */
#include "fo_pool.h"

#include "fo_thread.h"

enum {
    CACHE_LINE = 64,
    STACK_BYTES = 1 << 20,     /* address space only; tasks keep their tiles on the stack */
    SPIN_NANOSECONDS = 30000,  /* about what going to sleep and being woken costs */
    PAUSES_PER_CLOCK_READ = 16,
    WAKING_PAYS = 250000,      /* nanoseconds that a job takes one thread, unless set otherwise */
    CLOSE_JOBS = 4 /* so many in a row, and the next is expected to follow as closely */
};

enum { IDLE, CALLED, WORKING, ASLEEP, LEAVING };

struct member {
    _Alignas(CACHE_LINE) fo_atomic state;
    _Alignas(CACHE_LINE) fo_atomic next; /* the next part of its share */
    fo_mutex mutex;
    fo_cond bell;
    fo_thread thread;
};

struct job {
    fo_task task;
    void *context;
    int parts;
    int team;
};

/* `busy` is the lock of all but itself and `threads`: only its owner changes who is in the pool and
   what the job is. The words that change hands during a job have a cache line each. */
static struct {
    struct member members[FO_POOL_MAX_THREADS];
    _Alignas(CACHE_LINE) fo_atomic pending;
    _Alignas(CACHE_LINE) fo_atomic busy;
    _Alignas(CACHE_LINE) fo_atomic threads; /* wanted */
    fo_atomic size; /* members present, the caller among them */
    int limit; /* 1 where forks cannot be noticed, else no limit */
    int close; /* jobs in a row that came soon after one another */
    int64_t ended; /* when the last job did */
    int64_t waking; /* WAKING_PAYS, or what was set */
    struct job job;
} pool = {.threads = 1, .size = 1, .waking = WAKING_PAYS};

/* ---- A member's word and its bell ---- */

static void member_init(struct member *member)
{
    fo_store_relaxed(&member->state, IDLE);
    fo_mutex_init(&member->mutex);
    fo_cond_init(&member->bell);
}

static void member_destroy(struct member *member)
{
    fo_cond_destroy(&member->bell);
    fo_mutex_destroy(&member->mutex);
}

static void member_call(struct member *member, int order)
{
    if (fo_exchange(&member->state, order) == ASLEEP) {
        fo_mutex_lock(&member->mutex);
        fo_cond_signal(&member->bell);
        fo_mutex_unlock(&member->mutex);
    }
}

/* Returns whether an order came. Yields between looks at the clock: else a member that shares its
   core with another of the same team, or with anybody, would hold that one up all the while. */
static int spin(const struct member *me)
{
    const int64_t deadline = fo_nanoseconds() + SPIN_NANOSECONDS;
    do {
        for (int i = 0; i < PAUSES_PER_CLOCK_READ; i++) {
            if (fo_load_relaxed(&me->state) != IDLE)
                return 1;
            fo_pause();
        }
        fo_yield();
    } while (fo_nanoseconds() < deadline);
    return 0;
}

/* Returns the order; IDLE if it was taken back meanwhile. */
static int member_await(struct member *me)
{
    if (!spin(me) && fo_replace(&me->state, IDLE, ASLEEP)) {
        fo_mutex_lock(&me->mutex);
        while (fo_load(&me->state) == ASLEEP)
            fo_cond_wait(&me->bell, &me->mutex);
        fo_mutex_unlock(&me->mutex);
    }
    return fo_load(&me->state);
}

/* ---- The work ---- */

/* The first part of a member's share; that of the one after the last is the number of parts. */
static int share(const struct job *job, int member)
{
    return (int)((int64_t)job->parts * member / job->team);
}

/* Runs parts until none is left, a member's own ones first. */
static void run_parts(const struct job *job, int member)
{
    for (int k = 0; k < job->team; k++) {
        const int owner = (member + k) % job->team;
        const int end = share(job, owner + 1);
        int part;
        while ((part = fo_add(&pool.members[owner].next, 1)) < end)
            job->task(job->context, part, job->parts);
    }
}

/* Returns whether these members were the last of the job. */
static int finish(int members) { return fo_subtract(&pool.pending, members) == members; }

static fo_thread_result FO_THREAD_CALL work(void *argument)
{
    struct member *const me = argument;
    while (member_await(me) != LEAVING) {
        if (fo_replace(&me->state, CALLED, WORKING)) {
            run_parts(&pool.job, (int)(me - pool.members));
            fo_store_relaxed(&me->state, IDLE); /* before finish(): then the next call may come */
            if (finish(1))
                member_call(&pool.members[0], CALLED);
        }
    }
    return 0;
}

/* ---- Who is in the pool: for the owner of `busy` only ---- */

static void dismiss_beyond(int threads)
{
    const int size = fo_load_relaxed(&pool.size);
    for (int k = threads; k < size; k++)
        member_call(&pool.members[k], LEAVING);
    for (int k = threads; k < size; k++) {
        fo_thread_join(pool.members[k].thread);
        member_destroy(&pool.members[k]);
    }
    if (threads < size)
        fo_store_relaxed(&pool.size, threads);
}

static int hire(struct member *worker)
{
    member_init(worker);
    if (fo_thread_start(&worker->thread, work, worker, STACK_BYTES))
        return 1;
    member_destroy(worker);
    return 0;
}

/* Returns the size of the team: fewer than wanted if the system gives no more threads. */
static int muster(int parts)
{
    const int wanted = fo_load_relaxed(&pool.threads);
    const int threads = wanted < pool.limit ? wanted : pool.limit;
    const int team = parts < threads ? parts : threads;
    dismiss_beyond(threads);
    int size = fo_load_relaxed(&pool.size);
    while (size < team && hire(&pool.members[size]))
        size++;
    fo_store_relaxed(&pool.size, size);
    return team < size ? team : size;
}

/* Returns whether to call the team for a job that takes one thread so long. */
static int is_worth_calling(int team, int64_t nanoseconds)
{
    const int soon = fo_nanoseconds() - pool.ended < SPIN_NANOSECONDS;
    pool.close = soon && pool.close < CLOSE_JOBS ? pool.close + 1 : soon ? pool.close : 0;
    if (nanoseconds >= pool.waking || pool.close == CLOSE_JOBS)
        return 1;
    for (int k = 1; k < team; k++)
        if (fo_load_relaxed(&pool.members[k].state) == ASLEEP)
            return 0;
    return 1;
}

/* ---- Who owns the pool ---- */

/* Also the handler in a forked child, where no worker lives and nobody else is at work. */
static void form_pool(void)
{
    member_init(&pool.members[0]);
    fo_store_relaxed(&pool.size, 1);
    fo_store(&pool.busy, 0);
}

static void prepare(void)
{
    form_pool();
    pool.limit = fo_at_fork_child(form_pool) ? FO_POOL_MAX_THREADS : 1;
}

/* Never waits: returns whether the pool is ours. */
static int seize(void)
{
    static fo_once once = FO_ONCE_INIT;
    fo_once_run(&once, prepare);
    return fo_replace(&pool.busy, 0, 1);
}

static void release(void) { fo_store(&pool.busy, 0); }

/* ---- Public ---- */

int fo_pool_threads(void) { return fo_load_relaxed(&pool.threads); }

void fo_pool_set_threads(int threads)
{
    const int least = threads < 1 ? 1 : threads;
    fo_store_relaxed(&pool.threads, least < FO_POOL_MAX_THREADS ? least : FO_POOL_MAX_THREADS);
}

static void run_alone(fo_task task, void *context, int parts)
{
    for (int part = 0; part < parts; part++)
        task(context, part, parts);
}

static void run_together(fo_task task, void *context, int parts, int team)
{
    pool.job = (struct job){task, context, parts, team};
    fo_store_relaxed(&pool.pending, team);
    fo_store_relaxed(&pool.members[0].state, IDLE);
    for (int k = 0; k < team; k++)
        fo_store_relaxed(&pool.members[k].next, share(&pool.job, k));
    for (int k = 1; k < team; k++)
        member_call(&pool.members[k], CALLED);

    int members = 1;
    run_parts(&pool.job, 0);
    for (int k = 1; k < team; k++)
        members += fo_replace(&pool.members[k].state, CALLED, IDLE);
    if (!finish(members))
        member_await(&pool.members[0]);
}

void fo_pool_run(fo_task task, void *context, int parts, int64_t nanoseconds)
{
    if (parts < 2 || !seize()) {
        run_alone(task, context, parts);
        return;
    }
    const int team = muster(parts);
    if (is_worth_calling(team, nanoseconds))
        run_together(task, context, parts, team);
    else
        run_alone(task, context, parts);
    pool.ended = fo_nanoseconds();
    release();
}

void fo_pool_stop(void)
{
    while (!seize())
        fo_yield();
    dismiss_beyond(1);
    release();
}

int64_t fo_pool_set_waking(int64_t nanoseconds)
{
    const int64_t before = pool.waking;
    pool.waking = nanoseconds;
    return before;
}

int fo_pool_workers(void) { return fo_load_relaxed(&pool.size) - 1; }
