"""The operations of a pass: gathering samples, forward and backward, gradients of the weights; their threads."""
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from fastopt._core.common cimport CACHE_LINE, fo_flush_begin, fo_flush_end, fo_prefetch
from fastopt._core.runtime cimport Task, run_parts
from fastopt._core.span cimport Span
from fastopt.nn._core.gemm cimport Matrix, matmul
from fastopt.nn._core.layer_kernels cimport FLOAT32, FLOAT64, SPARSE, UINT8, Block, DataType
from fastopt.nn._core.net_context cimport (
    ACTIVATE, ACTIVATION_BACKWARD, ADD_PARTIAL, BATCH_NORM, BATCH_NORM_BACKWARD, CHECK_FINITE, GATHER, INPUT_GRAD,
    LAYER_NORM, LOSS, MATMUL, MERGE_MOMENTS, MERGE_PRODUCTS, MOMENTS, NO_NORM, Batch, Grid, Layer, NetContext, Op,
    Piece, block_ptr, inputs_of, matrix_from, row_ptr,
)
from fastopt.nn._core.work_division cimport TILE_DOUBLES, find_tile, piece_at, pieces_of

cdef enum:
    SERIAL_BELOW = 1 << 19      # multiplications up to which a second thread costs more than it saves
    MULS_PER_NS = 50            # multiplications per nanosecond and thread
    MULS_PER_ELEMENT = 16       # that take as long as an elementwise operation, or as the update of an element


# --- Gathering: copying the samples of a batch, converted to the network's dtype ----------------------------

cdef inline Py_ssize_t element_size(DataType dtype) noexcept nogil:
    """Bytes of an element of the inputs; 0 if they are sparse."""
    if dtype == FLOAT64:
        return sizeof(double)
    if dtype == FLOAT32:
        return sizeof(float)
    return 1 if dtype == UINT8 else 0


cdef inline int64_t source_row(const Batch* batch, Py_ssize_t i) noexcept nogil:
    """Row of the data set that is sample i of the batch."""
    return i if batch.index == NULL else batch.index[i]


cdef inline void expand_rows(const NetContext* ctx, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Copy the samples [first, last) of a sparse matrix."""
    cdef const Batch* batch = &ctx.batch
    cdef Py_ssize_t i, n = ctx.layers[0].inputs
    cdef int64_t row, stored
    for i in range(first, last):
        row = source_row(batch, i)
        stored = batch.indptr[row]
        ctx.kernels.expand_row(batch.indptr[row + 1] - stored, batch.columns + stored,
                               batch.source_X + stored * ctx.itemsize, n, row_ptr(ctx, batch.x, i, n))


cdef inline void gather(const NetContext* ctx, const Piece* x) noexcept nogil:
    """Copy columns of samples, converted to the network's dtype."""
    cdef const Batch* batch = &ctx.batch
    cdef Py_ssize_t i, k, n = ctx.layers[0].inputs, size = element_size(batch.dtype)
    cdef const char* source = batch.source_X + x.begin * size
    for i in range(x.first, x.last):
        if i + 1 < x.last:      # the hardware prefetcher cannot predict a random row
            for k from 0 <= k < (x.end - x.begin) * size by CACHE_LINE:
                fo_prefetch(source + source_row(batch, i + 1) * n * size + k)
        ctx.kernels.convert(x.end - x.begin, batch.dtype, source + source_row(batch, i) * n * size,
                            row_ptr(ctx, batch.x, i, n) + x.begin * ctx.itemsize)


cdef inline bint gathers_in_parts(const NetContext* ctx) noexcept nogil:
    """Whether each part of the first layer's product gathers the inputs that it multiplies."""
    return ctx.layers[0].product.inner and ctx.batch.copied and ctx.batch.dtype != SPARSE


cdef inline void gather_targets(const NetContext* ctx, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Copy targets and weights of the samples [first, last), unless the samples are consecutive."""
    cdef const Batch* batch = &ctx.batch
    cdef Py_ssize_t i, size = ctx.itemsize
    if batch.index == NULL:
        return
    for i in range(first, last):
        if batch.source_y != NULL:
            memcpy(batch.y + i * batch.y_bytes, batch.source_y + batch.index[i] * batch.y_bytes, batch.y_bytes)
        if batch.source_weight != NULL:
            memcpy(batch.weight + i * size, batch.source_weight + batch.index[i] * size, size)


cdef inline double total_weight(const NetContext* ctx) noexcept nogil:
    if ctx.batch.source_weight == NULL:
        return <double> ctx.batch.rows
    return ctx.kernels.sum_at(ctx.batch.rows, ctx.batch.index, ctx.batch.source_weight)


# --- Forward, on block number `part`, which is `x` at this layer --------------------------------------------

cdef inline void gather_block(const NetContext* ctx, const Block* x, Py_ssize_t part) noexcept nogil:
    cdef Py_ssize_t first = part * ctx.block_rows
    cdef Piece block = Piece(first, first + x.rows, 0, ctx.layers[0].inputs)
    gather_targets(ctx, first, first + x.rows)
    if ctx.batch.dtype == SPARSE:
        expand_rows(ctx, first, first + x.rows)
    elif ctx.batch.copied and not gathers_in_parts(ctx):
        gather(ctx, &block)


cdef inline void multiply_inputs(const NetContext* ctx, const Layer* layer, int part) noexcept nogil:
    """One of the products whose sum is z, of some inputs with their rows of the weights, a block at a time."""
    cdef Piece weights = piece_at(&layer.product, part), x
    cdef Py_ssize_t first
    cdef char* z = layer.z if part == 0 else partial_of(ctx, layer, part)
    for first from 0 <= first < ctx.batch.rows by ctx.block_rows:
        x = Piece(first, min(first + ctx.block_rows, ctx.batch.rows), weights.first, weights.last)
        if layer == ctx.layers and gathers_in_parts(ctx):
            gather(ctx, &x)
        matmul(ctx.gemm, x.last - x.first, layer.outputs, x.end - x.begin,
               matrix_from(ctx, inputs_of(ctx, layer), x.first, x.begin, layer.inputs),
               matrix_from(ctx, layer.W, x.begin, 0, layer.outputs),
               matrix_from(ctx, z, x.first, 0, layer.outputs))


cdef inline char* partial_of(const NetContext* ctx, const Layer* layer, int part) noexcept nogil:
    return row_ptr(ctx, layer.partial, (part - 1) * ctx.batch.rows, layer.outputs)


cdef inline void add_partial(const NetContext* ctx, const Layer* layer, const Block* x,
                             Py_ssize_t part) noexcept nogil:
    """z = the sum of its summands, in their order"""
    cdef int k
    if not layer.product.inner:
        return
    for k in range(1, <int> layer.product.parts):
        ctx.kernels.add_scaled(x.rows * x.n, 1.0, block_ptr(ctx, partial_of(ctx, layer, k), part, x.n),
                               block_ptr(ctx, layer.z, part, x.n))


cdef inline void multiply_weights(const NetContext* ctx, const Layer* layer, const Piece* x) noexcept nogil:
    """A piece of z = inputs W"""
    matmul(ctx.gemm, x.last - x.first, x.end - x.begin, layer.inputs,
           matrix_from(ctx, inputs_of(ctx, layer), x.first, 0, layer.inputs),
           matrix_from(ctx, layer.W, 0, x.begin, layer.outputs),
           matrix_from(ctx, layer.z, x.first, x.begin, layer.outputs))


cdef inline void check_finite(NetContext* ctx, const Layer* layer, const Block* x, Py_ssize_t part) noexcept nogil:
    """Test one product per sample first: a NaN or Inf in the inputs makes all of them NaN or Inf."""
    cdef Py_ssize_t n = layer.inputs
    if not ctx.kernels.first_column_finite(x, block_ptr(ctx, layer.z, part, x.n)) and not ctx.kernels.all_finite(
            x.rows * n, block_ptr(ctx, ctx.batch.x, part, n)):
        ctx.not_finite = True


cdef inline void activate(NetContext* ctx, const Layer* layer, const Block* x, Py_ssize_t part) noexcept nogil:
    """Normalization, activation and dropout."""
    cdef char* z = block_ptr(ctx, layer.z, part, x.n)
    cdef char* h = block_ptr(ctx, layer.h, part, x.n)
    cdef char* a = block_ptr(ctx, layer.a, part, x.n)
    if layer.norm == LAYER_NORM:
        ctx.kernels.normalize_rows(x, ctx.eps, z, block_ptr(ctx, layer.rstd, part, 1))
    elif layer.norm == BATCH_NORM:
        ctx.kernels.normalize_columns(x, layer.mean, layer.rstd, z)
    if layer.norm != NO_NORM:
        ctx.kernels.affine(x, layer.scale, layer.b, z, h)
    ctx.kernels.activation_forward(layer.activation, x, layer.b if layer.norm == NO_NORM else NULL, h, a)
    if layer.drops:
        ctx.kernels.dropout(&layer.dropout, x, part * ctx.block_rows, a, block_ptr(ctx, layer.out, part, x.n))


cdef inline void compute_loss(NetContext* ctx, const Layer* layer, const Block* x, Py_ssize_t part) noexcept nogil:
    ctx.losses[part] = ctx.kernels.loss(
        &ctx.criterion, x, block_ptr(ctx, layer.out, part, x.n),
        ctx.batch.y + part * ctx.block_rows * ctx.batch.y_bytes,
        block_ptr(ctx, ctx.batch.weight, part, 1) if ctx.batch.weight != NULL else NULL,
        block_ptr(ctx, layer.delta, part, x.n))
    if ctx.batch.correct != NULL:
        ctx.kernels.mark_correct(ctx.criterion.loss, x, block_ptr(ctx, layer.out, part, x.n),
                                 ctx.batch.y + part * ctx.block_rows * ctx.batch.y_bytes,
                                 ctx.batch.correct + part * ctx.block_rows)


# --- Backward -----------------------------------------------------------------------------------------------

cdef inline void activation_backward(NetContext* ctx, const Layer* layer, const Block* x,
                                     Py_ssize_t part) noexcept nogil:
    """Gradient with respect to z; BATCH_NORM_BACKWARD completes it if the layer has batch normalization."""
    cdef char* delta = block_ptr(ctx, layer.delta, part, x.n)
    cdef char* z = block_ptr(ctx, layer.z, part, x.n)
    cdef char* sums = row_ptr(ctx, layer.block_sums, part, x.n)
    if layer.drops:
        ctx.kernels.dropout(&layer.dropout, x, part * ctx.block_rows, delta, delta)
    if layer != &ctx.layers[ctx.depth - 1]:
        ctx.kernels.activation_backward(layer.activation, x, block_ptr(ctx, layer.h, part, x.n),
                                        block_ptr(ctx, layer.a, part, x.n), delta)
    if layer.norm == NO_NORM:
        ctx.kernels.column_sums(x, delta, sums)
        return
    ctx.kernels.column_products(x, z, delta, sums, row_ptr(ctx, layer.block_products, part, x.n))
    if layer.norm == LAYER_NORM:
        ctx.kernels.scale_columns(x, layer.scale, delta)
        ctx.kernels.normalize_rows_backward(x, z, block_ptr(ctx, layer.rstd, part, 1), delta)


cdef inline void input_grad(const NetContext* ctx, const Layer* layer, const Piece* x) noexcept nogil:
    """A piece of the gradient with respect to the layer's inputs, the output of the layer before: delta W.T"""
    cdef Matrix weights = matrix_from(ctx, layer.W, x.begin, 0, layer.outputs)
    weights.transposed = True
    if ctx.small_products and layer.transposed != NULL:
        weights = matrix_from(ctx, layer.transposed, 0, x.begin, layer.inputs)
    matmul(ctx.gemm, x.last - x.first, x.end - x.begin, layer.outputs,
           matrix_from(ctx, layer.delta, x.first, 0, layer.outputs), weights,
           matrix_from(ctx, (layer - 1).delta, x.first, x.begin, layer.inputs))


# --- The interpreter ----------------------------------------------------------------------------------------

cdef inline void run_block(void* context, int part, int parts) noexcept nogil:
    """Run the operations [op_begin, op_end) on one block."""
    cdef NetContext* ctx = <NetContext*> context
    cdef uint64_t mode = fo_flush_begin()
    cdef const Op* op
    cdef const Layer* layer
    cdef Block x
    cdef Piece block
    cdef Py_ssize_t k
    block.first, block.begin = part * ctx.block_rows, 0
    block.last = min(block.first + ctx.block_rows, ctx.batch.rows)
    x.rows = block.last - block.first
    for k in range(ctx.op_begin, ctx.op_end):
        op = &ctx.ops[k]
        layer = &ctx.layers[op.layer]
        x.n = layer.outputs
        if op.opcode == GATHER:
            gather_block(ctx, &x, part)
        elif op.opcode == MATMUL:
            block.end = x.n
            multiply_weights(ctx, layer, &block)
        elif op.opcode == ADD_PARTIAL:
            add_partial(ctx, layer, &x, part)
        elif op.opcode == CHECK_FINITE:
            check_finite(ctx, layer, &x, part)
        elif op.opcode == MOMENTS:
            ctx.kernels.column_moments(
                &x, block_ptr(ctx, layer.z, part, x.n), row_ptr(ctx, layer.block_sums, part, x.n),
                row_ptr(ctx, layer.block_products, part, x.n))
        elif op.opcode == ACTIVATE:
            activate(ctx, layer, &x, part)
        elif op.opcode == LOSS:
            compute_loss(ctx, layer, &x, part)
        elif op.opcode == ACTIVATION_BACKWARD:
            activation_backward(ctx, layer, &x, part)
        elif op.opcode == BATCH_NORM_BACKWARD:
            ctx.kernels.normalize_columns_backward(
                &x, block_ptr(ctx, layer.z, part, x.n), layer.rstd, layer.db, layer.dscale,
                <double> ctx.batch.rows, block_ptr(ctx, layer.delta, part, x.n))
        elif op.opcode == INPUT_GRAD:
            block.end = layer.inputs
            input_grad(ctx, layer, &block)
    fo_flush_end(mode)


cdef inline void run_piece(void* context, int part, int parts) noexcept nogil:
    """Compute one piece of the product that is operation number op_end."""
    cdef NetContext* ctx = <NetContext*> context
    cdef const Op* op = &ctx.ops[ctx.op_end]
    cdef uint64_t mode = fo_flush_begin()
    cdef Piece piece = piece_at(pieces_of(ctx, op), part)
    if op.opcode == MATMUL and ctx.layers[op.layer].product.inner:
        multiply_inputs(ctx, &ctx.layers[op.layer], part)
    elif op.opcode == MATMUL:
        multiply_weights(ctx, &ctx.layers[op.layer], &piece)
    else:
        input_grad(ctx, &ctx.layers[op.layer], &piece)
    fo_flush_end(mode)


# --- Operations on the results of all blocks ----------------------------------------------------------------

cdef inline void sum_blocks(const NetContext* ctx, const Layer* layer, const char* parts,
                            char* total) noexcept nogil:
    """Sum over the blocks, in their order."""
    cdef Py_ssize_t k, n = layer.outputs
    memcpy(total, parts, n * ctx.itemsize)
    for k in range(1, ctx.n_blocks):
        ctx.kernels.add_scaled(n, 1.0, parts + k * n * ctx.itemsize, total)


cdef inline void merge_blocks(const NetContext* ctx, const Op* op) noexcept nogil:
    """Run an operation that needs the results of all blocks."""
    cdef const Layer* layer = &ctx.layers[op.layer]
    cdef Block batch = Block(ctx.batch.rows, layer.outputs), vector = Block(1, layer.outputs)
    if op.opcode == MERGE_PRODUCTS:
        sum_blocks(ctx, layer, layer.block_sums, layer.db)
        sum_blocks(ctx, layer, layer.block_products, layer.dscale)
        ctx.kernels.scale_columns(&vector, layer.scale, layer.rstd)     # from here on, rstd includes the scale
    elif ctx.training:
        ctx.kernels.merge_moments(&batch, ctx.block_rows, ctx.eps, ctx.momentum, layer.block_sums,
                                  layer.block_products, layer.mean, layer.rstd, layer.running_mean,
                                  layer.running_variance)
    else:
        memcpy(layer.mean, layer.running_mean, layer.outputs * ctx.itemsize)
        ctx.kernels.reciprocal_std(layer.outputs, ctx.eps, layer.running_variance, layer.rstd)


# --- Running operations on several threads -------------------------------------------------------------------

cdef inline void parallel_for(NetContext* ctx, Task task, Py_ssize_t parts,
                              Py_ssize_t multiplications) noexcept nogil:
    """Run a task on all parts, on several threads if the work is worth it and the products need no GIL."""
    cdef int part
    if multiplications <= SERIAL_BELOW or ctx.gemm.function == NULL:
        for part in range(<int> parts):
            task(ctx, part, <int> parts)
    else:
        run_parts(task, ctx, <int> parts, multiplications // MULS_PER_NS)


cdef inline bint is_stopped(const NetContext* ctx) noexcept nogil:
    """Whether the results of the pass are invalid."""
    return ctx.not_finite or ctx.gemm.failed


cdef inline Py_ssize_t work_of(const NetContext* ctx, const Op* op) noexcept nogil:
    """Multiplications that take about as long as the operation on all samples."""
    cdef const Layer* layer = &ctx.layers[op.layer]
    cdef Py_ssize_t per_output = layer.inputs if op.opcode in (MATMUL, INPUT_GRAD) else MULS_PER_ELEMENT
    if op.opcode == GATHER and gathers_in_parts(ctx):
        return 0
    return ctx.batch.rows * per_output * (layer.inputs if op.opcode == GATHER else layer.outputs)


cdef inline void run_ops(NetContext* ctx, Py_ssize_t n_ops) noexcept nogil:
    """Run the operations: neighboring ones together on each block, unless one needs all blocks or has pieces."""
    cdef Py_ssize_t k, work = 0
    cdef const Grid* pieces = NULL
    ctx.op_begin = 0
    for k in range(n_ops + 1):
        if k < n_ops:
            pieces = pieces_of(ctx, &ctx.ops[k])
            if pieces == NULL and ctx.ops[k].opcode < MERGE_MOMENTS:
                work += work_of(ctx, &ctx.ops[k])
                continue
        ctx.op_end = k
        if k > ctx.op_begin:
            parallel_for(ctx, run_block, ctx.n_blocks, work)
        ctx.op_begin, work = k + 1, 0
        if k == n_ops or is_stopped(ctx):
            return
        if pieces != NULL:
            parallel_for(ctx, run_piece, pieces.parts, work_of(ctx, &ctx.ops[k]))
        else:
            merge_blocks(ctx, &ctx.ops[k])


# --- Gradients of the parameters, one tile of a weight matrix at a time, and updates while it is cached -----

cdef inline void transpose_weights(void* context, int part, int parts) noexcept nogil:
    """Transpose a range of rows of every layer's weights."""
    cdef NetContext* ctx = <NetContext*> context
    cdef const Layer* layer
    cdef Py_ssize_t i
    for i in range(1, ctx.depth):
        layer = &ctx.layers[i]
        ctx.kernels.transpose(layer.W, layer.transposed, layer.inputs, layer.outputs,
                              layer.inputs * part // parts, layer.inputs * (part + 1) // parts)


cdef inline void update_range(const NetContext* ctx, int param, const char* g, Py_ssize_t begin,
                              Py_ssize_t end) noexcept nogil:
    """Update elements [begin, end) of a parameter with the gradient `g`, if an optimizer leases it."""
    cdef Span x
    if ctx.lease == NULL:
        return
    x = ctx.lease.spans[param]
    x.g = <char*> g - begin * ctx.itemsize
    ctx.lease.update(&ctx.lease.args[x.group], &x, begin, end)


cdef inline void prefetch_range(const NetContext* ctx, int param, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Prefetch elements [begin, end) of a parameter and its state, which an update reads soon."""
    cdef const Span* x
    cdef Py_ssize_t k
    if ctx.lease == NULL:
        return
    x = &ctx.lease.spans[param]
    for k from begin * ctx.itemsize <= k < end * ctx.itemsize by CACHE_LINE:
        fo_prefetch(x.p + k)
        if x.s != NULL:
            fo_prefetch(x.s + k)
        if x.t != NULL:
            fo_prefetch(x.t + k)


cdef inline void vector_grads(const NetContext* ctx, const Layer* layer) noexcept nogil:
    """Gradients of bias and scale; MERGE_PRODUCTS has computed those of batch normalization."""
    if layer.norm != BATCH_NORM:
        sum_blocks(ctx, layer, layer.block_sums, layer.db)
    if layer.norm == LAYER_NORM:
        sum_blocks(ctx, layer, layer.block_products, layer.dscale)
    update_range(ctx, layer.param + 1, layer.db, 0, layer.outputs)
    if layer.scale != NULL:
        update_range(ctx, layer.param + 2, layer.dscale, 0, layer.outputs)


cdef inline void outer_product(const NetContext* ctx, Py_ssize_t m, Py_ssize_t n, const char* a, const char* b,
                               const Matrix* c) noexcept nogil:
    """c[i, j] = a[i] b[j]; a BLAS would pack the vectors and multiply by zeros."""
    cdef Py_ssize_t i
    cdef double factor
    cdef char* row
    for i in range(m):
        row = c.start + i * c.ld * ctx.itemsize
        factor = (<const double*> a)[i] if ctx.dtype == FLOAT64 else <double> (<const float*> a)[i]
        memset(row, 0, n * ctx.itemsize)
        ctx.kernels.add_scaled(n, factor, b, row)


cdef inline double weight_grad(NetContext* ctx, const Layer* layer, const Piece* x) noexcept nogil:
    """dW = inputs.T delta + l2 W, for a tile of W; returns the sum of its squares if there is a penalty."""
    cdef Py_ssize_t n = layer.outputs, rows = x.last - x.first, columns = x.end - x.begin, i, begin
    cdef Matrix inputs = matrix_from(ctx, inputs_of(ctx, layer), 0, x.first, layer.inputs)
    cdef Matrix dW = matrix_from(ctx, layer.dW, x.first, x.begin, n)
    cdef double scratch[TILE_DOUBLES]
    cdef double squares = 0.0
    cdef char* W
    cdef char* g
    if ctx.lease != NULL and rows * columns * ctx.itemsize <= <Py_ssize_t> sizeof(scratch):
        dW = Matrix(<char*> &scratch[0], columns, False)    # stays in the cache for the update
    inputs.transposed = True
    if ctx.batch.rows == 1:
        outer_product(ctx, rows, columns, inputs.start, layer.delta + x.begin * ctx.itemsize, &dW)
    else:
        matmul(ctx.gemm, rows, columns, ctx.batch.rows, inputs, matrix_from(ctx, layer.delta, 0, x.begin, n), dW)
    if dW.ld == columns and n == columns:   # one range of elements
        rows, columns = 1, rows * columns
    for i in range(rows):
        begin = (x.first + i) * n + x.begin
        if i + 1 < rows:
            prefetch_range(ctx, layer.param, begin + n, begin + n + columns)
        W, g = layer.W + begin * ctx.itemsize, dW.start + i * dW.ld * ctx.itemsize
        if ctx.l2 != 0.0:
            squares += ctx.kernels.sum_squares(columns, W)
            ctx.kernels.add_scaled(columns, ctx.l2, W, g)
        update_range(ctx, layer.param, g, begin, begin + columns)
    return squares


cdef inline void compute_tile_grad(void* context, int part, int parts) noexcept nogil:
    """Compute the gradients of a tile; update the parameters if an optimizer leases them."""
    cdef NetContext* ctx = <NetContext*> context
    cdef Py_ssize_t tile
    cdef const Layer* layer = find_tile(ctx, part, &tile)
    cdef Piece piece
    cdef uint64_t mode = fo_flush_begin()
    ctx.penalties[part] = 0.0
    if tile < layer.tiles.parts:
        piece = piece_at(&layer.tiles, tile)
        ctx.penalties[part] = weight_grad(ctx, layer, &piece)
    else:
        vector_grads(ctx, layer)
    fo_flush_end(mode)
