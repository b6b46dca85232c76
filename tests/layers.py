"""The functions that `layers.pyx` exports, called through ctypes on NumPy arrays: one by one, or all."""

import ctypes
import itertools
from ctypes import c_char_p, c_double, c_int, c_ssize_t, c_uint64, c_void_p

import numpy as np

SMOOTHING, THRESHOLD = 0.1, 0.7  # of the losses


class Block(ctypes.Structure):
    _fields_ = [("rows", c_ssize_t), ("n", c_ssize_t), ("wide", c_int)]


class Criterion(ctypes.Structure):
    _fields_ = [("kind", c_int), *((name, c_double) for name in ("scale", "smoothing", "threshold"))]


class Mask(ctypes.Structure):
    _fields_ = [("key", c_uint64), ("step", c_uint64), ("rate", c_double)]


BLOCK, CRITERION, MASK = map(ctypes.POINTER, (Block, Criterion, Mask))

# In the order of `Layers` in `layer.pxd`: what is returned, then what is taken.
SIGNATURES = {
    "forward": (None, c_int, BLOCK, c_void_p, c_void_p, c_void_p),
    "backward": (None, c_int, BLOCK, c_void_p, c_void_p, c_void_p),
    "column_sums": (None, BLOCK, c_void_p, c_void_p),
    "loss": (c_double, CRITERION, BLOCK, c_void_p, c_void_p, c_void_p, c_void_p),
    "dropout": (None, MASK, BLOCK, c_ssize_t, c_void_p, c_void_p),
    "normalize_rows": (None, BLOCK, c_double, c_void_p, c_void_p),
    "normalize_rows_backward": (None, BLOCK, c_void_p, c_void_p, c_void_p),
    "moments": (None, BLOCK, c_void_p, c_void_p, c_void_p),
    "normalize_columns": (None, BLOCK, c_void_p, c_void_p, c_void_p),
    "column_products": (None, BLOCK, c_void_p, c_void_p, c_void_p, c_void_p),
    "normalize_columns_backward": (None, BLOCK, *[c_void_p] * 4, c_double, c_void_p),
    "affine": (None, BLOCK, c_void_p, c_void_p, c_void_p, c_void_p),
    "rescale": (None, BLOCK, c_void_p, c_void_p),
    "add": (None, c_ssize_t, c_int, c_double, c_void_p, c_void_p),
    "finite": (c_int, c_ssize_t, c_int, c_void_p),
    "squares": (c_double, c_ssize_t, c_int, c_void_p),
    "convert": (None, c_ssize_t, c_int, c_void_p, c_int, c_void_p),
}


class Layers:
    """A namespace of the exported functions, which take C-contiguous arrays, None, numbers, structures."""

    def __init__(self, module):
        self.activations, self.losses, self.needs_z = module.ACTIVATIONS, module.LOSSES, module.NEEDS_Z
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = c_void_p, [ctypes.py_object, c_char_p]
        table = (c_void_p * len(SIGNATURES)).from_address(get(module.LAYERS, b"fastopt.layers"))
        for address, (name, signature) in zip(table, SIGNATURES.items(), strict=True):
            setattr(self, name, self._function(ctypes.CFUNCTYPE(*signature)(address)))

    @staticmethod
    def _function(function):
        def call(*arguments):
            for x in arguments:
                assert not isinstance(x, np.ndarray) or x.flags.c_contiguous
            return function(*(x.ctypes.data if isinstance(x, np.ndarray) else x for x in arguments))

        return call


def block(matrix):
    """The block that a whole matrix is."""
    return Block(*matrix.shape, matrix.dtype == np.float64)


def everything(layers, random, shape, cuts):
    """All that depends on its own row alone, from blocks of rows between the cuts; and losses' values.

    `random` takes a shape and a seed, and gives a matrix.
    """
    z, y, delta = (random(shape, seed) for seed in (0, 1, 2))
    b, c, d, e = random((4, shape[1]), 3)
    labels, weight, rstd = np.arange(shape[0]) * 5 % shape[1], abs(y[:, 0]), np.empty_like(z[:, 0])
    results = []
    for name in layers.activations:
        pre, a, gradient = z.copy(), np.empty_like(z), delta.copy()
        for lo, hi in itertools.pairwise(cuts):
            x = block(z[lo:hi])
            layers.forward(layers.activations[name], x, b, pre[lo:hi], a[lo:hi])
            layers.backward(layers.activations[name], x, pre[lo:hi], a[lo:hi], gradient[lo:hi])
        results += [pre, a, gradient]
    for name in layers.losses:
        target = labels if name == "cross_entropy" else y
        criterion = Criterion(layers.losses[name], 0.3, SMOOTHING, THRESHOLD)
        gradient = np.empty_like(z)
        values = [
            layers.loss(criterion, block(z[lo:hi]), z[lo:hi], target[lo:hi], weight[lo:hi], gradient[lo:hi])
            for lo, hi in itertools.pairwise(cuts)
        ]
        results += [gradient, np.array(values)]
    rows, columns, gradient, dropped, scaled = (
        z.copy(),
        z.copy(),
        delta.copy(),
        np.empty_like(z),
        delta.copy(),
    )
    for lo, hi in itertools.pairwise(cuts):
        x = block(z[lo:hi])
        layers.normalize_rows(x, 1e-5, rows[lo:hi], rstd[lo:hi])
        layers.normalize_rows_backward(x, rows[lo:hi], rstd[lo:hi], gradient[lo:hi])
        layers.normalize_columns(x, b, c, columns[lo:hi])
        layers.normalize_columns_backward(x, z[lo:hi], b, d, e, 9.0, scaled[lo:hi])
        layers.dropout(Mask(1, 2, 0.3), x, lo, z[lo:hi], dropped[lo:hi])
    return [*results, rows, rstd, gradient, columns, scaled, dropped]
