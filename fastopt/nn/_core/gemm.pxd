"""Matrix products through the BLAS of NumPy."""

cdef struct Matrix:
    # A row-major array; the operand is its transpose if `transposed` is set.
    char* start
    Py_ssize_t ld               # leading dimension: elements from one row to the next
    bint transposed


cdef struct Gemm:
    # The matrix product for one dtype.
    void* function              # cblas_sgemm or cblas_dgemm; NULL: numpy.matmul
    void* vector_function       # cblas_sgemv or cblas_dgemv, for a single row or column; or NULL
    bint ilp64                  # the functions take 64-bit integers
    Py_ssize_t itemsize
    bint failed                 # a product through numpy.matmul raised an error; its result is undefined
    Py_ssize_t small            # the BLAS does not pack products of up to so many multiplications; or 0


cdef class Blas:
    cdef Gemm[2] gemms          # for float32, for float64
    cdef readonly str name
    cdef readonly bint direct   # the BLAS is called directly, not through NumPy
    cdef int (*get_threads)() noexcept nogil
    cdef void (*set_threads)(int) noexcept nogil
    cdef int users, saved_threads
    cdef int process            # in which the users count

    cdef int limit_threads(self) except -1
    cdef int restore_threads(self) except -1


cdef void matmul(Gemm* gemm, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, Matrix a, Matrix b,
                 Matrix c) noexcept nogil
