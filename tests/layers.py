"""The kernels that `layers.pyx` exports, called through ctypes on NumPy arrays: one by one, or all."""

import ctypes
import itertools
from ctypes import c_char_p, c_double, c_int, c_ssize_t, c_uint64, c_void_p

import numpy as np

DTYPES = [np.float32, np.float64]
# Rows that are shorter than a register, of odd length, or longer than a tile; few and many of them.
SHAPES = [(1, 1), (7, 1), (3, 2), (128, 10), (5, 17), (33, 40), (2, 1030), (150, 7)]
SMOOTHING, THRESHOLD = 0.1, 0.7  # of the losses


class Block(ctypes.Structure):
    _fields_ = [("rows", c_ssize_t), ("n", c_ssize_t)]


class Criterion(ctypes.Structure):
    _fields_ = [("loss", c_int), *((name, c_double) for name in ("scale", "label_smoothing", "threshold"))]


class Dropout(ctypes.Structure):
    _fields_ = [("key", c_uint64), ("step", c_uint64), ("rate", c_double)]


BLOCK, CRITERION, DROPOUT = map(ctypes.POINTER, (Block, Criterion, Dropout))

# In the order of `LayerKernels` in `layer_kernels.pxd`: the type of the result, then those of the arguments.
SIGNATURES = {
    "activation_forward": (None, c_int, BLOCK, c_void_p, c_void_p, c_void_p),
    "activation_backward": (None, c_int, BLOCK, c_void_p, c_void_p, c_void_p),
    "loss": (c_double, CRITERION, BLOCK, c_void_p, c_void_p, c_void_p, c_void_p),
    "dropout": (None, DROPOUT, BLOCK, c_ssize_t, c_void_p, c_void_p),
    "normalize_rows": (None, BLOCK, c_double, c_void_p, c_void_p),
    "normalize_rows_backward": (None, BLOCK, c_void_p, c_void_p, c_void_p),
    "column_sums": (None, BLOCK, c_void_p, c_void_p),
    "column_products": (None, BLOCK, c_void_p, c_void_p, c_void_p, c_void_p),
    "column_moments": (None, BLOCK, c_void_p, c_void_p, c_void_p),
    "merge_moments": (None, BLOCK, c_ssize_t, c_double, c_double, *[c_void_p] * 6),
    "reciprocal_std": (None, c_ssize_t, c_double, c_void_p, c_void_p),
    "normalize_columns": (None, BLOCK, c_void_p, c_void_p, c_void_p),
    "normalize_columns_backward": (None, BLOCK, *[c_void_p] * 4, c_double, c_void_p),
    "affine": (None, BLOCK, c_void_p, c_void_p, c_void_p, c_void_p),
    "scale_columns": (None, BLOCK, c_void_p, c_void_p),
    "add_scaled": (None, c_ssize_t, c_double, c_void_p, c_void_p),
    "all_finite": (c_int, c_ssize_t, c_void_p),
    "first_column_finite": (c_int, BLOCK, c_void_p),
    "sum_squares": (c_double, c_ssize_t, c_void_p),
    "sum_at": (c_double, c_ssize_t, c_void_p, c_void_p),
    "convert": (None, c_ssize_t, c_int, c_void_p, c_void_p),
    "expand_row": (None, c_ssize_t, c_void_p, c_void_p, c_ssize_t, c_void_p),
    "transpose": (None, c_void_p, c_void_p, *[c_ssize_t] * 4),
    "mark_correct": (None, c_int, BLOCK, c_void_p, c_void_p, c_void_p),
}


class Layers:
    """A namespace of the exported kernels, which take C-contiguous arrays, None, numbers and structures.

    The dtype of the last array of floats selects the table.
    """

    def __init__(self, module):
        self.activations, self.losses, self.needs_z = module.ACTIVATIONS, module.LOSSES, module.NEEDS_Z
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = c_void_p, [ctypes.py_object, c_char_p]
        tables = (c_void_p * len(SIGNATURES) * 2).from_address(get(module.LAYERS, b"fastopt.layers"))
        for *addresses, (name, signature) in zip(*tables, SIGNATURES.items(), strict=True):
            setattr(self, name, self._function([ctypes.CFUNCTYPE(*signature)(a) for a in addresses]))

    @staticmethod
    def _function(functions):
        def call(*arguments):
            arrays = [x for x in arguments if isinstance(x, np.ndarray)]
            assert all(x.flags.c_contiguous for x in arrays)
            dtypes = [x.dtype for x in arrays if x.dtype.kind == "f"]
            function = functions[dtypes[-1] == np.float64]
            return function(*(x.ctypes.data if isinstance(x, np.ndarray) else x for x in arguments))

        return call


def block(matrix):
    """Return the block that consists of a whole matrix."""
    return Block(*matrix.shape)


def random(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng((seed, *shape)).normal(0.0, 2.0, shape).astype(dtype)


def assert_close(actual, expected, dtype, ulps=16):
    """Compare up to a few ULP of each element and of the largest one, because terms may cancel."""
    np.testing.assert_allclose(
        actual,
        expected,
        rtol=ulps * np.finfo(dtype).eps,
        atol=ulps * np.finfo(dtype).eps * np.abs(expected).max(initial=0.0),
    )


def everything(layers, random, shape, cuts):
    """Return results that depend on one row alone, and losses, computed in blocks of rows between `cuts`.

    `random` is a function of a shape and a seed that returns a matrix.
    """
    z, y, delta = (random(shape, seed) for seed in (0, 1, 2))
    b, c, d, e = random((4, shape[1]), 3)
    labels, weight, rstd = np.arange(shape[0]) * 5 % shape[1], abs(y[:, 0]), np.empty_like(z[:, 0])
    results = []
    for name in layers.activations:
        pre, a, gradient = z.copy(), np.empty_like(z), delta.copy()
        for lo, hi in itertools.pairwise(cuts):
            x = block(z[lo:hi])
            layers.activation_forward(layers.activations[name], x, b, pre[lo:hi], a[lo:hi])
            layers.activation_backward(layers.activations[name], x, pre[lo:hi], a[lo:hi], gradient[lo:hi])
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
    rows, columns, dropped = z.copy(), z.copy(), np.empty_like(z)
    gradient, scaled = delta.copy(), delta.copy()
    for lo, hi in itertools.pairwise(cuts):
        x = block(z[lo:hi])
        layers.normalize_rows(x, 1e-5, rows[lo:hi], rstd[lo:hi])
        layers.normalize_rows_backward(x, rows[lo:hi], rstd[lo:hi], gradient[lo:hi])
        layers.normalize_columns(x, b, c, columns[lo:hi])
        layers.normalize_columns_backward(x, z[lo:hi], b, d, e, 9.0, scaled[lo:hi])
        layers.dropout(Dropout(1, 2, 0.3), x, lo, z[lo:hi], dropped[lo:hi])
    return [*results, rows, rstd, gradient, columns, scaled, dropped]
