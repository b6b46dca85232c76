"""A multilayer perceptron whose training step allocates next to nothing."""

from __future__ import annotations

import itertools
import math
import operator

import numpy as np

from fastopt.nn.data import read_arrays
from fastopt.nn.layers import ACTIVATIONS, INITIALIZERS, LOSSES

__all__ = ["MLP"]

_ALIASES = {"logistic": "sigmoid"}
_INFERENCE_ROWS = 1024  # a chunk's activations stay in the L2 cache for layers of usual width
_FORMAT_VERSION = 1


class MLP:
    """A multilayer perceptron: dense layers with one activation between them.

    Each layer computes ``z = a @ W + b``; the activation stands between layers, not after the last
    one, whose ``z`` are the logits (classification) or the values (regression).

    Parameters
    ----------
    sizes : sequence of int
        Widths from input to output, at least two: ``[784, 256, 10]`` has one hidden layer.
    activation : str, default "relu"
        ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"elu"`` (alpha 1), ``"gelu"`` (the tanh
        approximation, as torch's ``approximate="tanh"``), ``"silu"``, ``"tanh"``, ``"sigmoid"``
        (or ``"logistic"``), ``"identity"``.
    loss : str, default "auto"
        ``"cross_entropy"``: softmax, labels ``0 .. sizes[-1] - 1``, shape ``(n,)``.
        ``"binary_cross_entropy"``: a sigmoid for each output, labels 0 and 1 of integer or boolean
        type, shape ``(n, sizes[-1])``, or ``(n,)`` where there is a single output.
        ``"mse"``: mean squared error, real targets of shape ``(n, sizes[-1])``, or ``(n,)``.
        ``"auto"`` decides by the first targets seen: floating ones mean ``"mse"``; integer or
        boolean ones mean ``"binary_cross_entropy"`` if they have two dimensions or the net a
        single output, else ``"cross_entropy"``. From then on `loss` holds that name.
    dtype : {"float32", "float64"}, default "float32"
        Of the parameters and of all arithmetic.
    seed : int, optional
        Of the initial weights. Both dtypes draw the same weights, up to rounding.
    l2 : float, default 0.0
        Adds ``0.5 * l2 * sum(W**2)``, over all weights but no biases, to the loss, and ``l2 * W``
        to the gradients. The penalty is not divided by the size of the batch. (scikit-learn's
        ``alpha`` is: there the same penalty is ``l2 = alpha / batch_size``.)
    init : {"auto", "he", "glorot"}, default "auto"
        ``"he"``: normal with variance ``2 / fan_in``; ``"glorot"``: uniform with variance
        ``2 / (fan_in + fan_out)``. ``"auto"`` goes by what follows the layer: He before the relu
        family, Glorot before tanh, sigmoid and identity, and for the last layer. Biases start at 0.

    Attributes
    ----------
    params : list of [W, b]
        Weights ``(in, out)`` and biases ``(out,)`` of each layer, views of one contiguous array.
        In an unpickled or deep-copied net they are separate arrays instead: the very objects which
        an optimizer that was pickled or copied together with the net holds.
    sizes, activation, loss, dtype, l2, init
        As given; `l2` may be changed between steps.

    Notes
    -----
    Losses are means: over the rows of a batch, and for ``"binary_cross_entropy"`` and ``"mse"``
    over the outputs as well.

    `train_step` works on the net's own buffers, so a net is trained by one thread at a time;
    `predict`, `predict_proba` and `evaluate` may run in many.

    References
    ----------
    He et al., "Delving deep into rectifiers", ICCV 2015.
    Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    AISTATS 2010.

    Examples
    --------
    >>> net = fastopt.MLP([64, 32, 10], seed=0)
    >>> opt = fastopt.Adam(net.params)
    >>> loss, grads = net.train_step(X, y)
    >>> opt.step(grads)
    """

    #: Gradients come in the order of `params`.
    grads_reversed = False

    def __init__(
        self,
        sizes,
        activation="relu",
        loss="auto",
        dtype="float32",
        seed=None,
        *,
        l2=0.0,
        init="auto",
    ):
        self.sizes = _check_sizes(sizes)
        self.activation = _check_name(
            "activation", _ALIASES.get(activation, activation), ACTIVATIONS
        )
        self.loss = _check_name("loss", loss, ["auto", *LOSSES])
        if self.loss == "cross_entropy" and self.sizes[-1] < 2:
            raise ValueError("loss='cross_entropy' needs sizes[-1] >= 2, got 1")
        self.dtype = np.dtype(_check_name("dtype", _dtype_name(dtype), ["float32", "float64"]))
        if not 0.0 <= l2 < math.inf:
            raise ValueError(f"l2 must be finite and not negative, got {l2!r}")
        self.l2 = float(l2)
        self.init = _check_name("init", init, ["auto", *INITIALIZERS])
        self.params = _arena(self.sizes, self.dtype)
        self._initialize(np.random.default_rng(seed))
        self._allocate()

    def __repr__(self):
        return (
            f"MLP({list(self.sizes)}, activation={self.activation!r}, loss={self.loss!r}, "
            f"dtype={self.dtype.name!r}, l2={self.l2!r})"
        )

    # --- Training and evaluation -------------------------------------------------------------

    def train_step(self, X, y):
        """Return the loss of a batch and its gradients.

        Parameters
        ----------
        X : array_like, shape (n, sizes[0])
            Real numbers of any type; those of the net's dtype are not copied.
        y : array_like
            Targets as the loss wants them, see the class.

        Returns
        -------
        loss : float
            Mean loss of the batch, penalty included.
        grads : list of [dW, db]
            Of the same nesting and order as `params`. The arrays belong to the net, which
            overwrites them at the next step.

        Raises
        ------
        ValueError
            If shapes, types or labels do not fit, or `X` or `y` holds NaN or Inf. The gradients of
            the step before are then untouched.
        """
        X, targets, name = self._check_batch(X, y)
        buffers = self._buffers
        X = self._forward(X, buffers)
        self.loss = name
        loss = LOSSES[name].value(buffers.z[-1], targets, buffers.delta[-1])
        self._backward(X, buffers)
        return loss + self._penalty(), self._grads

    def evaluate(self, X, y):
        """Return the loss that `train_step` would, without computing gradients.

        Runs in chunks, so that memory stays bounded whatever the number of rows.

        Parameters
        ----------
        X, y : array_like
            As for `train_step`.

        Returns
        -------
        float
        """
        X, targets, name = self._check_batch(X, y)
        value = LOSSES[name].value
        total = 0.0
        for rows, buffers in self._chunks(X):
            loss = value(buffers.z[-1], targets[rows], buffers.delta[-1])
            total += loss * buffers.rows
        return total / len(X) + self._penalty()

    def predict(self, X):
        """Return labels (classification) or values (regression).

        Parameters
        ----------
        X : array_like, shape (n, sizes[0])

        Returns
        -------
        ndarray
            int64 labels of shape ``(n,)``, or ``(n, sizes[-1])`` for many labels a row; values in
            the net's dtype, shape ``(n, sizes[-1])``. A single output gives shape ``(n,)``.
        """
        return self._outputs(X, self._resolved_loss().predictions)

    def predict_proba(self, X):
        """Return the probability of each class.

        Parameters
        ----------
        X : array_like, shape (n, sizes[0])

        Returns
        -------
        ndarray
            Shape ``(n, classes)`` in the net's dtype. A single output gives ``(n, 2)``, as in
            scikit-learn; many labels a row give each label's probability on its own.

        Raises
        ------
        ValueError
            If the net is not a classifier.
        """
        return self._outputs(X, self._resolved_loss().probabilities)

    # --- Files and copies --------------------------------------------------------------------

    def save(self, path):
        """Write the net to an ``.npz`` file, which holds plain arrays and no pickle.

        Parameters
        ----------
        path : str or path-like
            Written exactly there: no suffix is added.
        """
        with open(path, "wb") as file:
            np.savez(
                file,
                fastopt_mlp=_FORMAT_VERSION,
                sizes=self.sizes,
                activation=self.activation,
                loss=self.loss,
                l2=self.l2,
                init=self.init,
                **dict(self._named_params()),
            )

    @classmethod
    def load(cls, path):
        """Return the net that `save` wrote.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        ValueError
            If the file is damaged or not a saved net.
        """
        arrays = read_arrays(path)
        if "fastopt_mlp" not in arrays:
            raise ValueError(f"{path}: not a saved fastopt.MLP")
        version = int(arrays["fastopt_mlp"])
        if version > _FORMAT_VERSION:
            raise ValueError(f"{path}: format {version} is newer than this fastopt reads")
        try:
            net = cls(
                arrays["sizes"].tolist(),
                activation=str(arrays["activation"]),
                loss=str(arrays["loss"]),
                dtype=arrays["W1"].dtype,
                l2=float(arrays["l2"]),
                init=str(arrays["init"]),
            )
            for name, param in net._named_params():
                saved = arrays[name]
                if saved.shape != param.shape or saved.dtype != param.dtype:
                    raise ValueError(
                        f"{name} must be {param.dtype} of shape {param.shape}, "
                        f"got {saved.dtype} of shape {saved.shape}"
                    )
                param[...] = saved
        except KeyError as error:
            raise ValueError(f"{path}: the array {error} is missing") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None
        return net

    def _named_params(self):
        """Yield each array's name in a file, ``W1, b1, W2, ...``, and the array."""
        for i, layer in enumerate(self.params, 1):
            for name, param in zip("Wb", layer, strict=True):
                yield f"{name}{i}", param

    def __getstate__(self):
        """Leave out gradients and buffers; the parameters go as the objects an optimizer holds."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_grads", "_buffers")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._allocate()

    # --- Inside ------------------------------------------------------------------------------

    def _initialize(self, rng):
        last = len(self.params) - 1
        for i, (W, _) in enumerate(self.params):
            name = self.init
            if name == "auto":
                name = "glorot" if i == last else ACTIVATIONS[self.activation].init
            W[...] = INITIALIZERS[name](rng, *W.shape)

    def _allocate(self):
        self._grads = _arena(self.sizes, self.dtype)
        self._buffers = self._new_buffers()

    def _new_buffers(self):
        return _Buffers(self.sizes, self.dtype, ACTIVATIONS[self.activation].in_place)

    def _forward(self, X, buffers):
        """Fill `buffers` with the pass of `X`; return `X` in the net's dtype.

        A NaN or an Inf in a row of `X` makes every pre-activation of that row non-finite, so one
        column of them tells whether all of `X` must be looked at.
        """
        buffers.resize(len(X))
        if X.dtype != self.dtype:
            X = buffers.convert(X)
        forward = ACTIVATIONS[self.activation].forward
        inputs, last = X, len(self.params) - 1
        for i, (W, b) in enumerate(self.params):
            z, a = buffers.z[i], buffers.a[i]
            np.matmul(inputs, W, out=z)
            z += b
            if i == 0 and not np.isfinite(z[:, 0]).all() and not np.isfinite(X).all():
                raise ValueError(f"X must be finite in {self.dtype}, got NaN or Inf")
            if i < last:
                forward(z, a)
            inputs = a
        return X

    def _backward(self, X, buffers):
        """Turn the last layer's `delta` into the gradients of all parameters."""
        backward = ACTIVATIONS[self.activation].backward
        for i in reversed(range(len(self.params))):
            W, (dW, db), delta = self.params[i][0], self._grads[i], buffers.delta[i]
            inputs = buffers.a[i - 1] if i else X
            np.matmul(inputs.T, delta, out=dW)
            np.add.reduce(delta, axis=0, out=db)
            if self.l2:
                decay = buffers.like_weights(W)
                np.multiply(W, self.l2, out=decay)
                dW += decay
            if i:
                np.matmul(delta, W.T, out=buffers.delta[i - 1])
                backward(buffers.z[i - 1], buffers.a[i - 1], buffers.delta[i - 1])

    def _penalty(self):
        if not self.l2:
            return 0.0
        return 0.5 * self.l2 * sum(float(np.vdot(W, W)) for W, _ in self.params)

    def _chunks(self, X):
        """Yield slices of the rows of `X` with the buffers that hold their forward pass."""
        buffers = self._new_buffers()
        for start in range(0, len(X), _INFERENCE_ROWS):
            rows = slice(start, start + _INFERENCE_ROWS)
            self._forward(X[rows], buffers)
            yield rows, buffers

    def _outputs(self, X, function):
        chunks = self._chunks(self._check_rows(X))
        return np.concatenate([function(buffers.z[-1]) for _, buffers in chunks])

    def _resolved_loss(self):
        if self.loss == "auto":
            raise ValueError("loss='auto' is decided by the first targets, and none were seen yet")
        return LOSSES[self.loss]

    def _check_rows(self, X):
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.sizes[0]:
            raise ValueError(f"X must have the shape (n, {self.sizes[0]}), got {X.shape}")
        if X.dtype.kind not in "biuf":
            raise ValueError(f"X must hold real numbers, got {X.dtype}")
        if len(X) == 0:
            raise ValueError("X must have at least one row, got none")
        return X

    def _check_batch(self, X, y):
        """Return `X`, `y` in the form that the loss works on, and the loss's name."""
        X, y = self._check_rows(X), np.asarray(y)
        if y.ndim == 0 or len(y) != len(X):
            raise ValueError(f"X and y must be of the same length, got {len(X)} and {y.shape}")
        name = _loss_for(y, self.sizes[-1]) if self.loss == "auto" else self.loss
        return X, LOSSES[name].targets(y, (len(X), self.sizes[-1]), self.dtype), name


class _Buffers:
    """The arrays of a pass through the net, grown to the largest batch seen.

    Attributes
    ----------
    rows : int
        Of the present batch; all arrays are views of that many rows.
    z, a, delta : list of ndarray
        For each layer: pre-activations, activations (the same memory where the activation works
        in place) and the gradient with respect to the pre-activations.
    """

    def __init__(self, sizes, dtype, in_place):
        self._sizes = sizes
        self._dtype = dtype
        self._in_place = in_place
        self._capacity = self.rows = 0
        self._converted = None
        self._weights = None

    def resize(self, rows):
        """Make every array `rows` rows long."""
        if rows == self.rows:
            return
        if rows > self._capacity:
            self._grow(rows)
        self.rows = rows
        self.z = [z[:rows] for z in self._z]
        self.a = [a[:rows] for a in self._a]
        self.delta = [delta[:rows] for delta in self._delta]

    def convert(self, X):
        """Return `X` in the net's dtype."""
        if self._converted is None:
            self._converted = np.empty((self._capacity, self._sizes[0]), self._dtype)
        converted = self._converted[: self.rows]
        np.copyto(converted, X)
        return converted

    def like_weights(self, W):
        """Return scratch space of the shape of `W`."""
        if self._weights is None:
            largest = max(n * m for n, m in itertools.pairwise(self._sizes))
            self._weights = np.empty(largest, self._dtype)
        return self._weights[: W.size].reshape(W.shape)

    def _grow(self, rows):
        shapes = [(rows, size) for size in self._sizes[1:]]
        last = len(shapes) - 1
        self._z = [np.empty(shape, self._dtype) for shape in shapes]
        self._a = [
            z if self._in_place or i == last else np.empty_like(z) for i, z in enumerate(self._z)
        ]
        self._delta = [np.empty(shape, self._dtype) for shape in shapes]
        self._converted = None
        self._capacity = rows


def _arena(sizes, dtype):
    """Return ``[[W1, b1], ...]`` of zeros, views of one contiguous array."""
    pairs = list(itertools.pairwise(sizes))
    flat = np.zeros(sum((n + 1) * m for n, m in pairs), dtype)
    layers, start = [], 0
    for n, m in pairs:
        middle, stop = start + n * m, start + (n + 1) * m
        layers.append([flat[start:middle].reshape(n, m), flat[middle:stop]])
        start = stop
    return layers


def _check_sizes(sizes):
    try:
        checked = tuple(operator.index(size) for size in sizes)
    except TypeError:
        raise TypeError(f"sizes must be a sequence of integers, got {sizes!r}") from None
    if len(checked) < 2 or min(checked) < 1:
        raise ValueError(f"sizes must be at least two positive integers, got {sizes!r}")
    return checked


def _check_name(argument, name, choices):
    if name not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}; got {name!r}")
    return name


def _dtype_name(dtype):
    try:
        return dtype if dtype is None else np.dtype(dtype).name
    except TypeError:
        return dtype


def _loss_for(y, outputs):
    """Choose the loss by the targets: see `MLP`."""
    if y.dtype.kind == "f":
        return "mse"
    if y.dtype.kind not in "iub":
        raise ValueError(f"y must hold integer or boolean labels or real values, got {y.dtype}")
    return "binary_cross_entropy" if y.ndim == 2 or outputs == 1 else "cross_entropy"
