"""The caller's lists and dicts of parameters: whether they still have the arrays that an optimizer updates."""
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject

cdef extern from "Python.h":       # on pointers, so that no reference is counted
    Py_ssize_t list_size "PyList_Size" (PyObject* container)
    PyObject* list_item "PyList_GetItem" (PyObject* container, Py_ssize_t i)
    Py_ssize_t dict_size "PyDict_Size" (PyObject* container)
    PyObject* dict_item "PyDict_GetItemWithError" (PyObject* container, PyObject* key)
    void PyErr_Clear()


cdef class ContainerWatch:
    """Notices that the caller's lists and dicts have other items than when they were read.

    Parameters
    ----------
    slots : list of (container, key, item)
        As `pytree.flatten` returns them: those of a container follow one another.
    reread : callable
        Called when an item is another object. Returns the present slots, or raises if they are not equivalent.
    """

    def __init__(self, list slots, reread):
        self.reread = reread
        self.set_slots(slots)

    def __dealloc__(self):
        PyMem_Free(self.first)

    cdef int set_slots(self, list slots) except -1:
        cdef Py_ssize_t i
        cdef Slot* x
        cdef Slot* first_of = NULL
        PyMem_Free(self.first)
        self.slots, self.count = slots, 0
        self.first = <Slot*> PyMem_Calloc(len(slots) + 1, sizeof(Slot))
        if self.first == NULL:
            raise MemoryError()
        for i in range(len(slots)):
            x = &self.first[i]
            container, key, item = slots[i]
            x.container, x.item = <PyObject*> container, <PyObject*> item
            if isinstance(container, dict):
                x.key = <PyObject*> key
            else:
                x.index = key
            x.size = -1
            if first_of == NULL or first_of.container != x.container:
                first_of, x.size = x, 0
            first_of.size += 1
        self.count = len(slots)
        return 0

    cdef bint is_changed(self) noexcept:
        cdef Py_ssize_t i
        cdef const Slot* x
        cdef PyObject* item
        for i in range(self.count):
            x = &self.first[i]
            if x.size >= 0 and x.size != (list_size(x.container) if x.key == NULL else dict_size(x.container)):
                return True
            item = list_item(x.container, x.index) if x.key == NULL else dict_item(x.container, x.key)
            if item != x.item:
                PyErr_Clear()       # another thread has just removed it, or a key cannot be compared
                return True
        return False

    def check(self):
        """Raise if a container has another array than before."""
        self.verify()

    cdef int verify(self) except -1:
        if self.is_changed():
            self.set_slots(self.reread())
        return 0
