"""Codecs: the elements of a tile are decoded to what the kernels compute with, and encoded after the update.

A format is a function that decodes and one that encodes n elements, and a line in a function that loads and in
one that stores; `csrc/fo_codec.h` has the conversion of one element. All functions are inline because
`kernels.pyx` is their only user, and is compiled once per instruction set.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastopt._core.common cimport real
from fastopt._core.span cimport BFLOAT16, FLOAT16, NATIVE, SIGNED8, SPLIT, Format, Span

cdef extern from "fo_half.h" nogil:
    float fo_half_to_float(uint16_t half)

cdef extern from "fo_codec.h" nogil:
    enum:
        SEGMENT "FO_NOISE_SEGMENT"
    void fill_noise_table "fo_fill_noise_table"()
    uint64_t fo_noise_of_step(uint64_t param_key, uint64_t step)
    uint64_t fo_noise_of_segment(uint64_t step_key, uint64_t segment, int array)
    enum:
        BFLOAT16_NOISE "FO_BFLOAT16_NOISE"
        HALF_NOISE "FO_HALF_NOISE"
        SIGNED8_NOISE "FO_SIGNED8_NOISE"
        UNSIGNED8_NOISE "FO_UNSIGNED8_NOISE"
    const uint32_t* fo_noise_words(uint64_t segment_hash, int table)
    uint32_t fo_noise_key(uint64_t segment_hash, int table)
    float fo_from_bfloat16(uint16_t x)
    uint16_t fo_to_bfloat16(float x, uint32_t noise)
    uint16_t fo_to_bfloat16_nearest(float x)
    float fo_from_split(uint16_t high, uint16_t low)
    uint16_t fo_split_high(float x)
    uint16_t fo_split_low(float x)
    uint16_t fo_to_half(float x, uint32_t noise)
    uint16_t fo_to_half_nearest(float x)
    const float fo_range_signed, fo_range_unsigned
    float fo_scale(uint32_t max_bits)
    float fo_encoding_factor(float scale, float range)
    float fo_decoding_factor(float scale, float range)
    uint32_t fo_magnitude(float x)
    uint8_t fo_to_signed8(float x, float factor, uint32_t noise)
    float fo_from_signed8(uint8_t code, float factor)
    uint8_t fo_to_unsigned8(float x, float factor, uint32_t noise)
    float fo_from_unsigned8(uint8_t code, float factor)

cdef enum:
    MAX_TILE = 512      # elements of a tile: at most the largest block of 8-bit state
    NOT_FINITE = 0x7f800000     # bits of an infinity; those of a NaN are greater
    MAX_SIGNED8 = 0x7f  # largest codes
    MAX_UNSIGNED8 = 0xff


# --- Loops over elements -----------------------------------------------------------------------------

cdef inline void convert_half(real* restrict out, const uint16_t* restrict x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <real> fo_half_to_float(x[i])


cdef inline void convert_bfloat16(real* restrict out, const uint16_t* restrict x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <real> fo_from_bfloat16(x[i])


cdef inline void narrow(float* restrict out, const double* restrict x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <float> x[i]


cdef inline void widen(double* restrict out, const float* restrict x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <double> x[i]


cdef inline void round_bfloat16(uint16_t* restrict out, const float* restrict x, const uint32_t* restrict noise,
                                uint32_t key, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = fo_to_bfloat16(x[i], noise[i] ^ key)


cdef inline void round_bfloat16_nearest(uint16_t* restrict out, const float* restrict x,
                                        Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = fo_to_bfloat16_nearest(x[i])


cdef inline void round_half(uint16_t* restrict out, const float* restrict x, const uint32_t* restrict noise,
                            uint32_t key, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = fo_to_half(x[i], noise[i] ^ key)


cdef inline void round_half_nearest(uint16_t* restrict out, const float* restrict x,
                                    Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = fo_to_half_nearest(x[i])


cdef inline void join_split(float* restrict out, const uint16_t* restrict high, const uint16_t* restrict low,
                            Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = fo_from_split(high[i], low[i])


cdef inline void split(uint16_t* restrict high, uint16_t* restrict low, const float* restrict x,
                       Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        high[i] = fo_split_high(x[i])
        low[i] = fo_split_low(x[i])


cdef inline uint32_t max_magnitude(const float* restrict x, Py_ssize_t n) noexcept nogil:
    """Bits of the largest magnitude, of a NaN if there is one."""
    cdef Py_ssize_t i
    cdef uint32_t bits, largest = 0
    for i in range(n):
        bits = fo_magnitude(x[i])
        largest = bits if bits > largest else largest
    return largest


cdef inline void encode_signed8(uint8_t* restrict out, const float* restrict x, float factor,
                                const uint32_t* restrict noise, uint32_t key, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = fo_to_signed8(x[i], factor, noise[i] ^ key)


cdef inline void encode_unsigned8(uint8_t* restrict out, const float* restrict x, float factor,
                                  const uint32_t* restrict noise, uint32_t key, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = fo_to_unsigned8(x[i], factor, noise[i] ^ key)


cdef inline void decode_signed8(float* restrict out, const uint8_t* restrict x, float factor,
                                Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = fo_from_signed8(x[i], factor)


cdef inline void decode_unsigned8(float* restrict out, const uint8_t* restrict x, float factor,
                                  Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = fo_from_unsigned8(x[i], factor)


# --- Codecs ------------------------------------------------------------------------------------------

cdef inline void load(Format format, const char* base, Py_ssize_t lo, Py_ssize_t n, real* out) noexcept nogil:
    """Decode elements [lo, lo + n) of an array of 16-bit floats."""
    if format == BFLOAT16:
        convert_bfloat16(out, <const uint16_t*> base + lo, n)
    else:
        convert_half(out, <const uint16_t*> base + lo, n)


cdef inline void load_params(const Span* x, Py_ssize_t lo, Py_ssize_t n, float* out) noexcept nogil:
    """Decode elements [lo, lo + n) of a parameter that is not NATIVE."""
    if x.param_format == SPLIT:
        join_split(out, <const uint16_t*> x.p + lo, <const uint16_t*> x.low + lo, n)
    else:
        load(x.param_format, x.p, lo, n, out)


cdef inline const real* load_grad(const Span* x, Py_ssize_t lo, Py_ssize_t n, real* buffer) noexcept nogil:
    """Gradient of elements [lo, lo + n) as the kernels compute with it; `buffer` is used if it is not NATIVE."""
    if x.grad_format == NATIVE:
        return <const real*> x.g + lo if x.g != NULL else NULL
    if x.grad_format == FLOAT16 or x.grad_format == BFLOAT16:
        load(x.grad_format, x.g, lo, n, buffer)
    elif real is float:
        narrow(buffer, <const double*> x.g + lo, n)
    else:
        widen(buffer, <const float*> x.g + lo, n)
    return buffer


cdef inline char* state_base(const Span* x, int k) noexcept nogil:
    """State array k."""
    if k < 2:
        return x.s if k == 0 else x.t
    return x.u if k == 2 else x.v


cdef inline float range_of(Format format) noexcept nogil:
    return fo_range_signed if format == SIGNED8 else fo_range_unsigned


cdef inline void load_state(const Span* x, int k, Py_ssize_t lo, Py_ssize_t n, float* out) noexcept nogil:
    """Decode elements [lo, lo + n) of state array k: a whole block if it has 8 bits."""
    cdef const uint8_t* codes = <const uint8_t*> state_base(x, k) + lo
    cdef Format format = x.state_formats[k]
    cdef float factor
    if format == BFLOAT16:
        load(BFLOAT16, state_base(x, k), lo, n, out)
        return
    factor = fo_decoding_factor(x.scales[k][lo // x.block], range_of(format))
    if format == SIGNED8:
        decode_signed8(out, codes, factor, n)
    else:
        decode_unsigned8(out, codes, factor, n)


cdef inline void store_params(const Span* x, uint64_t step_key, Py_ssize_t lo, Py_ssize_t n,
                              const float* p) noexcept nogil:
    """Encode elements [lo, lo + n) of the parameter, which are in one segment of the noise."""
    cdef Py_ssize_t first = x.origin + lo
    cdef uint64_t hash = fo_noise_of_segment(step_key, first // SEGMENT, 0)
    cdef int table = BFLOAT16_NOISE if x.param_format == BFLOAT16 else HALF_NOISE
    cdef const uint32_t* noise = fo_noise_words(hash, table) + first % SEGMENT
    cdef uint32_t key = fo_noise_key(hash, table)
    cdef uint16_t* out = <uint16_t*> x.p + lo
    if x.param_format == SPLIT:
        split(out, <uint16_t*> x.low + lo, p, n)
    elif x.to_nearest:
        if x.param_format == BFLOAT16:
            round_bfloat16_nearest(out, p, n)
        else:
            round_half_nearest(out, p, n)
    elif x.param_format == BFLOAT16:
        round_bfloat16(out, p, noise, key, n)
    else:
        round_half(out, p, noise, key, n)


cdef inline void store_state(const Span* x, uint64_t step_key, int k, Py_ssize_t lo, Py_ssize_t n,
                             const float* values) noexcept nogil:
    """Encode elements [lo, lo + n) of state array k, which are in one segment of the noise: a whole block if
    it has 8 bits."""
    cdef Py_ssize_t first = x.origin + lo
    cdef uint64_t hash = fo_noise_of_segment(step_key, first // SEGMENT, k + 1)
    cdef Format format = x.state_formats[k]
    cdef int table = SIGNED8_NOISE if format == SIGNED8 else UNSIGNED8_NOISE
    cdef const uint32_t* noise
    cdef uint8_t* codes = <uint8_t*> state_base(x, k) + lo
    cdef uint32_t key, max_bits
    cdef float factor
    if format == BFLOAT16:
        table = BFLOAT16_NOISE
    noise, key = fo_noise_words(hash, table) + first % SEGMENT, fo_noise_key(hash, table)
    if format == BFLOAT16:
        round_bfloat16(<uint16_t*> state_base(x, k) + lo, values, noise, key, n)
        return
    max_bits = max_magnitude(values, n)
    x.scales[k][lo // x.block] = fo_scale(max_bits)
    factor = fo_encoding_factor(fo_scale(max_bits), range_of(format))
    if max_bits >= NOT_FINITE:
        memset(codes, MAX_SIGNED8 if format == SIGNED8 else MAX_UNSIGNED8, n)
    elif format == SIGNED8:
        encode_signed8(codes, values, factor, noise, key, n)
    else:
        encode_unsigned8(codes, values, factor, noise, key, n)
