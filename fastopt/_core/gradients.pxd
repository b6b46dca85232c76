"""Gradients of one step, for the step table."""
from fastopt._core.rows cimport Rows, RowUpdater
from fastopt._core.span cimport Kernels, Span


cdef class Gradients:
    cdef const Kernels* kernels
    cdef Span* spans                # of the step table
    cdef list params, paths, sparse, row_sums
    cdef list cached                # gradients whose addresses are in the spans
    cdef list uncached              # indices of gradients that are released after each step
    cdef list copies                # (index, original, copy) of gradients in another layout, for one step
    cdef list replaced              # (original, replacement) of gradients, for one step
    cdef list row_updaters          # one per parameter, or None until it is needed
    cdef list active                # those of the gradients that this step uses row by row, ascending
    cdef char* by_row               # whether each gradient was last used row by row
    cdef char* writeable            # whether each gradient may be set to zero
    cdef Py_ssize_t* written        # start and end of every array that a step writes, ascending
    cdef Py_ssize_t written_count
    cdef str sparse_path            # path of a gradient of `Rows` in this step, or None
    cdef bint layout_changed        # `by_row` is not that of the previous step
    cdef bint address_changed       # an address has changed since gradients were last found disjoint
    cdef bint has_deferred          # rows may have skipped steps

    cdef bint bind_tree(self, object treedef, object grads) except -1
    cdef int bind_grad(self, Py_ssize_t k, object grad) except -1
    cdef int bind_rows(self, Py_ssize_t k, Rows grad) except -1
    cdef RowUpdater row_updater(self, Py_ssize_t k)
    cdef void set_layout(self, Py_ssize_t k, bint by_row) noexcept
    cdef void set_grad_ptr(self, Py_ssize_t k, char* g) noexcept
    cdef object original(self, Py_ssize_t k)
    cdef bint is_written(self, Py_ssize_t start, Py_ssize_t size) noexcept
    cdef int check_zeroable(self) except -1
    cdef void release(self) noexcept
