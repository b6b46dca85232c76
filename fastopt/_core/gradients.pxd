"""Gradients of one step, for the step table."""
from cpython.object cimport PyObject

from fastopt._core.rows cimport Rows, RowUpdater
from fastopt._core.span cimport FLOAT32, FLOAT64, NATIVE, Format, Kernels, Span

cdef extern from "fo_array.h":
    ctypedef struct fo_array:
        char* data
        int ndim
        Py_ssize_t* shape
        Py_ssize_t* strides
        PyObject* dtype
        int flags
    cdef enum:
        FO_ARRAY_C_CONTIGUOUS
        FO_ARRAY_ALIGNED
        FO_ARRAY_WRITEABLE

cdef enum GradLayout:
    DENSE = 0               # one span
    SPARSE_ROWS = 1         # row by row, the rows with a gradient
    ALL_ROWS = 2            # row by row, all of them: a row-wise rule
    ABSENT = 3              # no gradient: the parameter is left unchanged


cdef enum NodeKind:
    LEAF
    SEQUENCE
    MAPPING


cdef struct Node:
    # A container of the nesting, or an array.
    NodeKind kind
    Py_ssize_t first            # first of its `count` children, or index of the array
    Py_ssize_t count


cdef struct SavedArray:
    # What an array was when its address was taken.
    const fo_array* array
    char* data
    PyObject* dtype
    Py_ssize_t* shape
    Py_ssize_t* strides
    int ndim
    int flags                   # that must be set
    bint is_c                   # C-contiguous
    bint is_row_wise            # its gradient is bound by row
    Py_ssize_t itemsize
    Format format
    bint is_f64                 # whether the kernels compute in float64
    Py_ssize_t first            # index of its first element in the order of memory


cdef char* written_ptr(object a) except? NULL      # of an ndarray that a step writes
cdef bint same_order(object a, object b) except -1      # of the elements of two ndarrays of the same shape


cdef inline Format native_or(Format format, const SavedArray* param) noexcept:
    """NATIVE for the dtype in which the kernels compute, else the format itself."""
    return NATIVE if format == (FLOAT64 if param.is_f64 else FLOAT32) else format


cdef class GradSource:
    # Gradients that are not NumPy arrays, see `tensors.pyx`.
    cdef int bind_to(self, Gradients gradients) except -1


cdef class Gradients:
    cdef const Kernels* kernels
    cdef Span* spans                # of the step table
    cdef Py_ssize_t count
    cdef list params, paths, sparse, row_sums
    cdef object treedef
    cdef list watched               # the parameters, then the arrays that own their memory
    cdef Node* nodes                # of the nesting; the first is its root
    cdef list keys                  # of every node that is a dict, else None
    cdef SavedArray* saved          # one per watched array
    cdef Py_ssize_t* saved_shapes
    cdef Py_ssize_t n_watched
    cdef object other_dtype         # of the last gradient whose dtype was not that of its parameter
    cdef Format other_format
    cdef list bound                 # gradients whose addresses are in the spans; small ones stay bound
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
    cdef bint has_large             # a gradient is too large to stay bound
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
    cdef int save_treedef(self) except -1
    cdef bint bind_node(self, const Node* node, object grads) except -1
    cdef void bind_absent(self, const Node* node) noexcept
    cdef void bind_no_grad(self, Py_ssize_t k) noexcept
    cdef int bind_grad(self, Py_ssize_t k, object grad) except -1
    cdef bint bind_address(self, Py_ssize_t k, char* g) except -1
    cdef int bind_rows(self, Py_ssize_t k, Rows grad) except -1
    cdef object as_array(self, Py_ssize_t k, object grad)
    cdef int check(self, Py_ssize_t k, const fo_array* x, object grad) except -1
    cdef Format format_of(self, Py_ssize_t k, object given) except *
    cdef int copy(self, Py_ssize_t k, object grad) except -1
    cdef void set_grad(self, Py_ssize_t k, char* g, Format format) noexcept
    cdef void set_layout(self, Py_ssize_t k, char layout) noexcept
    cdef int sort_written(self, list arrays) except -1
    cdef bint is_written(self, Py_ssize_t k, char* g, Format format) except -1
    cdef bint overlaps_written(self, Py_ssize_t start, Py_ssize_t size) noexcept
    cdef int save_params(self) except -1
    cdef int check_params(self) except -1
    cdef int refuse_changed(self, Py_ssize_t k) except -1
