/*
 * fo_codec.h: conversions between float and the formats in which arrays can be stored, and the
 * noise of stochastic rounding, in operations that compilers vectorize for every instruction set.
 *
 * Stochastic rounding rounds up with a probability equal to the fraction that is cut off: it adds
 * noise below the last bit that is kept, and truncates. The noise of an element is a word of a
 * fixed table, combined with a key by exclusive or. The place in the table and the key are a hash
 * of seed, step, parameter, array and segment of 512 elements, so they do not depend on the
 * division of the work.
 *
 * The conversions use integers where flush-to-zero would change a subnormal number.
 */
#ifndef FO_CODEC_H
#define FO_CODEC_H

#include <stdint.h>

#include "fo_bits.h"

enum {
    FO_NOISE_SEGMENT = 512, /* elements whose noise follows one another in the table */
    FO_NOISE_STARTS =
        1024, /* words of the table at which a segment may start, every 16th of them */
    FO_NOISE_WORDS = FO_NOISE_STARTS + FO_NOISE_SEGMENT,
    FO_NOISE_ARRAYS = 8 /* arrays of a parameter that have noise of their own */
};

static uint32_t fo_noise_table[FO_NOISE_WORDS];

/* Finalizer of SplitMix64 (Steele, Lea, Flood 2014). */
static inline uint64_t fo_mix(const uint64_t x)
{
    uint64_t y = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    y = (y ^ (y >> 27)) * UINT64_C(0x94D049BB133111EB);
    return y ^ (y >> 31);
}

static inline uint64_t fo_golden(const uint64_t x) { return x * UINT64_C(0x9E3779B97F4A7C15); }

static inline void fo_fill_noise_table(void)
{
    int i;
    for (i = 0; i < FO_NOISE_WORDS; i++)
        fo_noise_table[i] = (uint32_t)(fo_mix(fo_golden((uint64_t)i + 1)) >> 32);
}

/* The part of the hash that a parameter has at every step. */
static inline uint64_t fo_noise_of_param(const uint64_t seed, const uint64_t param)
{
    return fo_mix(fo_golden(fo_mix(fo_golden(seed + 1)) + param));
}

/* The same, at one step. */
static inline uint64_t fo_noise_of_step(const uint64_t param_key, const uint64_t step)
{
    return fo_mix(fo_golden(param_key + step));
}

/* The hash of a segment: its low bits select the place in the table, the high half is the key. */
static inline uint64_t fo_noise_of_segment(const uint64_t step_key, const uint64_t segment,
                                           const int array)
{
    return fo_mix(fo_golden(step_key + segment * FO_NOISE_ARRAYS + (uint64_t)array));
}

static inline const uint32_t *fo_noise_words(const uint64_t segment_hash)
{
    return fo_noise_table + (segment_hash & (FO_NOISE_STARTS - 16));
}

static inline uint32_t fo_noise_key(const uint64_t segment_hash)
{
    return (uint32_t)(segment_hash >> 32);
}

/* --- bfloat16: the high half of a float --------------------------------------------------------
 */

static inline float fo_from_bfloat16(const uint16_t x) { return fo_from_bitsf((uint32_t)x << 16); }

/* The high half of a float after an addition to its bits, which must not turn a NaN into a number.
 */
static inline uint16_t fo_high_half(const uint32_t bits, const uint32_t added)
{
    const uint32_t rounded = (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : bits + added;
    return (uint16_t)(rounded >> 16);
}

/* Stochastic, with 16 bits of noise. */
static inline uint16_t fo_to_bfloat16(const float x, const uint32_t noise)
{
    return fo_high_half(fo_bitsf(x), noise >> 16);
}

/* To nearest, ties to even. */
static inline uint16_t fo_to_bfloat16_nearest(const float x)
{
    const uint32_t bits = fo_bitsf(x);
    return fo_high_half(bits, 0x7fffu + ((bits >> 16) & 1u));
}

/* --- Split: a float as bfloat16, to nearest with ties away from zero, and its low 16 bits
 * --------- */

static inline float fo_from_split(const uint16_t high, const uint16_t low)
{
    return fo_from_bitsf(((uint32_t)high << 16) + (uint32_t)(int32_t)(int16_t)low);
}

static inline uint16_t fo_split_high(const float x) { return fo_high_half(fo_bitsf(x), 0x8000u); }

/* Those of a NaN are 0, so that it stays one. */
static inline uint16_t fo_split_low(const float x)
{
    const uint32_t bits = fo_bitsf(x);
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? 0u : bits);
}

/* --- float16 ------------------------------------------------------------------------------------
 */

/*
 * float16 of the rounded magnitude of a normal number, `normal`, or of a smaller one, `subnormal`,
 * in units of the last place of float16.
 */
static inline uint16_t fo_join_half(const uint32_t bits, const uint32_t normal,
                                    const uint32_t subnormal)
{
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t too_large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u; /* NaN or infinity */
    uint32_t half = (normal >> 13) - (112u << 10);
    half = half > 0x7c00u ? too_large : half;
    half = magnitude < 0x38800000u ? subnormal : half;
    return (uint16_t)(half | sign);
}

/* Stochastic, with 13 bits of noise. */
static inline uint16_t fo_to_half(const float x, const uint32_t noise)
{
    const uint32_t bits = fo_bitsf(x), magnitude = bits & 0x7fffffffu;
    const float fraction = (float)(int32_t)(noise >> 19) * 0x1p-13f;
    const float units = fo_from_bitsf(magnitude < 0x38800000u ? magnitude : 0u) * 0x1p24f;
    return fo_join_half(bits, magnitude + (noise >> 19), (uint32_t)(int32_t)(units + fraction));
}

/* To nearest, ties to even. */
static inline uint16_t fo_to_half_nearest(const float x)
{
    const uint32_t bits = fo_bitsf(x), magnitude = bits & 0x7fffffffu;
    const float units = fo_from_bitsf(magnitude < 0x38800000u ? magnitude : 0u) * 0x1p24f;
    return fo_join_half(bits, magnitude + 0xfffu + ((magnitude >> 13) & 1u),
                        fo_bitsf(units + 0x1p23f) & 0xffffu);
}

/* --- 8 bits: floats of few bits, in units of the largest magnitude of a block
 * --------------------- */

/*
 * With y, a magnitude over the largest one of its block times the range below, the code consists of
 * the exponent and the first bits of the mantissa of 1 + y: small values have equal distances,
 * large ones equal relative distances. A signed code has a sign, 2 bits of exponent and 5 of
 * mantissa; an unsigned one has 4 and 4, and is 0 for zero alone.
 */
static const float fo_range_signed = 14.74f; /* less than the value of code 127, 14.75 */
static const float fo_range_unsigned = 63480.0f; /* less than the value of code 255, 63487 */

/* Factors of a block; the product of the first two divides by the largest magnitude. */
typedef struct {
    float encode[2];
    float decode[2];
} fo_block;

/* The factors, from the bits of the largest magnitude. Subnormal ones count as zero. */
static inline fo_block fo_block_of(const uint32_t max_bits, const float range)
{
    const float max = max_bits < 0x00800000u ? 0.0f : fo_from_bitsf(max_bits);
    fo_block block = {{0.0f, 0.0f}, {1.0f / range, max}};
    if (max >= 0x1p100f) { /* 1 / max may be subnormal */
        block.encode[0] = range / max;
        block.encode[1] = 1.0f;
    } else if (max > 0.0f) {
        block.encode[0] = 1.0f / max;
        block.encode[1] = range;
    }
    return block;
}

static inline uint32_t fo_magnitude(const float x) { return fo_bitsf(x) & 0x7fffffffu; }

static inline uint8_t fo_to_signed8(const float x, const float a, const float b,
                                    const uint32_t noise)
{
    const float y = fo_from_bitsf(fo_magnitude(x)) * a * b + 1.0f;
    const uint32_t code = ((fo_bitsf(y) & 0x7fffffffu) - 0x3f800000u + (noise >> 14)) >> 18;
    return (uint8_t)((code < 127u ? code : 127u) | ((fo_bitsf(x) >> 24) & 0x80u));
}

static inline float fo_from_signed8(const uint8_t code, const float a, const float b)
{
    const uint32_t sign = (uint32_t)(code & 0x80u) << 24;
    const float y = fo_from_bitsf(((uint32_t)(code & 0x7fu) << 18) + 0x3f800000u) - 1.0f;
    return fo_from_bitsf(fo_bitsf(y * a * b) | sign);
}

static inline uint8_t fo_to_unsigned8(const float x, const float a, const float b,
                                      const uint32_t noise)
{
    const float y = x * a * b;
    const float at_least = y < 0x1p-4f ? 0x1p-4f : y;
    const uint32_t code =
        ((fo_bitsf(at_least + 1.0f) & 0x7fffffffu) - 0x3f800000u + (noise >> 13)) >> 19;
    const uint32_t limited = code < 255u ? code : 255u;
    return (uint8_t)((fo_bitsf(x) & 0x7f800000u) == 0u ? 0u : limited);
}

static inline float fo_from_unsigned8(const uint8_t code, const float a, const float b)
{
    return (fo_from_bitsf(((uint32_t)code << 19) + 0x3f800000u) - 1.0f) * a * b;
}

#endif
