"""thinc."""

from benchmarks.contenders import StepContender
from fastopt.cli.bench_worker import BETA1, BETA2, EPS, LR, Contender


class Thinc(StepContender, Contender):
    """thinc's Adam without its clipping, decay and averages. It zeroes the gradient after use."""

    threaded = False
    zeroes_grads = True

    def __init__(self, threads):
        import thinc
        from thinc.api import Adam

        self.make_optimizer = Adam
        self.version = f"thinc {thinc.about.__version__}"

    def adam(self, params, grads):
        self.p, self.g = params, grads
        self.save_grads(grads)
        self.opt = self.make_optimizer(
            LR, beta1=BETA1, beta2=BETA2, eps=EPS, L2=0.0, grad_clip=0.0, use_averages=False
        )
        self.keys = [(i, "W") for i in range(len(params))]
        return {"step": self.update}

    def update(self):
        for key, p, g in zip(self.keys, self.p, self.g, strict=True):
            self.opt(key, p, g)

    def fill_state(self, value):
        for array in (*self.opt.mom1.values(), *self.opt.mom2.values()):
            array.fill(value)
