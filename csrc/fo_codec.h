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

/* Formats differ in the bits that they cut off: each has the table in the low bits of its words. */
enum { FO_BFLOAT16_NOISE, FO_HALF_NOISE, FO_SIGNED8_NOISE, FO_UNSIGNED8_NOISE, FO_NOISE_TABLES };
static const int fo_noise_bits[FO_NOISE_TABLES] = {16, 13, 18, 19};

static uint32_t fo_noise_table[FO_NOISE_TABLES][FO_NOISE_WORDS];

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
    int i, table;
    for (table = 0; table < FO_NOISE_TABLES; table++)
        for (i = 0; i < FO_NOISE_WORDS; i++)
            fo_noise_table[table][i] =
                (uint32_t)(fo_mix(fo_golden((uint64_t)i + 1)) >> (64 - fo_noise_bits[table]));
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

static inline const uint32_t *fo_noise_words(const uint64_t segment_hash, const int table)
{
    return fo_noise_table[table] + (segment_hash & (FO_NOISE_STARTS - 16));
}

static inline uint32_t fo_noise_key(const uint64_t segment_hash, const int table)
{
    return (uint32_t)(segment_hash >> (64 - fo_noise_bits[table]));
}

/* --- bfloat16: the high half of a float --------------------------------------------------------
 */

static inline float fo_from_bfloat16(const uint16_t x) { return fo_from_bitsf((uint32_t)x << 16); }

/*
 * The high half of a float after an addition to its bits, which must not turn a NaN into a number.
 * Masks, not a choice between two halves: compilers narrow both sides of a choice.
 */
static inline uint16_t fo_high_half(const float x, const uint32_t added)
{
    const uint32_t nan = x != x ? 0xffffffffu : 0u;
    return (uint16_t)(((fo_bitsf(x) + (added & ~nan)) | (nan & 0x400000u)) >> 16);
}

/* Stochastic, with 16 bits of noise. */
static inline uint16_t fo_to_bfloat16(const float x, const uint32_t noise)
{
    return fo_high_half(x, noise);
}

/* To nearest, ties to even. */
static inline uint16_t fo_to_bfloat16_nearest(const float x)
{
    return fo_high_half(x, 0x7fffu + ((fo_bitsf(x) >> 16) & 1u));
}

/* --- Split: a float as bfloat16, to nearest with ties away from zero, and its low 16 bits
 * --------- */

static inline float fo_from_split(const uint16_t high, const uint16_t low)
{
    return fo_from_bitsf(((uint32_t)high << 16) + (uint32_t)(int32_t)(int16_t)low);
}

static inline uint16_t fo_split_high(const float x) { return fo_high_half(x, 0x8000u); }

/* Those of a NaN are 0, so that it stays one. */
static inline uint16_t fo_split_low(const float x) { return (uint16_t)(x != x ? 0u : fo_bitsf(x)); }

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
    const float fraction = (float)(int32_t)noise * 0x1p-13f;
    const float units = fo_from_bitsf(magnitude < 0x38800000u ? magnitude : 0u) * 0x1p24f;
    return fo_join_half(bits, magnitude + noise, (uint32_t)(int32_t)(units + fraction));
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
 * With y, a magnitude over the scale of its block times the range below, the code consists of the
 * last bits of the exponent and the first ones of the mantissa of 2 + y: small values have equal
 * distances, large ones equal relative distances. A signed code has a sign, 2 bits of exponent and
 * 5 of mantissa; an unsigned one has 4 and 4, and is 0 for zero alone.
 *
 * A value of at most the scale cannot be rounded up beyond the largest code, so nothing is limited.
 */
static const float fo_range_signed = 29.48f; /* less than the value of code 127, 29.5 */
static const float fo_range_unsigned = 126960.0f; /* less than the value of code 255, 126974 */

/*
 * The scale of a block, from the bits of its largest magnitude: that magnitude, but at least a
 * number whose factors are normal; 0 if the magnitude is zero or subnormal.
 */
static inline float fo_scale(const uint32_t max_bits)
{
    const float max = fo_from_bitsf(max_bits);
    return max_bits < 0x00800000u ? 0.0f : max < 0x1p-108f ? 0x1p-108f : max;
}

/* What values are multiplied by before they are encoded, and after they are decoded. */
static inline float fo_encoding_factor(const float scale, const float range)
{
    return scale > 0.0f ? range / scale : 0.0f;
}

static inline float fo_decoding_factor(const float scale, const float range)
{
    return scale * (1.0f / range);
}

static inline uint32_t fo_magnitude(const float x) { return fo_bitsf(x) & 0x7fffffffu; }

static inline uint8_t fo_to_signed8(const float x, const float factor, const uint32_t noise)
{
    const float y = fo_from_bitsf(fo_magnitude(x)) * factor + 2.0f;
    return (uint8_t)(((fo_bitsf(y) + noise) << 6 | (fo_bitsf(x) & 0x80000000u)) >> 24);
}

static inline float fo_from_signed8(const uint8_t code, const float factor)
{
    const uint32_t bits = (uint32_t)(int32_t)(int8_t)code << 18;
    const uint32_t two = (bits & 0x80000000u) | 0x40000000u; /* 2 with the sign of the code */
    const uint32_t y = (bits & 0x81fc0000u) | 0x40000000u;
    return (fo_from_bitsf(y) - fo_from_bitsf(two)) * factor;
}

static inline uint8_t fo_to_unsigned8(const float x, const float factor, const uint32_t noise)
{
    const float y = x * factor;
    const uint32_t bits = fo_bitsf((y < 0x1p-3f ? 0x1p-3f : y) + 2.0f) + noise;
    return (uint8_t)((fo_bitsf(x) & 0x7f800000u) == 0u ? 0u : bits >> 19);
}

static inline float fo_from_unsigned8(const uint8_t code, const float factor)
{
    return (fo_from_bitsf((uint32_t)code << 19 | 0x40000000u) - 2.0f) * factor;
}

#endif
