"""Plain C structures that the step table passes to a kernel module."""
from libc.stdint cimport uint64_t

cdef enum:
    MAX_SCALARS = 12    # fields of the largest rule struct


cdef enum Format:
    # How the elements of an array are stored; `formats.py` has the same numbers.
    NATIVE = 0          # as the kernels compute: float64 if `is_f64`, else float32
    FLOAT16 = 1
    FLOAT32 = 2         # of a gradient, if the kernels compute in float64
    FLOAT64 = 3         # of a gradient, if they compute in float32
    BFLOAT16 = 4
    SIGNED8 = 5         # codes of 8 bits and one scale per block
    UNSIGNED8 = 6
    SPLIT = 7           # a parameter of bfloat16 whose low 16 bits are in an array of their own

cdef enum:
    MAX_STATES = 4      # state arrays of one parameter
    LOW_ARRAY = 7       # number of `low` among the arrays of a span
    N_ARRAYS = 8        # of a span, the gradient apart


cdef struct UpdateArgs:
    # Everything that the update of a group's elements depends on in this step.
    int kernel                  # index of the kernel, whose rule struct is `scalars`
    bint transforms_grad        # whether grad_scale, clip, units or l2_decay change the gradient
    bint maximize               # the sign of the gradient is flipped
    bint zero_grad              # the gradient is set to zero after use
    double grad_scale           # g = grad_scale g: sign of `maximize`, loss scaling, clipping by norm
    double clip                 # g = min(max(g, -clip), clip)
    double l2_decay             # g = g + l2_decay p
    double decay_factor         # p = decay_factor p before the update rule
    bint decays_copy            # the first state array is a copy of p, and is multiplied, too
    double lookahead_alpha      # w = w + lookahead_alpha (p - w), then p = w, unless it is 0
    double ema_decay            # e = ema_decay e + (1 - ema_decay) p
    uint64_t step               # of the parameters, for the noise of stochastic rounding
    double scalars[MAX_SCALARS]     # the rule struct


cdef struct Span:
    # Addresses of one parameter array and of everything that belongs to it.
    char* p                     # parameter
    char* g                     # gradient, bound at each step
    char* s                     # state arrays; NULL if the rule has fewer
    char* t
    char* u
    char* v
    char* low                   # low 16 bits of a SPLIT parameter, or NULL
    char* w                     # slow parameters of Lookahead, or NULL
    char* e                     # moving average of the parameters, or NULL
    char* unit_scale            # per unit, g = unit_scale g - unit_shift; NULL if gradients are not
    char* unit_shift            # changed by unit
    Py_ssize_t n_units          # element i belongs to unit i // unit_stride % n_units
    Py_ssize_t unit_stride
    Py_ssize_t n                # elements
    bint is_f64                 # whether the kernels compute in float64, else in float32
    Format param_format, grad_format
    Format state_formats[MAX_STATES]    # of s, t, u, v; the remaining arrays are NATIVE
    float* scales[MAX_STATES]   # of 8-bit state, one per block: its largest magnitude
    Py_ssize_t block            # elements of a block of 8-bit state, 0 if there is none
    bint is_encoded             # an array that a step writes is not NATIVE
    bint has_encoded_state      # a state array is not NATIVE
    bint to_nearest             # the parameter is rounded to nearest, else stochastically
    uint64_t noise              # `fo_noise_of_param`
    Py_ssize_t origin           # index in the parameter of the first element, for the noise
    int group                   # index of its UpdateArgs


cdef inline Py_ssize_t itemsize(Format format, bint is_f64) noexcept nogil:
    """Bytes of an element."""
    if format == FLOAT16 or format == BFLOAT16 or format == SPLIT:
        return 2
    if format == SIGNED8 or format == UNSIGNED8:
        return 1
    if format == NATIVE:
        return 8 if is_f64 else 4
    return 8 if format == FLOAT64 else 4


cdef inline Py_ssize_t array_itemsize(const Span* x, int i) noexcept nogil:
    """Bytes of an element of array i of a span: p, s, t, u, v, then those that are always NATIVE, and `low`."""
    if i == 0:
        return itemsize(x.param_format, x.is_f64)
    if i == LOW_ARRAY:
        return 2
    return itemsize(x.state_formats[i - 1] if i <= MAX_STATES else NATIVE, x.is_f64)


# Update elements [lo, hi) of a span.
ctypedef void (*Update)(const UpdateArgs* args, const Span* x, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil
# Sum of squares of elements [lo, hi) of the gradient, in double and in a fixed order.
ctypedef double (*SumSquares)(const Span* x, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil
# First pass of a two-pass rule: two sums over elements [lo, hi), in double and in a fixed order.
ctypedef void (*ReducePass)(const UpdateArgs* args, const Span* x, Py_ssize_t lo, Py_ssize_t hi,
                            double* sums) noexcept nogil
# Per unit, the sums of the gradient, of its squares and of the squares of the parameters, in double and in a fixed
# order, into sums[0:units], sums[units:2 units] and sums[2 units:3 units], which must be zero before.
ctypedef void (*UnitSums)(const UpdateArgs* args, const Span* x, Py_ssize_t units, double* sums) noexcept nogil
# Elements [0, n) of the parameter as the kernels compute with them.
ctypedef void (*CopyParams)(const Span* x, Py_ssize_t n, char* out) noexcept nogil


cdef struct Kernels:
    # The functions that a kernel module exports.
    Update update
    SumSquares sum_squares
    ReducePass reduce_pass
    UnitSums unit_sums
    CopyParams copy_params


# Count a step.
ctypedef void (*Finish)(void* context) noexcept nogil


cdef struct StepLease:
    # The arrays of an optimizer during a step, for a caller that performs the updates. When it has updated
    # every element once, it calls finish(context).
    Update update
    const UpdateArgs* args
    const Span* spans
    Py_ssize_t count
    Finish finish
    void* context
