/*
 * fo_half.h: float16 to float32, in operations that compilers vectorize for every instruction set.
 *
 * The result is exact, also for subnormals: flush-to-zero has no effect on integers. F16C would
 * need intrinsics for each register width.
 */
#ifndef FO_HALF_H
#define FO_HALF_H

#include <stdint.h>

#include "fo_bits.h"

static inline float fo_half_to_float(const uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t magnitude = half & 0x7fffu;
    const uint32_t rebias = 112u << 23;
    const float subnormal = (float)(int32_t)magnitude * 0x1p-24f;
    uint32_t bits = (magnitude << 13) + rebias;
    bits = magnitude >= 0x7c00u ? bits + rebias : bits; /* infinity and NaN */
    bits = magnitude < 0x0400u ? fo_bitsf(subnormal) : bits;
    return fo_from_bitsf(bits | sign);
}

#endif
