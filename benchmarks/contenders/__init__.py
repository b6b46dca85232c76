"""The libraries that are measured, one file per library; each is imported only when a contender is created.

A contender has a method for each kind of step that it supports, which allocates the arrays and returns the
step in one or more variants: ``adam(params, grads)``; ``clip(params, grads)``, which clips by the global
norm, takes a step of AdamW, zeroes the gradients and updates a moving average of the parameters; and
``optimizer(params, grads, name, options)``.
"""

from importlib import import_module

import numpy as np

# Not by `from fastopt.cli import`: worker.py may have loaded this module alone.
bench_worker = import_module("fastopt.cli.bench_worker")

DECAY, MAX_NORM, AVERAGE = 1e-2, 1.0, 0.999     # of workloads of the kind "clip"


class StepContender:
    """Base of the contenders of the suites `steps` and `optimizers`."""

    threaded = True             # uses the number of threads that it is given
    compared = True             # must have the parameters of fastopt
    zeroes_grads = False        # also in a plain step of Adam

    @classmethod
    def supports(cls, workload):
        return hasattr(cls, workload.kind)

    def setup(self, workload):
        return getattr(self, workload.kind)(*workload.make_arrays(), *workload.arguments)

    def params(self):
        """Return the parameters as NumPy arrays."""
        return self.p

    def fill_state(self, value):
        for array in (*self.m, *self.v):
            array.fill(value)

    def save_grads(self, arrays):
        """Copy the gradients, for `refill`."""
        self.saved = [(array, array.copy()) for array in arrays]

    def refill(self):
        for array, saved in self.saved:
            np.copyto(array, saved)


class TrainingContender:
    """Base of the contenders of the suite `training`."""

    threaded = True
    compared = True
    forms = ("", "float64")     # of the workloads that the contender supports

    @classmethod
    def supports(cls, workload):
        return workload.form in cls.forms

    def setup(self, workload):
        """Create the network; `X` and `y` are the data."""
        self.workload = workload
        self.X, self.y = workload.make_data()

    def train(self, epochs):
        """Train for more epochs and wait for the end."""
        raise NotImplementedError

    def params(self):
        """Return ``[W, b]`` for each layer, with weights of shape (in, out)."""
        return self.net
