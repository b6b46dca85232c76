"""The watch over the containers of parameters, for the step table."""
from cpython.object cimport PyObject


cdef struct Slot:
    # An item of a list or dict of the caller; `ContainerWatch.slots` owns the references.
    PyObject* container
    PyObject* key               # of a dict, else NULL
    PyObject* item
    Py_ssize_t index            # in a list
    Py_ssize_t size             # of the container, at its first item; else -1


cdef class ContainerWatch:
    cdef list slots
    cdef object reread
    cdef Slot* first
    cdef Py_ssize_t count

    cdef int set_slots(self, list slots) except -1
    cdef bint is_changed(self) noexcept
    cdef int verify(self) except -1
