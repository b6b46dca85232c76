"""The state of a network's pass as its threads see it: plain C structs, and addresses in the matrices."""
from libc.stdint cimport int64_t

from fastopt._core.span cimport StepLease
from fastopt.nn._core.gemm cimport Gemm, Matrix
from fastopt.nn._core.layer_kernels cimport Criterion, DataType, Dropout, LayerKernels

cdef enum Norm:
    NO_NORM, LAYER_NORM, BATCH_NORM


cdef enum Opcode:
    # Operations on one block; MATMUL and INPUT_GRAD may also be computed in pieces (`work_division.pxd`).
    GATHER, MATMUL, ADD_PARTIAL, CHECK_FINITE, MOMENTS, ACTIVATE, LOSS, ACTIVATION_BACKWARD, BATCH_NORM_BACKWARD,
    INPUT_GRAD,
    # Operations that need the results of all blocks.
    MERGE_MOMENTS, MERGE_PRODUCTS


cdef struct Op:
    Opcode opcode
    int layer


cdef struct Grid:
    # Division of a matrix of shape (m, n) into parts of `rows` rows and `columns` columns.
    Py_ssize_t m
    Py_ssize_t n
    Py_ssize_t rows
    Py_ssize_t columns
    Py_ssize_t n_columns        # parts side by side
    Py_ssize_t parts            # 0: the matrix is not divided
    bint inner                  # the matrix is the weights of a product, which is the sum of the parts' products


cdef struct Piece:
    # One part: rows [first, last) and columns [begin, end).
    Py_ssize_t first
    Py_ssize_t last
    Py_ssize_t begin
    Py_ssize_t end


cdef struct Layer:
    Py_ssize_t inputs
    Py_ssize_t outputs
    int param                   # index of its first array among all parameters
    Grid product                # pieces of z
    Grid input_product          # pieces of the gradient with respect to the inputs
    Grid tiles                  # tiles of the weights, whose gradients are one task each
    int activation
    int norm
    bint keeps_z                # the derivative of the activation needs z
    bint drops                  # dropout is applied
    Dropout dropout
    char* W                     # parameters and their gradients
    char* b
    char* scale
    char* dW
    char* db
    char* dscale
    char* running_mean          # of batch normalization, for predictions
    char* running_variance
    # Matrices have a row per sample. z, h, a and out share memory as far as norm, keeps_z and dropout permit.
    char* transposed            # W.T, for a BLAS that multiplies small matrices without packing; or NULL
    char* z                     # inputs W, normalized if the layer has a norm
    char* partial               # summands of z, each of its shape, if its product is divided by the inputs
    char* h                     # argument of the activation
    char* a                     # output of the activation
    char* out                   # after dropout
    char* delta                 # gradient with respect to out, then a, then z
    char* rstd                  # per sample for layer normalization, per column for batch normalization
    char* mean
    char* block_sums            # per block: sums of delta over its samples; in the forward pass means of z
    char* block_products        # per block: sums of delta z; in the forward pass squared deviations of z


cdef struct Batch:
    DataType dtype              # of the inputs
    const char* source_X        # the data set, or the batch itself if `index` is NULL
    const int64_t* columns      # of a sparse matrix: column of each stored element
    const int64_t* indptr       # and where each row begins
    const char* source_y
    const char* source_weight
    const int64_t* index        # samples of the batch; NULL: consecutive samples
    Py_ssize_t rows
    Py_ssize_t y_bytes          # per sample
    bint copied                 # the inputs are gathered or converted into `x`
    char* x                     # inputs, targets and weights in the order of the batch
    char* y
    char* weight
    char* correct               # per sample whether it is predicted correctly; NULL: not recorded


cdef struct NetContext:
    LayerKernels kernels
    Gemm* gemm
    DataType dtype              # of the network
    Py_ssize_t itemsize
    bint training
    double eps                  # of layer and batch normalization
    double momentum             # weight of a batch in the running averages
    Layer* layers
    Py_ssize_t depth
    Op* ops
    Py_ssize_t op_begin, op_end     # operations that are run now
    Py_ssize_t n_tiles          # of all layers; each layer has one more for its vectors
    double* penalties           # per tile: sum of the squared weights
    double l2
    Batch batch
    Py_ssize_t block_rows
    Py_ssize_t n_blocks
    double* losses              # per block
    Criterion criterion
    bint small_products         # blocks are small enough for products without packing; they need `transposed`
    bint not_finite             # the inputs hold NaN or Inf
    const StepLease* lease      # parameters are updated along with their gradients; or NULL


cdef inline char* inputs_of(const NetContext* ctx, const Layer* layer) noexcept nogil:
    return ctx.batch.x if layer == ctx.layers else (layer - 1).out


cdef inline char* row_ptr(const NetContext* ctx, char* matrix, Py_ssize_t row, Py_ssize_t n) noexcept nogil:
    """Address of a row in a matrix with n columns."""
    return matrix + row * n * ctx.itemsize


cdef inline char* block_ptr(const NetContext* ctx, char* matrix, Py_ssize_t part, Py_ssize_t n) noexcept nogil:
    """Address of the first row of block number `part` in a matrix with n columns."""
    return row_ptr(ctx, matrix, part * ctx.block_rows, n)


cdef inline Matrix matrix_from(const NetContext* ctx, char* matrix, Py_ssize_t row, Py_ssize_t column,
                               Py_ssize_t n) noexcept nogil:
    """The part of a matrix with n columns that begins at a row and a column."""
    return Matrix(row_ptr(ctx, matrix, row, n) + column * ctx.itemsize, n, False)
