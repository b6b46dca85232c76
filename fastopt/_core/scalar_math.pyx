"""Powers and logarithms of scalars, which Python would ask the C library for.

Its last bit differs from machine to machine, even between processors under one system: `csrc/fo_math.h` has
the same bits everywhere.
"""

cdef extern from "fo_math.h" nogil:
    double fo_power(double x, double y)
    double fo_log(double x)


def power(double x, double y):
    """x to the power y, for x >= 0; a whole power is correctly rounded."""
    return fo_power(x, y)


def log(double x):
    """The natural logarithm of a normal number x > 0."""
    return fo_log(x)
