"""The step table: the spans of all parameters, resolved once, so that a step is one call.

A `Table` has one span per parameter array, with the addresses of the parameter and its state. `Table.step` binds
the gradients, computes this step's scalars, and only then lets the kernels write, in parallel parts across
all spans. It counts the step in the same call, so an interrupt cannot come between the update and its count.
The kernels come as a capsule from the module of one instruction set. `step_context.pxd` has what runs in parallel.

The class has more than 300 lines because a step is one call: every stage is a method without a Python call.
"""
from collections import namedtuple

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport fabs, isfinite, sqrt
from libc.stdint cimport int64_t, uint16_t, uint64_t
from libc.string cimport memcpy

from fastopt._core.containers cimport ContainerWatch
from fastopt._core.deferred_rows cimport DECAYED_ARRAYS, IdleDecay
from fastopt._core.gradients cimport ABSENT, ALL_ROWS, DENSE, Gradients, same_order, written_ptr
from fastopt._core.kernel_scalars cimport set_constants, set_step_scalars
from fastopt._core.rows cimport RowUpdater, check_row_indices
from fastopt._core.runtime cimport Team, TeamNumber, TeamRun, data_ptr, process_number
from fastopt._core.span cimport (
    BFLOAT16, FLOAT16, FLOAT32, MAX_SCALARS, NATIVE, SPLIT, Format, Kernels, Span, StepLease, UpdateArgs,
)
from fastopt._core.step_context cimport (
    BYTES_PER_NS, NEW_COPIES_FLAG, NEW_STATE_FLAG, NORM_BLOCK, SERIAL_BELOW, StepContext, bytes_of, commit,
    parallel_for, reduce_part, sum_squares, update_part,
)

from numpy import array, asarray, empty, empty_like, maximum, minimum, multiply, zeros

from fastopt._core.encoded import CODES as ENCODINGS, Encoded
from fastopt._core.formats import FLOAT32 as F32, FLOAT64 as F64, code, computing_dtype, decode, normalize
from fastopt._core.layout import copy_with_layout, same_layout, with_layout

cdef extern from "fo_half.h" nogil:
    float fo_half_to_float(uint16_t half)

cdef extern from "fo_codec.h" nogil:
    float fo_from_bfloat16(uint16_t x)
    uint16_t fo_to_bfloat16_nearest(float x)
    uint16_t fo_to_half_nearest(float x)
    uint64_t fo_noise_of_param(uint64_t seed, uint64_t param)

cdef double INFINITE = float("inf")
cdef double MAX_NORM = 3e38     # below it no float32 or float64 in the sum of squares has overflowed

cdef enum:
    MAX_ATTEMPTS = 100          # to finish a step when signal handlers raise exceptions or memory is short

Entry = namedtuple("Entry", "param state slow average sparse row_sums to_nearest seed low origin position",
                   defaults=(None, None, "", None, False, 0, None, 0, 0))

# Flags of a parameter: its state arrays have their initial values; its slow parameters and moving average have
# to be copied from it before the next step.
NEW_STATE = NEW_STATE_FLAG
NEW_COPIES = NEW_COPIES_FLAG

SUM_BLOCK = NORM_BLOCK      # elements of a parameter over which the sums of a step are formed

cdef class StepCounter:
    """Counts of an optimizer, and marks on what its step plan has cached.

    Attributes
    ----------
    steps : int
        Number of steps taken.
    skipped_steps : int
    grad_norm : float or None
        Norm of the gradients in the last step that measured it.
    stale : bool
        The scalars must be computed again before the next step: something was set or is scheduled.
    stale_hyperparams : bool
        A hyperparameter was set that may select another kernel.
    stale_counts : bool
        The arrays of a scalar group may have taken different numbers of steps.
    exchanged : bool
        The parameters hold other values in an `Exchange`.
    """
    cdef public int64_t steps, skipped_steps
    cdef public object grad_norm
    cdef public bint stale, stale_hyperparams, stale_counts
    cdef readonly bint exchanged

    def __init__(self, steps=0, skipped_steps=0, grad_norm=None):
        self.steps, self.skipped_steps, self.grad_norm = steps, skipped_steps, grad_norm
        self.mark()

    def __reduce__(self):
        return StepCounter, (self.steps, self.skipped_steps, self.grad_norm)

    def mark(self):
        """Mark everything as out of date."""
        self.stale = self.stale_hyperparams = self.stale_counts = True


cdef class Exchange:
    """Context manager that exchanges the parameters and other arrays of the same shapes, and exchanges them back.

    Those of parameters of 16 bits are float32: elements whose parameter was not changed meanwhile then have their
    bits again.

    It has no Python code in which a signal handler could run, so an interrupt leaves nothing half exchanged.
    """
    cdef StepCounter counter
    cdef list arrays, others, scratch
    cdef list encoded               # (parameter, other array, its copy) of parameters of 16 bits
    cdef str name

    def __init__(self, StepCounter counter not None, str name, list arrays, list others):
        self.counter, self.name = counter, name
        native = [k for k, array in enumerate(arrays) if array.dtype == others[k].dtype]
        self.arrays, self.others = [arrays[k] for k in native], [others[k] for k in native]
        self.scratch = [empty_like(array) for array in self.arrays]
        self.encoded = [
            (arrays[k], copy_with_layout(others[k], arrays[k], F32) if not same_layout(others[k], arrays[k])
             else others[k], with_layout(empty(arrays[k].size, F32), arrays[k]))
            for k in range(len(arrays)) if arrays[k].dtype != others[k].dtype
        ]

    def __enter__(self):
        if self.counter.exchanged:
            raise RuntimeError(f"{self.name}: not allowed inside swapped_ema or averaged")
        self.exchange(True)

    def __exit__(self, *error):
        if self.counter.exchanged:
            self.exchange(False)

    cdef int exchange(self, bint exchanged) except -1:
        assign_all(self.scratch, self.arrays)
        assign_all(self.arrays, self.others)
        assign_all(self.others, self.scratch)
        for array, other, copied in self.encoded:
            exchange_encoded(array, other, copied, exchanged)
        self.counter.exchanged = exchanged
        self.counter.mark()
        return 0


cdef int exchange_encoded(array, other, copied, bint exchanged) except -1:
    """Exchange a parameter of 16 bits and an array of float32, whose copy has the bits that it gets back."""
    cdef uint16_t* p = <uint16_t*> data_ptr(array, True)
    cdef float* x = <float*> data_ptr(other, True)
    cdef float* saved = <float*> data_ptr(copied, True)
    cdef bint is_half = array.dtype.kind == "f"
    cdef uint16_t old
    cdef Py_ssize_t i
    for i in range(array.size):
        old = p[i]
        p[i] = fo_to_half_nearest(x[i]) if is_half else fo_to_bfloat16_nearest(x[i])
        if exchanged:
            saved[i] = x[i]
        elif old == (fo_to_half_nearest(saved[i]) if is_half else fo_to_bfloat16_nearest(saved[i])):
            x[i] = saved[i]
            continue
        x[i] = fo_half_to_float(old) if is_half else fo_from_bfloat16(old)
    return 0


cdef int assign_all(list arrays, list values) except -1:
    """Copy values into arrays. An assignment that fails for lack of memory is repeated."""
    cdef Py_ssize_t k
    cdef int attempt
    for k in range(len(arrays)):
        for attempt in range(MAX_ATTEMPTS):
            try:
                arrays[k][...] = values[k]
                break
            except MemoryError:
                if attempt == MAX_ATTEMPTS - 1:
                    raise
    return 0


cdef inline double grad_value(const Span* x, Py_ssize_t i) noexcept:
    """Element i of a gradient."""
    if x.grad_format == FLOAT16:
        return <double> fo_half_to_float((<uint16_t*> x.g)[i])
    if x.grad_format == BFLOAT16:
        return <double> fo_from_bfloat16((<uint16_t*> x.g)[i])
    if x.grad_format == FLOAT32 or (x.grad_format == NATIVE and not x.is_f64):
        return <double> (<float*> x.g)[i]
    return (<double*> x.g)[i]


cdef class Table:
    """The arrays of one optimizer, resolved to addresses.

    Parameters
    ----------
    kernels : module
        Kernel module of one instruction set, see `dispatch.Kernels`.
    treedef
        Nesting of the parameters as `pytree.flatten` returns it.
    paths : list of str
        Name of each gradient in errors: ``grads[2]["W"]``.
    entries : list of Entry
        Per parameter:

        - ``param``: the array, checked by `pytree.flatten`.
        - ``state``: its state arrays, in the order of the rule's `s`, `t`, `u`, `v`, in the memory layout of the
          parameter; those that are stored with fewer bits are `Encoded`. Those of another shape are not passed to
          the kernels.
        - ``slow``, ``average``: buffers of Lookahead and of the moving average, or None.
        - ``sparse``: meaning of a gradient of `Rows`: "dense", "lazy" or "exact"; "" if it is not supported.
        - ``row_sums``: what a row-wise rule accumulates, one value per row, else None.
        - ``to_nearest``: whether a parameter of 16 bits is rounded to nearest, else stochastically.
        - ``seed``: of the noise of stochastic rounding.
        - ``low``: low 16 bits of a parameter of bfloat16 whose high bits are `param`, or None.
        - ``origin``: if `param` is a part of a parameter, the index of its first element there.
        - ``position``: index of the parameter in the optimizer, which the noise depends on.
    counter : StepCounter
    counts : ndarray of int64
        Number of steps that each parameter has taken.
    flags : ndarray of uint8
        Sum of `NEW_STATE` and `NEW_COPIES`, for each parameter.
    step_scalars : callable
        ``step_scalars(hp, t)`` returns the scalars of a scalar group at the step `t` of its parameters that
        `set_constants` did not set, by name.
    written : sequence of ndarray
        Further arrays that are written between steps: no gradient may overlap them.

    pending : StepCounter, optional
        Counter of accumulated gradients, which is set to 0 when a step was taken or skipped.

    Attributes
    ----------
    watch : ContainerWatch, optional
        Called before each step.
    partition : Partition, optional
        If this table has the part of the parameters that one of several processes updates, the object that
        combines sums over the gradients of all parts.
    """
    cdef StepContext context
    cdef Gradients gradients
    cdef list entries
    cdef object kernels, rule_scalars
    cdef list kernel_names, hps     # per scalar group
    cdef list fields                # per scalar group, the names of all scalars of its kernel
    cdef list step_fields           # per scalar group, the names of those of each step
    cdef char* step_field_index     # MAX_SCALARS per group: their indices among all scalars
    cdef list unit_arrays           # scale and shift of units, kept for one step
    cdef list staged, staged_values     # state arrays and their next values, written in the update
    cdef IdleDecay* idle_decay      # per scalar group
    cdef Py_ssize_t* sizes          # elements of each parameter
    cdef int busy                   # number of the process during a step, else 0
    cdef StepCounter counter, pending
    cdef tuple count_arrays         # keeps the addresses of counts and flags valid
    cdef StepLease lease
    cdef Team team
    cdef public ContainerWatch watch
    cdef public object partition

    def __cinit__(self, object kernels, object treedef, list paths, list entries, StepCounter counter not None,
                  object counts, object flags, object step_scalars, object written=(),
                  StepCounter pending=None):
        cdef StepContext* x = &self.context
        cdef Py_ssize_t k, count = len(entries)
        x.count = count
        x.kernels = (<Kernels*> PyCapsule_GetPointer(kernels.KERNELS, "fastopt.kernels"))[0]
        x.spans = <Span*> PyMem_Calloc(count + 1, sizeof(Span))
        x.first = <Py_ssize_t*> PyMem_Calloc(count + 1, sizeof(Py_ssize_t))
        x.first_block = <Py_ssize_t*> PyMem_Calloc(count + 1, sizeof(Py_ssize_t))
        # There are at most as many scalar groups as parameters.
        x.args = <UpdateArgs*> PyMem_Calloc(count + 1, sizeof(UpdateArgs))
        self.idle_decay = <IdleDecay*> PyMem_Calloc(count + 1, sizeof(IdleDecay))
        self.step_field_index = <char*> PyMem_Calloc(count + 1, MAX_SCALARS)
        x.first_member = <Py_ssize_t*> PyMem_Calloc(count + 1, sizeof(Py_ssize_t))
        x.group_seen = <char*> PyMem_Calloc(count + 1, 1)
        self.sizes = <Py_ssize_t*> PyMem_Calloc(count + 1, sizeof(Py_ssize_t))
        if (x.spans == NULL or x.args == NULL or x.first == NULL or x.first_block == NULL
                or self.idle_decay == NULL or self.step_field_index == NULL or x.first_member == NULL
                or x.group_seen == NULL or self.sizes == NULL):
            raise MemoryError()
        self.kernels, self.entries, self.unit_arrays = kernels, entries, []
        self.staged, self.staged_values = [], []
        self.rule_scalars, self.counter, self.pending = step_scalars, counter, pending
        x.steps, x.stale, x.stale_counts = &counter.steps, &counter.stale, &counter.stale_counts
        x.pending_steps = NULL if pending is None else &pending.steps
        self.count_arrays = (counts, flags)
        x.counts, x.flags = <int64_t*> data_ptr(counts, True), <unsigned char*> data_ptr(flags, True)
        x.has_flags = True
        arrays = list(written)
        for k in range(count):
            self.set_span(k, entries[k])
            arrays.append(entries[k].param)
            for a in entries[k].state:
                arrays += a.arrays() if isinstance(a, Encoded) else [a]
            arrays += [a for a in (entries[k].slow, entries[k].average, entries[k].low) if a is not None]
        self.gradients = Gradients(
            treedef, paths, [e.param for e in entries], [e.sparse for e in entries],
            [e.row_sums for e in entries], arrays)
        self.gradients.spans, self.gradients.kernels = x.spans, &x.kernels
        x.layouts = self.gradients.layouts
        self.assign_offsets()
        x.partial = <double*> PyMem_Calloc(2 * x.first_block[count] + 1, sizeof(double))
        if x.partial == NULL:
            raise MemoryError()
        for k in range(count):
            if entries[k].row_sums is not None:
                self.gradients.row_updater(k)
                self.gradients.set_layout(k, ALL_ROWS)

    def __dealloc__(self):
        PyMem_Free(self.context.spans)
        PyMem_Free(self.context.args)
        PyMem_Free(self.context.first)
        PyMem_Free(self.context.first_block)
        PyMem_Free(self.context.partial)
        PyMem_Free(self.idle_decay)
        PyMem_Free(self.step_field_index)
        PyMem_Free(self.context.first_member)
        PyMem_Free(self.context.group_seen)
        PyMem_Free(self.sizes)

    cdef int set_span(self, Py_ssize_t k, object entry) except -1:
        cdef Span* x = &self.context.spans[k]
        param, shape = entry.param, entry.param.shape
        cdef list state = [a for a in entry.state if a.shape == shape]
        cdef int i
        for a in [*state, *[b for b in (entry.slow, entry.average) if b is not None]]:
            if not same_order(a.view if isinstance(a, Encoded) else a, param):
                raise ValueError(f"state: expected the memory layout of the parameter with strides "
                                 f"{param.strides}, got strides {a.strides}; make both C-contiguous")
        x.p = written_ptr(param)
        for i in range(len(state)):
            a = state[i]
            if isinstance(a, Encoded):
                x.state_formats[i], x.has_encoded_state = <Format> <int> ENCODINGS[a.encoding], True
                x.scales[i] = <float*> written_ptr(a.scales)
                if a.encoding != "bfloat16":
                    x.block = a.block_size
                state[i] = a.stored
        x.s = written_ptr(state[0]) if len(state) > 0 else NULL
        x.t = written_ptr(state[1]) if len(state) > 1 else NULL
        x.u = written_ptr(state[2]) if len(state) > 2 else NULL
        x.v = written_ptr(state[3]) if len(state) > 3 else NULL
        x.w = written_ptr(entry.slow) if entry.slow is not None else NULL
        x.e = written_ptr(entry.average) if entry.average is not None else NULL
        x.n = self.sizes[k] = param.size
        computing = computing_dtype(param.dtype)
        x.is_f64 = computing == F64
        x.param_format = <Format> <int> code(param.dtype, computing)
        if entry.low is not None:
            x.low, x.param_format = written_ptr(entry.low), SPLIT
        x.is_encoded = x.param_format != NATIVE or x.has_encoded_state
        x.to_nearest, x.noise = entry.to_nearest, fo_noise_of_param(entry.seed, entry.position)
        x.origin = entry.origin
        return 0

    cdef void assign_offsets(self) noexcept:
        """Number the elements of all dense gradients consecutively."""
        cdef StepContext* context = &self.context
        cdef Py_ssize_t k
        cdef Span* x
        context.bytes = 0
        for k in range(context.count):
            x = &context.spans[k]
            x.n = self.sizes[k] if self.gradients.layouts[k] == DENSE else 0
            context.first[k + 1] = context.first[k] + x.n
            context.first_block[k + 1] = context.first_block[k] + (x.n + NORM_BLOCK - 1) // NORM_BLOCK
            context.bytes += bytes_of(x)
        self.gradients.update_layout()
        context.has_absent = self.gradients.has_absent

    def set_team(self, size_t run, size_t max_threads, size_t thread_index):
        """Run steps on threads of OpenMP, given the addresses of three functions of its library (`fo_pool.h`)."""
        self.team = Team(<TeamRun> run, <TeamNumber> max_threads, <TeamNumber> thread_index)
        self.context.team = &self.team

    # --- Scalars ---

    def set_scalar_groups(self, list group_of, list kernel_names, list hps):
        """Divide the parameters into scalar groups.

        Parameters
        ----------
        group_of : list of int
            Index of the scalar group of each parameter. All parameters of one have taken as many steps.
        kernel_names, hps : list
            Kernel and hyperparameters of each scalar group.
        """
        cdef Py_ssize_t k, n_groups = len(kernel_names)
        self.kernel_names, self.hps = kernel_names, hps
        self.fields = [self.kernels.FIELDS[name] for name in kernel_names]
        self.step_fields = [[] for _ in kernel_names]
        for k in range(n_groups):
            self.context.args[k].kernel = self.kernels.KERNEL_INDEX[kernel_names[k]]
            self.context.args[k].decay_factor = 1.0
        for k in range(self.context.count - 1, -1, -1):
            self.context.spans[k].group = group_of[k]
            self.context.first_member[self.context.spans[k].group] = k
        self.context.n_groups = n_groups
        self.context.has_flags = True

    def set_constants(self, Py_ssize_t k, dict constants not None):
        """Set the scalars of a scalar group that the hyperparameters alone determine, by name.

        The other scalars of the kernel come from `step_scalars` at each step.
        """
        self.step_fields[k] = set_constants(&self.context.args[k], self.kernel_names[k], self.fields[k], constants,
                                            self.step_field_index + k * MAX_SCALARS)

    def set_decay(self, Py_ssize_t k, bint maximize, double l2_decay, double decay_factor, bint decays_copy):
        """Set the sign of the gradient and the weight decay of a scalar group, see `UpdateArgs`."""
        cdef UpdateArgs* args = &self.context.args[k]
        args.maximize, args.l2_decay = maximize, l2_decay
        args.decay_factor, args.decays_copy = decay_factor, decays_copy

    def set_option(self, Py_ssize_t k, str name, double scalar):
        """Set the scalar of an option for a scalar group."""
        if name == "ema":
            self.context.args[k].ema_decay = scalar
        else:
            self.context.args[k].lookahead_alpha = scalar

    def set_idle_decay(self, Py_ssize_t k, Py_ssize_t steps_f32, Py_ssize_t steps_f64, tuple factors):
        """Set the effect of steps without a gradient on the rows of a scalar group, see `options.sparse`."""
        cdef Py_ssize_t j
        self.idle_decay[k].replay_steps[0], self.idle_decay[k].replay_steps[1] = steps_f32, steps_f64
        for j in range(DECAYED_ARRAYS):
            self.idle_decay[k].factors[j] = factors[j] if j < len(factors) else 1.0

    cdef int set_args(self, double scale, double clip, bint zero_grad) except -1:
        """Set everything that changes from step to step."""
        cdef Py_ssize_t k
        cdef int64_t step
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
            step = self.context.counts[self.context.first_member[k]] + 1
            args.step = <uint64_t> step
            set_step_scalars(
                args, self.kernel_names[k], self.step_fields[k], self.step_field_index + k * MAX_SCALARS,
                self.rule_scalars(self.hps[k], step))
        return 0

    # --- Steps ---

    def step(self, grads):
        """Check the gradients, update every parameter that has one, and count the step. Returns True."""
        self.begin(grads)
        self.context.nanoseconds = self.context.bytes // BYTES_PER_NS
        try:
            self.set_args(1.0, INFINITE, False)
            self.before_update()
            self.update()
        finally:
            self.release()
        return True

    def full_step(self, grads, double scale, double clip, double max_norm, bint zero_grad,
                  bint need_norm, bint skip_nonfinite, prepass=None, second_scalars=None):
        """Take a step with options.

        The gradient is multiplied by `scale`, then by the factor that limits its global norm to `max_norm`,
        then clamped to [-clip, clip].

        Parameters
        ----------
        prepass : callable, optional
            Called before the update: it may call `is_absent`, `unit_sums`, `set_units`, `transformed_grad`,
            `replace_grad` and `stage_state`.
        second_scalars : callable, optional
            Called between the two passes of two-pass kernels with the two sums of each parameter; it sets
            what `step_scalars` needs of them.

        Returns
        -------
        bool
            False if the step was skipped; gradients have then been set to zero if that was asked for.
        """
        cdef double norm = 0.0
        self.begin(grads)
        self.context.nanoseconds = self.context.bytes // BYTES_PER_NS * 2   # the norm and the stages of a tile
        interrupt = None
        try:
            if zero_grad:
                self.gradients.check_zeroable()
            if need_norm or skip_nonfinite:
                norm = fabs(scale) * self.global_norm()
                if skip_nonfinite and not norm < MAX_NORM and not self.are_all_finite(scale):
                    self.skip(norm if need_norm else None, zero_grad)
                    return False
                if max_norm < INFINITE and not max_norm / (norm + 1e-6) >= 1.0:     # also if it is NaN
                    scale *= max_norm / (norm + 1e-6)
            measured = norm if need_norm else self.counter.grad_norm
            self.set_args(scale, clip, zero_grad)
            if prepass is not None:
                prepass()
                self.set_args(scale, clip, zero_grad)
            self.before_update()
            if second_scalars is not None:
                interrupt = self.first_pass(scale, clip, zero_grad, second_scalars)
            self.update()
            self.counter.grad_norm = measured
            if zero_grad:
                self.zero_originals()
        finally:
            self.release()
        if interrupt is not None:
            raise interrupt
        return True

    def leased_step(self, grads, call, tuple args):
        """Do everything that `step` does, except that a compiled function performs the updates.

        ``call(*args, address)`` gets the address of a `StepLease`. It updates every element once, and then calls
        `StepLease.finish`, which counts the step. Returns the result of `call`.
        """
        self.begin(grads)
        try:
            self.set_args(1.0, INFINITE, False)
            if self.context.has_absent:
                raise ValueError("grads: expected a gradient for every parameter, got None")
            self.before_update()
            self.lease = StepLease(
                self.context.kernels.update, self.context.args, self.context.spans, self.context.count,
                commit, <void*> &self.context)
            return call(*args, <Py_ssize_t> &self.lease)
        finally:
            self.release()

    cdef int begin(self, object grads) except -1:
        if self.busy == process_number():
            raise RuntimeError("step: this optimizer is stepping in another thread")
        self.busy = process_number()
        try:
            if self.watch is not None:
                self.watch.verify()
            self.gradients.bind(grads)
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
        if self.staged_values:
            self.staged.clear()
            self.staged_values.clear()
        self.busy = 0

    cdef int zero_originals(self) except -1:
        """Set the caller's gradients to zero after the step, which cannot be undone if memory is short."""
        cdef int attempt
        for attempt in range(MAX_ATTEMPTS):
            try:
                self.gradients.zero_originals()
                return 0
            except MemoryError:
                if attempt == MAX_ATTEMPTS - 1:
                    raise

    cdef object first_pass(self, double scale, double clip, bint zero_grad, second_scalars):
        """Run the first pass, then compute the scalars of the second one.

        The first pass changes the state, so the step has to be completed. An exception that a signal
        handler raises meanwhile is returned, to be raised after the step.
        """
        cdef int attempt
        interrupt = None
        self.reduce_pass()
        for attempt in range(MAX_ATTEMPTS):
            try:
                second_scalars(self.two_sums())
                self.set_args(scale, clip, zero_grad)
                return interrupt
            except BaseException as error:
                if isinstance(error, Exception) and attempt > 0 or attempt == MAX_ATTEMPTS - 1:
                    raise
                interrupt = error

    cdef int skip(self, object norm, bint zero_grad) except -1:
        """Do what a skipped step does."""
        if norm is not None:
            self.counter.grad_norm = norm
        self.counter.skipped_steps += 1
        if self.pending is not None:
            self.pending.steps = 0
        if zero_grad:
            self.gradients.zero_all()
        return 0

    cdef void before_update(self) noexcept:
        """Prepare the arrays that the kernels are going to read and write."""
        cdef Py_ssize_t k
        cdef const Span* x
        if self.gradients.has_deferred:
            self.catch_up_dense()
        if self.context.has_flags:
            for k in range(self.context.count):
                x = &self.context.spans[k]
                if self.context.flags[k] & NEW_COPIES_FLAG and self.context.layouts[k] != ABSENT:
                    if x.w != NULL:
                        self.context.kernels.copy_params(x, self.sizes[k], x.w)
                    if x.e != NULL:
                        self.context.kernels.copy_params(x, self.sizes[k], x.e)
        if self.staged:
            assign_all(self.staged, self.staged_values)

    cdef void update(self) noexcept:
        """Update all arrays, and count the step."""
        if self.context.bytes < SERIAL_BELOW:
            update_part(&self.context, 0, 1)    # releasing the interpreter would take longer
        else:
            with nogil:
                parallel_for(update_part, &self.context)
        if self.gradients.has_rows:
            self.update_rows()
        commit(&self.context)

    cdef void update_rows(self) noexcept:
        cdef Py_ssize_t k, group
        cdef RowUpdater updater
        for k in range(self.context.count):
            if self.gradients.layouts[k] != DENSE and self.gradients.layouts[k] != ABSENT:
                updater, group = self.gradients.row_updaters[k], self.context.spans[k].group
                if self.gradients.layouts[k] == ALL_ROWS:   # the gradient may be replaced or changed by unit
                    updater.context.span = self.context.spans[k]
                    updater.context.values = self.context.spans[k].g
                updater.update(&self.context.args[group], &self.idle_decay[group])

    # --- Sums and replaced gradients ---

    cdef object block_sums(self, Py_ssize_t width):
        """Return the sums of each block after a reduction, `width` per block, and the blocks per parameter.

        If there are other parts of the parameters, their blocks are included, in the order of the parameters.
        """
        cdef Py_ssize_t k
        cdef const Py_ssize_t* first = self.context.first_block
        sums = empty((first[self.context.count], width))
        memcpy(data_ptr(sums, True), self.context.partial, sums.nbytes)
        counts = [first[k + 1] - first[k] for k in range(self.context.count)]
        return (sums, counts) if self.partition is None else self.partition.gather_sums(sums, counts)

    cdef double global_norm(self) except? -1.0:
        """Euclidean norm over all gradients; those that are bound by row come last."""
        cdef double total
        cdef const double* sums
        cdef Py_ssize_t k
        if self.context.bytes < SERIAL_BELOW:
            total = sum_squares(&self.context)
        else:
            with nogil:
                total = sum_squares(&self.context)
        if self.partition is not None:
            total, (blocks, _) = 0.0, self.block_sums(1)
            sums = <const double*> data_ptr(blocks, False)
            for k in range(len(blocks)):
                total += sums[k]
        if self.gradients.has_rows:
            for k in range(self.context.count):
                if self.gradients.layouts[k] != DENSE and self.gradients.layouts[k] != ABSENT:
                    total += (<RowUpdater> self.gradients.row_updaters[k]).sum_squares()
        return sqrt(total)

    cdef bint are_all_finite(self, double scale) except -1:
        """`all_finite`, also in the other parts of the parameters."""
        cdef bint finite = self.all_finite(scale)
        return finite if self.partition is None else self.partition.all(finite)

    cdef bint all_finite(self, double scale) noexcept:
        """Whether every scaled gradient is finite: a sum of squares may have overflowed."""
        cdef Py_ssize_t k, i
        cdef const Span* x
        for k in range(self.context.count):
            x = &self.context.spans[k]
            if (self.gradients.layouts[k] != DENSE and self.gradients.layouts[k] != ABSENT
                    and not (<RowUpdater> self.gradients.row_updaters[k]).all_finite(scale)):
                return False
            for i in range(x.n):
                if not isfinite(scale * grad_value(x, i) if x.is_f64
                                else <double> (<float> scale * <float> grad_value(x, i))):
                    return False
        return True

    cdef void reduce_pass(self) noexcept:
        """Run the first pass of all two-pass kernels."""
        self.context.two_sums = True
        with nogil:
            parallel_for(reduce_part, &self.context)

    cdef list two_sums(self):
        """Return the two sums of each parameter after `reduce_pass`; zeros if its kernel has one pass."""
        cdef Py_ssize_t _i, count
        cdef double x, y
        cdef const double* block
        cdef list sums = []
        blocks, counts = self.block_sums(2)
        block = <const double*> data_ptr(blocks, False)
        for count in counts:
            x = y = 0.0
            for _i in range(count):
                x += block[0]
                y += block[1]
                block += 2
            sums.append((x, y))
        return sums

    def is_absent(self, Py_ssize_t k):
        """Whether a parameter has no gradient in this step."""
        return self.context.layouts[k] == ABSENT

    def stage_state(self, target, value):
        """Let the update write the next value of an array."""
        value = asarray(value, dtype=target.dtype).reshape(target.shape)
        self.staged_values.append(value)
        self.staged.append(target)

    def unit_sums(self, Py_ssize_t k, Py_ssize_t units):
        """Sum the gradient, its squares and the squares of a parameter over each unit.

        Element i in C order belongs to unit ``i % units``. The gradient is scaled and clamped.
        """
        cdef Span x = self.context.spans[k]
        cdef double* sums
        param = self.entries[k].param
        x.n = self.sizes[k]             # also if it is bound by row
        if not param.flags.c_contiguous:    # the order of the sums does not depend on the layout
            grad = normalize(self.gradients.original(k))
            param, grad = asarray(param, order="C"), asarray(grad, order="C")
            x.p, x.g = data_ptr(param, False), data_ptr(grad, False)
            if x.low != NULL:
                low = asarray(self.entries[k].low, order="C")
                x.low = data_ptr(low, False)
        result = zeros((3, units))
        sums = <double*> data_ptr(result, True)
        with nogil:
            self.context.kernels.unit_sums(&self.context.args[x.group], &x, units, sums)
        return result

    def set_units(self, Py_ssize_t k, scale, shift):
        """In this step, multiply the gradient of each unit by `scale` and subtract `shift`."""
        cdef Span* x = &self.context.spans[k]
        param = self.entries[k].param
        step, x.unit_stride = 1, 1
        if not param.flags.c_contiguous and param.ndim > 1 and self.gradients.layouts[k] == DENSE:
            step = -1 if param.strides[param.ndim - 1] < 0 else 1
            x.unit_stride = max(1, abs(param.strides[param.ndim - 1]) // param.itemsize)
        dtype = computing_dtype(param.dtype)
        scale, shift = (array(a, dtype=dtype, order="C", ndmin=1)[::step].copy() for a in (scale, shift))
        self.unit_arrays.append((k, scale, shift, step))
        x.unit_scale, x.unit_shift, x.n_units = data_ptr(scale, True), data_ptr(shift, True), len(scale)
        self.context.args[x.group].transforms_grad = True

    def transformed_grad(self, Py_ssize_t k):
        """Gradient of a parameter as its rule sees it, except for L2 weight decay, in C order."""
        cdef const UpdateArgs* args = &self.context.args[self.context.spans[k].group]
        grad = decode(self.gradients.original(k), computing_dtype(self.entries[k].param.dtype))
        grad = asarray(grad, order="C")
        if args.grad_scale != 1.0:
            grad = multiply(grad, grad.dtype.type(args.grad_scale), out=empty_like(grad))
        if args.clip != INFINITE:
            grad = maximum(grad, grad.dtype.type(-args.clip), out=empty_like(grad))
            grad = minimum(grad, grad.dtype.type(args.clip), out=grad)
        for i, scale, shift, step in self.unit_arrays:
            if i == k:
                grad = (grad * scale[::step] - shift[::step]).reshape(grad.shape)
        return grad

    def replace_grad(self, Py_ssize_t k, grad):
        """Let the kernels use another array for a gradient; if for one, then for all."""
        self.gradients.replace(k, grad)

    # --- Deferred rows ---

    def catch_up(self, Py_ssize_t k=-1, rows=None):
        """Apply skipped steps to some rows of parameter k, to all of them, or to all rows of all parameters."""
        cdef RowUpdater updater
        if self.busy == process_number():
            raise RuntimeError("catch_up: this optimizer is stepping in another thread")
        self.busy = process_number()
        try:
            if self.gradients.has_deferred:
                self.gradients.check_params()
            if k < 0:
                for updater in filter(None, self.gradients.row_updaters):
                    updater.catch_up_all()
                self.drop_deferred()
                return
            updater = self.gradients.row_updater(k)
            if rows is None:
                updater.catch_up_all()
            else:
                updater.select_rows(check_row_indices(rows), "rows")
                updater.catch_up()
        finally:
            self.busy = 0

    def drop_deferred(self):
        """Discard all skipped steps."""
        cdef RowUpdater updater
        for updater in filter(None, self.gradients.row_updaters):
            updater.drop_deferred()
        self.gradients.has_deferred = False

    cdef void catch_up_dense(self) noexcept:
        """Apply skipped steps to parameters that now have a dense gradient."""
        cdef Py_ssize_t k
        for k in range(self.context.count):
            if self.gradients.layouts[k] == DENSE and self.gradients.row_updaters[k] is not None:
                (<RowUpdater> self.gradients.row_updaters[k]).catch_up_all()
                (<RowUpdater> self.gradients.row_updaters[k]).drop_deferred()
