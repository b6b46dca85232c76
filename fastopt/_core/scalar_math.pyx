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


def bias_correction(bint enabled, double beta, double t):
    """Return ``1 - beta ** t``, the divisor of a moving average after `t` steps, or 1 if it is not `enabled`."""
    return 1.0 - fo_pow(beta, t) if enabled else 1.0


def log(double x):
    """Return the natural logarithm of a normal number x > 0."""
    return fo_log(x)
