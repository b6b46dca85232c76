/*
 * fo_prefetch.h: prefetches the cache line of an address. The address need not be valid.
 *
 * GCC and Clang use assembly: GCC considers a function that only calls __builtin_prefetch free of
 * side effects and removes the call.
 */
#ifndef FO_PREFETCH_H
#define FO_PREFETCH_H

#if defined(__GNUC__) && defined(__x86_64__)

static inline void fo_prefetch(const char *address)
{
    __asm__ volatile("prefetcht0 %0" : : "m"(*address));
}

#elif defined(__GNUC__) && defined(__aarch64__)

static inline void fo_prefetch(const char *address)
{
    __asm__ volatile("prfm pldl1keep, %0" : : "Q"(*address));
}

#elif defined(_M_X64)
#include <xmmintrin.h>

static inline void fo_prefetch(const char *address) { _mm_prefetch(address, _MM_HINT_T0); }

#elif defined(_M_ARM64)
#include <intrin.h>

static inline void fo_prefetch(const char *address) { __prefetch(address); }

#else

static inline void fo_prefetch(const char *address) { (void)address; }

#endif

#endif
