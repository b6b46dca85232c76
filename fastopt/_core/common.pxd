"""Declarations that several compiled modules share."""
from libc.stdint cimport uint64_t

cdef enum:
    CACHE_LINE = 64     # bytes

cdef extern from "fo_flush.h" nogil:
    uint64_t fo_flush_begin()
    void fo_flush_end(uint64_t mode)

cdef extern from "fo_prefetch.h" nogil:
    void fo_prefetch(const char* address)

ctypedef fused real:
    float
    double


cdef inline Py_ssize_t divide_up(Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    return (n + size - 1) // size


cdef inline Py_ssize_t equal_part(Py_ssize_t n, Py_ssize_t size, Py_ssize_t multiple) noexcept nogil:
    """Size of as few equal parts of n as have at most about `size` each; a multiple of `multiple`."""
    return divide_up(divide_up(n, divide_up(n, size)), multiple) * multiple


cdef inline Py_ssize_t part_begin(Py_ssize_t n, int part, int parts) noexcept nogil:
    """First of n items in a part; n for ``part == parts``. The last part also takes the remainder."""
    return n // parts * part if part < parts else n
