"""The layer kernels: activations, losses, dropout, normalization, and conversion of the input data.

This file is compiled once per instruction set, as `layers_base`, `layers_v3` and `layers_v4`; `dispatch.py`
selects one. The kernels, whose docstrings are their formulas, are exported in one table per dtype,
`LayerKernels`. Results have the same bits on every instruction set: the elementary functions come from
`fo_math.h`, and every sum has a fixed order.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset

from fastopt._core.common cimport real
from fastopt.nn._core.formulas cimport (
    binary_cross_entropy, elu, elu_derivative, exp, gelu, gelu_derivative, gelu_tanh, gelu_tanh_derivative, huber,
    leaky_relu, leaky_relu_derivative, pinball, poisson, relu, relu_derivative, sigmoid, sigmoid_derivative, silu,
    silu_derivative, squared_error, tanh, tanh_derivative,
)
from fastopt.nn._core.layer_kernels cimport (
    BINARY_CROSS_ENTROPY, CROSS_ENTROPY, ELU, FLOAT32, FLOAT64, GELU, GELU_TANH, HUBER, IDENTITY, LEAKY_RELU,
    POISSON, QUANTILE, RELU, SIGMOID, SILU, SQUARED_ERROR, TANH, UINT8, Block, Criterion, LayerKernels,
)
from fastopt.nn._core.matrix_ops cimport (
    add_bias, affine, column_moments, column_products, column_sums, merge_moments, multiply_add, normalize_columns,
    normalize_columns_backward, normalize_rows, normalize_rows_backward, reciprocal_std, row_max, row_product,
    row_sum, scale_columns,
)
from fastopt.nn._core.random_mask cimport dropout

cdef extern from "fo_math.h" nogil:
    double fo_log(double x)

cdef enum:
    TILE = 1024     # elements that pass through all stages of a kernel before the next ones; at least one row
    TILE_ROWS = 64  # rows of a tile at most, if a kernel has values per row
    SQUARE = 16     # rows and columns that are transposed together

# Types without values that select an activation or a loss at compile time.
cdef struct Relu:
    int _
cdef struct LeakyRelu:
    int _
cdef struct Elu:
    int _
cdef struct Gelu:
    int _
cdef struct GeluTanh:
    int _
cdef struct Silu:
    int _
cdef struct Tanh:
    int _
cdef struct Sigmoid:
    int _
cdef struct BinaryCrossEntropy:
    int _
cdef struct SquaredError:
    int _
cdef struct Huber:
    int _
cdef struct Pinball:
    int _
cdef struct Poisson:
    int _

ctypedef fused activation:
    Relu
    LeakyRelu
    Elu
    Gelu
    GeluTanh
    Silu
    Tanh
    Sigmoid

ctypedef fused elementwise_loss:
    BinaryCrossEntropy
    SquaredError
    Huber
    Pinball
    Poisson


# --- Activations ------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "identity": IDENTITY, "relu": RELU, "leaky_relu": LEAKY_RELU, "elu": ELU, "gelu": GELU,
    "gelu_tanh": GELU_TANH, "silu": SILU, "tanh": TANH, "sigmoid": SIGMOID,
}

# Activations whose derivative is computed from z. The others need only a, which may overwrite z.
NEEDS_Z = ("gelu", "gelu_tanh", "silu")


cdef void activate(activation* tag, real* restrict a, Py_ssize_t n) noexcept nogil:
    """a = f(a)"""
    cdef Py_ssize_t i
    for i in range(n):
        if activation is Relu:
            a[i] = relu(a[i])
        elif activation is LeakyRelu:
            a[i] = leaky_relu(a[i])
        elif activation is Elu:
            a[i] = elu(a[i])
        elif activation is Gelu:
            a[i] = gelu(a[i])
        elif activation is GeluTanh:
            a[i] = gelu_tanh(a[i])
        elif activation is Silu:
            a[i] = silu(a[i])
        elif activation is Tanh:
            a[i] = tanh(a[i])
        else:
            a[i] = sigmoid(a[i])


cdef void multiply_derivative(activation* tag, const real* restrict x, real* restrict delta,
                              Py_ssize_t n) noexcept nogil:
    """delta = delta f', with f' computed from x: z or a"""
    cdef Py_ssize_t i
    for i in range(n):
        if activation is Relu:
            delta[i] *= relu_derivative(x[i])
        elif activation is LeakyRelu:
            delta[i] *= leaky_relu_derivative(x[i])
        elif activation is Elu:
            delta[i] *= elu_derivative(x[i])
        elif activation is Gelu:
            delta[i] *= gelu_derivative(x[i])
        elif activation is GeluTanh:
            delta[i] *= gelu_tanh_derivative(x[i])
        elif activation is Silu:
            delta[i] *= silu_derivative(x[i])
        elif activation is Tanh:
            delta[i] *= tanh_derivative(x[i])
        else:
            delta[i] *= sigmoid_derivative(x[i])


cdef void dispatch_activation(int f, real* a, Py_ssize_t n) noexcept nogil:
    if f == RELU:
        activate(<Relu*> NULL, a, n)
    elif f == LEAKY_RELU:
        activate(<LeakyRelu*> NULL, a, n)
    elif f == ELU:
        activate(<Elu*> NULL, a, n)
    elif f == GELU:
        activate(<Gelu*> NULL, a, n)
    elif f == GELU_TANH:
        activate(<GeluTanh*> NULL, a, n)
    elif f == SILU:
        activate(<Silu*> NULL, a, n)
    elif f == TANH:
        activate(<Tanh*> NULL, a, n)
    elif f == SIGMOID:
        activate(<Sigmoid*> NULL, a, n)


cdef void activation_forward(int f, const Block* x, const real* b, real* z, real* a) noexcept nogil:
    """z = z + b unless b is NULL;  a = f(z), tile by tile. `a` may be `z`."""
    cdef Block tile = x[0]
    cdef Py_ssize_t lo, n, size = x.rows * x.n, step = max(TILE // x.n, 1) * x.n
    for lo from 0 <= lo < size by step:
        n = min(step, size - lo)
        if b != NULL:
            tile.rows = n // x.n
            add_bias(&tile, b, z + lo)
        if a != z:
            memcpy(a + lo, z + lo, n * sizeof(real))
        dispatch_activation(f, a + lo, n)


cdef void activation_backward(int f, const Block* x, const real* z, const real* a, real* delta) noexcept nogil:
    """delta = delta f'(z), computed from z for the activations in NEEDS_Z, else from a"""
    cdef Py_ssize_t n = x.rows * x.n
    if f == RELU:
        multiply_derivative(<Relu*> NULL, a, delta, n)
    elif f == LEAKY_RELU:
        multiply_derivative(<LeakyRelu*> NULL, a, delta, n)
    elif f == ELU:
        multiply_derivative(<Elu*> NULL, a, delta, n)
    elif f == GELU:
        multiply_derivative(<Gelu*> NULL, z, delta, n)
    elif f == GELU_TANH:
        multiply_derivative(<GeluTanh*> NULL, z, delta, n)
    elif f == SILU:
        multiply_derivative(<Silu*> NULL, z, delta, n)
    elif f == TANH:
        multiply_derivative(<Tanh*> NULL, a, delta, n)
    elif f == SIGMOID:
        multiply_derivative(<Sigmoid*> NULL, a, delta, n)


# --- Losses -----------------------------------------------------------------------------------------------

LOSSES = {
    "cross_entropy": CROSS_ENTROPY, "binary_cross_entropy": BINARY_CROSS_ENTROPY, "squared_error": SQUARED_ERROR,
    "huber": HUBER, "quantile": QUANTILE, "poisson": POISSON,
}


cdef void loss_elements(elementwise_loss* tag, double threshold, const real* restrict z, const real* restrict y,
                        real* restrict value, real* restrict derivative, Py_ssize_t n) noexcept nogil:
    """Loss and derivative of each element."""
    cdef Py_ssize_t i
    cdef real t = <real> threshold
    for i in range(n):
        if elementwise_loss is BinaryCrossEntropy:
            value[i] = binary_cross_entropy(z[i], y[i], derivative + i)
        elif elementwise_loss is SquaredError:
            value[i] = squared_error(z[i], y[i], derivative + i)
        elif elementwise_loss is Huber:
            value[i] = huber(t, z[i], y[i], derivative + i)
        elif elementwise_loss is Pinball:
            value[i] = pinball(t, z[i], y[i], derivative + i)
        else:
            value[i] = poisson(z[i], y[i], derivative + i)


cdef void dispatch_loss(const Criterion* hp, const real* z, const real* y, real* value, real* derivative,
                        Py_ssize_t n) noexcept nogil:
    if hp.loss == BINARY_CROSS_ENTROPY:
        loss_elements(<BinaryCrossEntropy*> NULL, hp.threshold, z, y, value, derivative, n)
    elif hp.loss == SQUARED_ERROR:
        loss_elements(<SquaredError*> NULL, hp.threshold, z, y, value, derivative, n)
    elif hp.loss == HUBER:
        loss_elements(<Huber*> NULL, hp.threshold, z, y, value, derivative, n)
    elif hp.loss == QUANTILE:
        loss_elements(<Pinball*> NULL, hp.threshold, z, y, value, derivative, n)
    elif hp.loss == POISSON:
        loss_elements(<Poisson*> NULL, hp.threshold, z, y, value, derivative, n)


cdef double apply_weights(double scale, Py_ssize_t rows, Py_ssize_t n, const real* weight, const real* value,
                          real* delta) noexcept nogil:
    """delta = scale weight[i] delta; returns the sum of weight[i] value[i, j]"""
    cdef Py_ssize_t i
    cdef double total = 0.0
    if weight == NULL:
        multiply_add(<real> scale, <real> 0, delta, rows * n)
        return row_sum(value, rows * n)
    for i in range(rows):
        multiply_add(<real> (scale * <double> weight[i]), <real> 0, delta + i * n, n)
        total += <double> weight[i] * row_sum(value + i * n, n)
    return total


cdef double sum_elementwise(const Criterion* hp, const Block* x, const real* z, const real* y,
                            const real* weight, real* delta) noexcept nogil:
    """A tile is a group of whole rows, or a part of a row that is longer than a tile."""
    cdef real value[TILE]
    cdef double total = 0.0
    cdef Py_ssize_t lo, rows, n, i = 0, j = 0
    while i < x.rows:
        rows, n = min(max(TILE // x.n, 1), x.rows - i), min(TILE, x.n - j)
        lo = i * x.n + j
        dispatch_loss(hp, z + lo, y + lo, value, delta + lo, rows * n)
        total += apply_weights(hp.scale, rows, n, weight + i if weight != NULL else NULL, value, delta + lo)
        j += n
        if j == x.n:
            i, j = i + rows, 0
    return total


cdef void exponentials(real* restrict x, Py_ssize_t n) noexcept nogil:
    """x = exp(x)"""
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = exp(x[i])


cdef void logarithms(double* restrict x, Py_ssize_t n) noexcept nogil:
    """x = log(x)"""
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = fo_log(x[i])


cdef double subtract_max(double uniform_weight, double label_weight, const real* restrict z, int64_t y,
                         real* restrict out, Py_ssize_t n) noexcept nogil:
    """out = z - max(z); returns label_weight out[y] + uniform_weight sum(out)"""
    cdef Py_ssize_t j
    cdef real largest = row_max(z, n)
    for j in range(n):
        out[j] = z[j] - largest
    return label_weight * <double> out[y] + (
        uniform_weight * row_sum(out, n) if uniform_weight != 0.0 else 0.0)


cdef double softmax_tile(const Criterion* hp, Py_ssize_t rows, Py_ssize_t n, const real* z,
                         const int64_t* y, const real* weight, real* delta) noexcept nogil:
    """Per row log(sum(exp(z))) - sum(t z), with the smoothed target t and after subtracting max(z) from z."""
    cdef double uniform_weight = hp.label_smoothing / n, label_weight = 1.0 - hp.label_smoothing
    cdef double total[TILE_ROWS]
    cdef double log_total[TILE_ROWS]
    cdef double target_logit[TILE_ROWS]
    cdef double loss = 0.0, factor
    cdef Py_ssize_t i
    for i in range(rows):
        target_logit[i] = subtract_max(uniform_weight, label_weight, z + i * n, y[i], delta + i * n, n)
    exponentials(delta, rows * n)
    for i in range(rows):
        total[i] = row_sum(delta + i * n, n)
        log_total[i] = total[i]
    logarithms(log_total, rows)
    for i in range(rows):
        factor = <double> weight[i] if weight != NULL else 1.0
        loss += factor * (log_total[i] - target_logit[i])
        factor *= hp.scale
        multiply_add(<real> (factor / total[i]), <real> (-factor * uniform_weight), delta + i * n, n)
        delta[i * n + y[i]] -= <real> (factor * label_weight)
    return loss


cdef double cross_entropy(const Criterion* hp, const Block* x, const real* z, const int64_t* y,
                          const real* weight, real* delta) noexcept nogil:
    cdef double total = 0.0
    cdef Py_ssize_t i, step = min(max(TILE // x.n, 1), TILE_ROWS)
    for i from 0 <= i < x.rows by step:
        total += softmax_tile(hp, min(step, x.rows - i), x.n, z + i * x.n, y + i,
                              weight + i if weight != NULL else NULL, delta + i * x.n)
    return total


cdef double compute_loss(const Criterion* hp, const Block* x, const real* z, const char* y, const real* weight,
                         real* delta) noexcept nogil:
    """delta = scale weight[i] dloss/dz; returns the sum of weight[i] loss[i, j]. `weight` may be NULL.

    `y` holds int64 labels for cross-entropy, else n values per row.
    """
    if hp.loss == CROSS_ENTROPY:
        return cross_entropy(hp, x, z, <const int64_t*> y, weight, delta)
    return sum_elementwise(hp, x, z, <const real*> y, weight, delta)


# --- Correct predictions ----------------------------------------------------------------------------------

cdef inline bint is_largest(const real* z, int64_t label, Py_ssize_t n) noexcept nogil:
    """Whether z[label] is the largest element and the first one of that value; False if there is a NaN."""
    cdef Py_ssize_t j
    cdef int exceeded = 0, equal = 0
    cdef real value = z[label]
    for j in range(n):
        exceeded |= not z[j] <= value
        equal += z[j] == value
    if exceeded == 0 and equal > 1:
        for j in range(label):
            exceeded |= z[j] == value
    return exceeded == 0


cdef inline bint are_positive(const real* z, const real* y, Py_ssize_t n) noexcept nogil:
    """Whether z > 0 wherever y is the label 1, smoothed or not, and nowhere else."""
    cdef Py_ssize_t j
    cdef int differing = 0
    for j in range(n):
        differing |= (z[j] > <real> 0) != (y[j] > <real> 0.5)
    return differing == 0


cdef void mark_correct(int loss, const Block* x, const real* z, const char* y, char* correct) noexcept nogil:
    """correct[i] = 1 if all labels of row i are predicted correctly, else 0; `y` as for `compute_loss`"""
    cdef Py_ssize_t i
    for i in range(x.rows):
        if loss == <int> CROSS_ENTROPY:
            correct[i] = is_largest(z + i * x.n, (<const int64_t*> y)[i], x.n)
        else:
            correct[i] = are_positive(z + i * x.n, <const real*> y + i * x.n, x.n)


# --- Vectors and input data -------------------------------------------------------------------------------

cdef void add_scaled(Py_ssize_t n, double factor, const real* restrict x, real* restrict y) noexcept nogil:
    """y = y + factor x"""
    cdef Py_ssize_t i
    cdef real f = <real> factor
    for i in range(n):
        y[i] += f * x[i]


cdef bint all_finite(Py_ssize_t n, const real* x) noexcept nogil:
    """Whether no element is NaN or infinite: x - x would not be 0."""
    cdef Py_ssize_t i
    cdef int bad = 0
    for i in range(n):
        bad |= x[i] - x[i] != <real> 0
    return bad == 0


cdef bint first_column_finite(const Block* x, const real* z) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(x.rows):
        if z[i * x.n] - z[i * x.n] != <real> 0:
            return False
    return True


cdef double sum_squares(Py_ssize_t n, const real* x) noexcept nogil:
    """Sum of squares, in double and in a fixed order."""
    return row_product(x, x, n)


cdef double sum_at(Py_ssize_t n, const int64_t* index, const real* x) noexcept nogil:
    """Sum of x[index[i]] over i < n, in double; of x[i] if `index` is NULL."""
    cdef Py_ssize_t i
    cdef double total = 0.0
    for i in range(n):
        total += <double> x[index[i] if index != NULL else i]
    return total


ctypedef fused element:
    float
    double
    uint8_t


cdef void convert_elements(Py_ssize_t n, const element* restrict x, real* restrict y) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = <real> x[i]


cdef void convert(Py_ssize_t n, int source, const char* x, real* y) noexcept nogil:
    """y = x, which has the dtype `source`: FLOAT32, FLOAT64 or UINT8."""
    if source == <int> UINT8:
        convert_elements(n, <const uint8_t*> x, y)
    elif source == <int> (FLOAT32 if sizeof(real) == sizeof(float) else FLOAT64):
        memcpy(y, x, n * sizeof(real))
    else:
        if real is float:
            convert_elements(n, <const double*> x, y)
        else:
            convert_elements(n, <const float*> x, y)


cdef void expand_row(Py_ssize_t n, const int64_t* columns, const real* values, Py_ssize_t width,
                     real* out) noexcept nogil:
    """out = sparse row with n stored elements; duplicates are added up, columns that do not exist are ignored"""
    cdef Py_ssize_t j
    memset(out, 0, width * sizeof(real))
    for j in range(n):
        if 0 <= columns[j] < width:
            out[columns[j]] += values[j]


cdef inline void transpose_square(const real* W, real* out, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    cdef Py_ssize_t i, j
    for j in range(SQUARE):
        for i in range(SQUARE):
            out[j * rows + i] = W[i * columns + j]


cdef void transpose(const real* W, real* out, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t begin,
                    Py_ssize_t end) noexcept nogil:
    """out = W.T for rows [begin, end) of W, in squares, so that every cache line is used completely"""
    cdef Py_ssize_t i, j, k, m
    for i from begin <= i < end by SQUARE:
        for j from 0 <= j < columns by SQUARE:
            if i + SQUARE <= end and j + SQUARE <= columns:
                transpose_square(W + i * columns + j, out + j * rows + i, rows, columns)
                continue
            for m in range(j, min(j + SQUARE, columns)):
                for k in range(i, min(i + SQUARE, end)):
                    out[m * rows + k] = W[k * columns + m]


# --- The tables -------------------------------------------------------------------------------------------

cdef inline void enter(void** slot, void* function) noexcept:
    slot[0] = function


cdef void fill(LayerKernels* table, real* dtype) noexcept:
    """Enter the kernels for one dtype. They take pointers to its elements where the table declares `char*`."""
    enter(<void**> &table.activation_forward, <void*> activation_forward[real])
    enter(<void**> &table.activation_backward, <void*> activation_backward[real])
    enter(<void**> &table.loss, <void*> compute_loss[real])
    enter(<void**> &table.dropout, <void*> dropout[real])
    enter(<void**> &table.normalize_rows, <void*> normalize_rows[real])
    enter(<void**> &table.normalize_rows_backward, <void*> normalize_rows_backward[real])
    enter(<void**> &table.column_sums, <void*> column_sums[real])
    enter(<void**> &table.column_products, <void*> column_products[real])
    enter(<void**> &table.column_moments, <void*> column_moments[real])
    enter(<void**> &table.merge_moments, <void*> merge_moments[real])
    enter(<void**> &table.reciprocal_std, <void*> reciprocal_std[real])
    enter(<void**> &table.normalize_columns, <void*> normalize_columns[real])
    enter(<void**> &table.normalize_columns_backward, <void*> normalize_columns_backward[real])
    enter(<void**> &table.affine, <void*> affine[real])
    enter(<void**> &table.scale_columns, <void*> scale_columns[real])
    enter(<void**> &table.add_scaled, <void*> add_scaled[real])
    enter(<void**> &table.all_finite, <void*> all_finite[real])
    enter(<void**> &table.first_column_finite, <void*> first_column_finite[real])
    enter(<void**> &table.sum_squares, <void*> sum_squares[real])
    enter(<void**> &table.sum_at, <void*> sum_at[real])
    enter(<void**> &table.convert, <void*> convert[real])
    enter(<void**> &table.expand_row, <void*> expand_row[real])
    enter(<void**> &table.transpose, <void*> transpose[real])
    enter(<void**> &table.mark_correct, <void*> mark_correct[real])


cdef LayerKernels[2] tables
fill(&tables[<int> FLOAT32], <float*> NULL)
fill(&tables[<int> FLOAT64], <double*> NULL)

LAYERS = PyCapsule_New(&tables, "fastopt.layers", NULL)
