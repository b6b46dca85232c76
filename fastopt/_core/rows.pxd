"""Rows of a parameter: what the span table asks of them."""
from libc.stdint cimport int64_t

from fastopt._core.span cimport Job, Kernels, Span

cdef enum:
    DECAYED_ARRAYS = 4       # the parameter and the state arrays that a rule with a `IdleDecay` may have


cdef struct IdleDecay:
    # What becomes of a row without gradients.
    Py_ssize_t replay_steps[2]         # for float, for double: how many until the parameter stays; -1: for ever
    double factors[DECAYED_ARRAYS]       # what one step leaves of the parameter and of the state


cdef struct Fade:
    # Logarithm of a product of factors, and what rounding has taken from it: thousands of them are added.
    double sum, lost


cdef struct RowContext:
    # A parameter and the rows of one call, as the threads see them.
    Kernels kernels
    Span span                   # the whole parameter
    const Job* job
    char* totals                # for a row-wise rule what it accumulates of each row, else NULL
    Py_ssize_t count            # rows of the parameter
    Py_ssize_t width            # numbers in a row
    Py_ssize_t size             # bytes of a row
    bint whole                  # all rows are touched, and their gradients lie at `values`
    Py_ssize_t touched          # rows touched
    Py_ssize_t* rows            # which, ascending
    char** grads                # the gradient of each
    Py_ssize_t* order           # places in `values`, by row
    Py_ssize_t* first           # of touched row i: order[first[i]] to order[first[i + 1] - 1]
    char* values                # the gradients as they were given
    double* partial             # sum of squares of each touched row
    char* zeros                 # the gradient of a row that has none
    int64_t* last               # for each row how many of the past steps it has taken; NULL if all have all
    Job* past                   # the steps since `last` was made
    Fade* faded                 # what the steps before each leave, DECAYED_ARRAYS of them a step
    Py_ssize_t time             # number of past steps
    Py_ssize_t horizon          # after so many steps without a gradient a row rests; -1: never


cdef class Rows:
    cdef readonly object rows, grads


cdef class RowUpdater:
    cdef RowContext context
    cdef object param, values
    cdef str place
    cdef Py_ssize_t room, sums_room, past_room
    cdef char* pairs
    cdef char* sums

    cdef int select_rows(self, object rows, str name) except -1
    cdef int make_room(self, Py_ssize_t n) except -1
    cdef int gather(self) except -1
    cdef long long estimate(self, const RowContext* x) noexcept
    cdef void remember(self, const Job* job, const IdleDecay* rest) noexcept
    cdef void drop_deferred(self) noexcept
    cdef object check_values(self, Rows grad)
    cdef int bind_rows(self, Rows grad, object values) except -1
    cdef int bind_all_rows(self, char* values) except -1
    cdef int bind_no_rows(self) except -1
    cdef int enable_deferred(self) except -1
    cdef void update(self, const Job* job, const IdleDecay* rest) noexcept
    cdef void catch_up(self) noexcept
    cdef void catch_up_all(self) noexcept
    cdef double sum_squares(self) noexcept
    cdef bint all_finite(self, double scale) noexcept
    cdef object to_dense(self)
    cdef void release(self) noexcept


cdef object check_row_indices(object rows)
