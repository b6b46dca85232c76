"""Codecs: the elements of a tile are decoded to what the kernels compute with, and encoded after the update.

A format is a function that decodes and one that encodes n elements, and a line in `load` and `store_params`;
`csrc/fo_codec.h` has the conversion of one element. All functions are inline because `kernels.pyx` is their only
user, and is compiled once per instruction set.
"""
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from fastopt._core.common cimport real
from fastopt._core.span cimport BFLOAT16, FLOAT16, NATIVE, Format, Span

cdef extern from "fo_half.h" nogil:
    float fo_half_to_float(uint16_t half)

cdef extern from "fo_codec.h" nogil:
    enum:
        SEGMENT "FO_NOISE_SEGMENT"
    void fill_noise_table "fo_fill_noise_table"()
    uint64_t fo_noise_of_step(uint64_t param_key, uint64_t step)
    uint64_t fo_noise_of_segment(uint64_t step_key, uint64_t segment, int array)
    const uint32_t* fo_noise_words(uint64_t segment_hash)
    uint32_t fo_noise_key(uint64_t segment_hash)
    float fo_from_bfloat16(uint16_t x)
    uint16_t fo_to_bfloat16(float x, uint32_t noise)
    uint16_t fo_to_bfloat16_nearest(float x)
    uint16_t fo_to_half(float x, uint32_t noise)
    uint16_t fo_to_half_nearest(float x)

cdef enum:
    MAX_TILE = 128      # elements of a tile


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


# --- Codecs ------------------------------------------------------------------------------------------

cdef inline void load(Format format, const char* base, Py_ssize_t lo, Py_ssize_t n, real* out) noexcept nogil:
    """Decode elements [lo, lo + n) of an array of 16-bit floats."""
    if format == BFLOAT16:
        convert_bfloat16(out, <const uint16_t*> base + lo, n)
    else:
        convert_half(out, <const uint16_t*> base + lo, n)


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


cdef inline void store_params(const Span* x, uint64_t step, Py_ssize_t lo, Py_ssize_t n,
                              const float* p) noexcept nogil:
    """Encode elements [lo, lo + n) of the parameter after this step; they are in one segment."""
    cdef uint16_t* out = <uint16_t*> x.p + lo
    cdef Py_ssize_t first = x.origin + lo
    cdef uint64_t segment
    cdef const uint32_t* noise
    if x.param_format == NATIVE:
        return
    if x.to_nearest:
        if x.param_format == BFLOAT16:
            round_bfloat16_nearest(out, p, n)
        else:
            round_half_nearest(out, p, n)
        return
    segment = fo_noise_of_segment(fo_noise_of_step(x.noise, step), first // SEGMENT, 0)
    noise = fo_noise_words(segment) + first % SEGMENT
    if x.param_format == BFLOAT16:
        round_bfloat16(out, p, noise, fo_noise_key(segment), n)
    else:
        round_half(out, p, noise, fo_noise_key(segment), n)
