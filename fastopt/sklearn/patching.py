"""fastopt's compiled step inside scikit-learn's own multilayer perceptrons."""

from __future__ import annotations

import sklearn

__all__ = ["patch", "unpatch"]

# What is replaced is private, so each release has to be looked at and tested anew.
TESTED = ("1.6", "1.7", "1.8", "1.9")


def patch() -> None:
    """Let scikit-learn's MLPClassifier and MLPRegressor take fastopt's compiled Adam and SGD steps.

    Nothing else changes: arguments, formulas and results, up to rounding, stay scikit-learn's.
    Doing it twice does no harm; `unpatch` undoes it. What was fitted can be pickled, and needs no
    fastopt where it is loaded.

    Raises
    ------
    RuntimeError
        If this release of scikit-learn is not one that was tested; nothing is changed then.
    """
    release = ".".join(sklearn.__version__.split(".")[:2])
    if release not in TESTED:
        raise RuntimeError(
            f"patch: expected scikit-learn {', '.join(TESTED)}, got {sklearn.__version__}, whose "
            "private optimizers this fastopt was not tested with; MLPClassifier and MLPRegressor of "
            "fastopt.sklearn do not depend on them"
        )
    from sklearn.neural_network import _multilayer_perceptron as perceptron

    from fastopt.sklearn.compiled import CompiledAdam, CompiledSGD

    perceptron.AdamOptimizer, perceptron.SGDOptimizer = CompiledAdam, CompiledSGD


def unpatch() -> None:
    """Give scikit-learn its own optimizers back, if `patch` took them.

    A model that is being trained with `partial_fit` keeps the one it has.
    """
    from sklearn.neural_network import _multilayer_perceptron as perceptron
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

    perceptron.AdamOptimizer, perceptron.SGDOptimizer = AdamOptimizer, SGDOptimizer
