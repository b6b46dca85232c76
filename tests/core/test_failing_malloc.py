"""Memory of arrays: each allocation of the modules of NumPy and fastopt fails once, in another process."""

from pathlib import Path

from faults import run_preloaded

PROGRAM = """
import copy
import numpy as np
import faults
import fastopt

rng = np.random.default_rng(0)
X, y = rng.standard_normal((40, 30)).astype(np.float32), rng.integers(0, 3, 40)


class Subject:
    def __init__(self, kind=fastopt.Adam, **options):
        self.net = fastopt.MLP([30, 300, 3], seed=0)
        self.opt = kind(self.net.params, lr=0.01, **options)
        self.grads = copy.deepcopy(self.net.train_step(X, y)[1])
        self.opt.step(self.grads)
        self.opt.step(self.grads)
        self.result = None

    def snapshot(self):
        return faults.frozen([self.net.params, self.opt.state_dict(), self.result])


def step(subject):
    subject.opt.step(subject.grads, max_norm=0.1)


def transposed_step(subject):
    subject.opt.step([[np.asfortranarray(g) for g in layer] for layer in subject.grads])


def construct(subject):
    subject.result = fastopt.AdamW(subject.net.params, ema=0.9, lookahead=(2, 0.5), accumulate=2).state_dict()


def add_group(subject):
    subject.opt.add_param_group({"params": [np.zeros(2000)]})


def fit(subject):
    fastopt.Trainer(subject.net, subject.opt).fit(X, y, 40, shuffle=False, verbose=0, training_accuracy=False)


def predict(subject):
    subject.result = subject.net.predict_proba(X)


def swap(subject):
    with subject.opt.swapped_ema():
        subject.result = subject.net.evaluate(X, y)


def rows(subject):
    grads = [[fastopt.Rows([1, 3, 1], np.ones((3, 300), np.float32)), subject.grads[0][1]], subject.grads[1]]
    subject.opt.step(grads)


for run, kind, options in [
    (step, fastopt.Adam, {}), (step, fastopt.Muon, {}), (step, fastopt.Adafactor, {}),
    (step, fastopt.SGD, {"centralize": True}), (step, fastopt.Prodigy, {}),
    (transposed_step, fastopt.Adam, {}), (construct, fastopt.Adam, {}),
    (add_group, fastopt.Adam, {"ema": 0.9}), (fit, fastopt.Adam, {}),
    (predict, fastopt.Adam, {}), (swap, fastopt.Adam, {"ema": 0.9}),
    (rows, fastopt.Adam, {"sparse": "exact"}), (rows, fastopt.Adam, {"sparse": "dense"}),
]:
    base = Subject(kind, **options)
    case = faults.Operation(run.__name__, lambda: copy.deepcopy(base), [run], Subject.snapshot)
    raised = faults.check_here(case, case.expected_stages(), faults.failing_mallocs())
    print(run.__name__, kind.__name__, raised, flush=True)
"""


def test_failing_allocations_of_arrays(tmp_path):
    source = Path(__file__).with_name("failing_malloc.c")
    output = run_preloaded(source, PROGRAM, tmp_path)
    raised = {line.rpartition(" ")[0]: int(line.split()[-1]) for line in output.splitlines()}
    assert len(raised) == 12
    assert [name for name, count in raised.items() if not count] == ["step Adam", "step Prodigy"]
