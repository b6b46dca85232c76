"""The arrays of a multilayer perceptron and the compiled passes over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastopt._core.arena import aligned_zeros
from fastopt.nn._core import dispatch
from fastopt.nn._core.blas import blas
from fastopt.nn._core.net import NORMS as NORM_CODES
from fastopt.nn._core.net import Pass, Source
from fastopt.nn.layers import ACTIVATIONS, INITIALIZERS, LOSSES, LossSpec, loss_for

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastopt._core.typing import AnyArray, Array
    from fastopt.nn.typing import Activation, Initializer, Layers, Loss, LossName, Norm, Samples
    from fastopt.optimizers import Optimizer

    # Code of the loss, factor of a sample's loss, label smoothing, threshold.
    LossArgs = tuple[int, float, float, float]
    # Values, or the values, column indices and row pointers of a CSR matrix.
    XArrays = tuple[AnyArray, AnyArray | None, AnyArray | None]

_FEW = 16      # samples up to which the memory of a prediction is kept for the next one
CHUNK = 1024  # samples per forward pass of a prediction, which bounds its memory


class Network:
    """Base class of `fastopt.MLP`: parameters, gradients, and the compiled passes.

    A subclass sets the attributes that describe the network and calls `_create_params`.
    """

    sizes: tuple[int, ...]
    activation: tuple[Activation, ...]
    loss: Loss
    dtype: np.dtype[np.floating[Any]]
    l2: float
    init: Literal["auto"] | Initializer
    dropout: tuple[float, ...]
    norm: tuple[Norm, ...]
    label_smoothing: float
    reduction: Literal["mean", "sum"]
    delta: float
    quantile: float
    params: Layers
    running: Layers

    def _create_params(self, rng: np.random.Generator) -> None:
        """Create and initialize parameters, running averages and the seeds of dropout."""
        self.params = _alloc_layers(self._shapes(), self.dtype)
        self.running = [
            [np.zeros(n, self.dtype), np.ones(n, self.dtype)] if name == "batch" else []
            for n, name in zip(self.sizes[1:], [*self.norm, None], strict=True)
        ]
        for _, _, *scale in self.params:
            for array in scale:
                array[...] = 1.0
        self._initialize_weights(rng)
        self._dropout_keys = rng.integers(2**63, size=len(self.params)).tolist()
        self._create_training_pass()

    def _initialize_weights(self, rng: np.random.Generator) -> None:
        inits: list[Initializer] = [*(ACTIVATIONS[name] for name in self.activation), "glorot"]
        for (W, *_), init in zip(self.params, inits, strict=True):
            W[...] = INITIALIZERS[init if self.init == "auto" else self.init](rng, *W.shape)

    def _shapes(self) -> Iterator[list[tuple[int, ...]]]:
        for n, m, norm in zip(self.sizes, self.sizes[1:], [*self.norm, None], strict=False):
            yield [(n, m), (m,), (m,)] if norm else [(n, m), (m,)]

    def _named_arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield each array and its name in a state dict: ``W1, b1, W2, ...``."""
        for i, (params, running) in enumerate(zip(self.params, self.running, strict=True), 1):
            for name, array in zip(("W", "b", "scale"), params, strict=False):
                yield f"{name}{i}", array
            for name, array in zip(("mean", "variance"), running, strict=False):
                yield f"{name}{i}", array

    def __getstate__(self) -> dict[str, Any]:
        """Omit gradients and buffers; keep the parameter objects, which an optimizer holds as well."""
        state = {k: v for k, v in self.__dict__.items() if k not in ("_grads", "_pass", "_idle")}
        return state | {"_step": self._pass.step}

    def __setstate__(self, state: dict[str, Any]) -> None:
        step = state.pop("_step")
        self.__dict__.update(state)
        for arrays in [*self.params, *self.running]:  # copied if they are read-only memory maps
            arrays[:] = [array if array.flags.writeable else array.copy() for array in arrays]
        self._create_training_pass()
        self._pass.step = step

    def _create_training_pass(self) -> None:
        self._grads: Layers = _alloc_layers(self._shapes(), self.dtype)
        self._pass = self._make_pass(training=True)
        self._idle: list[Pass] = []

    @property
    def dropout_step(self) -> int:
        """Training steps so far; each draws new dropout masks."""
        return self._pass.step

    @dropout_step.setter
    def dropout_step(self, step: int) -> None:
        self._pass.step = step

    def _rebind_params(self) -> None:
        """Make a new training pass if an array in `params` has been replaced or reallocated."""
        if not self._pass.is_bound_to(self.params):
            training = self._make_pass(training=True)
            training.step = self._pass.step
            self._pass = training

    def _make_pass(self, training: bool) -> Pass:
        compiled, layers = dispatch.layers, []
        self._check_params()
        activations = [*self.activation, "identity"]
        for i, (params, grads) in enumerate(zip(self.params, self._grads, strict=True)):
            norm, rate = (self.norm[i], self.dropout[i]) if i < len(self.norm) else (None, 0.0)
            missing = [None] * (3 - len(params))
            arrays = [*params, *missing, *grads, *missing, *(self.running[i] or (None, None))]
            code, needs_z = compiled.ACTIVATIONS[activations[i]], activations[i] in compiled.NEEDS_Z
            layers.append((code, needs_z, NORM_CODES[norm], rate, self._dropout_keys[i], arrays))
        return Pass(compiled.LAYERS, blas, self.dtype == np.float64, training, layers)

    def _check_params(self) -> None:
        """Raise if an array in `params` or `running` is not one that a pass can use."""
        shapes = list(self._shapes())
        vectors = [[shape[0][-1:]] * len(own) for shape, own in zip(shapes, self.running, strict=True)]
        for name, layers, expected in (("params", self.params, shapes), ("running", self.running, vectors)):
            for i, (layer, own) in enumerate(zip(layers, expected, strict=True)):
                if len(layer) != len(own):
                    raise ValueError(f"{name}[{i}]: expected {len(own)} arrays, got {len(layer)}")
                for k, (array, shape) in enumerate(zip(layer, own, strict=True)):
                    _check_array(f"{name}[{i}][{k}]", array, self.dtype, shape)

    def _loss_args(self, name: LossName) -> LossArgs:
        """Return the arguments of a loss for `Pass.train` and `Pass.outputs`."""
        loss = LOSSES[name]
        factor = loss.factor
        if self.reduction == "mean" and name != "cross_entropy":
            factor /= self.sizes[-1]
        threshold = self.quantile if name == "quantile" else self.delta
        return dispatch.layers.LOSSES[loss.kernel], factor, self.label_smoothing, threshold

    def _source(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None) -> tuple[Source, LossName]:
        """Return checked data in the form that a pass reads, and the name of the loss."""
        arrays, n = self._check_X(X)
        y = np.asarray(y)
        if y.ndim == 0 or len(y) != n:
            raise ValueError(f"y: expected {n} targets, as many as X has samples, got the shape {y.shape}")
        name = loss_for(y, self.sizes[-1]) if self.loss == "auto" else self.loss
        targets = LOSSES[name].targets(y, (n, self.sizes[-1]), self.dtype)
        if name == "binary_cross_entropy" and self.label_smoothing:
            targets = targets * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        return Source(*arrays, targets, self._check_sample_weight(sample_weight, n)), name

    def _chunks(
        self, source: Source, loss_args: LossArgs | None = None
    ) -> Iterator[tuple[Array, float, float]]:
        """Yield outputs, total loss and total weight of one chunk of samples after another."""
        forward = self._take_forward_pass()
        for start in range(0, source.rows, CHUNK):
            n = min(CHUNK, source.rows - start)
            outputs, loss, weight = forward.outputs(source, start, n, loss_args)
            if outputs is None:
                raise _not_finite(self.dtype)
            yield outputs, loss, weight
        if source.rows <= _FEW and not any(self.running):   # whose arrays `is_bound_to` does not compare
            self._idle[:] = [forward]

    def _take_forward_pass(self) -> Pass:
        """Return the pass that is kept for predictions of few samples, or a new one if it is in use."""
        with suppress(IndexError):
            forward = self._idle.pop()
            if forward.is_bound_to(self.params):
                return forward
        return self._make_pass(training=False)

    def _evaluate(self, source: Source, name: LossName) -> float:
        """Return the loss of samples, including the penalty."""
        return self.metrics_of(*self._loss_sums(source, name), 0.0, 0.0)[0]

    def _loss_sums(self, source: Source, name: LossName) -> tuple[float, float]:
        """Return the total loss of samples and their total weight."""
        total_loss = total_weight = 0.0
        for _, loss, weight in self._chunks(source, self._loss_args(name)):
            total_loss += loss
            total_weight += weight
        return total_loss, total_weight

    def evaluation_sums(
        self, X: Samples, y: ArrayLike, sample_weight: NDArray[np.float64] | None = None
    ) -> tuple[float, float, float, float]:
        """Return total loss and weight of samples, and those predicted correctly and counted.

        The counts, numbers or weights of the samples, are 0 for a regression.
        """
        source, name = self._source(X, y, sample_weight)
        if LOSSES[name].probabilities is not None:
            source.count_correct(sample_weight)
        return *self._loss_sums(source, name), *source.counted

    def metrics_of(
        self, loss: float, weight: float, correct: float, seen: float
    ) -> tuple[float, float | None]:
        """Return loss and accuracy from the sums of `evaluation_sums`; that of a regression is None."""
        penalty = 0.5 * self.l2 * sum(float(np.vdot(layer[0], layer[0])) for layer in self.params)
        return (loss / weight if weight else 0.0) + penalty, correct / seen if seen else None

    def _outputs(self, X: Samples, function: Callable[[Array], AnyArray]) -> AnyArray:
        """Return `function` of the outputs of all samples."""
        source = Source(*self._check_X(X)[0], None, None)
        return np.concatenate([function(z) for z, _, _ in self._chunks(source)])

    def _resolved_loss(self) -> LossSpec:
        if self.loss == "auto":
            raise ValueError("loss: 'auto' is resolved by the first training step, and there was none yet")
        return LOSSES[self.loss]

    def _check_X(self, X: Any) -> tuple[XArrays, int]:
        """Return `X` as the first arguments of a `Source`, and its number of samples."""
        is_sparse = hasattr(X, "tocsr")
        X = X.tocsr() if is_sparse else np.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.sizes[0]:
            raise ValueError(f"X: expected the shape (n, {self.sizes[0]}), got {X.shape}")
        if X.dtype.kind not in "biuf":
            raise ValueError(f"X: expected real numbers, got {X.dtype}")
        n = X.shape[0]
        if n == 0:
            raise ValueError("X: expected at least one sample, got none")
        if not is_sparse:
            is_supported = X.dtype in (np.float32, np.float64, np.uint8)
            return (np.ascontiguousarray(X, X.dtype if is_supported else self.dtype), None, None), n
        data = np.ascontiguousarray(X.data, self.dtype)
        if not np.isfinite(data).all():
            raise _not_finite(self.dtype)
        return (data, np.ascontiguousarray(X.indices, np.int64), np.ascontiguousarray(X.indptr, np.int64)), n

    def _check_sample_weight(self, weight: ArrayLike | None, n: int) -> Array | None:
        if weight is None:
            return None
        weight = np.asarray(weight)
        if weight.shape != (n,) or weight.dtype.kind not in "biuf":
            raise ValueError(
                f"sample_weight: expected {n} real numbers, got {weight.dtype} of shape {weight.shape}"
            )
        weight = np.ascontiguousarray(weight, self.dtype)
        if not (np.isfinite(weight).all() and weight.min() >= 0):
            raise ValueError("sample_weight: expected finite numbers of at least 0")
        return weight


class TrainingData:
    """Checked data on which an MLP is trained batch by batch; returned by `fastopt.MLP.bind_data`.

    Attributes
    ----------
    grads : list of [dW, db] or [dW, db, dscale]
        Gradients of the last batch. They are undefined if the step included the optimizer.
    """

    def __init__(self, net: Network, source: Source, loss: LossName) -> None:
        self._net = net
        self._source = source
        self._loss: LossName = loss
        self._loss_args = net._loss_args(loss)
        self.grads: Layers = net._grads

    def count_correct(self, weight: NDArray[np.float64] | None = None) -> bool:
        """Count correct predictions in the outputs of every further step.

        Parameters
        ----------
        weight : ndarray of float64, shape (n,), optional
            Weights of the samples in the count.

        Returns
        -------
        bool
            False for a regression, whose predictions are not counted.
        """
        is_classifier = LOSSES[self._loss].probabilities is not None
        if is_classifier:
            self._source.count_correct(weight)
        return is_classifier

    @property
    def counts(self) -> tuple[float, float]:
        """Number or weight of the samples predicted correctly, and of all that were counted."""
        return self._source.counted

    @counts.setter
    def counts(self, counts: tuple[float, float]) -> None:
        self._source.counted = counts

    def accuracy(self) -> float:
        """Return the fraction of the samples that were predicted correctly."""
        correct, seen = self.counts
        return correct / seen

    def step(
        self, order: NDArray[np.int64] | None, begin: int = 0, rows: int | None = None,
        opt: Optimizer | None = None,
    ) -> float:
        """Compute the gradients of a batch and return its mean loss, including the penalty.

        Parameters
        ----------
        order : ndarray of int64 or None
            Indices of the samples in the order of the epoch. None: the order of the data.
        begin, rows : int
            The batch consists of the entries ``begin`` to ``begin + rows`` of the order. Default: all.
        opt : Optimizer, optional
            An optimizer for which ``opt._can_lease(net.params)`` is true. It takes a step: each part of
            an array is updated right after its gradient, which is then discarded.
        """
        net, train = self._net, self._net._pass.train
        rows = self._source.rows if rows is None else rows
        args = (self._source, order, begin, rows, self._loss_args, net.l2)
        steps = net._pass.step
        try:
            loss = train(*args) if opt is None else opt._lease(self.grads, train, *args)
        finally:
            if net._pass.step != steps:  # also if a signal handler raised an exception after the step
                net.loss = self._loss  # resolves "auto"
        if loss is None:
            raise _not_finite(net.dtype)
        return loss


def _check_array(name: str, array: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    given = type(array).__name__
    if isinstance(array, np.ndarray):
        if array.dtype == dtype and array.shape == shape and array.flags.carray:
            return
        layout = "" if array.flags.carray else ", not C-contiguous or read-only"
        given = f"{array.dtype} of shape {array.shape}{layout}"
    raise ValueError(
        f"{name}: expected a writeable, C-contiguous array of dtype {dtype} and shape {shape}, got {given}; "
        f"copy values into the array of the model: {name}[...] = values"
    )


def _not_finite(dtype: np.dtype[Any]) -> ValueError:
    return ValueError(f"X: expected finite numbers in {dtype}, got NaN or Inf")


def _alloc_layers(shapes: Iterable[list[tuple[int, ...]]], dtype: np.dtype[Any]) -> Layers:
    """Return lists of zero arrays of the shapes of each layer, views of one contiguous array.

    The array is aligned to a cache line, so that the widest registers read it without split loads.
    """
    shapes = list(shapes)
    flat = aligned_zeros(sum(math.prod(shape) for layer in shapes for shape in layer), dtype)
    layers: Layers = []
    start = 0
    for layer in shapes:
        layers.append([])
        for shape in layer:
            stop = start + math.prod(shape)
            layers[-1].append(flat[start:stop].reshape(shape))
            start = stop
    return layers
