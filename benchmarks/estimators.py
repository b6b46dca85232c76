"""The suite ``estimators``: `fastopt.sklearn.MLPClassifier` next to scikit-learn's.

A fit trains two epochs on 4,000 samples of 784 float32 features with ten classes. Predictions are those of
one sample and of all samples. Both estimators have the same parameters and the same random state.
"""

import itertools
import re
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from benchmarks.contenders import fastopt, sklearn
from benchmarks.suite import Settings, Suite
from benchmarks.training import Workload

ROWS, EPOCHS, INPUTS, OUTPUTS = 4000, 2, 784, 10
HIDDEN = ((100,), (256, 128), (1024, 1024), (2048,))
BATCHES = (32, 200, 1000)
LARGE = 2e10        # operations of a fit that one thread does not run
CALLS = ("predict", "predict_proba")


@dataclass(frozen=True)
class Call(Workload):
    """A call of an estimator; `batch` is the batch size of a fit, or the number of predicted samples."""

    method: str = "fit"

    @property
    def title(self):
        hidden = ", ".join(map(str, self.sizes[1:-1]))
        unit = "batch" if self.method == "fit" else "samples"
        return f"({hidden}) {self.method}, {unit} {self.batch}"

    @property
    def summary(self):
        return f"{self.rows:,} samples"

    @property
    def flops(self):
        """Floating-point operations in the matrix products of the call."""
        if self.method == "fit":
            return EPOCHS * len(self.batches) * super().flops
        return 2 * self.batch * sum(i * o for i, o in itertools.pairwise(self.sizes))


def make_call(hidden, method, batch):
    name = f"{'-'.join(map(str, hidden))}/{method}/{batch}"
    return Call(name, (INPUTS, *hidden, OUTPUTS), batch, ROWS, method)


def find(name):
    """Return the call of a name, such as ``256-128/fit/32`` or ``256-128/predict/1``."""
    match = re.fullmatch(rf"([1-9]\d*(?:-[1-9]\d*)*)/(fit|{'|'.join(CALLS)})/([1-9]\d*)", name, re.ASCII)
    if not match or int(match[3]) > ROWS:
        raise ValueError(
            "workloads: expected hidden layers, a method and a number of samples such as 256-128/fit/32 or "
            f"256-128/predict/1, got {name!r}"
        )
    return make_call(tuple(map(int, match[1].split("-"))), match[2], int(match[3]))


WORKLOADS = (
    *(make_call(hidden, "fit", batch) for hidden in HIDDEN for batch in BATCHES),
    *(make_call(hidden, call, n) for hidden in HIDDEN for call in CALLS for n in (1, ROWS)),
)


class CallBench:
    """A call of a contender's estimator.

    Attributes
    ----------
    probe : list of float
        The loss after the fit, or the probabilities of the first sample.
    """

    def __init__(self, contender, workload):
        X, y = workload.make_data()
        is_fit = workload.method == "fit"
        model = contender.make_estimator(
            workload.sizes[1:-1], batch_size=workload.batch if is_fit else 200,
            max_iter=EPOCHS if is_fit else 1, random_state=0,
        )
        model.fit(X, y)
        self.probe = [model.loss_] if is_fit else model.predict_proba(X[:1])[0].tolist()
        self.call = partial(model.fit, X, y) if is_fit else partial(
            getattr(model, workload.method), X[: workload.batch]
        )
        self.fastest = self.time(1)

    def time(self, number):
        start = perf_counter()
        for _ in range(number):
            self.call()
        return (perf_counter() - start) / number

    def round(self, seconds):
        """Return the seconds per call in as many calls as take about `seconds`, at least one."""
        each = self.time(max(1, round(seconds / self.fastest)))
        self.fastest = min(self.fastest, each)
        return {"call": {"median": each, "min": each}}


SUITE = Suite(
    name="estimators",
    purpose="time fastopt.sklearn.MLPClassifier next to scikit-learn's",
    workloads=WORKLOADS,
    find=find,
    contenders={"sklearn": sklearn.ScikitLearnEstimator, "fastopt": fastopt.FastOptEstimator},
    bench=CallBench,
    full=Settings(tuple(workload.name for workload in WORKLOADS), rounds=5, seconds=0.05, limit=3.0),
    quick=Settings(("100/fit/200", "100/predict/1"), rounds=3, seconds=0.02),
    yardstick="sklearn",
    unit="GFLOP/s",
    compared="probe",
    tolerance=0.02,
    timed="a call in microseconds",
    extra_threads=(1,),
    best_threads=True,
    is_large=lambda call: call.method == "fit" and call.flops > LARGE,
)
