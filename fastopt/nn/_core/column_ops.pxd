"""Operations with one value per column: biases, scales, batch normalization, and sums over the rows.

Rows may be much shorter than a register. Elementwise loops therefore treat a group of short rows as one
long row, and repeat the values of the columns to its length.
"""
from libc.math cimport sqrt
from libc.string cimport memcpy, memset

from fastopt._core.common cimport real
from fastopt.nn._core.layer_kernels cimport Block

cdef enum:
    GROUP_SIZE = 128    # elements of a group of rows at most, unless a single row is longer


cdef inline Py_ssize_t group_size(const Block* x) noexcept nogil:
    """Elements of a group of rows."""
    return x.n * min(max(GROUP_SIZE // x.n, 1), x.rows)


cdef inline const real* repeat(const real* v, Py_ssize_t n, Py_ssize_t size, real* buffer) noexcept nogil:
    """The n values of the columns, repeated to the size of a group; `buffer` is unused if that is one row."""
    cdef Py_ssize_t i
    if size == n:
        return v
    for i in range(size // n):
        memcpy(buffer + i * n, v, n * sizeof(real))
    return buffer


cdef inline void add_bias(const Block* x, const real* b, real* restrict z) noexcept nogil:
    """z = z + b"""
    cdef Py_ssize_t i, lo = 0, size = x.rows * x.n, group = group_size(x)
    cdef real buffer[GROUP_SIZE]
    b = repeat(b, x.n, group, buffer)
    while lo < size:
        for i in range(min(group, size - lo)):
            z[lo + i] += b[i]
        lo += group


cdef inline void scale_columns(const Block* x, const real* scale, real* restrict delta) noexcept nogil:
    """delta = scale delta"""
    cdef Py_ssize_t i, lo = 0, size = x.rows * x.n, group = group_size(x)
    cdef real buffer[GROUP_SIZE]
    scale = repeat(scale, x.n, group, buffer)
    while lo < size:
        for i in range(min(group, size - lo)):
            delta[lo + i] *= scale[i]
        lo += group


cdef inline void affine(const Block* x, const real* scale, const real* b, const real* restrict z,
                        real* restrict out) noexcept nogil:
    """out = scale z + b"""
    cdef Py_ssize_t i, lo = 0, size = x.rows * x.n, group = group_size(x)
    cdef real buffers[2][GROUP_SIZE]
    scale = repeat(scale, x.n, group, buffers[0])
    b = repeat(b, x.n, group, buffers[1])
    while lo < size:
        for i in range(min(group, size - lo)):
            out[lo + i] = scale[i] * z[lo + i] + b[i]
        lo += group


cdef inline void normalize_columns(const Block* x, const real* mean, const real* rstd,
                                   real* restrict z) noexcept nogil:
    """z = (z - mean) rstd"""
    cdef Py_ssize_t i, lo = 0, size = x.rows * x.n, group = group_size(x)
    cdef real buffers[2][GROUP_SIZE]
    mean = repeat(mean, x.n, group, buffers[0])
    rstd = repeat(rstd, x.n, group, buffers[1])
    while lo < size:
        for i in range(min(group, size - lo)):
            z[lo + i] = (z[lo + i] - mean[i]) * rstd[i]
        lo += group


cdef inline void normalize_columns_backward(const Block* x, const real* restrict z, const real* rstd,
                                            const real* total, const real* product, double count,
                                            real* restrict delta) noexcept nogil:
    """delta = rstd (delta - total / count - z product / count)"""
    cdef Py_ssize_t i, lo = 0, size = x.rows * x.n, group = group_size(x)
    cdef real factor = <real> (1.0 / count)
    cdef real buffers[3][GROUP_SIZE]
    rstd = repeat(rstd, x.n, group, buffers[0])
    total = repeat(total, x.n, group, buffers[1])
    product = repeat(product, x.n, group, buffers[2])
    while lo < size:
        for i in range(min(group, size - lo)):
            delta[lo + i] = rstd[i] * (delta[lo + i] - factor * total[i] - z[lo + i] * (factor * product[i]))
        lo += group


# --- Sums over the rows ---------------------------------------------------------------------------------

cdef inline void column_sums(const Block* x, const real* restrict delta, real* restrict total) noexcept nogil:
    """total[j] = sum over i of delta[i, j]"""
    cdef Py_ssize_t i, j
    memset(total, 0, x.n * sizeof(real))
    for i in range(x.rows):
        for j in range(x.n):
            total[j] += delta[i * x.n + j]


cdef inline void sum_products(const Block* x, const real* restrict z, const real* restrict delta,
                              real* restrict product) noexcept nogil:
    """product[j] = sum over i of delta[i, j] z[i, j]"""
    cdef Py_ssize_t i, j
    memset(product, 0, x.n * sizeof(real))
    for i in range(x.rows):
        for j in range(x.n):
            product[j] += delta[i * x.n + j] * z[i * x.n + j]


cdef inline void column_products(const Block* x, const real* z, const real* delta, real* total,
                                 real* product) noexcept nogil:
    column_sums(x, delta, total)
    sum_products(x, z, delta, product)


cdef inline void sum_deviations(const Block* x, const real* restrict z, const real* restrict mean,
                                real* restrict squares) noexcept nogil:
    """squares[j] = sum over i of (z[i, j] - mean[j])^2"""
    cdef Py_ssize_t i, j
    cdef real d
    memset(squares, 0, x.n * sizeof(real))
    for i in range(x.rows):
        for j in range(x.n):
            d = z[i * x.n + j] - mean[j]
            squares[j] += d * d


cdef inline void column_moments(const Block* x, const real* z, real* mean, real* squares) noexcept nogil:
    """Mean of each column and sum of the squared deviations from it."""
    cdef Py_ssize_t j
    column_sums(x, z, mean)
    for j in range(x.n):
        mean[j] /= <real> x.rows
    sum_deviations(x, z, mean, squares)


# --- Statistics of a batch ------------------------------------------------------------------------------

cdef inline void update_average(double momentum, double value, real* average) noexcept nogil:
    cdef double old = <double> average[0]
    average[0] = <real> (old + momentum * (value - old))


cdef inline void merge_moments(const Block* batch, Py_ssize_t block, double eps, double momentum,
                               const real* means, const real* squares, real* mean, real* rstd,
                               real* running_mean, real* running_variance) noexcept nogil:
    """Mean and rstd of each column from the moments of the blocks (Chan et al. 1979)."""
    cdef Py_ssize_t j, k, n = batch.n, blocks = (batch.rows + block - 1) // block
    cdef double m, variance, count, rows, distance, weight
    cdef double unbiased = <double> batch.rows / max(batch.rows - 1, 1)
    for j in range(n):
        m, variance, count = 0.0, 0.0, 0.0
        for k in range(blocks):
            rows = min(block, batch.rows - k * block)
            count += rows
            weight = rows / count
            distance = <double> means[k * n + j] - m
            m += distance * weight
            variance += <double> squares[k * n + j] + distance * distance * (count - rows) * weight
        variance /= count
        mean[j] = <real> m
        rstd[j] = <real> (1.0 / sqrt(variance + eps))
        update_average(momentum, m, running_mean + j)
        update_average(momentum, variance * unbiased, running_variance + j)


cdef inline void reciprocal_std(Py_ssize_t n, double eps, const real* variance, real* rstd) noexcept nogil:
    """rstd = 1 / sqrt(variance + eps)"""
    cdef Py_ssize_t j
    for j in range(n):
        rstd[j] = <real> (1.0 / sqrt(<double> variance[j] + eps))
