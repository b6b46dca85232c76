"""Declarations that several compiled modules share."""
from cpython.mem cimport PyMem_Realloc
from libc.stdint cimport uint64_t
from libc.string cimport memset

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


cdef inline void* resize(void* block, Py_ssize_t n, Py_ssize_t size) except NULL:
    """Reallocate a block for n items."""
    cdef void* resized = PyMem_Realloc(block, max(n * size, 1))
    if resized == NULL:
        raise MemoryError()
    return resized


cdef inline void* alloc(Py_ssize_t n, Py_ssize_t size) except NULL:
    """Allocate n items of zeros, to be freed with `PyMem_Free`."""
    return memset(resize(NULL, n, size), 0, n * size)


cdef inline Py_ssize_t part_begin(Py_ssize_t n, int part, int parts) noexcept nogil:
    """First of n items in a part; n for ``part == parts``. The last part also takes the remainder."""
    return n // parts * part if part < parts else n
