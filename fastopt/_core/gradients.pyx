"""Gradients of one step: checked against the parameters and bound to the spans.

The address of a gradient is stored in its parameter's span. A gradient in another memory layout, or one that
overlaps an array that the step writes, is copied first; one of another floating dtype is converted by the kernels.
The parameters themselves are compared with what they were when their addresses were taken.
"""
cimport cython
from cpython.buffer cimport (
    Py_buffer, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from libc.string cimport memcmp, memcpy, memset

from fastopt._core.runtime cimport data_ptr
from fastopt._core.span cimport BFLOAT16, FLOAT16, FLOAT32, FLOAT64, NATIVE, itemsize

from numpy import array, asarray, generic, ndarray, uint16, zeros

from fastopt._core.formats import (
    BFLOAT16 as BF16, EXPECTED, FLOAT16 as F16, FLOAT32 as F32, FLOAT64 as F64, decode, dtype_name,
    is_bfloat16, normalize,
)
from fastopt._core.layout import byte_bounds, copy_with_layout, first_index, is_dense, same_layout
from fastopt._core.pytree import explain_mismatch
from fastopt._core.rows import NO_ROWS
from fastopt._core.runtime import address
from fastopt._core.validation import is_masked

cdef enum:
    MAX_KEPT_GRAD_BYTES = 1 << 18   # a larger array is released at the end of the step

cdef type ARRAY = ndarray       # a lookup of the global name would take longer than the comparison


cdef inline const fo_array* fields(object a) noexcept:
    return <const fo_array*> <PyObject*> a


cdef char* written_ptr(object a) except? NULL:
    """Lowest address of the elements of an array; BufferError if it is read-only."""
    cdef const fo_array* x = fields(a)
    cdef int plain = FO_ARRAY_C_CONTIGUOUS | FO_ARRAY_WRITEABLE
    return x.data if isinstance(a, ARRAY) and x.flags & plain == plain else data_ptr(a, True)


cdef bint same_order(object a, object b) except -1:
    """Whether the elements of two arrays of the same shape have the same order in memory."""
    return fields(a).flags & fields(b).flags & FO_ARRAY_C_CONTIGUOUS or same_layout(a, b)


cdef int set_zero(object grad) except -1:
    """Set a gradient to zero. It has no Python code in which a signal handler could run."""
    if grad.dtype.kind == "V":
        grad = grad.view(uint16)
    grad[...] = 0
    return 0


cdef inline bint is_large(const Span* x) noexcept:
    return x.n * (8 if x.is_f64 else 4) > MAX_KEPT_GRAD_BYTES


cdef int check_fields() except -1:
    """Raise unless the fields of an array are where `fo_array.h` says."""
    cdef Py_buffer view
    cdef bint same
    for tested in (zeros((3, 4, 5), F32)[::-1, 1:3].T, array(1.0)):
        PyObject_GetBuffer(tested, &view, PyBUF_STRIDES | PyBUF_WRITABLE)
        x = fields(tested)
        same = x.data == view.buf and x.ndim == view.ndim and x.dtype == <PyObject*> tested.dtype
        if view.ndim:       # else the addresses may be NULL
            same = same and memcmp(x.shape, view.shape, view.ndim * sizeof(Py_ssize_t)) == 0
            same = same and memcmp(x.strides, view.strides, view.ndim * sizeof(Py_ssize_t)) == 0
        PyBuffer_Release(&view)
        same = same and (x.flags & FO_ARRAY_WRITEABLE) != 0 and (x.flags & FO_ARRAY_ALIGNED) != 0
        same = same and (x.flags & FO_ARRAY_C_CONTIGUOUS != 0) == tested.flags.c_contiguous
        tested.flags.writeable = False
        if not same or x.flags & FO_ARRAY_WRITEABLE:
            raise ImportError("fastopt does not know the binary interface of this NumPy")
    return 0


check_fields()


cdef inline bint is_like(const fo_array* a, const SavedArray* x, int flags) noexcept:
    """Whether an array has dtype, shape, strides and flags of a saved one."""
    cdef int i
    if a.ndim != x.ndim or a.dtype != x.dtype or a.flags & flags != flags:
        return False
    for i in range(x.ndim):
        if a.shape[i] != x.shape[i] or a.strides[i] != x.strides[i]:
            return False
    return True


cdef inline bint has_layout(const fo_array* x, Py_ssize_t size, const SavedArray* param) noexcept:
    """Whether the elements of a gradient have the order in memory that those of its parameter have."""
    cdef int i
    cdef bint same = True
    for i in range(x.ndim):
        if x.shape[i] == 0:
            return True
        if x.shape[i] != 1 and x.strides[i] * param.itemsize != param.strides[i] * size:
            same = False
    return same


cdef class GradSource:
    """Base class of objects that give the gradients of a step in another form than NumPy arrays."""

    cdef int bind_to(self, Gradients gradients) except -1:
        """Call `bind_no_grad`, `bind_address` or `bind_grad` for each parameter."""
        raise NotImplementedError


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
        self.bound, self.row_updaters = [None] * self.count, [None] * self.count
        self.copies, self.replaced = [], []
        self.layouts = <char*> PyMem_Calloc(self.count + 1, 1)
        self.writeable = <char*> PyMem_Calloc(self.count + 1, 1)
        if self.layouts == NULL or self.writeable == NULL:
            raise MemoryError()
        self.save_treedef()
        self.save_params()
        self.sort_written(written)

    def __dealloc__(self):
        PyMem_Free(self.layouts)
        PyMem_Free(self.writeable)
        PyMem_Free(self.written)
        PyMem_Free(self.nodes)
        PyMem_Free(self.saved)
        PyMem_Free(self.saved_shapes)

    # --- Parameters ---

    cdef int save_params(self) except -1:
        """Save address, dtype, shape and flags of the parameters, and of the arrays that own their memory."""
        cdef Py_ssize_t k, n_axes = 0
        cdef SavedArray* x
        cdef const fo_array* a
        cdef Py_ssize_t* shape
        owners = {id(p.base): p.base for p in self.params if isinstance(p.base, ndarray)}
        self.watched = [*self.params, *owners.values()]
        self.n_watched = len(self.watched)
        for watched in self.watched:
            n_axes += watched.ndim
        self.saved = <SavedArray*> PyMem_Calloc(self.n_watched + 1, sizeof(SavedArray))
        self.saved_shapes = <Py_ssize_t*> PyMem_Calloc(2 * n_axes + 1, sizeof(Py_ssize_t))
        if self.saved == NULL or self.saved_shapes == NULL:
            raise MemoryError()
        shape = self.saved_shapes
        for k in range(self.n_watched):
            x, a = &self.saved[k], fields(self.watched[k])
            x.array, x.data, x.dtype, x.ndim = a, a.data, a.dtype, a.ndim
            x.flags = FO_ARRAY_ALIGNED | FO_ARRAY_WRITEABLE if k < self.count else 0
            x.shape, x.strides = shape, shape + a.ndim
            if a.ndim:      # else the addresses may be NULL
                memcpy(x.shape, a.shape, a.ndim * sizeof(Py_ssize_t))
                memcpy(x.strides, a.strides, a.ndim * sizeof(Py_ssize_t))
            shape += 2 * a.ndim
            if k < self.count:
                x.itemsize, x.is_row_wise = self.params[k].itemsize, self.row_sums[k] is not None
                x.is_f64 = self.params[k].dtype == F64
                x.format = native_or(self.format_of(k, self.params[k].dtype), x)
                x.first, x.is_c = first_index(self.params[k]), self.params[k].flags.c_contiguous
        return 0

    cdef int check_params(self) except -1:
        """Raise if a parameter is no longer where and what it was."""
        cdef Py_ssize_t k
        cdef const SavedArray* x
        for k in range(self.n_watched):
            x = &self.saved[k]
            if x.array.data != x.data or not is_like(x.array, x, x.flags):
                return self.refuse_changed(k)
        return 0

    cdef int refuse_changed(self, Py_ssize_t k) except -1:
        """Raise the error for a changed array, unless it owns the memory of parameters and still does."""
        cdef SavedArray* x = &self.saved[k]
        param, what = self.watched[k], "was resized, reshaped, retyped or made read-only"
        if k >= self.count:
            if param.size and x.array.data == x.data and is_dense(param):
                low, high = byte_bounds(param)
                if all(low <= address(p, False) and address(p, False) + p.nbytes <= high
                       for p in self.params if p.base is param):
                    return 0
            k = next(i for i in range(self.count) if self.params[i].base is param)
            what = "is a view of an array that was resized"
        raise ValueError(f"params{self.paths[k].removeprefix('grads')}: the array {what} after the optimizer was "
                         "made; keep its memory, or pass the new arrays to rebind")

    cdef int sort_written(self, list arrays) except -1:
        """Sort the address ranges of all arrays that a step writes: no gradient may lie in one of them."""
        cdef Py_ssize_t i
        ranges = sorted([(<Py_ssize_t> written_ptr(a), a.nbytes) for a in arrays if a.nbytes])
        self.written_count = len(ranges)
        self.written = <Py_ssize_t*> PyMem_Calloc(2 * self.written_count + 1, sizeof(Py_ssize_t))
        if self.written == NULL:
            raise MemoryError()
        for i in range(self.written_count):
            first, size = ranges[i]
            self.written[2 * i], self.written[2 * i + 1] = first, first + size
        return 0

    cdef bint is_written(self, Py_ssize_t k, char* g, Format format) except -1:
        """Whether a step writes anything where a gradient is. Not if the last one was bound there."""
        cdef const Span* x = &self.spans[k]
        if x.g == g and x.grad_format == format:
            return False
        return self.overlaps_written(<Py_ssize_t> g, self.params[k].size * itemsize(format, x.is_f64))

    cdef bint overlaps_written(self, Py_ssize_t start, Py_ssize_t size) noexcept:
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
        if isinstance(grads, GradSource):
            (<GradSource> grads).bind_to(self)
        else:
            self.check_params()
            if not self.bind_node(self.nodes, grads):
                explain_mismatch(self.treedef, grads)
        if self.has_rows or self.layout_changed:
            for k in range(self.count):
                if self.layouts[k] == ALL_ROWS:
                    (<RowUpdater> self.row_updaters[k]).bind_all_rows(self.spans[k].g)
        return 0

    cdef int save_treedef(self) except -1:
        """Make the nodes of the nesting: the children of a node follow one another."""
        cdef list trees = [self.treedef]
        cdef Py_ssize_t k = 0
        cdef Node* node
        self.keys = []
        while k < len(trees):
            tree = trees[k]
            self.keys.append(list(tree) if isinstance(tree, dict) else None)
            trees += [] if isinstance(tree, int) else tree.values() if isinstance(tree, dict) else tree
            k += 1
        self.nodes = <Node*> PyMem_Calloc(k, sizeof(Node))
        if self.nodes == NULL:
            raise MemoryError()
        k = 1
        for i, tree in enumerate(trees):
            node = &self.nodes[<Py_ssize_t> i]
            if isinstance(tree, int):
                node.kind, node.first = LEAF, tree
            else:
                node.kind, node.first, node.count = MAPPING if isinstance(tree, dict) else SEQUENCE, k, len(tree)
                k += node.count
        return 0

    @cython.boundscheck(True)       # a list may shrink while its items are read
    cdef bint bind_node(self, const Node* node, object grads) except -1:
        """Bind every gradient of a nesting; False if it is not the nesting of the parameters."""
        cdef Py_ssize_t i, found = 0
        cdef const Node* inner
        if node.kind == LEAF:
            self.bind_grad(node.first, grads)
            return True
        if grads is None:
            self.bind_absent(node)
            return True
        inner = self.nodes + node.first
        if node.kind == SEQUENCE:
            if type(grads) is list:
                if len(<list> grads) != node.count:
                    return False
                for i in range(node.count):
                    grad = (<list> grads)[i]
                    if inner[i].kind == LEAF:
                        self.bind_grad(inner[i].first, grad)
                    elif not self.bind_node(&inner[i], grad):
                        return False
                return True
            if not isinstance(grads, (list, tuple)) or len(grads) != node.count:
                return False
            for i in range(node.count):
                if not self.bind_node(&inner[i], grads[i]):
                    return False
            return True
        if not isinstance(grads, dict):
            return False
        for i, key in enumerate(self.keys[node - self.nodes]):
            if key not in grads:
                self.bind_absent(&inner[i])
            elif self.bind_node(&inner[i], grads[key]):
                found += 1
            else:
                return False
        return found == len(grads)

    cdef void bind_absent(self, const Node* node) noexcept:
        """Bind no gradient to any parameter of a nesting."""
        cdef Py_ssize_t i
        if node.kind == LEAF:
            self.bind_no_grad(node.first)
        for i in range(node.count):
            self.bind_absent(self.nodes + node.first + i)

    cdef void bind_no_grad(self, Py_ssize_t k) noexcept:
        self.bound[k] = None
        self.set_layout(k, ABSENT)

    cdef int bind_grad(self, Py_ssize_t k, object grad) except -1:
        """Bind one gradient."""
        cdef const fo_array* x
        cdef const SavedArray* param = &self.saved[k]
        cdef const Span* span = &self.spans[k]
        cdef Format format
        cdef Py_ssize_t size
        cdef char* g
        if type(grad) is ARRAY:
            x = fields(grad)
            if (x.data == span.g and span.grad_format == param.format and self.layouts[k] == DENSE
                    and param.first == 0 and is_like(x, param, FO_ARRAY_ALIGNED)):
                # Where the last gradient was: it overlaps nothing that a step writes.
                self.writeable[k] = (x.flags & FO_ARRAY_WRITEABLE) != 0
                if grad is not self.bound[k]:
                    self.bound[k] = grad
                return 0
        else:
            if grad is None:
                self.bind_no_grad(k)
                return 0
            if type(grad) is Rows:
                return self.bind_rows(k, grad)
            grad = self.as_array(k, grad)
        self.set_layout(k, ALL_ROWS if param.is_row_wise else DENSE)
        x = fields(grad)
        format = <Format> self.check(k, x, grad)
        size = itemsize(format, param.is_f64)
        g = x.data - param.first * size
        if (not has_layout(x, size, param) or x.flags & FO_ARRAY_ALIGNED == 0
                or (self.layouts[k] == ALL_ROWS and not (param.is_c and format == NATIVE))
                or self.is_written(k, g, format)):
            return self.copy(k, grad)
        self.set_grad(k, g, format)
        self.writeable[k] = (x.flags & FO_ARRAY_WRITEABLE) != 0
        if grad is not self.bound[k]:
            self.bound[k] = grad
        return 0

    cdef bint bind_address(self, Py_ssize_t k, char* g) except -1:
        """Bind a gradient that has the dtype and the layout of its parameter.

        Returns False if the kernels cannot read it where it is; it must then be bound as an array.
        """
        cdef const SavedArray* param = &self.saved[k]
        if param.is_row_wise or param.first != 0 or <Py_ssize_t> g % param.itemsize != 0:
            return False
        if self.is_written(k, g, param.format):
            return False
        self.set_layout(k, DENSE)
        self.set_grad(k, g, param.format)
        self.writeable[k] = True
        if self.bound[k] is not None:
            self.bound[k] = None
        return True

    cdef object as_array(self, Py_ssize_t k, object grad):
        """View a subclass of ndarray, or a NumPy scalar, as an array."""
        if isinstance(grad, generic):
            grad = array(grad)
            grad.flags.writeable = False
        if not isinstance(grad, ndarray) or is_masked(grad):
            raise TypeError(f"{self.paths[k]}: expected a NumPy array, got {type(grad).__name__}")
        return grad.view(ndarray)

    cdef int check(self, Py_ssize_t k, const fo_array* x, object grad) except -1:
        """Raise unless a gradient has a floating dtype and the shape of the parameter. Return its format."""
        cdef const SavedArray* param = &self.saved[k]
        cdef int format = param.format, i
        cdef bint same = x.ndim == param.ndim
        if x.dtype != param.dtype:
            if x.dtype != <PyObject*> self.other_dtype:
                self.other_format, self.other_dtype = self.format_of(k, grad.dtype), grad.dtype
            format = native_or(self.other_format, param)
        for i in range(param.ndim if same else 0):
            same = same and x.shape[i] == param.shape[i]
        if not same:
            raise ValueError(f"{self.paths[k]}: expected shape {self.params[k].shape} as the parameter has, "
                             f"got {grad.shape}")
        return format

    cdef Format format_of(self, Py_ssize_t k, object given) except *:
        """Format of the dtype of a gradient."""
        if given == F32:
            return FLOAT32
        if given == F64:
            return FLOAT64
        if given == F16:
            return FLOAT16
        if given == BF16 or is_bfloat16(given):
            return BFLOAT16
        raise TypeError(f"{self.paths[k]}: expected dtype {EXPECTED}, got {dtype_name(given)}")

    cdef int copy(self, Py_ssize_t k, object grad) except -1:
        """Bind a copy of a gradient in the memory layout of the parameter; row-wise rules get rows."""
        cdef Format format = native_or(self.format_of(k, grad.dtype), &self.saved[k])
        param, normalized = self.params[k], normalize(grad)
        if self.layouts[k] == ALL_ROWS:
            dtype, format = F64 if self.saved[k].is_f64 else F32, NATIVE
            copied = array(decode(normalized, dtype), order="C", copy=True)
        else:
            copied = copy_with_layout(normalized, param, normalized.dtype)
        self.set_grad(k, data_ptr(copied, False), format)
        self.writeable[k] = grad.flags.writeable
        self.bound[k] = None
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
            self.bind_no_grad(k)
            return 0
        values = updater.check_values(grad)
        if not len(values):
            updater.release()
            self.bind_no_grad(k)
            return 0
        if self.overlaps_written(address(values, False), values.nbytes):
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

    cdef void set_grad(self, Py_ssize_t k, char* g, Format format) noexcept:
        cdef Span* x = &self.spans[k]
        if x.g != g or x.grad_format != format:
            self.address_changed = True
            x.g, x.grad_format = g, format

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
        return self.bound[k]

    cdef int replace(self, Py_ssize_t k, object grad) except -1:
        """Bind another array in place of a gradient for the rest of the step."""
        param, dtype = self.params[k], F64 if self.saved[k].is_f64 else F32
        grad = asarray(grad, dtype, order="C") if self.saved[k].is_c else copy_with_layout(grad, param, dtype)
        self.replaced.append((self.original(k), grad))
        self.set_grad(k, data_ptr(grad, False), NATIVE)
        self.bound[k] = None
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
            if self.overlaps_written(low, high - low):
                raise ValueError(f"{self.paths[k]}: zero_grad=True, but the array shares memory with a "
                                 "parameter or state of the optimizer")
        if not self.address_changed:
            return 0
        for k in range(self.count):
            if self.params[k].size and self.layouts[k] != ABSENT:
                first = <Py_ssize_t> self.spans[k].g
                size = self.params[k].size * itemsize(self.spans[k].grad_format, self.spans[k].is_f64)
                ranges.append((first, first + size, k))
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
            set_zero(grad)
        for grad, _ in self.replaced:
            set_zero(grad)

    cdef void zero_all(self):
        """Set all gradients to zero."""
        cdef Py_ssize_t k
        for k in range(self.count):
            if self.layouts[k] != ABSENT:
                memset(self.spans[k].g, 0,
                       self.params[k].size * itemsize(self.spans[k].grad_format, self.spans[k].is_f64))
        self.zero_originals()

    cdef void release(self) noexcept:
        """Drop copies, and references to gradients that are too large to be kept."""
        cdef Py_ssize_t k
        self.sparse_path = None
        if self.has_rows:
            for k in range(self.count):
                if self.layouts[k] != DENSE:
                    self.bound[k] = None
                    if self.row_updaters[k] is not None:
                        (<RowUpdater> self.row_updaters[k]).release()
        if self.copies:
            self.copies.clear()
        if self.replaced:
            self.replaced.clear()
        if self.has_large:
            for k in range(self.count):
                if is_large(&self.spans[k]):
                    self.bound[k] = None
