"""A multilayer perceptron whose training step is one call into compiled code."""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeVar

import numpy as np

from fastopt.nn._core import dispatch
from fastopt.nn._core.blas import blas
from fastopt.nn._core.net import NORMS as NORM_CODES
from fastopt.nn._core.net import Pass, Source
from fastopt.nn.data import read_arrays
from fastopt.nn.layers import ACTIVATIONS, INITIALIZERS, NORMS
from fastopt.nn.losses import LOSSES, loss_for

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Self

    from _typeshed import StrPath
    from numpy.typing import ArrayLike, NDArray

    from fastopt._core.typing import AnyArray, Array
    from fastopt.nn.losses import BinaryCrossEntropy, CrossEntropy, SquaredError
    from fastopt.nn.typing import Activation, FloatType, Initializer, Layers, Loss, LossName, Norm, Samples
    from fastopt.optimizers import Optimizer

    # The loss, the factor of a row's loss, label smoothing, threshold.
    Criterion = tuple[int, float, float, float]

__all__ = ["MLP"]

_T = TypeVar("_T")
_ALIASES: dict[str, Activation] = {"logistic": "sigmoid"}
_CHUNK = 1024  # rows that a prediction has memory for at once
_LINE = 64  # bytes of a cache line
_FORMAT_VERSION = 2
# Arguments of a net that are kept in a file, beside its sizes and its dtype.
_CONFIG = (
    "activation", "loss", "l2", "init", "dropout", "norm",
    "label_smoothing", "reduction", "delta", "quantile",
)


class MLP:
    """A multilayer perceptron: dense layers with activations between them.

    Each layer computes ``z = a @ W + b``; an activation stands between layers, not after the last
    one, whose ``z`` are the logits (classification) or the values (regression). A hidden layer may
    be normalized, ``z = scale * normalized(a @ W) + b``, and its outputs dropped out.

    Parameters
    ----------
    sizes : sequence of int
        Widths from input to output, at least two: ``[784, 256, 10]`` has one hidden layer.
    activation : str or sequence of str, default "relu"
        For all hidden layers, or one for each: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"elu"``
        (alpha 1), ``"gelu"``, ``"gelu_tanh"`` (its tanh approximation), ``"silu"``, ``"tanh"``,
        ``"sigmoid"`` (or ``"logistic"``), ``"identity"``.
    loss : str, default "auto"
        ``"cross_entropy"``: softmax, labels ``0 .. sizes[-1] - 1``, shape ``(n,)``.
        ``"binary_cross_entropy"``: a sigmoid for each output, labels 0 and 1 of integer or boolean
        type, shape ``(n, sizes[-1])``, or ``(n,)`` where there is a single output.
        For real targets of shape ``(n, sizes[-1])``, or ``(n,)``, with the error ``e = z - y``:
        ``"mse"``: ``e^2``; ``"squared_error"``: ``e^2 / 2``, as scikit-learn's;
        ``"huber"``: ``e^2 / 2`` where ``|e| <= delta``, else ``delta (|e| - delta / 2)``;
        ``"quantile"``: ``-quantile e`` where e is negative, else ``(1 - quantile) e``;
        ``"poisson"``: ``exp(z) - y z`` for counts, of which `predict` gives the mean ``exp(z)``.
        ``"auto"`` decides by the first targets seen: floating ones mean ``"mse"``; integer or
        boolean ones mean ``"binary_cross_entropy"`` if they have two dimensions or the net a
        single output, else ``"cross_entropy"``. From then on `loss` holds that name.
    dtype : {"float32", "float64"}, default "float32"
        Of the parameters and of all arithmetic.
    seed : int, optional
        Of the initial weights and of dropout. Both dtypes draw the same weights, up to rounding.
    l2 : float, default 0.0
        Adds ``0.5 * l2 * sum(W**2)``, over all weights but no vectors, to the loss, and ``l2 * W``
        to the gradients. The penalty is not divided by the size of the batch. (scikit-learn's
        ``alpha`` is: there the same penalty is ``l2 = alpha / batch_size``.)
    init : {"auto", "he", "glorot"}, default "auto"
        ``"he"``: normal with variance ``2 / fan_in``; ``"glorot"``: uniform with variance
        ``2 / (fan_in + fan_out)``. ``"auto"`` goes by what follows the layer: He before the relu
        family, Glorot before tanh, sigmoid and identity, and for the last layer. Biases start at 0,
        scales at 1.
    dropout : float or sequence of float, default 0.0
        Share of a hidden layer's outputs that a training step sets to 0; the others are divided by
        one minus it. For all hidden layers, or one for each.
    norm : {None, "batch", "layer"} or sequence of them, default None
        Normalization before the activation, for all hidden layers or one for each. ``"batch"``: over
        the rows of the batch; predictions use running averages of mean and variance, into which each
        batch goes with weight 0.1. ``"layer"``: over the outputs of the layer. Both add 1e-5 to the
        variance.
    label_smoothing : float, default 0.0
        Share of each label that ``"cross_entropy"`` spreads evenly over all classes and
        ``"binary_cross_entropy"`` over both.
    reduction : {"mean", "sum"}, default "mean"
        Whether the loss of a row is the mean or the sum over its outputs, except for
        ``"cross_entropy"``, which has one loss a row.
    delta : float, default 1.0
        Error from which Huber's loss is linear.
    quantile : float, default 0.5
        Of the targets' distribution, which the loss ``"quantile"`` looks for, between 0 and 1.

    Attributes
    ----------
    params : list of [W, b] or [W, b, scale]
        Weights ``(in, out)``, biases ``(out,)`` and, where the layer is normalized, scales ``(out,)``
        of each layer, views of one contiguous array. In an unpickled or deep-copied net they are
        separate arrays instead: the very objects which an optimizer that was pickled or copied
        together with the net holds.
    running : list of [mean, variance] or []
        Running averages of each layer with ``norm="batch"``.
    sizes, activation, loss, dtype, l2, init, dropout, norm, label_smoothing, reduction, delta, quantile
        As given; `activation`, `dropout` and `norm` as tuples, one value a hidden layer. `l2` may be
        changed between steps.

    Notes
    -----
    The loss of a batch is the mean over its rows, weighted where there are weights.

    `train_step` works on the net's own buffers, so a net is trained by one thread at a time;
    `predict`, `predict_proba` and `evaluate` may run in many.

    Everywhere `X` may be a sparse matrix or array of SciPy's; it is never made dense as a whole.

    References
    ----------
    He et al., "Delving deep into rectifiers", ICCV 2015.
    Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    AISTATS 2010.
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 2014.
    Ioffe & Szegedy, "Batch normalization", ICML 2015. Ba et al., "Layer normalization", 2016.
    Szegedy et al., "Rethinking the inception architecture", CVPR 2016 (label smoothing).

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
        sizes: Iterable[SupportsIndex],
        activation: Activation | Sequence[Activation] = "relu",
        loss: Loss = "auto",
        dtype: FloatType = "float32",
        seed: int | None = None,
        *,
        l2: float = 0.0,
        init: Literal["auto"] | Initializer = "auto",
        dropout: float | Sequence[float] = 0.0,
        norm: Norm | Sequence[Norm] = None,
        label_smoothing: float = 0.0,
        reduction: Literal["mean", "sum"] = "mean",
        delta: float = 1.0,
        quantile: float = 0.5,
    ) -> None:
        self.sizes: tuple[int, ...] = _check_sizes(sizes)
        hidden = len(self.sizes) - 2
        self.activation: tuple[Activation, ...] = _for_each(
            activation, hidden, _check_activation, "activation"
        )
        self.loss: Loss = _check_name(loss, "loss", ["auto", *LOSSES])
        if self.loss == "cross_entropy" and self.sizes[-1] < 2:
            raise ValueError("loss='cross_entropy' needs sizes[-1] >= 2, got 1")
        self.dtype: np.dtype[np.floating[Any]] = np.dtype(
            _check_name(_dtype_name(dtype), "dtype", ["float32", "float64"])
        )
        self.l2: float = _check_number(l2, "l2", 0.0, math.inf)
        self.init: Literal["auto"] | Initializer = _check_name(init, "init", ["auto", *INITIALIZERS])
        self.dropout: tuple[float, ...] = _for_each(dropout, hidden, _check_number, "dropout", 0.0, 1.0)
        self.norm: tuple[Norm, ...] = _for_each(norm, hidden, _check_name, "norm", NORMS)
        self.label_smoothing: float = _check_number(label_smoothing, "label_smoothing", 0.0, 1.0)
        self.reduction: Literal["mean", "sum"] = _check_name(reduction, "reduction", ["mean", "sum"])
        self.delta: float = _check_number(delta, "delta", 0.0, math.inf, open_below=True)
        self.quantile: float = _check_number(quantile, "quantile", 0.0, 1.0, open_below=True)
        rng = np.random.default_rng(seed)
        self.params: Layers = _arena(self._shapes(), self.dtype)
        self.running: Layers = [
            [np.zeros(n, self.dtype), np.ones(n, self.dtype)] if name == "batch" else []
            for n, name in zip(self.sizes[1:], [*self.norm, None], strict=True)
        ]
        self._initialize(rng)
        self._dropout_keys = rng.integers(2**63, size=len(self.params)).tolist()
        self._allocate()

    def __repr__(self) -> str:
        hidden = "".join(
            f", {name}={getattr(self, name)!r}" for name in ("norm", "dropout") if any(getattr(self, name))
        )
        return (
            f"MLP({list(self.sizes)}, activation={self.activation!r}, loss={self.loss!r}, "
            f"dtype={self.dtype.name!r}, l2={self.l2!r}{hidden})"
        )

    def summary(self) -> str:
        """Return a table of the layers and their numbers of parameters, as text."""
        rows = [("Layer", "Shape", "Norm", "Activation", "Dropout", "Parameters")]
        none = (None,)
        for i, (layer, activation, norm, rate) in enumerate(
            zip(self.params, self.activation + none, self.norm + none, self.dropout + none, strict=True), 1
        ):
            count = sum(array.size for array in layer)
            shape, dropped = "{} -> {}".format(*layer[0].shape), f"{rate:g}" if rate else ""
            rows.append((str(i), shape, norm or "", activation or "", dropped, f"{count:,}"))
        total = sum(array.size for layer in self.params for array in layer)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row[:-1], widths)) + row[-1].rjust(widths[-1] + 2) for row in rows]
        return "\n".join([*lines, f"{total:,} parameters, {self.dtype.name}, loss {self.loss}"])

    # --- Training and evaluation -------------------------------------------------------------

    def train_step(
        self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> tuple[float, Layers]:
        """Return the loss of a batch and its gradients.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, sizes[0])
            Real numbers of any type; those of the net's dtype are not copied.
        y : array_like
            Targets as the loss wants them, see the class.
        sample_weight : array_like, shape (n,), optional
            Weights of the rows, not negative.

        Returns
        -------
        loss : float
            Mean loss of the batch, penalty included.
        grads : list of [dW, db] or [dW, db, dscale]
            Of the same nesting and order as `params`. The arrays belong to the net, which
            overwrites them at the next step.

        Raises
        ------
        ValueError
            If shapes, types or labels do not fit, or `X` or `y` holds NaN or Inf. The gradients of
            the step before are then untouched.
        """
        return self.feed(X, y, sample_weight).step(None), self._grads

    def feed(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Feed:
        """Check data once and return what trains on batches of it; `Trainer` does so.

        Parameters
        ----------
        X, y, sample_weight : array_like
            As for `train_step`; read at each step, so they must not change meanwhile.

        Returns
        -------
        Feed
        """
        return Feed(self, *self._source(X, y, sample_weight))

    def evaluate(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the loss that `train_step` would without dropout, and without computing gradients.

        Runs in chunks, so that memory stays bounded whatever the number of rows.

        Parameters
        ----------
        X, y, sample_weight : array_like
            As for `train_step`.

        Returns
        -------
        float
        """
        source, name = self._source(X, y, sample_weight)
        total = weights = 0.0
        for _, loss, weight in self._chunks(source, self._criterion(name)):
            total += loss
            weights += weight
        penalty = 0.5 * self.l2 * sum(float(np.vdot(layer[0], layer[0])) for layer in self.params)
        return (total / weights if weights else 0.0) + penalty

    def predict(self, X: Samples) -> AnyArray:
        """Return labels (classification) or values (regression).

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, sizes[0])

        Returns
        -------
        ndarray
            int64 labels of shape ``(n,)``, or ``(n, sizes[-1])`` for many labels a row; values in
            the net's dtype, shape ``(n, sizes[-1])``. A single output gives shape ``(n,)``.
        """
        return self._outputs(X, self._resolved_loss().predictions)

    def predict_proba(self, X: Samples) -> Array:
        """Return the probability of each class.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, sizes[0])

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

    def state_dict(self) -> dict[str, AnyArray]:
        """Return copies of all arrays that make the net: parameters and running averages.

        Returns
        -------
        dict of ndarray
            ``W1``, ``b1``, ``scale1``, ``mean1``, ``variance1``, ``W2``, ...; and, of a net with
            dropout, ``dropout``: what the coming training steps will draw.
        """
        state: dict[str, AnyArray] = {name: array.copy() for name, array in self._named_arrays()}
        if any(self.dropout):
            state["dropout"] = np.array([self._pass.step, *self._dropout_keys], np.uint64)
        return state

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy the arrays of `state_dict` into the net's own.

        Parameters
        ----------
        state_dict : dict of ndarray
            As `state_dict` returns it; without ``dropout``, the net goes on drawing as it would have.

        Raises
        ------
        ValueError
            If an array is missing, or of another shape or dtype; nothing has been changed then.
        """
        for name, array in self._named_arrays():
            if name not in state_dict:
                raise ValueError(f"state_dict: the array {name!r} is missing")
            saved = np.asarray(state_dict[name])
            if saved.shape != array.shape or saved.dtype != array.dtype:
                raise ValueError(
                    f"state_dict[{name!r}]: expected {array.dtype} of shape {array.shape}, "
                    f"got {saved.dtype} of shape {saved.shape}"
                )
        drawn = np.asarray(state_dict.get("dropout", [0] * (1 + len(self.params))))
        if drawn.shape != (1 + len(self.params),) or drawn.dtype.kind not in "iu":
            raise ValueError(f"state_dict['dropout']: expected {1 + len(self.params)} integers")
        for name, array in self._named_arrays():
            array[...] = state_dict[name]
        if "dropout" in state_dict:
            step, *self._dropout_keys = drawn.tolist()
            self._pass.set_dropout_state(step, self._dropout_keys)

    def save(self, path: StrPath) -> None:
        """Write the net to a file, which holds plain arrays and no pickle.

        Parameters
        ----------
        path : str or path-like
            Written exactly there. A path that ends in ``.safetensors`` makes a file of that format
            (``pip install 'fastopt[safetensors]'``), and beside it one that ends in ``.json`` and
            describes the net; any other an ``.npz`` file with the description in it.
        """
        arrays = dict(self._named_arrays())
        if _is_safetensors(path):
            with open(_beside(path), "w", encoding="utf-8") as file:
                json.dump(self._config(), file, indent=1)
            _safetensors().save_file(arrays, path)
        else:
            with open(path, "wb") as file:
                config = np.array(json.dumps(self._config()))
                np.savez(file, fastopt_mlp=config, **arrays)  # type: ignore[arg-type]  # none is allow_pickle

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Return the net that `save` wrote.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        ValueError
            If the file is damaged or not a saved net.
        """
        if _is_safetensors(path):
            with open(_beside(path), encoding="utf-8") as file:
                text = file.read()
            try:
                arrays = _safetensors().load_file(path)
            except Exception as error:
                if isinstance(error, OSError | ImportError):
                    raise
                raise ValueError(f"{path}: {error}") from None
        else:
            arrays = read_arrays(path)
            if "fastopt_mlp" not in arrays:
                raise ValueError(f"{path}: not a saved fastopt.MLP")
            text = str(arrays["fastopt_mlp"])
        try:
            net = cls(**_read_config(text))
            net.load_state_dict(arrays)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None
        return net

    def _config(self) -> dict[str, Any]:
        """The arguments that make a net like this one."""
        config = {"format": _FORMAT_VERSION, "sizes": self.sizes, "dtype": self.dtype.name}
        return config | {name: getattr(self, name) for name in _CONFIG}

    def _named_arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield each array's name in a file, ``W1, b1, W2, ...``, and the array."""
        for i, (params, running) in enumerate(zip(self.params, self.running, strict=True), 1):
            for name, array in zip(("W", "b", "scale"), params, strict=False):
                yield f"{name}{i}", array
            for name, array in zip(("mean", "variance"), running, strict=False):
                yield f"{name}{i}", array

    def __getstate__(self) -> dict[str, Any]:
        """Leave out gradients and buffers; the parameters go as the objects an optimizer holds."""
        state = {k: v for k, v in self.__dict__.items() if k not in ("_grads", "_pass")}
        return state | {"_step": self._pass.step}

    def __setstate__(self, state: dict[str, Any]) -> None:
        step = state.pop("_step")
        self.__dict__.update(state)
        for arrays in [*self.params, *self.running]:    # from a memory-mapped file they cannot be trained
            arrays[:] = [array if array.flags.writeable else array.copy() for array in arrays]
        self._allocate()
        self._pass.step = step

    # --- Inside ------------------------------------------------------------------------------

    def _shapes(self) -> Iterator[list[tuple[int, ...]]]:
        for n, m, norm in zip(self.sizes, self.sizes[1:], [*self.norm, None], strict=False):
            yield [(n, m), (m,), (m,)] if norm else [(n, m), (m,)]

    def _initialize(self, rng: np.random.Generator) -> None:
        inits: list[Initializer] = [*(ACTIVATIONS[name] for name in self.activation), "glorot"]
        for (W, _, *scale), init in zip(self.params, inits, strict=True):
            W[...] = INITIALIZERS[init if self.init == "auto" else self.init](rng, *W.shape)
            for array in scale:
                array[...] = 1.0

    def _allocate(self) -> None:
        self._grads: Layers = _arena(self._shapes(), self.dtype)
        self._pass = self._new_pass(training=True)

    def _new_pass(self, training: bool) -> Pass:
        layers = []
        activations = [*self.activation, "identity"]
        for i, (params, grads) in enumerate(zip(self.params, self._grads, strict=True)):
            norm, rate = (self.norm[i], self.dropout[i]) if i < len(self.norm) else (None, 0.0)
            blank = [None] * (3 - len(params))
            arrays = [*params, *blank, *grads, *blank, *(self.running[i] or (None, None))]
            layers.append((
                dispatch.layers.ACTIVATIONS[activations[i]],
                activations[i] in dispatch.layers.NEEDS_Z,
                NORM_CODES[norm],
                rate,
                self._dropout_keys[i],
                arrays,
            ))
        return Pass(dispatch.layers.LAYERS, blas, self.dtype == np.float64, training, layers)

    def _criterion(self, name: LossName) -> Criterion:
        """The loss in numbers: see `net.Pass.train`."""
        loss = LOSSES[name]
        factor = loss.factor
        if self.reduction == "mean" and name != "cross_entropy":
            factor /= self.sizes[-1]
        threshold = self.quantile if name == "quantile" else self.delta
        return dispatch.layers.LOSSES[loss.kernel], factor, self.label_smoothing, threshold

    def _source(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None) -> tuple[Source, LossName]:
        """Return checked data as a pass reads them, and the name of the loss."""
        arrays, n = self._check_rows(X)
        y = np.asarray(y)
        if y.ndim == 0 or len(y) != n:
            raise ValueError(f"X and y must be of the same length, got {n} and {y.shape}")
        name = loss_for(y, self.sizes[-1]) if self.loss == "auto" else self.loss
        targets = LOSSES[name].targets(y, (n, self.sizes[-1]), self.dtype)
        if name == "binary_cross_entropy" and self.label_smoothing:
            targets = targets * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        return Source(*arrays, targets, self._check_weight(sample_weight, n)), name

    def _chunks(
        self, source: Source, criterion: Criterion | None = None
    ) -> Iterator[tuple[Array, float, float]]:
        """Yield outputs, loss and weight of chunk after chunk of the rows."""
        forward = self._new_pass(training=False)
        for start in range(0, source.rows, _CHUNK):
            rows = min(_CHUNK, source.rows - start)
            outputs, loss, weight = forward.outputs(source, start, rows, criterion)
            if outputs is None:
                raise _not_finite(self.dtype)
            yield outputs, loss, weight

    def _outputs(self, X: Samples, function: Callable[[Array], AnyArray]) -> AnyArray:
        source = Source(*self._check_rows(X)[0], None, None)
        return np.concatenate([function(z) for z, _, _ in self._chunks(source)])

    def _resolved_loss(self) -> type[CrossEntropy | BinaryCrossEntropy | SquaredError]:
        if self.loss == "auto":
            raise ValueError("loss='auto' is decided by the first targets, and none were seen yet")
        return LOSSES[self.loss]

    def _check_rows(self, X: Any) -> tuple[tuple[AnyArray, AnyArray | None, AnyArray | None], int]:
        """Return `X` as the first arguments of a `Source`, and its number of rows."""
        sparse = hasattr(X, "tocsr")
        X = X.tocsr() if sparse else np.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.sizes[0]:
            raise ValueError(f"X must have the shape (n, {self.sizes[0]}), got {X.shape}")
        if X.dtype.kind not in "biuf":
            raise ValueError(f"X must hold real numbers, got {X.dtype}")
        n = X.shape[0]
        if n == 0:
            raise ValueError("X must have at least one row, got none")
        if not sparse:
            kept = (np.float32, np.float64, np.uint8)
            return (np.ascontiguousarray(X, X.dtype if X.dtype in kept else self.dtype), None, None), n
        data = np.ascontiguousarray(X.data, self.dtype)
        if not np.isfinite(data).all():
            raise _not_finite(self.dtype)
        return (data, np.ascontiguousarray(X.indices, np.int64), np.ascontiguousarray(X.indptr, np.int64)), n

    def _check_weight(self, weight: ArrayLike | None, n: int) -> Array | None:
        if weight is None:
            return None
        weight = np.asarray(weight)
        if weight.shape != (n,) or weight.dtype.kind not in "biuf":
            raise ValueError(
                f"sample_weight must hold {n} real numbers, got {weight.dtype} of shape {weight.shape}"
            )
        weight = np.ascontiguousarray(weight, self.dtype)
        if not (np.isfinite(weight).all() and weight.min() >= 0):
            raise ValueError("sample_weight must be finite and not negative")
        return weight


class Feed:
    """Data that a net has checked, to be trained on batch after batch.

    Attributes
    ----------
    grads : list of [dW, db] or [dW, db, dscale]
        Gradients of the last batch, unless an optimizer has taken a step with them at once.
    """

    def __init__(self, net: MLP, source: Source, loss: LossName) -> None:
        self._net = net
        self._source = source
        self._loss: LossName = loss
        self._criterion = net._criterion(loss)
        self.grads: Layers = net._grads

    def step(
        self, order: NDArray[np.int64] | None, begin: int = 0, rows: int | None = None,
        opt: Optimizer | None = None,
    ) -> float:
        """Compute the gradients of a batch and return its loss.

        Parameters
        ----------
        order : ndarray of int64 or None
            Rows of the data in the order of the epoch; None is their own.
        begin, rows : int
            The batch is entries ``begin .. begin + rows`` of the order; by default all.
        opt : Optimizer, optional
            One that `_can_lease` the net's parameters: it takes a step, each piece of an array right after
            its gradient, which is then forgotten.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If the rows of the batch hold NaN or Inf.
        """
        net, train = self._net, self._net._pass.train
        rows = self._source.rows if rows is None else rows
        args = (self._source, order, begin, rows, self._criterion, net.l2)
        loss = train(*args) if opt is None else opt._lease(self.grads, train, *args)
        if loss is None:
            raise _not_finite(net.dtype)
        net.loss = self._loss  # decided, if it was "auto"
        return loss


def _not_finite(dtype: np.dtype[Any]) -> ValueError:
    return ValueError(f"X must be finite in {dtype}, got NaN or Inf")


def _arena(shapes: Iterable[list[tuple[int, ...]]], dtype: np.dtype[Any]) -> Layers:
    """Return lists of arrays of zeros of the shapes of each layer, views of one contiguous array.

    It begins on a cache line, as the widest registers read only then without a second access.
    """
    shapes = list(shapes)
    count = sum(math.prod(shape) for layer in shapes for shape in layer)
    memory = np.zeros(count * dtype.itemsize + _LINE, np.uint8)
    first = -memory.ctypes.data % _LINE
    flat = memory[first : first + count * dtype.itemsize].view(dtype)
    layers: Layers = []
    start = 0
    for layer in shapes:
        layers.append([])
        for shape in layer:
            stop = start + math.prod(shape)
            layers[-1].append(flat[start:stop].reshape(shape))
            start = stop
    return layers


# --- Files -------------------------------------------------------------------------------------


def _is_safetensors(path: StrPath) -> bool:
    return os.fspath(path).endswith(".safetensors")


def _beside(path: StrPath) -> str:
    return os.fspath(path).removesuffix(".safetensors") + ".json"


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "files of this format need safetensors: pip install 'fastopt[safetensors]'"
        ) from None
    return safetensors.numpy


def _read_config(text: str) -> dict[str, Any]:
    """Return the arguments of a net from their JSON."""
    try:
        config: dict[str, Any] = json.loads(text)
        version = config.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("this does not describe a fastopt.MLP") from None
    if version != _FORMAT_VERSION:
        raise ValueError(f"expected format {_FORMAT_VERSION}, got {version}")
    if missing := {"sizes", "dtype", *_CONFIG} - config.keys():
        raise ValueError(f"{min(missing)!r} is missing")
    return config


# --- Arguments -----------------------------------------------------------------------------------


def _check_sizes(sizes: Iterable[SupportsIndex]) -> tuple[int, ...]:
    try:
        checked = tuple(operator.index(size) for size in sizes)
    except TypeError:
        raise TypeError(f"sizes must be a sequence of integers, got {sizes!r}") from None
    if len(checked) < 2 or min(checked) < 1:
        raise ValueError(f"sizes must be at least two positive integers, got {sizes!r}")
    return checked


def _for_each(
    value: _T | Sequence[_T], hidden: int, check: Callable[..., _T], argument: str, *limits: Any
) -> tuple[_T, ...]:
    """Return `hidden` checked values, from as many or from one."""
    if not isinstance(value, list | tuple):
        return (check(value, argument, *limits),) * hidden
    if len(value) != hidden:
        raise ValueError(f"{argument} must be one value or {hidden}, one a hidden layer, got {value!r}")
    return tuple(check(one, argument, *limits) for one in value)


def _check_activation(name: Activation, argument: str) -> Activation:
    return _check_name(_ALIASES.get(name, name), argument, ACTIVATIONS)


def _check_name(name: _T, argument: str, choices: Collection[Any]) -> _T:
    if name not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(str, choices))}; got {name!r}")
    return name


def _check_number(value: float, argument: str, low: float, high: float, *, open_below: bool = False) -> float:
    """Return `value` as a float of ``[low, high)``, or ``(low, high)``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{argument} must be a number, got {value!r}") from None
    if not (low < number if open_below else low <= number) or not number < high:
        bracket = "(" if open_below else "["
        raise ValueError(f"{argument} must be in {bracket}{low:g}, {high:g}), got {value!r}")
    return number


def _dtype_name(dtype: Any) -> Any:
    try:
        return dtype if dtype is None else np.dtype(dtype).name
    except TypeError:
        return dtype
