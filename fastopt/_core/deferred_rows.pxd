"""Steps that rows have skipped: a log of the steps and the decay of the rows.

With ``sparse="exact"`` a row without a gradient does not take the step. The step's arguments are appended to
a log instead, and a row that is used again first replays the logged steps that it has skipped, with a
gradient of zero.

Without gradients the update of most optimizers decays to zero. After `replay_steps` steps the parameter moves
by weight decay only, and the remaining steps multiply the row by constant factors. The product of these
factors is one exponential of a difference of two logarithms, so its cost does not depend on the number of
steps.

All functions are inline because `rows.pyx`, their only user, calls them for every row.
"""
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Realloc
from libc.math cimport exp, log
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastopt._core.common cimport real
from fastopt._core.span cimport UpdateArgs, Span

cdef enum:
    DECAYED_ARRAYS = 4      # p, s, t and u: the arrays of an optimizer that supports deferred rows
    MAX_LOGGED = 1 << 16    # steps in the log: about 16 MB


cdef struct IdleDecay:
    # The effect of one step on a row without a gradient.
    Py_ssize_t replay_steps[2]      # float32, float64: steps after which only the factors act; -1: never
    double factors[DECAYED_ARRAYS]  # of the parameter and its state arrays


cdef struct LogDecay:
    # Logarithm of a product of factors. The compensation holds the rounding errors of the sum.
    double sum, compensation


cdef struct DeferredRows:
    # The logged steps of one parameter.
    int64_t* n_applied      # per row: logged steps that the row has taken; NULL: every row is up to date
    UpdateArgs* replay_log         # arguments of each logged step
    LogDecay* log_decay     # DECAYED_ARRAYS per step: product of the factors of all steps before it
    Py_ssize_t n_logged
    Py_ssize_t capacity     # of the log, in steps
    Py_ssize_t replay_steps  # the largest of the logged steps; -1 if one of them is -1


cdef inline void* resize(void* block, Py_ssize_t n, Py_ssize_t size) except NULL:
    """Reallocate a block for n items."""
    cdef void* resized = PyMem_Realloc(block, max(n * size, 1))
    if resized == NULL:
        raise MemoryError()
    return resized


cdef inline LogDecay add_factor(LogDecay x, double factor) noexcept nogil:
    """Multiply a product by one more factor (Knuth's two-sum)."""
    cdef double term = log(factor) if factor > 0.0 else -1e3    # exp(-1e3) is 0
    cdef double sum = x.sum + term
    cdef double added = sum - x.sum
    return LogDecay(sum, x.compensation + (x.sum - (sum - added)) + (term - added))


cdef inline int reserve_step(DeferredRows* x, Py_ssize_t n_rows) except -1:
    """Make room for one more logged step; on the first call every row is up to date."""
    cdef Py_ssize_t capacity
    if x.n_applied == NULL:
        x.n_applied = <int64_t*> PyMem_Calloc(n_rows + 1, sizeof(int64_t))
        if x.n_applied == NULL:
            raise MemoryError()
        x.n_logged = x.replay_steps = 0
    if x.n_logged == x.capacity and x.n_logged < MAX_LOGGED:
        capacity = max(16, 2 * x.capacity)      # committed when both arrays have it
        x.replay_log = <UpdateArgs*> resize(x.replay_log, capacity, sizeof(UpdateArgs))
        x.log_decay = <LogDecay*> resize(x.log_decay, (capacity + 1) * DECAYED_ARRAYS, sizeof(LogDecay))
        if x.n_logged == 0:
            memset(x.log_decay, 0, DECAYED_ARRAYS * sizeof(LogDecay))
        x.capacity = capacity
    return 0


cdef inline void log_step(DeferredRows* x, const UpdateArgs* args, const IdleDecay* idle,
                          const Span* param) noexcept nogil:
    """Append a step. `reserve_step` has made room for it."""
    cdef LogDecay* log_decay = x.log_decay + x.n_logged * DECAYED_ARRAYS
    cdef Py_ssize_t steps = idle.replay_steps[1 if param.is_f64 else 0]
    cdef double factor
    cdef int j
    x.replay_log[x.n_logged] = args[0]
    # Options that move the parameter or read it at each step have no constant factor.
    if args.l2_decay != 0.0 or args.decay_factor != 1.0 or param.w != NULL or param.e != NULL:
        steps = -1
    for j in range(DECAYED_ARRAYS):
        factor = idle.factors[j] if param.is_f64 else <double> <float> idle.factors[j]
        log_decay[DECAYED_ARRAYS + j] = add_factor(log_decay[j], factor)
    x.replay_steps = -1 if steps < 0 or x.replay_steps < 0 else max(x.replay_steps, steps)
    x.n_logged += 1


cdef inline void clear_log(DeferredRows* x, Py_ssize_t n_rows) noexcept nogil:
    """Remove the logged steps, which all rows have taken."""
    memset(x.n_applied, 0, n_rows * sizeof(int64_t))
    x.n_logged = x.replay_steps = 0


cdef inline void free_log(DeferredRows* x) noexcept:
    """Mark every row as up to date, and free the log."""
    PyMem_Free(x.n_applied)
    PyMem_Free(x.replay_log)
    PyMem_Free(x.log_decay)
    memset(x, 0, sizeof(DeferredRows))


cdef inline Py_ssize_t min_replay(const Span* param) noexcept nogil:
    """Steps that even an idle row replays: AMSGrad's maximum (`u`) takes one to reach the second moment."""
    return param.u != NULL


cdef inline Py_ssize_t count_replayed(const DeferredRows* x, const Span* param,
                                      Py_ssize_t skipped) noexcept nogil:
    """Number of the skipped steps to replay one by one."""
    return skipped if x.replay_steps < 0 else min(skipped, max(x.replay_steps, min_replay(param)))


cdef inline bint all_zero(const real* a, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if a[i] != <real> 0:
            return False
    return True


cdef inline bint is_idle(const Span* row) noexcept nogil:
    """Whether the state that moves the parameter is zero."""
    if row.s == NULL:
        return True
    return all_zero(<double*> row.s, row.n) if row.is_f64 else all_zero(<float*> row.s, row.n)


cdef inline void scale(real* a, double factor, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        a[i] *= <real> factor


cdef inline void apply_decay(const DeferredRows* x, const Span* row, Py_ssize_t first) noexcept nogil:
    """Apply to a row all logged steps from `first` on, which only multiply it by their factors."""
    cdef char** arrays = [row.p, row.s, row.t, row.u]
    cdef const LogDecay* begin
    cdef const LogDecay* end
    cdef double factor
    cdef int j
    for j in range(DECAYED_ARRAYS):
        begin, end = &x.log_decay[first * DECAYED_ARRAYS + j], &x.log_decay[x.n_logged * DECAYED_ARRAYS + j]
        factor = exp((end.sum - begin.sum) + (end.compensation - begin.compensation))
        if arrays[j] == NULL or factor == 1.0:
            continue
        if row.is_f64:
            scale(<double*> arrays[j], factor, row.n)
        else:
            scale(<float*> arrays[j], factor, row.n)
