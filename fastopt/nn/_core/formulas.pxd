"""Activations, their derivatives and losses per element. The docstring of a function is its formula."""
from fastopt._core.common cimport real

cdef extern from "fo_math.h" nogil:
    float fo_expf(float x)
    double fo_exp(double x)
    float fo_expm1f(float x)
    double fo_expm1(double x)
    float fo_tanhf(float x)
    double fo_tanh(double x)
    float fo_log1pf(float x)
    double fo_log1p(double x)
    float fo_gaussf(float x)
    double fo_gauss(double x)
    float fo_normalf(float x, float gauss)
    double fo_normal(double x, double gauss)


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


cdef inline real normal_cdf(real x, real* gauss) noexcept nogil:
    """(1 + erf(x / sqrt(2))) / 2; sets gauss = exp(-x x / 2)"""
    if real is float:
        gauss[0] = fo_gaussf(x)
        return fo_normalf(x, gauss[0])
    else:
        gauss[0] = fo_gauss(x)
        return fo_normal(x, gauss[0])


# --- Activations: f(z), and f'(z) as a function of z or of a = f(z) -----------------------------------

cdef inline real relu(real z) noexcept nogil:
    """max(z, 0); NaN propagates"""
    return <real> 0 if z < <real> 0 else z

cdef inline real relu_derivative(real a) noexcept nogil:
    """1 if a > 0, else 0"""
    return <real> 1 if a > <real> 0 else <real> 0


cdef inline real leaky_relu(real z) noexcept nogil:
    """z if z > 0, else 0.01 z"""
    return z * leaky_relu_derivative(z)

cdef inline real leaky_relu_derivative(real a) noexcept nogil:
    """1 if a > 0, else 0.01"""
    return <real> 1 if a > <real> 0 else <real> 0.01


cdef inline real elu(real z) noexcept nogil:
    """z if z > 0, else exp(z) - 1"""
    cdef real negative = expm1(z)
    return z if z > <real> 0 else negative

cdef inline real elu_derivative(real a) noexcept nogil:
    """1 if a > 0, else exp(z) = a + 1"""
    return <real> 1 if a > <real> 0 else a + <real> 1


cdef inline real gelu(real z) noexcept nogil:
    """z (1 + erf(z / sqrt(2))) / 2"""
    cdef real g
    return z * normal_cdf(z, &g)

cdef inline real gelu_derivative(real z) noexcept nogil:
    """(1 + erf(z / sqrt(2))) / 2 + z exp(-z z / 2) / sqrt(2 pi)"""
    cdef real g, cdf = normal_cdf(z, &g)
    return cdf + z * (<real> 0.3989422804014327 * g)


cdef inline real sigmoid(real z) noexcept nogil:
    """1 / (1 + exp(-z))"""
    return <real> 1 / (<real> 1 + exp(-z))

cdef inline real sigmoid_derivative(real a) noexcept nogil:
    """a (1 - a)"""
    return a * (<real> 1 - a)


cdef inline real silu(real z) noexcept nogil:
    """z sigmoid(z)"""
    return z * sigmoid(z)

cdef inline real silu_derivative(real z) noexcept nogil:
    """s + z s (1 - s) with s = sigmoid(z)"""
    cdef real s = sigmoid(z)
    return s + z * sigmoid_derivative(s)


cdef inline real gelu_tanh(real z) noexcept nogil:
    """z sigmoid(2 u) = z (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (z + 0.044715 z^3)"""
    return z * sigmoid(z * (<real> 1.5957691216057308 + <real> 0.07135481627260025 * (z * z)))

cdef inline real gelu_tanh_derivative(real z) noexcept nogil:
    """s + z s (1 - s) 2 u' with s = sigmoid(2 u)"""
    cdef real square = z * z
    cdef real s = sigmoid(z * (<real> 1.5957691216057308 + <real> 0.07135481627260025 * square))
    return s + z * (sigmoid_derivative(s) * (<real> 1.5957691216057308 + <real> 0.21406444881780074 * square))


cdef inline real tanh_derivative(real a) noexcept nogil:
    """1 - a a"""
    return <real> 1 - a * a


# --- Losses of one output: the value, and the derivative with respect to z ------------------------------

cdef inline real binary_cross_entropy(real z, real y, real* derivative) noexcept nogil:
    """log(1 + exp(z)) - y z = max(z, 0) + log(1 + exp(-abs(z))) - y z;  sigmoid(z) - y"""
    cdef real e = exp(z if z < <real> 0 else -z)
    derivative[0] = (e if z < <real> 0 else <real> 1) / (<real> 1 + e) - y
    return relu(z) - y * z + log1p(e)


cdef inline real squared_error(real z, real y, real* derivative) noexcept nogil:
    """(z - y)^2 / 2;  z - y"""
    derivative[0] = z - y
    return <real> 0.5 * (derivative[0] * derivative[0])


cdef inline real huber(real threshold, real z, real y, real* derivative) noexcept nogil:
    """d^2 / 2 with d = z - y, or t (abs(d) - t / 2) if abs(d) exceeds the threshold t;  d clamped to [-t, t]"""
    cdef real d = z - y
    cdef real magnitude = -d if d < <real> 0 else d
    cdef real clamped = magnitude if magnitude < threshold else threshold
    derivative[0] = threshold if d > threshold else (-threshold if d < -threshold else d)
    return clamped * (magnitude - <real> 0.5 * clamped)


cdef inline real pinball(real quantile, real z, real y, real* derivative) noexcept nogil:
    """q (y - z) if y > z, else (1 - q) (z - y);  -q if y > z, 1 - q if y < z, 0 if equal"""
    cdef real d = z - y
    cdef real above = quantile - <real> 1
    cdef real weight = quantile if d < <real> 0 else above
    derivative[0] = d if d == <real> 0 else -weight
    return -weight * d


cdef inline real poisson(real z, real y, real* derivative) noexcept nogil:
    """exp(z) - y z;  exp(z) - y"""
    cdef real e = exp(z)
    derivative[0] = e - y
    return e - y * z
