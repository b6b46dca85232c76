"""Power and logarithm of scalars, with the same bits on every platform.

Python's `**` and `math.log` call the C library, whose last bit differs between platforms and even between
processors. These call `csrc/fo_math.h`.
"""

cdef extern from "fo_math.h" nogil:
    double fo_pow(double x, double y)
    double fo_log(double x)


def power(double x, double y):
    """Return x to the power y for x >= 0. Integer powers are correctly rounded."""
    return fo_pow(x, y)


def log(double x):
    """Return the natural logarithm of a normal number x > 0."""
    return fo_log(x)
