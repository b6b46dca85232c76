"""The span table: everything a step needs, resolved once, so that a step is one call.

A `Table` is built when the optimizer is: one span for each parameter array, with the addresses of the
parameter and its state. `Table.step` checks the gradients, fills in their addresses and this step's
scalars, and only then lets the kernels write, in parallel tiles across all spans. The kernels
themselves come as a capsule from the module of one instruction set.
"""
cimport cython
from cpython.buffer cimport (
    Py_buffer, PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport fabs, isfinite, sqrt

from fastopt._core.deferred_rows cimport DECAYED_ARRAYS, IdleDecay
from fastopt._core.rows cimport Rows, RowUpdater, check_row_indices
from fastopt._core.runtime cimport data_ptr, n_threads, run_parts
from fastopt._core.span cimport MAX_SCALARS, UpdateArgs, Kernels, StepLease, Span

from numpy import (
    array, ascontiguousarray, empty_like, generic, maximum, minimum, multiply, ndarray, zeros, zeros_like,
)
from numpy.lib.array_utils import byte_bounds
from numpy.ma import MaskedArray

from fastopt._core.rows import NO_ROWS
from fastopt._core.runtime import address
from fastopt._core.pytree import explain

cdef extern from "fo_flush.h" nogil:
    ctypedef unsigned long long uint64_t
    uint64_t fo_flush_begin()
    void fo_flush_end(uint64_t mode)

cdef double INFINITE = float("inf")
cdef double LARGEST = 3e38      # below it no float32 nor float64 in the sum of squares has overflowed

cdef enum:
    GRAIN = 512             # parts end on multiples of this: no two threads write one cache line
    BLOCK = 8192            # elements in one partial sum of the norm, whatever the number of threads
    GATE = 1 << 19          # bytes of arrays under which a second thread costs more than it brings
    PACE = 32               # bytes of arrays that one thread gets through in a nanosecond, in cache
    PART = 8192             # elements a thread takes at a time, at least
    PARTS = 32              # parts in a thread's share, at most: others help with what it does not get to
    REMEMBER = 1 << 18      # gradients up to this many bytes are kept, to be recognized at the next step

cdef enum:                  # how a parameter goes in this step
    WHOLE = 0               # as one span
    SOME = 1                # row by row, those that have a gradient
    EVERY = 2               # row by row, all of them: the rule wants it so


cdef struct Plan:
    # The table as the threads see it.
    Kernels kernels
    UpdateArgs* jobs
    Span* spans
    Py_ssize_t* first           # elements before span k; first[count] is their total
    Py_ssize_t* first_block     # the same in blocks of the norm
    double* partial             # a sum of each block, or two
    Py_ssize_t count
    Py_ssize_t jobs_count
    Py_ssize_t bytes            # of all arrays that a step reads or writes
    Py_ssize_t nanoseconds      # about what this step would take one thread


cdef Py_ssize_t find(const Py_ssize_t* first, Py_ssize_t count, Py_ssize_t i) noexcept nogil:
    """Last k with first[k] <= i."""
    cdef Py_ssize_t lo = 0, hi = count, mid
    while hi - lo > 1:
        mid = (lo + hi) // 2
        if first[mid] <= i:
            lo = mid
        else:
            hi = mid
    return lo


cdef inline Py_ssize_t cut(Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """Where, in a span of n elements, a part ends that would end at i."""
    return 0 if i <= 0 else (n if i >= n else i - i % GRAIN)


cdef void update_part(void* context, int part, int parts) noexcept nogil:
    cdef const Plan* plan = <const Plan*> context
    cdef const Span* x
    cdef Py_ssize_t total = plan.first[plan.count]
    cdef Py_ssize_t begin = total // parts * part
    cdef Py_ssize_t end = total if part == parts - 1 else total // parts * (part + 1)
    cdef Py_ssize_t k = find(plan.first, plan.count, begin), lo, hi
    cdef uint64_t mode = fo_flush_begin()
    while k < plan.count and plan.first[k] < end:
        x = &plan.spans[k]
        lo = cut(begin - plan.first[k], x.n)
        hi = cut(end - plan.first[k], x.n)
        if lo < hi:
            plan.kernels.update(&plan.jobs[x.group], x, lo, hi)
        k += 1
    fo_flush_end(mode)


cdef void squares_part(void* context, int part, int parts) noexcept nogil:
    cdef const Plan* plan = <const Plan*> context
    cdef const Span* x
    cdef Py_ssize_t blocks = plan.first_block[plan.count]
    cdef Py_ssize_t block = blocks // parts * part
    cdef Py_ssize_t end = blocks if part == parts - 1 else blocks // parts * (part + 1)
    cdef Py_ssize_t k = find(plan.first_block, plan.count, block), lo
    cdef uint64_t mode = fo_flush_begin()
    while block < end:
        while plan.first_block[k + 1] <= block:
            k += 1
        x = &plan.spans[k]
        lo = (block - plan.first_block[k]) * BLOCK
        plan.partial[block] = plan.kernels.sum_squares(x, lo, min(lo + BLOCK, x.n))
        block += 1
    fo_flush_end(mode)


cdef void survey_part(void* context, int part, int parts) noexcept nogil:
    cdef const Plan* plan = <const Plan*> context
    cdef const Span* x
    cdef Py_ssize_t blocks = plan.first_block[plan.count]
    cdef Py_ssize_t block = blocks // parts * part
    cdef Py_ssize_t end = blocks if part == parts - 1 else blocks // parts * (part + 1)
    cdef Py_ssize_t k = find(plan.first_block, plan.count, block), lo
    cdef uint64_t mode = fo_flush_begin()
    while block < end:
        while plan.first_block[k + 1] <= block:
            k += 1
        x = &plan.spans[k]
        lo = (block - plan.first_block[k]) * BLOCK
        plan.kernels.reduce_pass(&plan.jobs[x.group], x, lo, min(lo + BLOCK, x.n), &plan.partial[2 * block])
        block += 1
    fo_flush_end(mode)


cdef void spread(void (*task)(void*, int, int) noexcept nogil, Plan* plan) noexcept nogil:
    cdef Py_ssize_t share = plan.first[plan.count] // n_threads()
    if plan.bytes < GATE:
        task(plan, 0, 1)
    else:
        run_parts(task, plan, n_threads() * max(1, min(PARTS, share // PART)), plan.nanoseconds)


cdef double sum_squares(Plan* plan) noexcept nogil:
    """Sum of squares over all gradients; the blocks are added in the order of the parameters."""
    cdef double total = 0.0
    cdef Py_ssize_t i
    spread(squares_part, plan)
    for i in range(plan.first_block[plan.count]):
        total += plan.partial[i]
    return total


cdef inline Py_ssize_t width(const Span* x) noexcept:
    return 8 if x.is_f64 else 4


cdef inline bint is_large(const Span* x) noexcept:
    return x.n * width(x) > REMEMBER


cdef inline Py_ssize_t bytes_of(const Span* x) noexcept:
    """Bytes of the arrays that belong to a span, its gradient included."""
    return x.n * width(x) * (2 + (x.s != NULL) + (x.t != NULL) + (x.u != NULL) + (x.v != NULL)
                             + (x.w != NULL) + (x.e != NULL))


cdef class Table:
    """One optimizer's arrays, resolved to addresses.

    Parameters
    ----------
    kernels : capsule
        `KERNELS` of one instruction set's module.
    shape
        The nesting of the parameters as `pytree.flatten` returns it: places of arrays as integers.
    places : list of str
        What each gradient is called in errors: ``grads[2]["W"]``.
    params : list of ndarray
        Checked by `pytree.flatten`: float32 or float64, contiguous, writeable, disjoint.
    states : list of list of ndarray
        For each parameter its state arrays, in the order of the rule's `s`, `t`, `u`, `v`. Those of
        another shape are not for the kernels.
    slow, averages : list of ndarray
        For each parameter its slow twin, and where its moving average goes; empty if there are none.
    groups : list of int
        The group of each parameter.
    rules : list of int
        The rule of each group, a value of the kernel module's `RULES`.
    sparse : list of str, optional
        For each parameter what a gradient of `Rows` means: "dense", "lazy" or "exact"; "" if it has
        none of these.
    totals : list of ndarray or None, optional
        For each parameter with a row-wise rule what the rule accumulates, one number a row.
    others : list of ndarray, optional
        What later steps write beside these, so that no gradient in it is zeroed.
    """
    cdef Plan plan
    cdef readonly list rows     # for each group the rest of its rule's scalars, set before each step
    cdef list params, states, slow, averages, places
    cdef list seen              # gradients whose addresses are in the table
    cdef list copies            # (place, original, copy) of gradients in another layout, for one step
    cdef list unitwise          # factors and shifts of units, kept for one step
    cdef list replaced          # (original, what the kernels take in its place) of gradients, for one step
    cdef object shape
    cdef Py_ssize_t* taken      # start and end of every array that a step writes, in order
    cdef Py_ssize_t taken_count
    cdef char* writeable        # for each gradient, whether it may be zeroed
    cdef bint moved             # a gradient's address has changed since `disjoint` was asked
    cdef bint has_large         # some gradient is too large to be kept until the next step
    cdef bint busy
    cdef StepLease lent
    cdef list sparse, totals
    cdef list tables            # for each parameter what takes it row by row; None until it is needed
    cdef IdleDecay* rests            # for each group what becomes of a row without gradients
    cdef char* ways             # for each parameter how it goes: WHOLE, SOME, EVERY
    cdef str given_rows         # what of the gradients of this step is `Rows`, None if nothing is
    cdef bint turned            # one goes another way than in the step before
    cdef bint has_rows          # one goes row by row
    cdef bint has_late          # one may have rows that are behind

    def __cinit__(self, object kernels, object shape, list places, list params, list states,
                  list slow, list averages, list groups, list rules, list sparse=None, list totals=None,
                  list others=None):
        cdef Py_ssize_t k, count = len(params)
        self.plan.count, self.plan.jobs_count = count, len(rules)
        self.plan.kernels = (<Kernels*> PyCapsule_GetPointer(kernels, "fastopt.kernels"))[0]
        self.plan.spans = <Span*> PyMem_Calloc(count + 1, sizeof(Span))
        self.plan.jobs = <UpdateArgs*> PyMem_Calloc(len(rules) + 1, sizeof(UpdateArgs))
        self.plan.first = <Py_ssize_t*> PyMem_Calloc(count + 1, sizeof(Py_ssize_t))
        self.plan.first_block = <Py_ssize_t*> PyMem_Calloc(count + 1, sizeof(Py_ssize_t))
        self.writeable = <char*> PyMem_Calloc(count + 1, 1)
        self.ways = <char*> PyMem_Calloc(count + 1, 1)
        self.rests = <IdleDecay*> PyMem_Calloc(len(rules) + 1, sizeof(IdleDecay))
        if (self.plan.spans == NULL or self.plan.jobs == NULL or self.plan.first == NULL
                or self.plan.first_block == NULL or self.writeable == NULL or self.ways == NULL
                or self.rests == NULL):
            raise MemoryError()
        self.shape, self.places = shape, places
        self.params, self.states, self.slow, self.averages = params, states, slow, averages
        self.seen, self.rows = [None] * count, [()] * len(rules)
        self.copies, self.unitwise, self.replaced = [], [], []
        for k in range(len(rules)):
            self.plan.jobs[k].kernel = rules[k]
        self.sparse = [""] * count if sparse is None else sparse
        self.totals = [None] * count if totals is None else totals
        self.tables = [None] * count
        for k in range(count):
            self.fill(k, groups[k])
        self.lay_out()
        self.plan.partial = <double*> PyMem_Calloc(2 * self.plan.first_block[count] + 1, sizeof(double))
        self.remember_written(others or [])
        for k in range(count):
            if self.totals[k] is not None:
                self.table(k)
                self.go(k, EVERY)

    def __dealloc__(self):
        PyMem_Free(self.plan.spans)
        PyMem_Free(self.plan.jobs)
        PyMem_Free(self.plan.first)
        PyMem_Free(self.plan.first_block)
        PyMem_Free(self.plan.partial)
        PyMem_Free(self.taken)
        PyMem_Free(self.writeable)
        PyMem_Free(self.ways)
        PyMem_Free(self.rests)

    cdef void lay_out(self) noexcept:
        """Put the gradients that go as a whole behind each other."""
        cdef Py_ssize_t k
        cdef Span* x
        self.plan.bytes = 0
        self.has_large = self.has_rows = False
        for k in range(self.plan.count):
            x = &self.plan.spans[k]
            x.n = 0 if self.ways[k] else self.params[k].size
            self.plan.first[k + 1] = self.plan.first[k] + x.n
            self.plan.first_block[k + 1] = self.plan.first_block[k] + (x.n + BLOCK - 1) // BLOCK
            self.plan.bytes += bytes_of(x)
            self.has_large = self.has_large or is_large(x)
            self.has_rows = self.has_rows or self.ways[k] != WHOLE
        self.turned = False

    cdef int fill(self, Py_ssize_t k, int job) except -1:
        cdef Span* x = &self.plan.spans[k]
        cdef list state = [a for a in self.states[k] if a.shape == self.params[k].shape]
        x.p = data_ptr(self.params[k], True)
        x.s = data_ptr(state[0], True) if len(state) > 0 else NULL
        x.t = data_ptr(state[1], True) if len(state) > 1 else NULL
        x.u = data_ptr(state[2], True) if len(state) > 2 else NULL
        x.v = data_ptr(state[3], True) if len(state) > 3 else NULL
        x.w = data_ptr(self.slow[k], True) if self.slow else NULL
        x.e = data_ptr(self.averages[k], True) if self.averages else NULL
        x.n = self.params[k].size
        x.is_f64 = self.params[k].itemsize == 8
        x.group = job
        return 0

    cdef int remember_written(self, list others) except -1:
        """Sort the address ranges of all that a step writes: no gradient may lie in one of them."""
        cdef list arrays = self.params + others, ranges
        cdef Py_ssize_t i
        for state in self.states:
            arrays += state
        arrays += self.slow + self.averages
        ranges = sorted([(address(a), a.nbytes) for a in arrays if a.nbytes])
        self.taken_count = len(ranges)
        self.taken = <Py_ssize_t*> PyMem_Calloc(2 * self.taken_count + 1, sizeof(Py_ssize_t))
        if self.taken == NULL or self.plan.partial == NULL:
            raise MemoryError()
        for i in range(self.taken_count):
            first, size = ranges[i]
            self.taken[2 * i], self.taken[2 * i + 1] = first, first + size
        return 0

    cdef bint is_written(self, Py_ssize_t a, Py_ssize_t size) noexcept:
        """Whether a step writes anything in [a, a + size)."""
        cdef Py_ssize_t lo = 0, hi = self.taken_count, mid
        while lo < hi:              # the first range that ends behind the start
            mid = (lo + hi) // 2
            if self.taken[2 * mid + 1] <= a:
                lo = mid + 1
            else:
                hi = mid
        return lo < self.taken_count and self.taken[2 * lo] < a + size

    @cython.boundscheck(True)       # a list may shrink while its items are looked at
    cdef bint visit(self, object shape, object grads) except -1:
        """Take every gradient of a nesting; False if the nesting is not that of the parameters."""
        cdef Py_ssize_t i
        if type(shape) is int:
            self.take(shape, grads)
            return True
        if type(shape) is tuple:
            if type(grads) is list:
                if len(<list> grads) != len(<tuple> shape):
                    return False
                for i in range(len(<tuple> shape)):
                    if not self.visit((<tuple> shape)[i], (<list> grads)[i]):
                        return False
                return True
            if not isinstance(grads, (list, tuple)) or len(grads) != len(<tuple> shape):
                return False
            for i in range(len(<tuple> shape)):
                if not self.visit((<tuple> shape)[i], grads[i]):
                    return False
            return True
        if not isinstance(grads, dict) or len(grads) != len(<dict> shape):
            return False
        for key, inner in (<dict> shape).items():
            if key not in grads or not self.visit(inner, grads[key]):
                return False
        return True

    cdef int take(self, Py_ssize_t k, object grad) except -1:
        """Put a gradient's address into the table, unless it is the very object of the last step."""
        cdef Py_buffer view
        if grad is not None and grad is self.seen[k]:
            return 0
        self.seen[k] = None
        if type(grad) is Rows:
            return self.take_rows(k, grad)
        self.go(k, WHOLE if self.totals[k] is None else EVERY)
        if isinstance(grad, generic):
            grad = ascontiguousarray(grad).reshape(())
            grad.flags.writeable = False
        if not isinstance(grad, ndarray) or isinstance(grad, MaskedArray):
            raise TypeError(f"{self.places[k]}: expected a NumPy array, got {type(grad).__name__}")
        PyObject_GetBuffer(grad, &view, PyBUF_STRIDES | PyBUF_FORMAT)
        try:
            self.check(k, grad, &view)
            if (PyBuffer_IsContiguous(&view, b"C") and <Py_ssize_t> view.buf % view.itemsize == 0
                    and not self.is_written(<Py_ssize_t> view.buf, view.len)):
                self.point(k, <char*> view.buf)
                self.writeable[k] = not view.readonly
                self.seen[k] = grad
                return 0
        finally:
            PyBuffer_Release(&view)
        self.copy(k, grad)
        return 0

    cdef void go(self, Py_ssize_t k, char way) noexcept:
        self.turned = self.turned or self.ways[k] != way
        self.ways[k] = way

    cdef RowUpdater table(self, Py_ssize_t k):
        """What takes a parameter row by row."""
        cdef RowUpdater table
        if self.tables[k] is None:
            table = RowUpdater(self.params[k], self.places[k], self.totals[k])
            table.context.kernels, table.context.span = self.plan.kernels, self.plan.spans[k]
            self.tables[k] = table
        return self.tables[k]

    cdef int take_rows(self, Py_ssize_t k, Rows grad) except -1:
        cdef RowUpdater table = self.table(k)
        self.given_rows = self.places[k]
        if not self.sparse[k]:
            raise ValueError(f"{self.places[k]}: this optimizer steps whole arrays: expected an array, "
                             "or an optimizer with sparse='dense', got Rows")
        if grad is NO_ROWS:
            table.bind_no_rows()
        else:
            values = table.check_values(grad)
            if self.is_written(address(values, False), values.nbytes):
                values = values.copy()
            table.bind_rows(grad, values)
        if self.sparse[k] == "dense":
            whole = zeros_like(self.params[k]) if grad is NO_ROWS else table.to_dense()
            table.release()
            return self.take(k, whole)
        if self.sparse[k] == "exact":
            table.enable_deferred()
            self.has_late = True
        self.go(k, SOME)
        return 0

    cdef int check(self, Py_ssize_t k, object grad, const Py_buffer* view) except -1:
        cdef Py_ssize_t i
        cdef object param = self.params[k], shape
        cdef const char* kind = view.format
        cdef bint same
        if kind[0] == c"=":             # how NumPy marks what is not aligned
            kind += 1
        same = kind[0] == (c"d" if self.plan.spans[k].is_f64 else c"f") and kind[1] == 0
        if not same:
            raise TypeError(f"{self.places[k]}: expected dtype {param.dtype} as the parameter has, "
                            f"got {grad.dtype.str if not grad.dtype.isnative else grad.dtype}")
        shape = param.shape
        same = view.ndim == len(<tuple> shape)
        for i in range(view.ndim if same else 0):
            same = same and view.shape[i] == <Py_ssize_t> (<tuple> shape)[i]
        if not same:
            raise ValueError(f"{self.places[k]}: expected shape {shape} as the parameter has, "
                             f"got {grad.shape}")
        return 0

    cdef int copy(self, Py_ssize_t k, object grad) except -1:
        """Use a copy of a gradient whose layout a kernel would misread."""
        cdef Py_buffer view
        copied = array(grad, order="C", copy=True)
        PyObject_GetBuffer(copied, &view, PyBUF_STRIDES)
        self.point(k, <char*> view.buf)
        PyBuffer_Release(&view)
        self.writeable[k] = grad.flags.writeable
        self.copies.append((k, grad, copied))
        return 0

    cdef void point(self, Py_ssize_t k, char* g) noexcept:
        self.moved = self.moved or self.plan.spans[k].g != g
        self.plan.spans[k].g = g

    cdef int check_zeroable(self) except -1:
        """Zeroing one gradient must not change another, nor anything that the step writes."""
        cdef Py_ssize_t k
        cdef list ranges = []
        if self.given_rows is not None:
            raise ValueError(f"{self.given_rows}: zero_grad=True needs an array, got Rows")
        for k in range(self.plan.count):
            if not self.writeable[k]:
                raise ValueError(f"{self.places[k]}: zero_grad=True needs a writeable array, "
                                 "got a read-only one")
        for k, grad, _ in self.copies:
            low, high = byte_bounds(grad)
            if self.is_written(low, high - low):
                raise ValueError(f"{self.places[k]}: zero_grad=True, but the array shares memory with a "
                                 "parameter or state of the optimizer")
        if not self.moved:
            return 0
        for k in range(self.plan.count):
            if self.params[k].size:
                first = <Py_ssize_t> self.plan.spans[k].g
                ranges.append((first, first + self.params[k].nbytes, k))
        ranges.sort()
        for k in range(1, len(ranges)):
            if ranges[k][0] < ranges[k - 1][1]:
                raise ValueError(f"{self.places[ranges[k - 1][2]]} and {self.places[ranges[k][2]]} "
                                 "share memory: with zero_grad=True one would be zeroed before it is used")
        self.moved = False
        return 0

    cdef int set_jobs(self, double scale, double clip, bint zero_grad) except -1:
        cdef Py_ssize_t k, i
        cdef UpdateArgs* job
        cdef tuple row
        for k in range(self.plan.jobs_count):
            row = <tuple> self.rows[k]
            job = &self.plan.jobs[k]
            job.grad_scale = -scale if job.maximize else scale
            job.clip = clip
            job.zero_grad = zero_grad
            if self.replaced:
                job.grad_scale, job.clip, job.zero_grad = 1.0, INFINITE, False
            job.transforms_grad = job.grad_scale != 1.0 or job.l2_decay != 0.0 or job.clip != INFINITE or len(self.unitwise) > 0
            if job.constants + len(row) > MAX_SCALARS:
                raise ValueError(f"a rule has {job.constants + len(row)} scalars, there is room for {MAX_SCALARS}")
            for i in range(len(row)):
                job.scalars[job.constants + i] = <double> row[i]
        return 0

    cdef bint all_finite(self, double scale) noexcept:
        """Whether every scaled gradient is finite, which a sum of squares, overflowing, may not tell."""
        cdef Py_ssize_t k, i
        cdef const Span* x
        for k in range(self.plan.count):
            x = &self.plan.spans[k]
            if self.ways[k] and not (<RowUpdater> self.tables[k]).all_finite(scale):
                return False
            for i in range(x.n):
                if not isfinite(scale * (<double*> x.g)[i] if x.is_f64
                                else <double> (<float> scale * (<float*> x.g)[i])):
                    return False
        return True

    cdef double measure(self) noexcept:
        """Euclidean norm over all gradients; those that go by rows come last."""
        cdef double total
        cdef Py_ssize_t k
        if self.plan.bytes < GATE:
            total = sum_squares(&self.plan)
        else:
            with nogil:
                total = sum_squares(&self.plan)
        for k in range(self.plan.count if self.has_rows else 0):
            if self.ways[k]:
                total += (<RowUpdater> self.tables[k]).sum_squares()
        return sqrt(total)

    cdef void update(self) noexcept:
        if self.has_late:
            self.catch_up_whole()
        if self.plan.bytes < GATE:
            update_part(&self.plan, 0, 1)   # letting go of the interpreter would cost more
        else:
            with nogil:
                spread(update_part, &self.plan)
        if self.has_rows:
            self.update_rows()

    cdef void update_rows(self) noexcept:
        cdef Py_ssize_t k, job
        cdef RowUpdater table
        for k in range(self.plan.count):
            if self.ways[k]:
                table, job = self.tables[k], self.plan.spans[k].group
                if self.ways[k] == EVERY:       # the gradient may have been replaced, or changed by units
                    table.context.span, table.context.values = self.plan.spans[k], self.plan.spans[k].g
                table.update(&self.plan.jobs[job], &self.rests[job])

    cdef void catch_up_whole(self) noexcept:
        """Before a parameter with rows that are behind goes as a whole, they take their steps."""
        cdef Py_ssize_t k
        for k in range(self.plan.count):
            if self.ways[k] == WHOLE and self.tables[k] is not None:
                (<RowUpdater> self.tables[k]).catch_up_all()
                (<RowUpdater> self.tables[k]).drop_deferred()

    def set_group(self, Py_ssize_t k, bint maximize, double decay, tuple constants, double keep=1.0,
                  double ema=0.0):
        """What the hyperparameters of a group decide: the first scalars of its rule, and around it
        whether it ascends, the decay of its weights (L2), what is kept of them before the rule, and the
        weight of the past in an average."""
        cdef Py_ssize_t i
        if len(constants) > MAX_SCALARS:
            raise ValueError(f"a rule has {len(constants)} scalars, there is room for {MAX_SCALARS}")
        for i in range(len(constants)):
            self.plan.jobs[k].scalars[i] = constants[i]
        self.plan.jobs[k].constants = len(constants)
        self.plan.jobs[k].maximize = maximize
        self.plan.jobs[k].l2_decay = decay
        self.plan.jobs[k].decay_factor = keep
        self.plan.jobs[k].ema_decay = ema

    def set_pull(self, Py_ssize_t k, double pull):
        """How far the slow parameters of a group follow in the coming step."""
        self.plan.jobs[k].lookahead_alpha = pull

    def set_rest(self, Py_ssize_t k, Py_ssize_t narrow, Py_ssize_t wide, tuple factors):
        """What becomes of rows without gradients: after how many steps, in float and in double, the
        parameter stays, and what each step leaves of it and of the state."""
        cdef Py_ssize_t j
        self.rests[k].replay_steps[0], self.rests[k].replay_steps[1] = narrow, wide
        for j in range(DECAYED_ARRAYS):
            self.rests[k].factors[j] = factors[j] if j < len(factors) else 1.0

    def catch_up(self, Py_ssize_t k=-1, rows=None):
        """Let rows that steps have left out take these: rows of a parameter, all its rows, all there are."""
        cdef RowUpdater table
        if self.busy:
            raise RuntimeError("catch_up: this optimizer is stepping in another thread")
        self.busy = True
        try:
            if k < 0:
                for table in filter(None, self.tables):
                    table.catch_up_all()
                self.forget()
                return
            table = self.table(k)
            if rows is None:
                table.catch_up_all()
            else:
                table.select_rows(check_row_indices(rows), "rows")
                table.catch_up()
        finally:
            self.busy = False

    def forget(self):
        """Take all rows for caught up."""
        cdef RowUpdater table
        for table in filter(None, self.tables):
            table.drop_deferred()
        self.has_late = False

    def step(self, grads):
        """Check the gradients, then update every parameter, with the scalars that stand in `rows`."""
        self.enter(grads)
        self.plan.nanoseconds = self.plan.bytes // PACE
        try:
            self.set_jobs(1.0, INFINITE, False)
            self.update()
        finally:
            self.leave()

    def begin_step(self, grads):
        """All of `step` but the update.

        Returns
        -------
        int
            Address of a `StepLease`: whoever asked for it updates every element once, and then calls `end`.
        """
        self.enter(grads)
        try:
            self.set_jobs(1.0, INFINITE, False)
        except BaseException:
            self.leave()
            raise
        if self.has_late:
            self.catch_up_whole()
        self.lent = StepLease(self.plan.kernels.update, self.plan.jobs, self.plan.spans, self.plan.count)
        return <Py_ssize_t> &self.lent

    def end_step(self):
        self.leave()

    def step_shaped(self, grads, double scale, double clip, double max_norm, bint zero_grad,
                    bint need_norm, bint skip_nonfinite, prepare):
        """`step` with the gradients changed on the way.

        The gradient is multiplied by `scale`, then by what brings its global norm down to `max_norm`,
        then clamped to [-clip, clip]. `prepare`, if not None, is called before the update: it may
        `survey` the arrays, set other `rows`, and `replace` the gradients.

        Returns
        -------
        float or None
            Norm of the scaled gradients where it was asked for, else 0. None if the step was skipped.
        """
        cdef double length = 0.0
        self.enter(grads)
        self.plan.nanoseconds = self.plan.bytes // PACE * 2     # the norm and the stages of a tile
        try:
            if zero_grad:
                self.check_zeroable()
            if need_norm or skip_nonfinite:
                length = fabs(scale) * self.measure()
                if skip_nonfinite and not length < LARGEST and not self.all_finite(scale):
                    return None
                if max_norm < INFINITE and not max_norm / (length + 1e-6) >= 1.0:   # NaN included
                    scale *= max_norm / (length + 1e-6)
            self.set_jobs(scale, clip, zero_grad)
            if prepare is not None:
                prepare()
                self.set_jobs(scale, clip, zero_grad)
            self.update()
            if zero_grad:
                for _, grad, _ in self.copies:
                    grad[...] = 0
                for grad, _ in self.replaced:
                    grad[...] = 0
            return length
        finally:
            self.leave()

    def survey(self):
        """For each array the two sums that its rule's first pass takes; zeros if it has none."""
        cdef Py_ssize_t k, i
        cdef double x, y
        cdef list sums = []
        if self.replaced:
            self.set_jobs(1.0, INFINITE, False)
        with nogil:
            spread(survey_part, &self.plan)
        for k in range(self.plan.count):
            x = y = 0.0
            for i in range(self.plan.first_block[k], self.plan.first_block[k + 1]):
                x += self.plan.partial[2 * i]
                y += self.plan.partial[2 * i + 1]
            sums.append((x, y))
        return sums

    def unit_sums(self, Py_ssize_t k, Py_ssize_t units):
        """For each unit of a parameter the sums of its gradient, of the gradient's squares, of its own.

        Element i belongs to unit ``i % units``. The gradient is the scaled and clamped one.
        """
        cdef Span x = self.plan.spans[k]
        cdef double* sums
        x.n = self.params[k].size       # also of one that goes row by row
        result = zeros((3, units))
        sums = <double*> data_ptr(result, True)
        with nogil:
            self.plan.kernels.unit_sums(&self.plan.jobs[x.group], &x, units, sums)
        return result

    def set_units(self, Py_ssize_t k, factor, shift):
        """Multiply, in this step, the gradient of each unit by `factor`, and take `shift` off."""
        cdef Span* x = &self.plan.spans[k]
        factor, shift = (array(a, dtype=self.params[k].dtype, order="C", ndmin=1) for a in (factor, shift))
        self.unitwise.append((k, factor, shift))
        x.unit_scale, x.unit_shift, x.n_units = data_ptr(factor, True), data_ptr(shift, True), len(factor)
        self.plan.jobs[x.group].transforms_grad = True

    def gradient(self, Py_ssize_t k):
        """The gradient of a parameter as its rule is to see it, but for the decay of weights."""
        cdef const UpdateArgs* job = &self.plan.jobs[self.plan.spans[k].group]
        grad = self.original(k)
        if job.grad_scale != 1.0:
            grad = multiply(grad, grad.dtype.type(job.grad_scale), out=empty_like(grad))
        if job.clip != INFINITE:
            grad = maximum(grad, grad.dtype.type(-job.clip), out=empty_like(grad))
            grad = minimum(grad, grad.dtype.type(job.clip), out=grad)
        for i, factor, shift in self.unitwise:
            if i == k:
                grad = (grad * factor - shift).reshape(grad.shape)
        return grad

    def replace(self, Py_ssize_t k, grad):
        """Let the kernels take another array for a gradient; if for one, then for all."""
        cdef Py_buffer view
        grad = ascontiguousarray(grad)
        PyObject_GetBuffer(grad, &view, PyBUF_STRIDES)
        self.replaced.append((self.original(k), grad))
        self.point(k, <char*> view.buf)
        PyBuffer_Release(&view)
        self.seen[k] = None
        self.plan.spans[k].unit_scale = NULL

    cdef object original(self, Py_ssize_t k):
        for i, _, copied in self.copies:
            if i == k:
                return copied
        return self.seen[k]

    cdef int enter(self, object grads) except -1:
        if self.busy:
            raise RuntimeError("step: this optimizer is stepping in another thread")
        self.busy = True
        try:
            if not self.visit(self.shape, grads):
                explain(self.shape, grads)
            if self.turned:
                self.lay_out()
            if self.has_rows:
                self.take_every()
        except BaseException:
            self.leave()
            raise
        return 0

    cdef int take_every(self) except -1:
        cdef Py_ssize_t k
        for k in range(self.plan.count):
            if self.ways[k] == EVERY:
                (<RowUpdater> self.tables[k]).bind_all_rows(self.plan.spans[k].g)
        return 0

    cdef void leave(self) noexcept:
        """Let go of copies, and of gradients too large to be kept alive for the sake of a check."""
        cdef Py_ssize_t k
        self.given_rows = None
        for k in range(self.plan.count if self.has_rows else 0):
            if self.ways[k]:
                self.seen[k] = None
                (<RowUpdater> self.tables[k]).release()
        if self.copies:
            self.copies.clear()
        if self.replaced:
            self.replaced.clear()
        if self.unitwise:
            for k in range(self.plan.count):
                self.plan.spans[k].unit_scale = NULL
            self.unitwise.clear()
        if self.has_large:
            for k in range(self.plan.count):
                if is_large(&self.plan.spans[k]):
                    self.seen[k] = None
        self.busy = False
