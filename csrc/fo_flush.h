/*
 * fo_flush.h: flush-to-zero mode during a kernel.
 *
 * An operation on a subnormal number takes a hundred cycles or more, and optimizer state decays
 * into the subnormal range. Between fo_flush_begin() and fo_flush_end() subnormals are read and
 * written as zero. fo_flush_end() restores the previous mode of the thread.
 */
#ifndef FO_FLUSH_H
#define FO_FLUSH_H

#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

/* FTZ is bit 15 of MXCSR, DAZ bit 6. */
static inline uint64_t fo_flush_begin(void)
{
    const unsigned int mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040u);
    return mode;
}

static inline void fo_flush_end(const uint64_t mode) { _mm_setcsr((unsigned int)mode); }

#elif defined(__aarch64__)

/* FZ is bit 24 of FPCR. */
static inline uint64_t fo_flush_begin(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode | (UINT64_C(1) << 24)));
    return mode;
}

static inline void fo_flush_end(const uint64_t mode)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
}

#elif defined(_M_ARM64)
#include <intrin.h>

static inline uint64_t fo_flush_begin(void)
{
    const uint64_t mode = (uint64_t)_ReadStatusReg(ARM64_FPCR);
    _WriteStatusReg(ARM64_FPCR, (__int64)(mode | (UINT64_C(1) << 24)));
    return mode;
}

static inline void fo_flush_end(const uint64_t mode) { _WriteStatusReg(ARM64_FPCR, (__int64)mode); }

#else

static inline uint64_t fo_flush_begin(void) { return 0; }
static inline void fo_flush_end(const uint64_t mode) { (void)mode; }

#endif

#endif
