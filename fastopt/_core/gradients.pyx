"""Gradients of one step: checked against the parameters and bound to the spans.

The address of a gradient is stored in its parameter's span. A gradient in another memory layout, or one that
overlaps an array that the step writes, is copied first. Small gradient arrays are cached: if the
next step passes the same object, it need not be checked again.
"""
cimport cython
from cpython.buffer cimport (
    Py_buffer, PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_Free

from fastopt._core.common cimport alloc
from fastopt._core.deferred_rows cimport reserve_step
from fastopt._core.runtime cimport data_ptr
from fastopt._core.span cimport G

from numpy import array, ascontiguousarray, generic, ndarray, zeros_like
from numpy.lib.array_utils import byte_bounds

from fastopt._core.rows import NO_ROWS
from fastopt._core.runtime import address
from fastopt._core.validation import is_masked

cdef enum:
    MAX_CACHED_GRAD_BYTES = 1 << 18     # a larger array must not be kept alive for the sake of a check


cdef int check(str path, object param, bint is_f64, object grad, const Py_buffer* view) except -1:
    """Raise unless dtype and shape are those of the parameter."""
    cdef tuple shape = param.shape
    cdef const char* format = view.format
    cdef bint same = view.ndim == len(shape)
    cdef int i
    if format[0] == c"=":           # NumPy's mark of an unaligned array
        format += 1
    if format[0] != (c"d" if is_f64 else c"f") or format[1] != 0:
        raise TypeError(f"{path}: expected dtype {param.dtype} as the parameter has, "
                        f"got {grad.dtype.str if not grad.dtype.isnative else grad.dtype}")
    for i in range(view.ndim if same else 0):
        same = same and view.shape[i] == <Py_ssize_t> shape[i]
    if not same:
        raise ValueError(f"{path}: expected shape {shape} as the parameter has, got {grad.shape}")
    return 0


cdef class Gradients:
    """Binds the gradients of each step to the spans of the `entries` of a step table.

    `written` are all arrays that a step writes. The table sets `spans` and `kernels`.
    """

    def __cinit__(self, list paths, list entries, list written):
        cdef Py_ssize_t i, count = len(entries)
        self.paths, self.params = paths, [e.param for e in entries]
        self.sparse, self.row_sums = [e.sparse for e in entries], [e.row_sums for e in entries]
        self.uncached = [k for k, e in enumerate(entries)
                         if e.param.nbytes > MAX_CACHED_GRAD_BYTES or e.row_sums is not None]
        self.cached, self.row_updaters = [None] * count, [None] * count
        self.copies, self.replaced, self.active = [], [], []
        self.by_row, self.writeable = <char*> alloc(count, 1), <char*> alloc(count, 1)
        ranges = sorted([(address(a), a.nbytes) for a in written if a.nbytes])
        self.written_count = len(ranges)
        self.written = <Py_ssize_t*> alloc(2 * self.written_count, sizeof(Py_ssize_t))
        for i in range(self.written_count):
            first, size = ranges[i]
            self.written[2 * i], self.written[2 * i + 1] = first, first + size

    def __dealloc__(self):
        PyMem_Free(self.by_row)
        PyMem_Free(self.writeable)
        PyMem_Free(self.written)

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

    @cython.boundscheck(True)       # a list may shrink while its items are read
    cdef bint bind_tree(self, object treedef, object grads) except -1:
        """Bind every gradient of a nesting; False if it is not the nesting of the parameters."""
        cdef Py_ssize_t i
        cdef list items
        if type(treedef) is int:
            self.bind_grad(treedef, grads)
            return True
        if type(treedef) is tuple:
            if not isinstance(grads, (list, tuple)) or len(grads) != len(<tuple> treedef):
                return False
            items = grads if type(grads) is list else list(grads)
            for i in range(len(<tuple> treedef)):
                if not self.bind_tree((<tuple> treedef)[i], items[i]):
                    return False
            return True
        if not isinstance(grads, dict) or len(grads) != len(<dict> treedef):
            return False
        for key, inner in (<dict> treedef).items():
            if key not in grads or not self.bind_tree(inner, grads[key]):
                return False
        return True

    cdef int bind_grad(self, Py_ssize_t k, object grad) except -1:
        """Bind one gradient, unless it is the cached object of the previous step."""
        cdef Py_buffer view
        if grad is not None and grad is self.cached[k]:
            return 0
        self.cached[k] = None
        if type(grad) is Rows:
            return self.bind_rows(k, grad)
        self.set_layout(k, self.row_sums[k] is not None)
        if self.by_row[k]:
            self.row_updater(k).bind_all_rows()
            self.active.append(self.row_updaters[k])
        if isinstance(grad, generic):
            grad = ascontiguousarray(grad).reshape(())
            grad.flags.writeable = False
        if type(grad) is not ndarray and (not isinstance(grad, ndarray) or is_masked(grad)):
            raise TypeError(f"{self.paths[k]}: expected a NumPy array, got {type(grad).__name__}")
        PyObject_GetBuffer(grad, &view, PyBUF_STRIDES | PyBUF_FORMAT)
        try:
            check(self.paths[k], self.params[k], self.spans[k].is_f64, grad, &view)
            if (PyBuffer_IsContiguous(&view, b"C") and <Py_ssize_t> view.buf % view.itemsize == 0
                    and not self.is_written(<Py_ssize_t> view.buf, view.len)):
                self.set_grad_ptr(k, <char*> view.buf)
                self.writeable[k] = not view.readonly
                self.cached[k] = grad
                return 0
        finally:
            PyBuffer_Release(&view)
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
            updater.context.all_rows, updater.context.n_active = False, 0
        else:
            values = updater.check_values(grad)
            if self.is_written(address(values, False), values.nbytes):
                values = values.copy()
            updater.bind_rows(grad, values)
        if self.sparse[k] == "dense":
            dense = zeros_like(self.params[k]) if grad is NO_ROWS else updater.to_dense()
            updater.values = None
            return self.bind_grad(k, dense)
        if self.sparse[k] == "exact":       # rows without a gradient defer this step
            reserve_step(&updater.context.deferred, updater.context.n_rows)
            self.has_deferred = True
        self.set_layout(k, True)
        self.active.append(updater)
        return 0

    cdef RowUpdater row_updater(self, Py_ssize_t k):
        cdef RowUpdater updater
        if self.row_updaters[k] is None:
            updater = RowUpdater(self.params[k], self.paths[k], self.row_sums[k])
            updater.context.kernels, updater.context.span = self.kernels, &self.spans[k]
            self.row_updaters[k] = updater
        return self.row_updaters[k]

    cdef void set_layout(self, Py_ssize_t k, bint by_row) noexcept:
        self.layout_changed = self.layout_changed or self.by_row[k] != by_row
        self.by_row[k] = by_row

    cdef void set_grad_ptr(self, Py_ssize_t k, char* g) noexcept:
        self.address_changed = self.address_changed or self.spans[k].arrays[G] != g
        self.spans[k].arrays[G] = g

    # --- During a step ---

    cdef object original(self, Py_ssize_t k):
        """The gradient that was bound, or its copy."""
        for i, _, copied in self.copies:
            if i == k:
                return copied
        return self.cached[k]

    cdef int check_zeroable(self) except -1:
        """Raise if setting a gradient to zero would change another one or an array that the step writes."""
        cdef Py_ssize_t k
        cdef list ranges = []
        if self.sparse_path is not None:
            raise ValueError(f"{self.sparse_path}: zero_grad=True needs an array, got Rows")
        for k in range(len(self.params)):
            if not self.writeable[k]:
                raise ValueError(f"{self.paths[k]}: zero_grad=True needs a writeable array, got a read-only one")
        for k, grad, _ in self.copies:
            low, high = byte_bounds(grad)
            if self.is_written(low, high - low):
                raise ValueError(f"{self.paths[k]}: zero_grad=True, but the array shares memory with a "
                                 "parameter or state of the optimizer")
        if not self.address_changed:
            return 0
        for k in range(len(self.params)):
            if self.params[k].size:
                first = <Py_ssize_t> self.spans[k].arrays[G]
                ranges.append((first, first + self.params[k].nbytes, k))
        ranges.sort()
        for k in range(1, len(ranges)):
            if ranges[k][0] < ranges[k - 1][1]:
                raise ValueError(f"{self.paths[ranges[k - 1][2]]} and {self.paths[ranges[k][2]]} "
                                 "share memory: with zero_grad=True one would be zeroed before it is used")
        self.address_changed = False
        return 0

    cdef void release(self) noexcept:
        """Drop copies, and references to gradients that are not cached."""
        cdef RowUpdater updater
        cdef Py_ssize_t k
        self.sparse_path = None
        for k in self.uncached:
            self.cached[k] = None
        for updater in self.active:
            updater.values = None
        if self.copies:
            self.copies.clear()
        if self.replaced:
            self.replaced.clear()
        if self.active:
            self.active.clear()
