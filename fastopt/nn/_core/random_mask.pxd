"""Dropout. The random words are Threefry-2x32-13 (Salmon et al. 2011), a function of key and counter alone."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from fastopt._core.common cimport real
from fastopt.nn._core.layer_kernels cimport Block, Dropout

cdef enum:
    WORDS = 64      # random words that are generated together


cdef inline void mix(uint32_t* a, uint32_t* b, int rotation) noexcept nogil:
    a[0] += b[0]
    b[0] = ((b[0] << rotation) | (b[0] >> (32 - rotation))) ^ a[0]


cdef inline void threefry(uint32_t key0, uint32_t key1, uint32_t* a, uint32_t* b) noexcept nogil:
    """Replace the counter (a, b) with two random words for the key (key0, key1)."""
    cdef uint32_t key2 = <uint32_t> 0x1bd11bda ^ key0 ^ key1
    a[0] += key0
    b[0] += key1
    mix(a, b, 13)
    mix(a, b, 15)
    mix(a, b, 26)
    mix(a, b, 6)
    a[0] += key1
    b[0] += key2 + <uint32_t> 1
    mix(a, b, 17)
    mix(a, b, 29)
    mix(a, b, 16)
    mix(a, b, 24)
    a[0] += key2
    b[0] += key0 + <uint32_t> 2
    mix(a, b, 13)
    mix(a, b, 15)
    mix(a, b, 26)
    mix(a, b, 6)
    a[0] += key0
    b[0] += key1 + <uint32_t> 3
    mix(a, b, 17)


cdef inline void random_words(uint32_t key0, uint32_t key1, uint64_t group, uint32_t* out) noexcept nogil:
    """Words of WORDS / 2 consecutive counters: first words, then second words."""
    cdef uint32_t i, a, b
    cdef uint64_t counter = group * (WORDS // 2)
    cdef uint32_t low = <uint32_t> counter, high = <uint32_t> (counter >> 32)
    for i in range(WORDS // 2):
        a = low + i
        b = high
        threefry(key0, key1, &a, &b)
        out[i] = a
        out[WORDS // 2 + i] = b


cdef inline void drop(const uint32_t* word, uint32_t threshold, real factor, real* out,
                      Py_ssize_t n) noexcept nogil:
    """out = factor out, or 0 if the element's word is below the threshold"""
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = factor * out[i] if word[i] >= threshold else <real> 0


cdef inline void dropout(const Dropout* hp, const Block* x, Py_ssize_t first, const real* a,
                         real* out) noexcept nogil:
    """out = a / (1 - rate), or 0 for a dropped element. `first`: the block's first row in the batch.

    Element i of the batch uses word i of the stream whose key is derived from the layer's key and the step.
    """
    cdef uint32_t word[WORDS]
    cdef uint32_t key0 = <uint32_t> hp.step, key1 = <uint32_t> (hp.step >> 32)
    cdef uint32_t threshold = <uint32_t> min(hp.rate * 4294967296.0, 4294967295.0)
    cdef Py_ssize_t start, n, i = first * x.n, end = i + x.rows * x.n
    threefry(<uint32_t> hp.key, <uint32_t> (hp.key >> 32), &key0, &key1)
    if out != a:
        memcpy(out, a, (end - i) * sizeof(real))
    while i < end:
        start = i % WORDS
        n = min(WORDS - start, end - i)
        random_words(key0, key1, i // WORDS, word)
        drop(word + start, threshold, <real> (1.0 / (1.0 - hp.rate)), out, n)
        out += n
        i += n
