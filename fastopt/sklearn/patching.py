"""fastopt's compiled step inside scikit-learn's own multilayer perceptrons."""

from __future__ import annotations

import sklearn

__all__ = ["patch", "unpatch"]

# `patch` replaces private classes, so every release of scikit-learn must be tested before it is added here.
TESTED = ("1.6", "1.7", "1.8", "1.9")


def patch() -> None:
    """Make scikit-learn's MLPClassifier and MLPRegressor use fastopt's compiled Adam and SGD steps.

    Nothing else changes: arguments, formulas and results (up to rounding) remain scikit-learn's. Repeated
    calls have no further effect; `unpatch` restores the original optimizers. Fitted models can be pickled,
    and fastopt is not needed to load them.

    Raises
    ------
    RuntimeError
        If this release of scikit-learn has not been tested; nothing is changed in that case.
    """
    release = ".".join(sklearn.__version__.split(".")[:2])
    if release not in TESTED:
        raise RuntimeError(
            f"patch: expected scikit-learn {', '.join(TESTED)}, got {sklearn.__version__}, whose "
            "private optimizers are untested with this version of fastopt; use MLPClassifier and "
            "MLPRegressor of fastopt.sklearn, which do not depend on them"
        )
    from sklearn.neural_network import _multilayer_perceptron as perceptron

    from fastopt.sklearn.compiled import CompiledAdam, CompiledSGD

    perceptron.AdamOptimizer, perceptron.SGDOptimizer = CompiledAdam, CompiledSGD


def unpatch() -> None:
    """Restore scikit-learn's own optimizers after `patch`.

    A model that is trained with `partial_fit` keeps its current optimizer.
    """
    from sklearn.neural_network import _multilayer_perceptron as perceptron
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

    perceptron.AdamOptimizer, perceptron.SGDOptimizer = AdamOptimizer, SGDOptimizer
