/*
 * fo_array.h: the fields of a NumPy array, read without a call.
 *
 * A step compares every gradient with its parameter, and the buffer protocol would take longer than
 * the update of a small array. The layout of these fields is part of NumPy's binary interface: its
 * macros, such as PyArray_DATA, compile to the same accesses in every extension module.
 * `gradients.pyx` compares them with the buffer protocol when it is imported.
 */
#ifndef FO_ARRAY_H
#define FO_ARRAY_H

#include <Python.h>

typedef struct {
    PyObject_HEAD char *data;
    int ndim;
    Py_ssize_t *shape;
    Py_ssize_t *strides;
    PyObject *base;
    PyObject *dtype;
    int flags;
} fo_array;

enum { FO_ARRAY_C_CONTIGUOUS = 0x0001, FO_ARRAY_ALIGNED = 0x0100, FO_ARRAY_WRITEABLE = 0x0400 };

#endif
