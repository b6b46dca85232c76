"""fastopt."""

import warnings
from functools import partial

from benchmarks.contenders import AVERAGE, DECAY, MAX_NORM, StepContender, TrainingContender, bench_worker
from fastopt.cli.bench_worker import BETA1, BETA2, EPS, LR


class FastOpt(StepContender, bench_worker.FastOpt):
    """fastopt."""

    def clip(self, params, grads):
        self.p = params
        self.save_grads(grads)
        self.opt = self.fastopt.AdamW(
            params, lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY, ema=AVERAGE
        )
        return {"step": partial(self.opt.step, grads, max_norm=MAX_NORM, zero_grad=True)}

    def optimizer(self, params, grads, name, options):
        self.p, (self.g,) = params, grads
        self.opt = getattr(self.fastopt, name)(params, **options)
        return {"step": partial(self.opt.step, grads)}

    def fill_state(self, value):
        for state in self.opt.state:
            state["exp_avg"].fill(value)
            state["exp_avg_sq"].fill(value)


class FastOptTraining(TrainingContender, bench_worker.FastOpt):
    """fastopt.Trainer with fastopt.MLP and fastopt.Adam."""

    forms = ("", "float64", "uint8", "sparse", "batch-norm", "dropout")

    def setup(self, workload):
        super().setup(workload)
        self.net = self.fastopt.MLP(
            workload.sizes, activation="relu", loss="cross_entropy", dtype=workload.dtype, norm=workload.norm,
            dropout=workload.dropout, seed=0,
        )
        for layer, initial in zip(self.net.params, workload.make_params(), strict=True):
            for array, values in zip(layer, initial, strict=False):     # the scales of a norm are 1
                array[...] = values
        opt = self.fastopt.Adam(self.net.params, lr=LR, betas=(BETA1, BETA2), eps=EPS)
        self.fit = partial(
            self.fastopt.Trainer(self.net, opt).fit, self.X, self.y, workload.batch, verbose=0, seed=0,
            training_accuracy=False,
        )

    def train(self, epochs):
        self.fit(epochs=epochs)

    def params(self):
        return self.net.params


class FastOptEstimator(bench_worker.FastOpt):
    """fastopt.sklearn.MLPClassifier."""

    threaded = True

    def __init__(self, threads):
        super().__init__(threads)
        from fastopt.sklearn import MLPClassifier

        warnings.filterwarnings("ignore", "training has not converged")
        self.make_estimator = MLPClassifier

    @classmethod
    def supports(cls, workload):
        return True
