"""Sparse gradients: updates of the rows of a parameter that have a gradient, as in an embedding table.

A `RowUpdater` belongs to one parameter. It checks the row indices, sorts them, and sums the gradients of a
row that occurs more than once in the order of the caller. Each row is then updated as a span by the same
kernels as a dense parameter. `deferred_rows.pxd` has the log of the steps that the other rows skip.
"""
from cpython.buffer cimport Py_buffer, PyBUF_ND, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastopt._core.common cimport CACHE_LINE, fo_flush_begin, fo_flush_end, fo_prefetch, part_begin, real
from fastopt._core.deferred_rows cimport (
    MAX_LOGGED, DeferredRows, IdleDecay, apply_decay, clear_log, count_replayed, free_log, is_idle, log_step,
    min_replay, reserve_step, resize,
)
from fastopt._core.runtime cimport Task, data_ptr, n_threads, run_parts
from fastopt._core.span cimport N_ARRAYS, Span, UpdateArgs, array_itemsize

from numpy import arange, asarray, int64, ndarray, require, zeros

from fastopt._core.formats import EXPECTED, PARAM_DTYPES, computing_dtype, decode, dtype_name, normalize
from fastopt._core.layout import first_index

from fastopt._core.validation import is_masked

cdef enum:
    SUM_BLOCK = 8192        # elements per partial sum
    PREFETCH_ROWS = 4       # distance in rows between a prefetch and the use
    PREFETCH_BYTES = 1024   # of each row; the hardware prefetcher follows the rest
    RADIX_BITS = 8
    ROW_NS = 64             # approximate latency of the first cache line of a row
    BYTES_PER_NS = 8        # throughput of one thread on rows
    REPLAYED_PER_NS = 1     # elements per replayed step
    SERIAL_BELOW_NS = 16000  # shorter calls run serially
    MIN_PART_ROWS = 16      # rows that a thread claims at a time
    MAX_PARTS_PER_THREAD = 32

MAX_DEFERRED_STEPS = MAX_LOGGED

cdef object check_row_indices(object rows):
    """Return row indices as a contiguous int64 array."""
    rows = asarray(rows)
    if rows.dtype.kind not in "iu" and rows.size:
        raise TypeError(f"rows: expected integers, got dtype {rows.dtype}")
    if rows.ndim != 1:
        raise ValueError(f"rows: expected a 1-D array, got shape {rows.shape}")
    return require(rows, int64, ("C", "A"))


cdef class Rows:
    """A sparse gradient: only some rows of a parameter have one.

    Pass it to an optimizer in place of an array: ``opt.step([fastopt.Rows(rows, grads)])``.

    Parameters
    ----------
    rows : array_like of int, shape (k,)
        Row indices in any order. The gradients of a row that occurs more than once are summed in this
        order.
    grads : ndarray, shape (k, ...)
        Gradient of each row, of a floating dtype, with the trailing dimensions of the parameter.

    Raises
    ------
    TypeError, ValueError
        If `rows` is not a 1-D array of integers, or `grads` is not an array with one entry per row. The
        optimizer compares both with the parameter.
    """

    def __init__(self, rows, grads):
        self.rows = check_row_indices(rows)
        if not isinstance(grads, ndarray) or is_masked(grads):
            raise TypeError(f"grads: expected a NumPy array, got {type(grads).__name__}")
        if grads.shape[:1] != self.rows.shape:
            raise ValueError(f"grads: expected shape ({self.rows.size}, ...) with one entry per row, "
                             f"got {grads.shape}")
        self.grads = grads.view(ndarray)

    def __repr__(self):
        return f"Rows(rows={self.rows!r}, grads={self.grads!r})"


NO_ROWS = Rows((), zeros(0))
"""The gradient of a parameter of any shape that has no gradient in a step."""


# --- One row -----------------------------------------------------------------------------------------

cdef inline Py_ssize_t row_index(const RowContext* x, Py_ssize_t i) noexcept nogil:
    """Row of the parameter that is active row i."""
    return i if x.all_rows else x.rows[i]


cdef inline char* grad_ptr(const RowContext* x, Py_ssize_t i) noexcept nogil:
    """Gradient of active row i."""
    return x.values + i * x.row_bytes if x.all_rows else x.grads[i]


cdef inline char* offset_ptr(char* base, Py_ssize_t offset) noexcept nogil:
    return base + offset if base != NULL else NULL


cdef inline void prefetch(const char* base, Py_ssize_t offset, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i = 0
    if base != NULL:
        while i < size:
            fo_prefetch(base + offset + i)
            i += CACHE_LINE


cdef inline char** array_of(Span* x, int i) noexcept nogil:
    """Array i of a span, the gradient apart."""
    if i == 0:
        return &x.p
    if i == 1:
        return &x.s
    if i == 2:
        return &x.t
    if i == 3:
        return &x.u
    if i == 4:
        return &x.v
    if i == 5:
        return &x.w
    return &x.e if i == 6 else &x.low


cdef void prefetch_row(const RowContext* x, Py_ssize_t i) noexcept nogil:
    """Prefetch the arrays of active row i: hardware prefetchers do not predict the jump to it."""
    cdef Span span = x.span
    cdef Py_ssize_t first = row_index(x, i) * x.row_stride, size
    cdef int k
    prefetch(grad_ptr(x, i), 0, min(x.row_bytes, PREFETCH_BYTES))
    for k in range(N_ARRAYS):
        size = array_itemsize(&x.span, k)
        prefetch(array_of(&span, k)[0], first * size, min(x.width * size, PREFETCH_BYTES))


cdef void gather(const RowContext* x, char* row, const char* array, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(x.width):
        if size == 8:
            (<uint64_t*> row)[i] = (<const uint64_t*> array)[x.offsets[i]]
        elif size == 4:
            (<uint32_t*> row)[i] = (<const uint32_t*> array)[x.offsets[i]]
        else:
            (<uint16_t*> row)[i] = (<const uint16_t*> array)[x.offsets[i]]


cdef void scatter(const RowContext* x, char* array, const char* row, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(x.width):
        if size == 8:
            (<uint64_t*> array)[x.offsets[i]] = (<const uint64_t*> row)[i]
        elif size == 4:
            (<uint32_t*> array)[x.offsets[i]] = (<const uint32_t*> row)[i]
        else:
            (<uint16_t*> array)[x.offsets[i]] = (<const uint16_t*> row)[i]


cdef inline void set_row(const RowContext* x, Span* row, Py_ssize_t r) noexcept nogil:
    """Point `row`, a copy of the parameter's span, to row r, or to a copy of it if it is not contiguous."""
    cdef Py_ssize_t size
    cdef char** array
    cdef char* copy
    cdef Span span = x.span
    cdef int i
    row.n, row.origin = x.width, r * x.width
    for i in range(N_ARRAYS):
        array, size = array_of(row, i), array_itemsize(&x.span, i)
        array[0] = offset_ptr(array_of(&span, i)[0], r * x.row_stride * size)
        if x.offsets != NULL and array[0] != NULL:
            copy = x.row_copy + i * x.row_bytes
            gather(x, copy, array[0], size)
            array[0] = copy


cdef inline void store_row(const RowContext* x, Py_ssize_t r) noexcept nogil:
    """Write row r back if `set_row` has made a copy of it."""
    cdef Span span = x.span
    cdef Py_ssize_t size
    cdef int i
    if x.offsets != NULL:
        for i in range(N_ARRAYS):
            size = array_itemsize(&x.span, i)
            if array_of(&span, i)[0] != NULL:
                scatter(x, array_of(&span, i)[0] + r * x.row_stride * size, x.row_copy + i * x.row_bytes, size)


cdef double add_to_row_sum(const RowContext* x, Py_ssize_t r, double value) noexcept nogil:
    """Add to the accumulated value of row r. Returns the sum after rounding to the dtype."""
    if x.span.is_f64:
        (<double*> x.row_sums)[r] += value
        return (<double*> x.row_sums)[r]
    (<float*> x.row_sums)[r] = <float> (<double> (<float*> x.row_sums)[r] + value)
    return <double> (<float*> x.row_sums)[r]


cdef void step_row(const RowContext* x, const UpdateArgs* args, const Span* row, Py_ssize_t r) noexcept nogil:
    """Update row r. A row-wise optimizer first accumulates the mean of the squared gradient."""
    cdef UpdateArgs row_args
    cdef double sums[2]
    cdef double total = 0.0
    cdef Py_ssize_t lo = 0
    if x.row_sums == NULL:
        x.kernels.update(args, row, 0, x.width)
        return
    row_args = args[0]
    while lo < x.width:
        x.kernels.reduce_pass(args, row, lo, min(lo + SUM_BLOCK, x.width), sums)
        total += sums[0]
        lo += SUM_BLOCK
    row_args.scalars[0] = add_to_row_sum(x, r, total / <double> x.width)
    x.kernels.update(&row_args, row, 0, x.width)


cdef void replay(const RowContext* x, Span* row, Py_ssize_t r) noexcept nogil:
    """Apply the logged steps that row r has skipped."""
    cdef const DeferredRows* deferred = &x.deferred
    cdef Py_ssize_t t = deferred.n_applied[r]
    cdef Py_ssize_t end = t + count_replayed(deferred, &x.span, deferred.n_logged - t)
    if t == deferred.n_logged:
        return
    if deferred.replay_steps >= 0 and is_idle(row):
        end = min(end, t + min_replay(&x.span))
    row.g = x.zeros
    while t < end:
        step_row(x, &deferred.replay_log[t], row, r)
        t += 1
    if t < deferred.n_logged:
        apply_decay(deferred, row, t)
    deferred.n_applied[r] = deferred.n_logged


# --- Tasks: a part of the active rows ------------------------------------------------------------------

cdef void update_part(void* context, int part, int parts) noexcept nogil:
    cdef const RowContext* x = <const RowContext*> context
    cdef Span row = x.span
    cdef Py_ssize_t i, r, end = part_begin(x.n_active, part + 1, parts)
    cdef uint64_t mode = fo_flush_begin()
    for i in range(part_begin(x.n_active, part, parts), end):
        if i + PREFETCH_ROWS < end:
            prefetch_row(x, i + PREFETCH_ROWS)
        r = row_index(x, i)
        set_row(x, &row, r)
        if x.deferred.n_applied != NULL:
            replay(x, &row, r)
            x.deferred.n_applied[r] = x.deferred.n_logged + 1     # includes this step, which is logged next
        row.g = grad_ptr(x, i)
        step_row(x, x.args, &row, r)
        store_row(x, r)
    fo_flush_end(mode)


cdef void catch_up_part(void* context, int part, int parts) noexcept nogil:
    cdef const RowContext* x = <const RowContext*> context
    cdef Span row = x.span
    cdef Py_ssize_t i, r
    cdef uint64_t mode = fo_flush_begin()
    for i in range(part_begin(x.n_active, part, parts), part_begin(x.n_active, part + 1, parts)):
        r = row_index(x, i)
        set_row(x, &row, r)
        replay(x, &row, r)
        store_row(x, r)
    fo_flush_end(mode)


cdef void add(real* restrict a, const real* restrict b, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        a[i] += b[i]


cdef void sum_duplicates_part(void* context, int part, int parts) noexcept nogil:
    cdef const RowContext* x = <const RowContext*> context
    cdef const char* value
    cdef Py_ssize_t i, j
    cdef uint64_t mode = fo_flush_begin()
    for i in range(part_begin(x.n_active, part, parts), part_begin(x.n_active, part + 1, parts)):
        if x.first[i + 1] - x.first[i] == 1:
            continue
        memcpy(x.grads[i], x.values + x.order[x.first[i]] * x.row_bytes, x.row_bytes)
        for j in range(x.first[i] + 1, x.first[i + 1]):
            value = x.values + x.order[j] * x.row_bytes
            if x.span.is_f64:
                add(<double*> x.grads[i], <const double*> value, x.width)
            else:
                add(<float*> x.grads[i], <const float*> value, x.width)
    fo_flush_end(mode)


cdef void square_sums_part(void* context, int part, int parts) noexcept nogil:
    cdef const RowContext* x = <const RowContext*> context
    cdef Span row = x.span
    cdef Py_ssize_t i
    cdef uint64_t mode = fo_flush_begin()
    for i in range(part_begin(x.n_active, part, parts), part_begin(x.n_active, part + 1, parts)):
        row.g = grad_ptr(x, i)
        x.square_sums[i] = x.kernels.sum_squares(&row, 0, x.width)
    fo_flush_end(mode)


cdef void parallel_for(Task task, RowContext* x, long long nanoseconds) noexcept:
    """Run a task on all active rows. `nanoseconds` is an estimate for one thread."""
    cdef Py_ssize_t parts_per_thread = x.n_active // n_threads() // MIN_PART_ROWS
    if nanoseconds < SERIAL_BELOW_NS:
        task(x, 0, 1)       # without releasing the GIL, which takes longer than the task
        return
    with nogil:
        if x.offsets != NULL:
            task(x, 0, 1)       # there is room for one copy of a row
        else:
            run_parts(task, x, n_threads() * max(1, min(MAX_PARTS_PER_THREAD, parts_per_thread)),
                      nanoseconds)


cdef void radix_sort(Pair* a, Pair* scratch, Py_ssize_t n, Py_ssize_t n_rows) noexcept nogil:
    """Sort by row. The sort is stable: gradients of one row stay in the order of the caller."""
    cdef Py_ssize_t starts[1 << RADIX_BITS]
    cdef Py_ssize_t i, j, sum, shift = 0
    cdef Pair* source = a
    cdef Pair* target = scratch
    while (n_rows - 1) >> shift:
        memset(starts, 0, sizeof(starts))
        for i in range(n):
            starts[source[i].row >> shift & (1 << RADIX_BITS) - 1] += 1
        sum = 0
        for j in range(1 << RADIX_BITS):
            starts[j], sum = sum, sum + starts[j]
        for i in range(n):
            j = source[i].row >> shift & (1 << RADIX_BITS) - 1
            target[starts[j]] = source[i]
            starts[j] += 1
        source, target = target, source
        shift += RADIX_BITS
    if source != a:
        memcpy(a, source, n * sizeof(Pair))


cdef class RowUpdater:
    """Updates the rows of one parameter.

    Parameters
    ----------
    param : ndarray
    path : str
        Name of its gradient in errors.
    row_sums : ndarray or None
        Row-wise optimizers: one accumulated value per row, in the computing dtype of the parameter.
    """

    def __cinit__(self, param, str path, row_sums):
        self.param, self.path, self.capacity = param, path, -1
        self.context.n_rows = param.shape[0] if param.ndim else 1
        self.context.width = param.size // self.context.n_rows if self.context.n_rows else 0
        self.dtype = computing_dtype(param.dtype)
        self.context.row_bytes = self.context.width * self.dtype.itemsize
        self.context.row_sums = NULL if row_sums is None else data_ptr(row_sums, True)
        self.context.zeros = <char*> PyMem_Calloc(self.context.row_bytes + 1, 1)
        if self.context.zeros == NULL:
            raise MemoryError()
        self.context.row_stride = self.context.width
        if not param.flags.c_contiguous:
            self.set_offsets(param)

    cdef int set_offsets(self, param) except -1:
        """Store where the elements of a row are in an array that is not C-contiguous, in C order of the row."""
        cdef RowContext* x = &self.context
        cdef Py_ssize_t i
        places = zeros(param.shape[1:], int64)
        for axis, stride in enumerate(param.strides[1:]):
            along = arange(param.shape[axis + 1]) * (stride // param.itemsize)
            places += along.reshape([-1 if i == axis else 1 for i in range(param.ndim - 1)])
        flat = places.reshape(-1)
        # The address of a span is the lowest of its array; a reversed axis begins at the highest.
        shift = first_index(param)
        x.row_stride = param.strides[0] // param.itemsize
        x.offsets = <Py_ssize_t*> PyMem_Calloc(x.width + 1, sizeof(Py_ssize_t))
        x.row_copy = <char*> PyMem_Calloc(N_ARRAYS * x.row_bytes + 1, 1)
        if x.offsets == NULL or x.row_copy == NULL:
            raise MemoryError()
        for i in range(x.width):
            x.offsets[i] = flat[i] + shift
        return 0

    def __dealloc__(self):
        PyMem_Free(self.context.offsets)
        PyMem_Free(self.context.row_copy)
        free_log(&self.context.deferred)
        PyMem_Free(self.context.zeros)
        PyMem_Free(self.context.rows)
        PyMem_Free(self.context.grads)
        PyMem_Free(self.context.order)
        PyMem_Free(self.context.first)
        PyMem_Free(self.context.square_sums)
        PyMem_Free(self.pairs)
        PyMem_Free(self.sums)

    # --- Binding a gradient; the parameter does not change ------------------------------------------

    cdef object check_values(self, Rows grad):
        """Compare a gradient with the parameter. Returns its values as a contiguous array."""
        values, shape = grad.grads, self.param.shape
        if not shape:
            raise ValueError(f"{self.path}: expected an array because the parameter has no rows, got Rows")
        values = normalize(values)
        if values.dtype not in PARAM_DTYPES:
            raise TypeError(f"{self.path}.grads: expected dtype {EXPECTED}, got {dtype_name(values.dtype)}")
        expected = grad.rows.shape + shape[1:]
        if values.shape != expected:
            raise ValueError(f"{self.path}.grads: expected shape {expected} for a parameter of shape "
                             f"{shape}, got {values.shape}")
        return require(decode(values, self.dtype), self.dtype, ("C", "A"))

    cdef int bind_rows(self, Rows grad, object values) except -1:
        """Bind a gradient. `values` come from `check_values`."""
        cdef Py_ssize_t n = self.select_rows(grad.rows, self.path + ".rows")
        if n != len(values):
            raise ValueError(f"{self.path}.rows: expected {len(values)} rows, as there are gradients, got {n}")
        self.values = values
        self.context.values = data_ptr(values, False)
        return self.sum_duplicates()

    cdef int bind_all_rows(self, char* values) except -1:
        """Bind a dense gradient."""
        self.context.all_rows, self.context.n_active, self.context.values = True, self.context.n_rows, values
        return self.reserve(self.context.n_rows)

    cdef int reserve(self, Py_ssize_t n) except -1:
        """Allocate memory for n active rows."""
        cdef RowContext* x = &self.context
        if n <= self.capacity:
            return 0
        self.capacity = -1
        x.rows = <Py_ssize_t*> resize(x.rows, n, sizeof(Py_ssize_t))
        x.order = <Py_ssize_t*> resize(x.order, n, sizeof(Py_ssize_t))
        x.first = <Py_ssize_t*> resize(x.first, n + 1, sizeof(Py_ssize_t))
        x.grads = <char**> resize(x.grads, n, sizeof(char*))
        x.square_sums = <double*> resize(x.square_sums, n, sizeof(double))
        self.pairs = <Pair*> resize(self.pairs, 2 * n, sizeof(Pair))
        self.capacity = n
        return 0

    cdef Py_ssize_t select_rows(self, object rows, str name) except -1:
        """Check and sort row indices, and group duplicates. Returns their number."""
        cdef RowContext* x = &self.context
        cdef Py_ssize_t i, m = 0, n, previous = -1
        cdef const int64_t* indices
        cdef Pair* pairs
        cdef Py_buffer view
        cdef bint is_sorted = True, is_valid
        PyObject_GetBuffer(rows, &view, PyBUF_ND)
        indices, n, is_valid = <const int64_t*> view.buf, view.shape[0], view.ndim == 1 and view.itemsize == 8
        PyBuffer_Release(&view)
        if not is_valid:            # the caller has changed dtype or shape of the array in place
            raise ValueError(f"{name}: expected the vector of int64 that was given, got {rows.dtype} of shape "
                             f"{rows.shape}")
        self.reserve(n)
        pairs = self.pairs
        for i in range(n):
            pairs[i].row, pairs[i].index = indices[i], i
            if not 0 <= pairs[i].row < x.n_rows:
                raise ValueError(f"{name}[{i}]: expected a row in [0, {x.n_rows}), got {pairs[i].row}")
            is_sorted = is_sorted and pairs[i].row >= previous
            previous = pairs[i].row
        if not is_sorted:
            radix_sort(pairs, pairs + self.capacity, n, x.n_rows)
        for i in range(n):
            x.order[i] = pairs[i].index
            if i == 0 or pairs[i].row != pairs[i - 1].row:
                x.rows[m], x.first[m] = pairs[i].row, i
                m += 1
        x.first[m] = n
        x.n_active, x.all_rows = m, False
        return n

    cdef int sum_duplicates(self) except -1:
        """Set the gradient pointer of each active row. Duplicates are summed into a buffer."""
        cdef RowContext* x = &self.context
        cdef Py_ssize_t i, n_values = x.first[x.n_active], n_sums = 0
        for i in range(x.n_active):
            n_sums += x.first[i + 1] - x.first[i] > 1
        if n_sums * x.row_bytes > self.sums_bytes:
            self.sums_bytes = 0
            self.sums = <char*> resize(self.sums, n_sums, x.row_bytes)
            self.sums_bytes = n_sums * x.row_bytes
        n_sums = 0
        for i in range(x.n_active):
            if x.first[i + 1] - x.first[i] > 1:
                x.grads[i] = self.sums + n_sums * x.row_bytes
                n_sums += 1
            else:
                x.grads[i] = x.values + x.order[x.first[i]] * x.row_bytes
        if n_sums and x.width:
            parallel_for(sum_duplicates_part, x, n_values * x.row_bytes // BYTES_PER_NS)
        return 0

    cdef object to_dense(self):
        """Return the gradient as an array with the shape of the parameter."""
        cdef const RowContext* x = &self.context
        cdef Py_ssize_t i
        dense = zeros(self.param.shape, self.dtype)
        cdef char* base = data_ptr(dense, True)
        for i in range(x.n_active if x.width else 0):
            memcpy(base + x.rows[i] * x.row_bytes, x.grads[i], x.row_bytes)
        return dense

    cdef void release(self) noexcept:
        """Drop the reference to the gradient."""
        self.values = None

    # --- Reductions over the gradient ---------------------------------------------------------------

    cdef double sum_squares(self) noexcept:
        """Sum of squares. The sums of the rows are added in ascending order of the rows."""
        cdef RowContext* x = &self.context
        cdef double sum = 0.0
        cdef Py_ssize_t i
        parallel_for(square_sums_part, x, x.n_active * x.row_bytes // BYTES_PER_NS)
        for i in range(x.n_active):
            sum += x.square_sums[i]
        return sum

    cdef bint all_finite(self, double scale) noexcept:
        cdef const RowContext* x = &self.context
        cdef Py_ssize_t i, j
        for i in range(x.n_active):
            for j in range(x.width):
                if not isfinite(scale * (<double*> grad_ptr(x, i))[j] if x.span.is_f64
                                else <double> (<float> scale * (<float*> grad_ptr(x, i))[j])):
                    return False
        return True

    # --- Updates --------------------------------------------------------------------------------------

    cdef void update(self, const UpdateArgs* args, const IdleDecay* idle) noexcept:
        """Update the active rows. If deferred updates are enabled, log the step for the others."""
        cdef RowContext* x = &self.context
        if x.deferred.n_logged == MAX_LOGGED:
            self.catch_up_all()
            clear_log(&x.deferred, x.n_rows)
        x.args = args
        if x.width:
            parallel_for(update_part, x, estimate_ns(x))
        if x.all_rows:
            self.drop_deferred()    # the update has replayed the skipped steps of every row
        elif x.deferred.n_applied != NULL:
            log_step(&x.deferred, args, idle, &x.span)

    cdef int enable_deferred(self) except -1:
        """From the next step on, rows without a gradient defer it. Call before every such step."""
        return reserve_step(&self.context.deferred, self.context.n_rows)

    cdef void drop_deferred(self) noexcept:
        """Mark every row as up to date."""
        free_log(&self.context.deferred)

    cdef void catch_up(self) noexcept:
        """Replay the skipped steps of the active rows."""
        if self.context.deferred.n_applied != NULL and self.context.width:
            parallel_for(catch_up_part, &self.context, estimate_ns(&self.context))

    cdef void catch_up_all(self) noexcept:
        """Replay the skipped steps of all rows."""
        cdef RowContext x = self.context
        x.all_rows, x.n_active = True, x.n_rows
        if x.deferred.n_applied != NULL and x.width:
            parallel_for(catch_up_part, &x, estimate_ns(&x))


cdef long long estimate_ns(const RowContext* x) noexcept nogil:
    """Approximate time of an update for one thread, replayed steps included."""
    cdef Py_ssize_t i, replayed = 0
    cdef int n_arrays = 2 + (x.span.s != NULL) + (x.span.t != NULL) + (x.span.u != NULL)
    cdef Py_ssize_t row_ns = ROW_NS + x.row_bytes * n_arrays // BYTES_PER_NS
    for i in range(x.n_active if x.deferred.n_applied != NULL else 0):
        replayed += count_replayed(&x.deferred, &x.span,
                                   x.deferred.n_logged - x.deferred.n_applied[row_index(x, i)])
    return x.n_active * row_ns + replayed * x.width // REPLAYED_PER_NS
