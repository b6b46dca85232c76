"""The operations of a forward and backward pass on one block of samples, and those that merge the blocks."""
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from fastopt._core.common cimport fo_flush_begin, fo_flush_end
from fastopt.nn._core.gather cimport gather, gather_targets
from fastopt.nn._core.gemm cimport Matrix, matmul
from fastopt.nn._core.layer_kernels cimport Block
from fastopt.nn._core.net_context cimport (
    ACTIVATE, ACTIVATION_BACKWARD, ADD_PARTIAL, BATCH_NORM, BATCH_NORM_BACKWARD, GATHER, INPUT_GRAD,
    LAYER_NORM, LOSS, MATMUL, MERGE_PRODUCTS, MOMENTS, NO_NORM, Layer, NetContext, Op, block_of,
    inputs_of, row_ptr, rows_from,
)

cdef enum:
    SPLIT_ROWS = 64     # samples per task of `split_products`


# --- Forward --------------------------------------------------------------------------------------------

cdef inline void gather_block(const NetContext* ctx, Py_ssize_t part) noexcept nogil:
    cdef Py_ssize_t first = part * ctx.block_rows, last = min(first + ctx.block_rows, ctx.batch.rows)
    gather_targets(ctx, first, last)
    if ctx.split_col == 0:      # else `split_products` has gathered the inputs
        gather(ctx, first, last, 0, ctx.layers[0].inputs)


cdef inline void check_finite(NetContext* ctx, const Block* x, const char* z, Py_ssize_t part) noexcept nogil:
    """Test one product per sample first: a NaN or Inf in the inputs makes all of them NaN or Inf."""
    cdef Py_ssize_t n = ctx.layers[0].inputs
    if not ctx.kernels.first_column_finite(x, z) and not ctx.kernels.all_finite(
            x.rows * n, row_ptr(ctx, ctx.batch.x, part * ctx.block_rows, n)):
        ctx.not_finite = True


cdef inline void multiply_weights(NetContext* ctx, Py_ssize_t i, Py_ssize_t part) noexcept nogil:
    """z = inputs W"""
    cdef const Layer* layer = &ctx.layers[i]
    cdef Block x = block_of(ctx, layer, part)
    cdef Py_ssize_t first = part * ctx.block_rows
    cdef Matrix z = rows_from(ctx, layer.z, first, layer.outputs)
    matmul(ctx.gemm, x.rows, layer.outputs, layer.inputs,
           rows_from(ctx, inputs_of(ctx, i), first, layer.inputs), Matrix(layer.W, layer.outputs, False), z)
    if i == 0:
        check_finite(ctx, &x, z.start, part)


cdef inline void split_products(void* context, int part, int parts) noexcept nogil:
    """Products of some samples with the first layer's weights below split_col, or from split_col on.

    The thread later updates the same half of the weights, which then stay in its cache. For wide inputs they
    are most of the memory that a step reads and writes.
    """
    cdef NetContext* ctx = <NetContext*> context
    cdef const Layer* layer = &ctx.layers[0]
    cdef int group = part % (parts // 2)
    cdef bint upper = part >= parts // 2
    cdef Py_ssize_t n = layer.outputs, first = group * SPLIT_ROWS, last = min(first + SPLIT_ROWS, ctx.batch.rows)
    cdef Py_ssize_t begin = ctx.split_col if upper else 0, end = layer.inputs if upper else ctx.split_col
    cdef uint64_t mode = fo_flush_begin()
    cdef Matrix x = rows_from(ctx, ctx.batch.x, first, layer.inputs)
    x.start += begin * ctx.itemsize
    gather(ctx, first, last, begin, end)
    matmul(ctx.gemm, last - first, n, end - begin, x, rows_from(ctx, layer.W, begin, n),
           rows_from(ctx, ctx.partial_z if upper else layer.z, first, n))
    fo_flush_end(mode)


cdef inline void add_partial(NetContext* ctx, Py_ssize_t part) noexcept nogil:
    """Add the two halves of the first layer's products."""
    cdef const Layer* layer = &ctx.layers[0]
    cdef Block x = block_of(ctx, layer, part)
    cdef Py_ssize_t first = part * ctx.block_rows
    cdef char* z = row_ptr(ctx, layer.z, first, x.n)
    ctx.kernels.add_scaled(x.rows * x.n, 1.0, row_ptr(ctx, ctx.partial_z, first, x.n), z)
    check_finite(ctx, &x, z, part)


cdef inline void compute_moments(NetContext* ctx, Py_ssize_t i, Py_ssize_t part) noexcept nogil:
    cdef const Layer* layer = &ctx.layers[i]
    cdef Block x = block_of(ctx, layer, part)
    ctx.kernels.column_moments(&x, row_ptr(ctx, layer.z, part * ctx.block_rows, x.n),
                               row_ptr(ctx, layer.block_sums, part, x.n),
                               row_ptr(ctx, layer.block_products, part, x.n))


cdef inline void activate(NetContext* ctx, Py_ssize_t i, Py_ssize_t part) noexcept nogil:
    """Normalization, activation and dropout."""
    cdef const Layer* layer = &ctx.layers[i]
    cdef Block x = block_of(ctx, layer, part)
    cdef Py_ssize_t first = part * ctx.block_rows, n = layer.outputs
    cdef char* z = row_ptr(ctx, layer.z, first, n)
    cdef char* h = row_ptr(ctx, layer.h, first, n)
    cdef char* a = row_ptr(ctx, layer.a, first, n)
    if layer.norm == LAYER_NORM:
        ctx.kernels.normalize_rows(&x, ctx.eps, z, layer.rstd + first * ctx.itemsize)
    elif layer.norm == BATCH_NORM:
        ctx.kernels.normalize_columns(&x, layer.mean, layer.rstd, z)
    if layer.norm != NO_NORM:
        ctx.kernels.affine(&x, layer.scale, layer.b, z, h)
    ctx.kernels.activation_forward(layer.activation, &x, layer.b if layer.norm == NO_NORM else NULL, h, a)
    if layer.drops:
        ctx.kernels.dropout(&layer.dropout, &x, first, a, row_ptr(ctx, layer.out, first, n))


cdef inline void compute_loss(NetContext* ctx, Py_ssize_t part) noexcept nogil:
    cdef const Layer* layer = &ctx.layers[ctx.depth - 1]
    cdef Block x = block_of(ctx, layer, part)
    cdef Py_ssize_t first = part * ctx.block_rows
    ctx.losses[part] = ctx.kernels.loss(
        &ctx.criterion, &x, row_ptr(ctx, layer.out, first, x.n), ctx.batch.y + first * ctx.batch.y_bytes,
        ctx.batch.weight + first * ctx.itemsize if ctx.batch.weight != NULL else NULL,
        row_ptr(ctx, layer.delta, first, x.n))


# --- Backward -------------------------------------------------------------------------------------------

cdef inline void activation_backward(NetContext* ctx, Py_ssize_t i, Py_ssize_t part) noexcept nogil:
    """Gradient with respect to z; `batch_norm_backward` completes it if the layer has batch normalization."""
    cdef const Layer* layer = &ctx.layers[i]
    cdef Block x = block_of(ctx, layer, part)
    cdef Py_ssize_t first = part * ctx.block_rows, n = layer.outputs
    cdef char* delta = row_ptr(ctx, layer.delta, first, n)
    cdef char* z = row_ptr(ctx, layer.z, first, n)
    cdef char* sums = row_ptr(ctx, layer.block_sums, part, n)
    if layer.drops:
        ctx.kernels.dropout(&layer.dropout, &x, first, delta, delta)
    if i < ctx.depth - 1:
        ctx.kernels.activation_backward(layer.activation, &x, row_ptr(ctx, layer.h, first, n),
                                        row_ptr(ctx, layer.a, first, n), delta)
    if layer.norm == NO_NORM:
        ctx.kernels.column_sums(&x, delta, sums)
        return
    ctx.kernels.column_products(&x, z, delta, sums, row_ptr(ctx, layer.block_products, part, n))
    if layer.norm == LAYER_NORM:
        ctx.kernels.scale_columns(&x, layer.scale, delta)
        ctx.kernels.normalize_rows_backward(&x, z, layer.rstd + first * ctx.itemsize, delta)


cdef inline void batch_norm_backward(NetContext* ctx, Py_ssize_t i, Py_ssize_t part) noexcept nogil:
    cdef const Layer* layer = &ctx.layers[i]
    cdef Block x = block_of(ctx, layer, part)
    cdef Py_ssize_t first = part * ctx.block_rows
    ctx.kernels.normalize_columns_backward(
        &x, row_ptr(ctx, layer.z, first, x.n), layer.rstd, layer.db, layer.dscale, <double> ctx.batch.rows,
        row_ptr(ctx, layer.delta, first, x.n))


cdef inline void input_grad(NetContext* ctx, Py_ssize_t i, Py_ssize_t part) noexcept nogil:
    """Gradient with respect to the layer's inputs, the output of the layer before: delta W.T"""
    cdef const Layer* layer = &ctx.layers[i]
    cdef Block x = block_of(ctx, layer, part)
    cdef Py_ssize_t first = part * ctx.block_rows
    cdef Matrix weights = Matrix(layer.W, layer.outputs, True)
    if layer.transposed != NULL:
        weights = Matrix(layer.transposed, layer.inputs, False)
    matmul(ctx.gemm, x.rows, layer.inputs, layer.outputs,
           rows_from(ctx, layer.delta, first, layer.outputs), weights,
           rows_from(ctx, ctx.layers[i - 1].delta, first, layer.inputs))


# --- The interpreter ------------------------------------------------------------------------------------

cdef inline void run_block(void* context, int part, int parts) noexcept nogil:
    """Run the operations [op_begin, op_end) on one block."""
    cdef NetContext* ctx = <NetContext*> context
    cdef uint64_t mode = fo_flush_begin()
    cdef Py_ssize_t k, i
    for k in range(ctx.op_begin, ctx.op_end):
        i = ctx.ops[k].layer
        if ctx.ops[k].opcode == GATHER:
            gather_block(ctx, part)
        elif ctx.ops[k].opcode == ADD_PARTIAL:
            add_partial(ctx, part)
        elif ctx.ops[k].opcode == MATMUL:
            multiply_weights(ctx, i, part)
        elif ctx.ops[k].opcode == MOMENTS:
            compute_moments(ctx, i, part)
        elif ctx.ops[k].opcode == ACTIVATE:
            activate(ctx, i, part)
        elif ctx.ops[k].opcode == LOSS:
            compute_loss(ctx, part)
        elif ctx.ops[k].opcode == ACTIVATION_BACKWARD:
            activation_backward(ctx, i, part)
        elif ctx.ops[k].opcode == BATCH_NORM_BACKWARD:
            batch_norm_backward(ctx, i, part)
        elif ctx.ops[k].opcode == INPUT_GRAD:
            input_grad(ctx, i, part)
    fo_flush_end(mode)


# --- Operations on the results of all blocks ------------------------------------------------------------

cdef inline void sum_blocks(const NetContext* ctx, const Layer* layer, const char* parts,
                            char* total) noexcept nogil:
    """Sum over the blocks, in their order."""
    cdef Py_ssize_t k, n = layer.outputs
    memcpy(total, parts, n * ctx.itemsize)
    for k in range(1, ctx.n_blocks):
        ctx.kernels.add_scaled(n, 1.0, parts + k * n * ctx.itemsize, total)


cdef inline void merge_products(const NetContext* ctx, const Layer* layer) noexcept nogil:
    """Gradients of the vectors of batch normalization. From here on, rstd includes the scale."""
    cdef Block vector = Block(1, layer.outputs)
    sum_blocks(ctx, layer, layer.block_sums, layer.db)
    sum_blocks(ctx, layer, layer.block_products, layer.dscale)
    ctx.kernels.scale_columns(&vector, layer.scale, layer.rstd)


cdef inline void merge_blocks(const NetContext* ctx, const Op* op) noexcept nogil:
    """Run an operation that needs the results of all blocks."""
    cdef const Layer* layer = &ctx.layers[op.layer]
    cdef Block batch = Block(ctx.batch.rows, layer.outputs)
    if op.opcode == MERGE_PRODUCTS:
        merge_products(ctx, layer)
    elif ctx.training:
        ctx.kernels.merge_moments(&batch, ctx.block_rows, ctx.eps, ctx.momentum, layer.block_sums,
                                  layer.block_products, layer.mean, layer.rstd, layer.running_mean,
                                  layer.running_variance)
    else:
        memcpy(layer.mean, layer.running_mean, layer.outputs * ctx.itemsize)
        ctx.kernels.reciprocal_std(layer.outputs, ctx.eps, layer.running_variance, layer.rstd)
