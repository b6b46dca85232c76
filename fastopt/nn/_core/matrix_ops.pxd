"""Loops along the rows and columns of a block: sums, biases, layer and batch normalization.

A sum along a row is taken in a fixed number of lanes, so its bits do not depend on the width of the registers.
Rows may be much shorter than a register: elementwise loops with one value per column therefore treat a group
of short rows as one long row, and repeat the values of the columns to its length.
"""
from libc.math cimport sqrt
from libc.string cimport memcpy, memset

from fastopt._core.common cimport real
from fastopt.nn._core.layer_kernels cimport Block

cdef enum:
    LANES = 16          # partial sums of a row: as many as the widest registers need
    GROUP_SIZE = 128    # elements of a group of rows at most, unless a single row is longer


# --- Rows -------------------------------------------------------------------------------------------------

cdef inline double reduce_lanes(double* lane) noexcept nogil:
    """Sum of the lanes; each step adds the upper half to the lower."""
    cdef Py_ssize_t i
    for i in range(LANES // 2):
        lane[i] += lane[LANES // 2 + i]
    for i in range(LANES // 4):
        lane[i] += lane[LANES // 4 + i]
    for i in range(LANES // 8):
        lane[i] += lane[LANES // 8 + i]
    return lane[0] + lane[1]


cdef inline double row_sum(const real* x, Py_ssize_t n) noexcept nogil:
    """Lane j sums elements j, j + LANES, ...; the remaining elements are added to the sum of the lanes."""
    cdef double lane[LANES]
    cdef double total = 0.0
    cdef Py_ssize_t i, j, rows = n // LANES
    if rows > 0:
        memset(lane, 0, sizeof(lane))
        for i in range(rows):
            for j in range(LANES):
                lane[j] += <double> x[i * LANES + j]
        total = reduce_lanes(lane)
    for j in range(rows * LANES, n):
        total += <double> x[j]
    return total


cdef inline double row_product(const real* x, const real* y, Py_ssize_t n) noexcept nogil:
    """Sum of x y, in the order of `row_sum`."""
    cdef double lane[LANES]
    cdef double total = 0.0
    cdef Py_ssize_t i, j, rows = n // LANES
    if rows > 0:
        memset(lane, 0, sizeof(lane))
        for i in range(rows):
            for j in range(LANES):
                lane[j] += <double> x[i * LANES + j] * <double> y[i * LANES + j]
        total = reduce_lanes(lane)
    for j in range(rows * LANES, n):
        total += <double> x[j] * <double> y[j]
    return total


cdef inline real max_skip_nan(real x, real y) noexcept nogil:
    return y if y > x else x


cdef inline real row_max(const real* x, Py_ssize_t n) noexcept nogil:
    """The largest element; a NaN may be skipped. gcc vectorizes the loop only with twice the lanes of a sum."""
    cdef real lane[2 * LANES]
    cdef real largest = x[0]
    cdef Py_ssize_t i, j, rows = n // (2 * LANES)
    if rows > 0:
        memcpy(lane, x, sizeof(lane))
        for i in range(1, rows):
            for j in range(2 * LANES):
                lane[j] = max_skip_nan(lane[j], x[i * 2 * LANES + j])
        for j in range(2 * LANES):
            largest = max_skip_nan(largest, lane[j])
    for j in range(rows * 2 * LANES, n):
        largest = max_skip_nan(largest, x[j])
    return largest


cdef inline void multiply_add(real factor, real term, real* restrict x, Py_ssize_t n) noexcept nogil:
    """x = factor x + term"""
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = factor * x[i] + term


cdef inline void normalize_rows(const Block* x, double eps, real* z, real* rstd) noexcept nogil:
    """Per row: rstd = 1 / sqrt(variance + eps);  z = (z - mean) rstd"""
    cdef Py_ssize_t i
    cdef real* row
    for i in range(x.rows):
        row = z + i * x.n
        multiply_add(<real> 1, <real> (-row_sum(row, x.n) / x.n), row, x.n)
        rstd[i] = <real> (1.0 / sqrt(row_product(row, row, x.n) / x.n + eps))
        multiply_add(rstd[i], <real> 0, row, x.n)


cdef inline void normalize_row_backward(const real* restrict z, real rstd, real* restrict delta,
                                        Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef real mean = <real> (row_sum(delta, n) / n), product = <real> (row_product(delta, z, n) / n)
    for i in range(n):
        delta[i] = rstd * (delta[i] - mean - z[i] * product)


cdef inline void normalize_rows_backward(const Block* x, const real* z, const real* rstd,
                                         real* delta) noexcept nogil:
    """delta = rstd (delta - mean(delta) - z mean(delta z)) per row, with the normalized z"""
    cdef Py_ssize_t i
    for i in range(x.rows):
        normalize_row_backward(z + i * x.n, rstd[i], delta + i * x.n, x.n)


# --- Columns ----------------------------------------------------------------------------------------------

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
    cdef Py_ssize_t i, lo, size = x.rows * x.n, group = group_size(x)
    cdef real buffer[GROUP_SIZE]
    b = repeat(b, x.n, group, buffer)
    for lo from 0 <= lo < size by group:
        for i in range(min(group, size - lo)):
            z[lo + i] += b[i]


cdef inline void scale_columns(const Block* x, const real* scale, real* restrict delta) noexcept nogil:
    """delta = scale delta"""
    cdef Py_ssize_t i, lo, size = x.rows * x.n, group = group_size(x)
    cdef real buffer[GROUP_SIZE]
    scale = repeat(scale, x.n, group, buffer)
    for lo from 0 <= lo < size by group:
        for i in range(min(group, size - lo)):
            delta[lo + i] *= scale[i]


cdef inline void affine(const Block* x, const real* scale, const real* b, const real* restrict z,
                        real* restrict out) noexcept nogil:
    """out = scale z + b"""
    cdef Py_ssize_t i, lo, size = x.rows * x.n, group = group_size(x)
    cdef real buffers[2][GROUP_SIZE]
    scale = repeat(scale, x.n, group, buffers[0])
    b = repeat(b, x.n, group, buffers[1])
    for lo from 0 <= lo < size by group:
        for i in range(min(group, size - lo)):
            out[lo + i] = scale[i] * z[lo + i] + b[i]


cdef inline void normalize_columns(const Block* x, const real* mean, const real* rstd,
                                   real* restrict z) noexcept nogil:
    """z = (z - mean) rstd"""
    cdef Py_ssize_t i, lo, size = x.rows * x.n, group = group_size(x)
    cdef real buffers[2][GROUP_SIZE]
    mean = repeat(mean, x.n, group, buffers[0])
    rstd = repeat(rstd, x.n, group, buffers[1])
    for lo from 0 <= lo < size by group:
        for i in range(min(group, size - lo)):
            z[lo + i] = (z[lo + i] - mean[i]) * rstd[i]


cdef inline void normalize_columns_backward(const Block* x, const real* restrict z, const real* rstd,
                                            const real* total, const real* product, double count,
                                            real* restrict delta) noexcept nogil:
    """delta = rstd (delta - total / count - z product / count)"""
    cdef Py_ssize_t i, lo, size = x.rows * x.n, group = group_size(x)
    cdef real factor = <real> (1.0 / count)
    cdef real buffers[3][GROUP_SIZE]
    rstd = repeat(rstd, x.n, group, buffers[0])
    total = repeat(total, x.n, group, buffers[1])
    product = repeat(product, x.n, group, buffers[2])
    for lo from 0 <= lo < size by group:
        for i in range(min(group, size - lo)):
            delta[lo + i] = rstd[i] * (delta[lo + i] - factor * total[i] - z[lo + i] * (factor * product[i]))


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
    """Mean of each column, and sum of the squared deviations from it."""
    cdef Py_ssize_t j
    column_sums(x, z, mean)
    for j in range(x.n):
        mean[j] /= <real> x.rows
    sum_deviations(x, z, mean, squares)


cdef inline void update_average(double momentum, double value, real* average) noexcept nogil:
    cdef double old = <double> average[0]
    average[0] = <real> (old + momentum * (value - old))


cdef inline void merge_moments(const Block* batch, Py_ssize_t block, double eps, double momentum,
                               const real* means, const real* squares, real* mean, real* rstd,
                               real* running_mean, real* running_variance) noexcept nogil:
    """Mean and rstd of each column of a batch from the moments of its blocks (Chan et al. 1979).

    running = running + momentum (value - running), with the unbiased variance. `block`: rows per block.
    """
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
