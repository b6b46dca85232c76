"""The trainer's elementwise work: activations, losses, dropout, normalization.

This file is compiled once for each instruction set, as `layers_base`, `layers_v3`, `layers_v4`;
`dispatch.py` picks one. What an activation or a loss does to one element stands first, the loops
follow, and last what is exported, as declared in `layer.pxd`. The results are the same on every
instruction set, to the last bit: `fo_math.h` has the functions, a sum over rows is taken row by row,
and a sum along a row in a fixed number of lanes. What depends on its own element alone is worked off
without regard to where rows end, for rows may be much shorter than a register.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport sqrt
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastopt.nn._core.layer cimport (
    BINARY_CROSS_ENTROPY, CROSS_ENTROPY, ELU, GELU, GELU_TANH, HUBER, IDENTITY, LEAKY_RELU, POISSON, QUANTILE,
    RELU, SIGMOID, SILU, SQUARED_ERROR, TANH, Block, Criterion, Layers, Mask,
)

cdef extern from "fo_math.h" nogil:
    float fo_expf(float x)
    double fo_exp(double x)
    float fo_expm1f(float x)
    double fo_expm1(double x)
    float fo_tanhf(float x)
    double fo_tanh(double x)
    float fo_log1pf(float x)
    double fo_log1p(double x)
    double fo_log(double x)
    float fo_gaussf(float x)
    double fo_gauss(double x)
    float fo_normalf(float x, float gauss)
    double fo_normal(double x, double gauss)

cdef enum:
    LANES = 16      # partial sums along a row: as many as the widest registers need
    STRIP = 128     # elements up to which short rows are laid end to end
    TILE = 1024     # elements that all stages of a pass handle before the next are begun, a row at least
    BATCH = 64      # rows at most of such a tile, where each has numbers of its own
    GROUP = 64      # random words that are made together

ctypedef fused real:
    float
    double


cdef inline real exp(real x) noexcept nogil:
    if real is float:
        return fo_expf(x)
    else:
        return fo_exp(x)


cdef inline real expm1(real x) noexcept nogil:
    """exp(x) - 1 for x <= 0"""
    if real is float:
        return fo_expm1f(x)
    else:
        return fo_expm1(x)


cdef inline real tanh(real x) noexcept nogil:
    if real is float:
        return fo_tanhf(x)
    else:
        return fo_tanh(x)


cdef inline real log1p(real x) noexcept nogil:
    """log(1 + x) for 0 <= x <= 1"""
    if real is float:
        return fo_log1pf(x)
    else:
        return fo_log1p(x)


cdef inline real gauss(real x) noexcept nogil:
    """exp(-x x / 2)"""
    if real is float:
        return fo_gaussf(x)
    else:
        return fo_gauss(x)


cdef inline real normal(real x, real g) noexcept nogil:
    """(1 + erf(x / sqrt(2))) / 2, given g = exp(-x x / 2)"""
    if real is float:
        return fo_normalf(x, g)
    else:
        return fo_normal(x, g)


# --- Activations: the value from z, the derivative from z or, where the value decides it, from a ------

cdef inline real relu(real z) noexcept nogil:
    """max(z, 0); a NaN stays one"""
    return <real> 0 if z < <real> 0 else z

cdef inline real relu_slope(real a) noexcept nogil:
    """1 where a > 0, else 0"""
    return <real> 1 if a > <real> 0 else <real> 0


cdef inline real leaky_relu(real z) noexcept nogil:
    """z where z > 0, else 0.01 z"""
    return z * leaky_relu_slope(z)

cdef inline real leaky_relu_slope(real a) noexcept nogil:
    """1 where a > 0, else 0.01"""
    return <real> 1 if a > <real> 0 else <real> 0.01


cdef inline real elu(real z) noexcept nogil:
    """z where z > 0, else exp(z) - 1"""
    cdef real below = expm1(z)
    return z if z > <real> 0 else below

cdef inline real elu_slope(real a) noexcept nogil:
    """1 where a > 0, else exp(z) = a + 1"""
    return <real> 1 if a > <real> 0 else a + <real> 1


cdef inline real gelu(real z) noexcept nogil:
    """z (1 + erf(z / sqrt(2))) / 2"""
    return z * normal(z, gauss(z))

cdef inline real gelu_slope(real z) noexcept nogil:
    """(1 + erf(z / sqrt(2))) / 2 + z exp(-z z / 2) / sqrt(2 pi)"""
    cdef real g = gauss(z)
    return normal(z, g) + z * (<real> 0.3989422804014327 * g)


cdef inline real sigmoid(real z) noexcept nogil:
    """1 / (1 + exp(-z))"""
    return <real> 1 / (<real> 1 + exp(-z))

cdef inline real sigmoid_slope(real a) noexcept nogil:
    """a (1 - a)"""
    return a * (<real> 1 - a)


cdef inline real silu(real z) noexcept nogil:
    """z sigmoid(z)"""
    return z * sigmoid(z)

cdef inline real silu_slope(real z) noexcept nogil:
    """s + z s (1 - s) with s = sigmoid(z)"""
    cdef real s = sigmoid(z)
    return s + z * sigmoid_slope(s)


cdef inline real gelu_tanh(real z) noexcept nogil:
    """z sigmoid(2 u) = z (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (z + 0.044715 z^3)"""
    return z * sigmoid(z * (<real> 1.5957691216057308 + <real> 0.07135481627260025 * (z * z)))

cdef inline real gelu_tanh_slope(real z) noexcept nogil:
    """s + z s (1 - s) 2 u' with s = sigmoid(2 u)"""
    cdef real square = z * z
    cdef real s = sigmoid(z * (<real> 1.5957691216057308 + <real> 0.07135481627260025 * square))
    return s + z * (sigmoid_slope(s) * (<real> 1.5957691216057308 + <real> 0.21406444881780074 * square))


cdef inline real tanh_slope(real a) noexcept nogil:
    """1 - a a"""
    return <real> 1 - a * a


# --- Losses of one output: the value, and its derivative by z -----------------------------------------

cdef inline real binary_cross_entropy(real z, real y, real* slope) noexcept nogil:
    """log(1 + exp(z)) - y z = max(z, 0) + log(1 + exp(-abs(z))) - y z;  sigmoid(z) - y"""
    cdef real e = exp(z if z < <real> 0 else -z)
    slope[0] = (e if z < <real> 0 else <real> 1) / (<real> 1 + e) - y
    return relu(z) - y * z + log1p(e)


cdef inline real squared_error(real z, real y, real* slope) noexcept nogil:
    """(z - y)^2 / 2;  z - y"""
    slope[0] = z - y
    return <real> 0.5 * (slope[0] * slope[0])


cdef inline real huber(real threshold, real z, real y, real* slope) noexcept nogil:
    """d^2 / 2 with d = z - y, beyond the threshold t (abs(d) - t / 2);  d clamped to +- t"""
    cdef real d = z - y
    cdef real size = -d if d < <real> 0 else d
    cdef real bounded = size if size < threshold else threshold
    slope[0] = threshold if d > threshold else (-threshold if d < -threshold else d)
    return bounded * (size - <real> 0.5 * bounded)


cdef inline real pinball(real quantile, real z, real y, real* slope) noexcept nogil:
    """q (y - z) where y > z, else (1 - q) (z - y);  -q, 1 - q, and 0 where they meet"""
    cdef real d = z - y
    cdef real below = quantile - <real> 1
    cdef real weight = quantile if d < <real> 0 else below
    slope[0] = d if d == <real> 0 else -weight
    return -weight * d


cdef inline real poisson(real z, real y, real* slope) noexcept nogil:
    """exp(z) - y z;  exp(z) - y"""
    cdef real e = exp(z)
    slope[0] = e - y
    return e - y * z


# --- Loops over elements, made once for each activation and loss ---------------------------------------

# Types that only name an activation or a loss.
cdef extern from *:
    """
    typedef struct Relu Relu;
    typedef struct LeakyRelu LeakyRelu;
    typedef struct Elu Elu;
    typedef struct Gelu Gelu;
    typedef struct GeluTanh GeluTanh;
    typedef struct Silu Silu;
    typedef struct Tanh Tanh;
    typedef struct Sigmoid Sigmoid;
    typedef struct BinaryCrossEntropy BinaryCrossEntropy;
    typedef struct SquaredError SquaredError;
    typedef struct Huber Huber;
    typedef struct Pinball Pinball;
    typedef struct Poisson Poisson;
    """
    ctypedef struct Relu:
        pass
    ctypedef struct LeakyRelu:
        pass
    ctypedef struct Elu:
        pass
    ctypedef struct Gelu:
        pass
    ctypedef struct GeluTanh:
        pass
    ctypedef struct Silu:
        pass
    ctypedef struct Tanh:
        pass
    ctypedef struct Sigmoid:
        pass
    ctypedef struct BinaryCrossEntropy:
        pass
    ctypedef struct SquaredError:
        pass
    ctypedef struct Huber:
        pass
    ctypedef struct Pinball:
        pass
    ctypedef struct Poisson:
        pass

ctypedef fused function:
    Relu
    LeakyRelu
    Elu
    Gelu
    GeluTanh
    Silu
    Tanh
    Sigmoid

ctypedef fused criterion:
    BinaryCrossEntropy
    SquaredError
    Huber
    Pinball
    Poisson


cdef void activate(function* kind, real* restrict a, Py_ssize_t n) noexcept nogil:
    """a = f(a)"""
    cdef Py_ssize_t i
    for i in range(n):
        if function is Relu:
            a[i] = relu(a[i])
        elif function is LeakyRelu:
            a[i] = leaky_relu(a[i])
        elif function is Elu:
            a[i] = elu(a[i])
        elif function is Gelu:
            a[i] = gelu(a[i])
        elif function is GeluTanh:
            a[i] = gelu_tanh(a[i])
        elif function is Silu:
            a[i] = silu(a[i])
        elif function is Tanh:
            a[i] = tanh(a[i])
        else:
            a[i] = sigmoid(a[i])


cdef void chain(function* kind, const real* restrict x, real* restrict delta, Py_ssize_t n) noexcept nogil:
    """delta = delta f', which is known from x, z or a"""
    cdef Py_ssize_t i
    for i in range(n):
        if function is Relu:
            delta[i] *= relu_slope(x[i])
        elif function is LeakyRelu:
            delta[i] *= leaky_relu_slope(x[i])
        elif function is Elu:
            delta[i] *= elu_slope(x[i])
        elif function is Gelu:
            delta[i] *= gelu_slope(x[i])
        elif function is GeluTanh:
            delta[i] *= gelu_tanh_slope(x[i])
        elif function is Silu:
            delta[i] *= silu_slope(x[i])
        elif function is Tanh:
            delta[i] *= tanh_slope(x[i])
        else:
            delta[i] *= sigmoid_slope(x[i])


cdef void judge(criterion* kind, double threshold, const real* restrict z, const real* restrict y,
                real* restrict value, real* restrict slope, Py_ssize_t n) noexcept nogil:
    """The loss of each element, and its derivative."""
    cdef Py_ssize_t i
    cdef real t = <real> threshold
    for i in range(n):
        if criterion is BinaryCrossEntropy:
            value[i] = binary_cross_entropy(z[i], y[i], slope + i)
        elif criterion is SquaredError:
            value[i] = squared_error(z[i], y[i], slope + i)
        elif criterion is Huber:
            value[i] = huber(t, z[i], y[i], slope + i)
        elif criterion is Pinball:
            value[i] = pinball(t, z[i], y[i], slope + i)
        else:
            value[i] = poisson(z[i], y[i], slope + i)


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


cdef void multiply_add(real factor, real term, real* restrict x, Py_ssize_t n) noexcept nogil:
    """x = factor x + term"""
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = factor * x[i] + term


# --- Along a row ------------------------------------------------------------------------------------

cdef inline double fold(double* lane) noexcept nogil:
    """Sum of the lanes, in halves."""
    cdef Py_ssize_t i
    for i in range(LANES // 2):
        lane[i] += lane[LANES // 2 + i]
    for i in range(LANES // 4):
        lane[i] += lane[LANES // 4 + i]
    for i in range(LANES // 8):
        lane[i] += lane[LANES // 8 + i]
    return lane[0] + lane[1]


cdef double row_sum(const real* x, Py_ssize_t n) noexcept nogil:
    """Lane j sums elements j, j + LANES, ...; the lanes are folded, and then comes what is left."""
    cdef double lane[LANES]
    cdef double total = 0.0
    cdef Py_ssize_t i, j, rows = n // LANES
    if rows > 0:
        memset(lane, 0, sizeof(lane))
        for i in range(rows):
            for j in range(LANES):
                lane[j] += <double> x[i * LANES + j]
        total = fold(lane)
    for j in range(rows * LANES, n):
        total += <double> x[j]
    return total


cdef double row_product(const real* x, const real* y, Py_ssize_t n) noexcept nogil:
    """Sum of x y, in the order of `row_sum`."""
    cdef double lane[LANES]
    cdef double total = 0.0
    cdef Py_ssize_t i, j, rows = n // LANES
    if rows > 0:
        memset(lane, 0, sizeof(lane))
        for i in range(rows):
            for j in range(LANES):
                lane[j] += <double> x[i * LANES + j] * <double> y[i * LANES + j]
        total = fold(lane)
    for j in range(rows * LANES, n):
        total += <double> x[j] * <double> y[j]
    return total


cdef inline real larger(real x, real y) noexcept nogil:
    return y if y > x else x


cdef real row_max(const real* x, Py_ssize_t n) noexcept nogil:
    """The largest element; a NaN may be passed over. So many lanes that gcc makes vectors of them."""
    cdef real lane[2 * LANES]
    cdef real top = x[0]
    cdef Py_ssize_t i, j, rows = n // (2 * LANES)
    if rows > 0:
        memcpy(lane, x, sizeof(lane))
        for i in range(1, rows):
            for j in range(2 * LANES):
                lane[j] = larger(lane[j], x[i * 2 * LANES + j])
        for j in range(2 * LANES):
            top = larger(top, lane[j])
    for j in range(rows * 2 * LANES, n):
        top = larger(top, x[j])
    return top


cdef void normalize_row(double eps, real* restrict z, real* restrict rstd, Py_ssize_t n) noexcept nogil:
    multiply_add(<real> 1, <real> (-row_sum(z, n) / n), z, n)
    rstd[0] = <real> (1.0 / sqrt(row_product(z, z, n) / n + eps))
    multiply_add(rstd[0], <real> 0, z, n)


cdef void normalize_row_backward(const real* restrict z, real rstd, real* restrict delta,
                                 Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef real mean = <real> (row_sum(delta, n) / n), product = <real> (row_product(delta, z, n) / n)
    for i in range(n):
        delta[i] = rstd * (delta[i] - mean - z[i] * product)


# --- Column by column ---------------------------------------------------------------------------------

cdef inline Py_ssize_t strip(const Block* x) noexcept nogil:
    """Elements of the rows that are taken together, as if they were one."""
    return x.n * min(max(STRIP // x.n, 1), x.rows)


cdef inline const real* repeat(const real* v, Py_ssize_t n, Py_ssize_t width, real* room) noexcept nogil:
    """One number a column, for each row of a strip; `room` holds a strip of more than one row."""
    cdef Py_ssize_t i
    if width == n:
        return v
    for i in range(width // n):
        memcpy(room + i * n, v, n * sizeof(real))
    return room


cdef void shift_columns(const Block* x, const real* b, real* restrict z) noexcept nogil:
    """z = z + b"""
    cdef Py_ssize_t i, lo = 0, size = x.rows * x.n, width = strip(x)
    cdef real room[STRIP]
    b = repeat(b, x.n, width, room)
    while lo < size:
        for i in range(min(width, size - lo)):
            z[lo + i] += b[i]
        lo += width


cdef void scale_columns(const Block* x, const real* scale, real* restrict delta) noexcept nogil:
    """delta = scale delta"""
    cdef Py_ssize_t i, lo = 0, size = x.rows * x.n, width = strip(x)
    cdef real room[STRIP]
    scale = repeat(scale, x.n, width, room)
    while lo < size:
        for i in range(min(width, size - lo)):
            delta[lo + i] *= scale[i]
        lo += width


cdef void affine_columns(const Block* x, const real* scale, const real* b, const real* restrict z,
                         real* restrict out) noexcept nogil:
    """out = scale z + b"""
    cdef Py_ssize_t i, lo = 0, size = x.rows * x.n, width = strip(x)
    cdef real rooms[2][STRIP]
    scale = repeat(scale, x.n, width, rooms[0])
    b = repeat(b, x.n, width, rooms[1])
    while lo < size:
        for i in range(min(width, size - lo)):
            out[lo + i] = scale[i] * z[lo + i] + b[i]
        lo += width


cdef void center_columns(const Block* x, const real* mean, const real* rstd,
                         real* restrict z) noexcept nogil:
    """z = (z - mean) rstd"""
    cdef Py_ssize_t i, lo = 0, size = x.rows * x.n, width = strip(x)
    cdef real rooms[2][STRIP]
    mean = repeat(mean, x.n, width, rooms[0])
    rstd = repeat(rstd, x.n, width, rooms[1])
    while lo < size:
        for i in range(min(width, size - lo)):
            z[lo + i] = (z[lo + i] - mean[i]) * rstd[i]
        lo += width


cdef void center_columns_backward(const Block* x, const real* restrict z, const real* rstd,
                                  const real* total, const real* product, double count,
                                  real* restrict delta) noexcept nogil:
    """delta = rstd (delta - total / count - z product / count)"""
    cdef Py_ssize_t i, lo = 0, size = x.rows * x.n, width = strip(x)
    cdef real share = <real> (1.0 / count)
    cdef real rooms[3][STRIP]
    rstd = repeat(rstd, x.n, width, rooms[0])
    total = repeat(total, x.n, width, rooms[1])
    product = repeat(product, x.n, width, rooms[2])
    while lo < size:
        for i in range(min(width, size - lo)):
            delta[lo + i] = rstd[i] * (delta[lo + i] - share * total[i] - z[lo + i] * (share * product[i]))
        lo += width


cdef void add_rows(const Block* x, const real* restrict delta, real* restrict total) noexcept nogil:
    """total[j] = sum over i of delta[i, j]"""
    cdef Py_ssize_t i, j
    memset(total, 0, x.n * sizeof(real))
    for i in range(x.rows):
        for j in range(x.n):
            total[j] += delta[i * x.n + j]


cdef void add_products(const Block* x, const real* restrict z, const real* restrict delta,
                       real* restrict product) noexcept nogil:
    """product[j] = sum over i of delta[i, j] z[i, j]"""
    cdef Py_ssize_t i, j
    memset(product, 0, x.n * sizeof(real))
    for i in range(x.rows):
        for j in range(x.n):
            product[j] += delta[i * x.n + j] * z[i * x.n + j]


cdef void add_squares(const Block* x, const real* restrict z, const real* restrict mean,
                      real* restrict squares) noexcept nogil:
    """squares[j] = sum over i of (z[i, j] - mean[j])^2"""
    cdef Py_ssize_t i, j
    cdef real d
    memset(squares, 0, x.n * sizeof(real))
    for i in range(x.rows):
        for j in range(x.n):
            d = z[i * x.n + j] - mean[j]
            squares[j] += d * d


# --- Activations ----------------------------------------------------------------------------------------

ACTIVATIONS = {
    "identity": IDENTITY,
    "relu": RELU,
    "leaky_relu": LEAKY_RELU,
    "elu": ELU,
    "gelu": GELU,
    "gelu_tanh": GELU_TANH,
    "silu": SILU,
    "tanh": TANH,
    "sigmoid": SIGMOID,
}

# Those of which `backward` reads z; to the others it is enough that a is kept, and a may lie where z was.
NEEDS_Z = ("gelu", "gelu_tanh", "silu")


cdef void apply(int f, real* a, Py_ssize_t n) noexcept nogil:
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


cdef void apply_backward(int f, const real* z, const real* a, real* delta, Py_ssize_t n) noexcept nogil:
    if f == RELU:
        chain(<Relu*> NULL, a, delta, n)
    elif f == LEAKY_RELU:
        chain(<LeakyRelu*> NULL, a, delta, n)
    elif f == ELU:
        chain(<Elu*> NULL, a, delta, n)
    elif f == GELU:
        chain(<Gelu*> NULL, z, delta, n)
    elif f == GELU_TANH:
        chain(<GeluTanh*> NULL, z, delta, n)
    elif f == SILU:
        chain(<Silu*> NULL, z, delta, n)
    elif f == TANH:
        chain(<Tanh*> NULL, a, delta, n)
    elif f == SIGMOID:
        chain(<Sigmoid*> NULL, a, delta, n)


cdef void forward_tiles(int f, const Block* x, const real* b, real* z, real* a) noexcept nogil:
    """Tile by tile: add b where z is, copy where a is to be, and work there, in place."""
    cdef Block part = x[0]
    cdef Py_ssize_t lo = 0, size = x.rows * x.n
    part.rows = max(TILE // x.n, 1)
    while lo < size:
        part.rows = min(part.rows, (size - lo) // x.n)
        if b != NULL:
            shift_columns(&part, b, z + lo)
        if a != z:
            memcpy(a + lo, z + lo, part.rows * x.n * sizeof(real))
        apply(f, a + lo, part.rows * x.n)
        lo += part.rows * x.n


# --- Losses -----------------------------------------------------------------------------------------------

LOSSES = {
    "cross_entropy": CROSS_ENTROPY,
    "binary_cross_entropy": BINARY_CROSS_ENTROPY,
    "squared_error": SQUARED_ERROR,
    "huber": HUBER,
    "quantile": QUANTILE,
    "poisson": POISSON,
}


cdef void judge_by(const Criterion* h, const real* z, const real* y, real* value, real* slope,
                   Py_ssize_t n) noexcept nogil:
    if h.kind == BINARY_CROSS_ENTROPY:
        judge(<BinaryCrossEntropy*> NULL, h.threshold, z, y, value, slope, n)
    elif h.kind == SQUARED_ERROR:
        judge(<SquaredError*> NULL, h.threshold, z, y, value, slope, n)
    elif h.kind == HUBER:
        judge(<Huber*> NULL, h.threshold, z, y, value, slope, n)
    elif h.kind == QUANTILE:
        judge(<Pinball*> NULL, h.threshold, z, y, value, slope, n)
    elif h.kind == POISSON:
        judge(<Poisson*> NULL, h.threshold, z, y, value, slope, n)


cdef double weigh(double scale, Py_ssize_t rows, Py_ssize_t n, const real* weight, const real* value,
                  real* delta) noexcept nogil:
    """delta = scale weight[i] delta;  the sum of weight[i] value[i, j]"""
    cdef Py_ssize_t i
    cdef double total = 0.0
    if weight == NULL:
        multiply_add(<real> scale, <real> 0, delta, rows * n)
        return row_sum(value, rows * n)
    for i in range(rows):
        multiply_add(<real> (scale * <double> weight[i]), <real> 0, delta + i * n, n)
        total += <double> weight[i] * row_sum(value + i * n, n)
    return total


cdef double elementwise_loss(const Criterion* h, const Block* x, const real* z, const real* y,
                             const real* weight, real* delta) noexcept nogil:
    """Tiles are some whole rows, or pieces of a row that is longer than a tile."""
    cdef real value[TILE]
    cdef double total = 0.0
    cdef Py_ssize_t lo, rows, n, i = 0, j = 0
    while i < x.rows:
        rows, n = min(max(TILE // x.n, 1), x.rows - i), min(TILE, x.n - j)
        lo = i * x.n + j
        judge_by(h, z + lo, y + lo, value, delta + lo, rows * n)
        total += weigh(h.scale, rows, n, weight + i if weight != NULL else NULL, value, delta + lo)
        j += n
        if j == x.n:
            i, j = i + rows, 0
    return total


cdef double subtract_max(double even, double rest, const real* restrict z, int64_t y, real* restrict out,
                         Py_ssize_t n) noexcept nogil:
    """out = z - max(z);  rest out[y] + even sum(out)"""
    cdef Py_ssize_t j
    cdef real top = row_max(z, n)
    for j in range(n):
        out[j] = z[j] - top
    return rest * <double> out[y] + (even * row_sum(out, n) if even != 0.0 else 0.0)


cdef double softmax_tile(const Criterion* h, Py_ssize_t rows, Py_ssize_t n, const real* z,
                         const int64_t* y, const real* weight, real* delta) noexcept nogil:
    """Of each row log(sum(exp(z))) - sum(t z), where t is the target, smoothed: all z less the largest."""
    cdef double even = h.smoothing / n, rest = 1.0 - h.smoothing, loss = 0.0, factor
    cdef double total[BATCH]
    cdef double size[BATCH]
    cdef double hit[BATCH]
    cdef Py_ssize_t i
    for i in range(rows):
        hit[i] = subtract_max(even, rest, z + i * n, y[i], delta + i * n, n)
    exponentials(delta, rows * n)
    for i in range(rows):
        total[i] = row_sum(delta + i * n, n)
        size[i] = total[i]
    logarithms(size, rows)
    for i in range(rows):
        factor = <double> weight[i] if weight != NULL else 1.0
        loss += factor * (size[i] - hit[i])
        factor *= h.scale
        multiply_add(<real> (factor / total[i]), <real> (-factor * even), delta + i * n, n)
        delta[i * n + y[i]] -= <real> (factor * rest)
    return loss


cdef double cross_entropy(const Criterion* h, const Block* x, const real* z, const int64_t* y,
                          const real* weight, real* delta) noexcept nogil:
    cdef double total = 0.0
    cdef Py_ssize_t i = 0, rows, step = min(max(TILE // x.n, 1), BATCH)
    while i < x.rows:
        rows = min(step, x.rows - i)
        total += softmax_tile(h, rows, x.n, z + i * x.n, y + i, weight + i if weight != NULL else NULL,
                              delta + i * x.n)
        i += rows
    return total


cdef double loss_of(const Criterion* h, const Block* x, const real* z, const char* y, const real* weight,
                    real* delta) noexcept nogil:
    if h.kind == CROSS_ENTROPY:
        return cross_entropy(h, x, z, <const int64_t*> y, weight, delta)
    return elementwise_loss(h, x, z, <const real*> y, weight, delta)


# --- Dropout: Threefry-2x32-13 (Salmon et al. 2011), a function of key and counter alone ------------------

cdef inline void mix(uint32_t* a, uint32_t* b, int rotation) noexcept nogil:
    a[0] += b[0]
    b[0] = ((b[0] << rotation) | (b[0] >> (32 - rotation))) ^ a[0]


cdef inline void threefry(uint32_t key0, uint32_t key1, uint32_t* a, uint32_t* b) noexcept nogil:
    """Turn the counter (a, b) into two random words, with the key (key0, key1)."""
    cdef uint32_t key2 = <uint32_t> 0x1bd11bda ^ key0 ^ key1
    a[0] += key0
    b[0] += key1
    mix(a, b, 13)
    mix(a, b, 15)
    mix(a, b, 26)
    mix(a, b, 6)
    a[0] += key1
    b[0] += key2 + <uint32_t> 1
    mix(a, b, 17)
    mix(a, b, 29)
    mix(a, b, 16)
    mix(a, b, 24)
    a[0] += key2
    b[0] += key0 + <uint32_t> 2
    mix(a, b, 13)
    mix(a, b, 15)
    mix(a, b, 26)
    mix(a, b, 6)
    a[0] += key0
    b[0] += key1 + <uint32_t> 3
    mix(a, b, 17)


cdef void random_words(uint32_t key0, uint32_t key1, uint64_t group, uint32_t* out) noexcept nogil:
    """The words of a group: first words of GROUP / 2 counters, then second words."""
    cdef uint32_t i, a, b
    cdef uint64_t counter = group * (GROUP // 2)
    cdef uint32_t low = <uint32_t> counter, high = <uint32_t> (counter >> 32)
    for i in range(GROUP // 2):
        a = low + i
        b = high
        threefry(key0, key1, &a, &b)
        out[i] = a
        out[GROUP // 2 + i] = b


cdef void drop(const uint32_t* word, uint32_t threshold, real factor, real* out,
               Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = factor * out[i] if word[i] >= threshold else <real> 0


cdef void drop_block(const Mask* h, const Block* x, Py_ssize_t first, const real* a, real* out) noexcept nogil:
    """Element i of the batch has word i of the stream, whose key is made of the mask's key and the step."""
    cdef uint32_t word[GROUP]
    cdef uint32_t key0 = <uint32_t> h.step, key1 = <uint32_t> (h.step >> 32)
    cdef uint32_t threshold = <uint32_t> min(h.rate * 4294967296.0, 4294967295.0)
    cdef Py_ssize_t start, n, i = first * x.n, end = i + x.rows * x.n
    threefry(<uint32_t> h.key, <uint32_t> (h.key >> 32), &key0, &key1)
    if out != a:
        memcpy(out, a, (end - i) * sizeof(real))
    while i < end:
        start = i % GROUP
        n = min(GROUP - start, end - i)
        random_words(key0, key1, i // GROUP, word)
        drop(word + start, threshold, <real> (1.0 / (1.0 - h.rate)), out, n)
        out += n
        i += n


# --- Vectors -----------------------------------------------------------------------------------------------

ctypedef fused number:
    float
    double
    uint8_t


cdef void convert_numbers(const number* restrict x, real* restrict y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = <real> x[i]


cdef void add_multiple(double factor, const real* restrict x, real* restrict y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef real f = <real> factor
    for i in range(n):
        y[i] += f * x[i]


cdef bint all_finite(const real* x, Py_ssize_t n) noexcept nogil:
    """x - x is not 0 where x is NaN or infinite."""
    cdef Py_ssize_t i
    cdef int bad = 0
    for i in range(n):
        bad |= x[i] - x[i] != <real> 0
    return bad == 0


# --- What is exported ----------------------------------------------------------------------------------------

cdef void forward(int f, const Block* x, const char* b, char* z, char* a) noexcept nogil:
    if x.wide:
        forward_tiles(f, x, <const double*> b, <double*> z, <double*> a)
    else:
        forward_tiles(f, x, <const float*> b, <float*> z, <float*> a)


cdef void backward(int f, const Block* x, const char* z, const char* a, char* delta) noexcept nogil:
    if x.wide:
        apply_backward(f, <const double*> z, <const double*> a, <double*> delta, x.rows * x.n)
    else:
        apply_backward(f, <const float*> z, <const float*> a, <float*> delta, x.rows * x.n)


cdef void column_sums(const Block* x, const char* delta, char* total) noexcept nogil:
    if x.wide:
        add_rows(x, <const double*> delta, <double*> total)
    else:
        add_rows(x, <const float*> delta, <float*> total)


cdef double loss(const Criterion* h, const Block* x, const char* z, const char* y, const char* weight,
                 char* delta) noexcept nogil:
    if x.wide:
        return loss_of(h, x, <const double*> z, y, <const double*> weight, <double*> delta)
    return loss_of(h, x, <const float*> z, y, <const float*> weight, <float*> delta)


cdef void dropout(const Mask* h, const Block* x, Py_ssize_t first, const char* a, char* out) noexcept nogil:
    if x.wide:
        drop_block(h, x, first, <const double*> a, <double*> out)
    else:
        drop_block(h, x, first, <const float*> a, <float*> out)


cdef void normalize_rows(const Block* x, double eps, char* z, char* rstd) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(x.rows):
        if x.wide:
            normalize_row(eps, <double*> z + i * x.n, <double*> rstd + i, x.n)
        else:
            normalize_row(eps, <float*> z + i * x.n, <float*> rstd + i, x.n)


cdef void normalize_rows_backward(const Block* x, const char* z, const char* rstd,
                                  char* delta) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(x.rows):
        if x.wide:
            normalize_row_backward(<const double*> z + i * x.n, (<const double*> rstd)[i],
                                   <double*> delta + i * x.n, x.n)
        else:
            normalize_row_backward(<const float*> z + i * x.n, (<const float*> rstd)[i],
                                   <float*> delta + i * x.n, x.n)


cdef void column_moments(const Block* x, const real* z, real* mean, real* squares) noexcept nogil:
    cdef Py_ssize_t j
    add_rows(x, z, mean)
    for j in range(x.n):
        mean[j] /= <real> x.rows
    add_squares(x, z, mean, squares)


cdef void moments(const Block* x, const char* z, char* mean, char* squares) noexcept nogil:
    if x.wide:
        column_moments(x, <const double*> z, <double*> mean, <double*> squares)
    else:
        column_moments(x, <const float*> z, <float*> mean, <float*> squares)


cdef void normalize_columns(const Block* x, const char* mean, const char* rstd, char* z) noexcept nogil:
    if x.wide:
        center_columns(x, <const double*> mean, <const double*> rstd, <double*> z)
    else:
        center_columns(x, <const float*> mean, <const float*> rstd, <float*> z)


cdef void column_products(const Block* x, const char* z, const char* delta, char* total,
                          char* product) noexcept nogil:
    column_sums(x, delta, total)
    if x.wide:
        add_products(x, <const double*> z, <const double*> delta, <double*> product)
    else:
        add_products(x, <const float*> z, <const float*> delta, <float*> product)


cdef void normalize_columns_backward(const Block* x, const char* z, const char* rstd, const char* total,
                                     const char* product, double count, char* delta) noexcept nogil:
    if x.wide:
        center_columns_backward(x, <const double*> z, <const double*> rstd, <const double*> total,
                                <const double*> product, count, <double*> delta)
    else:
        center_columns_backward(x, <const float*> z, <const float*> rstd, <const float*> total,
                                <const float*> product, count, <float*> delta)


cdef void affine(const Block* x, const char* scale, const char* b, const char* z, char* out) noexcept nogil:
    if x.wide:
        affine_columns(x, <const double*> scale, <const double*> b, <const double*> z, <double*> out)
    else:
        affine_columns(x, <const float*> scale, <const float*> b, <const float*> z, <float*> out)


cdef void rescale(const Block* x, const char* scale, char* delta) noexcept nogil:
    if x.wide:
        scale_columns(x, <const double*> scale, <double*> delta)
    else:
        scale_columns(x, <const float*> scale, <float*> delta)


cdef void add(Py_ssize_t n, bint wide, double factor, const char* x, char* y) noexcept nogil:
    if wide:
        add_multiple(factor, <const double*> x, <double*> y, n)
    else:
        add_multiple(factor, <const float*> x, <float*> y, n)


cdef bint finite(Py_ssize_t n, bint wide, const char* x) noexcept nogil:
    if wide:
        return all_finite(<const double*> x, n)
    return all_finite(<const float*> x, n)


cdef double squares(Py_ssize_t n, bint wide, const char* x) noexcept nogil:
    if wide:
        return row_product(<const double*> x, <const double*> x, n)
    return row_product(<const float*> x, <const float*> x, n)


cdef void convert(Py_ssize_t n, int kind, const char* x, bint wide, char* y) noexcept nogil:
    if kind == 0 and wide:
        convert_numbers(<const float*> x, <double*> y, n)
    elif kind == 0:
        memcpy(y, x, n * sizeof(float))
    elif kind == 1 and wide:
        memcpy(y, x, n * sizeof(double))
    elif kind == 1:
        convert_numbers(<const double*> x, <float*> y, n)
    elif wide:
        convert_numbers(<const uint8_t*> x, <double*> y, n)
    else:
        convert_numbers(<const uint8_t*> x, <float*> y, n)


cdef Layers exported
exported.forward = forward
exported.backward = backward
exported.column_sums = column_sums
exported.loss = loss
exported.dropout = dropout
exported.normalize_rows = normalize_rows
exported.normalize_rows_backward = normalize_rows_backward
exported.moments = moments
exported.normalize_columns = normalize_columns
exported.column_products = column_products
exported.normalize_columns_backward = normalize_columns_backward
exported.affine = affine
exported.rescale = rescale
exported.add = add
exported.finite = finite
exported.squares = squares
exported.convert = convert

LAYERS = PyCapsule_New(&exported, "fastopt.layers", NULL)
