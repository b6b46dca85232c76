"""Gradients of one step, for the step table."""
from fastopt._core.rows cimport Rows, RowUpdater
from fastopt._core.span cimport Kernels, Span

cdef enum GradLayout:
    DENSE = 0               # one span
    SPARSE_ROWS = 1         # row by row, the rows with a gradient
    ALL_ROWS = 2            # row by row, all of them: a row-wise rule
    ABSENT = 3              # no gradient: the parameter is left unchanged


cdef class Gradients:
    cdef const Kernels* kernels
    cdef Span* spans                # of the step table
    cdef Py_ssize_t count
    cdef list params, paths, sparse, row_sums
    cdef object treedef
    cdef list cached                # gradients whose addresses are in the spans
    cdef list copies                # (index, original, copy) of gradients in another layout, for one step
    cdef list replaced              # (original, replacement) of gradients, for one step
    cdef list row_updaters          # one per parameter, or None until it is needed
    cdef char* layouts              # GradLayout of each gradient
    cdef char* writeable            # whether each gradient may be set to zero
    cdef Py_ssize_t* written        # start and end of every array that a step writes, ascending
    cdef Py_ssize_t written_count
    cdef str sparse_path            # path of a gradient of `Rows` in this step, or None
    cdef bint layout_changed        # a layout is not that of the previous step
    cdef bint address_changed       # an address has changed since gradients were last found disjoint
    cdef bint has_large             # a gradient is too large to be cached
    cdef bint has_rows              # a layout is not DENSE
    cdef bint has_absent            # a layout is ABSENT
    cdef bint has_deferred          # rows may have skipped steps

    cdef int bind(self, object grads) except -1
    cdef void update_layout(self) noexcept
    cdef void release(self) noexcept
    cdef int check_zeroable(self) except -1
    cdef void zero_originals(self)
    cdef void zero_all(self)
    cdef int replace(self, Py_ssize_t k, object grad) except -1
    cdef object original(self, Py_ssize_t k)
    cdef RowUpdater row_updater(self, Py_ssize_t k)
    cdef bint bind_tree(self, object treedef, object grads) except -1
    cdef void bind_absent(self, object treedef)
    cdef int bind_grad(self, Py_ssize_t k, object grad) except -1
    cdef int bind_rows(self, Py_ssize_t k, Rows grad) except -1
    cdef int check(self, Py_ssize_t k, object grad, const char* format, int ndim,
                   const Py_ssize_t* shape) except -1
    cdef int copy(self, Py_ssize_t k, object grad) except -1
    cdef void set_grad_ptr(self, Py_ssize_t k, char* g) noexcept
    cdef void set_layout(self, Py_ssize_t k, char layout) noexcept
    cdef int sort_written(self, list arrays) except -1
    cdef bint is_written(self, Py_ssize_t start, Py_ssize_t size) noexcept
