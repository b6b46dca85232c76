"""The step table: the spans of all parameters, resolved once, so that a step is one call.

A `Table` has one span per parameter array, with the addresses of the parameter and its state. `Table.step` binds
the gradients, copies this step's scalars, and only then lets the kernels write, in parallel parts across
all spans. The kernels come as a capsule from the module of one instruction set.
"""
from collections import namedtuple

from cpython.dict cimport PyDict_GetItem, PyDict_Next, PyDict_Size
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport fabs, sqrt

from fastopt._core.common cimport alloc, fo_flush_begin, fo_flush_end, part_begin, uint64_t
from fastopt._core.deferred_rows cimport DECAYED_ARRAYS, IdleDecay, free_log
from fastopt._core.gradients cimport Gradients
from fastopt._core.rows cimport RowUpdater, check_row_indices
from fastopt._core.runtime cimport data_ptr, n_threads, run_parts
from fastopt._core.span cimport E, G, N_ARRAYS, P, S, W, Kernels, Span, StepLease, UpdateArgs, is_finite

from numpy import array, ascontiguousarray, empty_like, maximum, minimum, multiply, zeros

from fastopt._core.pytree import explain_mismatch

cdef double INFINITE = float("inf")
cdef double MAX_NORM = 3e38     # below it no float32 or float64 in the sum of squares has overflowed

cdef enum:
    PART_ALIGN = 512            # elements: parts end on multiples, so no two threads write one cache line
    NORM_BLOCK = 8192           # elements in one partial sum of the norm, whatever the number of threads
    SERIAL_BELOW = 1 << 19      # steps that touch fewer bytes of arrays than this run serially
    BYTES_PER_NS = 32           # bytes of arrays that one thread processes per nanosecond, in cache
    MIN_PART = 8192             # elements
    MAX_PARTS_PER_THREAD = 32   # so that a thread that is done can help the others

Entry = namedtuple("Entry", "param state group slow average sparse row_sums", defaults=(0, None, None, "", None))
"""One parameter: its array, its state arrays in the order of the rule's `s`, `t`, `u`, `v` (those of another shape
are not passed to the kernels), the index of its scalar group, the buffers of Lookahead and of the moving average,
the meaning of a gradient of `Rows` ("dense", "lazy", "exact", or "" if it is not supported), and the values that a
row-wise rule accumulates, one per row."""


cdef struct StepContext:
    # The table as the threads see it.
    const Kernels* kernels
    UpdateArgs* args            # per scalar group
    Span* spans
    Py_ssize_t* first           # elements before span k; first[count] is their total
    Py_ssize_t* first_block     # the same in blocks of the norm
    double* partial             # one sum or two per block
    bint two_sums               # whether a reduction is the first pass of two-pass kernels, or the norm
    Py_ssize_t count
    Py_ssize_t n_groups
    Py_ssize_t bytes            # of all arrays that a step reads or writes
    Py_ssize_t nanoseconds      # estimated time of this step on one thread


cdef Py_ssize_t find_span(const Py_ssize_t* first, Py_ssize_t count, Py_ssize_t i) noexcept nogil:
    """Last k with first[k] <= i."""
    cdef Py_ssize_t lo = 0, hi = count, mid
    while hi - lo > 1:
        mid = (lo + hi) // 2
        if first[mid] <= i:
            lo = mid
        else:
            hi = mid
    return lo


cdef inline Py_ssize_t align_down(Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """End of a part, in a span of n elements, that would end at i."""
    return 0 if i <= 0 else (n if i >= n else i - i % PART_ALIGN)


cdef void update_part(void* pointer, int part, int parts) noexcept nogil:
    """Update the elements of one part, across spans."""
    cdef const StepContext* context = <const StepContext*> pointer
    cdef const Span* x
    cdef Py_ssize_t total = context.first[context.count]
    cdef Py_ssize_t begin = part_begin(total, part, parts), end = part_begin(total, part + 1, parts)
    cdef Py_ssize_t k = find_span(context.first, context.count, begin), lo, hi
    cdef uint64_t mode = fo_flush_begin()
    while k < context.count and context.first[k] < end:
        x = &context.spans[k]
        lo = align_down(begin - context.first[k], x.n)
        hi = align_down(end - context.first[k], x.n)
        if lo < hi:
            context.kernels.update(&context.args[x.group], x, lo, hi)
        k += 1
    fo_flush_end(mode)


cdef void reduce_part(void* pointer, int part, int parts) noexcept nogil:
    """Sums over the blocks of one part."""
    cdef const StepContext* context = <const StepContext*> pointer
    cdef const Span* x
    cdef Py_ssize_t blocks = context.first_block[context.count]
    cdef Py_ssize_t block = part_begin(blocks, part, parts), end = part_begin(blocks, part + 1, parts)
    cdef Py_ssize_t k = find_span(context.first_block, context.count, block), lo, hi
    cdef uint64_t mode = fo_flush_begin()
    while block < end:
        while context.first_block[k + 1] <= block:
            k += 1
        x = &context.spans[k]
        lo = (block - context.first_block[k]) * NORM_BLOCK
        hi = min(lo + NORM_BLOCK, x.n)
        if context.two_sums:
            context.kernels.reduce_pass(&context.args[x.group], x, lo, hi, &context.partial[2 * block])
        else:
            context.partial[block] = context.kernels.sum_squares(x, lo, hi)
        block += 1
    fo_flush_end(mode)


cdef void parallel_for(void (*task)(void*, int, int) noexcept nogil, StepContext* context) noexcept:
    """Run a task on all parts of the spans or blocks."""
    cdef Py_ssize_t share = context.first[context.count] // n_threads()
    if context.bytes < SERIAL_BELOW:
        task(context, 0, 1)     # without releasing the GIL, which takes longer than the task
        return
    with nogil:
        run_parts(task, context, n_threads() * max(1, min(MAX_PARTS_PER_THREAD, share // MIN_PART)),
                  context.nanoseconds)


cdef class Table:
    """The arrays of one optimizer, resolved to addresses.

    `kernels` is the module of one instruction set, `treedef` and `paths` come from `pytree.flatten`, and
    `kernel_names` has the kernel of each scalar group. No gradient may overlap the `written` arrays, which are
    written between steps. `step_scalars` has the scalars of each group that `set_group` does not set; set them
    before each step.
    """
    cdef StepContext context
    cdef Gradients gradients
    cdef readonly list step_scalars
    cdef object treedef
    cdef list entries, kernel_names
    cdef list fields                # per scalar group, the names of all scalars of its kernel
    cdef list step_fields           # per scalar group, the names of those in `step_scalars` and their indices
    cdef list unit_arrays           # scale and shift of units, kept for one step
    cdef IdleDecay* idle_decay      # per scalar group
    cdef bint busy
    cdef StepLease lease

    def __cinit__(self, object kernels, object treedef, list paths, list entries, list kernel_names,
                  object written=()):
        cdef StepContext* x = &self.context
        cdef Py_ssize_t k, count = len(entries), n_groups = len(kernel_names)
        x.count, x.n_groups = count, n_groups
        x.kernels = <const Kernels*> PyCapsule_GetPointer(kernels.KERNELS, "fastopt.kernels")
        x.spans = <Span*> alloc(count, sizeof(Span))
        x.args = <UpdateArgs*> alloc(n_groups, sizeof(UpdateArgs))
        x.first = <Py_ssize_t*> alloc(count + 1, sizeof(Py_ssize_t))
        x.first_block = <Py_ssize_t*> alloc(count + 1, sizeof(Py_ssize_t))
        self.idle_decay = <IdleDecay*> alloc(n_groups, sizeof(IdleDecay))
        self.entries, self.kernel_names, self.unit_arrays = entries, kernel_names, []
        self.step_scalars = [{} for _ in kernel_names]
        self.fields = [kernels.FIELDS[name] for name in kernel_names]
        self.step_fields = [{} for _ in kernel_names]
        for k in range(n_groups):
            x.args[k].kernel = kernels.KERNEL_INDEX[kernel_names[k]]
        arrays = list(written)
        for k in range(count):
            arrays += self.set_span(k, entries[k])
        self.treedef, self.gradients = treedef, Gradients(paths, entries, arrays)
        self.gradients.spans, self.gradients.kernels = x.spans, x.kernels
        self.assign_offsets()
        x.partial = <double*> alloc(2 * x.first_block[count], sizeof(double))

    def __dealloc__(self):
        PyMem_Free(self.context.spans)
        PyMem_Free(self.context.args)
        PyMem_Free(self.context.first)
        PyMem_Free(self.context.first_block)
        PyMem_Free(self.context.partial)
        PyMem_Free(self.idle_decay)

    cdef list set_span(self, Py_ssize_t k, object entry):
        """Set the addresses of a parameter and all that belongs to it. Returns the arrays."""
        cdef Span* x = &self.context.spans[k]
        state = [a for a in entry.state if a.shape == entry.param.shape]
        for slot, array in {P: entry.param, **dict(enumerate(state, S)), E: entry.average, W: entry.slow}.items():
            if array is not None:
                x.arrays[<int> slot] = data_ptr(array, True)
        x.is_f64 = entry.param.itemsize == 8
        x.group = entry.group
        return [a for a in (entry.param, *entry.state, entry.average, entry.slow) if a is not None]

    cdef void assign_offsets(self) noexcept:
        """Number the elements of all dense gradients consecutively."""
        cdef StepContext* context = &self.context
        cdef Py_ssize_t k, slot
        cdef Span* x
        context.bytes = 0
        for k in range(context.count):
            x = &context.spans[k]
            x.n = 0 if self.gradients.by_row[k] else self.entries[k].param.size
            context.first[k + 1] = context.first[k] + x.n
            context.first_block[k + 1] = context.first_block[k] + (x.n + NORM_BLOCK - 1) // NORM_BLOCK
            for slot in range(N_ARRAYS):    # the gradient may not be bound yet
                if slot == G or x.arrays[slot] != NULL:
                    context.bytes += x.n * (8 if x.is_f64 else 4)
        self.gradients.layout_changed = False

    # --- Scalars ---

    def set_group(self, Py_ssize_t k, bint maximize, double l2_decay, dict constants, double decay_factor=1.0,
                  double ema_decay=0.0):
        """Set everything of a scalar group that the hyperparameters alone determine.

        `constants` are scalars of the kernel by name; the others are read from `step_scalars` at each step.
        """
        cdef UpdateArgs* args = &self.context.args[k]
        cdef tuple names = self.fields[k]
        unknown = constants.keys() - set(names)
        if unknown:
            raise TypeError(
                f"{self.kernel_names[k]}: unknown scalar {min(unknown)!r}, expected {', '.join(names)}")
        self.step_fields[k] = {name: i for i, name in enumerate(names) if name not in constants}
        for name, value in constants.items():
            args.scalars[<Py_ssize_t> names.index(name)] = value
        args.maximize, args.l2_decay = maximize, l2_decay
        args.decay_factor, args.ema_decay = decay_factor, ema_decay

    def set_lookahead_alpha(self, Py_ssize_t k, double alpha):
        """Set the fraction by which the slow parameters of a scalar group move in the coming step."""
        self.context.args[k].lookahead_alpha = alpha

    def set_idle_decay(self, Py_ssize_t k, Py_ssize_t steps_f32, Py_ssize_t steps_f64, tuple factors):
        """Set the effect of steps without a gradient on the rows of a scalar group, see `options.sparse`."""
        cdef Py_ssize_t j
        self.idle_decay[k].replay_steps[0], self.idle_decay[k].replay_steps[1] = steps_f32, steps_f64
        for j in range(DECAYED_ARRAYS):
            self.idle_decay[k].factors[j] = factors[j] if j < len(factors) else 1.0

    cdef int set_args(self, double scale, double clip, bint zero_grad) except -1:
        """Set everything that changes from step to step."""
        cdef Py_ssize_t k
        cdef UpdateArgs* args
        cdef bint is_replaced = len(self.gradients.replaced) > 0, has_units = len(self.unit_arrays) > 0
        for k in range(self.context.n_groups):
            args = &self.context.args[k]
            args.grad_scale = -scale if args.maximize else scale
            args.clip = clip
            args.zero_grad = zero_grad
            if is_replaced:
                args.grad_scale, args.clip, args.zero_grad = 1.0, INFINITE, False
            args.transforms_grad = (
                args.grad_scale != 1.0 or args.l2_decay != 0.0 or args.clip != INFINITE or has_units)
            self.set_step_scalars(k, args)
        return 0

    cdef int set_step_scalars(self, Py_ssize_t k, UpdateArgs* args) except -1:
        cdef dict scalars = self.step_scalars[k], fields = self.step_fields[k]
        cdef PyObject* name
        cdef PyObject* value
        cdef PyObject* index
        cdef Py_ssize_t position = 0
        if PyDict_Size(scalars) != PyDict_Size(fields):
            return self.refuse_step_scalars(k)
        while PyDict_Next(scalars, &position, &name, &value):
            index = PyDict_GetItem(fields, <object> name)
            if index == NULL:
                return self.refuse_step_scalars(k)
            args.scalars[<Py_ssize_t> <object> index] = <double> <object> value
        return 0

    cdef int refuse_step_scalars(self, Py_ssize_t k) except -1:
        raise TypeError(f"{self.kernel_names[k]}: expected the scalars {', '.join(self.step_fields[k]) or 'none'} "
                        f"for each step, got {', '.join(self.step_scalars[k]) or 'none'}")

    # --- Steps ---

    def step(self, grads):
        """Check the gradients, then update every parameter with the scalars in `step_scalars`."""
        self.begin(grads)
        self.context.nanoseconds = self.context.bytes // BYTES_PER_NS
        try:
            self.set_args(1.0, INFINITE, False)
            self.update()
        finally:
            self.release()

    def full_step(self, grads, double scale, double clip, double max_norm, bint zero_grad,
                  bint need_norm, bint skip_nonfinite, prepass):
        """Take a step with options; return the norm of the scaled gradients, or None if the step was skipped.

        The gradient is multiplied by `scale`, then by the factor that limits its global norm to `max_norm`,
        then clamped to [-clip, clip]. `prepass`, if not None, is called before the update: it may call
        `unit_sums`, `set_units`, `replace_grad` and `reduce_pass`, and change `step_scalars`. The norm is 0
        unless `need_norm` or `skip_nonfinite`.
        """
        cdef double norm = 0.0
        self.begin(grads)
        self.context.nanoseconds = self.context.bytes // BYTES_PER_NS * 2   # the norm and the stages of a tile
        try:
            if zero_grad:
                self.gradients.check_zeroable()
            if need_norm or skip_nonfinite:
                norm = fabs(scale) * self.global_norm()
                if skip_nonfinite and not norm < MAX_NORM and not self.all_finite(scale):
                    return None
                if max_norm < INFINITE and not max_norm / (norm + 1e-6) >= 1.0:     # also if it is NaN
                    scale *= max_norm / (norm + 1e-6)
            self.set_args(scale, clip, zero_grad)
            if prepass is not None:
                prepass()
                self.set_args(scale, clip, zero_grad)
            self.update()
            if zero_grad:       # also the gradients that the kernels have not seen
                for _, grad, _ in self.gradients.copies:
                    grad[...] = 0
                for grad, _ in self.gradients.replaced:
                    grad[...] = 0
            return norm
        finally:
            self.release()

    def begin_step(self, grads):
        """Do everything that `step` does except the update; return the address of a `StepLease`.

        The caller updates every element once, then calls `end_step`.
        """
        self.begin(grads)
        try:
            self.set_args(1.0, INFINITE, False)
        except BaseException:
            self.release()
            raise
        if self.gradients.has_deferred:
            self.catch_up_dense()
        self.lease = StepLease(self.context.kernels.update, self.context.args, self.context.spans)
        return <Py_ssize_t> &self.lease

    def end_step(self):
        self.release()

    cdef int begin(self, object grads) except -1:
        if self.busy:
            raise RuntimeError("step: this optimizer is stepping in another thread")
        self.busy = True
        try:
            if not self.gradients.bind_tree(self.treedef, grads):
                explain_mismatch(self.treedef, grads)
            if self.gradients.layout_changed:
                self.assign_offsets()
        except BaseException:
            self.release()
            raise
        return 0

    cdef void release(self) noexcept:
        """End a step: release the gradients and what was kept for one step."""
        cdef Py_ssize_t k
        self.gradients.release()
        if self.unit_arrays:
            for k in range(self.context.count):
                self.context.spans[k].unit_scale = NULL
            self.unit_arrays.clear()
        self.busy = False

    cdef void update(self) noexcept:
        cdef RowUpdater updater
        cdef int group
        if self.gradients.has_deferred:
            self.catch_up_dense()
        parallel_for(update_part, &self.context)
        for updater in self.gradients.active:
            group = updater.context.span.group
            updater.update(&self.context.args[group], &self.idle_decay[group])

    # --- Sums and replaced gradients ---

    cdef double global_norm(self) noexcept:
        """Euclidean norm over all gradients; those that are bound by row come last."""
        cdef double total = 0.0
        cdef RowUpdater updater
        cdef Py_ssize_t i
        self.context.two_sums = False
        parallel_for(reduce_part, &self.context)
        for i in range(self.context.first_block[self.context.count]):
            total += self.context.partial[i]
        for updater in self.gradients.active:
            total += updater.sum_squares()
        return sqrt(total)

    cdef bint all_finite(self, double scale) noexcept:
        """Whether every scaled gradient is finite: a sum of squares may have overflowed."""
        cdef Py_ssize_t k
        cdef RowUpdater updater
        for k in range(self.context.count):
            if not is_finite(&self.context.spans[k], self.context.spans[k].n, scale):
                return False
        for updater in self.gradients.active:
            if not updater.all_finite(scale):
                return False
        return True

    def reduce_pass(self):
        """Run the first pass of all two-pass kernels. Returns two sums per parameter; zeros for other kernels."""
        cdef Py_ssize_t k, i
        cdef double x, y
        cdef list sums = []
        if self.gradients.replaced:
            self.set_args(1.0, INFINITE, False)
        self.context.two_sums = True
        parallel_for(reduce_part, &self.context)
        for k in range(self.context.count):
            x = y = 0.0
            for i in range(self.context.first_block[k], self.context.first_block[k + 1]):
                x += self.context.partial[2 * i]
                y += self.context.partial[2 * i + 1]
            sums.append((x, y))
        return sums

    def unit_sums(self, Py_ssize_t k, Py_ssize_t units):
        """Sum the gradient, its squares and the squares of a parameter over each unit.

        Element i belongs to unit ``i % units``. The gradient is scaled and clamped.
        """
        cdef Span x = self.context.spans[k]
        cdef double* sums
        x.n = self.entries[k].param.size    # also if it is bound by row
        result = zeros((3, units))
        sums = <double*> data_ptr(result, True)
        with nogil:
            self.context.kernels.unit_sums(&self.context.args[x.group], &x, units, sums)
        return result

    def set_units(self, Py_ssize_t k, scale, shift):
        """In this step, multiply the gradient of each unit by `scale` and subtract `shift`."""
        cdef Span* x = &self.context.spans[k]
        dtype = self.entries[k].param.dtype
        scale, shift = (array(a, dtype=dtype, order="C", ndmin=1) for a in (scale, shift))
        self.unit_arrays.append((k, scale, shift))
        x.unit_scale, x.unit_shift, x.n_units = data_ptr(scale, True), data_ptr(shift, True), len(scale)
        self.context.args[x.group].transforms_grad = True

    def transformed_grad(self, Py_ssize_t k):
        """Gradient of a parameter as its rule sees it, except for L2 weight decay."""
        cdef const UpdateArgs* args = &self.context.args[self.context.spans[k].group]
        grad = self.gradients.original(k)
        if args.grad_scale != 1.0:
            grad = multiply(grad, grad.dtype.type(args.grad_scale), out=empty_like(grad))
        if args.clip != INFINITE:
            grad = maximum(grad, grad.dtype.type(-args.clip), out=empty_like(grad))
            grad = minimum(grad, grad.dtype.type(args.clip), out=grad)
        for i, scale, shift in self.unit_arrays:
            if i == k:
                grad = (grad * scale - shift).reshape(grad.shape)
        return grad

    def replace_grad(self, Py_ssize_t k, grad):
        """Let the kernels use another array for a gradient; if for one, then for all."""
        grad = ascontiguousarray(grad)
        self.gradients.replaced.append((self.gradients.original(k), grad))
        self.gradients.set_grad_ptr(k, data_ptr(grad, False))
        self.gradients.cached[k] = None
        self.context.spans[k].unit_scale = NULL

    # --- Deferred rows ---

    def catch_up(self, Py_ssize_t k=-1, rows=None):
        """Apply skipped steps to some rows of parameter k, to all of them, or to all rows of all parameters."""
        cdef RowUpdater updater
        if self.busy:
            raise RuntimeError("catch_up: this optimizer is stepping in another thread")
        self.busy = True
        try:
            if k < 0:
                for updater in filter(None, self.gradients.row_updaters):
                    updater.catch_up(True)
                self.drop_deferred()
                return
            updater = self.gradients.row_updater(k)
            if rows is not None:
                updater.select_rows(check_row_indices(rows), "rows")
            updater.catch_up(rows is None)
        finally:
            self.busy = False

    def drop_deferred(self):
        """Discard all skipped steps."""
        cdef RowUpdater updater
        for updater in filter(None, self.gradients.row_updaters):
            free_log(&updater.context.deferred)
        self.gradients.has_deferred = False

    cdef void catch_up_dense(self) noexcept:
        """Apply skipped steps to parameters that now have a dense gradient."""
        cdef Py_ssize_t k
        cdef RowUpdater updater
        for k in range(self.context.count):
            updater = self.gradients.row_updaters[k]
            if updater is not None and not self.gradients.by_row[k]:
                updater.catch_up(True)
                free_log(&updater.context.deferred)
