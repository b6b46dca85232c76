"""The arrays of a step as the threads see them, and the work on one part of them.

A step is divided into parts of about equal size, across spans. Sums are over blocks whose size does not
depend on the number of threads, and the blocks are added in a fixed order.
"""
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastopt._core.common cimport fo_flush_begin, fo_flush_end, part_begin, uint64_t
from fastopt._core.gradients cimport ABSENT
from fastopt._core.runtime cimport Team, n_threads, run_in_team
from fastopt._core.span cimport N_ARRAYS, Kernels, Span, UpdateArgs, array_itemsize, itemsize

cdef enum:
    PART_ALIGN = 512            # elements: parts end on multiples, so no two threads write one cache line
    NORM_BLOCK = 8192           # elements in one partial sum of the norm, whatever the number of threads
    SERIAL_BELOW = 1 << 18      # steps that touch fewer bytes of arrays than this run serially
    BYTES_PER_NS = 32           # bytes of arrays that one thread processes per nanosecond, in cache
    MIN_PART = 8192             # elements of a part, if a thread has several
    MIN_SHARE = 4096            # elements per thread
    MAX_PARTS_PER_THREAD = 32   # so that a thread that is done can help the others
    NEW_STATE_FLAG = 1
    NEW_COPIES_FLAG = 2
    SEEN_PRESENT = 1
    SEEN_ABSENT = 2


cdef struct StepContext:
    # For a step without a table, everything from `two_sums` on may be zero, except count and bytes.
    Kernels kernels
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
    const Team* team            # threads that run the step instead of those of the pool, or NULL
    # Counts, see `StepCounter`.
    int64_t* steps
    int64_t* pending_steps      # of accumulated gradients, or NULL
    bint* stale
    bint* stale_counts
    int64_t* counts             # steps that each parameter has taken
    unsigned char* flags        # NEW_STATE and NEW_COPIES of each parameter
    bint has_flags              # a flag may be set
    bint has_absent             # a parameter has no gradient in this step
    const char* layouts         # GradLayout of each gradient
    Py_ssize_t* first_member    # per scalar group, the index of a parameter
    char* group_seen            # per scalar group, SEEN_PRESENT and SEEN_ABSENT


cdef inline Py_ssize_t find_span(const Py_ssize_t* first, Py_ssize_t count, Py_ssize_t i) noexcept nogil:
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


cdef inline void update_part(void* pointer, int part, int parts) noexcept nogil:
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


cdef inline void reduce_part(void* pointer, int part, int parts) noexcept nogil:
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


cdef inline void parallel_for(void (*task)(void*, int, int) noexcept nogil, StepContext* context) noexcept nogil:
    cdef Py_ssize_t n = context.first[context.count], threads = max(1, min(n_threads(), n // MIN_SHARE))
    cdef Py_ssize_t parts = threads * max(1, min(MAX_PARTS_PER_THREAD, n // (threads * MIN_PART)))
    if context.bytes < SERIAL_BELOW:
        task(context, 0, 1)
    else:
        run_in_team(context.team, task, context, parts, context.nanoseconds)


cdef inline double sum_squares(StepContext* context) noexcept nogil:
    """Sum of squares of all gradients; the blocks are added in the order of the parameters."""
    cdef double total = 0.0
    cdef Py_ssize_t i
    context.two_sums = False
    parallel_for(reduce_part, context)
    for i in range(context.first_block[context.count]):
        total += context.partial[i]
    return total


cdef inline void commit(void* pointer) noexcept nogil:
    """Count a step that was taken: for the optimizer, and for each parameter that had a gradient."""
    cdef StepContext* x = <StepContext*> pointer
    cdef Py_ssize_t k
    cdef char* seen
    cdef bint changed = False
    x.steps[0] += 1
    if x.pending_steps != NULL:
        x.pending_steps[0] = 0
    if not (x.has_flags or x.has_absent):
        for k in range(x.count):
            x.counts[k] += 1
        return
    x.has_flags = False
    memset(x.group_seen, 0, x.n_groups)
    for k in range(x.count):
        seen = &x.group_seen[x.spans[k].group]
        if x.layouts[k] == ABSENT:
            seen[0] |= SEEN_ABSENT
            x.has_flags = x.has_flags or x.flags[k] != 0
        else:
            seen[0] |= SEEN_PRESENT
            x.counts[k] += 1
            changed = changed or x.flags[k] != 0
            x.flags[k] = 0
        changed = changed or seen[0] == SEEN_PRESENT + SEEN_ABSENT
    if changed:
        x.stale[0] = x.stale_counts[0] = True


cdef inline Py_ssize_t bytes_of(const Span* x) noexcept nogil:
    """Bytes of the arrays that belong to a span, including its gradient."""
    cdef const char** arrays = [x.p, x.s, x.t, x.u, x.v, x.w, x.e, x.low]
    cdef Py_ssize_t size = itemsize(x.grad_format, x.is_f64)
    cdef int i
    for i in range(N_ARRAYS):
        if arrays[i] != NULL:
            size += array_itemsize(x, i)
    return x.n * size
