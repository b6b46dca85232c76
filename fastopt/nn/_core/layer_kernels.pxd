"""Interface between a network's pass and the layer kernels: plain C structs.

`layers.pyx` exports one `LayerKernels` per dtype; `net.pyx` calls it. Data pointers are `char*` here; a
kernel reads them as float or double.
"""
from libc.stdint cimport int64_t

cdef enum Activation:
    IDENTITY, RELU, LEAKY_RELU, ELU, GELU, GELU_TANH, SILU, TANH, SIGMOID


cdef enum Loss:
    CROSS_ENTROPY, BINARY_CROSS_ENTROPY, SQUARED_ERROR, HUBER, QUANTILE, POISSON


cdef enum DataType:             # of the inputs; the values 0 and 1 are also indices of the kernel tables
    FLOAT32, FLOAT64, UINT8, SPARSE


cdef struct Block:
    # Some samples at one layer: their matrices are row-major and have n columns.
    Py_ssize_t rows
    Py_ssize_t n


cdef struct Criterion:
    # A loss and its hyperparameters.
    int loss
    double scale                # of the gradient: the factor of the loss over the sum of the sample weights
    double label_smoothing      # of cross-entropy
    double threshold            # where Huber's loss becomes linear; the quantile of the pinball loss


cdef struct Dropout:
    # Whether an element is dropped depends on these fields and on its index in the batch alone.
    unsigned long long key      # of the run and the layer
    unsigned long long step     # number of the training step
    double rate                 # dropout probability, 0 <= rate < 1


cdef struct LayerKernels:
    # The kernels of one instruction set and one dtype. Sums over samples are taken in the order of the rows,
    # so the results of a block do not depend on the thread that computes it.

    # z = z + b (b may be NULL);  a = f(z).  `a` may be `z`.
    void (*activation_forward)(int activation, const Block* x, const char* b, char* z, char* a) noexcept nogil
    # delta = delta f'(z), computed from `z` or `a`, see NEEDS_Z.
    void (*activation_backward)(int activation, const Block* x, const char* z, const char* a,
                                char* delta) noexcept nogil
    # delta = scale weight[i] dloss/dz; returns the sum of weight[i] loss[i, j] (weight may be NULL). `y` holds
    # int64 labels for cross-entropy, else n values per row.
    double (*loss)(const Criterion* hp, const Block* x, const char* z, const char* y, const char* weight,
                   char* delta) noexcept nogil
    # out = a / (1 - rate), or 0 for a dropped element; `first` is the block's first row in the batch.
    void (*dropout)(const Dropout* hp, const Block* x, Py_ssize_t first, const char* a, char* out) noexcept nogil

    # Layer normalization: z = (z - mean) rstd per row, rstd[i] = 1 / sqrt(variance + eps).
    void (*normalize_rows)(const Block* x, double eps, char* z, char* rstd) noexcept nogil
    # delta = rstd (delta - mean(delta) - z mean(delta z)) per row, with the normalized z
    void (*normalize_rows_backward)(const Block* x, const char* z, const char* rstd,
                                    char* delta) noexcept nogil

    # total[j] = sum over i of delta[i, j]
    void (*column_sums)(const Block* x, const char* delta, char* total) noexcept nogil
    # total[j] = sum over i of delta[i, j];  product[j] = sum over i of delta[i, j] z[i, j]
    void (*column_products)(const Block* x, const char* z, const char* delta, char* total,
                            char* product) noexcept nogil
    # Mean of each column and sum of the squared deviations from it.
    void (*column_moments)(const Block* x, const char* z, char* mean, char* squares) noexcept nogil
    # Batch normalization: mean and rstd of each column of a batch from the moments of its blocks, `block` rows
    # each; running = running + momentum (value - running), with the unbiased variance.
    void (*merge_moments)(const Block* batch, Py_ssize_t block, double eps, double momentum, const char* means,
                          const char* squares, char* mean, char* rstd, char* running_mean,
                          char* running_variance) noexcept nogil
    # rstd[j] = 1 / sqrt(variance[j] + eps)
    void (*reciprocal_std)(Py_ssize_t n, double eps, const char* variance, char* rstd) noexcept nogil
    # z = (z - mean) rstd per column
    void (*normalize_columns)(const Block* x, const char* mean, const char* rstd, char* z) noexcept nogil
    # delta = rstd (delta - total / count - z product / count) per column
    void (*normalize_columns_backward)(const Block* x, const char* z, const char* rstd, const char* total,
                                       const char* product, double count, char* delta) noexcept nogil
    # out = scale z + b per column
    void (*affine)(const Block* x, const char* scale, const char* b, const char* z, char* out) noexcept nogil
    # delta = scale delta per column
    void (*scale_columns)(const Block* x, const char* scale, char* delta) noexcept nogil

    # y = y + factor x
    void (*add_scaled)(Py_ssize_t n, double factor, const char* x, char* y) noexcept nogil
    # Whether no element is NaN or infinite.
    bint (*all_finite)(Py_ssize_t n, const char* x) noexcept nogil
    # Whether no element of the first column is NaN or infinite.
    bint (*first_column_finite)(const Block* x, const char* z) noexcept nogil
    # Sum of squares, in double and in a fixed order.
    double (*sum_squares)(Py_ssize_t n, const char* x) noexcept nogil
    # Sum of x[index[i]] over i < n, in double; of x[i] if `index` is NULL.
    double (*sum_at)(Py_ssize_t n, const int64_t* index, const char* x) noexcept nogil
    # y = x, which has the dtype `source`: FLOAT32, FLOAT64 or UINT8.
    void (*convert)(Py_ssize_t n, int source, const char* x, char* y) noexcept nogil
    # Columns [begin, end) of a sparse row with n stored elements, written to out[begin:end].
    void (*expand_row)(Py_ssize_t n, const int64_t* columns, const char* values, Py_ssize_t begin, Py_ssize_t end,
                       char* out) noexcept nogil
    # out = W.T for the rows [begin, end) of W, a matrix of shape (rows, columns).
    void (*transpose)(const char* W, char* out, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t begin,
                      Py_ssize_t end) noexcept nogil
