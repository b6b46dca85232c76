"""Arrays of fewer bits and their oracle: a float32 optimizer whose arrays are rounded after each step."""

import numpy as np

from fastopt import reference_formats
from fastopt._core.encoded import Encoded
from fastopt._core.formats import BFLOAT16, FLOAT16, FLOAT32, computing_dtype, decode, encode

DTYPES = {"bfloat16": BFLOAT16, "float16": FLOAT16}     # of parameters of 16 bits
ROUNDINGS = ("stochastic", "nearest")
STATE_DTYPES = ("bfloat16", "int8")


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


def in_memory_order(array):
    """The elements of a dense array in C or Fortran order."""
    return array.ravel(order="K")


class Twin:
    """An optimizer of arrays of fewer bits, and its oracle.

    The oracle is the same optimizer of float32 arrays. Before each step these are set to the decoded
    parameters and state, and after it they are rounded as `fastopt.reference_formats` says.
    """

    def __init__(
        self, make, values, dtype=FLOAT32, rounding="stochastic", seed=0, like=np.array, **options
    ):
        self.dtype, self.rounding, self.seed = dtype, rounding, seed
        self.params = [like(encode(x, dtype)) for x in values]
        self.mirror = [like(decode(p)) for p in self.params]
        self.opt = make(self.params, rounding=rounding, seed=seed, **options)
        self.oracle = make(self.mirror)

    def step(self, grads, **options):
        """Take a step with both, and compare them."""
        for p, q in zip(self.params, self.mirror, strict=True):
            q[...] = decode(p)
        for own, other in zip(self.opt.state, self.oracle.state, strict=True):
            for name in own:
                other[name] = own[name]
        counts = [state.steps for state in self.opt.state]
        converted = [None if g is None else decode(g, computing_dtype(self.dtype)).copy() for g in grads]
        with np.errstate(all="ignore"):
            assert self.opt.step(grads, **options) == self.oracle.step(converted, **options)
        assert self.opt.grad_norm == self.oracle.grad_norm
        for k, (p, q, state) in enumerate(zip(self.params, self.mirror, self.opt.state, strict=True)):
            if state.steps == counts[k] or p.dtype == q.dtype:
                np.testing.assert_array_equal(decode(p), q)
            else:
                expected = rounded(q, self.dtype, self.rounding, self.seed, state.steps, k)
                np.testing.assert_array_equal(bits_of(p), expected)
        for k, (own, other) in enumerate(zip(self.opt.state, self.oracle.state, strict=True)):
            for i, (name, array) in enumerate(own.stored.items()):
                if isinstance(array, Encoded) and own.steps > counts[k]:
                    words = reference_formats.noise(self.seed, own.steps, k, i + 1, other[name].size)
                    self.compare(array, in_memory_order(other[name]), words)
                else:
                    np.testing.assert_array_equal(own[name], other[name])
        if self.opt.ema is not None:
            for own, other in zip(self.opt.ema, self.oracle.ema, strict=True):
                np.testing.assert_array_equal(own, other)

    @staticmethod
    def compare(array, values, words):
        """Compare a stored array with the oracle's values, after rounding with the noise."""
        if array.encoding == "bfloat16":
            np.testing.assert_array_equal(array.stored, reference_formats.round_bfloat16(values, words))
            return
        signed = array.encoding == "signed8"
        codes, scales = reference_formats.encode_blocks(values, signed, array.block_size, words)
        np.testing.assert_array_equal(array.scales, scales)
        np.testing.assert_array_equal(array.stored, codes)
