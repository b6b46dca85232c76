"""The trainer's elementwise work, as `net.pyx` calls it and `layers.pyx` does it: plain C structures."""

cdef enum Activation:
    IDENTITY, RELU, LEAKY_RELU, ELU, GELU, GELU_TANH, SILU, TANH, SIGMOID


cdef enum Loss:
    CROSS_ENTROPY, BINARY_CROSS_ENTROPY, SQUARED_ERROR, HUBER, QUANTILE, POISSON


cdef struct Block:
    # Some rows of one layer: every matrix of it is row-major with n columns.
    Py_ssize_t rows
    Py_ssize_t n
    bint wide                   # float64, else float32


cdef struct Criterion:
    # A loss and its numbers.
    int kind
    double scale                # of the gradient: one over the sum of the weights, and what else is asked for
    double smoothing            # of cross-entropy's labels: that share is spread evenly over all classes
    double threshold            # where Huber's loss turns linear; the quantile of the pinball loss


cdef struct Mask:
    # Dropout: whether an element is kept depends on these and its index alone.
    unsigned long long key      # of the run and the layer
    unsigned long long step     # of the training
    double rate                 # share of the elements that are dropped, 0 <= rate < 1


cdef struct Layers:
    # All that a build for one instruction set exports. Matrices and vectors are float or double as
    # the block says; sums over rows go down the rows in their order, so a block gives the same bits
    # wherever it is run.

    # z = z + b (no b: NULL);  a = f(z).  `a` may be `z`.
    void (*forward)(int activation, const Block* x, const char* b, char* z, char* a) noexcept nogil
    # delta = delta f'(z), from `z` or `a` as the activation wants it.
    void (*backward)(int activation, const Block* x, const char* z, const char* a,
                     char* delta) noexcept nogil
    # total[j] = sum over i of delta[i, j]
    void (*column_sums)(const Block* x, const char* delta, char* total) noexcept nogil
    # delta = scale weight[i] dloss/dz; returns the sum of weight[i] loss[i, j] over the block (no
    # weights: NULL). `y` is int64 labels (cross-entropy) or numbers of the block's type, n a row.
    double (*loss)(const Criterion* h, const Block* x, const char* z, const char* y,
                   const char* weight, char* delta) noexcept nogil
    # out = a / (1 - rate) where an element is kept, else 0; `first` is the block's first row in the batch.
    void (*dropout)(const Mask* h, const Block* x, Py_ssize_t first, const char* a, char* out) noexcept nogil
    # Each row to mean 0 and variance 1: z = (z - mean) rstd, rstd[i] = 1 / sqrt(variance + eps).
    void (*normalize_rows)(const Block* x, double eps, char* z, char* rstd) noexcept nogil
    # delta = rstd (delta - mean(delta) - z mean(delta z)), z as `normalize_rows` left it
    void (*normalize_rows_backward)(const Block* x, const char* z, const char* rstd,
                                    char* delta) noexcept nogil
    # Mean of each column of the block, and the sum of the squared distances from it.
    void (*moments)(const Block* x, const char* z, char* mean, char* squares) noexcept nogil
    # z = (z - mean) rstd, column by column
    void (*normalize_columns)(const Block* x, const char* mean, const char* rstd, char* z) noexcept nogil
    # total[j] = sum over i of delta[i, j],  product[j] = sum over i of delta[i, j] z[i, j]
    void (*column_products)(const Block* x, const char* z, const char* delta, char* total,
                            char* product) noexcept nogil
    # delta = rstd (delta - total / count - z product / count), column by column
    void (*normalize_columns_backward)(const Block* x, const char* z, const char* rstd, const char* total,
                                       const char* product, double count, char* delta) noexcept nogil
    # out = scale z + b, column by column
    void (*affine)(const Block* x, const char* scale, const char* b, const char* z, char* out) noexcept nogil
    # delta = scale delta, column by column
    void (*rescale)(const Block* x, const char* scale, char* delta) noexcept nogil
    # y = y + factor x, n numbers
    void (*add)(Py_ssize_t n, bint wide, double factor, const char* x, char* y) noexcept nogil
    # Whether none of n numbers is NaN or infinite.
    bint (*finite)(Py_ssize_t n, bint wide, const char* x) noexcept nogil
    # Sum of squares of n numbers, in double, in a fixed order.
    double (*squares)(Py_ssize_t n, bint wide, const char* x) noexcept nogil
    # n numbers of a type (0 float32, 1 float64, 2 uint8) to the type `wide` says.
    void (*convert)(Py_ssize_t n, int kind, const char* x, bint wide, char* y) noexcept nogil
