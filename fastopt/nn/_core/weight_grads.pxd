"""Gradients of the parameters, one tile of a weight matrix at a time, and updates while a tile is cached."""
from libc.stdint cimport uint64_t

from fastopt._core.common cimport fo_flush_begin, fo_flush_end
from fastopt._core.span cimport Span
from fastopt.nn._core.block_ops cimport sum_blocks
from fastopt.nn._core.gemm cimport Matrix, matmul
from fastopt.nn._core.net_context cimport (
    BATCH_NORM, NO_NORM, Layer, NetContext, WeightTile, inputs_of, row_ptr, rows_from,
)

cdef enum:
    SCRATCH = 1 << 13   # doubles on the stack, for the gradient of a tile that is used for an update only


cdef inline void transpose_tile(void* context, int part, int parts) noexcept nogil:
    cdef NetContext* ctx = <NetContext*> context
    cdef const WeightTile* tile = &ctx.tiles[part]
    cdef const Layer* layer = &ctx.layers[tile.layer]
    if layer.transposed != NULL:
        ctx.kernels.transpose(layer.W, layer.transposed, layer.inputs, layer.outputs, tile.begin, tile.end)


cdef inline void vector_grads(const NetContext* ctx, const Layer* layer) noexcept nogil:
    """Gradients of bias and scale; `merge_products` has computed those of batch normalization."""
    if layer.norm == BATCH_NORM:
        return
    sum_blocks(ctx, layer, layer.block_sums, layer.db)
    if layer.norm != NO_NORM:
        sum_blocks(ctx, layer, layer.block_products, layer.dscale)


cdef inline void update_range(const NetContext* ctx, int param, const char* g, Py_ssize_t begin,
                              Py_ssize_t end) noexcept nogil:
    """Update elements [begin, end) of a parameter with the gradient `g`, if an optimizer leases it."""
    cdef Span x
    if ctx.lease == NULL:
        return
    x = ctx.lease.spans[param]
    x.g = <char*> g - begin * ctx.itemsize
    ctx.lease.update(&ctx.lease.args[x.group], &x, begin, end)


cdef inline void compute_weight_grad(NetContext* ctx, const WeightTile* tile, double* penalty,
                                     char* scratch) noexcept nogil:
    """dW = inputs.T delta + l2 W"""
    cdef const Layer* layer = &ctx.layers[tile.layer]
    cdef Py_ssize_t n = layer.outputs, rows = tile.end - tile.begin
    cdef char* W = row_ptr(ctx, layer.W, tile.begin, n)
    cdef char* dW = row_ptr(ctx, layer.dW, tile.begin, n)
    if ctx.lease != NULL and rows * n * ctx.itemsize <= SCRATCH * <Py_ssize_t> sizeof(double):
        dW = scratch            # stays in the cache for the update; the gradient array is not written
    matmul(ctx.gemm, rows, n, ctx.batch.rows,
           Matrix(inputs_of(ctx, tile.layer) + tile.begin * ctx.itemsize, layer.inputs, True),
           Matrix(layer.delta, n, False), Matrix(dW, n, False))
    if ctx.l2 != 0.0:
        penalty[0] = ctx.kernels.sum_squares(rows * n, W)
        ctx.kernels.add_scaled(rows * n, ctx.l2, W, dW)
    update_range(ctx, tile.param, dW, tile.begin * n, tile.end * n)


cdef inline void compute_tile_grad(void* context, int part, int parts) noexcept nogil:
    """Compute the gradients of a tile; update the parameters if an optimizer leases them."""
    cdef NetContext* ctx = <NetContext*> context
    cdef const WeightTile* tile = &ctx.tiles[part]
    cdef const Layer* layer = &ctx.layers[tile.layer]
    cdef double scratch[SCRATCH]
    cdef uint64_t mode = fo_flush_begin()
    ctx.penalties[part] = 0.0
    if tile.begin < tile.end:
        compute_weight_grad(ctx, tile, &ctx.penalties[part], <char*> &scratch[0])
    else:
        vector_grads(ctx, layer)
        update_range(ctx, tile.param + 1, layer.db, 0, layer.outputs)
        if layer.scale != NULL:
            update_range(ctx, tile.param + 2, layer.dscale, 0, layer.outputs)
    fo_flush_end(mode)
