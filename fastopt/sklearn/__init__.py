"""scikit-learn's multilayer perceptrons, trained by fastopt.

Replace ``from sklearn.neural_network import MLPClassifier`` with
``from fastopt.sklearn import MLPClassifier``: arguments, attributes and results are the same, and there are
additional options. `patch` instead speeds up scikit-learn's own classes.
"""

from typing import TYPE_CHECKING

from fastopt._lazy import attach

try:
    from sklearn.utils.validation import validate_data as _  # noqa: F401 (new in 1.6)
except ImportError as error:
    raise ImportError(
        "fastopt.sklearn needs scikit-learn 1.6 or newer: pip install 'fastopt[sklearn]'"
    ) from error

if TYPE_CHECKING:
    from fastopt.sklearn.api import *  # noqa: F403
else:
    __getattr__, __dir__ = attach(__name__)
