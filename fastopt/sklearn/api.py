"""The public names of :mod:`fastopt.sklearn`, which `__init__.py` imports when one of them is used."""

from fastopt.sklearn.estimators import MLPClassifier, MLPRegressor
from fastopt.sklearn.patching import patch, unpatch

__all__ = ["MLPClassifier", "MLPRegressor", "patch", "unpatch"]
