"""The optimizers that `patch` installs: scikit-learn's two private classes with fastopt's compiled step."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

from sklearn.neural_network import _stochastic_optimizers as originals

from fastopt.optimizers import SGD, Adam

if TYPE_CHECKING:
    from fastopt._core.typing import Array


class _Compiled:
    """Base of the two adapters, which hold a fastopt optimizer of the parameters of the last step."""

    _original: Any
    _opt: Any = None

    def _bind(self, params: list[Array]) -> Any:
        """Return a fastopt optimizer of `params` that resumes from the current state."""
        raise NotImplementedError

    def _step(self, opt: Any, grads: list[Array]) -> None:
        raise NotImplementedError

    def state_arrays(self) -> dict[str, list[Array]]:
        """Return the state arrays under the names of scikit-learn's optimizer."""
        raise NotImplementedError

    def update_params(self, params: list[Array], grads: list[Array]) -> None:
        opt = self._opt
        # The parameters are different arrays after a model was copied or its weights were replaced.
        if opt is None or any(a is not b for a, b in zip(params, opt.params, strict=True)):
            self._opt = opt = self._bind(list(params))
        self._step(opt, [g.astype(p.dtype, copy=False) for p, g in zip(params, grads, strict=True)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as scikit-learn's own optimizer, with the current state."""
        state = {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
        return self._original, ([],), state | self.state_arrays()


class CompiledAdam(_Compiled, originals.AdamOptimizer):
    """scikit-learn's Adam with fastopt's step, which updates the moments `ms` and `vs` in place."""

    _original = originals.AdamOptimizer
    ms: list[Array]
    vs: list[Array]

    def _bind(self, params: list[Array]) -> Adam:
        betas = (self.beta_1, self.beta_2)
        opt = Adam(params, self.learning_rate_init, betas, self.epsilon, convention="sklearn")
        opt.steps = self.t
        for state, m, v in zip(opt.state, self.ms, self.vs, strict=True):
            state["exp_avg"], state["exp_avg_sq"] = m, v
        self.ms = [state["exp_avg"] for state in opt.state]
        self.vs = [state["exp_avg_sq"] for state in opt.state]
        return opt

    def _step(self, opt: Adam, grads: list[Array]) -> None:
        opt.step(grads)
        self.t = opt.steps
        correction = sqrt(1 - self.beta_2**self.t) / (1 - self.beta_1**self.t)
        self.learning_rate = self.learning_rate_init * correction

    def state_arrays(self) -> dict[str, list[Array]]:
        return {"ms": [m.copy() for m in self.ms], "vs": [v.copy() for v in self.vs]}


class CompiledSGD(_Compiled, originals.SGDOptimizer):
    """scikit-learn's SGD with fastopt's step; `velocities` are the initial values for the next `_bind`."""

    _original = originals.SGDOptimizer
    velocities: list[Array]

    def _bind(self, params: list[Array]) -> SGD:
        nesterov = bool(self.nesterov and self.momentum)
        opt = SGD(params, self.learning_rate, self.momentum, nesterov=nesterov, convention="sklearn")
        if self.momentum:
            for state, velocity in zip(opt.state, self.state_arrays()["velocities"], strict=True):
                state["momentum_buffer"] = -velocity    # fastopt subtracts the buffer, scikit-learn adds it
        return opt

    def _step(self, opt: SGD, grads: list[Array]) -> None:
        if opt.groups[0]["lr"] != self.learning_rate:
            opt.groups[0]["lr"] = self.learning_rate
        opt.step(grads)

    def state_arrays(self) -> dict[str, list[Array]]:
        if self._opt is None or not self.momentum:
            return {"velocities": self.velocities}
        return {"velocities": [-state["momentum_buffer"] for state in self._opt.state]}
