"""The trainings of ``fastopt bench --trainer``: works, contenders, timing.

As `steps.py`, this file is imported in a contender's process: NumPy and one library are all there is.

What is timed is whole epochs as a user runs them, with all that belongs to them: shuffling, gathering
the rows of each minibatch, forward pass, loss, backward pass, update, and what a library does around
these. The time of a step is that of the epochs divided by the number of their minibatches. The floor
is the matrix products of these minibatches alone.

What keeps the numbers honest:

- The same for all: float32 data, initial weights (but for scikit-learn, which draws its own), relu,
  softmax and cross-entropy, Adam with lr 0.001, betas (0.9, 0.999), eps 1e-8; the last minibatch of
  an epoch is smaller for all, too.
- After some hundred steps each contender's loss is computed from its parameters by NumPy and reported,
  and the caller compares it: every contender really trains.
- The data are made, not downloaded: uniform pixels, labels by a random linear teacher, some of them
  wrong, so that the loss stays away from zero.
- Every contender runs with each number of threads in turn. Peers and floor count with the better one,
  fastopt with all cores, as it comes.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from . import steps  # not by the package's name: a peer's Python may have no fastopt
from .steps import ALIGN, BETA1, BETA2, EPS, LR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .steps import F32

    Labels = NDArray[np.int64]
    Layers = list[list[F32]]

PROBE_STEPS = 500       # after which the losses of all contenders are compared
PROBE_ROWS = 4096       # of the data, on which that loss is taken
WRONG = 0.1             # share of labels that the teacher does not explain
SOME_ROWS = 10_000      # of data whose size is not given

YARDSTICK = "floor"     # the contender that is no contender: times are given as ratios to its
UNIT = "GFLOP/s"        # of a work's amount in a second
PROBED = "loss"         # what contenders are compared by
TOLERANCE = 0.2         # between them: each meets the rows in an order of its own
EXTRA_THREADS = (1,)    # numbers of threads to measure beside all cores


# --- Works ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A net and the data it is trained on.

    Attributes
    ----------
    name : str
        For the command line.
    sizes : tuple of int
        Widths from input to output.
    batch : int
        Rows of a minibatch; of all but the last of an epoch, which may be smaller.
    rows : int
        Of the data.
    """

    name: str
    sizes: tuple[int, ...]
    batch: int
    rows: int
    kind = "training"

    @property
    def title(self) -> str:
        """For tables."""
        return f"{'-'.join(map(str, self.sizes))}, batch {self.batch}"

    @property
    def batches(self) -> list[int]:
        """Sizes of the minibatches of an epoch."""
        full, rest = divmod(self.rows, self.batch)
        return [self.batch] * full + [rest] * (rest > 0)

    @property
    def flops(self) -> float:
        """Floating-point operations in the matrix products of a step, on the average of an epoch.

        Each layer has three products: its output, the gradient of its weights, and that of its
        input, which the first layer needs not.
        """
        products = [i * o for i, o in zip(self.sizes, self.sizes[1:], strict=False)]
        return 2 * (3 * sum(products) - products[0]) * self.rows / len(self.batches)

    @property
    def summary(self) -> str:
        """For lists of works."""
        return f"{self.rows:,} rows, {len(self.batches):,} steps an epoch"

    def record(self) -> dict[str, Any]:
        """What is saved of it."""
        return {
            "name": self.name, "title": self.title, "kind": self.kind, "sizes": self.sizes,
            "batch": self.batch, "rows": self.rows, "amount": self.flops,
        }

    def memory(self, workers: int) -> int:
        """Bytes needed: the data, which some hold twice, and a library for each."""
        return workers * (2 * 4 * self.rows * (self.sizes[0] + 2) + (200 << 20))


WORKS = (
    Work("fashion-128", (784, 256, 128, 10), 128, 60_000),
    Work("fashion-32", (784, 256, 128, 10), 32, 60_000),
    Work("digits-32", (64, 32, 10), 32, 1_437),
)

SWEEP: tuple[str, ...] = ()
QUICK_SWEEP: tuple[str, ...] = ()

FULL: dict[str, Any] = {"works": tuple(work.name for work in WORKS), "rounds": 7, "seconds": 0.5}
QUICK: dict[str, Any] = {"works": ("digits-32",), "rounds": 3, "seconds": 0.05}


def find_work(name: str) -> Work:
    """The work of a name; one like ``784-256-10/64`` is a net and the rows of its minibatches.

    A third number, as in ``784-256-10/64/60000``, is that of the data's rows.

    Raises
    ------
    ValueError
        If there is no such work.
    """
    for work in WORKS:
        if work.name == name:
            return work
    match = re.fullmatch(r"([1-9]\d*(?:-[1-9]\d*)+)/([1-9]\d*)(?:/([1-9]\d*))?", name, re.ASCII)
    sizes = [int(size) for size in match[1].split("-")] if match else []
    if not match or sizes[-1] < 2:
        known = ", ".join(work.name for work in WORKS)
        raise ValueError(
            f"works: expected {known} or a classifier and its batch as 784-256-10/64, got {name!r}"
        )
    return Work(name, tuple(sizes), int(match[2]), int(match[3] or SOME_ROWS))


def make_params(work: Work) -> Layers:
    """Initial parameters, ``[W, b]`` for each layer: He's normal weights, biases of zero."""
    rng = np.random.default_rng(0)
    return [
        [rng.standard_normal((i, o), np.float32) * np.float32(math.sqrt(2 / i)), np.zeros(o, np.float32)]
        for i, o in zip(work.sizes, work.sizes[1:], strict=False)
    ]


def make_data(work: Work) -> tuple[F32, Labels]:
    """Rows of float32 pixels in [0, 1) and their int64 labels."""
    rng = np.random.default_rng(1)
    features, classes = work.sizes[0], work.sizes[-1]
    X = rng.random((work.rows, features), np.float32)
    teacher = rng.standard_normal((features, classes), np.float32)
    y = np.argmax(X @ teacher - teacher.sum(axis=0) / 2, axis=1)
    wrong = rng.random(work.rows) < WRONG
    y[wrong] = rng.integers(0, classes, wrong.sum())
    return X, y


def mean_loss(params: Sequence[Sequence[F32]], X: F32, y: Labels) -> float:
    """Cross-entropy of a relu net."""
    a = X
    for W, b in params[:-1]:
        a = np.maximum(a @ W + b, 0)
    W, b = params[-1]
    z = a @ W + b
    z -= z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]))


# --- Contenders ----------------------------------------------------------------------------------


class Trained:
    """What contenders have in common. Their library is imported as for `steps`."""

    threaded = True
    kinds: tuple[str, ...] = (Work.kind,)
    work: Work
    net: Any        # these three are of the library's own types
    X: Any
    y: Any

    def prepare(self, work: Work) -> None:
        """Make the net; the data are `X` and `y`."""
        self.work = work
        self.X, self.y = make_data(work)

    def train(self, epochs: int) -> None:
        """Train for so many epochs more, to the end."""
        raise NotImplementedError

    def params(self) -> Any:
        """``[W, b]`` of each layer, weights (in, out)."""
        return self.net


class Floor(Trained, steps.NumPy):
    """The matrix products of the steps alone, through NumPy's BLAS."""

    def prepare(self, work: Work) -> None:
        weights = [W for W, _ in make_params(work)]
        self.epoch = [products(weights, batch) for batch in sorted({*work.batches}, reverse=True)]
        self.counts = [work.batches.count(len(listed[0][0])) for listed in self.epoch]

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            for listed, count in zip(self.epoch, self.counts, strict=True):
                for _ in range(count):
                    for left, right, out in listed:
                        np.matmul(left, right, out=out)

    def params(self) -> None:
        """It learns nothing."""


class FastOpt(Trained, steps.FastOpt):
    """fastopt.Trainer with fastopt.MLP and fastopt.Adam."""

    def prepare(self, work: Work) -> None:
        super().prepare(work)
        self.net = self.fastopt.MLP(work.sizes, activation="relu", loss="cross_entropy")
        for layer, initial in zip(self.net.params, make_params(work), strict=True):
            for array, values in zip(layer, initial, strict=True):
                array[...] = values
        opt = self.fastopt.Adam(self.net.params, lr=LR, betas=(BETA1, BETA2), eps=EPS)
        self.fit = partial(
            self.fastopt.Trainer(self.net, opt).fit, self.X, self.y, work.batch, verbose=0, seed=0,
            training_accuracy=False,
        )

    def train(self, epochs: int) -> None:
        self.fit(epochs=epochs)

    def params(self) -> Any:
        return self.net.params


class NumPy(Trained, steps.NumPy):
    """The textbook: a training loop as people write it."""

    def prepare(self, work: Work) -> None:
        super().prepare(work)
        self.net = make_params(work)
        self.moments = [[(np.zeros_like(p), np.zeros_like(p)) for p in layer] for layer in self.net]
        self.rng = np.random.default_rng(0)
        self.t = 0

    def train(self, epochs: int) -> None:
        rows, batch = self.work.rows, self.work.batch
        for _ in range(epochs):
            order = self.rng.permutation(rows)
            for start in range(0, rows, batch):
                chosen = order[start : start + batch]
                self.update(self.gradients(self.X[chosen], self.y[chosen]))

    def gradients(self, X: F32, y: Labels) -> Layers:
        inputs = [X]
        for W, b in self.net[:-1]:
            inputs.append(np.maximum(inputs[-1] @ W + b, 0))
        W, b = self.net[-1]
        z = inputs[-1] @ W + b
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        rows = np.arange(len(y))
        self.loss = -np.mean(np.log(p[rows, y]))
        delta = p
        delta[rows, y] -= 1
        delta /= len(y)
        grads = []
        for a, (W, _) in zip(inputs[::-1], self.net[::-1], strict=True):
            grads.append([a.T @ delta, delta.sum(axis=0)])
            if a is not X:
                delta = (delta @ W.T) * (a > 0)
        return grads[::-1]

    def update(self, grads: Layers) -> None:
        self.t += 1
        lr, root = LR / (1 - BETA1**self.t), math.sqrt(1 - BETA2**self.t)
        for params, gs, moments in zip(self.net, grads, self.moments, strict=True):
            for p, g, (m, v) in zip(params, gs, moments, strict=True):
                m[...] = BETA1 * m + (1 - BETA1) * g
                v[...] = BETA2 * v + (1 - BETA2) * g**2
                p -= lr * m / (np.sqrt(v) / root + EPS)


class TorchFused(Trained, steps.TorchFused):
    """torch: nn.Sequential, CrossEntropyLoss and Adam(fused=True), rows by index_select."""

    def prepare(self, work: Work) -> None:
        super().prepare(work)
        torch, params = self.torch, make_params(work)
        self.X, self.y = torch.from_numpy(self.X), torch.from_numpy(self.y)
        self.layers = [torch.nn.Linear(*W.shape) for W, _ in params]
        with torch.no_grad():
            for layer, (W, b) in zip(self.layers, params, strict=True):
                layer.weight.copy_(torch.from_numpy(W.T))
                layer.bias.copy_(torch.from_numpy(b))
        modules = [module for layer in self.layers for module in (layer, torch.nn.ReLU())]
        self.net = torch.nn.Sequential(*modules[:-1])
        self.loss = torch.nn.CrossEntropyLoss()
        self.opt = torch.optim.Adam(
            self.net.parameters(), lr=LR, betas=(BETA1, BETA2), eps=EPS, fused=True
        )

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            for rows in self.torch.randperm(self.work.rows).split(self.work.batch):
                X, y = self.X.index_select(0, rows), self.y.index_select(0, rows)
                self.opt.zero_grad()
                self.loss(self.net(X), y).backward()
                self.opt.step()

    def params(self) -> Any:
        return [[a.detach().numpy() for a in (layer.weight.T, layer.bias)] for layer in self.layers]


class Optax(Trained, steps.Optax):
    """JAX: an epoch is one jax.lax.scan under jit, with optax.adam, everything donated."""

    def prepare(self, work: Work) -> None:
        super().prepare(work)
        jax = self.jax
        self.X, self.y = jax.numpy.asarray(self.X), jax.numpy.asarray(self.y.astype(np.int32))
        self.net = jax.tree.map(partial(jax.numpy.array, copy=True), make_params(work))
        rule = self.optax.adam(LR, BETA1, BETA2, EPS)
        self.state = rule.init(self.net)
        self.epoch = self.make_epoch(rule)
        self.rng = np.random.default_rng(0)

    def make_epoch(self, rule: Any) -> Any:
        jax, optax, batch = self.jax, self.optax, self.work.batch
        full = self.work.rows // batch * batch

        def loss(params: Any, X: Any, y: Any) -> Any:
            for W, b in params[:-1]:
                X = jax.nn.relu(X @ W + b)
            W, b = params[-1]
            return optax.softmax_cross_entropy_with_integer_labels(X @ W + b, y).mean()

        def step(X: Any, y: Any, carry: tuple[Any, Any], rows: Any) -> tuple[tuple[Any, Any], Any]:
            params, state = carry
            batch = (a.at[rows].get(mode="promise_in_bounds") for a in (X, y))
            value, grads = jax.value_and_grad(loss)(params, *batch)
            updates, state = rule.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        @partial(jax.jit, donate_argnums=(0, 1))
        def epoch(params: Any, state: Any, order: Any, X: Any, y: Any) -> tuple[Any, ...]:
            update = partial(step, X, y)
            carry, losses = jax.lax.scan(update, (params, state), order[:full].reshape(-1, batch))
            if full < len(order):
                carry, _ = update(carry, order[full:])
            return *carry, losses.mean()

        return epoch

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            order = self.rng.permutation(self.work.rows).astype(np.int32)   # faster than XLA's sort
            self.net, self.state, value = self.epoch(self.net, self.state, order, self.X, self.y)
        self.jax.block_until_ready((self.net, self.state, value))

    def params(self) -> Any:
        return self.jax.tree.map(np.asarray, self.net)


class ScikitLearn(Trained, steps.ScikitLearn):
    """MLPClassifier.fit."""

    def train(self, epochs: int) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        self.net = MLPClassifier(
            self.work.sizes[1:-1], alpha=0.0, batch_size=min(self.work.batch, self.work.rows),
            learning_rate_init=LR, beta_1=BETA1, beta_2=BETA2, epsilon=EPS, max_iter=epochs, tol=0.0,
            n_iter_no_change=epochs + 1, random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.net.fit(self.X, self.y)
        if self.net.n_iter_ != epochs:
            raise RuntimeError(f"expected {epochs} epochs, got {self.net.n_iter_}")

    def params(self) -> Any:
        return zip(self.net.coefs_, self.net.intercepts_, strict=True)


CONTENDERS = {
    "floor": Floor,
    "fastopt": FastOpt,
    "optax": Optax,
    "torch-fused": TorchFused,
    "numpy": NumPy,
    "sklearn": ScikitLearn,
}


def products(weights: Sequence[F32], batch: int) -> list[tuple[F32, F32, F32]]:
    """The matrix products of a step, forward and then backward from the last layer.

    Returns
    -------
    list of (left, right, out)
        Three for each layer but the first, which has no gradient of its input: two.
    """
    rng = np.random.default_rng(0)
    weights = [_aligned(W) for W in weights]
    widths = [len(weights[0]), *(W.shape[1] for W in weights)]
    values, deltas = ([_aligned(np.zeros((batch, n), np.float32)) for n in widths] for _ in range(2))
    for array in (values[0], deltas[-1]):
        rng.random(array.shape, np.float32, out=array)
    listed = [(values[i], W, values[i + 1]) for i, W in enumerate(weights)]
    for i, W in reversed(list(enumerate(weights))):
        listed.append((values[i].T, deltas[i + 1], _aligned(np.zeros_like(W))))
        if i:
            listed.append((deltas[i + 1], W.T, deltas[i]))
    return listed


def _aligned(array: F32) -> F32:
    """A copy that begins with a cache line, which is worth up to 5%."""
    memory = np.empty(array.nbytes + ALIGN, np.uint8)
    first = -memory.ctypes.data % ALIGN
    copy = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


# --- Timing --------------------------------------------------------------------------------------


class Bench:
    """One work of one contender, set up."""

    def __init__(self, contender: Any, work: Work) -> None:
        self.contender, self.steps = contender, len(work.batches)
        contender.prepare(work)
        contender.train(-(-PROBE_STEPS // self.steps))
        self.probe = _probe(contender)
        self.fastest = self.time(1)

    def time(self, epochs: int) -> float:
        """Seconds of one step, on the average of so many epochs."""
        start = perf_counter()
        self.contender.train(epochs)
        return (perf_counter() - start) / (epochs * self.steps)

    def round(self, seconds: float) -> dict[str, dict[str, float]]:
        """Seconds of a step in as many epochs as take about `seconds`, at least one."""
        step = self.time(max(1, round(seconds / (self.fastest * self.steps))))
        self.fastest = min(self.fastest, step)
        return {"epochs": {"median": step, "min": step}}


def _probe(contender: Any) -> list[float] | None:
    """The loss on some rows of the data, to compare contenders by; None for the floor."""
    params = contender.params()
    if params is None:
        return None
    X, y = (np.asarray(a[:PROBE_ROWS]) for a in (contender.X, contender.y))
    return [mean_loss(list(params), X, y)]
