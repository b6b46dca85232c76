"""The suite ``grid``: the training of networks of every size, next to their matrix products alone.

A cell is a network with 784 inputs, some hidden layers of one width and 10 outputs, and a batch size. It is
measured as a workload of the suite ``training``, with data of at most 16,384 samples. Every cell ends
after a limited time: large steps are measured with all threads only and get fewer turns, and cells whose
step takes more than half a second by an estimate are left out. Some cells also have float64 data, pixels of
uint8, sparse data, batch normalization or dropout.
"""

import itertools
import re
from dataclasses import dataclass

import numpy as np

from benchmarks.suite import Settings, Suite
from benchmarks.training import CONTENDERS, TrainingBench, Workload

WIDTHS = (16, 64, 256, 512, 1024, 2048, 4096)
DEPTHS = (1, 2, 3, 4)
BATCHES = (1, 16, 64, 256, 1024, 4096)
FORMS = ("float64", "uint8", "sparse", "batch-norm", "dropout")
FORM_CELLS = ((64, 1, 16), (256, 2, 64), (1024, 2, 256))    # that are also measured in these forms
INPUTS, OUTPUTS = 784, 10

# For the estimate of a step, on two cores: operations and updated parameters per second, and overhead.
FLOPS, UPDATES, OVERHEAD = 2e11, 1.5e9, 2e-5
LONGEST = 0.5           # seconds of a step in the grid
LARGE = 0.01            # seconds of a step that one thread does not run
EPOCH = 0.03            # seconds of an epoch, about
MOST_ROWS = 16_384      # samples
LEAST_ROWS = 16
COMPARED = 256          # widths up to which the first steps of all contenders lead to about the same loss
PROBE = 0.1             # seconds of the steps after which losses are compared


@dataclass(frozen=True)
class Cell(Workload):
    """A network of the grid; see `Workload`.

    Attributes
    ----------
    form : str
        One of `FORMS`, or "".
    """

    form: str = ""

    probe_rows = 256

    @property
    def title(self):
        depth = len(self.sizes) - 2
        return f"{self.sizes[1]} x {depth}, batch {self.batch}{', ' * bool(self.form)}{self.form}"

    @property
    def dtype(self):
        return np.dtype(np.float64 if self.form == "float64" else np.float32)

    @property
    def norm(self):
        return "batch" if self.form == "batch-norm" else None

    @property
    def dropout(self):
        return 0.5 if self.form == "dropout" else 0.0

    @property
    def compared(self):
        return self.form in ("", "float64") and self.sizes[1] <= COMPARED

    @property
    def probe_steps(self):
        return int(min(200, max(2, PROBE / estimate(self.sizes, self.batch))))

    def make_params(self):
        return [[W.astype(self.dtype), b.astype(self.dtype)] for W, b in super().make_params()]

    def make_data(self):
        X, y = super().make_data()
        y[:OUTPUTS] = np.arange(OUTPUTS)        # in small data, too, every label occurs
        if self.form == "uint8":
            return (X * 2).astype(np.uint8), y      # larger values would need another learning rate
        if self.form == "sparse":
            from scipy.sparse import csr_matrix

            return csr_matrix(np.where(X > 0.9, X, 0)), y
        return X.astype(self.dtype, copy=False), y

    def record(self):
        return super().record() | {"width": self.sizes[1], "depth": len(self.sizes) - 2, "form": self.form}

    def memory(self, workers):
        weights = sum(i * o for i, o in itertools.pairwise(self.sizes))
        activations = self.batch * sum(self.sizes)
        return super().memory(workers) + workers * self.dtype.itemsize * (5 * weights + 6 * activations)


def estimate(sizes, batch):
    """Return the approximate seconds of a step."""
    weights = [i * o for i, o in itertools.pairwise(sizes)]
    return 2 * batch * (3 * sum(weights) - weights[0]) / FLOPS + sum(weights) / UPDATES + OVERHEAD


def make_cell(width, depth, batch, form=""):
    """Return a cell whose epoch has a limited length and an integral number of batches."""
    sizes = (INPUTS, *[width] * depth, OUTPUTS)
    steps = min(EPOCH / estimate(sizes, batch), MOST_ROWS / batch, 256)
    name = f"{width}x{depth}/{batch}{'/' * bool(form)}{form}"
    return Cell(name, sizes, batch, batch * max(2, round(steps), LEAST_ROWS // batch), form)


def make_grid(widths, depths, batches):
    cells = [make_cell(*values) for values in itertools.product(widths, depths, batches)]
    return [cell for cell in cells if estimate(cell.sizes, cell.batch) <= LONGEST]


DEFAULT = [
    *make_grid((64, 256, 512, 1024, 2048), (2,), (16, 64, 256, 1024)),
    *make_grid((16, 4096), (1,), (1, 256)),
    *make_grid((256,), (4,), (1, 4096)),
    *(make_cell(*FORM_CELLS[1], form) for form in FORMS),
]
WHOLE = [
    *make_grid(WIDTHS, DEPTHS, BATCHES),
    *(make_cell(*values, form) for values in FORM_CELLS for form in FORMS),
]


def find(name):
    """Return the cell of a name: ``256x2/64`` are two hidden layers of 256 and a batch size of 64.

    A form may follow, as in ``256x2/64/float64``.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)/([1-9]\d*)(?:/([a-z0-9-]+))?", name, re.ASCII)
    if not match or match[4] not in (None, *FORMS):
        raise ValueError(
            "workloads: expected a width, a depth and a batch size such as 256x2/64, and possibly one of "
            f"{', '.join(FORMS)} as in 256x2/64/float64, got {name!r}"
        )
    return make_cell(*map(int, match.groups()[:3]), match[4] or "")


SUITE = Suite(
    name="grid",
    purpose="time the training of networks of every size, next to their matrix products alone",
    workloads=tuple(WHOLE),
    find=find,
    contenders=CONTENDERS,
    bench=TrainingBench,
    full=Settings(tuple(cell.name for cell in DEFAULT), rounds=5, seconds=0.04, limit=2.5),
    quick=Settings(("64x2/16", "256x2/64", "256x2/64/float64"), rounds=3, seconds=0.02, limit=1.0),
    yardstick="floor",
    unit="GFLOP/s",
    compared="loss",
    tolerance=0.3,          # each contender sees the samples in an order of its own
    extra_threads=(1,),
    whole=tuple(cell.name for cell in WHOLE),
    plots=True,
    best_threads=True,
    is_large=lambda cell: estimate(cell.sizes, cell.batch) > LARGE,
)
