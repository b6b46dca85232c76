"""Tensors of another library, read through the C exchange interface of DLPack.

An optimizer over tensors takes nothing for granted: its groups, its state and the memory of every tensor may be
replaced between two steps. A `TensorWatch` compares them with what the step table was made of, and gives the
table the addresses of the gradients.
"""
from cpython.dict cimport PyDict_GetItem, PyDict_Next, PyDict_SetItem, PyDict_Size
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastopt._core.gradients cimport Gradients, GradSource
from fastopt._core.runtime cimport data_ptr

cdef extern from "Python.h":       # on pointers, so that no reference is counted
    PyObject* list_item "PyList_GetItem" (object container, Py_ssize_t i)
    void PyErr_Clear()

cdef enum:
    MAJOR_VERSION = 1       # of the interface
    CPU = 1                 # device
    INTEGER = 0             # codes of dtypes
    COMPLEX = 5


cdef struct TensorFields:
    # What the interface calls DLTensor.
    char* data
    int32_t device_type
    int32_t device_id
    int32_t ndim
    uint8_t code
    uint8_t bits
    uint16_t lanes
    int64_t* shape
    int64_t* strides
    uint64_t byte_offset


cdef struct Interface:
    # What the interface calls DLPackExchangeAPI, up to the function that is used here.
    uint32_t major
    uint32_t minor
    void* older
    void* allocate
    void* export_tensor
    void* import_tensor
    int (*read)(PyObject* tensor, TensorFields* fields) noexcept


cdef struct SavedTensor:
    # What a tensor was when its address was taken.
    char* data
    int32_t ndim
    uint8_t code
    uint8_t bits
    bint is_wrapper             # the memory is that of another tensor, see `unwrap`
    bint is_copied              # its gradient is given to the table as an array
    int64_t* shape              # and strides


cdef struct StepCell:
    # The memory of a tensor with the step count of a parameter.
    char* data
    uint8_t code
    uint8_t bits


cdef inline bint has_layout(const TensorFields* x, const SavedTensor* saved) noexcept:
    """Whether a tensor has the dtype, shape and memory layout of another one, and is in the memory of the CPU."""
    cdef int i
    if x.device_type != CPU or x.ndim != saved.ndim or x.code != saved.code or x.bits != saved.bits:
        return False
    for i in range(x.ndim):
        if x.shape[i] != saved.shape[i] or (
                x.shape[i] != 1 and x.strides[i] != saved.shape[saved.ndim + i]):
            return False
    return True


cdef inline bint has_one_element(const TensorFields* x) noexcept:
    """Whether a tensor may be the imaginary part of a conjugate: one with more elements has gaps in memory."""
    cdef int i
    for i in range(x.ndim):
        if x.shape[i] != 1:
            return False
    return True


cdef int raise_error() except -1:
    """Raise the exception that the interface has set."""
    return -1


cdef double count_in(const StepCell* cell) noexcept:
    if cell.code == INTEGER:
        return <double> (<int64_t*> cell.data)[0]
    if cell.bits == 32:
        return <double> (<float*> cell.data)[0]
    return (<double*> cell.data)[0]


cdef void set_count(const StepCell* cell, int64_t count) noexcept:
    if cell.code == INTEGER:
        (<int64_t*> cell.data)[0] = count
    elif cell.bits == 32:
        (<float*> cell.data)[0] = <float> count
    else:
        (<double*> cell.data)[0] = <double> count


cdef object mutable = object()      # is no hyperparameter


cdef class TensorWatch(GradSource):
    """The tensors, groups and state that a step table was made of.

    Parameters
    ----------
    interface : capsule
        C exchange interface of the library.
    unwrap : callable
        Returns the tensor with the memory of a tensor that is a wrapper.
    to_gradient : callable
        ``to_gradient(tensor, k)`` returns the gradient of parameter `k` of the table as an array or as `Rows`,
        if the kernels cannot read it where it is.
    groups : list of dict
        Groups with the key ``"params"``.
    names : tuple of str
        Hyperparameters of a group.
    places : list of int
        Index in the table of each parameter of all groups, in their order; -1 if the table does not have it.

    Attributes
    ----------
    changed : list of (int, str)
        Index of the group and name of each hyperparameter that may have another value.
    n_gradients : int
        Number of parameters that have a gradient in this step.
    """
    cdef const Interface* interface
    cdef object unwrap, to_gradient
    cdef list groups, params, grads
    cdef readonly list changed
    cdef tuple names
    cdef list values            # of the hyperparameters of all groups; `mutable` if one can change in place
    cdef list tensors           # with saved addresses: the parameters of the table come first
    cdef SavedTensor* saved
    cdef Py_ssize_t n_saved, capacity
    cdef Py_ssize_t* places
    cdef Py_ssize_t count       # parameters of the table
    cdef list entries           # keys and values of the state, in turn
    cdef list own               # per parameter of the table: its state
    cdef list own_names         # names that are read of it
    cdef list own_values        # and their values
    cdef StepCell* cells
    cdef const int64_t* counts
    cdef object count_array
    cdef bint as_arrays
    cdef readonly Py_ssize_t n_gradients

    def __cinit__(self, object interface, object unwrap, object to_gradient, list groups, tuple names,
                  list places, Py_ssize_t n_tensors, object counts, bint as_arrays):
        cdef Py_ssize_t i
        self.interface = <const Interface*> PyCapsule_GetPointer(interface, "dlpack_exchange_api")
        if self.interface.major != MAJOR_VERSION or self.interface.read == NULL:
            raise ImportError("the exchange interface of this tensor library is not known")
        self.unwrap, self.to_gradient, self.as_arrays = unwrap, to_gradient, as_arrays
        self.groups, self.names = list(groups), names
        self.params = [p for group in groups for p in group["params"]]
        self.grads, self.changed, self.tensors = [None] * len(self.params), [], []
        self.values = [None] * (len(groups) * len(names))
        self.entries, self.own, self.own_names, self.own_values = [], [], [], []
        self.count = len(counts)
        self.capacity = n_tensors
        self.saved = <SavedTensor*> PyMem_Calloc(n_tensors + 1, sizeof(SavedTensor))
        self.places = <Py_ssize_t*> PyMem_Calloc(len(places) + 1, sizeof(Py_ssize_t))
        self.cells = <StepCell*> PyMem_Calloc(self.count + 1, sizeof(StepCell))
        if self.saved == NULL or self.places == NULL or self.cells == NULL:
            raise MemoryError()
        for i in range(len(places)):
            self.places[i] = places[i]
        self.count_array, self.counts = counts, <const int64_t*> data_ptr(counts, False)

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.n_saved):
            PyMem_Free(self.saved[i].shape)
        PyMem_Free(self.saved)
        PyMem_Free(self.places)
        PyMem_Free(self.cells)

    # --- What is watched ---

    def save(self, tensor, bint is_wrapper, bint is_copied=False):
        """Save the address and the layout of a tensor. The parameters of the table come first, in its order."""
        cdef TensorFields x
        cdef SavedTensor* saved = &self.saved[self.n_saved]
        if self.n_saved == self.capacity:
            raise ValueError(f"tensor: expected at most {self.capacity}")
        inner = self.unwrap(tensor) if is_wrapper else tensor
        if self.interface.read(<PyObject*> inner, &x) != 0:
            raise_error()
        saved.shape = <int64_t*> PyMem_Calloc(2 * x.ndim + 1, sizeof(int64_t))
        if saved.shape == NULL:
            raise MemoryError()
        if x.ndim:
            memcpy(saved.shape, x.shape, x.ndim * sizeof(int64_t))
            memcpy(saved.shape + x.ndim, x.strides, x.ndim * sizeof(int64_t))
        saved.data, saved.ndim, saved.code, saved.bits = x.data, x.ndim, x.code, x.bits
        saved.is_wrapper, saved.is_copied = is_wrapper, is_copied
        self.tensors.append(tensor)
        self.n_saved += 1

    def save_count(self, Py_ssize_t k, tensor):
        """Save a tensor with the step count of parameter `k` of the table, which is updated with each step."""
        self.save(tensor, False)
        saved = &self.saved[self.n_saved - 1]
        self.cells[k] = StepCell(saved.data, saved.code, saved.bits)

    def save_state(self, state, list own, list names):
        """Save the state, and for each parameter of the table the values of some names in its own state."""
        self.entries = [x for item in state.items() for x in item]
        self.own, self.own_names = own, names
        self.own_values = [x[name] for x, own_names in zip(own, names, strict=True) for name in own_names]

    def save_value(self, Py_ssize_t i, str name, value, bint is_mutable):
        """Save a hyperparameter of group `i`, and whether its value may change in place."""
        self.values[i * len(self.names) + self.names.index(name)] = mutable if is_mutable else value

    # --- A step ---

    def is_current(self, list groups, state):
        """Return whether the table still holds; if so, take the present gradients of the parameters."""
        self.changed.clear()
        return (self.has_groups(groups) and self.has_state(state) and self.has_tensors()
                and self.take_gradients())

    cdef bint has_groups(self, list groups) except -1:
        cdef Py_ssize_t i, j, k = 0, n_names = len(self.names)
        cdef PyObject* found
        cdef PyObject* saved
        if len(groups) != len(self.groups):
            return False
        for i in range(len(groups)):
            if list_item(groups, i) != list_item(self.groups, i):
                return False
            group = <object> list_item(groups, i)
            found = PyDict_GetItem(group, "params")
            if found == NULL or type(<object> found) is not list:
                return False
            params = <list> <object> found
            if k + len(params) > len(self.params):
                return False
            for j in range(len(params)):
                if list_item(params, j) != list_item(self.params, k):
                    return False
                k += 1
            for j in range(n_names):
                found, saved = PyDict_GetItem(group, self.names[j]), list_item(self.values, i * n_names + j)
                if found != saved:
                    self.changed.append((i, self.names[j]))
        return k == len(self.params)

    cdef bint has_state(self, state) except -1:
        cdef Py_ssize_t i = 0, j = 0, position = 0
        cdef PyObject* key
        cdef PyObject* value
        if 2 * PyDict_Size(state) != len(self.entries):
            return False
        while PyDict_Next(state, &position, &key, &value):
            if key != list_item(self.entries, i) or value != list_item(self.entries, i + 1):
                return False
            i += 2
        for i in range(len(self.own)):
            own = <object> list_item(self.own, i)
            for name in <tuple> <object> list_item(self.own_names, i):
                if PyDict_GetItem(own, name) != list_item(self.own_values, j):
                    return False
                j += 1
        return True

    cdef bint has_tensors(self) except -1:
        cdef Py_ssize_t i
        cdef TensorFields x
        for i in range(self.n_saved):
            if not self.read(<object> list_item(self.tensors, i), self.saved[i].is_wrapper, &x):
                return False
            if x.data != self.saved[i].data or not has_layout(&x, &self.saved[i]):
                return False
        for i in range(self.count):
            if self.cells[i].data != NULL and count_in(&self.cells[i]) != <double> self.counts[i]:
                return False
        return True

    cdef bint read(self, object tensor, bint is_wrapper, TensorFields* x) except -1:
        """Read the fields of a tensor; False if its memory does not hold its values."""
        inner = self.unwrap(tensor) if is_wrapper else tensor
        if self.interface.read(<PyObject*> inner, x) != 0:
            PyErr_Clear()
            return False
        return x.code != COMPLEX or not inner.is_conj()

    cpdef bint take_gradients(self) except -1:
        """Take the gradients of all parameters; False if one has a gradient and is not in the table."""
        cdef Py_ssize_t i
        self.n_gradients = 0
        for i in range(len(self.params)):
            grad = (<object> list_item(self.params, i)).grad
            self.grads[i] = grad
            if grad is not None:
                self.n_gradients += 1
                if self.places[i] < 0:
                    return False
        return True

    cdef int bind_to(self, Gradients gradients) except -1:
        """Give the gradients to the step table."""
        cdef Py_ssize_t i, k
        for i in range(len(self.params)):
            k = self.places[i]
            if k < 0:
                continue
            grad = self.grads[i]
            if grad is None:
                gradients.bind_no_grad(k)
            elif not self.bind_address(gradients, k, grad):
                gradients.bind_grad(k, self.to_gradient(grad, k))
        return 0

    cdef bint bind_address(self, Gradients gradients, Py_ssize_t k, object grad) except -1:
        """Bind a gradient where it is; False if the kernels cannot read it there."""
        cdef TensorFields x
        cdef SavedTensor* param = &self.saved[k]
        if self.as_arrays or param.is_copied:
            return False
        if not self.read(grad, param.is_wrapper, &x):
            param.is_copied = True      # a sparse gradient, most likely at each step: errors take their time
            return False
        if not has_layout(&x, param) or (has_one_element(&x) and grad.is_neg()):
            return False
        return gradients.bind_address(k, x.data)

    def stepped(self):
        """Return the parameters that have a gradient in this step."""
        if self.n_gradients == len(self.params):
            return self.params
        return [p for p, grad in zip(self.params, self.grads, strict=True) if grad is not None]

    def set_scalars(self, list scalars):
        """Set the first values in the state of each parameter of the table; None leaves them unchanged."""
        cdef Py_ssize_t k, i, first = 0
        for k in range(self.count):
            names, values = <tuple> self.own_names[k], scalars[k]
            for i in range(0 if values is None else len(values)):
                PyDict_SetItem(self.own[k], names[i], values[i])
                self.own_values[first + i] = values[i]
            first += len(names)

    def write_counts(self):
        """Write the step counts of the parameters to their tensors."""
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.cells[i].data != NULL:
                set_count(&self.cells[i], self.counts[i])

    def release(self):
        """Drop the gradients."""
        cdef Py_ssize_t i
        for i in range(len(self.grads)):
            self.grads[i] = None
