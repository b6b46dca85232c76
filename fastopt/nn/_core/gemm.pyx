"""Matrix products through the BLAS of NumPy, or through `numpy.matmul` if that BLAS is unknown.

Every product runs on the thread that calls it: the network's passes parallelize over blocks of samples and
over tiles of weights, and a BLAS with threads of its own would compete with the pool.
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int32_t, int64_t

from fastopt._core.common cimport equal_part, real
from fastopt._core.runtime cimport process_number

import numpy as np

cdef enum:                      # constants of CBLAS
    ROW_MAJOR = 101
    NO_TRANS = 111
    TRANS = 112

# Sizes of the small products into which a large one is divided if the BLAS does not pack small matrices. It
# multiplies those as fast as possible while the columns of b stay in the cache.
cdef enum:
    COLUMN_BYTES = 256          # of a row of b: as many columns as fill the registers
    DEPTH = 256                 # rows of b, at most
    TRANSPOSED_ROWS = 16        # of a, if b is transposed
    TRANSPOSED_COLUMNS = 32     # of b, if it is transposed
    TRANSPOSED_DEPTH = 1024     # rows of b, at most, if it is transposed
    MIN_TRANSPOSED_DEPTH = 128  # with fewer rows, products with a transposed b are faster packed

ctypedef fused blas_int:
    int32_t
    int64_t


cdef inline char* element_ptr(const Matrix* x, Py_ssize_t i, Py_ssize_t j, Py_ssize_t size) noexcept nogil:
    """Address of element (i, j) of the operand."""
    return x.start + (j * x.ld + i if x.transposed else i * x.ld + j) * size


cdef inline int trans(const Matrix* x) noexcept nogil:
    return TRANS if x.transposed else NO_TRANS


cdef void call_blas(void* function, real one, real beta, blas_int m, blas_int n, blas_int k, const Matrix* a,
                    const Matrix* b, const Matrix* c) noexcept nogil:
    (<void (*)(int, int, int, blas_int, blas_int, blas_int, real, const real*, blas_int, const real*, blas_int,
               real, real*, blas_int) noexcept nogil> function)(
        ROW_MAJOR, trans(a), trans(b), m, n, k, one, <const real*> a.start, <blas_int> a.ld,
        <const real*> b.start, <blas_int> b.ld, beta, <real*> c.start, <blas_int> c.ld)


cdef void call_gemv(void* function, real one, blas_int m, blas_int n, const Matrix* a, const char* x,
                    blas_int x_stride, char* y, blas_int y_stride) noexcept nogil:
    """y = a x, or its transpose times x; the array of `a` has shape (m, n)."""
    (<void (*)(int, int, blas_int, blas_int, real, const real*, blas_int, const real*, blas_int, real, real*,
               blas_int) noexcept nogil> function)(
        ROW_MAJOR, trans(a), m, n, one, <const real*> a.start, <blas_int> a.ld, <const real*> x, x_stride,
        <real> 0, <real*> y, y_stride)


cdef void multiply_vector(const Gemm* gemm, Py_ssize_t m, Py_ssize_t k, Matrix a, const Matrix* x, bint is_row,
                          char* y, Py_ssize_t y_stride) noexcept nogil:
    """y = a x, with a of shape (m, k); x is a row or a column of an array."""
    cdef Py_ssize_t rows = k if a.transposed else m, columns = m if a.transposed else k
    cdef Py_ssize_t x_stride = 1 if is_row else x.ld
    if gemm.itemsize == 8 and gemm.ilp64:
        call_gemv[double, int64_t](gemm.vector_function, 1.0, rows, columns, &a, x.start, x_stride, y, y_stride)
    elif gemm.itemsize == 8:
        call_gemv[double, int32_t](gemm.vector_function, 1.0, <int32_t> rows, <int32_t> columns, &a, x.start,
                                   <int32_t> x_stride, y, <int32_t> y_stride)
    elif gemm.ilp64:
        call_gemv[float, int64_t](gemm.vector_function, <float> 1, rows, columns, &a, x.start, x_stride, y,
                                  y_stride)
    else:
        call_gemv[float, int32_t](gemm.vector_function, <float> 1, <int32_t> rows, <int32_t> columns, &a, x.start,
                                  <int32_t> x_stride, y, <int32_t> y_stride)


cdef void call_numpy(Gemm* gemm, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const Matrix* a,
                     const Matrix* b, const Matrix* c) noexcept with gil:
    try:
        np.matmul(as_array(gemm, m, k, a), as_array(gemm, k, n, b), out=as_array(gemm, m, n, c))
    except BaseException:       # MemoryError; the pass raises it when its threads have finished
        gemm.failed = True


cdef object as_array(const Gemm* gemm, Py_ssize_t m, Py_ssize_t n, const Matrix* x):
    cdef Py_ssize_t size = gemm.itemsize, rows = n if x.transposed else m, columns = m if x.transposed else n
    memory = PyMemoryView_FromMemory(x.start, ((rows - 1) * x.ld + columns) * size, PyBUF_WRITE)
    array = np.ndarray((rows, columns), f"f{size}", memory, 0, (x.ld * size, size))
    return array.T if x.transposed else array


cdef void multiply(Gemm* gemm, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const Matrix* a, const Matrix* b,
                   const Matrix* c, bint add) noexcept nogil:
    """c = a b, or c = c + a b, which `numpy.matmul` does not compute."""
    if gemm.function == NULL:
        call_numpy(gemm, m, n, k, a, b, c)
    elif gemm.itemsize == 8 and gemm.ilp64:
        call_blas[double, int64_t](gemm.function, 1.0, add, m, n, k, a, b, c)
    elif gemm.itemsize == 8:
        call_blas[double, int32_t](gemm.function, 1.0, add, <int32_t> m, <int32_t> n, <int32_t> k, a, b, c)
    elif gemm.ilp64:
        call_blas[float, int64_t](gemm.function, <float> 1, <float> add, m, n, k, a, b, c)
    else:
        call_blas[float, int32_t](gemm.function, <float> 1, <float> add, <int32_t> m, <int32_t> n, <int32_t> k, a,
                                  b, c)


cdef void matmul(Gemm* gemm, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, Matrix a, Matrix b,
                 Matrix c) noexcept nogil:
    """c = a b, with a of shape (m, k) and b of shape (k, n). A single row or column is a product with a vector.

    If the BLAS multiplies small matrices without packing them, a large product is divided into small ones, and
    each part of c is the sum of those along its depth, in their order.
    """
    cdef Py_ssize_t size = gemm.itemsize, i, j, z, rows, columns = COLUMN_BYTES // size, depth
    cdef Matrix a_part = a, b_part = b, c_part = c
    if gemm.vector_function != NULL and m == 1:
        multiply_vector(gemm, n, k, Matrix(b.start, b.ld, not b.transposed), &a, not a.transposed, c.start, 1)
        return
    if gemm.vector_function != NULL and n == 1:
        multiply_vector(gemm, m, k, a, &b, b.transposed, c.start, c.ld)
        return
    if gemm.small == 0 or (k < MIN_TRANSPOSED_DEPTH if b.transposed else m * n * k <= gemm.small):
        multiply(gemm, m, n, k, &a, &b, &c, False)
        return
    if b.transposed:
        rows, columns, depth = TRANSPOSED_ROWS, TRANSPOSED_COLUMNS, equal_part(k, TRANSPOSED_DEPTH, 4)
    else:
        depth = equal_part(k, DEPTH, 4)
        rows = equal_part(m, 4 * max(gemm.small // (4 * min(columns, n) * depth), 1), 4)
        columns *= max(gemm.small // (columns * rows * depth), 1)
    for z from 0 <= z < k by depth:
        for j from 0 <= j < n by columns:
            b_part.start = element_ptr(&b, z, j, size)
            for i from 0 <= i < m by rows:
                a_part.start = element_ptr(&a, i, z, size)
                c_part.start = element_ptr(&c, i, j, size)
                multiply(gemm, min(rows, m - i), min(columns, n - j), min(depth, k - z), &a_part, &b_part, &c_part,
                         z > 0)


cdef class Blas:
    """The matrix products of a BLAS and its number of threads.

    `sgemm`, `dgemm`, `sgemv`, `dgemv`, `get_threads` and `set_threads` are addresses of CBLAS functions and of the
    functions that read and set the number of threads; 0 if the BLAS lacks them. `ilp64`: its integers have 64
    bits. `small`: it does not pack products of up to so many multiplications; 0 if it always packs.
    """

    def __init__(self, str name, Py_ssize_t sgemm=0, Py_ssize_t dgemm=0, Py_ssize_t sgemv=0,
                 Py_ssize_t dgemv=0, bint ilp64=False, Py_ssize_t get_threads=0, Py_ssize_t set_threads=0,
                 Py_ssize_t small=0):
        self.name = name
        self.direct = sgemm != 0
        self.gemms[0] = Gemm(<void*> sgemm, <void*> sgemv, ilp64, sizeof(float), False, small)
        self.gemms[1] = Gemm(<void*> dgemm, <void*> dgemv, ilp64, sizeof(double), False, small)
        self.get_threads = <int (*)() noexcept nogil> <void*> get_threads
        self.set_threads = <void (*)(int) noexcept nogil> <void*> set_threads

    @property
    def n_threads(self):
        """Number of threads outside of passes; None if the BLAS cannot read or set it."""
        if self.get_threads == NULL or self.set_threads == NULL:
            return None
        return self.saved_threads if self.users else self.get_threads()

    @n_threads.setter
    def n_threads(self, int n):
        if self.set_threads == NULL:
            raise AttributeError(f"the number of threads of {self.name} cannot be set")
        with cython.critical_section(self):
            self.saved_threads = n
            if not self.users:      # otherwise it takes effect after the passes of other threads
                self.set_threads(n)

    @cython.critical_section
    cdef int limit_threads(self) except -1:
        """Limit the BLAS to one thread until `restore_threads` has been called equally often."""
        if self.get_threads != NULL and self.set_threads != NULL:
            if self.users and self.process != process_number():
                self.users = 0          # this process was forked during a pass
                self.set_threads(self.saved_threads)
            if self.users == 0:
                self.process = process_number()
                self.saved_threads = self.get_threads()
                if self.saved_threads != 1:
                    self.set_threads(1)
            self.users += 1
        return 0

    @cython.critical_section
    cdef int restore_threads(self) except -1:
        if self.get_threads != NULL and self.set_threads != NULL:
            self.users -= 1
            if self.users == 0 and self.saved_threads != 1:
                self.set_threads(self.saved_threads)
        return 0
