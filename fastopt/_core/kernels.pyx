"""The rules and the one loop.

This file is compiled once for each instruction set, as `kernels_base`, `kernels_v3`, `kernels_v4`;
`dispatch.py` picks one. A rule is a struct of its scalars and a function that updates one element:
`p` the parameter, `g` its gradient, `s`, `t`, `u`, `v` its state. `sweep` is the loop, made once for every
rule and for float and double at compile time, and `offer` puts it into the table of rules.
`fastopt.reference` has the same rules in NumPy, and the results are equal to the last bit: so there is
no literal in a float expression (Cython would make it double), every scalar is computed in double by
the optimizer and cast once, and the compiler may neither contract nor reorder. A struct has first what
the hyperparameters alone decide (the optimizer's `constants`), then what changes from step to step (its
`variables`).
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport fabs, fabsf, sqrt, sqrtf
from libc.string cimport memcpy, memset

from fastopt._core.span cimport UpdateArgs, Kernels, Span

cdef extern from "fo_prefetch.h" nogil:
    void fo_prefetch(const char* address)

cdef enum:
    LINE = 64       # bytes that cross memory together
    TILE = 128      # elements that all stages of a pass handle before the next are begun
    AHEAD = 512     # elements from where a tile is asked for to where it is used, see `prefetch`
    ROOM = 64       # rules at most
    LANES = 16      # partial sums of a norm: as many as the widest registers need

ctypedef fused real:
    float
    double


cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline real larger(real x, real y) noexcept nogil:
    """max(x, y); a NaN in either stays one."""
    cdef real z = x if x >= y else y
    return x if x != x else z


cdef inline real positive(real x) noexcept nogil:
    """max(x, 0), for a variance that rounding has left just below; a NaN stays one."""
    return <real> 0 if x < <real> 0 else x


cdef inline real size(real x) noexcept nogil:
    if real is float:
        return fabsf(x)
    else:
        return fabs(x)


cdef inline real sign(real x) noexcept nogil:
    """1 or -1; a zero and a NaN stay what they are."""
    cdef real z = <real> 1 if x > <real> 0 else x
    return <real> -1 if x < <real> 0 else z


cdef inline real clamp(real x, real low, real high) noexcept nogil:
    """x, or the bound that it is beyond; a NaN passes, as in `numpy.clip`."""
    cdef real z = low if x < low else x
    return high if z > high else z


cdef inline real agree(real x, real y) noexcept nogil:
    """1 where two numbers have the same sign, and neither is zero; else 0."""
    return <real> 1 if sign(x) * sign(y) > <real> 0 else <real> 0


# --- The rules, in order of growing complexity -----------------------------------------------------

cdef struct Sgd:
    double lr

cdef inline void sgd(Sgd h, real* p, real g) noexcept nogil:
    """p = p - lr g"""
    p[0] -= <real> h.lr * g


cdef struct Momentum:
    double lr, mu, take

cdef inline void momentum(Momentum h, real* p, real g, real* s) noexcept nogil:
    """s = mu s + take g;  p = p - lr s"""
    s[0] = <real> h.mu * s[0] + <real> h.take * g
    p[0] -= <real> h.lr * s[0]


cdef struct Nesterov:
    double lr, mu, take

cdef inline void nesterov(Nesterov h, real* p, real g, real* s) noexcept nogil:
    """s = mu s + take g;  p = p - lr (take g + mu s)"""
    cdef real d = <real> h.take * g
    s[0] = <real> h.mu * s[0] + d
    p[0] -= <real> h.lr * (d + <real> h.mu * s[0])


cdef struct Along:
    double keep, lr

cdef inline void along(Along h, real* p, real g) noexcept nogil:
    """p = keep p - lr g"""
    p[0] = <real> h.keep * p[0] - <real> h.lr * g


cdef struct SignSgd:
    double keep, lr

cdef inline void sign_sgd(SignSgd h, real* p, real g) noexcept nogil:
    """p = keep p - lr sign(g)"""
    p[0] = <real> h.keep * p[0] - <real> h.lr * sign(g)


cdef struct Signum:
    double keep, lr, mu, rest

cdef inline void signum(Signum h, real* p, real g, real* s) noexcept nogil:
    """s = mu s + (1 - mu) g;  p = keep p - lr sign(s)"""
    s[0] = <real> h.mu * s[0] + <real> h.rest * g
    p[0] = <real> h.keep * p[0] - <real> h.lr * sign(s[0])


cdef struct Lion:
    double keep, beta1, rest1, beta2, rest2, lr

cdef inline void lion(Lion h, real* p, real g, real* s) noexcept nogil:
    """d = beta1 s + (1 - beta1) g;  s = beta2 s + (1 - beta2) g;  p = keep p - lr sign(d)"""
    cdef real d = <real> h.beta1 * s[0] + <real> h.rest1 * g
    s[0] = <real> h.beta2 * s[0] + <real> h.rest2 * g
    p[0] = <real> h.keep * p[0] - <real> h.lr * sign(d)


cdef struct Asgd:
    double keep, lr, hold, take

cdef inline void asgd(Asgd h, real* p, real g, real* s) noexcept nogil:
    """p = keep p - lr g;  s = hold s + (1 - hold) p"""
    p[0] = <real> h.keep * p[0] - <real> h.lr * g
    s[0] = <real> h.hold * s[0] + <real> h.take * p[0]


cdef struct Rprop:
    double minus, plus, low, high, first

cdef inline void rprop(Rprop h, real* p, real g, real* s, real* t) noexcept nogil:
    """t = clamp(eta t + first, low, high), eta by the sign of g s;  s = g or 0;  p = p - t sign(s)"""
    cdef real turn = sign(g) * sign(s[0])
    cdef real eta = <real> h.plus if turn > <real> 0 else <real> 1
    eta = <real> h.minus if turn < <real> 0 else eta
    t[0] = clamp(eta * t[0] + <real> h.first, <real> h.low, <real> h.high)
    s[0] = <real> 0 if turn < <real> 0 else g
    p[0] -= t[0] * sign(s[0])


cdef struct Adagrad:
    double eps, inside, lr

cdef inline void adagrad(Adagrad h, real* p, real g, real* s) noexcept nogil:
    """s = s + g g;  p = p - lr g / (sqrt(s + inside) + eps)"""
    s[0] += g * g
    p[0] -= <real> h.lr * g / (root(s[0] + <real> h.inside) + <real> h.eps)


cdef struct RowwiseAdagrad:
    double sum, eps, inside, lr     # the sum is that of the row

cdef inline void measure_rowwise_adagrad(RowwiseAdagrad h, real g, double* x, double* y) noexcept nogil:
    """x = g g"""
    x[0] = <double> g * <double> g
    y[0] = 0.0

cdef inline void rowwise_adagrad(RowwiseAdagrad h, real* p, real g) noexcept nogil:
    """p = p - lr g / (sqrt(sum + inside) + eps), after sum = sum + mean of x over the row"""
    p[0] -= <real> h.lr * g / (root(<real> h.sum + <real> h.inside) + <real> h.eps)


cdef struct Adadelta:
    double lr, rho, rest, eps

cdef inline void adadelta(Adadelta h, real* p, real g, real* s, real* t) noexcept nogil:
    """s = rho s + (1 - rho) g g;  d = sqrt(t + eps) / sqrt(s + eps) g;  t as s, of d;  p = p - lr d"""
    cdef real d
    s[0] = <real> h.rho * s[0] + <real> h.rest * (g * g)
    d = root(t[0] + <real> h.eps) / root(s[0] + <real> h.eps) * g
    t[0] = <real> h.rho * t[0] + <real> h.rest * (d * d)
    p[0] -= <real> h.lr * d


cdef struct Ftrl:
    double inverse, beta, l1, l2

cdef inline void ftrl(Ftrl h, real* p, real g, real* s, real* t) noexcept nogil:
    """s = s + g g;  t = t + g - (sqrt(s) - sqrt(s before)) / lr p;
    p = (clamp(t, -l1, l1) - t) / ((beta + sqrt(s)) / lr + l2)"""
    cdef real old = root(s[0]), new
    s[0] += g * g
    new = root(s[0])
    t[0] = t[0] + g - (new - old) * <real> h.inverse * p[0]
    p[0] = (clamp(t[0], <real> -h.l1, <real> h.l1) - t[0]) / (
        (<real> h.beta + new) * <real> h.inverse + <real> h.l2)


cdef struct Rmsprop:
    double lr, alpha, rest, eps, inside

cdef inline void rmsprop(Rmsprop h, real* p, real g, real* s) noexcept nogil:
    """s = alpha s + (1 - alpha) g g;  p = p - lr g / (sqrt(s + inside) + eps)"""
    s[0] = <real> h.alpha * s[0] + <real> h.rest * (g * g)
    p[0] -= <real> h.lr * g / (root(s[0] + <real> h.inside) + <real> h.eps)


cdef struct RmspropMomentum:
    double lr, alpha, rest, eps, inside, mu, take

cdef inline void rmsprop_momentum(RmspropMomentum h, real* p, real g, real* s, real* t) noexcept nogil:
    """s as in rmsprop;  t = mu t + take g / (sqrt(s + inside) + eps);  p = p - lr t"""
    s[0] = <real> h.alpha * s[0] + <real> h.rest * (g * g)
    t[0] = <real> h.mu * t[0] + <real> h.take * g / (root(s[0] + <real> h.inside) + <real> h.eps)
    p[0] -= <real> h.lr * t[0]


cdef struct RmspropCentered:
    double lr, alpha, rest, eps, inside

cdef inline void rmsprop_centered(RmspropCentered h, real* p, real g, real* s, real* t) noexcept nogil:
    """s, t averages of g g and g;  p = p - lr g / (sqrt(max(s - t t, 0) + inside) + eps)"""
    s[0] = <real> h.alpha * s[0] + <real> h.rest * (g * g)
    t[0] = <real> h.alpha * t[0] + <real> h.rest * g
    p[0] -= <real> h.lr * g / (root(positive(s[0] - t[0] * t[0]) + <real> h.inside) + <real> h.eps)


cdef struct RmspropCenteredMomentum:
    double lr, alpha, rest, eps, inside, mu, take

cdef inline void rmsprop_centered_momentum(RmspropCenteredMomentum h, real* p, real g,
                                           real* s, real* t, real* u) noexcept nogil:
    """s, t as in rmsprop_centered;  u = mu u + take g / (sqrt(...) + eps);  p = p - lr u"""
    cdef real d = <real> h.take * g
    s[0] = <real> h.alpha * s[0] + <real> h.rest * (g * g)
    t[0] = <real> h.alpha * t[0] + <real> h.rest * g
    u[0] = <real> h.mu * u[0] + d / (root(positive(s[0] - t[0] * t[0]) + <real> h.inside) + <real> h.eps)
    p[0] -= <real> h.lr * u[0]


cdef struct Adam:
    double keep, beta1, rest1, beta2, rest2, eps, lr, scale

cdef inline void adam(Adam h, real* p, real g, real* s, real* t) noexcept nogil:
    """s = beta1 s + (1 - beta1) g;  t = beta2 t + (1 - beta2) g g;  p = keep p - lr s / (scale sqrt(t) + eps)"""
    s[0] = <real> h.beta1 * s[0] + <real> h.rest1 * g
    t[0] = <real> h.beta2 * t[0] + <real> h.rest2 * (g * g)
    p[0] = <real> h.keep * p[0] - <real> h.lr * s[0] / (<real> h.scale * root(t[0]) + <real> h.eps)


cdef struct Amsgrad:
    double keep, beta1, rest1, beta2, rest2, eps, lr, scale, lift

cdef inline void amsgrad(Amsgrad h, real* p, real g, real* s, real* t, real* u) noexcept nogil:
    """s, t as in adam;  u = max(u, lift t);  p = keep p - lr s / (scale sqrt(u) + eps)"""
    s[0] = <real> h.beta1 * s[0] + <real> h.rest1 * g
    t[0] = <real> h.beta2 * t[0] + <real> h.rest2 * (g * g)
    u[0] = larger(u[0], <real> h.lift * t[0])
    p[0] = <real> h.keep * p[0] - <real> h.lr * s[0] / (<real> h.scale * root(u[0]) + <real> h.eps)


cdef struct Adamax:
    double keep, beta1, rest1, beta2, eps, outside, lr

cdef inline void adamax(Adamax h, real* p, real g, real* s, real* t) noexcept nogil:
    """s = beta1 s + (1 - beta1) g;  t = max(beta2 t, |g| + eps);  p = keep p - lr s / (t + outside)"""
    s[0] = <real> h.beta1 * s[0] + <real> h.rest1 * g
    t[0] = larger(<real> h.beta2 * t[0], size(g) + <real> h.eps)
    p[0] = <real> h.keep * p[0] - <real> h.lr * s[0] / (t[0] + <real> h.outside)


cdef struct Nadam:
    double keep, beta1, rest1, beta2, rest2, eps, now, ahead, scale

cdef inline void nadam(Nadam h, real* p, real g, real* s, real* t) noexcept nogil:
    """s, t as in adam;  p = keep p - (now g + ahead s) / (scale sqrt(t) + eps)"""
    s[0] = <real> h.beta1 * s[0] + <real> h.rest1 * g
    t[0] = <real> h.beta2 * t[0] + <real> h.rest2 * (g * g)
    p[0] = <real> h.keep * p[0] - (<real> h.now * g + <real> h.ahead * s[0]) / (
        <real> h.scale * root(t[0]) + <real> h.eps)


cdef struct Adabelief:
    double keep, beta1, rest1, beta2, rest2, eps, lr, scale

cdef inline void adabelief(Adabelief h, real* p, real g, real* s, real* t) noexcept nogil:
    """s as in adam;  t = beta2 t + (1 - beta2) (g - s)^2 + eps;  p = keep p - lr s / (scale sqrt(t) + eps)"""
    cdef real d
    s[0] = <real> h.beta1 * s[0] + <real> h.rest1 * g
    d = g - s[0]
    t[0] = <real> h.beta2 * t[0] + <real> h.rest2 * (d * d) + <real> h.eps
    p[0] = <real> h.keep * p[0] - <real> h.lr * s[0] / (<real> h.scale * root(t[0]) + <real> h.eps)


cdef struct Yogi:
    double keep, beta1, rest1, rest2, eps, lr, scale

cdef inline void yogi(Yogi h, real* p, real g, real* s, real* t) noexcept nogil:
    """s as in adam;  t = t - (1 - beta2) sign(t - g g) g g;  p = keep p - lr s / (scale sqrt(t) + eps)"""
    cdef real d = g * g
    s[0] = <real> h.beta1 * s[0] + <real> h.rest1 * g
    t[0] -= <real> h.rest2 * (sign(t[0] - d) * d)
    p[0] = <real> h.keep * p[0] - <real> h.lr * s[0] / (<real> h.scale * root(t[0]) + <real> h.eps)


cdef struct Adopt:
    double eps, beta1, rest1, keep, beta2, rest2, limit, lr

cdef inline void adopt(Adopt h, real* p, real g, real* s, real* t) noexcept nogil:
    """s = beta1 s + (1 - beta1) clamp(g / max(sqrt(t), eps));  t = beta2 t + (1 - beta2) g g;
    p = keep p - lr s"""
    cdef real d = clamp(g / larger(root(t[0]), <real> h.eps), <real> -h.limit, <real> h.limit)
    s[0] = <real> h.beta1 * s[0] + <real> h.rest1 * d
    t[0] = <real> h.beta2 * t[0] + <real> h.rest2 * (g * g)
    p[0] = <real> h.keep * p[0] - <real> h.lr * s[0]


cdef struct Ademamix:
    double keep, beta1, rest1, beta2, rest2, eps, beta3, rest3, fast, slow, scale

cdef inline void ademamix(Ademamix h, real* p, real g, real* s, real* t, real* u) noexcept nogil:
    """s, t fast and slow averages of g, u of g g;  p = keep p - (fast s + slow t) / (scale sqrt(u) + eps)"""
    s[0] = <real> h.beta1 * s[0] + <real> h.rest1 * g
    t[0] = <real> h.beta3 * t[0] + <real> h.rest3 * g
    u[0] = <real> h.beta2 * u[0] + <real> h.rest2 * (g * g)
    p[0] = <real> h.keep * p[0] - (<real> h.fast * s[0] + <real> h.slow * t[0]) / (
        <real> h.scale * root(u[0]) + <real> h.eps)


cdef struct Adan:
    double beta1, rest1, beta2, rest2, beta3, rest3, eps, keep, known, lr, slope, scale

cdef inline void adan(Adan h, real* p, real g, real* s, real* t, real* u, real* v) noexcept nogil:
    """d = g - v;  s, t, u averages of g, d, (g + beta2 d)^2;  v = g;
    p = keep p - (lr s + slope t) / (scale sqrt(u) + eps)"""
    cdef real d = <real> h.known * (g - v[0])
    cdef real e = g + <real> h.beta2 * d
    s[0] = <real> h.beta1 * s[0] + <real> h.rest1 * g
    t[0] = <real> h.beta2 * t[0] + <real> h.rest2 * d
    u[0] = <real> h.beta3 * u[0] + <real> h.rest3 * (e * e)
    v[0] = g
    p[0] = <real> h.keep * p[0] - (<real> h.lr * s[0] + <real> h.slope * t[0]) / (
        <real> h.scale * root(u[0]) + <real> h.eps)


cdef struct ScheduleFree:
    double first, keep, pull, push, lr

cdef inline void schedule_free(ScheduleFree h, real* p, real g, real* s) noexcept nogil:
    """p = keep p + pull s + push g;  s = s - lr g.  The first s is p."""
    cdef real z = p[0] if <real> h.first != <real> 0 else s[0]
    p[0] = <real> h.keep * p[0] + <real> h.pull * z + <real> h.push * g
    s[0] = z - <real> h.lr * g


cdef struct ScheduleFreeAdam:
    double beta2, rest2, eps, decay, scale, first, keep, pull, push, lr

cdef inline void schedule_free_adam(ScheduleFreeAdam h, real* p, real g, real* s, real* t) noexcept nogil:
    """t = beta2 t + (1 - beta2) g g;  d = g / (scale sqrt(t) + eps) + decay p;  p, s as in schedule_free, by d"""
    cdef real z = p[0] if <real> h.first != <real> 0 else s[0]
    cdef real d
    t[0] = <real> h.beta2 * t[0] + <real> h.rest2 * (g * g)
    d = g / (<real> h.scale * root(t[0]) + <real> h.eps) + <real> h.decay * p[0]
    p[0] = <real> h.keep * p[0] + <real> h.pull * z + <real> h.push * d
    s[0] = z - <real> h.lr * d


# --- Rules of two passes: the first, `measure_...`, gives two terms x, y, whose sums over an array the
# --- optimizer makes scalars of the second of -------------------------------------------------------

cdef struct Lars:
    double mu, decay, take

cdef inline void measure_lars(Lars h, real p, real g, double* x, double* y) noexcept nogil:
    """x = p p;  y = g g"""
    x[0] = <double> p * <double> p
    y[0] = <double> g * <double> g

cdef inline void lars(Lars h, real* p, real g, real* s) noexcept nogil:
    """s = mu s + take (g + decay p);  p = p - s"""
    s[0] = <real> h.mu * s[0] + <real> h.take * (g + <real> h.decay * p[0])
    p[0] -= s[0]


cdef struct Lamb:
    double beta1, rest1, beta2, rest2, eps, decay, correct, scale, lr

cdef inline real lamb_direction(Lamb h, real p, real s, real t) noexcept nogil:
    return <real> h.correct * s / (<real> h.scale * root(t) + <real> h.eps) + <real> h.decay * p

cdef inline void measure_lamb(Lamb h, real p, real g, real* s, real* t, double* x, double* y) noexcept nogil:
    """s, t as in adam;  d = correct s / (scale sqrt(t) + eps) + decay p;  x = p p;  y = d d"""
    cdef double d
    s[0] = <real> h.beta1 * s[0] + <real> h.rest1 * g
    t[0] = <real> h.beta2 * t[0] + <real> h.rest2 * (g * g)
    d = <double> lamb_direction(h, p, s[0], t[0])
    x[0] = <double> p * <double> p
    y[0] = d * d

cdef inline void lamb(Lamb h, real* p, real s, real t) noexcept nogil:
    """p = p - lr d"""
    p[0] -= <real> h.lr * lamb_direction(h, p[0], s, t)


cdef struct Prodigy:
    double beta1, rest1, beta2, rest2, beta3, rest3, first, keep, eps, lr

cdef inline void measure_prodigy(Prodigy h, real p, real g, real* s, real* t, real* u, real* v,
                                 double* x, double* y) noexcept nogil:
    """s, t as in adam;  u = beta3 u + rest3 g;  x = g (v - p);  y = |u|.  The first v is p."""
    v[0] = p if <real> h.first != <real> 0 else v[0]
    s[0] = <real> h.beta1 * s[0] + <real> h.rest1 * g
    t[0] = <real> h.beta2 * t[0] + <real> h.rest2 * (g * g)
    u[0] = <real> h.beta3 * u[0] + <real> h.rest3 * g
    x[0] = <double> g * (<double> v[0] - <double> p)
    y[0] = fabs(<double> u[0])

cdef inline void prodigy(Prodigy h, real* p, real s, real t) noexcept nogil:
    """p = keep p - lr s / (sqrt(t) + eps)"""
    p[0] = <real> h.keep * p[0] - <real> h.lr * s / (root(t) + <real> h.eps)


cdef struct CautiousAdam:
    double keep, beta1, rest1, beta2, rest2, eps, lr, scale

cdef inline void measure_cautious_adam(CautiousAdam h, real g, real* s, real* t,
                                       double* x, double* y) noexcept nogil:
    """s, t as in adam;  x = 1 where s and g have the same sign"""
    s[0] = <real> h.beta1 * s[0] + <real> h.rest1 * g
    t[0] = <real> h.beta2 * t[0] + <real> h.rest2 * (g * g)
    x[0] = <double> agree(s[0], g)
    y[0] = 0.0

cdef inline void cautious_adam(CautiousAdam h, real* p, real g, real s, real t) noexcept nogil:
    """p = keep p - lr s / (scale sqrt(t) + eps), where s and g have the same sign, else keep p"""
    cdef real d = <real> h.lr * s / (<real> h.scale * root(t) + <real> h.eps)
    p[0] = <real> h.keep * p[0] - d * agree(s, g)


cdef struct CautiousLion:
    double keep, beta1, rest1, beta2, rest2, lr

cdef inline void measure_cautious_lion(CautiousLion h, real g, real s, double* x, double* y) noexcept nogil:
    """x = 1 where d of lion and g have the same sign"""
    x[0] = <double> agree(<real> h.beta1 * s + <real> h.rest1 * g, g)
    y[0] = 0.0

cdef inline void cautious_lion(CautiousLion h, real* p, real g, real* s) noexcept nogil:
    """d, s as in lion;  p = keep p - lr sign(d), where d and g have the same sign, else keep p"""
    cdef real d = <real> h.beta1 * s[0] + <real> h.rest1 * g
    s[0] = <real> h.beta2 * s[0] + <real> h.rest2 * g
    p[0] = <real> h.keep * p[0] - <real> h.lr * sign(d) * agree(d, g)


# --- The one loop ----------------------------------------------------------------------------------

ctypedef fused rule:
    Sgd
    Momentum
    Nesterov
    Along
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
    cdef rule h = scalars[0]
    for i in range(n):
        if rule is Sgd:
            sgd(h, p + i, g[i])
        elif rule is Momentum:
            momentum(h, p + i, g[i], s + i)
        elif rule is Nesterov:
            nesterov(h, p + i, g[i], s + i)
        elif rule is Along:
            along(h, p + i, g[i])
        elif rule is SignSgd:
            sign_sgd(h, p + i, g[i])
        elif rule is Signum:
            signum(h, p + i, g[i], s + i)
        elif rule is Lion:
            lion(h, p + i, g[i], s + i)
        elif rule is Asgd:
            asgd(h, p + i, g[i], s + i)
        elif rule is Rprop:
            rprop(h, p + i, g[i], s + i, t + i)
        elif rule is Adagrad:
            adagrad(h, p + i, g[i], s + i)
        elif rule is RowwiseAdagrad:
            rowwise_adagrad(h, p + i, g[i])
        elif rule is Adadelta:
            adadelta(h, p + i, g[i], s + i, t + i)
        elif rule is Ftrl:
            ftrl(h, p + i, g[i], s + i, t + i)
        elif rule is Rmsprop:
            rmsprop(h, p + i, g[i], s + i)
        elif rule is RmspropMomentum:
            rmsprop_momentum(h, p + i, g[i], s + i, t + i)
        elif rule is RmspropCentered:
            rmsprop_centered(h, p + i, g[i], s + i, t + i)
        elif rule is RmspropCenteredMomentum:
            rmsprop_centered_momentum(h, p + i, g[i], s + i, t + i, u + i)
        elif rule is Adam:
            adam(h, p + i, g[i], s + i, t + i)
        elif rule is Amsgrad:
            amsgrad(h, p + i, g[i], s + i, t + i, u + i)
        elif rule is Adamax:
            adamax(h, p + i, g[i], s + i, t + i)
        elif rule is Nadam:
            nadam(h, p + i, g[i], s + i, t + i)
        elif rule is Adabelief:
            adabelief(h, p + i, g[i], s + i, t + i)
        elif rule is Yogi:
            yogi(h, p + i, g[i], s + i, t + i)
        elif rule is Adopt:
            adopt(h, p + i, g[i], s + i, t + i)
        elif rule is Ademamix:
            ademamix(h, p + i, g[i], s + i, t + i, u + i)
        elif rule is Adan:
            adan(h, p + i, g[i], s + i, t + i, u + i, v + i)
        elif rule is ScheduleFree:
            schedule_free(h, p + i, g[i], s + i)
        elif rule is ScheduleFreeAdam:
            schedule_free_adam(h, p + i, g[i], s + i, t + i)
        elif rule is Lars:
            lars(h, p + i, g[i], s + i)
        elif rule is Lamb:
            lamb(h, p + i, s[i], t[i])
        elif rule is Prodigy:
            prodigy(h, p + i, s[i], t[i])
        elif rule is CautiousAdam:
            cautious_adam(h, p + i, g[i], s[i], t[i])
        else:
            cautious_lion(h, p + i, g[i], s + i)

# The first passes.
ctypedef fused measured:
    RowwiseAdagrad
    Lars
    Lamb
    Prodigy
    CautiousAdam
    CautiousLion

cdef void measure(const measured* scalars, const real* restrict p, const real* restrict g, real* restrict s,
                  real* restrict t, real* restrict u, real* restrict v, double* restrict x,
                  double* restrict y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef measured h = scalars[0]
    for i in range(n):
        if measured is RowwiseAdagrad:
            measure_rowwise_adagrad(h, g[i], x + i, y + i)
        elif measured is Lars:
            measure_lars(h, p[i], g[i], x + i, y + i)
        elif measured is Lamb:
            measure_lamb(h, p[i], g[i], s + i, t + i, x + i, y + i)
        elif measured is Prodigy:
            measure_prodigy(h, p[i], g[i], s + i, t + i, u + i, v + i, x + i, y + i)
        elif measured is CautiousAdam:
            measure_cautious_adam(h, g[i], s + i, t + i, x + i, y + i)
        else:
            measure_cautious_lion(h, g[i], s[i], x + i, y + i)


# --- The table of rules ------------------------------------------------------------------------------

ctypedef void (*Narrow)(const void* scalars, float* p, const float* g, float* s, float* t, float* u,
                        float* v, Py_ssize_t n) noexcept nogil
ctypedef void (*Wide)(const void* scalars, double* p, const double* g, double* s, double* t, double* u,
                      double* v, Py_ssize_t n) noexcept nogil
ctypedef void (*MeasureNarrow)(const void* scalars, const float* p, const float* g, float* s, float* t, float* u,
                               float* v, double* x, double* y, Py_ssize_t n) noexcept nogil
ctypedef void (*MeasureWide)(const void* scalars, const double* p, const double* g, double* s, double* t,
                             double* u, double* v, double* x, double* y, Py_ssize_t n) noexcept nogil

cdef struct Loops:
    # One rule for float and for double, and its first pass if it has two.
    Narrow narrow
    Wide wide
    MeasureNarrow measure_narrow
    MeasureWide measure_wide

cdef Loops loops[ROOM]

RULES = {}
"""Number of each rule, by name: what the span table puts into a job."""

SURVEYS = set()
"""Names of the rules of two passes."""

ROWWISE = set()
"""Names of those whose first pass is over a row, and whose first scalar is the sum that it keeps."""


cdef int offer(str name, const rule* kind) except -1:
    cdef int k = len(RULES)
    if k == ROOM:
        raise ImportError(f"there is room for {ROOM} rules")
    loops[k].narrow = <Narrow> sweep[rule, float]
    loops[k].wide = <Wide> sweep[rule, double]
    RULES[name] = k
    return 0


cdef int offer_measure(str name, const measured* kind, set among) except -1:
    cdef int k = RULES[name]
    loops[k].measure_narrow = <MeasureNarrow> measure[measured, float]
    loops[k].measure_wide = <MeasureWide> measure[measured, double]
    among.add(name)
    return 0


offer("sgd", <Sgd*> NULL)
offer("momentum", <Momentum*> NULL)
offer("nesterov", <Nesterov*> NULL)
offer("along", <Along*> NULL)
offer("sign_sgd", <SignSgd*> NULL)
offer("signum", <Signum*> NULL)
offer("lion", <Lion*> NULL)
offer("asgd", <Asgd*> NULL)
offer("rprop", <Rprop*> NULL)
offer("adagrad", <Adagrad*> NULL)
offer("rowwise_adagrad", <RowwiseAdagrad*> NULL)
offer("adadelta", <Adadelta*> NULL)
offer("ftrl", <Ftrl*> NULL)
offer("rmsprop", <Rmsprop*> NULL)
offer("rmsprop_momentum", <RmspropMomentum*> NULL)
offer("rmsprop_centered", <RmspropCentered*> NULL)
offer("rmsprop_centered_momentum", <RmspropCenteredMomentum*> NULL)
offer("adam", <Adam*> NULL)
offer("amsgrad", <Amsgrad*> NULL)
offer("adamax", <Adamax*> NULL)
offer("nadam", <Nadam*> NULL)
offer("adabelief", <Adabelief*> NULL)
offer("yogi", <Yogi*> NULL)
offer("adopt", <Adopt*> NULL)
offer("ademamix", <Ademamix*> NULL)
offer("adan", <Adan*> NULL)
offer("schedule_free", <ScheduleFree*> NULL)
offer("schedule_free_adam", <ScheduleFreeAdam*> NULL)
offer("lars", <Lars*> NULL)
offer("lamb", <Lamb*> NULL)
offer("prodigy", <Prodigy*> NULL)
offer("cautious_adam", <CautiousAdam*> NULL)
offer("cautious_lion", <CautiousLion*> NULL)
offer_measure("rowwise_adagrad", <RowwiseAdagrad*> NULL, ROWWISE)
offer_measure("lars", <Lars*> NULL, SURVEYS)
offer_measure("lamb", <Lamb*> NULL, SURVEYS)
offer_measure("prodigy", <Prodigy*> NULL, SURVEYS)
offer_measure("cautious_adam", <CautiousAdam*> NULL, SURVEYS)
offer_measure("cautious_lion", <CautiousLion*> NULL, SURVEYS)


# --- A pass over one tile: shape the gradient, apply the rule, average, zero ------------------------

cdef inline bint has_measure(const UpdateArgs* job) noexcept nogil:
    """Whether the rule has two passes, of which the first is where parameters are shrunk."""
    return loops[job.kernel].measure_wide != NULL


cdef inline real* at(char* base, Py_ssize_t i, real* kind) noexcept nogil:
    """Element i of an array, if there is such an array; `kind` only says float or double."""
    return <real*> base + i if base != NULL else NULL


cdef inline void apply(const UpdateArgs* job, const Span* x, Py_ssize_t lo, const real* g, Py_ssize_t n,
                       real* kind) noexcept nogil:
    """The rule, for elements [lo, lo + n) of a span whose gradient is g."""
    if real is float:
        loops[job.kernel].narrow(&job.scalars[0], at(x.p, lo, kind), g, at(x.s, lo, kind), at(x.t, lo, kind),
                               at(x.u, lo, kind), at(x.v, lo, kind), n)
    else:
        loops[job.kernel].wide(&job.scalars[0], at(x.p, lo, kind), g, at(x.s, lo, kind), at(x.t, lo, kind),
                             at(x.u, lo, kind), at(x.v, lo, kind), n)


cdef void unitwise(const real* restrict factor, const real* restrict shift, real* restrict x,
                   Py_ssize_t n) noexcept nogil:
    """x = factor x - shift, for neighbors of different units"""
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = factor[i] * x[i] - shift[i]


cdef void shape_units(const Span* span, real* x, Py_ssize_t lo, Py_ssize_t n) noexcept nogil:
    """`unitwise` for elements [lo, lo + n) of a span, which x holds."""
    cdef const real* factor = <const real*> span.unit_scale
    cdef const real* shift = <const real*> span.unit_shift
    cdef Py_ssize_t done = 0, unit = lo % span.n_units, count
    while done < n:
        count = min(span.n_units - unit, n - done)
        unitwise(factor + unit, shift + unit, x + done, count)
        done += count
        unit = 0


cdef void shape(const UpdateArgs* job, const Span* span, Py_ssize_t lo, real* restrict out,
                const real* restrict g, const real* restrict p, Py_ssize_t n) noexcept nogil:
    """out = clamp(scale g), then by units, + decay p"""
    cdef Py_ssize_t i
    cdef real scale = <real> job.grad_scale, low = <real> -job.clip, high = <real> job.clip
    cdef real decay = <real> job.l2_decay
    for i in range(n):
        out[i] = clamp(scale * g[i], low, high)
    if span.unit_scale != NULL:
        shape_units(span, out, lo, n)
    if decay != <real> 0:
        for i in range(n):
            out[i] += decay * p[i]


cdef void average(double weight, real* restrict e, const real* restrict p, Py_ssize_t n) noexcept nogil:
    """e = weight e + (1 - weight) p"""
    cdef Py_ssize_t i
    cdef real keep = <real> weight, take = <real> (1.0 - weight)
    for i in range(n):
        e[i] = keep * e[i] + take * p[i]


cdef void shrink(double weight, real* restrict p, Py_ssize_t n) noexcept nogil:
    """p = weight p"""
    cdef Py_ssize_t i
    cdef real keep = <real> weight
    for i in range(n):
        p[i] *= keep


cdef void tile(const UpdateArgs* job, const Span* x, Py_ssize_t lo, Py_ssize_t n, real* kind) noexcept nogil:
    """All that is asked for, for elements [lo, lo + n) of a span."""
    cdef real shaped[TILE]
    cdef real* p = at(x.p, lo, kind)
    cdef real* g = at(x.g, lo, kind)
    if job.decay_factor != 1.0 and not has_measure(job):
        shrink(job.decay_factor, p, n)
    if job.transforms_grad:
        shape(job, x, lo, shaped, g, p, n)
        apply(job, x, lo, shaped, n, kind)
    else:
        apply(job, x, lo, g, n, kind)
    if job.lookahead_alpha != 0.0:
        average(1.0 - job.lookahead_alpha, at(x.w, lo, kind), p, n)
        memcpy(p, at(x.w, lo, kind), n * sizeof(real))
    if x.e != NULL:
        average(job.ema_decay, at(x.e, lo, kind), p, n)
    if job.zero_grad:
        memset(g, 0, n * sizeof(real))


cdef inline void prefetch(const real* start) noexcept nogil:
    """Ask for a tile; the processor's own foresight fails at so many streams, by a sixth from DRAM."""
    cdef Py_ssize_t i
    if start != NULL:
        for i in range(TILE * <Py_ssize_t> sizeof(real) // LINE):
            fo_prefetch(<const char*> start + i * LINE)


cdef inline void prefetch_all(const UpdateArgs* job, const Span* x, Py_ssize_t i, real* kind) noexcept nogil:
    prefetch(at(x.p, i, kind))
    prefetch(at(x.g, i, kind))
    prefetch(at(x.s, i, kind))
    prefetch(at(x.t, i, kind))
    prefetch(at(x.u, i, kind))
    prefetch(at(x.v, i, kind))
    prefetch(at(x.e, i, kind))
    if job.lookahead_alpha != 0.0:
        prefetch(at(x.w, i, kind))


cdef void walk(const UpdateArgs* job, const Span* x, Py_ssize_t lo, Py_ssize_t hi, real* kind) noexcept nogil:
    """Update elements [lo, hi) of a span, tile by tile."""
    cdef Py_ssize_t n, soon
    cdef bint bare = not (job.transforms_grad or job.zero_grad or job.decay_factor != 1.0 or job.lookahead_alpha != 0.0 or x.e != NULL)
    while lo < hi:
        soon = lo + AHEAD
        if soon < hi:
            prefetch_all(job, x, soon, kind)
        n = min(TILE, hi - lo)
        if bare:
            apply(job, x, lo, at(x.g, lo, kind), n, kind)
        else:
            tile(job, x, lo, n, kind)
        lo += n


cdef void update(const UpdateArgs* job, const Span* x, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    if x.is_f64:
        walk(job, x, lo, hi, <double*> NULL)
    else:
        walk(job, x, lo, hi, <float*> NULL)


# --- Sums ------------------------------------------------------------------------------------------

cdef inline double fold(double* lane) noexcept nogil:
    """Sum of the lanes, which are added in halves."""
    cdef Py_ssize_t i, j = LANES // 2
    while j > 0:
        for i in range(j):
            lane[i] += lane[i + j]
        j //= 2
    return lane[0]


cdef double sum_squares(const real* g, Py_ssize_t n) noexcept nogil:
    """Lane j sums the squares of elements j, j + LANES, ...; then the lanes are folded in halves."""
    cdef double lane[LANES]
    cdef double x
    cdef Py_ssize_t i, j, rows = n // LANES
    for j in range(LANES):
        lane[j] = 0.0
    for i in range(rows):
        for j in range(LANES):
            x = <double> g[i * LANES + j]
            lane[j] += x * x
    for j in range(n - rows * LANES):
        x = <double> g[rows * LANES + j]
        lane[j] += x * x
    return fold(lane)


cdef double squares(const Span* x, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    if x.is_f64:
        return sum_squares(<const double*> x.g + lo, hi - lo)
    return sum_squares(<const float*> x.g + lo, hi - lo)


cdef inline void add_lanes(double* restrict lane, const double* restrict x, Py_ssize_t n) noexcept nogil:
    """Lane j takes elements j, j + LANES, ... of a tile."""
    cdef Py_ssize_t i, j, rows = n // LANES
    for i in range(rows):
        for j in range(LANES):
            lane[j] += x[i * LANES + j]
    for j in range(n - rows * LANES):
        lane[j] += x[rows * LANES + j]


cdef void measure_tile(const UpdateArgs* job, const Span* span, Py_ssize_t lo, double* x, double* y, Py_ssize_t n,
                       real* kind) noexcept nogil:
    """The first pass over elements [lo, lo + n) of a span."""
    cdef real shaped[TILE]
    cdef real* p = at(span.p, lo, kind)
    cdef real* g = at(span.g, lo, kind)
    if job.decay_factor != 1.0:
        shrink(job.decay_factor, p, n)
    if job.transforms_grad:
        shape(job, span, lo, shaped, g, p, n)
        g = shaped
    if real is float:
        loops[job.kernel].measure_narrow(
            &job.scalars[0], p, g, at(span.s, lo, kind), at(span.t, lo, kind), at(span.u, lo, kind),
            at(span.v, lo, kind), x, y, n)
    else:
        loops[job.kernel].measure_wide(
            &job.scalars[0], p, g, at(span.s, lo, kind), at(span.t, lo, kind), at(span.u, lo, kind),
            at(span.v, lo, kind), x, y, n)


cdef void measure_walk(const UpdateArgs* job, const Span* span, Py_ssize_t lo, Py_ssize_t hi, double* sums,
                       real* kind) noexcept nogil:
    """The first pass over elements [lo, hi) of a span, tile by tile, and its two sums."""
    cdef double x[TILE]
    cdef double y[TILE]
    cdef double x_lane[LANES]
    cdef double y_lane[LANES]
    cdef Py_ssize_t n, soon
    memset(x_lane, 0, sizeof(x_lane))
    memset(y_lane, 0, sizeof(y_lane))
    while lo < hi:
        soon = lo + AHEAD
        if soon < hi:
            prefetch_all(job, span, soon, kind)
        n = min(TILE, hi - lo)
        measure_tile(job, span, lo, x, y, n, kind)
        add_lanes(x_lane, x, n)
        add_lanes(y_lane, y, n)
        lo += n
    sums[0] = fold(x_lane)
    sums[1] = fold(y_lane)


cdef void survey(const UpdateArgs* job, const Span* span, Py_ssize_t lo, Py_ssize_t hi, double* sums) noexcept nogil:
    if not has_measure(job):
        sums[0] = sums[1] = 0.0
    elif span.is_f64:
        measure_walk(job, span, lo, hi, sums, <double*> NULL)
    else:
        measure_walk(job, span, lo, hi, sums, <float*> NULL)


cdef void add_row(const UpdateArgs* job, const real* restrict p, const real* restrict g, double* restrict a,
                  double* restrict b, double* restrict c, Py_ssize_t n) noexcept nogil:
    """a = a + g;  b = b + g g;  c = c + p p;  of the scaled and clamped gradient"""
    cdef Py_ssize_t i
    cdef real scale = <real> job.grad_scale, low = <real> -job.clip, high = <real> job.clip
    cdef double x
    for i in range(n):
        x = <double> clamp(scale * g[i], low, high)
        a[i] += x
        b[i] += x * x
        c[i] += <double> p[i] * <double> p[i]


cdef void add_rows(const UpdateArgs* job, const Span* x, Py_ssize_t units, double* sums, real* kind) noexcept nogil:
    cdef Py_ssize_t i = 0
    while i < x.n:
        add_row(job, at(x.p, i, kind), at(x.g, i, kind), sums, sums + units, sums + 2 * units, units)
        i += units


cdef void unit_sums(const UpdateArgs* job, const Span* x, Py_ssize_t units, double* sums) noexcept nogil:
    if x.is_f64:
        add_rows(job, x, units, sums, <double*> NULL)
    else:
        add_rows(job, x, units, sums, <float*> NULL)


cdef Kernels exported = [update, squares, survey, unit_sums]

KERNELS = PyCapsule_New(&exported, "fastopt.kernels", NULL)
