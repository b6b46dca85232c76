"""scikit-learn."""

import warnings
from functools import partial

from benchmarks.contenders import StepContender, TrainingContender
from fastopt.cli.bench_worker import BETA1, BETA2, EPS, LR, Contender


class ScikitLearn(StepContender, Contender):
    """The Adam of scikit-learn's MLPClassifier."""

    threaded = False

    def __init__(self, threads):
        import sklearn
        from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

        self.make_optimizer = AdamOptimizer
        self.version = f"scikit-learn {sklearn.__version__}"

    def adam(self, params, grads):
        self.p, self.opt = params, self.make_optimizer(params, LR, BETA1, BETA2, EPS)
        self.m, self.v = self.opt.ms, self.opt.vs
        return {"step": partial(self.opt.update_params, params, grads)}


class ScikitLearnTraining(TrainingContender, ScikitLearn):
    """MLPClassifier.fit."""

    threaded = True     # by the BLAS
    forms = ("", "float64", "sparse")

    def train(self, epochs):
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        workload = self.workload
        self.net = MLPClassifier(
            workload.sizes[1:-1], alpha=0.0, batch_size=min(workload.batch, workload.rows),
            learning_rate_init=LR, beta_1=BETA1, beta_2=BETA2, epsilon=EPS, max_iter=epochs, tol=0.0,
            n_iter_no_change=epochs + 1, random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.net.fit(self.X, self.y)
        if self.net.n_iter_ != epochs:
            raise RuntimeError(f"expected {epochs} epochs, got {self.net.n_iter_}")

    def params(self):
        return zip(self.net.coefs_, self.net.intercepts_, strict=True)


class ScikitLearnEstimator(Contender):
    """scikit-learn's MLPClassifier."""

    threaded = True     # by the BLAS

    def __init__(self, threads):
        import sklearn
        from sklearn.neural_network import MLPClassifier

        warnings.filterwarnings("ignore", "Stochastic Optimizer")
        self.make_estimator = MLPClassifier
        self.version = f"scikit-learn {sklearn.__version__}"

    @classmethod
    def supports(cls, workload):
        return True
