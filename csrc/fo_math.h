/*
 * fo_math.h: exp, expm1, tanh, log, pow and the normal distribution, for loops that the compiler
 * vectorizes.
 *
 * The functions of the C library prevent vectorization and differ between platforms. These have no
 * branches, tables or calls and use only correctly rounded operations, so their results are the
 * same on every processor. Arguments are reduced by the method of Cody and Waite; the polynomials
 * are minimax approximations (Remez).
 *
 * Largest errors in units in the last place, measured for float with all 2^32 arguments, for double
 * with 1e8 random arguments:
 *
 *            exp  expm1  tanh  log1p  log  gauss  normal
 *   float    1.1    1.1   2.5    1.5         1.6     6.3
 *   double   1.0    1.2   2.6    1.8  0.9    1.6     8.1
 *
 * NaN propagates. Results in the subnormal range are 0 even without flush-to-zero, except those of
 * expm1, tanh and log1p for subnormal arguments.
 */
#ifndef FO_MATH_H
#define FO_MATH_H

#include <math.h>
#include <stdint.h>

#include "fo_bits.h"

/* Returns r of x = n ln 2 + r with |r| <= ln(2) / 2, and stores n in the low bits of `*n`.
 *
 * Adding 1.5 * 2^23 (2^52 for double) rounds to an integer. The high part of ln 2 ends in zero
 * bits, so its product with n is exact. */
static inline float fo_reducef(const float x, uint32_t *const n)
{
    const float shift = 0x1.8p23f, shifted = x * 0x1.715476p0f + shift, rounded = shifted - shift;
    *n = fo_bitsf(shifted);
    return (x - rounded * 0x1.62e4p-1f) - rounded * 0x1.7f7d1cp-20f;
}

static inline double fo_reduce(const double x, uint64_t *const n)
{
    const double shift = 0x1.8p52, shifted = x * 0x1.71547652b82fep0 + shift,
                 rounded = shifted - shift;
    *n = fo_bits(shifted);
    return (x - rounded * 0x1.62e42feep-1) - rounded * 0x1.a39ef35793c76p-33;
}

/* exp(r) - 1 for |r| <= ln(2) / 2. */
static inline float fo_expm1_reducedf(const float r)
{
    float q = 0x1.6d997p-10f;
    q = q * r + 0x1.122868p-7f;
    q = q * r + 0x1.555486p-5f;
    q = q * r + 0x1.5554aep-3f;
    q = q * r + 0.5f;
    return r + r * r * q;
}

static inline double fo_expm1_reduced(const double r)
{
    double q = 0x1.af7723ce4085bp-26;
    q = q * r + 0x1.28a2e465dc9c9p-22;
    q = q * r + 0x1.71dde9beeb53ep-19;
    q = q * r + 0x1.a019a65547605p-16;
    q = q * r + 0x1.a01a01b5f4ec5p-13;
    q = q * r + 0x1.6c16c17f43c9ep-10;
    q = q * r + 0x1.111111110e68ap-7;
    q = q * r + 0x1.55555555520dap-5;
    q = q * r + 0x1.555555555555cp-3;
    q = q * r + 0x1.0000000000005p-1;
    return r + r * r * q;
}

/* exp(x): n is added to the exponent bits of exp(r). Overflow gives inf, underflow 0. */
static inline float fo_expf(const float x)
{
    uint32_t n;
    const float p = 1.0f + fo_expm1_reducedf(fo_reducef(x, &n));
    const float y = fo_from_bitsf(fo_bitsf(p) + (n << 23));
    const float above = x <= 0x1.62e42ep6f ? y : x + INFINITY;
    return x < -0x1.5d589ep6f ? 0.0f : above;
}

static inline double fo_exp(const double x)
{
    uint64_t n;
    const double p = 1.0 + fo_expm1_reduced(fo_reduce(x, &n));
    const double y = fo_from_bits(fo_bits(p) + (n << 52));
    const double above = x <= 0x1.62e42fefa39efp9 ? y : x + (double)INFINITY;
    return x < -0x1.6232bdd7abcd2p9 ? 0.0 : above;
}

/* exp(x) - 1 for x <= 0 only. Below -20 (-40 for double) the result rounds to -1. */
static inline float fo_expm1f(const float x)
{
    uint32_t n;
    const float p = fo_expm1_reducedf(fo_reducef(x < -20.0f ? -20.0f : x, &n));
    const float power = fo_from_bitsf((n + 127) << 23);
    return power * p + (power - 1.0f);
}

static inline double fo_expm1(const double x)
{
    uint64_t n;
    const double p = fo_expm1_reduced(fo_reduce(x < -40.0 ? -40.0 : x, &n));
    const double power = fo_from_bits((n + 1023) << 52);
    return power * p + (power - 1.0);
}

/* tanh(x) = -e / (2 + e) with e = exp(-2 |x|) - 1, times the sign of x. */
static inline float fo_tanhf(const float x)
{
    const float e = fo_expm1f(x < 0.0f ? x + x : -(x + x));
    const float y = e / (2.0f + e);
    return x <= 0.0f ? y : -y;
}

static inline double fo_tanh(const double x)
{
    const double e = fo_expm1(x < 0.0 ? x + x : -(x + x));
    const double y = e / (2.0 + e);
    return x <= 0.0 ? y : -y;
}

/* f - log(1 + f) for 1 / sqrt(2) <= 1 + f <= sqrt(2). With s = f / (2 + f) the logarithm is
 * 2 atanh(s) = f - f^2 / 2 + s (f^2 / 2 + R(s^2)). */
static inline float fo_log1p_restf(const float f)
{
    const float s = f / (2.0f + f), z = s * s, half = 0.5f * f * f;
    float q = 0x1.31dff4p-2f;
    q = q * z + 0x1.995ee4p-2f;
    q = q * z + 0x1.55557ap-1f;
    return half - s * (half + q * z);
}

static inline double fo_log1p_rest(const double f)
{
    const double s = f / (2.0 + f), z = s * s, half = 0.5 * f * f;
    double q = 0x1.2ef88ffab6958p-3;
    q = q * z + 0x1.39a334d3a8210p-3;
    q = q * z + 0x1.74662dc367347p-3;
    q = q * z + 0x1.c71c526c82262p-3;
    q = q * z + 0x1.249249415d0b6p-2;
    q = q * z + 0x1.9999999980aebp-2;
    q = q * z + 0x1.555555555558fp-1;
    return half - s * (half + q * z);
}

/* log(1 + x) for 0 <= x <= 1; above sqrt(2) - 1 as log(2) + log((1 + x) / 2). */
static inline float fo_log1pf(const float x)
{
    const int high = x > 0x1.a8279ap-2f;
    const float f = high ? 0.5f * (x - 1.0f) : x;
    const float y = f - fo_log1p_restf(f);
    return high ? 0x1.62e4p-1f + (y + 0x1.7f7d1cp-20f) : y;
}

static inline double fo_log1p(const double x)
{
    const int high = x > 0x1.a827999fcef32p-2;
    const double f = high ? 0.5 * (x - 1.0) : x;
    const double y = f - fo_log1p_rest(f);
    return high ? 0x1.62e42feep-1 + (y + 0x1.a39ef35793c76p-33) : y;
}

/* log(x) for normal x > 0 and inf: x = 2^k (1 + f) with 1 / sqrt(2) <= 1 + f < sqrt(2). */
static inline double fo_log(const double x)
{
    const uint64_t one = 0x3ff0000000000000, root = 0x3fe6a09e667f3bcd,
                   fraction = 0x000fffffffffffff;
    const uint64_t bits = fo_bits(x) + (one - root);
    const double k = fo_from_bits((bits >> 52) | 0x4330000000000000) - (0x1p52 + 1023.0);
    const double f = fo_from_bits((bits & fraction) + root) - 1.0;
    const double y = k * 0x1.62e42feep-1 - ((fo_log1p_rest(f) - k * 0x1.a39ef35793c76p-33) - f);
    return x <= 0x1.fffffffffffffp1023 ? y : x;
}

/* Double-double arithmetic: the value is high + low, and |low| is at most half an ulp of high. */
typedef struct {
    double high, low;
} fo_double_double;

/* Product with a relative error of about 2^-104. The product of the high parts is exact (Dekker
 * 1971), because products of half-length significands are not rounded. */
static inline fo_double_double fo_multiply(const fo_double_double a, const fo_double_double b)
{
    const double split = 0x1p27 + 1.0, product = a.high * b.high;
    const double a_far = split * a.high, a_top = a_far - (a_far - a.high), a_rest = a.high - a_top;
    const double b_far = split * b.high, b_top = b_far - (b_far - b.high), b_rest = b.high - b_top;
    const double lost =
        ((a_top * b_top - product) + a_top * b_rest + a_rest * b_top) + a_rest * b_rest;
    const double low = lost + (a.high * b.low + a.low * b.high), high = product + low;
    return (fo_double_double){high, low - (high - product)};
}

/* x^y for x >= 0. An integer power is computed by repeated squaring in double-double arithmetic: it
 * is correctly rounded for |y| up to about 2^45, and infinite from 2^996 on, where the splitting
 * overflows. Any other power is exp(y log(x)), with an error of about |y log(x)| units in the last
 * place; there a subnormal x counts as 0. */
static inline double fo_pow(const double x, const double y)
{
    if (!(y > -0x1p53 && y < 0x1p53) || y != (double)(int64_t)y) {
        const double zero_power = y < 0.0 ? (double)INFINITY : 0.0;
        return x < 0x1p-1022 ? zero_power : fo_exp(y * fo_log(x));
    }
    fo_double_double result = {1.0, 0.0}, base = {x, 0.0};
    for (int64_t n = y < 0.0 ? -(int64_t)y : (int64_t)y; n > 0; n >>= 1) {
        if (n & 1)
            result = fo_multiply(result, base);
        base = fo_multiply(base, base);
    }
    const double product = result.high == result.high ? result.high : x + (double)INFINITY;
    return y < 0.0 ? 1.0 / product : product;
}

/* exp(-x^2 / 2), corrected for the rounding error of the square. The error follows from a split of
 * x into two half-length parts, whose products are exact. */
static inline float fo_gaussf(const float x)
{
    const float size = x < 0.0f ? -x : x, a = size > 15.0f ? 15.0f : size, square = a * a;
    const float high = fo_from_bitsf(fo_bitsf(a) & 0xfffff000), low = a - high;
    const float lost = ((high * high - square) + 2.0f * high * low) + low * low;
    const float y = fo_expf(-0.5f * square);
    return y - y * (0.5f * lost);
}

static inline double fo_gauss(const double x)
{
    const double size = x < 0.0 ? -x : x, a = size > 40.0 ? 40.0 : size, square = a * a;
    const double high = fo_from_bits(fo_bits(a) & 0xfffffffff8000000), low = a - high;
    const double lost = ((high * high - square) + 2.0 * high * low) + low * low;
    const double y = fo_exp(-0.5 * square);
    return y - y * (0.5 * lost);
}

/* Cumulative normal distribution (1 + erf(x / sqrt(2))) / 2, given gauss = exp(-x^2 / 2), and
 * without the cancellation of this formula for x < 0. With a = |x| the tail is
 * exp(-a^2 / 2) P(y) / (a + c), where y = (a - c) / (a + c) (Shepherd and Laframboise 1981). */
static inline float fo_normalf(const float x, const float gauss)
{
    const float size = x < 0.0f ? -x : x, a = size > 15.0f ? 15.0f : size;
    const float scale = 1.0f / (a + 3.5f), y = (a - 3.5f) * scale;
    float p = 0x1.d56256p-14f;
    p = p * y + 0x1.bcbb48p-12f;
    p = p * y - 0x1.036a26p-11f;
    p = p * y - 0x1.a063bep-9f;
    p = p * y + 0x1.a9817ep-8f;
    p = p * y + 0x1.1d30fep-6f;
    p = p * y - 0x1.db5a58p-4f;
    p = p * y + 0x1.42fec8p-2f;
    p = p * y - 0x1.21915p-1f;
    p = p * y + 0x1.7d241ap-1f;
    const float tail = gauss * (p * scale);
    return x > 0.0f ? 1.0f - tail : tail;
}

static inline double fo_normal(const double x, const double gauss)
{
    const double size = x < 0.0 ? -x : x, a = size > 40.0 ? 40.0 : size;
    const double scale = 1.0 / (a + 5.0), y = (a - 5.0) * scale;
    double p = 0x1.165ef73119cbep-29;
    p = p * y + 0x1.ef632a8a9065fp-28;
    p = p * y - 0x1.5f6505dd8f1ap-27;
    p = p * y - 0x1.18def89a790aep-24;
    p = p * y + 0x1.76908cfe9f2cfp-25;
    p = p * y + 0x1.d0b0ca4d98771p-22;
    p = p * y - 0x1.6a9e2b41a647cp-22;
    p = p * y - 0x1.73aa144a668f1p-19;
    p = p * y + 0x1.0b3110ed18ee9p-18;
    p = p * y + 0x1.17dd138844694p-16;
    p = p * y - 0x1.a1713a1466b63p-15;
    p = p * y - 0x1.f21461e54b422p-15;
    p = p * y + 0x1.1daf1e9e597fp-11;
    p = p * y - 0x1.a25037da55e5p-11;
    p = p * y - 0x1.88590eb581c11p-9;
    p = p * y + 0x1.54b4d4f4c932fp-6;
    p = p * y - 0x1.1b1c254c9469p-4;
    p = p * y + 0x1.51f6329f015ddp-3;
    p = p * y - 0x1.410ed5f875b31p-2;
    p = p * y + 0x1.fb31653876f98p-2;
    p = p * y - 0x1.54ad03f27ca16p-1;
    p = p * y + 0x1.89d3abe1f95aep-1;
    const double tail = gauss * (p * scale);
    return x > 0.0 ? 1.0 - tail : tail;
}

#endif
