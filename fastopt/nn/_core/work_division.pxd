"""How the work of a batch is divided. Everything here depends on the sizes alone, never on the threads.

Elementwise operations, and products with small weights, are computed on blocks of samples. A product with large
weights, or of few samples, is divided into pieces of its result instead: each block would read all weights, or
have too few samples to multiply well. With few samples and small weights it is the sum of two products, each
with one half of the inputs. Gradients of weights are divided into tiles. The numbers of parts are even, so that
two threads have the same work.
"""
from fastopt._core.common cimport divide_up, equal_part
from fastopt.nn._core.net_context cimport (
    INPUT_GRAD, MATMUL, Grid, Layer, NetContext, Op, Piece,
)

cdef enum:
    SMALL_BLOCK_ROWS = 16       # samples per block if the BLAS multiplies small matrices without packing
    MAX_CACHED = 1 << 18        # weights of a layer at most for products on blocks, which read all of them each
    MIN_SPLIT = 1 << 16         # weights at least for products of few samples in pieces
    INNER_ROWS = 64             # samples up to which a product is divided by the inputs, into INNER_PARTS parts
    INNER_PARTS = 2
    MIN_INNER = 1 << 19         # multiplications at least of such a product
    FEW_SAMPLES = 256           # below, blocks are too small to multiply well
    PIECE_ROWS = 512            # rows and columns of a piece, at most
    PIECE_COLUMNS = 256
    TILE_COLUMNS = 512          # of weights, at most
    TILE_ROWS = 256
    TILE_DOUBLES = 1 << 14      # size of a tile whose gradient stays in the cache until the update
    MIN_TILE = 1 << 18          # multiplications, update included, up to which a gradient is a single tile
    MANY_SAMPLES = 256          # from here on packing a tile's operands costs more than reading its gradient again


cdef inline Py_ssize_t even_part(Py_ssize_t n, Py_ssize_t size, Py_ssize_t multiple) noexcept nogil:
    """Size of the parts of n, at most about `size`, such that their number is even; a multiple of `multiple`."""
    return divide_up(divide_up(n, 2 * divide_up(n, 2 * size)), multiple) * multiple


cdef inline Grid make_grid(Py_ssize_t m, Py_ssize_t n, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    cdef Grid grid
    grid.m, grid.n = m, n
    grid.rows, grid.columns = rows, columns
    grid.n_columns = divide_up(n, columns)
    grid.parts = divide_up(m, rows) * grid.n_columns
    grid.inner = False
    return grid


cdef inline Piece piece_at(const Grid* grid, Py_ssize_t part) noexcept nogil:
    cdef Py_ssize_t row = part % (grid.parts // grid.n_columns) * grid.rows
    cdef Py_ssize_t column = part // (grid.parts // grid.n_columns) * grid.columns
    return Piece(row, min(row + grid.rows, grid.m), column, min(column + grid.columns, grid.n))


cdef inline Grid product_grid(Py_ssize_t rows, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """Pieces of a product of shape (rows, n) with weights; none if it is computed on blocks."""
    cdef Py_ssize_t weights = n * k
    if weights <= MAX_CACHED and (rows >= FEW_SAMPLES or weights < MIN_SPLIT) or n < 32:
        return Grid(rows, n, 0, 0, 0, 0, False)
    return make_grid(rows, n, even_part(rows, PIECE_ROWS, 4) if rows > PIECE_ROWS else rows,
                     even_part(n, PIECE_COLUMNS, 16 if n > PIECE_COLUMNS else 4))


cdef inline Grid forward_grid(Py_ssize_t rows, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """Parts of the product of the inputs with weights of shape (k, n).

    With few samples, each part has some rows of the weights, and their gradients are tiles of the same half of
    all parts. So the thread that updates weights reads them in the next step, in the cache of its core.
    """
    cdef Grid grid
    if rows > INNER_ROWS or n * k * rows < MIN_INNER or n * k > MAX_CACHED or k < n:
        return product_grid(rows, n, k)
    grid = make_grid(k, n, divide_up(divide_up(k, INNER_PARTS), 16) * 16, n)
    grid.inner = True
    return grid


cdef inline Grid weight_grid(Py_ssize_t m, Py_ssize_t n, Py_ssize_t rows, Py_ssize_t itemsize,
                             bint packs) noexcept nogil:
    """Tiles of the gradient of weights of shape (m, n).

    The gradient of a tile stays in the cache until the update, which is fastest on whole rows of the weights. If
    the BLAS packs the operands of every product, tiles are larger with many samples.
    """
    cdef Py_ssize_t columns = equal_part(n, TILE_COLUMNS, 16)
    cdef Py_ssize_t size = 8 * TILE_DOUBLES // itemsize, height = TILE_ROWS
    if m * n * (rows + 16) <= MIN_TILE:
        return make_grid(m, n, m, n)
    if not packs or rows < MANY_SAMPLES:
        if size // n >= max(rows // 2, 16):
            columns = n
        height = min(size // columns, TILE_ROWS)
    return make_grid(m, n, even_part(m, height, 4), columns)


cdef inline void divide_work(NetContext* ctx, Py_ssize_t rows) noexcept nogil:
    """Set the blocks, pieces and tiles of a batch."""
    cdef Py_ssize_t i, target = 64 if rows <= 256 else 128 if rows < 1024 else 256
    cdef bint small = ctx.gemm.small > 0 and rows <= 256
    cdef Py_ssize_t weights = 0
    cdef Layer* layer
    for i in range(ctx.depth):
        layer = &ctx.layers[i]
        layer.product = forward_grid(rows, layer.outputs, layer.inputs)
        layer.input_product = product_grid(rows, layer.inputs, layer.outputs)
        layer.tiles = weight_grid(layer.inputs, layer.outputs, rows, ctx.itemsize, ctx.gemm.small == 0)
        weights += layer.inputs * layer.outputs
        small = small and layer.inputs * layer.outputs <= MAX_CACHED
    ctx.small_products = small
    target = SMALL_BLOCK_ROWS if small else target
    ctx.block_rows = even_part(rows, target, 4) if weights * rows > MIN_TILE else target
    ctx.n_blocks = divide_up(rows, ctx.block_rows)
    ctx.n_tiles = 0
    for i in range(ctx.depth):
        ctx.n_tiles += ctx.layers[i].tiles.parts + 1


cdef inline const Layer* find_tile(const NetContext* ctx, Py_ssize_t part, Py_ssize_t* tile) noexcept nogil:
    """Layer and index of a tile; index `tiles.parts` stands for the vectors of the layer.

    The parts are one half of every layer's tiles, the vectors, which are little work, and the other halves. So
    two threads, which begin with one half of the parts each, have half of the work.
    """
    cdef const Grid* tiles
    cdef Py_ssize_t i, begin, end
    for i in range(3 * ctx.depth):
        tiles = &ctx.layers[i % ctx.depth].tiles
        if i < ctx.depth:
            begin, end = 0, tiles.parts // 2
        elif i < 2 * ctx.depth:
            begin, end = tiles.parts, tiles.parts + 1
        else:
            begin, end = tiles.parts // 2, tiles.parts
        tile[0] = begin + part
        if tile[0] < end:
            break
        part -= end - begin
    return &ctx.layers[i % ctx.depth]


cdef inline const Grid* pieces_of(const NetContext* ctx, const Op* op) noexcept nogil:
    """Grid of the pieces of an operation that is not computed on blocks; else NULL."""
    cdef const Grid* grid = NULL
    if op.opcode == MATMUL:
        grid = &ctx.layers[op.layer].product
    elif op.opcode == INPUT_GRAD:
        grid = &ctx.layers[op.layer].input_product
    return grid if grid != NULL and grid.parts > 0 else NULL
