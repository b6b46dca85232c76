"""Row updates of one parameter, for the span table."""
from fastopt._core.deferred_rows cimport DeferredRows, IdleDecay
from fastopt._core.span cimport Kernels, Span, UpdateArgs


cdef struct RowContext:
    # A parameter and the active rows of one call, shared by all threads.
    Kernels kernels
    Span span                   # the whole parameter
    const UpdateArgs* args
    char* row_sums              # row-wise optimizers: the accumulated value of each row, else NULL
    Py_ssize_t n_rows           # of the parameter
    Py_ssize_t width            # elements per row
    Py_ssize_t row_bytes        # of its gradient
    Py_ssize_t row_stride       # elements from the beginning of a row to the next in the arrays of the span
    Py_ssize_t* offsets         # of the elements of a row, in items, if it is not contiguous; else NULL
    char* row_copy              # room for one row of each array of the span; used if `offsets` is not NULL
    bint all_rows               # every row is active, and `values` has the gradient of each
    Py_ssize_t n_active         # rows with a gradient
    Py_ssize_t* rows            # their indices, ascending
    char** grads                # the gradient of each
    Py_ssize_t* order           # indices into `values`, sorted by row
    Py_ssize_t* first           # active row i owns order[first[i]] to order[first[i + 1] - 1]
    char* values                # the gradients in the order of the caller
    double* square_sums         # sum of squares of the gradient of each active row
    char* zeros                 # a gradient of zero for one row
    DeferredRows deferred


cdef struct Pair:
    # A row index and its place in the gradient.
    Py_ssize_t row, index


cdef class Rows:
    cdef readonly object rows, grads


cdef class RowUpdater:
    cdef RowContext context
    cdef object param, values, dtype
    cdef str path
    cdef Py_ssize_t capacity    # active rows for which there is memory
    cdef Py_ssize_t sums_bytes
    cdef Pair* pairs            # the rows to sort, and as much scratch memory
    cdef char* sums             # summed gradients of rows that occur more than once

    cdef int set_offsets(self, param) except -1
    cdef object check_values(self, Rows grad)
    cdef int bind_rows(self, Rows grad, object values) except -1
    cdef int bind_all_rows(self, char* values) except -1
    cdef Py_ssize_t select_rows(self, object rows, str name) except -1
    cdef int reserve(self, Py_ssize_t n) except -1
    cdef int sum_duplicates(self) except -1
    cdef object to_dense(self)
    cdef void release(self) noexcept
    cdef double sum_squares(self) noexcept
    cdef bint all_finite(self, double scale) noexcept
    cdef void update(self, const UpdateArgs* args, const IdleDecay* idle) noexcept
    cdef int enable_deferred(self) except -1
    cdef void drop_deferred(self) noexcept
    cdef void catch_up(self) noexcept
    cdef void catch_up_all(self) noexcept


cdef object check_row_indices(object rows)
