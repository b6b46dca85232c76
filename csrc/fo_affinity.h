/*
 * fo_affinity.h: the cores that a thread may use, on Linux; elsewhere these functions do nothing.
 *
 * Needs _GNU_SOURCE before the first header.
 */
#ifndef FO_AFFINITY_H
#define FO_AFFINITY_H

#include "fo_thread.h"

#ifdef __linux__

typedef struct {
    cpu_set_t allowed; /* without us */
    cpu_set_t left; /* by fo_keep_off() */
} fo_affinity;

/* Returns the core that runs the calling thread; a negative number if it is unknown. */
static inline int fo_core(void) { return sched_getcpu(); }

/* Keeps a thread off a core, if it may use another, and no longer off the one before. `affinity` is
   zero before the first call. If the program has set the cores of the thread, these are allowed. */
static inline void fo_keep_off(fo_thread thread, int core, fo_affinity *affinity)
{
    cpu_set_t cores;
    if (core < 0 || core >= CPU_SETSIZE || pthread_getaffinity_np(thread, sizeof cores, &cores))
        return;
    if (!CPU_EQUAL(&cores, &affinity->left))
        affinity->allowed = cores;
    cores = affinity->allowed;
    CPU_CLR((size_t)core, &cores);
    if (CPU_COUNT(&cores) > 0 && !pthread_setaffinity_np(thread, sizeof cores, &cores))
        affinity->left = cores;
}

#else

typedef char fo_affinity;

static inline int fo_core(void) { return -1; }

static inline void fo_keep_off(fo_thread thread, int core, fo_affinity *affinity)
{
    (void)thread;
    (void)core;
    (void)affinity;
}

#endif

#endif
