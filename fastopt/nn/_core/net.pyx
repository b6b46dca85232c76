"""A net's forward and backward pass over a batch, as one call without the interpreter.

A `Pass` has the layers' arrays resolved to addresses. The rows of a batch are cut into blocks, and a
thread takes a block through the whole net, forward and back, while it is in its cache; it waits for the
others only where batch normalization asks for all rows. Then the gradients of the weights are taken, a
few rows of a matrix at a time. How the work is cut depends on the sizes alone, never on the number of
threads. Matrix products are the BLAS's, on one thread each; elementwise work is that of `layers.pyx`.
"""
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport isfinite, sqrt
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from fastopt._core.common cimport fo_flush_begin, fo_flush_end, fo_prefetch, real
from fastopt.nn._core.gemm cimport Blas, Gemm, Matrix, matmul
from fastopt.nn._core.layer cimport Block, Criterion, Layers, Mask
from fastopt._core.runtime cimport data_ptr, run_parts
from fastopt._core.span cimport StepLease, Span

from numpy import dtype, empty, float32, float64, ndarray, uint8

cdef enum:
    LINE = 64               # arrays begin on a cache line
    SMALL_BLOCK = 16        # rows of a block where the BLAS takes small matrices as they are
    BLOCK = 64              # rows of a block where it copies them into its own layout first
    CACHED = 1 << 19        # weights of a layer up to which every small block may read all of them
    SCRATCH = 1 << 13       # doubles on the stack, for the gradient of a piece that nobody will look at
    CHUNK = 1 << 12         # weights whose gradient is one piece of work
    SHARED = 1 << 16        # weights of the first layer from which on its two halves are kept apart
    SQUARE = 16             # rows and columns of a matrix that are transposed at a time
    SERIAL = 1 << 20        # multiplications up to which a second thread would cost more than it brings
    PACE = 50               # multiplications that one thread does in a nanosecond

cdef enum Norm:
    PLAIN, LAYER_NORM, BATCH_NORM

NORMS = {None: PLAIN, "layer": LAYER_NORM, "batch": BATCH_NORM}

cdef double EPS = 1e-5          # of both normalizations, as in torch
cdef double MOMENTUM = 0.1      # weight of a new batch in the running statistics, as in torch


# --- Data ------------------------------------------------------------------------------------------

cdef enum Kind:
    FLOAT32, FLOAT64, UINT8, SPARSE

cdef Py_ssize_t[4] SIZES = [4, 8, 1, 0]
KINDS = {dtype(float32): FLOAT32, dtype(float64): FLOAT64, dtype(uint8): UINT8}


cdef class Source:
    """Rows of data as a pass reads them; all arrays are checked by the net and lie in C order.

    Parameters
    ----------
    X : ndarray, shape (n, inputs)
        float32, float64 or uint8. Or of shape (stored,) in the net's dtype: the numbers of a sparse
        matrix, row by row.
    indices, indptr : ndarray of int64, optional
        The column of each number of a sparse matrix, and where each row begins.
    y : ndarray, optional
        Labels, int64 of shape (n,), or numbers of the net's dtype, shape (n, outputs).
    weight : ndarray, shape (n,), optional
        Of each row, in the net's dtype.
    """
    cdef Kind kind
    cdef char* X
    cdef int64_t* indices
    cdef int64_t* indptr
    cdef char* y
    cdef char* weight
    cdef readonly Py_ssize_t rows
    cdef Py_ssize_t y_bytes     # of a row
    cdef tuple kept             # the arrays, for as long as their addresses are used

    def __init__(self, X, indices=None, indptr=None, y=None, weight=None):
        self.kept = (X, indices, indptr, y, weight)
        self.kind = SPARSE if indices is not None else KINDS[X.dtype]
        self.rows = len(X) if indptr is None else len(indptr) - 1
        self.X = data_ptr(X, False) if X.size else NULL
        self.indices = <int64_t*> data_ptr(indices, False) if self.kind == SPARSE and X.size else NULL
        self.indptr = <int64_t*> data_ptr(indptr, False) if self.kind == SPARSE else NULL
        self.y = data_ptr(y, False) if y is not None else NULL
        self.y_bytes = y.nbytes // len(y) if y is not None else 0
        self.weight = data_ptr(weight, False) if weight is not None else NULL


# --- A pass over one batch ---------------------------------------------------------------------------

cdef struct Layer:
    Py_ssize_t inputs
    Py_ssize_t outputs
    int activation
    int norm
    bint keeps_z            # the activation may not be taken in place
    bint drops
    Mask mask
    char* W                 # parameters and their gradients
    char* b
    char* scale
    char* dW
    char* db
    char* dscale
    char* running_mean      # of batch normalization, for predictions
    char* running_variance
    char* transposed        # W, for the products that want it so
    char* z                 # before the activation; normalized where there is a norm
    char* h                 # what the activation is taken of
    char* a                 # the activation
    char* out               # after dropout
    char* delta             # gradient of the loss, step by step down to that of z
    char* rstd              # of each row, or of each column
    char* mean
    char* total             # for each block: sums over its rows
    char* other


cdef enum What:
    # What is done with a block, in one program for forward and backward.
    GATHER, JOIN, MULTIPLY, MOMENTS, ACTIVATE, LOSS, BACK, BACK_NORM, PROPAGATE,
    # What waits for all blocks.
    ALL_MOMENTS, ALL_PRODUCTS


cdef struct Op:
    What what
    int layer


cdef struct Piece:
    # Rows of a layer's weights whose gradient is taken at once; none of them: that of the vectors.
    int layer
    int place                   # of the layer's first array among all parameters
    Py_ssize_t begin
    Py_ssize_t end


cdef struct Plan:
    # The pass as the threads see it.
    Layers kernels
    const Gemm* gemm
    Layer* layers
    Py_ssize_t depth
    bint wide
    Py_ssize_t size             # bytes of a number
    bint training
    Op* ops
    Py_ssize_t op, ops_end      # the stretch of the program that is being run
    Piece* pieces
    Py_ssize_t pieces_count
    double* penalties           # sum of the squared weights of each piece
    double l2
    Py_ssize_t rows             # of the batch, and how many blocks they make
    Py_ssize_t block
    Py_ssize_t blocks
    double* losses              # of each block
    Criterion criterion
    Kind kind                   # of the data
    char* data
    const int64_t* indices
    const int64_t* indptr
    int64_t* index              # which rows of the data the batch is; NULL: all
    char* data_y
    Py_ssize_t y_bytes
    char* data_weight
    char* x                     # the batch itself
    char* y
    char* weight
    const StepLease* lent            # an optimizer's arrays, to be updated along with the gradients; or NULL
    Py_ssize_t half             # columns of the data that are multiplied apart from the others; 0: none are
    char* second                # what the others give
    bint copies                 # whether the rows are copied into the batch
    bint bad                    # a NaN or an Inf was met in the data


cdef inline const char* inputs_of(const Plan* plan, Py_ssize_t i) noexcept nogil:
    return plan.x if i == 0 else plan.layers[i - 1].out


cdef inline Block block_of(const Plan* plan, const Layer* layer, Py_ssize_t part) noexcept nogil:
    cdef Block x
    x.rows = min(plan.block, plan.rows - part * plan.block)
    x.n = layer.outputs
    x.wide = plan.wide
    return x


cdef inline char* rows_at(const Plan* plan, char* matrix, Py_ssize_t row, Py_ssize_t n) noexcept nogil:
    return matrix + row * n * plan.size


cdef void spread_sparse(const Plan* plan, int64_t row, real* out, Py_ssize_t begin,
                        Py_ssize_t end) noexcept nogil:
    """Columns [begin, end) of a row of a sparse matrix, all its zeros included."""
    cdef int64_t j
    memset(out + begin, 0, (end - begin) * sizeof(real))
    for j in range(plan.indptr[row], plan.indptr[row + 1]):
        if begin <= plan.indices[j] < end:
            out[plan.indices[j]] += (<real*> plan.data)[j]


cdef inline int64_t row_of(const Plan* plan, Py_ssize_t i) noexcept nogil:
    """Where row i of the batch stands in the data."""
    return i if plan.index == NULL else plan.index[i]


cdef void gather_row(const Plan* plan, Py_ssize_t i, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Copy columns [begin, end) of a row into the batch."""
    cdef Py_ssize_t n = plan.layers[0].inputs, width = SIZES[<int> plan.kind]
    cdef char* out = plan.x + i * n * plan.size
    cdef const char* row = plan.data + (row_of(plan, i) * n + begin) * width
    if plan.kind == SPARSE and plan.wide:
        spread_sparse(plan, row_of(plan, i), <double*> out, begin, end)
    elif plan.kind == SPARSE:
        spread_sparse(plan, row_of(plan, i), <float*> out, begin, end)
    elif plan.kind == (FLOAT64 if plan.wide else FLOAT32):
        memcpy(out + begin * width, row, (end - begin) * width)
    else:
        plan.kernels.convert(end - begin, plan.kind, row, plan.wide, out + begin * plan.size)


cdef void gather(const Plan* plan, Py_ssize_t first, Py_ssize_t last, Py_ssize_t begin,
                 Py_ssize_t end) noexcept nogil:
    """Copy columns [begin, end) of the rows [first, last) into the batch, if they are not there."""
    cdef Py_ssize_t i, k, n = plan.layers[0].inputs, width = SIZES[<int> plan.kind]
    for i in range(first, last if plan.copies else first):
        if plan.kind != SPARSE and i + 1 < last:    # the next row is anywhere: ask for it now
            for k from begin * width <= k < end * width by LINE:
                fo_prefetch(plan.data + row_of(plan, i + 1) * n * width + k)
        gather_row(plan, i, begin, end)


cdef void gather_targets(const Plan* plan, Py_ssize_t part) noexcept nogil:
    """Copy targets and weights of a block into the batch, if they are not there."""
    cdef Py_ssize_t i, first = part * plan.block
    for i in range(first, min(first + plan.block, plan.rows) if plan.index != NULL else first):
        if plan.data_y != NULL:
            memcpy(plan.y + i * plan.y_bytes, plan.data_y + row_of(plan, i) * plan.y_bytes, plan.y_bytes)
        if plan.data_weight != NULL:
            memcpy(plan.weight + i * plan.size, plan.data_weight + row_of(plan, i) * plan.size, plan.size)


cdef bint starts_finite(const real* z, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(rows):
        if not isfinite(z[i * n]):
            return False
    return True


cdef void look_for_bad(Plan* plan, const Block* x, const char* z, Py_ssize_t part) noexcept nogil:
    """A NaN or an Inf in a row of the data makes all of its products so; then the row is looked at."""
    cdef Py_ssize_t n = plan.layers[0].inputs
    if plan.wide:
        if starts_finite(<const double*> z, x.rows, x.n):
            return
    elif starts_finite(<const float*> z, x.rows, x.n):
        return
    if not plan.kernels.finite(x.rows * n, plan.wide, rows_at(plan, plan.x, part * plan.block, n)):
        plan.bad = True


cdef void forward_products(Plan* plan, Py_ssize_t i, Py_ssize_t part) noexcept nogil:
    cdef const Layer* layer = &plan.layers[i]
    cdef Block x = block_of(plan, layer, part)
    cdef Py_ssize_t first = part * plan.block
    cdef char* z = rows_at(plan, layer.z, first, layer.outputs)
    matmul(plan.gemm, x.rows, layer.outputs, layer.inputs,
           Matrix(rows_at(plan, <char*> inputs_of(plan, i), first, layer.inputs), layer.inputs, False),
           Matrix(layer.W, layer.outputs, False), Matrix(z, layer.outputs, False))
    if i == 0:
        look_for_bad(plan, &x, z, part)


cdef void halves_part(void* context, int part, int parts) noexcept nogil:
    """Multiply half of the columns of some rows with half of the first layer's weights.

    That half is then updated by the same thread, and never leaves its cache: for wide data this is
    most of what a step moves.
    """
    cdef Plan* plan = <Plan*> context
    cdef const Layer* layer = &plan.layers[0]
    cdef int group = part % (parts // 2)
    cdef bint second = part >= parts // 2
    cdef Py_ssize_t n = layer.outputs, first = group * BLOCK, last = min(first + BLOCK, plan.rows)
    cdef Py_ssize_t begin = plan.half if second else 0, end = layer.inputs if second else plan.half
    cdef uint64_t mode = fo_flush_begin()
    gather(plan, first, last, begin, end)
    matmul(plan.gemm, last - first, n, end - begin,
           Matrix(rows_at(plan, plan.x, first, layer.inputs) + begin * plan.size, layer.inputs, False),
           Matrix(rows_at(plan, layer.W, begin, n), n, False),
           Matrix(rows_at(plan, plan.second if second else layer.z, first, n), n, False))
    fo_flush_end(mode)


cdef void join_halves(Plan* plan, Py_ssize_t part) noexcept nogil:
    cdef const Layer* layer = &plan.layers[0]
    cdef Block x = block_of(plan, layer, part)
    cdef char* z = rows_at(plan, layer.z, part * plan.block, x.n)
    plan.kernels.add(x.rows * x.n, plan.wide, 1.0, rows_at(plan, plan.second, part * plan.block, x.n), z)
    look_for_bad(plan, &x, z, part)


cdef void activate(Plan* plan, Py_ssize_t i, Py_ssize_t part) noexcept nogil:
    cdef const Layer* layer = &plan.layers[i]
    cdef Block x = block_of(plan, layer, part)
    cdef Py_ssize_t first = part * plan.block, n = layer.outputs
    cdef char* z = rows_at(plan, layer.z, first, n)
    cdef char* h = rows_at(plan, layer.h, first, n)
    cdef char* a = rows_at(plan, layer.a, first, n)
    if layer.norm == LAYER_NORM:
        plan.kernels.normalize_rows(&x, EPS, z, layer.rstd + first * plan.size)
    elif layer.norm == BATCH_NORM:
        plan.kernels.normalize_columns(&x, layer.mean, layer.rstd, z)
    if layer.norm != PLAIN:
        plan.kernels.affine(&x, layer.scale, layer.b, z, h)
    plan.kernels.forward(layer.activation, &x, layer.b if layer.norm == PLAIN else NULL, h, a)
    if layer.drops and plan.training:
        plan.kernels.dropout(&layer.mask, &x, first, a, rows_at(plan, layer.out, first, n))


cdef void take_loss(Plan* plan, Py_ssize_t part) noexcept nogil:
    cdef const Layer* layer = &plan.layers[plan.depth - 1]
    cdef Block x = block_of(plan, layer, part)
    cdef Py_ssize_t first = part * plan.block
    plan.losses[part] = plan.kernels.loss(
        &plan.criterion, &x, rows_at(plan, layer.out, first, x.n), plan.y + first * plan.y_bytes,
        plan.weight + first * plan.size if plan.weight != NULL else NULL,
        rows_at(plan, layer.delta, first, x.n))


cdef void go_back(Plan* plan, Py_ssize_t i, Py_ssize_t part) noexcept nogil:
    """From the gradient of a layer's output to that of its z, but for what batch normalization adds."""
    cdef const Layer* layer = &plan.layers[i]
    cdef Block x = block_of(plan, layer, part)
    cdef Py_ssize_t first = part * plan.block, n = layer.outputs
    cdef char* delta = rows_at(plan, layer.delta, first, n)
    cdef char* z = rows_at(plan, layer.z, first, n)
    cdef char* total = rows_at(plan, layer.total, part, n)
    if layer.drops:
        plan.kernels.dropout(&layer.mask, &x, first, delta, delta)
    if i < plan.depth - 1:
        plan.kernels.backward(layer.activation, &x, rows_at(plan, layer.h, first, n),
                              rows_at(plan, layer.a, first, n), delta)
    if layer.norm == PLAIN:
        plan.kernels.column_sums(&x, delta, total)
        return
    plan.kernels.column_products(&x, z, delta, total, rows_at(plan, layer.other, part, n))
    if layer.norm == LAYER_NORM:
        plan.kernels.rescale(&x, layer.scale, delta)
        plan.kernels.normalize_rows_backward(&x, z, layer.rstd + first * plan.size, delta)


cdef void go_back_through_norm(Plan* plan, Py_ssize_t i, Py_ssize_t part) noexcept nogil:
    cdef const Layer* layer = &plan.layers[i]
    cdef Block x = block_of(plan, layer, part)
    cdef Py_ssize_t first = part * plan.block
    plan.kernels.normalize_columns_backward(
        &x, rows_at(plan, layer.z, first, x.n), layer.rstd, layer.db, layer.dscale, <double> plan.rows,
        rows_at(plan, layer.delta, first, x.n))


cdef void propagate(Plan* plan, Py_ssize_t i, Py_ssize_t part) noexcept nogil:
    """The gradient of a layer's z becomes that of its inputs, which are the output of the layer before."""
    cdef const Layer* layer = &plan.layers[i]
    cdef Block x = block_of(plan, layer, part)
    cdef Py_ssize_t first = part * plan.block
    cdef Matrix back = Matrix(layer.W, layer.outputs, True)
    if layer.transposed != NULL:
        back = Matrix(layer.transposed, layer.inputs, False)
    matmul(plan.gemm, x.rows, layer.inputs, layer.outputs,
           Matrix(rows_at(plan, layer.delta, first, layer.outputs), layer.outputs, False), back,
           Matrix(rows_at(plan, plan.layers[i - 1].delta, first, layer.inputs), layer.inputs, False))


cdef void take_moments(Plan* plan, Py_ssize_t i, Py_ssize_t part) noexcept nogil:
    cdef const Layer* layer = &plan.layers[i]
    cdef Block x = block_of(plan, layer, part)
    plan.kernels.moments(&x, rows_at(plan, layer.z, part * plan.block, x.n),
                         rows_at(plan, layer.total, part, x.n), rows_at(plan, layer.other, part, x.n))


cdef void rows_part(void* context, int part, int parts) noexcept nogil:
    """Take one block through the present stretch of the program."""
    cdef Plan* plan = <Plan*> context
    cdef uint64_t mode = fo_flush_begin()
    cdef Py_ssize_t k, i
    for k in range(plan.op, plan.ops_end):
        i = plan.ops[k].layer
        if plan.ops[k].what == GATHER:
            gather_targets(plan, part)
            if plan.half == 0:
                gather(plan, part * plan.block, min((part + 1) * plan.block, plan.rows), 0,
                       plan.layers[0].inputs)
        elif plan.ops[k].what == JOIN:
            join_halves(plan, part)
        elif plan.ops[k].what == MULTIPLY:
            forward_products(plan, i, part)
        elif plan.ops[k].what == MOMENTS:
            take_moments(plan, i, part)
        elif plan.ops[k].what == ACTIVATE:
            activate(plan, i, part)
        elif plan.ops[k].what == LOSS:
            take_loss(plan, part)
        elif plan.ops[k].what == BACK:
            go_back(plan, i, part)
        elif plan.ops[k].what == BACK_NORM:
            go_back_through_norm(plan, i, part)
        elif plan.ops[k].what == PROPAGATE:
            propagate(plan, i, part)
    fo_flush_end(mode)


# --- What all blocks give together -------------------------------------------------------------------

cdef void add_up(const Plan* plan, const Layer* layer, const char* parts, char* total) noexcept nogil:
    """Sum over the blocks, in their order."""
    cdef Py_ssize_t k
    memcpy(total, parts, layer.outputs * plan.size)
    for k in range(1, plan.blocks):
        plan.kernels.add(layer.outputs, plan.wide, 1.0, parts + k * layer.outputs * plan.size, total)


cdef inline double get(const Plan* plan, const char* x, Py_ssize_t i) noexcept nogil:
    return (<const double*> x)[i] if plan.wide else <double> (<const float*> x)[i]


cdef inline void put(const Plan* plan, char* x, Py_ssize_t i, double value) noexcept nogil:
    if plan.wide:
        (<double*> x)[i] = value
    else:
        (<float*> x)[i] = <float> value


cdef void move(const Plan* plan, char* running, Py_ssize_t j, double value) noexcept nogil:
    cdef double old = get(plan, running, j)
    put(plan, running, j, old + MOMENTUM * (value - old))


cdef void join_moments(const Plan* plan, const Layer* layer) noexcept nogil:
    """Mean and variance over all blocks (Chan et al. 1979), into the running statistics as well."""
    cdef Py_ssize_t j, k, n = layer.outputs
    cdef double mean, squares, count, rows, distance, weight
    cdef double unbiased = <double> plan.rows / max(plan.rows - 1, 1)
    for j in range(n):
        mean, squares, count = 0.0, 0.0, 0.0
        for k in range(plan.blocks):
            rows = min(plan.block, plan.rows - k * plan.block)
            count += rows
            weight = rows / count
            distance = get(plan, layer.total, k * n + j) - mean
            mean += distance * weight
            squares += get(plan, layer.other, k * n + j) + distance * distance * (count - rows) * weight
        squares /= count
        put(plan, layer.mean, j, mean)
        put(plan, layer.rstd, j, 1.0 / sqrt(squares + EPS))
        move(plan, layer.running_mean, j, mean)
        move(plan, layer.running_variance, j, squares * unbiased)


cdef void use_running(const Plan* plan, const Layer* layer) noexcept nogil:
    cdef Py_ssize_t j
    memcpy(layer.mean, layer.running_mean, layer.outputs * plan.size)
    for j in range(layer.outputs):
        put(plan, layer.rstd, j, 1.0 / sqrt(get(plan, layer.running_variance, j) + EPS))


cdef void join_products(const Plan* plan, const Layer* layer) noexcept nogil:
    """The gradients of batch normalization's vectors; from here on rstd has the scale in it."""
    cdef Py_ssize_t j
    add_up(plan, layer, layer.total, layer.db)
    add_up(plan, layer, layer.other, layer.dscale)
    for j in range(layer.outputs):
        put(plan, layer.rstd, j, get(plan, layer.rstd, j) * get(plan, layer.scale, j))


cdef void wait_for_all(const Plan* plan, const Op* op) noexcept nogil:
    if op.what == ALL_PRODUCTS:
        join_products(plan, &plan.layers[op.layer])
    elif plan.training:
        join_moments(plan, &plan.layers[op.layer])
    else:
        use_running(plan, &plan.layers[op.layer])


# --- Gradients of the weights ------------------------------------------------------------------------

cdef void vectors(const Plan* plan, const Layer* layer) noexcept nogil:
    if layer.norm != BATCH_NORM:        # whose are there already
        add_up(plan, layer, layer.total, layer.db)
        if layer.norm != PLAIN:
            add_up(plan, layer, layer.other, layer.dscale)


cdef void update(const Plan* plan, int place, const char* g, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The optimizer's step on elements of an array whose gradient `g` is in the cache."""
    cdef Span x = plan.lent.spans[place]
    x.g = <char*> g - begin * plan.size
    plan.lent.update(&plan.lent.args[x.group], &x, begin, end)


cdef void weights_part(void* context, int part, int parts) noexcept nogil:
    """dW = inputs^T delta + l2 W, for some rows of one layer's W."""
    cdef Plan* plan = <Plan*> context
    cdef const Piece* piece = &plan.pieces[part]
    cdef const Layer* layer = &plan.layers[piece.layer]
    cdef Py_ssize_t n = layer.outputs, count = piece.end - piece.begin
    cdef uint64_t mode = fo_flush_begin()
    cdef char* W = rows_at(plan, layer.W, piece.begin, n)
    cdef char* dW = rows_at(plan, layer.dW, piece.begin, n)
    cdef double scratch[SCRATCH]        # an optimizer at work on it wants it in the cache, not in memory
    if plan.lent != NULL and count * n * plan.size <= <Py_ssize_t> sizeof(scratch):
        dW = <char*> &scratch[0]
    if count == 0:
        vectors(plan, layer)
    else:
        matmul(plan.gemm, count, n, plan.rows,
               Matrix(<char*> inputs_of(plan, piece.layer) + piece.begin * plan.size, layer.inputs, True),
               Matrix(layer.delta, n, False), Matrix(dW, n, False))
    plan.penalties[part] = 0.0
    if plan.l2 != 0.0 and count:
        plan.penalties[part] = plan.kernels.squares(count * n, plan.wide, W)
        plan.kernels.add(count * n, plan.wide, plan.l2, W, dW)
    if plan.lent == NULL:
        pass
    elif count:
        update(plan, piece.place, dW, piece.begin * n, piece.end * n)
    else:
        update(plan, piece.place + 1, layer.db, 0, n)
        if layer.scale != NULL:
            update(plan, piece.place + 2, layer.dscale, 0, n)
    fo_flush_end(mode)


cdef inline void transpose_square(const real* W, real* out, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    cdef Py_ssize_t i, j
    for j in range(SQUARE):
        for i in range(SQUARE):
            out[j * rows + i] = W[i * columns + j]


cdef void transpose(const real* W, real* out, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t begin,
                    Py_ssize_t end) noexcept nogil:
    """Rows [begin, end) of W become columns, square by square so that cache lines are used up."""
    cdef Py_ssize_t i, j, k, m
    for i from begin <= i < end by SQUARE:
        for j from 0 <= j < columns by SQUARE:
            if i + SQUARE <= end and j + SQUARE <= columns:
                transpose_square(W + i * columns + j, out + j * rows + i, rows, columns)
                continue
            for m in range(j, min(j + SQUARE, columns)):
                for k in range(i, min(i + SQUARE, end)):
                    out[m * rows + k] = W[k * columns + m]


cdef void transpose_part(void* context, int part, int parts) noexcept nogil:
    cdef Plan* plan = <Plan*> context
    cdef const Piece* piece = &plan.pieces[part]
    cdef const Layer* layer = &plan.layers[piece.layer]
    if layer.transposed == NULL:
        return
    if plan.wide:
        transpose(<const double*> layer.W, <double*> layer.transposed, layer.inputs, layer.outputs,
                  piece.begin, piece.end)
    else:
        transpose(<const float*> layer.W, <float*> layer.transposed, layer.inputs, layer.outputs,
                  piece.begin, piece.end)


# --- The whole pass ----------------------------------------------------------------------------------

cdef inline void spread(Plan* plan, void (*task)(void*, int, int) noexcept nogil, Py_ssize_t parts,
                        Py_ssize_t multiplications) noexcept nogil:
    cdef int part
    if multiplications <= SERIAL or plan.gemm.function == NULL:
        for part in range(<int> parts):
            task(plan, part, <int> parts)
    else:
        run_parts(task, plan, <int> parts, multiplications // PACE)


cdef void run_rows(Plan* plan, Py_ssize_t ops, Py_ssize_t multiplications) noexcept nogil:
    """Run the program over all blocks, stretch by stretch between what waits for all of them."""
    cdef Py_ssize_t k
    plan.op = 0
    for k in range(ops + 1):
        if k == ops or plan.ops[k].what >= ALL_MOMENTS:
            plan.ops_end = k
            spread(plan, rows_part, plan.blocks, multiplications)
            if k < ops and not plan.bad:
                wait_for_all(plan, &plan.ops[k])
            plan.op = k + 1


cdef double total_weight(const Plan* plan) noexcept nogil:
    cdef Py_ssize_t i
    cdef double total = 0.0
    if plan.data_weight == NULL:
        return <double> plan.rows
    for i in range(plan.rows):
        total += get(plan, plan.data_weight, plan.index[i] if plan.index != NULL else i)
    return total


cdef class Pass:
    """A net's arrays, resolved to addresses, and room for a batch.

    Parameters
    ----------
    kernels : capsule
        `LAYERS` of one instruction set's module.
    blas : Blas
    wide : bool
        float64, else float32.
    training : bool
        Whether there is a way back.
    layers : list of tuple
        Of each layer: activation, whether its derivative needs z, norm, dropout rate, key of its
        dropout, and the list of its arrays: W, b, scale (or None), their gradients in this order, mean
        and variance for predictions (or None).
    """
    cdef Plan plan
    cdef Blas blas
    cdef Py_ssize_t capacity, ops, forward_ops
    cdef Py_ssize_t multiplications     # of a row
    cdef list arrays
    cdef object arena
    cdef char* free                     # the arena's rest, while it is cut up
    cdef char* x                        # where a batch is gathered
    cdef char* y
    cdef char* weight
    cdef bint busy
    cdef public unsigned long long step     # training passes so far: dropout is drawn anew in each

    def __cinit__(self, kernels, Blas blas, bint wide, bint training, list layers):
        cdef Py_ssize_t depth = len(layers), i
        self.blas = blas
        self.plan.kernels = (<Layers*> PyCapsule_GetPointer(kernels, "fastopt.layers"))[0]
        self.plan.gemm = &blas.gemms[wide]
        self.plan.wide, self.plan.size, self.plan.training = wide, 8 if wide else 4, training
        self.plan.depth = depth
        self.plan.layers = <Layer*> PyMem_Calloc(depth, sizeof(Layer))
        self.plan.ops = <Op*> PyMem_Calloc(8 * depth + 2, sizeof(Op))
        self.arrays = []
        if self.plan.layers == NULL or self.plan.ops == NULL:
            raise MemoryError()
        for i in range(depth):
            self.fill(&self.plan.layers[i], layers[i])
            self.multiplications += self.plan.layers[i].inputs * self.plan.layers[i].outputs
        self.cut_weights()
        self.write_program()

    def __dealloc__(self):
        PyMem_Free(self.plan.layers)
        PyMem_Free(self.plan.ops)
        PyMem_Free(self.plan.pieces)
        PyMem_Free(self.plan.penalties)

    cdef int fill(self, Layer* layer, tuple description) except -1:
        activation, needs_z, norm, rate, key, arrays = description
        cdef list addresses = [0 if a is None else <Py_ssize_t> data_ptr(a, True) for a in arrays]
        self.arrays.append(arrays)
        layer.inputs, layer.outputs = arrays[0].shape
        layer.activation, layer.norm, layer.drops = activation, norm, self.plan.training and <bint> (rate > 0.0)
        layer.mask = Mask(key, 0, rate)
        layer.W, layer.b = <char*> <Py_ssize_t> addresses[0], <char*> <Py_ssize_t> addresses[1]
        layer.scale, layer.dW = <char*> <Py_ssize_t> addresses[2], <char*> <Py_ssize_t> addresses[3]
        layer.db, layer.dscale = <char*> <Py_ssize_t> addresses[4], <char*> <Py_ssize_t> addresses[5]
        layer.running_mean = <char*> <Py_ssize_t> addresses[6]
        layer.running_variance = <char*> <Py_ssize_t> addresses[7]
        layer.keeps_z = self.plan.training and <bint> needs_z
        return 0

    cdef int cut_weights(self) except -1:
        cdef list pieces = [], others = []
        cdef Py_ssize_t i, begin, rows, place = 0, middle, inputs = self.plan.layers[0].inputs
        if self.plan.training and inputs > LINE and inputs * self.plan.layers[0].outputs >= SHARED:
            self.plan.half = (inputs // 2 + LINE - 1) // LINE * LINE    # so that no cache line is halved
        for i in range(self.plan.depth):
            inputs = self.plan.layers[i].inputs
            middle = self.plan.half if i == 0 and self.plan.half else inputs // 2
            rows = 4 * (CHUNK // (4 * self.plan.layers[i].outputs) + 1)
            for begin in range(0, middle, rows):
                pieces.append((i, place, begin, min(begin + rows, middle)))
            for begin in range(middle, inputs, rows):
                others.append((i, place, begin, min(begin + rows, inputs)))
            others.append((i, place, 0, 0))
            place += 2 if self.plan.layers[i].scale == NULL else 3
        pieces += others        # a thread takes neighbours: its half of each layer
        self.plan.pieces_count = len(pieces)
        self.plan.pieces = <Piece*> PyMem_Calloc(len(pieces), sizeof(Piece))
        self.plan.penalties = <double*> PyMem_Calloc(len(pieces), sizeof(double))
        if self.plan.pieces == NULL or self.plan.penalties == NULL:
            raise MemoryError()
        for i in range(len(pieces)):
            self.plan.pieces[i] = Piece(pieces[i][0], pieces[i][1], pieces[i][2], pieces[i][3])
        return 0

    cdef int write_program(self) except -1:
        cdef list ops = [(GATHER, 0)]
        cdef Py_ssize_t i
        cdef bint waits
        for i in range(self.plan.depth):
            waits = self.plan.layers[i].norm == BATCH_NORM
            ops.append((JOIN if i == 0 and self.plan.half else MULTIPLY, i))
            if waits and self.plan.training:
                ops.append((MOMENTS, i))
            if waits:
                ops.append((ALL_MOMENTS, i))
            ops.append((ACTIVATE, i))
        self.forward_ops = len(ops)
        ops.append((LOSS, 0))
        for i in reversed(range(self.plan.depth)):
            ops.append((BACK, i))
            if self.plan.layers[i].norm == BATCH_NORM:
                ops += [(ALL_PRODUCTS, i), (BACK_NORM, i)]
            if i > 0:
                ops.append((PROPAGATE, i))
        self.ops = len(ops)
        for i in range(self.ops):
            self.plan.ops[i] = Op(ops[i][0], ops[i][1])
        return 0

    def set_dropout_state(self, unsigned long long step, list keys):
        """Let dropout go on from a number of passes, with these keys of the layers."""
        cdef Py_ssize_t i
        self.step = step
        for i in range(self.plan.depth):
            self.plan.layers[i].mask.key = keys[i]

    # --- Room ---

    cdef int reserve(self, Py_ssize_t rows) except -1:
        """Make room for a batch, unless there is room."""
        cdef bint small = self.plan.gemm.small > 0
        cdef Py_ssize_t i
        if rows <= self.capacity:
            return 0
        for i in range(self.plan.depth):
            small = small and self.plan.layers[i].inputs * self.plan.layers[i].outputs <= CACHED
        self.plan.block = SMALL_BLOCK if small else BLOCK
        self.capacity = rows
        self.free = NULL
        self.lay_out(rows)
        self.arena = empty(<Py_ssize_t> self.free + LINE, uint8)
        self.free = data_ptr(self.arena, True)
        self.free += (LINE - <Py_ssize_t> self.free % LINE) % LINE
        self.lay_out(rows)
        return 0

    cdef char* cut(self, Py_ssize_t numbers) noexcept:
        """The next piece of the arena. From a beginning at 0 this measures how long it must be."""
        cdef char* piece = self.free
        self.free += (numbers * self.plan.size + LINE - 1) // LINE * LINE
        return piece

    cdef void lay_out(self, Py_ssize_t rows) noexcept:
        cdef Plan* plan = &self.plan
        cdef Py_ssize_t blocks = (rows + plan.block - 1) // plan.block, i, n
        cdef Layer* layer
        cdef bint training = plan.training
        for i in range(plan.depth):
            layer = &plan.layers[i]
            n = layer.outputs
            layer.z = self.cut(rows * n)
            layer.h = self.cut(rows * n) if training and layer.norm != PLAIN else layer.z
            layer.a = self.cut(rows * n) if layer.keeps_z else layer.h
            layer.out = self.cut(rows * n) if layer.drops else layer.a
            layer.delta = self.cut(rows * n) if training or i == plan.depth - 1 else NULL
            layer.rstd = self.cut(max(rows, n))
            layer.mean = self.cut(n)
            layer.total = self.cut(blocks * n)
            layer.other = self.cut(blocks * n)
            if training and i > 0 and plan.gemm.small > 0:
                layer.transposed = self.cut(layer.inputs * n)
        if plan.half:
            plan.second = self.cut(rows * plan.layers[0].outputs)
        self.x = self.cut(rows * plan.layers[0].inputs)
        self.y = self.cut(rows * max(2, plan.layers[plan.depth - 1].outputs))   # a label is two floats long
        self.weight = self.cut(rows)
        plan.losses = <double*> self.cut(2 * blocks)

    # --- Running ---

    cdef int enter(self, Source source, object index, Py_ssize_t begin, Py_ssize_t rows) except -1:
        """Point the plan at a batch: `rows` entries of `index` from `begin` on, or rows of the source."""
        cdef Plan* plan = &self.plan
        cdef bint whole = index is None
        if self.busy:
            raise RuntimeError("this net is at work in another thread")
        self.reserve(rows)
        if not whole:
            check_rows(index, begin, rows, source.rows)
        plan.rows, plan.blocks = rows, (rows + plan.block - 1) // plan.block
        plan.bad, plan.kind, plan.y_bytes = False, source.kind, source.y_bytes
        plan.index = NULL if whole else (<int64_t*> data_ptr(index, False)) + begin
        plan.indices, plan.indptr = source.indices, source.indptr
        plan.data, plan.data_y, plan.data_weight = source.X, source.y, source.weight
        if whole:                   # the rows follow each other: where they begin is all there is to know
            if source.kind == SPARSE:
                plan.indptr += begin
            else:
                plan.data += begin * plan.layers[0].inputs * SIZES[<int> source.kind]
            plan.data_y += begin * source.y_bytes if source.y != NULL else 0
            plan.data_weight += begin * plan.size if source.weight != NULL else 0
        plan.copies = not whole or source.kind != (FLOAT64 if plan.wide else FLOAT32)
        plan.x = self.x if plan.copies else plan.data
        plan.y = plan.data_y if whole else self.y
        plan.weight = plan.data_weight if whole or source.weight == NULL else self.weight
        self.busy = True
        self.blas.limit_threads()
        return 0

    cdef int leave(self) except -1:
        self.busy = False
        self.blas.restore_threads()
        return 0

    cdef void choose(self, tuple criterion) noexcept:
        self.plan.criterion = Criterion(criterion[0], 0.0, criterion[2], criterion[3])

    def train(self, Source source, index, Py_ssize_t begin, Py_ssize_t rows, tuple criterion, double l2,
              Py_ssize_t lent=0):
        """Leave the gradients of a batch in their arrays; return its loss.

        Parameters
        ----------
        source : Source
        index : ndarray of int64 or None
            Rows of the source in some order; None is their own.
        begin, rows : int
            Where in the order the batch begins, and how long it is.
        criterion : tuple
            The loss, the factor of a row's loss, label smoothing, threshold.
        l2 : float
        lent : int
            Address of a `StepLease` of an optimizer of just these parameters, which are then updated; or 0.

        Returns
        -------
        float or None
            None if the data hold a NaN or an Inf; the gradients are as they were then.
        """
        cdef Plan* plan = &self.plan
        cdef double factor = criterion[1], total
        cdef Py_ssize_t i
        self.enter(source, index, begin, rows)
        self.choose(criterion)
        plan.lent = <const StepLease*> <void*> lent
        self.step += 1
        for i in range(plan.depth):
            plan.layers[i].mask.step = self.step
        try:
            with nogil:
                total = total_weight(plan)
                plan.criterion.scale = factor / total if total > 0.0 else 0.0
                plan.l2 = l2
                self.run_training()
            return None if plan.bad else self.sum_losses() * plan.criterion.scale + self.penalty()
        finally:
            self.leave()

    cdef void run_training(self) noexcept nogil:
        cdef Plan* plan = &self.plan
        cdef Py_ssize_t work = self.multiplications * plan.rows
        if plan.gemm.small > 0:
            spread(plan, transpose_part, plan.pieces_count, work)
        if plan.half:
            spread(plan, halves_part, 2 * ((plan.rows + BLOCK - 1) // BLOCK), work)
        run_rows(plan, self.ops, 2 * work)
        if not plan.bad:
            spread(plan, weights_part, plan.pieces_count, work)

    cdef double sum_losses(self) noexcept:
        cdef double total = 0.0
        cdef Py_ssize_t k
        for k in range(self.plan.blocks):
            total += self.plan.losses[k]
        return total

    cdef double penalty(self) noexcept:
        cdef double total = 0.0
        cdef Py_ssize_t k
        for k in range(self.plan.pieces_count):
            total += self.plan.penalties[k]
        return 0.5 * self.plan.l2 * total

    def outputs(self, Source source, Py_ssize_t begin, Py_ssize_t rows, tuple criterion=None):
        """Run rows of the source forward.

        Returns
        -------
        outputs : ndarray, shape (rows, outputs)
            Of the last layer; the array is overwritten by the next call. None if the data hold a NaN
            or an Inf.
        loss : float
            Sum of the rows' weighted losses, where a criterion is given.
        weight : float
            Sum of their weights.
        """
        cdef Plan* plan = &self.plan
        cdef Layer* last = &plan.layers[plan.depth - 1]
        cdef Py_ssize_t ops = self.forward_ops
        self.enter(source, None, begin, rows)
        if criterion is not None:
            self.choose(criterion)
            ops += 1
        try:
            with nogil:
                run_rows(plan, ops, self.multiplications * plan.rows)
            if plan.bad:
                return None, 0.0, 0.0
            array = ndarray((rows, last.outputs), float64 if plan.wide else float32, self.arena,
                            last.out - data_ptr(self.arena, True))
            if criterion is None:
                return array, 0.0, 0.0
            return array, self.sum_losses() * <double> criterion[1], total_weight(plan)
        finally:
            self.leave()


cdef int check_rows(object index, Py_ssize_t begin, Py_ssize_t rows, Py_ssize_t count) except -1:
    """Refuse rows that are not there."""
    cdef const int64_t* first = <const int64_t*> data_ptr(index, False)
    cdef Py_ssize_t i
    if not 0 <= begin <= begin + rows <= len(index):
        raise IndexError(f"entries {begin} to {begin + rows} of {len(index)}")
    for i in range(begin, begin + rows):
        if not 0 <= first[i] < count:
            raise IndexError(f"row {first[i]} of {count}")
    return 0
