"""Gradients of one step: checked against the parameters and bound to the spans.

The address of a gradient is stored in its parameter's span. A gradient in another memory layout, or one that
overlaps an array that the step writes, is copied first. Small gradient arrays are cached: if the
next step passes the same object, it need not be checked again.
"""
cimport cython
from cpython.buffer cimport (
    Py_buffer, PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.string cimport memset

from fastopt._core.runtime cimport data_ptr

from numpy import array, ascontiguousarray, generic, ndarray
from numpy.lib.array_utils import byte_bounds

from fastopt._core.pytree import explain_mismatch
from fastopt._core.rows import NO_ROWS
from fastopt._core.runtime import address
from fastopt._core.validation import is_masked

cdef enum:
    MAX_CACHED_GRAD_BYTES = 1 << 18     # a larger array must not be kept alive for the sake of a check


cdef inline bint is_large(const Span* x) noexcept:
    return x.n * (8 if x.is_f64 else 4) > MAX_CACHED_GRAD_BYTES


cdef class Gradients:
    """Binds the gradients of each step.

    Parameters
    ----------
    treedef
        Nesting of the parameters as `pytree.flatten` returns it.
    paths : list of str
        Name of each gradient in errors: ``grads[2]["W"]``.
    params : list of ndarray
    sparse : list of str
        Meaning of a gradient of `Rows`: "dense", "lazy" or "exact"; "" if it is not supported.
    row_sums : list of ndarray or None
        Accumulated values of a row-wise rule, one per row.
    written : list of ndarray
        All arrays that a step writes.
    """

    def __cinit__(self, object treedef, list paths, list params, list sparse, list row_sums, list written):
        self.count = len(params)
        self.treedef, self.paths, self.params = treedef, paths, params
        self.sparse, self.row_sums = sparse, row_sums
        self.cached, self.row_updaters = [None] * self.count, [None] * self.count
        self.copies, self.replaced = [], []
        self.layouts = <char*> PyMem_Calloc(self.count + 1, 1)
        self.writeable = <char*> PyMem_Calloc(self.count + 1, 1)
        if self.layouts == NULL or self.writeable == NULL:
            raise MemoryError()
        self.sort_written(written)

    def __dealloc__(self):
        PyMem_Free(self.layouts)
        PyMem_Free(self.writeable)
        PyMem_Free(self.written)

    cdef int sort_written(self, list arrays) except -1:
        """Sort the address ranges of all arrays that a step writes: no gradient may lie in one of them."""
        cdef Py_ssize_t i
        ranges = sorted([(address(a), a.nbytes) for a in arrays if a.nbytes])
        self.written_count = len(ranges)
        self.written = <Py_ssize_t*> PyMem_Calloc(2 * self.written_count + 1, sizeof(Py_ssize_t))
        if self.written == NULL:
            raise MemoryError()
        for i in range(self.written_count):
            first, size = ranges[i]
            self.written[2 * i], self.written[2 * i + 1] = first, first + size
        return 0

    cdef bint is_written(self, Py_ssize_t start, Py_ssize_t size) noexcept:
        """Whether a step writes anything in [start, start + size)."""
        cdef Py_ssize_t lo = 0, hi = self.written_count, mid
        while lo < hi:              # the first range that ends after the start
            mid = (lo + hi) // 2
            if self.written[2 * mid + 1] <= start:
                lo = mid + 1
            else:
                hi = mid
        return lo < self.written_count and self.written[2 * lo] < start + size

    # --- Binding ---

    cdef int bind(self, object grads) except -1:
        """Bind the gradients of a step; on an error the caller must call `release`."""
        cdef Py_ssize_t k
        if not self.bind_tree(self.treedef, grads):
            explain_mismatch(self.treedef, grads)
        if self.has_rows or self.layout_changed:
            for k in range(self.count):
                if self.layouts[k] == ALL_ROWS:
                    (<RowUpdater> self.row_updaters[k]).bind_all_rows(self.spans[k].g)
        return 0

    @cython.boundscheck(True)       # a list may shrink while its items are read
    cdef bint bind_tree(self, object treedef, object grads) except -1:
        """Bind every gradient of a nesting; False if it is not the nesting of the parameters."""
        cdef Py_ssize_t i, found = 0
        if type(treedef) is int:
            self.bind_grad(treedef, grads)
            return True
        if grads is None:
            self.bind_absent(treedef)
            return True
        if type(treedef) is tuple:
            if type(grads) is list:
                if len(<list> grads) != len(<tuple> treedef):
                    return False
                for i in range(len(<tuple> treedef)):
                    if not self.bind_tree((<tuple> treedef)[i], (<list> grads)[i]):
                        return False
                return True
            if not isinstance(grads, (list, tuple)) or len(grads) != len(<tuple> treedef):
                return False
            for i in range(len(<tuple> treedef)):
                if not self.bind_tree((<tuple> treedef)[i], grads[i]):
                    return False
            return True
        if not isinstance(grads, dict):
            return False
        for key, inner in (<dict> treedef).items():
            if key not in grads:
                self.bind_absent(inner)
            elif self.bind_tree(inner, grads[key]):
                found += 1
            else:
                return False
        return found == len(grads)

    cdef void bind_absent(self, object treedef):
        """Bind no gradient to any parameter of a nesting."""
        if type(treedef) is int:
            self.cached[treedef] = None
            self.set_layout(treedef, ABSENT)
        else:
            for inner in (treedef.values() if type(treedef) is dict else treedef):
                self.bind_absent(inner)

    cdef int bind_grad(self, Py_ssize_t k, object grad) except -1:
        """Bind one gradient, unless it is the cached object of the previous step."""
        cdef Py_buffer view
        if grad is None:
            self.bind_absent(k)
            return 0
        if grad is self.cached[k]:
            return 0
        self.cached[k] = None
        if type(grad) is Rows:
            return self.bind_rows(k, grad)
        self.set_layout(k, DENSE if self.row_sums[k] is None else ALL_ROWS)
        if isinstance(grad, generic):
            grad = ascontiguousarray(grad).reshape(())
            grad.flags.writeable = False
        if type(grad) is not ndarray and (not isinstance(grad, ndarray) or is_masked(grad)):
            raise TypeError(f"{self.paths[k]}: expected a NumPy array, got {type(grad).__name__}")
        PyObject_GetBuffer(grad, &view, PyBUF_STRIDES | PyBUF_FORMAT)
        try:
            self.check(k, grad, view.format, view.ndim, view.shape)
            if (PyBuffer_IsContiguous(&view, b"C") and <Py_ssize_t> view.buf % view.itemsize == 0
                    and not self.is_written(<Py_ssize_t> view.buf, view.len)):
                self.set_grad_ptr(k, <char*> view.buf)
                self.writeable[k] = not view.readonly
                self.cached[k] = grad
                return 0
        finally:
            PyBuffer_Release(&view)
        return self.copy(k, grad)

    cdef int check(self, Py_ssize_t k, object grad, const char* format, int ndim,
                   const Py_ssize_t* shape) except -1:
        """Raise unless dtype and shape are those of the parameter."""
        cdef Py_ssize_t i
        cdef object param = self.params[k]
        cdef tuple expected = param.shape
        cdef bint same
        if format[0] == c"=":           # NumPy's mark of an unaligned array
            format += 1
        if format[0] != (c"d" if self.spans[k].is_f64 else c"f") or format[1] != 0:
            raise TypeError(f"{self.paths[k]}: expected dtype {param.dtype} as the parameter has, "
                            f"got {grad.dtype.str if not grad.dtype.isnative else grad.dtype}")
        same = ndim == len(expected)
        for i in range(ndim if same else 0):
            same = same and shape[i] == <Py_ssize_t> expected[i]
        if not same:
            raise ValueError(f"{self.paths[k]}: expected shape {expected} as the parameter has, "
                             f"got {grad.shape}")
        return 0

    cdef int copy(self, Py_ssize_t k, object grad) except -1:
        """Bind a C-contiguous copy of a gradient."""
        copied = array(grad, order="C", copy=True)
        self.set_grad_ptr(k, data_ptr(copied, False))
        self.writeable[k] = grad.flags.writeable
        self.copies.append((k, grad, copied))
        return 0

    cdef int bind_rows(self, Py_ssize_t k, Rows grad) except -1:
        """Bind the gradient of some rows; with sparse="dense" as an array with zeros elsewhere."""
        cdef RowUpdater updater = self.row_updater(k)
        self.sparse_path = self.paths[k]
        if not self.sparse[k]:
            raise ValueError(f"{self.paths[k]}: this optimizer steps whole arrays: expected an array, "
                             "or an optimizer with sparse='dense', got Rows")
        if grad is NO_ROWS:
            self.bind_absent(k)
            return 0
        values = updater.check_values(grad)
        if not len(values):
            updater.release()
            self.bind_absent(k)
            return 0
        if self.is_written(address(values, False), values.nbytes):
            values = values.copy()
        updater.bind_rows(grad, values)
        if self.sparse[k] == "dense":
            dense = updater.to_dense()
            updater.release()
            return self.bind_grad(k, dense)
        if self.sparse[k] == "exact":
            updater.enable_deferred()
            self.has_deferred = True
        self.set_layout(k, SPARSE_ROWS)
        return 0

    cdef RowUpdater row_updater(self, Py_ssize_t k):
        cdef RowUpdater updater
        if self.row_updaters[k] is None:
            updater = RowUpdater(self.params[k], self.paths[k], self.row_sums[k])
            updater.context.kernels, updater.context.span = self.kernels[0], self.spans[k]
            self.row_updaters[k] = updater
        return self.row_updaters[k]

    cdef void set_layout(self, Py_ssize_t k, char layout) noexcept:
        self.layout_changed = self.layout_changed or self.layouts[k] != layout
        self.layouts[k] = layout

    cdef void set_grad_ptr(self, Py_ssize_t k, char* g) noexcept:
        self.address_changed = self.address_changed or self.spans[k].g != g
        self.spans[k].g = g

    cdef void update_layout(self) noexcept:
        """Summarize the layouts after they have changed."""
        cdef Py_ssize_t k
        self.has_large = self.has_rows = self.has_absent = self.layout_changed = False
        for k in range(self.count):
            self.has_large = self.has_large or is_large(&self.spans[k])
            self.has_rows = self.has_rows or self.layouts[k] != DENSE
            self.has_absent = self.has_absent or self.layouts[k] == ABSENT

    # --- During a step ---

    cdef object original(self, Py_ssize_t k):
        """The gradient that was bound, or its copy."""
        for i, _, copied in self.copies:
            if i == k:
                return copied
        return self.cached[k]

    cdef int replace(self, Py_ssize_t k, object grad) except -1:
        """Bind another array in place of a gradient for the rest of the step."""
        grad = ascontiguousarray(grad)
        self.replaced.append((self.original(k), grad))
        self.set_grad_ptr(k, data_ptr(grad, False))
        self.cached[k] = None
        self.spans[k].unit_scale = NULL
        return 0

    cdef int check_zeroable(self) except -1:
        """Raise if setting a gradient to zero would change another one or an array that the step writes."""
        cdef Py_ssize_t k
        cdef list ranges = []
        if self.sparse_path is not None:
            raise ValueError(f"{self.sparse_path}: zero_grad=True needs an array, got Rows")
        for k in range(self.count):
            if self.layouts[k] != ABSENT and not self.writeable[k]:
                raise ValueError(f"{self.paths[k]}: zero_grad=True needs a writeable array, got a read-only one")
        for k, grad, _ in self.copies:
            low, high = byte_bounds(grad)
            if self.is_written(low, high - low):
                raise ValueError(f"{self.paths[k]}: zero_grad=True, but the array shares memory with a "
                                 "parameter or state of the optimizer")
        if not self.address_changed:
            return 0
        for k in range(self.count):
            if self.params[k].size and self.layouts[k] != ABSENT:
                first = <Py_ssize_t> self.spans[k].g
                ranges.append((first, first + self.params[k].nbytes, k))
        ranges.sort()
        for k in range(1, len(ranges)):
            if ranges[k][0] < ranges[k - 1][1]:
                raise ValueError(f"{self.paths[ranges[k - 1][2]]} and {self.paths[ranges[k][2]]} "
                                 "share memory: with zero_grad=True one would be zeroed before it is used")
        self.address_changed = False
        return 0

    cdef void zero_originals(self):
        """Set those gradients to zero that the kernels have not seen themselves."""
        for _, grad, _ in self.copies:
            grad[...] = 0
        for grad, _ in self.replaced:
            grad[...] = 0

    cdef void zero_all(self):
        """Set all gradients to zero."""
        cdef Py_ssize_t k
        for k in range(self.count):
            if self.layouts[k] != ABSENT:
                memset(self.spans[k].g, 0, self.params[k].nbytes)
        self.zero_originals()

    cdef void release(self) noexcept:
        """Drop copies, and references to gradients that are too large to be cached."""
        cdef Py_ssize_t k
        self.sparse_path = None
        if self.has_rows:
            for k in range(self.count):
                if self.layouts[k] != DENSE:
                    self.cached[k] = None
                    if self.row_updaters[k] is not None:
                        (<RowUpdater> self.row_updaters[k]).release()
        if self.copies:
            self.copies.clear()
        if self.replaced:
            self.replaced.clear()
        if self.has_large:
            for k in range(self.count):
                if is_large(&self.spans[k]):
                    self.cached[k] = None
