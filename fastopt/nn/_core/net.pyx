"""A network's forward and backward pass over a batch, as one call that releases the GIL.

The samples of a batch are divided into blocks. A thread takes a block through all layers, forward and
backward, while it is in the cache; threads wait for each other only where batch normalization needs all
samples, and around products with large weights or of few samples, which are divided into pieces of their
result. The gradients of the weights follow, one tile of a matrix at a time. How the work is divided depends
on the sizes alone (`work_division.pxd`), never on the number of threads, so that results do not depend on it
either.

A `Pass` resolves all arrays to addresses once, in a `NetContext` (`net_context.pxd`), and compiles the pass
into a list of operations (`net_ops.pxd`). `gemm.pyx` computes the matrix products, and `layers.pyx`
everything between these.
"""
cimport cython
from cpython.buffer cimport (
    Py_buffer, PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Realloc
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t

from fastopt._core.common cimport CACHE_LINE
from fastopt._core.runtime cimport data_ptr, process_number
from fastopt._core.span cimport StepLease
from fastopt.nn._core.gemm cimport Blas, Gemm
from fastopt.nn._core.layer_kernels cimport (
    FLOAT32, FLOAT64, SPARSE, UINT8, Criterion, DataType, Dropout, LayerKernels,
)
from fastopt.nn._core.net_context cimport (
    ACTIVATE, ACTIVATION_BACKWARD, ADD_PARTIAL, BATCH_NORM, BATCH_NORM_BACKWARD, CHECK_FINITE, GATHER,
    INPUT_GRAD, LAYER_NORM, LOSS, MATMUL, MERGE_MOMENTS, MERGE_PRODUCTS, MOMENTS, NO_NORM, Batch, Layer,
    NetContext, Op,
)
from fastopt.nn._core.net_ops cimport (
    MULS_PER_ELEMENT, compute_tile_grad, element_size, is_stopped, parallel_for, run_ops, total_weight,
    transpose_weights,
)
from fastopt.nn._core.work_division cimport INNER_PARTS, INNER_ROWS, SMALL_BLOCK_ROWS, divide_work

import numpy as np

from fastopt._core.arena import aligned_zeros

cdef enum:
    TRANSPOSE_PARTS = 8     # of the weights

cdef double MAX_BYTES = 2.0**62     # of an arena: sums of sizes below it do not overflow

NORMS = {None: NO_NORM, "layer": LAYER_NORM, "batch": BATCH_NORM}

cdef dict DTYPES = {np.dtype(np.float32): FLOAT32, np.dtype(np.float64): FLOAT64, np.dtype(np.uint8): UINT8}


cdef inline char* ptr_or_null(object array, bint written=False) except? NULL:
    return data_ptr(array, written) if array is not None and array.size else NULL


cdef class Source:
    """A data set as a pass reads it. The caller checks all arrays; they are C-contiguous.

    `X` is float32, float64 or uint8 of shape (n, inputs). For a sparse matrix it holds the stored elements in
    the network's dtype, `indices` their columns and `indptr` the index of the first element of each row, both
    int64. `y` is labels, int64 of shape (n,), or targets of shape (n, outputs), and `weight` the sample
    weights, both in the network's dtype.

    After `count_correct`, passes with a loss count their samples and those that their outputs predict correctly.
    """
    cdef DataType dtype
    cdef const char* X
    cdef const int64_t* indices
    cdef const int64_t* indptr
    cdef const char* y
    cdef const char* weight
    cdef readonly Py_ssize_t rows
    cdef Py_ssize_t y_bytes     # per sample
    cdef bint counts            # whether correct predictions are counted
    cdef const double* counted_weight
    cdef double correct, seen   # number, or total weight, of the samples
    cdef list arrays            # keep the addresses valid

    def __init__(self, X, indices=None, indptr=None, y=None, weight=None):
        self.arrays = [X, indices, indptr, y, weight]
        self.dtype = SPARSE if indices is not None else DTYPES[X.dtype]
        self.rows = len(X) if indptr is None else len(indptr) - 1
        self.X, self.y, self.weight = ptr_or_null(X), ptr_or_null(y), ptr_or_null(weight)
        self.indices, self.indptr = <const int64_t*> ptr_or_null(indices), <const int64_t*> ptr_or_null(indptr)
        self.y_bytes = y.nbytes // len(y) if y is not None else 0

    def count_correct(self, weight=None):
        """Count correct predictions from now on; `weight` is float64 of shape (n,) or None."""
        self.arrays.append(weight)
        self.counts, self.counted_weight = True, <const double*> ptr_or_null(weight)

    @property
    def counted(self):
        """Number or weight of the samples predicted correctly, and of all."""
        return self.correct, self.seen

    @counted.setter
    def counted(self, counts):
        self.correct, self.seen = counts

    cdef void count(self, const Batch* batch, Py_ssize_t begin) noexcept nogil:
        """Add the samples of a batch, which begins with sample `begin` if it has no index."""
        cdef Py_ssize_t i, n = 0
        cdef double weight
        if self.counted_weight == NULL:
            for i in range(batch.rows):
                n += batch.correct[i]
            self.seen += batch.rows
            self.correct += n
            return
        for i in range(batch.rows):
            weight = self.counted_weight[begin + i if batch.index == NULL else batch.index[i]]
            self.seen += weight
            self.correct += batch.correct[i] * weight


cdef inline Py_ssize_t align_up(Py_ssize_t n) noexcept nogil:
    return (n + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE


cdef class Pass:
    """A compiled pass: the network's arrays, resolved to addresses, and memory for a batch.

    A batch is checked, and memory for it allocated, before anything is computed. Everything else happens in one
    call without Python code, so nothing can fail or be interrupted between the update and its count.

    `kernels` is the `LAYERS` of one instruction set's module. In `training`, gradients are computed and dropout
    is applied. Per layer, `layers` has a tuple: activation, whether its derivative needs z, norm, dropout
    probability, key of its dropout, and the list of its arrays: W, b, scale (or None), their gradients in this
    order, running mean and variance (or None).
    """
    cdef NetContext ctx
    cdef Blas blas
    cdef Gemm gemm
    cdef Py_ssize_t capacity            # samples for which there is memory
    cdef Py_ssize_t divided_rows        # samples for which the work is divided
    cdef Py_ssize_t max_tiles           # for which there is memory
    cdef Py_ssize_t n_ops, n_forward_ops
    cdef Py_ssize_t multiplications     # per sample, in one direction
    cdef list arrays                    # keep the addresses valid
    cdef object arena
    cdef char* free                     # the unassigned part of the arena
    cdef char* x                        # memory for a gathered batch
    cdef char* y
    cdef char* weight
    cdef char* correct
    cdef int busy                       # number of the process during a pass, else 0
    cdef public unsigned long long step     # training steps so far; every step draws new dropout masks

    def __cinit__(self, kernels, Blas blas, bint is_f64, bint training, list layers):
        cdef Py_ssize_t depth = len(layers), i
        cdef int n_arrays = 0
        self.blas = blas
        self.ctx.dtype = FLOAT64 if is_f64 else FLOAT32
        self.ctx.itemsize = element_size(self.ctx.dtype)
        self.ctx.kernels = (<LayerKernels*> PyCapsule_GetPointer(kernels, "fastopt.layers"))[is_f64]
        self.gemm = blas.gemms[is_f64]
        self.ctx.gemm = &self.gemm
        self.ctx.training, self.ctx.eps, self.ctx.momentum = training, 1e-5, 0.1      # as in torch
        self.ctx.depth = depth
        self.ctx.layers = <Layer*> PyMem_Calloc(depth, sizeof(Layer))
        self.ctx.ops = <Op*> PyMem_Calloc(9 * depth + 3, sizeof(Op))
        self.arrays = []
        if self.ctx.layers == NULL or self.ctx.ops == NULL:
            raise MemoryError()
        for i in range(depth):
            self.bind_layer(&self.ctx.layers[i], layers[i])
            self.ctx.layers[i].param = n_arrays
            n_arrays += 2 if self.ctx.layers[i].scale == NULL else 3
            self.multiplications += self.ctx.layers[i].inputs * self.ctx.layers[i].outputs
        self.compile_ops()

    def __dealloc__(self):
        PyMem_Free(self.ctx.layers)
        PyMem_Free(self.ctx.ops)
        PyMem_Free(self.ctx.penalties)

    cdef int bind_layer(self, Layer* layer, tuple description) except -1:
        activation, needs_z, norm, rate, key, arrays = description
        self.arrays.append(arrays)
        layer.inputs, layer.outputs = arrays[0].shape
        layer.activation, layer.norm = activation, norm
        layer.keeps_z = self.ctx.training and <bint> needs_z
        layer.drops = self.ctx.training and <bint> (rate > 0.0)
        layer.dropout = Dropout(key, 0, rate)
        W, b, scale, dW, db, dscale, running_mean, running_variance = arrays
        layer.W, layer.b, layer.scale = ptr_or_null(W, True), ptr_or_null(b, True), ptr_or_null(scale, True)
        layer.dW, layer.db, layer.dscale = ptr_or_null(dW, True), ptr_or_null(db, True), ptr_or_null(dscale, True)
        layer.running_mean = ptr_or_null(running_mean, True)
        layer.running_variance = ptr_or_null(running_variance, True)
        return 0

    cdef int compile_ops(self) except -1:
        cdef list ops = [(GATHER, 0)]
        cdef Py_ssize_t i
        cdef bint batch_norm
        for i in range(self.ctx.depth):
            batch_norm = self.ctx.layers[i].norm == BATCH_NORM
            ops += [(MATMUL, i), (ADD_PARTIAL, i)]
            if i == 0:
                ops.append((CHECK_FINITE, i))
            if batch_norm and self.ctx.training:
                ops.append((MOMENTS, i))
            if batch_norm:
                ops.append((MERGE_MOMENTS, i))
            ops.append((ACTIVATE, i))
        self.n_forward_ops = len(ops)
        ops.append((LOSS, self.ctx.depth - 1))
        for i in reversed(range(self.ctx.depth)):
            ops.append((ACTIVATION_BACKWARD, i))
            if self.ctx.layers[i].norm == BATCH_NORM:
                ops += [(MERGE_PRODUCTS, i), (BATCH_NORM_BACKWARD, i)]
            if i > 0:
                ops.append((INPUT_GRAD, i))
        self.n_ops = len(ops)
        for i in range(self.n_ops):
            self.ctx.ops[i] = Op(ops[i][0], ops[i][1])
        return 0

    def is_bound_to(self, list params):
        """Whether the parameters of every layer are still the arrays of the pass, at the same addresses."""
        cdef Py_ssize_t i
        cdef Layer* layer
        for i in range(self.ctx.depth):
            layer = &self.ctx.layers[i]
            for k, array in enumerate(params[i]):
                if array is not self.arrays[i][k]:
                    return False
                if data_ptr(array, False) != (layer.scale if k == 2 else (layer.b if k == 1 else layer.W)):
                    return False
        return True

    def set_dropout_state(self, unsigned long long step, list keys):
        """Continue the dropout of another run from its number of training steps and its key per layer."""
        cdef Py_ssize_t i
        self.step = step
        for i in range(self.ctx.depth):
            self.ctx.layers[i].dropout.key = keys[i]

    # --- Memory ---

    cdef int reserve(self, Py_ssize_t rows) except -1:
        """Divide the work of a batch, and allocate memory for it unless the arena is large enough."""
        cdef Py_ssize_t i
        cdef double bytes_bound = 0.0
        for i in range(self.ctx.depth):
            bytes_bound += 16.0 * self.ctx.itemsize * (self.ctx.layers[i].inputs + self.ctx.layers[i].outputs)
        if bytes_bound * (rows + self.ctx.layers[0].inputs + CACHE_LINE) > MAX_BYTES:
            raise MemoryError(f"a batch of {rows} samples needs more memory than can be addressed")
        if rows != self.divided_rows:
            self.divided_rows = 0
            divide_work(&self.ctx, rows)
            if self.ctx.n_tiles > self.max_tiles:
                self.resize_penalties()
            self.divided_rows = rows
        if rows <= self.capacity:
            return 0
        self.capacity = 0           # until all offsets are those of the new arena
        self.free = NULL            # the first pass over the arrays measures the arena
        self.assign_offsets(rows)
        arena = aligned_zeros(<Py_ssize_t> self.free, np.uint8)
        self.free = data_ptr(arena, True)
        self.assign_offsets(rows)
        self.arena, self.capacity = arena, rows
        return 0

    cdef int resize_penalties(self) except -1:
        cdef double* penalties = <double*> PyMem_Realloc(self.ctx.penalties, self.ctx.n_tiles * sizeof(double))
        if penalties == NULL:
            raise MemoryError()
        self.ctx.penalties, self.max_tiles = penalties, self.ctx.n_tiles
        return 0

    cdef char* alloc(self, Py_ssize_t n) noexcept:
        """Take n elements from the arena, from the beginning of a cache line on."""
        cdef char* first = self.free
        self.free += align_up(n * self.ctx.itemsize)
        return first

    cdef void assign_offsets(self, Py_ssize_t rows) noexcept:
        cdef NetContext* ctx = &self.ctx
        cdef Py_ssize_t n_blocks = rows // SMALL_BLOCK_ROWS + 2, i, n    # at most
        cdef Layer* layer
        cdef bint training = ctx.training
        for i in range(ctx.depth):
            layer = &ctx.layers[i]
            n = layer.outputs
            layer.z = self.alloc(rows * n)
            layer.partial = self.alloc((INNER_PARTS - 1) * min(rows, INNER_ROWS) * n)
            layer.h = self.alloc(rows * n) if training and layer.norm != NO_NORM else layer.z
            layer.a = self.alloc(rows * n) if layer.keeps_z else layer.h
            layer.out = self.alloc(rows * n) if layer.drops else layer.a
            layer.delta = self.alloc(rows * n) if training or i == ctx.depth - 1 else NULL
            layer.rstd = self.alloc(max(rows, n))
            layer.mean = self.alloc(n)
            layer.block_sums = self.alloc(n_blocks * n)
            layer.block_products = self.alloc(n_blocks * n)
            if training and i > 0 and ctx.gemm.small > 0:
                layer.transposed = self.alloc(layer.inputs * n)
        self.x = self.alloc(rows * ctx.layers[0].inputs)
        # A label is an int64: two elements of a float32 network.
        self.y = self.alloc(rows * max(2, ctx.layers[ctx.depth - 1].outputs))
        self.weight = self.alloc(rows)
        self.correct = self.alloc(rows)
        ctx.losses = <double*> self.alloc(2 * n_blocks)

    # --- Running ---

    @cython.critical_section
    cdef int acquire(self) except -1:
        """Reserve the pass for this thread."""
        if self.busy == process_number():
            raise RuntimeError("this model is in use by another thread")
        self.busy = process_number()
        return 0

    cdef int begin_step(self, Source source, object index, Py_ssize_t begin, Py_ssize_t rows,
                        tuple criterion) except -1:
        """Set up the batch: `rows` entries of `index` from `begin` on, or that many samples of the source.

        If it succeeds, `end_step` must follow.
        """
        cdef const int64_t* first = NULL
        self.acquire()
        try:
            if index is not None:
                first = checked_index(index, begin, rows, source.rows)
            elif not (0 <= begin <= source.rows and 0 < rows <= source.rows - begin):
                raise IndexError(f"rows: expected at least one of {source.rows} samples, got {rows} from sample "
                                 f"{begin} on")
            self.reserve(rows)
            self.bind_batch(source, first, begin, rows)
            if criterion is not None:
                self.ctx.criterion = Criterion(criterion[0], 0.0, criterion[2], criterion[3])
            self.blas.limit_threads()
        except BaseException:
            self.busy = 0
            raise
        return 0

    cdef void bind_batch(self, Source source, const int64_t* index, Py_ssize_t begin, Py_ssize_t rows) noexcept:
        cdef NetContext* ctx = &self.ctx
        cdef Batch* batch = &ctx.batch
        cdef bint consecutive = index == NULL
        batch.index = index
        ctx.not_finite = ctx.gemm.failed = False
        batch.rows, batch.dtype, batch.y_bytes = rows, source.dtype, source.y_bytes
        batch.columns, batch.indptr = source.indices, source.indptr
        batch.source_X, batch.source_y, batch.source_weight = source.X, source.y, source.weight
        if consecutive:
            if source.dtype == SPARSE:
                batch.indptr += begin
            else:
                batch.source_X += begin * ctx.layers[0].inputs * element_size(source.dtype)
            batch.source_y += begin * source.y_bytes
            batch.source_weight += begin * ctx.itemsize if source.weight != NULL else 0
        batch.copied = not consecutive or source.dtype != ctx.dtype
        batch.x = self.x if batch.copied else <char*> batch.source_X
        batch.y = <char*> batch.source_y if consecutive else self.y
        batch.weight = <char*> batch.source_weight if consecutive or source.weight == NULL else self.weight
        batch.correct = self.correct if source.counts else NULL

    cdef int end_step(self) except -1:
        self.blas.restore_threads()
        self.busy = 0
        return 0

    cdef int check_products(self) except -1:
        if self.ctx.gemm.failed:
            raise MemoryError("a matrix product of the network failed")
        return 0

    def train(self, Source source, index, Py_ssize_t begin, Py_ssize_t rows, tuple criterion, double l2,
              Py_ssize_t lease=0):
        """Compute the gradients of a batch and return its loss, or None if the inputs hold NaN or Inf.

        The batch consists of the entries ``begin`` to ``begin + rows`` of `index`, the int64 order of the
        samples in the epoch; None is the order of the source. `criterion` is the loss, its factor, label
        smoothing and threshold. `lease` is the address of a `StepLease` of an optimizer of exactly these
        parameters, which are then updated. If the result is None, the gradients are unchanged.
        """
        cdef NetContext* ctx = &self.ctx
        cdef double factor = criterion[1], total
        cdef Py_ssize_t i
        self.begin_step(source, index, begin, rows, criterion)
        ctx.lease = <const StepLease*> <void*> lease
        for i in range(ctx.depth):
            ctx.layers[i].dropout.step = self.step + 1
        try:
            with nogil:
                total = total_weight(ctx)
                ctx.criterion.scale = factor / total if total > 0.0 else 0.0
                ctx.l2 = l2
                self.run_training()
                if not is_stopped(ctx):
                    self.step += 1
                    if source.counts:
                        source.count(&ctx.batch, begin)
            self.check_products()
            if ctx.not_finite:
                return None
            return (sum_of(ctx.losses, ctx.n_blocks) * ctx.criterion.scale
                    + 0.5 * ctx.l2 * sum_of(ctx.penalties, ctx.n_tiles))
        finally:
            self.end_step()

    cdef void run_training(self) noexcept nogil:
        cdef NetContext* ctx = &self.ctx
        cdef Py_ssize_t workload = self.multiplications * ctx.batch.rows
        if ctx.small_products:
            parallel_for(ctx, transpose_weights, TRANSPOSE_PARTS, MULS_PER_ELEMENT * self.multiplications)
        run_ops(ctx, self.n_ops)
        if not is_stopped(ctx):
            workload += MULS_PER_ELEMENT * self.multiplications     # the update
            parallel_for(ctx, compute_tile_grad, ctx.n_tiles, workload)
            if ctx.lease != NULL:
                ctx.lease.finish(ctx.lease.context)

    def outputs(self, Source source, Py_ssize_t begin, Py_ssize_t rows, tuple criterion=None):
        """Return the outputs of consecutive samples, their total weighted loss, and their total weight.

        The next call overwrites the outputs, which are None if the inputs hold NaN or Inf. Without a
        criterion, the totals are 0.
        """
        cdef NetContext* ctx = &self.ctx
        cdef Layer* last = &ctx.layers[ctx.depth - 1]
        cdef Py_ssize_t n_ops = self.n_forward_ops + (criterion is not None)
        self.begin_step(source, None, begin, rows, criterion)
        try:
            with nogil:
                run_ops(ctx, n_ops)
            self.check_products()
            if ctx.not_finite:
                return None, 0.0, 0.0
            array = np.ndarray((rows, last.outputs), f"f{ctx.itemsize}", self.arena,
                               last.out - data_ptr(self.arena, True))
            if criterion is None:
                return array, 0.0, 0.0
            if source.counts:
                source.count(&ctx.batch, begin)
            return array, sum_of(ctx.losses, ctx.n_blocks) * <double> criterion[1], total_weight(ctx)
        finally:
            self.end_step()


cdef double sum_of(const double* x, Py_ssize_t n) noexcept:
    cdef double total = 0.0
    cdef Py_ssize_t i
    for i in range(n):
        total += x[i]
    return total


cdef const int64_t* checked_index(object index, Py_ssize_t begin, Py_ssize_t rows, Py_ssize_t n) except NULL:
    """Return the address of entry `begin`; raise unless `rows` entries follow that are samples of n samples."""
    cdef const int64_t* first
    cdef Py_ssize_t i, entries
    cdef Py_buffer view
    cdef bint is_valid
    PyObject_GetBuffer(index, &view, PyBUF_STRIDES | PyBUF_FORMAT)
    is_valid = (view.ndim == 1 and view.itemsize == 8 and view.strides[0] == 8
                and view.format[0] in (c"l", c"q"))
    first, entries = <const int64_t*> view.buf, view.shape[0] if is_valid else 0
    PyBuffer_Release(&view)
    if not is_valid:
        raise TypeError(f"index: expected a contiguous vector of int64, got {index.dtype} of shape {index.shape}")
    if not (0 <= begin <= entries and 0 < rows <= entries - begin):
        raise IndexError(f"rows: expected at least one of {entries} entries of the index, got {rows} from entry "
                         f"{begin} on")
    first += begin
    for i in range(rows):
        if not 0 <= first[i] < n:
            raise IndexError(f"index[{begin + i}]: expected a sample from 0 to {n - 1}, got {first[i]}")
    return first
