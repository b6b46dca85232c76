"""PyTorch on the CPU, in each mode of torch.optim."""

import itertools

from benchmarks.contenders import AVERAGE, DECAY, MAX_NORM, StepContender, TrainingContender, bench_worker
from fastopt.cli.bench_worker import BETA1, BETA2, EPS, LR

MODES = ("single", "foreach", "fused")      # an optimizer that has one of them has those before it, too


class TorchFused(StepContender, bench_worker.TorchFused):
    """torch.optim with fused=True, its fastest mode on a CPU: one compiled pass per tensor."""

    mode_name = "fused"

    @classmethod
    def supports(cls, workload):
        return workload.kind != "optimizer" or workload.torch in MODES[MODES.index(cls.mode_name) :]

    def optimizer(self, params, grads, name, options):
        steps = self.make(name, params, grads, **options)
        self.g = self.tensors[0].grad.numpy()
        return steps

    def clip(self, params, grads):
        self.make("AdamW", params, grads, lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY)
        self.averages = [p.detach().clone() for p in self.tensors]
        self.save_grads([p.grad.numpy() for p in self.tensors])
        return {"step": self.clip_and_update}

    def clip_and_update(self):
        self.torch.nn.utils.clip_grad_norm_(self.tensors, MAX_NORM)
        self.opt.step()
        self.opt.zero_grad(set_to_none=False)
        with self.torch.no_grad():
            self.torch._foreach_lerp_(self.averages, self.tensors, 1 - AVERAGE)

    def params(self):
        return [p.detach().numpy() for p in self.tensors]

    def fill_state(self, value):
        for state in self.opt.state.values():
            state["exp_avg"].fill_(value)
            state["exp_avg_sq"].fill_(value)


class TorchForeach(TorchFused):
    """torch.optim with foreach=True: one operation for all tensors at a time."""

    mode, mode_name = {"foreach": True}, "foreach"


class Torch(TorchFused):
    """torch.optim, one tensor at a time, its default on a CPU."""

    mode, mode_name = {}, "single"


class TorchTraining(TrainingContender, bench_worker.TorchFused):
    """torch: nn.Sequential, CrossEntropyLoss and Adam(fused=True), samples by index_select."""

    forms = ("", "float64", "uint8", "batch-norm", "dropout")

    def setup(self, workload):
        super().setup(workload)
        torch, params = self.torch, workload.make_params()
        self.X, self.y = torch.from_numpy(self.X), torch.from_numpy(self.y)
        self.dtype = getattr(torch, workload.dtype.name)
        self.layers = [torch.nn.Linear(*W.shape, dtype=self.dtype) for W, _ in params]
        with torch.no_grad():
            for layer, (W, b) in zip(self.layers, params, strict=True):
                layer.weight.copy_(torch.from_numpy(W.T))
                layer.bias.copy_(torch.from_numpy(b))
        modules = [self.layers[0]]
        for before, layer in itertools.pairwise(self.layers):
            if workload.norm == "batch":
                modules.append(torch.nn.BatchNorm1d(before.out_features))
            modules.append(torch.nn.ReLU())
            if workload.dropout:
                modules.append(torch.nn.Dropout(workload.dropout))
            modules.append(layer)
        self.net = torch.nn.Sequential(*modules)
        self.loss = torch.nn.CrossEntropyLoss()
        self.opt = torch.optim.Adam(
            self.net.parameters(), lr=LR, betas=(BETA1, BETA2), eps=EPS, **self.mode
        )

    def train(self, epochs):
        for _ in range(epochs):
            for rows in self.torch.randperm(self.workload.rows).split(self.workload.batch):
                X, y = self.X.index_select(0, rows).to(self.dtype), self.y.index_select(0, rows)
                self.opt.zero_grad()
                self.loss(self.net(X), y).backward()
                self.opt.step()

    def params(self):
        return [[a.detach().numpy() for a in (layer.weight.T, layer.bias)] for layer in self.layers]
