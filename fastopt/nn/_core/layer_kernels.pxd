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
    # The kernels of one instruction set and one dtype; their docstrings say what they compute. Sums over samples
    # are taken in the order of the rows, so the results of a block do not depend on the thread.
    void (*activation_forward)(int activation, const Block* x, const char* b, char* z, char* a) noexcept nogil
    void (*activation_backward)(int activation, const Block* x, const char* z, const char* a,
                                char* delta) noexcept nogil
    double (*loss)(const Criterion* hp, const Block* x, const char* z, const char* y, const char* weight,
                   char* delta) noexcept nogil
    void (*dropout)(const Dropout* hp, const Block* x, Py_ssize_t first, const char* a, char* out) noexcept nogil
    void (*normalize_rows)(const Block* x, double eps, char* z, char* rstd) noexcept nogil
    void (*normalize_rows_backward)(const Block* x, const char* z, const char* rstd, char* delta) noexcept nogil
    void (*column_sums)(const Block* x, const char* delta, char* total) noexcept nogil
    void (*column_products)(const Block* x, const char* z, const char* delta, char* total,
                            char* product) noexcept nogil
    void (*column_moments)(const Block* x, const char* z, char* mean, char* squares) noexcept nogil
    void (*merge_moments)(const Block* batch, Py_ssize_t block, double eps, double momentum, const char* means,
                          const char* squares, char* mean, char* rstd, char* running_mean,
                          char* running_variance) noexcept nogil
    void (*reciprocal_std)(Py_ssize_t n, double eps, const char* variance, char* rstd) noexcept nogil
    void (*normalize_columns)(const Block* x, const char* mean, const char* rstd, char* z) noexcept nogil
    void (*normalize_columns_backward)(const Block* x, const char* z, const char* rstd, const char* total,
                                       const char* product, double count, char* delta) noexcept nogil
    void (*affine)(const Block* x, const char* scale, const char* b, const char* z, char* out) noexcept nogil
    void (*scale_columns)(const Block* x, const char* scale, char* delta) noexcept nogil
    void (*add_scaled)(Py_ssize_t n, double factor, const char* x, char* y) noexcept nogil
    bint (*all_finite)(Py_ssize_t n, const char* x) noexcept nogil
    bint (*first_column_finite)(const Block* x, const char* z) noexcept nogil
    double (*sum_squares)(Py_ssize_t n, const char* x) noexcept nogil
    double (*sum_at)(Py_ssize_t n, const int64_t* index, const char* x) noexcept nogil
    void (*convert)(Py_ssize_t n, int source, const char* x, char* y) noexcept nogil
    void (*expand_row)(Py_ssize_t n, const int64_t* columns, const char* values, Py_ssize_t width,
                       char* out) noexcept nogil
    void (*transpose)(const char* W, char* out, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t begin,
                      Py_ssize_t end) noexcept nogil
    void (*mark_correct)(int loss, const Block* x, const char* z, const char* y, char* correct) noexcept nogil
