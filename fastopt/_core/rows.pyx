"""Gradients of some rows of a parameter, for tables of which a step uses a few.

A `RowUpdater` belongs to one parameter. It checks the rows it is given, brings them into ascending order
and adds up the gradients of a row that comes more than once, in the order in which they were given.
Then each row is a span of its own, and the kernels are the same as everywhere.

A row that is left out may take its step later: `past` has what each step asked, and a row that is
touched again first takes, one after the other and without a gradient, those that it has missed.
"""
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Realloc
from libc.math cimport exp, isfinite, log
from libc.string cimport memcpy, memset

from fastopt._core.runtime cimport data_ptr, n_threads, run_parts
from fastopt._core.span cimport Job, Span

from numpy import asarray, int64, ndarray, require, zeros
from numpy.ma import MaskedArray

cdef extern from "fo_flush.h" nogil:
    ctypedef unsigned long long uint64_t
    uint64_t fo_flush_begin()
    void fo_flush_end(uint64_t mode)

cdef extern from "fo_prefetch.h" nogil:
    void fo_prefetch(const char* address)

ctypedef fused real:
    float
    double

cdef enum:
    BLOCK = 8192            # numbers in one partial sum
    LINE = 64               # bytes that cross memory together
    AHEAD = 4               # rows from where one is asked for to where it is used
    ASKED = 1024            # bytes of a row that are asked for; the rest the processor foresees
    DIGIT = 8               # bits by which rows are sorted at a time
    LATENCY = 64            # nanoseconds, about, for the first line of a row
    PACE = 8                # bytes of rows that one thread gets through in a nanosecond
    REPLAY = 1              # numbers that take one step without a gradient in a nanosecond
    GATE = 16000            # nanoseconds under which a second thread costs more than it brings
    PART = 16               # rows a thread takes at a time, at least
    PARTS = 32              # parts in a thread's share, at most
    LONGEST = 1 << 16       # steps after which no row may be behind: what is kept of them is 16 MB

MAX_DEFERRED_STEPS = LONGEST

cdef struct Pair:
    Py_ssize_t row, place


cdef object check_row_indices(object rows):
    """Rows as the loops below read them."""
    rows = asarray(rows)
    if rows.dtype.kind not in "iu" and rows.size:
        raise TypeError(f"rows: expected whole numbers, got dtype {rows.dtype}")
    if rows.ndim != 1:
        raise ValueError(f"rows: expected one axis, got shape {rows.shape}")
    return require(rows, int64, ("C", "A"))


cdef class Rows:
    """A gradient that only some rows of a parameter have; the others' is zero.

    For the gradient of an embedding table, in the place of an array: ``opt.step([fastopt.Rows(ids, g)])``.

    Parameters
    ----------
    rows : sequence of int, shape (k,)
        Which rows, in any order. One that comes several times gets the sum of its gradients, added up
        in the order in which they stand.
    grads : ndarray, shape (k, ...)
        The gradient of each, of the dtype and the inner shape of the parameter.

    Raises
    ------
    TypeError, ValueError
        If `rows` are not whole numbers along one axis, or `grads` not an array of as many. Whether
        both fit the parameter is seen when a step is taken.
    """

    def __init__(self, rows, grads):
        self.rows = check_row_indices(rows)
        if not isinstance(grads, ndarray) or isinstance(grads, MaskedArray):
            raise TypeError(f"grads: expected a NumPy array, got {type(grads).__name__}")
        if grads.shape[:1] != self.rows.shape:
            raise ValueError(f"grads: expected {self.rows.size} entries, one for each of rows, "
                             f"got shape {grads.shape}")
        self.grads = grads

    def __repr__(self):
        return f"Rows(rows={self.rows!r}, grads={self.grads!r})"


NO_ROWS = Rows((), zeros(0))
"""The gradient of a parameter that has none in a step, whatever its shape."""


# --- What the threads do ---------------------------------------------------------------------------

cdef inline Py_ssize_t share(Py_ssize_t n, int part, int parts) noexcept nogil:
    """Where a part of n begins; the one behind the last begins at n."""
    return n // parts * part if part < parts else n


cdef inline Py_ssize_t row_of(const RowContext* x, Py_ssize_t i) noexcept nogil:
    return i if x.whole else x.rows[i]


cdef inline char* grad_of(const RowContext* x, Py_ssize_t i) noexcept nogil:
    return x.values + i * x.size if x.whole else x.grads[i]


cdef inline char* at(char* base, Py_ssize_t offset) noexcept nogil:
    return base + offset if base != NULL else NULL


cdef inline void ask(const char* base, Py_ssize_t offset, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i = 0
    if base != NULL:
        while i < size:
            fo_prefetch(base + offset + i)
            i += LINE


cdef void ask_row(const RowContext* x, Py_ssize_t i) noexcept nogil:
    """Ask for all that belongs to a row: the next one is somewhere else, and nobody foresees it."""
    cdef Py_ssize_t offset = row_of(x, i) * x.size, size = min(x.size, ASKED)
    ask(grad_of(x, i), 0, size)
    ask(x.span.p, offset, size)
    ask(x.span.s, offset, size)
    ask(x.span.t, offset, size)
    ask(x.span.u, offset, size)
    ask(x.span.v, offset, size)
    ask(x.span.w, offset, size)
    ask(x.span.e, offset, size)


cdef inline void point(const RowContext* x, Span* row, Py_ssize_t r) noexcept nogil:
    """Make of `row` the span of row r."""
    cdef Py_ssize_t offset = r * x.size
    row.p = x.span.p + offset
    row.s = at(x.span.s, offset)
    row.t = at(x.span.t, offset)
    row.u = at(x.span.u, offset)
    row.v = at(x.span.v, offset)
    row.w = at(x.span.w, offset)
    row.e = at(x.span.e, offset)
    row.n = x.width


cdef double accumulate(const RowContext* x, Py_ssize_t r, double more) noexcept nogil:
    """Add to what a row-wise rule keeps of a row; return the sum as it is kept."""
    if x.span.wide:
        (<double*> x.totals)[r] += more
        return (<double*> x.totals)[r]
    (<float*> x.totals)[r] = <float> (<double> (<float*> x.totals)[r] + more)
    return <double> (<float*> x.totals)[r]


cdef void step_row(const RowContext* x, const Job* job, const Span* row, Py_ssize_t r) noexcept nogil:
    cdef Job own
    cdef double sums[2]
    cdef double total = 0.0
    cdef Py_ssize_t lo = 0
    if x.totals == NULL:
        x.kernels.update(job, row, 0, x.width)
        return
    own = job[0]
    while lo < x.width:
        x.kernels.survey(job, row, lo, min(lo + BLOCK, x.width), sums)
        total += sums[0]
        lo += BLOCK
    own.scalars[0] = accumulate(x, r, total / <double> x.width)
    x.kernels.update(&own, row, 0, x.width)


cdef bint is_zero(const real* a, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if a[i] != <real> 0:
            return False
    return True


cdef inline bint rests(const RowContext* x, const Span* row) noexcept nogil:
    """Whether the state that moves the parameter has come to zero."""
    if row.s == NULL:
        return True
    return is_zero(<double*> row.s, x.width) if x.span.wide else is_zero(<float*> row.s, x.width)


cdef void multiply(real* a, double factor, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        a[i] *= <real> factor


cdef void fade(const RowContext* x, const Span* row, Py_ssize_t since) noexcept nogil:
    """All that is left of a row after the steps from `since` on, in which it moved by decay alone."""
    cdef char** arrays = [row.p, row.s, row.t, row.u]
    cdef const Fade* before
    cdef const Fade* now
    cdef double factor
    cdef int j
    for j in range(DECAYED_ARRAYS):
        before, now = &x.faded[since * DECAYED_ARRAYS + j], &x.faded[x.time * DECAYED_ARRAYS + j]
        factor = exp((now.sum - before.sum) + (now.lost - before.lost))
        if arrays[j] == NULL or factor == 1.0:
            continue
        if x.span.wide:
            multiply(<double*> arrays[j], factor, x.width)
        else:
            multiply(<float*> arrays[j], factor, x.width)


cdef Fade fade_by(Fade f, double factor) noexcept nogil:
    """One factor more, by Knuth's sum of two numbers and its error."""
    cdef double x = log(factor) if factor > 0.0 else -1e3       # whose exponential is 0
    cdef double sum = f.sum + x
    cdef double added = sum - f.sum
    return Fade(sum, f.lost + (f.sum - (sum - added)) + (x - added))


cdef inline Py_ssize_t least(const RowContext* x) noexcept nogil:
    """Steps that even a row at rest takes: one brings its largest second moment (AMSGrad) up to the second."""
    return x.span.u != NULL


cdef inline Py_ssize_t replayed(const RowContext* x, Py_ssize_t missed) noexcept nogil:
    """How many of the steps that a row has missed must be taken one by one."""
    return missed if x.horizon < 0 else min(missed, max(x.horizon, least(x)))


cdef void replay(const RowContext* x, Span* row, Py_ssize_t r) noexcept nogil:
    """Take the steps that a row has missed."""
    cdef Py_ssize_t t = x.last[r], end = t + replayed(x, x.time - t)
    if t == x.time:
        return
    if x.horizon >= 0 and rests(x, row):
        end = min(end, t + least(x))
    row.g = x.zeros
    while t < end:
        step_row(x, &x.past[t], row, r)
        t += 1
    if t < x.time:
        fade(x, row, t)
    x.last[r] = x.time


cdef void update_part(void* context, int part, int parts) noexcept nogil:
    cdef const RowContext* x = <const RowContext*> context
    cdef Span row = x.span
    cdef Py_ssize_t i, r, end = share(x.touched, part + 1, parts)
    cdef uint64_t mode = fo_flush_begin()
    for i in range(share(x.touched, part, parts), end):
        if i + AHEAD < end:
            ask_row(x, i + AHEAD)
        r = row_of(x, i)
        point(x, &row, r)
        if x.last != NULL:
            replay(x, &row, r)
            x.last[r] = x.time + 1
        row.g = grad_of(x, i)
        step_row(x, x.job, &row, r)
    fo_flush_end(mode)


cdef void catch_up_part(void* context, int part, int parts) noexcept nogil:
    cdef const RowContext* x = <const RowContext*> context
    cdef Span row = x.span
    cdef Py_ssize_t i, r
    cdef uint64_t mode = fo_flush_begin()
    for i in range(share(x.touched, part, parts), share(x.touched, part + 1, parts)):
        r = row_of(x, i)
        point(x, &row, r)
        replay(x, &row, r)
    fo_flush_end(mode)


cdef void add(real* restrict a, const real* restrict b, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        a[i] += b[i]


cdef void add_part(void* context, int part, int parts) noexcept nogil:
    """Add up the gradients of the rows that have several."""
    cdef const RowContext* x = <const RowContext*> context
    cdef const char* value
    cdef Py_ssize_t i, j
    cdef uint64_t mode = fo_flush_begin()
    for i in range(share(x.touched, part, parts), share(x.touched, part + 1, parts)):
        if x.first[i + 1] - x.first[i] == 1:
            continue
        memcpy(x.grads[i], x.values + x.order[x.first[i]] * x.size, x.size)
        for j in range(x.first[i] + 1, x.first[i + 1]):
            value = x.values + x.order[j] * x.size
            if x.span.wide:
                add(<double*> x.grads[i], <const double*> value, x.width)
            else:
                add(<float*> x.grads[i], <const float*> value, x.width)
    fo_flush_end(mode)


cdef void squares_part(void* context, int part, int parts) noexcept nogil:
    cdef const RowContext* x = <const RowContext*> context
    cdef Span row = x.span
    cdef Py_ssize_t i
    cdef uint64_t mode = fo_flush_begin()
    for i in range(share(x.touched, part, parts), share(x.touched, part + 1, parts)):
        row.g = grad_of(x, i)
        x.partial[i] = x.kernels.squares(&row, 0, x.width)
    fo_flush_end(mode)


cdef void spread(void (*task)(void*, int, int) noexcept nogil, RowContext* x, long long nanoseconds) noexcept:
    cdef Py_ssize_t parts = x.touched // n_threads() // PART
    if nanoseconds < GATE:
        task(x, 0, 1)       # letting go of the interpreter would cost more
        return
    with nogil:
        run_parts(task, x, n_threads() * max(1, min(PARTS, parts)), nanoseconds)


# --- The order of the rows ---------------------------------------------------------------------------

cdef void sort(Pair* a, Pair* spare, Py_ssize_t n, Py_ssize_t count) noexcept nogil:
    """Sort by row, digit by digit; what is equal stays in its order."""
    cdef Py_ssize_t starts[1 << DIGIT]
    cdef Py_ssize_t i, j, sum, shift = 0
    cdef Pair* b = spare
    cdef Pair* c
    while (count - 1) >> shift:
        memset(starts, 0, sizeof(starts))
        for i in range(n):
            starts[a[i].row >> shift & (1 << DIGIT) - 1] += 1
        sum = 0
        for j in range(1 << DIGIT):
            starts[j], sum = sum, sum + starts[j]
        for i in range(n):
            j = a[i].row >> shift & (1 << DIGIT) - 1
            b[starts[j]] = a[i]
            starts[j] += 1
        c = a
        a = b
        b = c
        shift += DIGIT
    if b != spare:
        memcpy(b, a, n * sizeof(Pair))


cdef class RowUpdater:
    """A parameter that is updated by rows.

    Parameters
    ----------
    param : ndarray
    place : str
        What its gradient is called in errors.
    totals : ndarray or None
        For a row-wise rule one number a row, of the parameter's dtype.
    """

    def __cinit__(self, param, str place, totals):
        self.param, self.place, self.room = param, place, -1
        self.context.count = param.shape[0] if param.ndim else 1
        self.context.width = param.size // self.context.count if self.context.count else 0
        self.context.size = self.context.width * param.itemsize
        self.context.totals = NULL if totals is None else data_ptr(totals, True)
        self.context.zeros = <char*> PyMem_Calloc(self.context.size + 1, 1)
        if self.context.zeros == NULL:
            raise MemoryError()

    def __dealloc__(self):
        self.drop_deferred()
        PyMem_Free(self.context.zeros)
        PyMem_Free(self.context.rows)
        PyMem_Free(self.context.grads)
        PyMem_Free(self.context.order)
        PyMem_Free(self.context.first)
        PyMem_Free(self.context.partial)
        PyMem_Free(self.pairs)
        PyMem_Free(self.sums)

    # --- Taking a gradient; the parameter is not touched yet -------------------------------------

    cdef object check_values(self, Rows grad):
        """The values of a gradient, if they fit the parameter, as they can be read by rows."""
        values, shape = grad.grads, self.param.shape
        if not shape:
            raise ValueError(f"{self.place}: expected an array, as the parameter has no rows, got Rows")
        if values.dtype != self.param.dtype:
            raise TypeError(f"{self.place}.grads: expected dtype {self.param.dtype} as the parameter has, "
                            f"got {values.dtype if values.dtype.isnative else values.dtype.str}")
        expected = grad.rows.shape + shape[1:]
        if values.shape != expected:
            raise ValueError(f"{self.place}.grads: expected shape {expected} as the rows have in the parameter "
                             f"of shape {shape}, got {values.shape}")
        return require(values, None, ("C", "A"))

    cdef int bind_rows(self, Rows grad, object values) except -1:
        """Take a gradient whose values were `check_values`."""
        self.values = values
        self.context.values = data_ptr(values, False)
        self.select_rows(grad.rows, self.place + ".rows")
        self.gather()
        return 0

    cdef int bind_all_rows(self, char* values) except -1:
        """Take a gradient that all rows have."""
        self.context.whole, self.context.touched, self.context.values = True, self.context.count, values
        return self.make_room(self.context.count)

    cdef int bind_no_rows(self) except -1:
        self.context.whole, self.context.touched = False, 0
        return 0

    cdef int make_room(self, Py_ssize_t n) except -1:
        if n <= self.room:
            return 0
        self.room = -1
        self.context.rows = <Py_ssize_t*> again(self.context.rows, n, sizeof(Py_ssize_t))
        self.context.order = <Py_ssize_t*> again(self.context.order, n, sizeof(Py_ssize_t))
        self.context.first = <Py_ssize_t*> again(self.context.first, n + 1, sizeof(Py_ssize_t))
        self.context.grads = <char**> again(self.context.grads, n, sizeof(char*))
        self.context.partial = <double*> again(self.context.partial, n, sizeof(double))
        self.pairs = <char*> again(self.pairs, 2 * n, sizeof(Pair))
        self.room = n
        return 0

    cdef int select_rows(self, object rows, str name) except -1:
        """Check the rows, bring them into ascending order, and see which come more than once."""
        cdef Py_ssize_t i, m = 0, n = rows.shape[0], before = -1
        cdef const int64_t* given = <const int64_t*> data_ptr(rows, False)
        cdef Pair* pairs
        cdef bint ascending = True
        self.make_room(n)
        pairs = <Pair*> self.pairs
        for i in range(n):
            pairs[i].row, pairs[i].place = given[i], i
            if not 0 <= pairs[i].row < self.context.count:
                raise ValueError(f"{name}[{i}]: expected a row in [0, {self.context.count}), got {pairs[i].row}")
            ascending = ascending and pairs[i].row >= before
            before = pairs[i].row
        if not ascending:
            sort(pairs, pairs + self.room, n, self.context.count)
        for i in range(n):
            self.context.order[i] = pairs[i].place
            if i == 0 or pairs[i].row != pairs[i - 1].row:
                self.context.rows[m], self.context.first[m] = pairs[i].row, i
                m += 1
        self.context.first[m] = n
        self.context.touched, self.context.whole = m, False
        return 0

    cdef int gather(self) except -1:
        """See where the gradient of each row stands; add up those of a row that has several."""
        cdef RowContext* x = &self.context
        cdef Py_ssize_t i, given = x.first[x.touched], several = 0
        for i in range(x.touched):
            several += x.first[i + 1] - x.first[i] > 1
        if several * x.size > self.sums_room:
            self.sums_room = 0
            self.sums = <char*> again(self.sums, several, x.size)
            self.sums_room = several * x.size
        several = 0
        for i in range(x.touched):
            if x.first[i + 1] - x.first[i] > 1:
                x.grads[i] = self.sums + several * x.size
                several += 1
            else:
                x.grads[i] = x.values + x.order[x.first[i]] * x.size
        if several and x.width:
            spread(add_part, x, given * x.size // PACE)
        return 0

    cdef object to_dense(self):
        """The gradient as an array of the parameter's shape."""
        cdef Py_ssize_t i
        full = zeros(self.param.shape, self.param.dtype)
        cdef char* base = data_ptr(full, True)
        for i in range(self.context.touched if self.context.width else 0):
            memcpy(base + self.context.rows[i] * self.context.size, self.context.grads[i], self.context.size)
        return full

    cdef void release(self) noexcept:
        """Let go of the gradient."""
        self.values = None

    # --- What is measured of a gradient ----------------------------------------------------------

    cdef double sum_squares(self) noexcept:
        """Sum of squares; that of each row is added in the order of the rows."""
        cdef double sum = 0.0
        cdef Py_ssize_t i
        spread(squares_part, &self.context, self.context.touched * self.context.size // PACE)
        for i in range(self.context.touched):
            sum += self.context.partial[i]
        return sum

    cdef bint all_finite(self, double scale) noexcept:
        cdef const RowContext* x = &self.context
        cdef Py_ssize_t i, j
        for i in range(x.touched):
            for j in range(x.width):
                if not isfinite(scale * (<double*> grad_of(x, i))[j] if x.span.wide
                                else <double> (<float> scale * (<float*> grad_of(x, i))[j])):
                    return False
        return True

    # --- The step --------------------------------------------------------------------------------

    cdef void update(self, const Job* job, const IdleDecay* rest) noexcept:
        if self.context.time == LONGEST:
            self.catch_up_all()
            memset(self.context.last, 0, self.context.count * sizeof(int64_t))
            self.context.time = self.context.horizon = 0
        self.context.job = job
        if self.context.width:
            spread(update_part, &self.context, self.estimate(&self.context))
        if self.context.whole:
            self.drop_deferred()       # the rows that were behind have caught up on the way
        elif self.context.last != NULL:
            self.remember(job, rest)

    cdef long long estimate(self, const RowContext* x) noexcept:
        """Nanoseconds that one thread would take, about."""
        cdef Py_ssize_t i, late = 0
        cdef int arrays = 2 + (x.span.s != NULL) + (x.span.t != NULL) + (x.span.u != NULL)
        for i in range(x.touched if x.last != NULL else 0):
            late += replayed(x, x.time - x.last[row_of(x, i)])
        return x.touched * (LATENCY + x.size * arrays // PACE) + late * x.width // REPLAY

    # --- Rows that are behind --------------------------------------------------------------------

    cdef int enable_deferred(self) except -1:
        """From now on rows that a step leaves out take it later; make room for one step more."""
        cdef RowContext* x = &self.context
        cdef Py_ssize_t more
        if x.last == NULL:
            x.last = <int64_t*> PyMem_Calloc(x.count + 1, sizeof(int64_t))
            if x.last == NULL:
                raise MemoryError()
            x.time = x.horizon = 0
        if x.time == self.past_room and x.time < LONGEST:
            more = max(16, 2 * self.past_room)
            self.past_room = 0
            x.past = <Job*> again(x.past, more, sizeof(Job))
            x.faded = <Fade*> again(x.faded, (more + 1) * DECAYED_ARRAYS, sizeof(Fade))
            if x.time == 0:
                memset(x.faded, 0, DECAYED_ARRAYS * sizeof(Fade))
            self.past_room = more
        return 0

    cdef void remember(self, const Job* job, const IdleDecay* rest) noexcept:
        """Keep what this step asks, for the rows that it has left out."""
        cdef RowContext* x = &self.context
        cdef Fade* before = x.faded + x.time * DECAYED_ARRAYS
        cdef double factor
        cdef Py_ssize_t steps = rest.replay_steps[1 if x.span.wide else 0]
        cdef int j
        x.past[x.time] = job[0]
        if job.decay != 0.0 or job.keep != 1.0 or x.span.w != NULL or x.span.e != NULL:
            steps = -1
        for j in range(DECAYED_ARRAYS):
            factor = rest.factors[j] if x.span.wide else <double> <float> rest.factors[j]
            before[DECAYED_ARRAYS + j] = fade_by(before[j], factor)
        x.horizon = -1 if steps < 0 or x.horizon < 0 else max(x.horizon, steps)
        x.time += 1

    cdef void catch_up(self) noexcept:
        """Let the touched rows take the steps that they have missed."""
        if self.context.last != NULL and self.context.width:
            spread(catch_up_part, &self.context, self.estimate(&self.context))

    cdef void catch_up_all(self) noexcept:
        cdef RowContext all = self.context
        all.whole, all.touched = True, all.count
        if all.last != NULL and all.width:
            spread(catch_up_part, &all, self.estimate(&all))

    cdef void drop_deferred(self) noexcept:
        """No row is behind, or is to count as such."""
        PyMem_Free(self.context.last)
        PyMem_Free(self.context.past)
        PyMem_Free(self.context.faded)
        self.context.last, self.context.past, self.context.faded = NULL, NULL, NULL
        self.past_room = self.context.time = 0


cdef void* again(void* block, Py_ssize_t n, Py_ssize_t size) except NULL:
    """A block of memory made larger."""
    cdef void* larger = PyMem_Realloc(block, max(n * size, 1))
    if larger == NULL:
        raise MemoryError()
    return larger
