"""Arrays of 16 bits and their oracle: a float32 optimizer whose parameters are rounded after each step."""

import numpy as np

from fastopt import reference_formats
from fastopt._core.formats import BFLOAT16, FLOAT16, computing_dtype, decode, encode

DTYPES = {"bfloat16": BFLOAT16, "float16": FLOAT16}     # of parameters of 16 bits
ROUNDINGS = ("stochastic", "nearest")


def bits_of(array):
    """Bits of an array of 16 bits, in C order."""
    return np.asarray(array, order="C").view(np.uint16)


def rounded(x, dtype, rounding, seed, step, parameter):
    """Bits of float32 values that are stored as a parameter of 16 bits."""
    words = None
    if rounding == "stochastic":
        words = reference_formats.noise(seed, step, parameter, 0, x.size).reshape(x.shape)
    function = reference_formats.round_float16 if dtype == FLOAT16 else reference_formats.round_bfloat16
    return function(np.asarray(x, order="C"), words)


class Twin:
    """An optimizer of arrays of 16 bits, and its oracle.

    The oracle is the same optimizer of float32 arrays, which are the decoded parameters before each step.
    """

    def __init__(self, make, values, dtype, rounding="stochastic", seed=0, like=np.array):
        self.dtype, self.rounding, self.seed = dtype, rounding, seed
        self.params = [like(encode(x, dtype)) for x in values]
        self.mirror = [like(decode(p)) for p in self.params]
        self.opt, self.oracle = make(self.params, rounding=rounding, seed=seed), make(self.mirror)

    def step(self, grads, **options):
        """Take a step with both, and compare them."""
        for p, q in zip(self.params, self.mirror, strict=True):
            q[...] = decode(p)
        counts = [state.steps for state in self.opt.state]
        converted = [None if g is None else decode(g, computing_dtype(self.dtype)).copy() for g in grads]
        with np.errstate(all="ignore"):
            assert self.opt.step(grads, **options) == self.oracle.step(converted, **options)
        assert self.opt.grad_norm == self.oracle.grad_norm
        for k, (p, q, state) in enumerate(zip(self.params, self.mirror, self.opt.state, strict=True)):
            if state.steps > counts[k]:
                expected = rounded(q, self.dtype, self.rounding, self.seed, state.steps, k)
                np.testing.assert_array_equal(bits_of(p), expected)
            else:
                np.testing.assert_array_equal(decode(p), q)
        for own, other in zip(self.opt.state, self.oracle.state, strict=True):
            for name, array in own.items():
                np.testing.assert_array_equal(array, other[name])
