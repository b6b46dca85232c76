"""The multilayer perceptron. More than half of the class is its documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeVar

import numpy as np

from fastopt._core.arena import copy_all
from fastopt._core.validation import check_choice, check_float, check_int
from fastopt.nn.files import read_model, write_model
from fastopt.nn.layers import ACTIVATIONS, INITIALIZERS, LOSSES, NORMS
from fastopt.nn.network import Network, TrainingData

if TYPE_CHECKING:
    from typing import Self

    from _typeshed import StrPath
    from numpy.typing import ArrayLike

    from fastopt._core.typing import AnyArray, Array
    from fastopt.nn.typing import Activation, FloatType, Initializer, Layers, Loss, Norm, Samples

_T = TypeVar("_T")
_FORMAT_VERSION = 2
# Constructor arguments that are saved in a file, besides `sizes` and `dtype`.
_CONFIG = (
    "activation", "loss", "l2", "init", "dropout", "norm", "label_smoothing", "reduction", "delta", "quantile"
)


class MLP(Network):
    """A multilayer perceptron: dense layers with activations between them.

    Each layer computes ``z = a @ W + b``. An activation follows every layer except the last, whose ``z``
    are the logits (classification) or the predicted values (regression). A hidden layer may be
    normalized, ``z = scale * normalized(a @ W) + b``, and dropout may be applied to its outputs.

    Parameters
    ----------
    sizes : sequence of int
        Widths of the layers from input to output, at least two: ``[784, 256, 10]`` has one hidden layer.
    activation : str or sequence of str, default "relu"
        For all hidden layers, or one per hidden layer: ``"relu"``, ``"leaky_relu"`` (slope 0.01),
        ``"elu"`` (alpha 1), ``"gelu"``, ``"gelu_tanh"`` (its tanh approximation), ``"silu"``,
        ``"tanh"``, ``"sigmoid"`` (or ``"logistic"``), ``"identity"``.
    loss : str, default "auto"
        ``"cross_entropy"``: softmax, labels ``0 .. sizes[-1] - 1``, shape ``(n,)``.
        ``"binary_cross_entropy"``: a sigmoid per output, labels 0 and 1 of integer or boolean dtype,
        shape ``(n, sizes[-1])``, or ``(n,)`` if there is a single output.
        For real targets of shape ``(n, sizes[-1])``, or ``(n,)``, with the error ``e = z - y``:
        ``"mse"``: ``e^2``; ``"squared_error"``: ``e^2 / 2``, as in scikit-learn;
        ``"huber"``: ``e^2 / 2`` if ``|e| <= delta``, else ``delta (|e| - delta / 2)``;
        ``"quantile"``: ``-quantile e`` if e is negative, else ``(1 - quantile) e``;
        ``"poisson"``: ``exp(z) - y z`` for counts, whose mean ``exp(z)`` is what `predict` returns.
        ``"auto"`` is resolved by the first targets: floating-point targets select ``"mse"``; integer or
        boolean ones select ``"binary_cross_entropy"`` if they have two dimensions or the network has a
        single output, else ``"cross_entropy"``. From then on `loss` holds that name.
    dtype : {"float32", "float64"}, default "float32"
        Data type of the parameters and of all arithmetic.
    seed : int, optional
        Seed of the initial weights and of dropout. Both dtypes have the same weights, up to rounding.
    l2 : float, default 0.0
        Adds the penalty ``0.5 * l2 * sum(W**2)``, over all weight matrices, to the loss, and ``l2 * W``
        to the gradients. The penalty is not divided by the batch size. (scikit-learn divides its penalty: its
        ``alpha`` corresponds to ``l2 = alpha / batch_size``.)
    init : {"auto", "he", "glorot"}, default "auto"
        ``"he"``: normal with variance ``2 / fan_in``; ``"glorot"``: uniform with variance
        ``2 / (fan_in + fan_out)``. ``"auto"`` depends on the activation that follows the layer: He
        before the relu family, Glorot before tanh, sigmoid and identity, and for the last layer. Biases
        are initialized to 0, scales to 1.
    dropout : float or sequence of float, default 0.0
        Dropout probability of the outputs of a hidden layer, for all hidden layers or one per hidden
        layer. In a training step, outputs that are kept are divided by one minus the probability.
    norm : {None, "batch", "layer"} or sequence of them, default None
        Normalization before the activation, for all hidden layers or one per hidden layer. ``"batch"``
        normalizes over the samples of the batch; predictions use running averages of mean and variance,
        updated with weight 0.1 per batch. ``"layer"`` normalizes over the outputs of the layer. Both add
        1e-5 to the variance.
    label_smoothing : float, default 0.0
        Fraction of each label that ``"cross_entropy"`` distributes evenly over all classes, and
        ``"binary_cross_entropy"`` over both.
    reduction : {"mean", "sum"}, default "mean"
        Whether the loss of a sample is the mean or the sum over the outputs. ``"cross_entropy"`` has one
        loss per sample in any case.
    delta : float, default 1.0
        Error beyond which the Huber loss is linear.
    quantile : float, default 0.5
        Quantile of the target distribution that the loss ``"quantile"`` estimates, between 0 and 1.

    Attributes
    ----------
    params : list of [W, b] or [W, b, scale]
        Weights ``(in, out)``, biases ``(out,)`` and, for normalized layers, scales ``(out,)``: views of
        one contiguous array. In an unpickled or deep-copied model they are separate arrays instead, and
        the same objects as in an optimizer that was pickled or copied together with it.
    running : list of [mean, variance] or []
        Running averages of each layer with ``norm="batch"``.
    sizes, activation, loss, dtype, l2, init, dropout, norm, label_smoothing, reduction, delta, quantile
        As passed to the constructor; `activation`, `dropout` and `norm` as tuples with one value per
        hidden layer. `l2` may be changed between steps.

    Notes
    -----
    The loss of a batch is the mean over its samples, weighted if there are sample weights.

    `train_step` uses buffers of the model, so only one thread may train it at a time; `predict`,
    `predict_proba` and `evaluate` are thread-safe.

    `X` may be a SciPy sparse matrix or array in every method; it is never converted to a dense matrix as
    a whole.

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
    True
    """

    #: Gradients come in the order of `params`.
    grads_reversed = False

    def __init__(
        self, sizes: Iterable[SupportsIndex], activation: Activation | Sequence[Activation] = "relu",
        loss: Loss = "auto", dtype: FloatType = "float32", seed: int | None = None, *, l2: float = 0.0,
        init: Literal["auto"] | Initializer = "auto", dropout: float | Sequence[float] = 0.0,
        norm: Norm | Sequence[Norm] = None, label_smoothing: float = 0.0,
        reduction: Literal["mean", "sum"] = "mean", delta: float = 1.0, quantile: float = 0.5,
    ) -> None:
        self.sizes = _check_sizes(sizes)
        n_hidden = len(self.sizes) - 2
        self.activation = _per_layer("activation", activation, n_hidden, _check_activation)
        self.loss = check_choice("loss", loss, ("auto", *LOSSES))
        if self.loss == "cross_entropy" and self.sizes[-1] < 2:
            raise ValueError("loss: 'cross_entropy' needs sizes[-1] >= 2, got 1")
        self.dtype = np.dtype(check_choice("dtype", _dtype_name(dtype), ("float32", "float64")))
        self.l2 = check_float("l2", l2, 0.0)
        self.init = check_choice("init", init, ("auto", *INITIALIZERS))
        self.dropout = _per_layer("dropout", dropout, n_hidden, check_float, 0.0, 1.0)
        self.norm = _per_layer("norm", norm, n_hidden, check_choice, NORMS)
        self.label_smoothing = check_float("label_smoothing", label_smoothing, 0.0, 1.0)
        self.reduction = check_choice("reduction", reduction, ("mean", "sum"))
        self.delta = check_float("delta", delta, 0.0, open_low=True)
        self.quantile = check_float("quantile", quantile, 0.0, 1.0, open_low=True)
        self._create_params(np.random.default_rng(seed))

    def __repr__(self) -> str:
        hidden = "".join(
            f", {name}={getattr(self, name)!r}" for name in ("norm", "dropout") if any(getattr(self, name))
        )
        return (
            f"MLP({list(self.sizes)}, activation={self.activation!r}, loss={self.loss!r}, "
            f"dtype={self.dtype.name!r}, l2={self.l2!r}{hidden})"
        )

    def summary(self) -> str:
        """Return a table of the layers and their numbers of parameters as text."""
        rows = [("Layer", "Shape", "Norm", "Activation", "Dropout", "Parameters")]
        none = (None,)
        total = 0
        for i, (layer, activation, norm, rate) in enumerate(
            zip(self.params, self.activation + none, self.norm + none, self.dropout + none, strict=True), 1
        ):
            count = sum(array.size for array in layer)
            total += count
            shape, dropout = "{} -> {}".format(*layer[0].shape), f"{rate:g}" if rate else ""
            rows.append((str(i), shape, norm or "", activation or "", dropout, f"{count:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row[:-1], widths)) + row[-1].rjust(widths[-1] + 2) for row in rows]
        return "\n".join([*lines, f"{total:,} parameters, {self.dtype.name}, loss {self.loss}"])

    def train_step(
        self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> tuple[float, Layers]:
        """Return the loss of a batch and its gradients.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, sizes[0])
            Samples of any real dtype; those of the model's dtype are not copied.
        y : array_like
            Targets, in the form that the loss requires (see the class).
        sample_weight : array_like, shape (n,), optional
            Weights of the samples, at least 0.

        Returns
        -------
        loss : float
            Mean loss of the batch, including the penalty.
        grads : list of [dW, db] or [dW, db, dscale]
            Gradients, nested and ordered as `params`. The arrays belong to the model, and the next step
            overwrites them.

        Raises
        ------
        ValueError
            If data are invalid or hold NaN or Inf. The gradients of the previous step stay unchanged.
        """
        return self.bind_data(X, y, sample_weight).step(None), self._grads

    def bind_data(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> TrainingData:
        """Check data once and return an object that trains on batches of it. Used by `Trainer`.

        The arguments are those of `train_step`. They are read at each step and must not change.
        """
        self._rebind_params()
        return TrainingData(self, *self._source(X, y, sample_weight))

    def evaluate(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the loss, including the penalty, without dropout and without computing gradients.

        Samples are processed in chunks, so memory is bounded for any number of samples.

        Parameters
        ----------
        X, y, sample_weight
            As for `train_step`.
        """
        return self._evaluate(*self._source(X, y, sample_weight))

    def predict(self, X: Samples) -> AnyArray:
        """Return labels (classification) or values (regression).

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, sizes[0])

        Returns
        -------
        ndarray
            int64 labels of shape ``(n,)``, or ``(n, sizes[-1])`` for multi-label classification; or
            values of the model's dtype, shape ``(n, sizes[-1])``. A single output gives shape ``(n,)``.
        """
        return self._outputs(X, self._resolved_loss().predictions)

    def predict_proba(self, X: Samples) -> Array:
        """Return the probability of each class, or raise a ValueError for a regression.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, sizes[0])

        Returns
        -------
        ndarray
            Shape ``(n, classes)`` in the model's dtype. A single output gives ``(n, 2)``, as in
            scikit-learn; a multi-label model gives the probability of each label.
        """
        probabilities = self._resolved_loss().probabilities
        if probabilities is None:
            raise ValueError("predict_proba needs a classifier, but the loss is that of a regression")
        return self._outputs(X, probabilities)

    def state_dict(self) -> dict[str, AnyArray]:
        """Return copies of the parameters, the running averages and the state of dropout.

        Their names are ``W1``, ``b1``, ``scale1``, ``mean1``, ``variance1``, ``W2``, ..., and, for the
        random generator of dropout, ``dropout``.
        """
        state: dict[str, AnyArray] = {name: array.copy() for name, array in self._named_arrays()}
        if any(self.dropout):
            state["dropout"] = np.array([self._pass.step, *self._dropout_keys], np.uint64)
        return state

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy the arrays of `state_dict` into those of the model.

        Parameters
        ----------
        state_dict : dict of ndarray
            As returned by `state_dict`. Without ``dropout``, the state of dropout is unchanged. If an array
            is missing or has another shape or dtype, a ValueError is raised and nothing is changed.
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
        n = 1 + len(self.params)
        dropout = np.asarray(state_dict.get("dropout", [0] * n))
        if dropout.shape != (n,) or dropout.dtype.kind not in "iu":
            raise ValueError(f"state_dict['dropout']: expected {n} integers")
        names, arrays = zip(*self._named_arrays(), strict=True)
        copy_all(arrays, [state_dict[name] for name in names])
        if "dropout" in state_dict:
            step, *self._dropout_keys = dropout.tolist()
            self._pass.set_dropout_state(step, self._dropout_keys)

    def save(self, path: StrPath) -> None:
        """Write the model to a file of plain arrays, without pickle.

        Parameters
        ----------
        path : str or path-like
            Path of the file, used as it is. If it ends in ``.safetensors``, the file has that format
            (``pip install 'fastopt[safetensors]'``), else it is an ``.npz`` archive. Both include a
            description of the model in JSON, and checksums. An existing file is replaced atomically.
        """
        write_model(path, self._config(), dict(self._named_arrays()))

    def _config(self) -> dict[str, Any]:
        config = {"format": _FORMAT_VERSION, "sizes": self.sizes, "dtype": self.dtype.name}
        return config | {name: getattr(self, name) for name in _CONFIG}

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Return the model that `save` wrote, or raise a ValueError if the file is damaged.

        Parameters
        ----------
        path : str or path-like
        """
        return cls._load(path)[0]

    @classmethod
    def _load(cls, path: StrPath) -> tuple[Self, Any]:
        """Return a saved model and ``_config()["extra"]`` of the class that saved it, or None."""
        config, arrays, extra = read_model(path, _FORMAT_VERSION, ("sizes", "dtype", *_CONFIG))
        try:
            net = cls(**config)
            net.load_state_dict(arrays)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None
        return net, extra


def _check_sizes(sizes: Iterable[SupportsIndex]) -> tuple[int, ...]:
    try:
        widths = list(sizes)
    except TypeError:
        raise TypeError(f"sizes: expected a sequence of integers, got {sizes!r}") from None
    if len(widths) < 2:
        raise ValueError(f"sizes: expected at least two layer widths, got {sizes!r}")
    return tuple(check_int(f"sizes[{i}]", width, 1) for i, width in enumerate(widths))


def _per_layer(
    name: str, value: _T | Sequence[_T], n_hidden: int, check: Callable[..., _T], *args: Any
) -> tuple[_T, ...]:
    """Return one checked value per hidden layer, from one value for all or a sequence."""
    if not isinstance(value, list | tuple):
        return (check(name, value, *args),) * n_hidden
    if len(value) != n_hidden:
        raise ValueError(f"{name}: expected one value, or {n_hidden} (one per hidden layer), got {value!r}")
    return tuple(check(name, each, *args) for each in value)


def _check_activation(name: str, value: Activation) -> Activation:
    is_alias = isinstance(value, str) and value == "logistic"
    return check_choice(name, "sigmoid" if is_alias else value, ACTIVATIONS)


def _dtype_name(dtype: Any) -> Any:
    try:
        return dtype if dtype is None else np.dtype(dtype).name
    except TypeError:
        return dtype
