"""What the span table hands to a kernel module: plain C structures, shared by both sides."""

cdef enum:
    SCALARS = 12    # room for the longest rule struct


cdef struct Job:
    # What one group asks of every one of its elements in this step.
    int rule                    # which rule struct `scalars` is
    bint shape                  # whether scale, clip or decay change the gradient at all
    bint maximize               # ascend: the gradient's sign is turned
    bint zero_grad              # leave zeros where the gradient was
    double scale                # g = scale g: the sign of `maximize`, loss scaling, clipping by norm
    double clip                 # g = min(max(g, -clip), clip)
    double decay                # g = g + decay p: L2 weight decay
    double keep                 # p = keep p before the rule
    double pull                 # w = w + pull (p - w), p = w after it, unless 0
    double ema                  # e = ema e + (1 - ema) p
    int constants               # how many of the scalars are set when the hyperparameters are
    double scalars[SCALARS]     # the rule struct


cdef struct Span:
    # One parameter array and all that belongs to it, as addresses.
    char* p                     # parameter
    char* g                     # gradient, filled in at each step
    char* s                     # state: as many as the rule has, else NULL
    char* t
    char* u
    char* v
    char* w                     # slow parameters that the others are pulled to, NULL if there are none
    char* e                     # average of the parameters, NULL if none is kept
    char* factor                # for each unit what its gradient is multiplied by and what is taken off,
    char* shift                 # NULL if nothing is
    Py_ssize_t units            # length of these: element i belongs to unit i % units
    Py_ssize_t n                # elements
    bint wide                   # float64, else float32
    int job                     # its group, an index into the jobs


# Update elements [lo, hi) of a span.
ctypedef void (*Update)(const Job* job, const Span* x, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil
# Sum of squares of the gradient's elements [lo, hi), in double and in a fixed order.
ctypedef double (*Squares)(const Span* x, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil

# For each unit the sums of its gradient, of the gradient's squares and of the parameters', in double and in a
# fixed order, into sums[0:units], sums[units:2 units] and sums[2 units:3 units], which are zeros before.
ctypedef void (*UnitSums)(const Job* job, const Span* x, Py_ssize_t units, double* sums) noexcept nogil
# The first pass of a rule that has one: two sums over elements [lo, hi), in double and in a fixed order.
ctypedef void (*Survey)(const Job* job, const Span* x, Py_ssize_t lo, Py_ssize_t hi,
                        double* sums) noexcept nogil


cdef struct Kernels:
    # All that a kernel module exports.
    Update update
    Squares squares
    Survey survey
    UnitSums unit_sums


cdef struct StepLease:
    # The arrays of an optimizer in the midst of a step, for one who updates them himself.
    Update update
    const Job* jobs
    const Span* spans
    Py_ssize_t count
