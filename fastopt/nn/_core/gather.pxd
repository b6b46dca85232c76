"""Copying the samples of a batch from the data set, converted to the network's dtype."""
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from fastopt._core.common cimport CACHE_LINE, fo_prefetch
from fastopt.nn._core.layer_kernels cimport FLOAT32, FLOAT64, SPARSE, UINT8, DataType
from fastopt.nn._core.net_context cimport Batch, NetContext


cdef inline Py_ssize_t element_size(DataType dtype) noexcept nogil:
    """Bytes of an element of the inputs; 0 if they are sparse."""
    if dtype == FLOAT64:
        return sizeof(double)
    if dtype == FLOAT32:
        return sizeof(float)
    return 1 if dtype == UINT8 else 0


cdef inline int64_t source_row(const Batch* batch, Py_ssize_t i) noexcept nogil:
    """Row of the data set that is sample i of the batch."""
    return i if batch.index == NULL else batch.index[i]


cdef inline void gather_row(const NetContext* ctx, Py_ssize_t i, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Copy columns [begin, end) of sample i."""
    cdef const Batch* batch = &ctx.batch
    cdef Py_ssize_t n = ctx.layers[0].inputs
    cdef int64_t row = source_row(batch, i), stored
    cdef char* out = batch.x + i * n * ctx.itemsize
    if batch.dtype == SPARSE:
        stored = batch.indptr[row]
        ctx.kernels.expand_row(batch.indptr[row + 1] - stored, batch.columns + stored,
                               batch.source_X + stored * ctx.itemsize, begin, end, out)
    else:
        ctx.kernels.convert(end - begin, batch.dtype,
                            batch.source_X + (row * n + begin) * element_size(batch.dtype),
                            out + begin * ctx.itemsize)


cdef inline void gather(const NetContext* ctx, Py_ssize_t first, Py_ssize_t last, Py_ssize_t begin,
                        Py_ssize_t end) noexcept nogil:
    """Copy columns [begin, end) of the samples [first, last), unless the batch is the data itself."""
    cdef const Batch* batch = &ctx.batch
    cdef Py_ssize_t i, k, n = ctx.layers[0].inputs, size = element_size(batch.dtype)
    if not batch.copied:
        return
    for i in range(first, last):
        if batch.dtype != SPARSE and i + 1 < last:      # the hardware prefetcher cannot predict a random row
            for k from begin * size <= k < end * size by CACHE_LINE:
                fo_prefetch(batch.source_X + source_row(batch, i + 1) * n * size + k)
        gather_row(ctx, i, begin, end)


cdef inline void gather_targets(const NetContext* ctx, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Copy targets and weights of the samples [first, last), unless the samples are consecutive."""
    cdef const Batch* batch = &ctx.batch
    cdef Py_ssize_t i, size = ctx.itemsize
    if batch.index == NULL:
        return
    for i in range(first, last):
        if batch.source_y != NULL:
            memcpy(batch.y + i * batch.y_bytes, batch.source_y + batch.index[i] * batch.y_bytes, batch.y_bytes)
        if batch.source_weight != NULL:
            memcpy(batch.weight + i * size, batch.source_weight + batch.index[i] * size, size)


cdef inline double total_weight(const NetContext* ctx) noexcept nogil:
    if ctx.batch.source_weight == NULL:
        return <double> ctx.batch.rows
    return ctx.kernels.sum_at(ctx.batch.rows, ctx.batch.index, ctx.batch.source_weight)
