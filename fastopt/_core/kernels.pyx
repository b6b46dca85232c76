"""The update rules and the one loop over elements.

This file is compiled once per instruction set, as `kernels_base`, `kernels_v3`, `kernels_v4`; `dispatch.py`
picks one. A rule is a struct of its scalars and a function that updates one element: `p` is the parameter,
`g` its gradient, `s`, `t`, `u`, `v` its state, `hp` the scalars. `sweep` is the loop, instantiated for every rule
and for float and double at compile time; `register_kernel` adds it to the table of kernels.

`fastopt.reference` contains the same rules in NumPy, and the results are equal to the last bit. Therefore a
float expression has no literal (Cython would make it double), every scalar is computed in double by the
optimizer and cast once, and the compiler may neither contract nor reorder. The optimizer passes the scalars by
name: the fields of the struct are the keys of `Rule.constants` and `Rule.step_scalars`.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport fabs, fabsf, sqrt, sqrtf
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from fastopt._core.codecs cimport (
    MAX_TILE, fill_noise_table, fo_noise_of_step, load_grad, load_params, load_state, state_base, store_params,
    store_state,
)
from fastopt._core.common cimport fo_prefetch, real
from fastopt._core.span cimport BFLOAT16, Format, MAX_STATES, NATIVE, N_ARRAYS, Kernels, Span, UpdateArgs, itemsize

from fastopt._core.runtime import cpu_is_amd

cdef enum:
    LINE = 64       # bytes of a cache line
    TILE = 128      # elements that all stages of a pass process before the next tile
    ENCODED_TILE = 512          # the same if an array is not NATIVE; a divisor of a segment of the noise
    PREFETCH_DISTANCE = 512     # elements between a prefetch and the use of the tile
    MAX_RULES = 64
    LANES = 16      # partial sums of a norm: enough for the widest registers

# Whether to prefetch tiles of arrays that are all NATIVE. It saves 17 % of the time from DRAM on Intel's
# processors, whose prefetcher stops at each page, and costs 15 to 25 % on AMD's. Steps that decode gain on both.
cdef bint prefetches = not cpu_is_amd()


cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline real max_nan(real x, real y) noexcept nogil:
    """max(x, y); NaN if either is NaN."""
    cdef real z = x if x >= y else y
    return x if x != x else z


cdef inline real max_zero(real x) noexcept nogil:
    """max(x, 0), for a variance that rounding has made negative; NaN if x is NaN."""
    return <real> 0 if x < <real> 0 else x


cdef inline real finite(real x) noexcept nogil:
    """A square, or the largest number if it overflows, as the difference of two infinities is NaN."""
    if real is float:
        return FLT_MAX if x > FLT_MAX else x
    else:
        return DBL_MAX if x > DBL_MAX else x


cdef inline real absolute(real x) noexcept nogil:
    if real is float:
        return fabsf(x)
    else:
        return fabs(x)


cdef inline real sign(real x) noexcept nogil:
    """1 or -1; x itself if it is zero or NaN."""
    cdef real z = <real> 1 if x > <real> 0 else x
    return <real> -1 if x < <real> 0 else z


cdef inline real clamp(real x, real low, real high) noexcept nogil:
    """x limited to [low, high]; NaN if x is NaN, as in `numpy.clip`."""
    cdef real z = low if x < low else x
    return high if z > high else z


cdef inline real same_sign(real x, real y) noexcept nogil:
    """1 if x and y have the same sign and neither is zero, else 0."""
    return <real> 1 if sign(x) * sign(y) > <real> 0 else <real> 0


# --- Update rules, in order of growing complexity -----------------------------------------------------

cdef struct Sgd:
    double lr

cdef inline void sgd(Sgd hp, real* p, real g) noexcept nogil:
    """p = p - lr g"""
    p[0] -= <real> hp.lr * g


cdef struct Momentum:
    double lr, momentum, grad_coef

cdef inline void momentum(Momentum hp, real* p, real g, real* s) noexcept nogil:
    """s = momentum s + grad_coef g;  p = p - lr s"""
    s[0] = <real> hp.momentum * s[0] + <real> hp.grad_coef * g
    p[0] -= <real> hp.lr * s[0]


cdef struct Nesterov:
    double lr, momentum, grad_coef

cdef inline void nesterov(Nesterov hp, real* p, real g, real* s) noexcept nogil:
    """s = momentum s + grad_coef g;  p = p - lr (grad_coef g + momentum s)"""
    cdef real d = <real> hp.grad_coef * g
    s[0] = <real> hp.momentum * s[0] + d
    p[0] -= <real> hp.lr * (d + <real> hp.momentum * s[0])


cdef struct ApplyUpdate:
    double decay_factor, lr

cdef inline void apply_update(ApplyUpdate hp, real* p, real g) noexcept nogil:
    """p = decay_factor p - lr g"""
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * g


cdef struct SignSgd:
    double decay_factor, lr

cdef inline void sign_sgd(SignSgd hp, real* p, real g) noexcept nogil:
    """p = decay_factor p - lr sign(g)"""
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * sign(g)


cdef struct Signum:
    double decay_factor, lr, momentum, one_minus_momentum

cdef inline void signum(Signum hp, real* p, real g, real* s) noexcept nogil:
    """s = momentum s + (1 - momentum) g;  p = decay_factor p - lr sign(s)"""
    s[0] = <real> hp.momentum * s[0] + <real> hp.one_minus_momentum * g
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * sign(s[0])


cdef struct Lion:
    double decay_factor, beta1, one_minus_beta1, beta2, one_minus_beta2, lr

cdef inline void lion(Lion hp, real* p, real g, real* s) noexcept nogil:
    """d = beta1 s + (1 - beta1) g;  s = beta2 s + (1 - beta2) g;  p = decay_factor p - lr sign(d)"""
    cdef real d = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    s[0] = <real> hp.beta2 * s[0] + <real> hp.one_minus_beta2 * g
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * sign(d)


cdef struct Asgd:
    double decay_factor, lr, average_decay, one_minus_average_decay

cdef inline void asgd(Asgd hp, real* p, real g, real* s) noexcept nogil:
    """p = decay_factor p - lr g;  s = average_decay s + (1 - average_decay) p"""
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * g
    s[0] = <real> hp.average_decay * s[0] + <real> hp.one_minus_average_decay * p[0]


cdef struct Rprop:
    double eta_minus, eta_plus, min_step, max_step, first_step

cdef inline void rprop(Rprop hp, real* p, real g, real* s, real* t) noexcept nogil:
    """t = clamp(eta t + first_step, min_step, max_step), eta by the sign of g s;  s = g or 0;
    p = p - t sign(s)"""
    cdef real sign_product = sign(g) * sign(s[0])
    cdef real eta = <real> hp.eta_plus if sign_product > <real> 0 else <real> 1
    eta = <real> hp.eta_minus if sign_product < <real> 0 else eta
    t[0] = clamp(eta * t[0] + <real> hp.first_step, <real> hp.min_step, <real> hp.max_step)
    s[0] = <real> 0 if sign_product < <real> 0 else g
    p[0] -= t[0] * sign(s[0])


cdef struct Adagrad:
    double eps, eps_root, lr

cdef inline void adagrad(Adagrad hp, real* p, real g, real* s) noexcept nogil:
    """s = s + g g;  p = p - lr g / (sqrt(s + eps_root) + eps)"""
    s[0] += g * g
    p[0] -= <real> hp.lr * g / (root(s[0] + <real> hp.eps_root) + <real> hp.eps)


cdef struct RowwiseAdagrad:
    double row_sum, eps, eps_root, lr   # row_sum is set per row

cdef inline void measure_rowwise_adagrad(RowwiseAdagrad hp, real g, double* x, double* y) noexcept nogil:
    """x = g g"""
    x[0] = <double> g * <double> g
    y[0] = 0.0

cdef inline void rowwise_adagrad(RowwiseAdagrad hp, real* p, real g) noexcept nogil:
    """p = p - lr g / (sqrt(row_sum + eps_root) + eps), after row_sum = row_sum + mean of x over the row"""
    p[0] -= <real> hp.lr * g / (root(<real> hp.row_sum + <real> hp.eps_root) + <real> hp.eps)


cdef struct Adadelta:
    double lr, rho, one_minus_rho, eps

cdef inline void adadelta(Adadelta hp, real* p, real g, real* s, real* t) noexcept nogil:
    """s = rho s + (1 - rho) g g;  d = sqrt(t + eps) / sqrt(s + eps) g;  t as s, of d;  p = p - lr d"""
    cdef real d
    s[0] = <real> hp.rho * s[0] + <real> hp.one_minus_rho * (g * g)
    d = root(t[0] + <real> hp.eps) / root(s[0] + <real> hp.eps) * g
    t[0] = <real> hp.rho * t[0] + <real> hp.one_minus_rho * (d * d)
    p[0] -= <real> hp.lr * d


cdef struct Ftrl:
    double inverse_lr, beta, l1, l2

cdef inline void ftrl(Ftrl hp, real* p, real g, real* s, real* t) noexcept nogil:
    """s = s + g g;  t = t + g - (sqrt(s) - sqrt(s before)) / lr p;
    p = (clamp(t, -l1, l1) - t) / ((beta + sqrt(s)) / lr + l2)"""
    cdef real old = root(s[0]), new
    s[0] = finite(s[0] + g * g)
    new = root(s[0])
    t[0] = t[0] + g - (new - old) * <real> hp.inverse_lr * p[0]
    p[0] = (clamp(t[0], <real> -hp.l1, <real> hp.l1) - t[0]) / (
        (<real> hp.beta + new) * <real> hp.inverse_lr + <real> hp.l2)


cdef struct Rmsprop:
    double lr, alpha, one_minus_alpha, eps, eps_root

cdef inline void rmsprop(Rmsprop hp, real* p, real g, real* s) noexcept nogil:
    """s = alpha s + (1 - alpha) g g;  p = p - lr g / (sqrt(s + eps_root) + eps)"""
    s[0] = <real> hp.alpha * s[0] + <real> hp.one_minus_alpha * (g * g)
    p[0] -= <real> hp.lr * g / (root(s[0] + <real> hp.eps_root) + <real> hp.eps)


cdef struct RmspropMomentum:
    double lr, alpha, one_minus_alpha, eps, eps_root, momentum, grad_coef

cdef inline void rmsprop_momentum(RmspropMomentum hp, real* p, real g, real* s, real* t) noexcept nogil:
    """s as in rmsprop;  t = momentum t + grad_coef g / (sqrt(s + eps_root) + eps);  p = p - lr t"""
    s[0] = <real> hp.alpha * s[0] + <real> hp.one_minus_alpha * (g * g)
    t[0] = <real> hp.momentum * t[0] + <real> hp.grad_coef * g / (root(s[0] + <real> hp.eps_root) + <real> hp.eps)
    p[0] -= <real> hp.lr * t[0]


cdef struct RmspropCentered:
    double lr, alpha, one_minus_alpha, eps, eps_root

cdef inline void rmsprop_centered(RmspropCentered hp, real* p, real g, real* s, real* t) noexcept nogil:
    """s, t averages of g g and g;  p = p - lr g / (sqrt(max(s - t t, 0) + eps_root) + eps)"""
    s[0] = <real> hp.alpha * s[0] + <real> hp.one_minus_alpha * (g * g)
    t[0] = <real> hp.alpha * t[0] + <real> hp.one_minus_alpha * g
    p[0] -= <real> hp.lr * g / (root(max_zero(s[0] - finite(t[0] * t[0])) + <real> hp.eps_root) + <real> hp.eps)


cdef struct RmspropCenteredMomentum:
    double lr, alpha, one_minus_alpha, eps, eps_root, momentum, grad_coef

cdef inline void rmsprop_centered_momentum(RmspropCenteredMomentum hp, real* p, real g,
                                           real* s, real* t, real* u) noexcept nogil:
    """s, t as in rmsprop_centered;  u = momentum u + grad_coef g / (sqrt(...) + eps);  p = p - lr u"""
    cdef real d = <real> hp.grad_coef * g
    s[0] = <real> hp.alpha * s[0] + <real> hp.one_minus_alpha * (g * g)
    t[0] = <real> hp.alpha * t[0] + <real> hp.one_minus_alpha * g
    u[0] = <real> hp.momentum * u[0] + d / (
        root(max_zero(s[0] - finite(t[0] * t[0])) + <real> hp.eps_root) + <real> hp.eps)
    p[0] -= <real> hp.lr * u[0]


cdef struct Adam:
    double decay_factor, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, lr, denom_scale

cdef inline void adam(Adam hp, real* p, real g, real* s, real* t) noexcept nogil:
    """s = beta1 s + (1 - beta1) g;  t = beta2 t + (1 - beta2) g g;
    p = decay_factor p - lr s / (denom_scale sqrt(t) + eps)"""
    s[0] = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    t[0] = <real> hp.beta2 * t[0] + <real> hp.one_minus_beta2 * (g * g)
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * s[0] / (
        <real> hp.denom_scale * root(t[0]) + <real> hp.eps)


cdef struct Amsgrad:
    double decay_factor, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, lr, denom_scale, bias_correction2

cdef inline void amsgrad(Amsgrad hp, real* p, real g, real* s, real* t, real* u) noexcept nogil:
    """s, t as in adam;  u = max(u, bias_correction2 t);
    p = decay_factor p - lr s / (denom_scale sqrt(u) + eps)"""
    s[0] = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    t[0] = <real> hp.beta2 * t[0] + <real> hp.one_minus_beta2 * (g * g)
    u[0] = max_nan(u[0], <real> hp.bias_correction2 * t[0])
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * s[0] / (
        <real> hp.denom_scale * root(u[0]) + <real> hp.eps)


cdef struct Adamax:
    double decay_factor, beta1, one_minus_beta1, beta2, eps, eps_denom, lr

cdef inline void adamax(Adamax hp, real* p, real g, real* s, real* t) noexcept nogil:
    """s = beta1 s + (1 - beta1) g;  t = max(beta2 t, |g| + eps);  p = decay_factor p - lr s / (t + eps_denom)"""
    s[0] = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    t[0] = max_nan(<real> hp.beta2 * t[0], absolute(g) + <real> hp.eps)
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * s[0] / (t[0] + <real> hp.eps_denom)


cdef struct Nadam:
    double decay_factor, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, grad_lr, momentum_lr, denom_scale

cdef inline void nadam(Nadam hp, real* p, real g, real* s, real* t) noexcept nogil:
    """s, t as in adam;  p = decay_factor p - (grad_lr g + momentum_lr s) / (denom_scale sqrt(t) + eps)"""
    s[0] = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    t[0] = <real> hp.beta2 * t[0] + <real> hp.one_minus_beta2 * (g * g)
    p[0] = <real> hp.decay_factor * p[0] - (<real> hp.grad_lr * g + <real> hp.momentum_lr * s[0]) / (
        <real> hp.denom_scale * root(t[0]) + <real> hp.eps)


cdef struct Radam:
    double decay_factor, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, lr, denom_scale

cdef inline void radam(Radam hp, real* p, real g, real* s, real* t) noexcept nogil:
    """s, t, p as in adam; sqrt(t), which may be infinite, is not multiplied by a denom_scale of 0"""
    cdef real d
    s[0] = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    t[0] = <real> hp.beta2 * t[0] + <real> hp.one_minus_beta2 * (g * g)
    d = <real> hp.denom_scale * root(t[0]) if hp.denom_scale > 0 else <real> 0
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * s[0] / (d + <real> hp.eps)


cdef struct Adabelief:
    double decay_factor, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, lr, denom_scale

cdef inline void adabelief(Adabelief hp, real* p, real g, real* s, real* t) noexcept nogil:
    """s as in adam;  t = beta2 t + (1 - beta2) (g - s)^2 + eps;
    p = decay_factor p - lr s / (denom_scale sqrt(t) + eps)"""
    cdef real d
    s[0] = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    d = g - s[0]
    t[0] = <real> hp.beta2 * t[0] + <real> hp.one_minus_beta2 * (d * d) + <real> hp.eps
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * s[0] / (
        <real> hp.denom_scale * root(t[0]) + <real> hp.eps)


cdef struct Yogi:
    double decay_factor, beta1, one_minus_beta1, one_minus_beta2, eps, lr, denom_scale

cdef inline void yogi(Yogi hp, real* p, real g, real* s, real* t) noexcept nogil:
    """s as in adam;  t = t - (1 - beta2) sign(t - g g) g g;
    p = decay_factor p - lr s / (denom_scale sqrt(t) + eps)"""
    cdef real d = finite(g * g)
    s[0] = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    t[0] -= <real> hp.one_minus_beta2 * (sign(t[0] - d) * d)
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * s[0] / (
        <real> hp.denom_scale * root(t[0]) + <real> hp.eps)


cdef struct Adopt:
    double eps, beta1, one_minus_beta1, decay_factor, beta2, one_minus_beta2, clip, lr

cdef inline void adopt(Adopt hp, real* p, real g, real* s, real* t) noexcept nogil:
    """s = beta1 s + (1 - beta1) clamp(g / max(sqrt(t), eps));  t = beta2 t + (1 - beta2) g g;
    p = decay_factor p - lr s"""
    cdef real d = clamp(g / max_nan(root(t[0]), <real> hp.eps), <real> -hp.clip, <real> hp.clip)
    s[0] = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * d
    t[0] = <real> hp.beta2 * t[0] + <real> hp.one_minus_beta2 * (g * g)
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * s[0]


cdef struct Ademamix:
    double decay_factor, beta1, one_minus_beta1, beta2, one_minus_beta2, eps
    double beta3, one_minus_beta3, lr_fast, lr_slow, denom_scale

cdef inline void ademamix(Ademamix hp, real* p, real g, real* s, real* t, real* u) noexcept nogil:
    """s, t fast and slow averages of g, u of g g;
    p = decay_factor p - (lr_fast s + lr_slow t) / (denom_scale sqrt(u) + eps)"""
    s[0] = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    t[0] = <real> hp.beta3 * t[0] + <real> hp.one_minus_beta3 * g
    u[0] = <real> hp.beta2 * u[0] + <real> hp.one_minus_beta2 * (g * g)
    p[0] = <real> hp.decay_factor * p[0] - (<real> hp.lr_fast * s[0] + <real> hp.lr_slow * t[0]) / (
        <real> hp.denom_scale * root(u[0]) + <real> hp.eps)


cdef struct Adan:
    double beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3
    double eps, decay_factor, has_prev, lr, lr_diff, denom_scale

cdef inline void adan(Adan hp, real* p, real g, real* s, real* t, real* u, real* v) noexcept nogil:
    """d = g - v;  s, t, u averages of g, d, (g + beta2 d)^2;  v = g;
    p = decay_factor p - (lr s + lr_diff t) / (denom_scale sqrt(u) + eps)"""
    cdef real d = <real> hp.has_prev * (g - v[0])
    cdef real e = g + <real> hp.beta2 * d
    s[0] = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    t[0] = <real> hp.beta2 * t[0] + <real> hp.one_minus_beta2 * d
    u[0] = <real> hp.beta3 * u[0] + <real> hp.one_minus_beta3 * (e * e)
    v[0] = g
    p[0] = <real> hp.decay_factor * p[0] - (<real> hp.lr * s[0] + <real> hp.lr_diff * t[0]) / (
        <real> hp.denom_scale * root(u[0]) + <real> hp.eps)


cdef struct ScheduleFree:
    double is_first, y_coef, z_coef, grad_coef, lr

cdef inline void schedule_free(ScheduleFree hp, real* p, real g, real* s) noexcept nogil:
    """p = y_coef p + z_coef s + grad_coef g;  s = s - lr g.  The first s is p."""
    cdef real z = p[0] if <real> hp.is_first != <real> 0 else s[0]
    p[0] = <real> hp.y_coef * p[0] + <real> hp.z_coef * z + <real> hp.grad_coef * g
    s[0] = z - <real> hp.lr * g


cdef struct ScheduleFreeAdam:
    double beta2, one_minus_beta2, eps, weight_decay, denom_scale, is_first, y_coef, z_coef, grad_coef, lr

cdef inline void schedule_free_adam(ScheduleFreeAdam hp, real* p, real g, real* s, real* t) noexcept nogil:
    """t = beta2 t + (1 - beta2) g g;  d = g / (denom_scale sqrt(t) + eps) + weight_decay p;
    p, s as in schedule_free, by d"""
    cdef real z = p[0] if <real> hp.is_first != <real> 0 else s[0]
    cdef real d
    t[0] = <real> hp.beta2 * t[0] + <real> hp.one_minus_beta2 * (g * g)
    d = g / (<real> hp.denom_scale * root(t[0]) + <real> hp.eps) + <real> hp.weight_decay * p[0]
    p[0] = <real> hp.y_coef * p[0] + <real> hp.z_coef * z + <real> hp.grad_coef * d
    s[0] = z - <real> hp.lr * d


# --- Two-pass rules. The first pass, `measure_...`, yields two terms x, y; the optimizer computes scalars of
# --- the second pass from their sums over an array -------------------------------------------------------

cdef struct Lars:
    double momentum, weight_decay, grad_coef

cdef inline void measure_lars(Lars hp, real p, real g, double* x, double* y) noexcept nogil:
    """x = p p;  y = g g"""
    x[0] = <double> p * <double> p
    y[0] = <double> g * <double> g

cdef inline void lars(Lars hp, real* p, real g, real* s) noexcept nogil:
    """s = momentum s + grad_coef (g + weight_decay p);  p = p - s"""
    s[0] = <real> hp.momentum * s[0] + <real> hp.grad_coef * (g + <real> hp.weight_decay * p[0])
    p[0] -= s[0]


cdef struct Lamb:
    double beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, momentum_scale, denom_scale, lr

cdef inline real lamb_update(Lamb hp, real p, real s, real t) noexcept nogil:
    return <real> hp.momentum_scale * s / (
        <real> hp.denom_scale * root(t) + <real> hp.eps) + <real> hp.weight_decay * p

cdef inline void measure_lamb(Lamb hp, real p, real g, real* s, real* t, double* x, double* y) noexcept nogil:
    """s, t as in adam;  d = momentum_scale s / (denom_scale sqrt(t) + eps) + weight_decay p;  x = p p;  y = d d"""
    cdef double d
    s[0] = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    t[0] = <real> hp.beta2 * t[0] + <real> hp.one_minus_beta2 * (g * g)
    d = <double> lamb_update(hp, p, s[0], t[0])
    x[0] = <double> p * <double> p
    y[0] = d * d

cdef inline void lamb(Lamb hp, real* p, real s, real t) noexcept nogil:
    """p = p - lr d"""
    p[0] -= <real> hp.lr * lamb_update(hp, p[0], s, t)


cdef struct Prodigy:
    double beta1, grad_coef, beta2, grad_sq_coef, beta3, s_coef, is_first, decay_factor, eps, lr

cdef inline void measure_prodigy(Prodigy hp, real p, real g, real* s, real* t, real* u, real* v,
                                 double* x, double* y) noexcept nogil:
    """s = beta1 s + grad_coef g;  t = beta2 t + grad_sq_coef g g;  u = beta3 u + s_coef g;
     x = g (v - p);  y = |u|.  The first v is p."""
    v[0] = p if <real> hp.is_first != <real> 0 else v[0]
    s[0] = <real> hp.beta1 * s[0] + <real> hp.grad_coef * g
    t[0] = <real> hp.beta2 * t[0] + <real> hp.grad_sq_coef * (g * g)
    u[0] = <real> hp.beta3 * u[0] + <real> hp.s_coef * g
    x[0] = <double> g * (<double> v[0] - <double> p)
    y[0] = fabs(<double> u[0])

cdef inline void prodigy(Prodigy hp, real* p, real s, real t) noexcept nogil:
    """p = decay_factor p - lr s / (sqrt(t) + eps)"""
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * s / (root(t) + <real> hp.eps)


cdef struct CautiousAdam:
    double decay_factor, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, lr, denom_scale

cdef inline void measure_cautious_adam(CautiousAdam hp, real g, real* s, real* t,
                                       double* x, double* y) noexcept nogil:
    """s, t as in adam;  x = same_sign(s, g)"""
    s[0] = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    t[0] = <real> hp.beta2 * t[0] + <real> hp.one_minus_beta2 * (g * g)
    x[0] = <double> same_sign(s[0], g)
    y[0] = 0.0

cdef inline void cautious_adam(CautiousAdam hp, real* p, real g, real s, real t) noexcept nogil:
    """p = decay_factor p - lr s / (denom_scale sqrt(t) + eps) same_sign(s, g)"""
    cdef real d = <real> hp.lr * s / (<real> hp.denom_scale * root(t) + <real> hp.eps)
    p[0] = <real> hp.decay_factor * p[0] - d * same_sign(s, g)


cdef struct CautiousLion:
    double decay_factor, beta1, one_minus_beta1, beta2, one_minus_beta2, lr

cdef inline void measure_cautious_lion(CautiousLion hp, real g, real s, double* x, double* y) noexcept nogil:
    """x = same_sign(d of lion, g)"""
    x[0] = <double> same_sign(<real> hp.beta1 * s + <real> hp.one_minus_beta1 * g, g)
    y[0] = 0.0

cdef inline void cautious_lion(CautiousLion hp, real* p, real g, real* s) noexcept nogil:
    """d, s as in lion;  p = decay_factor p - lr sign(d) same_sign(d, g)"""
    cdef real d = <real> hp.beta1 * s[0] + <real> hp.one_minus_beta1 * g
    s[0] = <real> hp.beta2 * s[0] + <real> hp.one_minus_beta2 * g
    p[0] = <real> hp.decay_factor * p[0] - <real> hp.lr * sign(d) * same_sign(d, g)


# --- The one loop ----------------------------------------------------------------------------------

ctypedef fused rule:
    Sgd
    Momentum
    Nesterov
    ApplyUpdate
    SignSgd
    Signum
    Lion
    Asgd
    Rprop
    Adagrad
    RowwiseAdagrad
    Adadelta
    Ftrl
    Rmsprop
    RmspropMomentum
    RmspropCentered
    RmspropCenteredMomentum
    Adam
    Amsgrad
    Adamax
    Nadam
    Radam
    Adabelief
    Yogi
    Adopt
    Ademamix
    Adan
    ScheduleFree
    ScheduleFreeAdam
    Lars
    Lamb
    Prodigy
    CautiousAdam
    CautiousLion

cdef void sweep(const rule* scalars, real* restrict p, const real* restrict g, real* restrict s,
                real* restrict t, real* restrict u, real* restrict v, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef rule hp = scalars[0]
    for i in range(n):
        if rule is Sgd:
            sgd(hp, p + i, g[i])
        elif rule is Momentum:
            momentum(hp, p + i, g[i], s + i)
        elif rule is Nesterov:
            nesterov(hp, p + i, g[i], s + i)
        elif rule is ApplyUpdate:
            apply_update(hp, p + i, g[i])
        elif rule is SignSgd:
            sign_sgd(hp, p + i, g[i])
        elif rule is Signum:
            signum(hp, p + i, g[i], s + i)
        elif rule is Lion:
            lion(hp, p + i, g[i], s + i)
        elif rule is Asgd:
            asgd(hp, p + i, g[i], s + i)
        elif rule is Rprop:
            rprop(hp, p + i, g[i], s + i, t + i)
        elif rule is Adagrad:
            adagrad(hp, p + i, g[i], s + i)
        elif rule is RowwiseAdagrad:
            rowwise_adagrad(hp, p + i, g[i])
        elif rule is Adadelta:
            adadelta(hp, p + i, g[i], s + i, t + i)
        elif rule is Ftrl:
            ftrl(hp, p + i, g[i], s + i, t + i)
        elif rule is Rmsprop:
            rmsprop(hp, p + i, g[i], s + i)
        elif rule is RmspropMomentum:
            rmsprop_momentum(hp, p + i, g[i], s + i, t + i)
        elif rule is RmspropCentered:
            rmsprop_centered(hp, p + i, g[i], s + i, t + i)
        elif rule is RmspropCenteredMomentum:
            rmsprop_centered_momentum(hp, p + i, g[i], s + i, t + i, u + i)
        elif rule is Adam:
            adam(hp, p + i, g[i], s + i, t + i)
        elif rule is Amsgrad:
            amsgrad(hp, p + i, g[i], s + i, t + i, u + i)
        elif rule is Adamax:
            adamax(hp, p + i, g[i], s + i, t + i)
        elif rule is Nadam:
            nadam(hp, p + i, g[i], s + i, t + i)
        elif rule is Radam:
            radam(hp, p + i, g[i], s + i, t + i)
        elif rule is Adabelief:
            adabelief(hp, p + i, g[i], s + i, t + i)
        elif rule is Yogi:
            yogi(hp, p + i, g[i], s + i, t + i)
        elif rule is Adopt:
            adopt(hp, p + i, g[i], s + i, t + i)
        elif rule is Ademamix:
            ademamix(hp, p + i, g[i], s + i, t + i, u + i)
        elif rule is Adan:
            adan(hp, p + i, g[i], s + i, t + i, u + i, v + i)
        elif rule is ScheduleFree:
            schedule_free(hp, p + i, g[i], s + i)
        elif rule is ScheduleFreeAdam:
            schedule_free_adam(hp, p + i, g[i], s + i, t + i)
        elif rule is Lars:
            lars(hp, p + i, g[i], s + i)
        elif rule is Lamb:
            lamb(hp, p + i, s[i], t[i])
        elif rule is Prodigy:
            prodigy(hp, p + i, s[i], t[i])
        elif rule is CautiousAdam:
            cautious_adam(hp, p + i, g[i], s[i], t[i])
        else:
            cautious_lion(hp, p + i, g[i], s + i)

# The first passes.
ctypedef fused two_pass_rule:
    RowwiseAdagrad
    Lars
    Lamb
    Prodigy
    CautiousAdam
    CautiousLion

cdef void measure(const two_pass_rule* scalars, const real* restrict p, const real* restrict g, real* restrict s,
                  real* restrict t, real* restrict u, real* restrict v, double* restrict x,
                  double* restrict y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef two_pass_rule hp = scalars[0]
    for i in range(n):
        if two_pass_rule is RowwiseAdagrad:
            measure_rowwise_adagrad(hp, g[i], x + i, y + i)
        elif two_pass_rule is Lars:
            measure_lars(hp, p[i], g[i], x + i, y + i)
        elif two_pass_rule is Lamb:
            measure_lamb(hp, p[i], g[i], s + i, t + i, x + i, y + i)
        elif two_pass_rule is Prodigy:
            measure_prodigy(hp, p[i], g[i], s + i, t + i, u + i, v + i, x + i, y + i)
        elif two_pass_rule is CautiousAdam:
            measure_cautious_adam(hp, g[i], s + i, t + i, x + i, y + i)
        else:
            measure_cautious_lion(hp, g[i], s[i], x + i, y + i)


# --- The table of kernels --------------------------------------------------------------------------

ctypedef void (*SweepF32)(const void* scalars, float* p, const float* g, float* s, float* t, float* u,
                          float* v, Py_ssize_t n) noexcept nogil
ctypedef void (*SweepF64)(const void* scalars, double* p, const double* g, double* s, double* t, double* u,
                          double* v, Py_ssize_t n) noexcept nogil
ctypedef void (*MeasureF32)(const void* scalars, const float* p, const float* g, float* s, float* t, float* u,
                            float* v, double* x, double* y, Py_ssize_t n) noexcept nogil
ctypedef void (*MeasureF64)(const void* scalars, const double* p, const double* g, double* s, double* t,
                            double* u, double* v, double* x, double* y, Py_ssize_t n) noexcept nogil

cdef struct Loops:
    # The loops of one kernel; `measure` is NULL if it has one pass.
    SweepF32 sweep_f32
    SweepF64 sweep_f64
    MeasureF32 measure_f32
    MeasureF64 measure_f64

cdef Loops loops[MAX_RULES]

KERNEL_INDEX = {}
"""Index of each kernel by name, as in `UpdateArgs.kernel`."""

FIELDS = {}
"""Names of each kernel's scalars, in the order of its struct."""

TWO_PASS = set()
"""Names of the kernels with two passes."""

ROWWISE = set()
"""Names of those whose first pass is over a row, and whose first scalar is the sum stored for it."""


cdef int register_kernel(str name, const rule* kind) except -1:
    cdef int k = len(KERNEL_INDEX)
    cdef rule scalars
    if k == MAX_RULES:
        raise ImportError(f"there is room for {MAX_RULES} rules")
    memset(&scalars, 0, sizeof(scalars))
    loops[k].sweep_f32 = <SweepF32> sweep[rule, float]
    loops[k].sweep_f64 = <SweepF64> sweep[rule, double]
    KERNEL_INDEX[name] = k
    FIELDS[name] = tuple(<dict> scalars)
    return 0


cdef int register_reduction(str name, const two_pass_rule* kind, set names) except -1:
    cdef int k = KERNEL_INDEX[name]
    loops[k].measure_f32 = <MeasureF32> measure[two_pass_rule, float]
    loops[k].measure_f64 = <MeasureF64> measure[two_pass_rule, double]
    names.add(name)
    return 0


register_kernel("sgd", <Sgd*> NULL)
register_kernel("momentum", <Momentum*> NULL)
register_kernel("nesterov", <Nesterov*> NULL)
register_kernel("apply_update", <ApplyUpdate*> NULL)
register_kernel("sign_sgd", <SignSgd*> NULL)
register_kernel("signum", <Signum*> NULL)
register_kernel("lion", <Lion*> NULL)
register_kernel("asgd", <Asgd*> NULL)
register_kernel("rprop", <Rprop*> NULL)
register_kernel("adagrad", <Adagrad*> NULL)
register_kernel("rowwise_adagrad", <RowwiseAdagrad*> NULL)
register_kernel("adadelta", <Adadelta*> NULL)
register_kernel("ftrl", <Ftrl*> NULL)
register_kernel("rmsprop", <Rmsprop*> NULL)
register_kernel("rmsprop_momentum", <RmspropMomentum*> NULL)
register_kernel("rmsprop_centered", <RmspropCentered*> NULL)
register_kernel("rmsprop_centered_momentum", <RmspropCenteredMomentum*> NULL)
register_kernel("adam", <Adam*> NULL)
register_kernel("amsgrad", <Amsgrad*> NULL)
register_kernel("adamax", <Adamax*> NULL)
register_kernel("nadam", <Nadam*> NULL)
register_kernel("radam", <Radam*> NULL)
register_kernel("adabelief", <Adabelief*> NULL)
register_kernel("yogi", <Yogi*> NULL)
register_kernel("adopt", <Adopt*> NULL)
register_kernel("ademamix", <Ademamix*> NULL)
register_kernel("adan", <Adan*> NULL)
register_kernel("schedule_free", <ScheduleFree*> NULL)
register_kernel("schedule_free_adam", <ScheduleFreeAdam*> NULL)
register_kernel("lars", <Lars*> NULL)
register_kernel("lamb", <Lamb*> NULL)
register_kernel("prodigy", <Prodigy*> NULL)
register_kernel("cautious_adam", <CautiousAdam*> NULL)
register_kernel("cautious_lion", <CautiousLion*> NULL)
register_reduction("rowwise_adagrad", <RowwiseAdagrad*> NULL, ROWWISE)
register_reduction("lars", <Lars*> NULL, TWO_PASS)
register_reduction("lamb", <Lamb*> NULL, TWO_PASS)
register_reduction("prodigy", <Prodigy*> NULL, TWO_PASS)
register_reduction("cautious_adam", <CautiousAdam*> NULL, TWO_PASS)
register_reduction("cautious_lion", <CautiousLion*> NULL, TWO_PASS)


# --- A pass over one tile: transform the gradient, apply the rule, average, zero ------------------------

cdef inline bint is_two_pass(const UpdateArgs* args) noexcept nogil:
    """Whether the kernel has two passes; the first one then applies `decay_factor` to NATIVE parameters."""
    return loops[args.kernel].measure_f64 != NULL


cdef inline real* at(char* base, Py_ssize_t i, real* kind) noexcept nogil:
    """Address of element i, or NULL for no array; `kind` only selects float or double."""
    return <real*> base + i if base != NULL else NULL


cdef struct Buffers:
    # Elements of a tile: decoded parameter and state, gradient in another dtype and after its transformation,
    # terms of the sums of a first pass. Every array begins on a cache line if the structure does.
    float p[MAX_TILE]
    float states[MAX_STATES][MAX_TILE]
    double converted[MAX_TILE]
    double transformed[MAX_TILE]
    double x[MAX_TILE]
    double y[MAX_TILE]


cdef struct Memory:
    Buffers buffers
    char room[LINE]


cdef inline Buffers* aligned(Memory* memory) noexcept nogil:
    """Buffers in this memory that begin on a cache line: access across lines takes twice as long."""
    return <Buffers*> (<char*> memory + (-<Py_ssize_t> memory & LINE - 1))


cdef struct Tile:
    # Addresses of the elements of a tile as the kernels compute with them: in the arrays, or in buffers.
    char* p
    char* s
    char* t
    char* u
    char* v
    char* w
    char* e


cdef inline void locate(const Span* x, Py_ssize_t lo, Tile* tile, real* kind) noexcept nogil:
    """Set the addresses of a tile that begins at element lo of arrays that are all NATIVE."""
    tile.p = <char*> at(x.p, lo, kind)
    tile.s = <char*> at(x.s, lo, kind)
    tile.t = <char*> at(x.t, lo, kind)
    tile.u = <char*> at(x.u, lo, kind)
    tile.v = <char*> at(x.v, lo, kind)
    tile.w = <char*> at(x.w, lo, kind)
    tile.e = <char*> at(x.e, lo, kind)


cdef inline void apply(const UpdateArgs* args, const Tile* tile, const real* g, Py_ssize_t n) noexcept nogil:
    """Apply the rule to the n elements of a tile whose gradient is g."""
    if real is float:
        loops[args.kernel].sweep_f32(
            &args.scalars[0], <float*> tile.p, g, <float*> tile.s, <float*> tile.t, <float*> tile.u,
            <float*> tile.v, n)
    else:
        loops[args.kernel].sweep_f64(
            &args.scalars[0], <double*> tile.p, g, <double*> tile.s, <double*> tile.t, <double*> tile.u,
            <double*> tile.v, n)


cdef inline void measure_elements(const UpdateArgs* args, const Tile* tile, const real* g, double* x, double* y,
                                  Py_ssize_t n) noexcept nogil:
    """First pass of a two-pass rule over the n elements of a tile."""
    if real is float:
        loops[args.kernel].measure_f32(
            &args.scalars[0], <float*> tile.p, g, <float*> tile.s, <float*> tile.t, <float*> tile.u,
            <float*> tile.v, x, y, n)
    else:
        loops[args.kernel].measure_f64(
            &args.scalars[0], <double*> tile.p, g, <double*> tile.s, <double*> tile.t, <double*> tile.u,
            <double*> tile.v, x, y, n)


cdef void scale_shift(const real* restrict scale, const real* restrict shift, real* restrict x,
                      Py_ssize_t n) noexcept nogil:
    """x = scale x - shift, for consecutive units"""
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = scale[i] * x[i] - shift[i]


cdef void scale_shift_units(const Span* span, real* x, Py_ssize_t lo, Py_ssize_t n) noexcept nogil:
    """Apply `scale_shift` to x, elements [lo, lo + n) of a span."""
    cdef const real* scale = <const real*> span.unit_scale
    cdef const real* shift = <const real*> span.unit_shift
    cdef Py_ssize_t done = 0, unit = lo % span.n_units, count, i
    if span.unit_stride != 1:
        for i in range(n):
            unit = (lo + i) // span.unit_stride % span.n_units
            x[i] = scale[unit] * x[i] - shift[unit]
        return
    while done < n:
        count = min(span.n_units - unit, n - done)
        scale_shift(scale + unit, shift + unit, x + done, count)
        done += count
        unit = 0


cdef void transform_grad(const UpdateArgs* args, const Span* span, Py_ssize_t lo, real* restrict out,
                         const real* restrict g, const real* restrict p, Py_ssize_t n) noexcept nogil:
    """out = clamp(grad_scale g), then scaled and shifted per unit, + l2_decay p"""
    cdef Py_ssize_t i
    cdef real scale = <real> args.grad_scale, low = <real> -args.clip, high = <real> args.clip
    cdef real decay = <real> args.l2_decay
    for i in range(n):
        out[i] = clamp(scale * g[i], low, high)
    if span.unit_scale != NULL:
        scale_shift_units(span, out, lo, n)
    if decay != <real> 0:
        for i in range(n):
            out[i] += decay * p[i]


cdef void update_average(double weight, real* restrict e, const real* restrict p, Py_ssize_t n) noexcept nogil:
    """e = weight e + (1 - weight) p"""
    cdef Py_ssize_t i
    cdef real decay = <real> weight, one_minus_decay = <real> (1.0 - weight)
    for i in range(n):
        e[i] = decay * e[i] + one_minus_decay * p[i]


cdef void scale_params(double weight, real* restrict p, Py_ssize_t n) noexcept nogil:
    """p = weight p"""
    cdef Py_ssize_t i
    cdef real factor = <real> weight
    for i in range(n):
        p[i] *= factor


cdef void update_tile(const UpdateArgs* args, const Span* x, const Tile* tile, Py_ssize_t lo, Py_ssize_t n,
                      Buffers* buffers, real* kind) noexcept nogil:
    """Update elements [lo, lo + n) of a span, those of the tile, with all options."""
    cdef real* transformed = <real*> buffers.transformed
    cdef real* p = <real*> tile.p
    cdef const real* g = load_grad(x, lo, n, <real*> buffers.converted)
    if args.decay_factor != 1.0 and (not is_two_pass(args) or x.param_format != NATIVE):
        scale_params(args.decay_factor, p, n)
        if args.decays_copy:
            scale_params(args.decay_factor, <real*> tile.s, n)
    if args.transforms_grad:
        transform_grad(args, x, lo, transformed, g, p, n)
        g = transformed
    if x.has_encoded_state and is_two_pass(args):       # the first pass has left the state unchanged
        measure_elements(args, tile, g, buffers.x, buffers.y, n)
    apply(args, tile, g, n)
    if args.lookahead_alpha != 0.0:
        update_average(1.0 - args.lookahead_alpha, <real*> tile.w, p, n)
        memcpy(p, tile.w, n * sizeof(real))
    if x.e != NULL:
        update_average(args.ema_decay, <real*> tile.e, p, n)
    if args.zero_grad:
        memset(x.g + lo * itemsize(x.grad_format, x.is_f64), 0, n * itemsize(x.grad_format, x.is_f64))


cdef inline void prefetch(const real* start) noexcept nogil:
    """Prefetch a tile."""
    cdef Py_ssize_t line
    if start != NULL:
        for line in range(TILE * <Py_ssize_t> sizeof(real) // LINE):
            fo_prefetch(<const char*> start + line * LINE)


cdef inline void prefetch_native(const UpdateArgs* args, const Span* x, Py_ssize_t i, real* kind) noexcept nogil:
    """Prefetch a tile of all arrays, which are NATIVE but for the gradient, from element i on."""
    prefetch(at(x.p, i, kind))
    if x.grad_format == NATIVE:
        prefetch(at(x.g, i, kind))
    prefetch(at(x.s, i, kind))
    prefetch(at(x.t, i, kind))
    prefetch(at(x.u, i, kind))
    prefetch(at(x.v, i, kind))
    prefetch(at(x.e, i, kind))
    if args.lookahead_alpha != 0.0:
        prefetch(at(x.w, i, kind))


cdef struct Streams:
    # The arrays of a span that a step reads or writes, and bytes of their elements.
    int count
    const char* base[N_ARRAYS + 1]
    Py_ssize_t itemsize[N_ARRAYS + 1]


cdef inline void add_stream(Streams* streams, const char* base, Format format) noexcept nogil:
    if base != NULL:
        streams.base[streams.count] = base
        streams.itemsize[streams.count] = itemsize(format, False)
        streams.count += 1


cdef void find_streams(const UpdateArgs* args, const Span* x, Streams* streams) noexcept nogil:
    """Find the arrays of a span whose kernels compute in float32."""
    cdef int k
    streams.count = 0
    add_stream(streams, x.p, x.param_format)
    add_stream(streams, x.low, BFLOAT16)
    add_stream(streams, x.g, x.grad_format)
    for k in range(MAX_STATES):
        add_stream(streams, state_base(x, k), x.state_formats[k])
    add_stream(streams, x.e, NATIVE)
    add_stream(streams, x.w if args.lookahead_alpha != 0.0 else NULL, NATIVE)


cdef inline void prefetch_streams(const Streams* streams, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    """Prefetch elements [lo, hi) of all arrays."""
    cdef const char* address
    cdef const char* end
    cdef int k
    for k in range(streams.count):
        address = streams.base[k] + lo * streams.itemsize[k]
        end = streams.base[k] + hi * streams.itemsize[k]
        while address < end:
            fo_prefetch(address)
            address += LINE


cdef void update_plain(const UpdateArgs* args, const Span* x, Py_ssize_t lo, Py_ssize_t hi,
                       real* kind) noexcept nogil:
    """Update elements [lo, hi) of a span whose arrays are all NATIVE, without options."""
    cdef Tile tile
    cdef Py_ssize_t n
    while lo < hi:
        if prefetches and lo + PREFETCH_DISTANCE < hi:
            prefetch_native(args, x, lo + PREFETCH_DISTANCE, kind)
        n = min(TILE, hi - lo)
        locate(x, lo, &tile, kind)
        apply(args, &tile, at(x.g, lo, kind), n)
        lo += n


cdef void update_range(const UpdateArgs* args, const Span* x, Py_ssize_t lo, Py_ssize_t hi,
                       real* kind) noexcept nogil:
    """Update elements [lo, hi) of a span whose arrays are all NATIVE but for the gradient, tile by tile."""
    cdef Memory memory
    cdef Buffers* buffers = aligned(&memory)
    cdef Tile tile
    cdef Py_ssize_t n
    if not (args.transforms_grad or args.zero_grad or args.decay_factor != 1.0
            or args.lookahead_alpha != 0.0 or x.e != NULL or x.grad_format != NATIVE):
        update_plain(args, x, lo, hi, kind)
        return
    while lo < hi:
        if prefetches and lo + PREFETCH_DISTANCE < hi:
            prefetch_native(args, x, lo + PREFETCH_DISTANCE, kind)
        n = min(TILE, hi - lo)
        locate(x, lo, &tile, kind)
        update_tile(args, x, &tile, lo, n, buffers, kind)
        lo += n


cdef void load_tile(const Span* x, Py_ssize_t lo, Py_ssize_t n, Tile* tile, Buffers* buffers,
                    bint copies_state) noexcept nogil:
    """Decode the arrays of a tile that are not NATIVE into buffers; `copies_state` copies the other state, too."""
    cdef char** states = [NULL, NULL, NULL, NULL]
    cdef int k
    locate(x, lo, tile, <float*> NULL)
    if x.param_format != NATIVE:
        load_params(x, lo, n, &buffers.p[0])
        tile.p = <char*> &buffers.p[0]
    if not x.has_encoded_state:
        return
    states[0], states[1], states[2], states[3] = tile.s, tile.t, tile.u, tile.v
    for k in range(MAX_STATES):
        if states[k] == NULL:
            continue
        if x.state_formats[k] != NATIVE:
            load_state(x, k, lo, n, &buffers.states[k][0])
        elif copies_state:
            memcpy(&buffers.states[k][0], states[k], n * sizeof(float))
        else:
            continue
        states[k] = <char*> &buffers.states[k][0]
    tile.s, tile.t, tile.u, tile.v = states[0], states[1], states[2], states[3]


cdef void store_tile(const Span* x, uint64_t step_key, Py_ssize_t lo, Py_ssize_t n,
                     const Buffers* buffers) noexcept nogil:
    """Encode the arrays of a tile that are not NATIVE."""
    cdef int k
    if x.param_format != NATIVE:
        store_params(x, step_key, lo, n, &buffers.p[0])
    for k in range(MAX_STATES if x.has_encoded_state else 0):
        if x.state_formats[k] != NATIVE:
            store_state(x, step_key, k, lo, n, &buffers.states[k][0])


cdef inline Py_ssize_t tile_size(const Span* x, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    """Elements of the tile of [lo, hi) that begins at lo: a block of 8-bit state, in one segment of the noise."""
    cdef Py_ssize_t size = x.block if x.block != 0 else ENCODED_TILE
    return min(size - (x.origin + lo) % size, hi - lo)


cdef void update_encoded(const UpdateArgs* args, const Span* x, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    """Update elements [lo, hi) of a span with an array that is not NATIVE: decode, update and encode each tile."""
    cdef Memory memory
    cdef Buffers* buffers = aligned(&memory)
    cdef Tile tile
    cdef uint64_t step_key = fo_noise_of_step(x.noise, args.step)
    cdef Py_ssize_t n, ahead, quarter
    cdef Streams streams
    find_streams(args, x, &streams)
    while lo < hi:
        n = tile_size(x, lo, hi)
        ahead, quarter = lo + PREFETCH_DISTANCE, n // 4     # not all at once
        prefetch_streams(&streams, ahead, min(ahead + quarter, hi))
        load_tile(x, lo, n, &tile, buffers, False)
        prefetch_streams(&streams, ahead + quarter, min(ahead + 2 * quarter, hi))
        update_tile(args, x, &tile, lo, n, buffers, <float*> NULL)
        prefetch_streams(&streams, ahead + 2 * quarter, min(ahead + 3 * quarter, hi))
        store_tile(x, step_key, lo, n, buffers)
        prefetch_streams(&streams, ahead + 3 * quarter, min(ahead + n, hi))
        lo += n


cdef void update(const UpdateArgs* args, const Span* x, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    if x.is_f64:
        update_range(args, x, lo, hi, <double*> NULL)
    elif x.is_encoded:
        update_encoded(args, x, lo, hi)
    else:
        update_range(args, x, lo, hi, <float*> NULL)


# --- Sums ------------------------------------------------------------------------------------------

cdef inline double reduce_lanes(double* lane) noexcept nogil:
    """Sum of the lanes, halving their number at each pass."""
    cdef Py_ssize_t i, j = LANES // 2
    while j > 0:
        for i in range(j):
            lane[i] += lane[i + j]
        j //= 2
    return lane[0]


cdef double sum_squares(const Span* x, Py_ssize_t lo, Py_ssize_t hi, real* kind) noexcept nogil:
    """Lane j sums the squares of elements j, j + LANES, ...; then the lanes are reduced."""
    cdef double lane[LANES]
    cdef real converted[TILE]
    cdef const real* g
    cdef double y
    cdef Py_ssize_t i, j, n, rows
    for j in range(LANES):
        lane[j] = 0.0
    while lo < hi:
        n = hi - lo if x.grad_format == NATIVE else min(TILE, hi - lo)
        g = load_grad(x, lo, n, &converted[0])
        rows = n // LANES
        for i in range(rows):
            for j in range(LANES):
                y = <double> g[i * LANES + j]
                lane[j] += y * y
        for j in range(n - rows * LANES):
            y = <double> g[rows * LANES + j]
            lane[j] += y * y
        lo += n
    return reduce_lanes(lane)


cdef double sum_squares_span(const Span* x, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    if x.is_f64:
        return sum_squares(x, lo, hi, <double*> NULL)
    return sum_squares(x, lo, hi, <float*> NULL)


cdef inline void add_lanes(double* restrict lane, const double* restrict x, Py_ssize_t n) noexcept nogil:
    """Add elements j, j + LANES, ... of a tile to lane j."""
    cdef Py_ssize_t i, j, rows = n // LANES
    for i in range(rows):
        for j in range(LANES):
            lane[j] += x[i * LANES + j]
    for j in range(n - rows * LANES):
        lane[j] += x[rows * LANES + j]


cdef void measure_tile(const UpdateArgs* args, const Span* span, Py_ssize_t lo, Py_ssize_t n, Buffers* buffers,
                       real* kind) noexcept nogil:
    """First pass over elements [lo, lo + n) of a span.

    Parameters that are not NATIVE are left unchanged, and all state if one of its arrays is not.
    """
    cdef Tile tile
    cdef real* transformed = <real*> buffers.transformed
    cdef const real* g = load_grad(span, lo, n, <real*> buffers.converted)
    if real is float:
        load_tile(span, lo, n, &tile, buffers, True)
    else:
        locate(span, lo, &tile, kind)
    if args.decay_factor != 1.0:
        scale_params(args.decay_factor, <real*> tile.p, n)
    if args.transforms_grad:
        transform_grad(args, span, lo, transformed, g, <real*> tile.p, n)
        g = transformed
    measure_elements(args, &tile, g, buffers.x, buffers.y, n)


cdef void measure_range(const UpdateArgs* args, const Span* span, Py_ssize_t lo, Py_ssize_t hi, double* sums,
                        real* kind) noexcept nogil:
    """First pass over elements [lo, hi) of a span, tile by tile, and its two sums."""
    cdef Memory memory
    cdef Buffers* buffers = aligned(&memory)
    cdef double x_lane[LANES]
    cdef double y_lane[LANES]
    cdef Py_ssize_t n
    cdef Streams streams
    find_streams(args, span, &streams)
    memset(x_lane, 0, sizeof(x_lane))
    memset(y_lane, 0, sizeof(y_lane))
    while lo < hi:
        if span.is_encoded:
            n = tile_size(span, lo, hi)
            prefetch_streams(&streams, lo + PREFETCH_DISTANCE, min(lo + n + PREFETCH_DISTANCE, hi))
        else:
            n = min(TILE, hi - lo)
            if prefetches and lo + PREFETCH_DISTANCE < hi:
                prefetch_native(args, span, lo + PREFETCH_DISTANCE, kind)
        measure_tile(args, span, lo, n, buffers, kind)
        add_lanes(x_lane, buffers.x, n)
        add_lanes(y_lane, buffers.y, n)
        lo += n
    sums[0] = reduce_lanes(x_lane)
    sums[1] = reduce_lanes(y_lane)


cdef void reduce_pass(const UpdateArgs* args, const Span* span, Py_ssize_t lo, Py_ssize_t hi,
                      double* sums) noexcept nogil:
    if not is_two_pass(args):
        sums[0] = sums[1] = 0.0
    elif span.is_f64:
        measure_range(args, span, lo, hi, sums, <double*> NULL)
    else:
        measure_range(args, span, lo, hi, sums, <float*> NULL)


cdef void add_unit_sums_row(const UpdateArgs* args, const real* restrict p, const real* restrict g,
                            double* restrict a, double* restrict b, double* restrict c,
                            Py_ssize_t n) noexcept nogil:
    """a = a + g;  b = b + g g;  c = c + p p;  of the scaled and clamped gradient"""
    cdef Py_ssize_t i
    cdef real scale = <real> args.grad_scale, low = <real> -args.clip, high = <real> args.clip
    cdef double x
    for i in range(n):
        x = <double> clamp(scale * g[i], low, high)
        a[i] += x
        b[i] += x * x
        c[i] += <double> p[i] * <double> p[i]


cdef void add_unit_sums(const UpdateArgs* args, const Span* x, Py_ssize_t units, double* sums,
                        real* kind) noexcept nogil:
    """Add up rows of one element per unit; an array that is not NATIVE is converted tile by tile."""
    cdef real converted[TILE]
    cdef real decoded[TILE]
    cdef const real* p
    cdef double* unit_sum
    cdef Py_ssize_t i = 0, first, n
    while i < x.n:
        first = i % units
        n = units - first
        if x.grad_format != NATIVE or x.param_format != NATIVE:
            n = min(TILE, n)
        p = at(x.p, i, kind)
        if real is float:
            if x.param_format != NATIVE:
                load_params(x, i, n, decoded)
                p = &decoded[0]
        unit_sum = sums + first
        add_unit_sums_row(args, p, load_grad(x, i, n, &converted[0]), unit_sum, unit_sum + units,
                          unit_sum + 2 * units, n)
        i += n


cdef void unit_sums(const UpdateArgs* args, const Span* x, Py_ssize_t units, double* sums) noexcept nogil:
    if x.is_f64:
        add_unit_sums(args, x, units, sums, <double*> NULL)
    else:
        add_unit_sums(args, x, units, sums, <float*> NULL)


cdef void copy_params(const Span* x, Py_ssize_t n, char* out) noexcept nogil:
    if x.param_format == NATIVE:
        memcpy(out, x.p, n * itemsize(NATIVE, x.is_f64))
    else:
        load_params(x, 0, n, <float*> out)


fill_noise_table()

cdef Kernels exported = [update, sum_squares_span, reduce_pass, unit_sums, copy_params]

KERNELS = PyCapsule_New(&exported, "fastopt.kernels", NULL)
