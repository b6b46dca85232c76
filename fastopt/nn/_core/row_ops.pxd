"""Sums along a row, and layer normalization.

A sum is taken in a fixed number of lanes, so its bits do not depend on the width of the registers.
"""
from libc.math cimport sqrt
from libc.string cimport memcpy, memset

from fastopt._core.common cimport real
from fastopt.nn._core.layer_kernels cimport Block

cdef enum:
    LANES = 16      # partial sums of a row: as many as the widest registers need


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


cdef inline void normalize_row(double eps, real* restrict z, real* restrict rstd, Py_ssize_t n) noexcept nogil:
    multiply_add(<real> 1, <real> (-row_sum(z, n) / n), z, n)
    rstd[0] = <real> (1.0 / sqrt(row_product(z, z, n) / n + eps))
    multiply_add(rstd[0], <real> 0, z, n)


cdef inline void normalize_rows(const Block* x, double eps, real* z, real* rstd) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(x.rows):
        normalize_row(eps, z + i * x.n, rstd + i, x.n)


cdef inline void normalize_row_backward(const real* restrict z, real rstd, real* restrict delta,
                                        Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef real mean = <real> (row_sum(delta, n) / n), product = <real> (row_product(delta, z, n) / n)
    for i in range(n):
        delta[i] = rstd * (delta[i] - mean - z[i] * product)


cdef inline void normalize_rows_backward(const Block* x, const real* z, const real* rstd,
                                         real* delta) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(x.rows):
        normalize_row_backward(z + i * x.n, rstd[i], delta + i * x.n, x.n)
