"""How the work of a batch is divided. Everything here depends on the sizes alone, never on the threads.

Elementwise operations, and products with small weights, are computed on blocks of samples. A product with large
weights, or of few samples, is divided into pieces of its result instead: each block would read all weights, or
have too few samples to multiply well. Gradients of weights are divided into tiles. The numbers of parts are
even, so that two threads have the same work.
"""
from fastopt.nn._core.net_context cimport (
    INPUT_GRAD, MATMUL, Grid, Layer, NetContext, Op, Piece,
)

cdef enum:
    SMALL_BLOCK_ROWS = 16       # samples per block if the BLAS multiplies small matrices without packing
    MAX_CACHED = 1 << 18        # weights of a layer at most for products on blocks, each of which reads all of them
    MIN_SPLIT = 1 << 20         # multiplications of a product of few samples at least to be divided into pieces
    FEW_SAMPLES = 128           # below, blocks are too small to multiply well
    PIECE_ROWS = 512            # rows and columns of a piece, at most
    PIECE_COLUMNS = 256
    TILE_COLUMNS = 512          # of weights, at most
    TILE_ROWS = 256
    TILE_DOUBLES = 1 << 14      # size of a tile whose gradient stays in the cache until the update
    MANY_SAMPLES = 256          # from here on a product takes much longer than the update, and tiles are larger
    MIN_TILE = 1 << 12          # weights per tile at least


cdef inline Py_ssize_t divide_up(Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    return (n + size - 1) // size


cdef inline Py_ssize_t even_part(Py_ssize_t n, Py_ssize_t size, Py_ssize_t multiple) noexcept nogil:
    """Size of the parts of n, at most about `size`, such that their number is even; a multiple of `multiple`."""
    return divide_up(divide_up(n, 2 * divide_up(n, 2 * size)), multiple) * multiple


cdef inline Grid make_grid(Py_ssize_t m, Py_ssize_t n, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    cdef Grid grid
    grid.m, grid.n = m, n
    grid.rows, grid.columns = rows, columns
    grid.n_columns = divide_up(n, columns)
    grid.parts = divide_up(m, rows) * grid.n_columns
    return grid


cdef inline Piece piece_at(const Grid* grid, Py_ssize_t part) noexcept nogil:
    cdef Py_ssize_t row = part % (grid.parts // grid.n_columns) * grid.rows
    cdef Py_ssize_t column = part // (grid.parts // grid.n_columns) * grid.columns
    return Piece(row, min(row + grid.rows, grid.m), column, min(column + grid.columns, grid.n))


cdef inline Grid product_grid(Py_ssize_t rows, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """Pieces of a product of shape (rows, n) with weights; none if it is computed on blocks."""
    cdef Py_ssize_t weights = n * k
    if weights <= MAX_CACHED and (rows >= FEW_SAMPLES or weights * rows < MIN_SPLIT) or n < 32:
        return Grid(rows, n, 0, 0, 0, 0)
    return make_grid(rows, n, even_part(rows, PIECE_ROWS, 4) if rows > PIECE_ROWS else rows,
                     even_part(n, PIECE_COLUMNS, 16))


cdef inline Grid weight_grid(Py_ssize_t m, Py_ssize_t n, Py_ssize_t rows, Py_ssize_t itemsize) noexcept nogil:
    """Tiles of the gradient of weights of shape (m, n)."""
    cdef Py_ssize_t columns = divide_up(divide_up(n, divide_up(n, TILE_COLUMNS)), 16) * 16, height
    height = TILE_ROWS if rows >= MANY_SAMPLES else min(8 * TILE_DOUBLES // itemsize // columns, TILE_ROWS)
    if m * n <= 2 * MIN_TILE:
        return make_grid(m, n, m, columns)
    return make_grid(m, n, even_part(m, height, 4), columns)


cdef inline void divide_work(NetContext* ctx, Py_ssize_t rows) noexcept nogil:
    """Set the blocks, pieces and tiles of a batch."""
    cdef Py_ssize_t i, target = 64 if rows <= 512 else 128 if rows <= 2048 else 256
    cdef bint small = ctx.gemm.small > 0 and rows <= 256
    cdef Layer* layer
    for i in range(ctx.depth):
        layer = &ctx.layers[i]
        layer.product = product_grid(rows, layer.outputs, layer.inputs)
        layer.input_product = product_grid(rows, layer.inputs, layer.outputs)
        layer.tiles = weight_grid(layer.inputs, layer.outputs, rows, ctx.itemsize)
        small = small and layer.inputs * layer.outputs <= MAX_CACHED
    ctx.small_products = small
    ctx.block_rows = even_part(rows, SMALL_BLOCK_ROWS if small else target, 4)
    ctx.n_blocks = divide_up(rows, ctx.block_rows)
    ctx.n_tiles = 0
    for i in range(ctx.depth):
        ctx.n_tiles += ctx.layers[i].tiles.parts + 1


cdef inline const Layer* find_tile(const NetContext* ctx, Py_ssize_t part, Py_ssize_t* tile) noexcept nogil:
    """Layer and index of a tile; index `tiles.parts` stands for the vectors of the layer.

    The parts are the lower half of every layer's tiles, then the upper halves: the first half of the parts has
    half of the work.
    """
    cdef Py_ssize_t i, half
    for i in range(2 * ctx.depth):
        half = ctx.layers[i % ctx.depth].tiles.parts // 2
        tile[0] = part + (half if i >= ctx.depth else 0)
        part -= half if i < ctx.depth else ctx.layers[i % ctx.depth].tiles.parts + 1 - half
        if part < 0:
            break
    return &ctx.layers[i % ctx.depth]


cdef inline const Grid* pieces_of(const NetContext* ctx, const Op* op) noexcept nogil:
    """Grid of the pieces of an operation that is not computed on blocks; else NULL."""
    cdef const Grid* grid = NULL
    if op.opcode == MATMUL:
        grid = &ctx.layers[op.layer].product
    elif op.opcode == INPUT_GRAD:
        grid = &ctx.layers[op.layer].input_product
    return grid if grid != NULL and grid.parts > 0 else NULL
