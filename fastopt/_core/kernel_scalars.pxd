"""The scalars of a kernel, which Python passes by name: fields of its rule struct, in `UpdateArgs.scalars`."""
from cpython.dict cimport PyDict_GetItem, PyDict_Size
from cpython.object cimport PyObject

from fastopt._core.span cimport UpdateArgs


cdef inline list set_constants(UpdateArgs* args, str kernel, tuple fields, dict constants, char* step_index):
    """Set the scalars that do not depend on the step.

    Parameters
    ----------
    fields : tuple of str
        Names of all scalars of the kernel.
    constants : dict of str to float
    step_index : char[MAX_SCALARS]
        Set to the indices of the other scalars, those of each step.

    Returns
    -------
    list of str
        Names of the scalars of each step.
    """
    cdef list step_fields = []
    cdef Py_ssize_t i, found = 0
    cdef PyObject* value
    for i in range(len(fields)):
        value = PyDict_GetItem(constants, fields[i])
        if value != NULL:
            args.scalars[i] = <double> <object> value
            found += 1
        else:
            step_index[len(step_fields)] = <char> i
            step_fields.append(fields[i])
    if found != PyDict_Size(constants):
        raise TypeError(f"{kernel}: unknown scalar {min(constants.keys() - set(fields))!r}, "
                        f"expected {', '.join(fields)}")
    return step_fields


cdef inline int set_step_scalars(UpdateArgs* args, str kernel, list step_fields, const char* step_index,
                                 dict scalars) except -1:
    """Set the scalars of a step."""
    cdef Py_ssize_t i, n = len(step_fields)
    cdef PyObject* value
    if PyDict_Size(scalars) != n:
        return refuse(kernel, step_fields, scalars)
    for i in range(n):
        value = PyDict_GetItem(scalars, step_fields[i])
        if value == NULL:
            return refuse(kernel, step_fields, scalars)
        args.scalars[<Py_ssize_t> step_index[i]] = <double> <object> value
    return 0


cdef inline int refuse(str kernel, list step_fields, dict scalars) except -1:
    raise TypeError(f"{kernel}: expected the scalars {', '.join(step_fields) or 'none'} for each step, "
                    f"got {', '.join(scalars) or 'none'}")
