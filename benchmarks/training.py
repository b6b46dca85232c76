"""The suite ``training``: the training of small networks, next to their matrix products alone.

Whole epochs are timed as a user runs them: shuffling, gathering the samples of each minibatch, forward
pass, loss, backward pass and update, and the overhead of the library. The time per step is that of the
epochs divided by the number of their minibatches. The floor is the matrix products of these minibatches
alone.

- All contenders have the same float32 data, initial weights (except scikit-learn, which draws its own),
  relu, softmax and cross-entropy, and Adam. The last minibatch of an epoch is smaller for all of them.
- After some hundred steps the loss of each contender is computed by NumPy from its parameters and compared
  with that of fastopt.
- The data are made, not downloaded: uniform pixels, labels of a random linear teacher, some of them wrong,
  so that the loss stays away from zero.
- Every contender runs with each number of threads in turn. For peers and floor the better number counts,
  for fastopt all cores.
"""

import math
import re
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from benchmarks.contenders import fastopt, jax, numpy, sklearn, torch
from benchmarks.suite import Settings, Suite

PROBE_STEPS = 500       # after which the losses of all contenders are compared
PROBE_ROWS = 4096       # samples of that loss
WRONG = 0.1             # fraction of labels that the teacher does not explain
DEFAULT_ROWS = 10_000   # samples of data whose size is not given


@dataclass(frozen=True)
class Workload:
    """A network and the data that it is trained on.

    Attributes
    ----------
    name : str
        For the command line.
    sizes : tuple of int
        Widths from input to output.
    batch : int
        Samples per minibatch; the last one of an epoch may be smaller.
    rows : int
        Samples of the data.
    """

    name: str
    sizes: tuple[int, ...]
    batch: int
    rows: int

    form = ""                   # what differs from a dense float32 network without normalization and dropout
    dtype = np.dtype(np.float32)
    norm = None                 # of all hidden layers
    dropout = 0.0
    compared = True             # whether all contenders have the same loss
    probe_steps = PROBE_STEPS
    probe_rows = PROBE_ROWS

    @property
    def title(self):
        return f"{'-'.join(map(str, self.sizes))}, batch {self.batch}"

    @property
    def batches(self):
        """Sizes of the minibatches of an epoch."""
        full, rest = divmod(self.rows, self.batch)
        return [self.batch] * full + [rest] * (rest > 0)

    @property
    def flops(self):
        """Floating-point operations in the matrix products of a step, averaged over an epoch.

        Each layer has three products: its output, the gradient of its weights, and that of its input, which
        the first layer does not need.
        """
        products = [i * o for i, o in zip(self.sizes, self.sizes[1:], strict=False)]
        return 2 * (3 * sum(products) - products[0]) * self.rows / len(self.batches)

    @property
    def summary(self):
        return f"{self.rows:,} samples, {len(self.batches):,} steps per epoch"

    def make_params(self):
        """Return ``[W, b]`` for each layer: He's normal weights, and biases of zero."""
        rng = np.random.default_rng(0)
        return [
            [rng.standard_normal((i, o), np.float32) * np.float32(math.sqrt(2 / i)), np.zeros(o, np.float32)]
            for i, o in zip(self.sizes, self.sizes[1:], strict=False)
        ]

    def make_data(self):
        """Return samples of float32 pixels in [0, 1), and int64 labels."""
        rng = np.random.default_rng(1)
        features, classes = self.sizes[0], self.sizes[-1]
        X = rng.random((self.rows, features), np.float32)
        teacher = rng.standard_normal((features, classes), np.float32)
        y = np.argmax(X @ teacher - teacher.sum(axis=0) / 2, axis=1)
        wrong = rng.random(self.rows) < WRONG
        y[wrong] = rng.integers(0, classes, wrong.sum())
        return X, y

    def record(self):
        """Return the entry of a saved run."""
        return {
            "name": self.name, "title": self.title, "sizes": self.sizes, "batch": self.batch,
            "rows": self.rows, "amount": self.flops,
        }

    def memory(self, workers):
        """Return the bytes needed: the data, which some libraries hold twice, and the libraries."""
        return workers * (2 * 4 * self.rows * (self.sizes[0] + 2) + (200 << 20))


WORKLOADS = (
    Workload("fashion-128", (784, 256, 128, 10), 128, 60_000),
    Workload("fashion-32", (784, 256, 128, 10), 32, 60_000),
    Workload("digits-32", (64, 32, 10), 32, 1_437),
)


def find(name):
    """Return the workload of a name; one such as ``784-256-10/64`` is a network and its batch size.

    A third number, as in ``784-256-10/64/60000``, is that of the samples.
    """
    for workload in WORKLOADS:
        if workload.name == name:
            return workload
    match = re.fullmatch(r"([1-9]\d*(?:-[1-9]\d*)+)/([1-9]\d*)(?:/([1-9]\d*))?", name, re.ASCII)
    sizes = [int(size) for size in match[1].split("-")] if match else []
    if not match or sizes[-1] < 2:
        known = ", ".join(workload.name for workload in WORKLOADS)
        raise ValueError(
            f"workloads: expected {known} or a classifier and its batch size such as 784-256-10/64, "
            f"got {name!r}"
        )
    return Workload(name, tuple(sizes), int(match[2]), int(match[3] or DEFAULT_ROWS))


def mean_loss(params, X, y):
    """Return the cross-entropy of a relu network."""
    a = X
    for W, b in params[:-1]:
        a = np.maximum(a @ W + b, 0)
    W, b = params[-1]
    z = a @ W + b
    z -= z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]))


class TrainingBench:
    """A workload of a contender, partly trained.

    Attributes
    ----------
    probe : list of float, optional
        The loss on some samples; None for the floor.
    """

    def __init__(self, contender, workload):
        self.contender, self.n_batches = contender, len(workload.batches)
        contender.setup(workload)
        contender.train(-(-workload.probe_steps // self.n_batches))
        self.probe = None
        if contender.compared and workload.compared:
            X, y = (np.asarray(a[: workload.probe_rows]) for a in (contender.X, contender.y))
            self.probe = [mean_loss(list(contender.params()), X, y)]
        self.fastest = self.time(1)

    def time(self, epochs):
        """Return the seconds per step, averaged over epochs."""
        start = perf_counter()
        self.contender.train(epochs)
        return (perf_counter() - start) / (epochs * self.n_batches)

    def round(self, seconds):
        """Return the seconds per step in as many epochs as take about `seconds`, at least one."""
        step = self.time(max(1, round(seconds / (self.fastest * self.n_batches))))
        self.fastest = min(self.fastest, step)
        return {"epochs": {"median": step, "min": step}}


CONTENDERS = {
    "floor": numpy.Floor,
    "fastopt": fastopt.FastOptTraining,
    "optax": jax.OptaxTraining,
    "torch-fused": torch.TorchTraining,
    "numpy": numpy.NumPyTraining,
    "sklearn": sklearn.ScikitLearnTraining,
}

SUITE = Suite(
    name="training",
    purpose="time the training of small networks, next to their matrix products alone",
    workloads=WORKLOADS,
    find=find,
    contenders=CONTENDERS,
    bench=TrainingBench,
    full=Settings(tuple(workload.name for workload in WORKLOADS), rounds=7, seconds=0.5),
    quick=Settings(("digits-32",), rounds=3, seconds=0.05),
    yardstick="floor",
    unit="GFLOP/s",
    compared="loss",
    tolerance=0.2,          # each contender sees the samples in an order of its own
    extra_threads=(1,),
    best_threads=True,
)
