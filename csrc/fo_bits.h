/*
 * fo_bits.h: the bits of floating-point numbers as integers, and back.
 */
#ifndef FO_BITS_H
#define FO_BITS_H

#include <stdint.h>
#include <string.h>

static inline uint32_t fo_bitsf(const float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline uint64_t fo_bits(const double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float fo_from_bitsf(const uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline double fo_from_bits(const uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#endif
