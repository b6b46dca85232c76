"""Steps on arrays that are checked in the same call; no array is kept afterwards.

A `KernelCall` takes the addresses from the buffers of the arrays and runs its kernel over all of them at once. If
the kernel cannot take the arrays as they are, the call returns False before anything is written: the caller then
takes the step in another way, or finds the error to raise.
"""
cimport cython
from cpython.buffer cimport (
    Py_buffer, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_IsContiguous, PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.dict cimport PyDict_GetItem
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport INFINITY
from libc.stdlib cimport qsort
from libc.string cimport memset

from fastopt._core.kernel_scalars cimport set_constants, set_step_scalars
from fastopt._core.span cimport MAX_SCALARS, Kernels, Span, UpdateArgs
from fastopt._core.step_context cimport BYTES_PER_NS, SERIAL_BELOW, StepContext, parallel_for, update_part

import numpy

from fastopt._core import dispatch

cdef enum:
    MAX_STATES = 4              # state arrays of one parameter
    C_ORDER = 1                 # memory layouts, as flags
    F_ORDER = 2

# C variables, because names of the module are looked up at each use.
cdef object ndarray = numpy.ndarray, float32 = numpy.dtype("float32"), float64 = numpy.dtype("float64")
cdef dict fields = dispatch.kernels.FIELDS          # the same for every instruction set
cdef dict kernel_index = dispatch.kernels.KERNEL_INDEX
cdef object selected = dispatch                     # whose `kernels` are those of the selected instruction set


cdef struct Range:
    # Bytes of one array.
    char* first
    char* end
    bint written


cdef struct Call:
    # Everything about one step.
    StepContext context         # its `spans` and the following arrays are in one block of memory
    UpdateArgs args
    Py_buffer* views            # of all arrays
    Range* ranges               # of all arrays that have elements
    Py_ssize_t capacity, n_views, max_views, n_ranges
    const Py_buffer* param      # last parameter, the number of its state arrays, and the layouts of all its arrays
    int n_states
    int layout


cdef int allocate(Call* call, Py_ssize_t count, Py_ssize_t per_param) except -1:
    """Make room for a number of parameters with `per_param` arrays each."""
    cdef Py_ssize_t n = count * per_param
    cdef char* block = <char*> PyMem_Calloc(1, (
        count * sizeof(Span) + n * (sizeof(Py_buffer) + sizeof(Range)) + (count + 1) * sizeof(Py_ssize_t)))
    if block == NULL:
        raise MemoryError()
    call.context.spans, call.capacity, call.max_views = <Span*> block, count, n
    call.views = <Py_buffer*> (block + count * sizeof(Span))
    call.ranges = <Range*> (call.views + n)
    call.context.first = <Py_ssize_t*> (call.ranges + n)
    return 0


cdef void end(Call* call) noexcept:
    cdef Py_ssize_t i
    for i in range(call.n_views):
        PyBuffer_Release(&call.views[i])
    PyMem_Free(call.context.spans)


# --- Arrays ----------------------------------------------------------------------------------------

cdef Py_buffer* bind(Call* call, object array, object array_dtype, bint written) except? NULL:
    """Take the buffer of an array, which is held until the end of the call; NULL if it is not of this dtype."""
    cdef Py_buffer* view = &call.views[call.n_views]
    cdef Range* bounds = &call.ranges[call.n_ranges]
    if type(array) is not ndarray:
        return NULL
    found = array.dtype
    if found is not array_dtype and found != array_dtype:
        return NULL
    try:
        PyObject_GetBuffer(array, view, PyBUF_STRIDES | (PyBUF_WRITABLE if written else 0))
    except (BufferError, ValueError):       # a read-only array
        return NULL
    call.n_views += 1
    if view.len > 0:
        bounds.first, bounds.end, bounds.written = <char*> view.buf, <char*> view.buf + view.len, written
        call.n_ranges += 1
    return view


cdef int layouts(const Py_buffer* view) noexcept:
    """Memory layouts that an array has; 0 if it has gaps or is not aligned."""
    if view.len == 0:
        return C_ORDER | F_ORDER
    if <Py_ssize_t> view.buf % view.itemsize != 0:
        return 0
    return ((C_ORDER if PyBuffer_IsContiguous(view, b"C") else 0)
            | (F_ORDER if PyBuffer_IsContiguous(view, b"F") else 0))


cdef bint same_shape(const Py_buffer* x, const Py_buffer* p, int skipped) noexcept:
    """Whether the shape of x is that of p without its first `skipped` axes."""
    cdef int i
    if x.ndim != p.ndim - skipped:
        return False
    for i in range(x.ndim):
        if x.shape[i] != p.shape[i + skipped]:
            return False
    return True


cdef bint add(Call* call, object param, object grad, bint broadcast) except -1:
    """Add a parameter and its gradient; False if the kernels cannot take them.

    With `broadcast`, the gradient may lack leading axes of length 1.
    """
    cdef Py_buffer* p
    cdef Py_buffer* g
    cdef Span* span = &call.context.spans[call.context.count]
    cdef int skipped = 0
    if call.context.count == call.capacity or type(param) is not ndarray:
        return False
    array_dtype = param.dtype
    if array_dtype is not float32 and array_dtype is not float64:   # copies of a dtype are equal, not identical
        array_dtype = float32 if array_dtype == float32 else float64
    p = bind(call, param, array_dtype, True)
    if p == NULL:
        return False
    g = bind(call, grad, array_dtype, False)
    if g == NULL:
        return False
    call.layout = layouts(p) & layouts(g)
    if broadcast and g.ndim < p.ndim:
        while skipped < p.ndim - g.ndim and p.shape[skipped] == 1:
            skipped += 1
        call.layout &= C_ORDER          # of both arrays, so that their elements have the same order
    if call.layout == 0 or not same_shape(g, p, skipped):
        return False
    span.p, span.g = <char*> p.buf, <char*> g.buf
    span.n, span.is_f64 = p.len // p.itemsize, p.itemsize == 8
    call.param, call.n_states = p, 0
    call.context.bytes += 2 * p.len
    call.context.count += 1
    call.context.first[call.context.count] = call.context.first[call.context.count - 1] + span.n
    return True


cdef bint add_state(Call* call, object array) except -1:
    """Add a state array of the last parameter; False if the kernels cannot take it."""
    cdef Span* span = &call.context.spans[call.context.count - 1]
    cdef Py_buffer* x
    if call.n_states == MAX_STATES or call.n_views == call.max_views:
        return False
    x = bind(call, array, float64 if span.is_f64 else float32, True)
    if x == NULL:
        return False
    call.layout &= layouts(x)
    if call.layout == 0 or not same_shape(x, call.param, 0):
        return False
    if call.n_states == 0:
        span.s = <char*> x.buf
    elif call.n_states == 1:
        span.t = <char*> x.buf
    elif call.n_states == 2:
        span.u = <char*> x.buf
    else:
        span.v = <char*> x.buf
    call.n_states += 1
    call.context.bytes += x.len
    return True


cdef int compare(const void* x, const void* y) noexcept nogil:
    cdef char* a = (<const Range*> x).first
    cdef char* b = (<const Range*> y).first
    return (a > b) - (a < b)


cdef bint is_disjoint(Call* call) noexcept:
    """Whether no array that is written shares memory with another one."""
    cdef Py_ssize_t i
    cdef Range* x
    cdef char* any_end = NULL           # last byte of all ranges so far, and of those that are written
    cdef char* written_end = NULL
    qsort(call.ranges, call.n_ranges, sizeof(Range), compare)
    for i in range(call.n_ranges):
        x = &call.ranges[i]
        if x.first < (any_end if x.written else written_end):
            return False
        any_end = max(any_end, x.end)
        if x.written:
            written_end = max(written_end, x.end)
    return True


# --- The update ------------------------------------------------------------------------------------

cdef void update(Call* call) noexcept:
    call.context.args, call.context.nanoseconds = &call.args, call.context.bytes // BYTES_PER_NS
    if call.context.bytes < SERIAL_BELOW:
        update_part(&call.context, 0, 1)    # releasing the interpreter would take longer
    else:
        with nogil:
            parallel_for(update_part, &call.context)


cdef class KernelCall:
    """An elementwise kernel, and its scalars that do not depend on the step.

    Parameters
    ----------
    kernel : str
    constants : dict of str to float
        Scalars of the kernel by name. Those that are not given are passed to each step.
    maximize : bool
    l2_decay : float
        Weight decay that is added to the gradient.
    decay_factor : float
        Factor by which the parameters are multiplied before the update.
    decays_copy : bool
        Whether this multiplies the first state array, too.
    """
    cdef UpdateArgs args
    cdef str kernel
    cdef list step_fields               # names of the scalars of each step
    cdef char[MAX_SCALARS] step_index   # their indices among all scalars

    def __cinit__(self, str kernel not None, dict constants not None, bint maximize, double l2_decay,
                  double decay_factor, bint decays_copy):
        cdef UpdateArgs* args = &self.args
        self.kernel = kernel
        self.step_fields = set_constants(args, kernel, fields[kernel], constants, self.step_index)
        args.kernel, args.maximize = kernel_index[kernel], maximize
        args.grad_scale, args.clip = -1.0 if maximize else 1.0, <double> INFINITY
        args.l2_decay, args.decay_factor, args.decays_copy = l2_decay, decay_factor, decays_copy
        args.transforms_grad = maximize or l2_decay != 0.0

    cdef int begin(self, Call* call, dict scalars, Py_ssize_t count, Py_ssize_t per_param) except -1:
        """Make room for a number of parameters with `per_param` arrays each, and set the scalars of a step."""
        memset(call, 0, sizeof(Call))
        call.args = self.args
        set_step_scalars(&call.args, self.kernel, self.step_fields, self.step_index, scalars)
        call.context.kernels = (<Kernels*> PyCapsule_GetPointer(selected.kernels.KERNELS, "fastopt.kernels"))[0]
        return allocate(call, count, per_param)

    def update_array(self, dict scalars not None, object param, object grad, tuple states not None):
        """Take a step on one array.

        Parameters
        ----------
        scalars : dict of str to float
            Scalars of this step by name.
        param, grad : ndarray
        states : tuple of ndarray
            State arrays, in the order of the rule.

        Returns
        -------
        bool
            Whether the step was taken.
        """
        cdef Call call
        self.begin(&call, scalars, 1, 2 + len(states))
        try:
            if not add(&call, param, grad, False):
                return False
            for array in states:
                if not add_state(&call, array):
                    return False
            if not is_disjoint(&call):
                return False
            update(&call)
            return True
        finally:
            end(&call)

    @cython.boundscheck(True)       # a list may shrink while its items are read
    def update_layers(self, dict scalars not None, object params, object grads, tuple states not None,
                      bint is_reversed):
        """Take a step on all arrays of a list of layers, each an array or a list of arrays.

        Parameters
        ----------
        scalars : dict of str to float
            Scalars of this step by name.
        params : list of layers
        grads : list of layers
            Nested like `params`. An array may lack leading axes of length 1.
        states : tuple of lists of layers
            Each nested like `params`.
        is_reversed : bool
            Whether `grads` starts with the last layer.

        Returns
        -------
        bool
            Whether the step was taken.
        """
        cdef Call call
        cdef Py_ssize_t i, n_layers, count = 0
        for tree in (params, grads, *states):
            if not is_list(tree) or len(tree) != len(params):
                return False
        n_layers = len(params)
        for layer in params:
            if type(layer) is ndarray:
                count += 1
            elif is_list(layer):
                count += len(layer)
            else:
                return False
        self.begin(&call, scalars, count, 2 + len(states))
        try:
            for i in range(n_layers):
                layer, grad_layer = params[i], grads[n_layers - 1 - i if is_reversed else i]
                state_layers = [tree[i] for tree in states]
                if type(layer) is ndarray:
                    if not add(&call, layer, grad_layer, True):
                        return False
                    for array in state_layers:
                        if not add_state(&call, array):
                            return False
                elif not add_layer(&call, layer, grad_layer, state_layers):
                    return False
            if not is_disjoint(&call):
                return False
            update(&call)
            return True
        finally:
            end(&call)


@cython.boundscheck(True)
cdef bint add_layer(Call* call, object params, object grads, list states) except -1:
    """Add the arrays of a layer; False if the kernels cannot take them."""
    cdef Py_ssize_t i, n
    if not is_list(params) or not is_list(grads) or len(params) != len(grads):
        return False
    n = len(params)
    for layer in states:
        if not is_list(layer) or len(layer) != n:
            return False
    for i in range(n):
        if not add(call, params[i], grads[i], True):
            return False
        for layer in states:
            if not add_state(call, layer[i]):
                return False
    return True


cdef inline bint is_list(object x):
    return type(x) is list or type(x) is tuple


def contains_objects(dict x not None, dict y not None):
    """Return whether a dict has the very objects of another one under the same keys."""
    for key, value in y.items():
        if PyDict_GetItem(x, key) != <PyObject*> value:
            return False
    return True
