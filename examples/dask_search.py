"""Train a classifier per learning rate in parallel with Dask, and another one on chunks of data.

`dask.delayed` calls `fit` on the workers of whatever scheduler is in use, here the threads of this process;
training releases the GIL. The chunks go through `partial_fit`, as in `dask_ml.wrappers.Incremental`, which is
used if dask-ml is installed.

    python examples/dask_search.py

It needs dask and scikit-learn.
"""

import dask
import numpy as np

import fastopt
from fastopt.nn.data import load_digits, train_test_split
from fastopt.sklearn import MLPClassifier

RATES = (1.0, 1e-1, 1e-2, 3e-3)


@dask.delayed
def score(rate, X_train, X_test, y_train, y_test):
    """Return the validation accuracy of a classifier with this learning rate."""
    model = MLPClassifier((32,), solver="adamw", learning_rate_init=rate, early_stopping=True, random_state=0)
    return model.fit(X_train, y_train).score(X_test, y_test)


def fit_in_chunks(X, y):
    """Return a classifier that has seen the data chunk by chunk, five times."""
    model = MLPClassifier((32,), solver="adamw", learning_rate_init=1e-2, batch_size=32, random_state=0)
    try:
        import dask.array as da
        from dask_ml.wrappers import Incremental
    except ImportError:
        for part in np.array_split(np.arange(len(y)), 5) * 5:
            model.partial_fit(X[part], y[part], classes=range(10))
        return model
    chunked = da.from_array(X, chunks=(300, X.shape[1])), da.from_array(y, chunks=300)
    wrapped = Incremental(model, shuffle_blocks=False)
    for _ in range(5):
        wrapped.partial_fit(*chunked, classes=range(10))
    return wrapped.estimator_


def main():
    fastopt.set_num_threads(1)      # Dask has one thread per core
    X_train, X_test, y_train, y_test = train_test_split(*load_digits())
    data = [dask.delayed(array) for array in train_test_split(X_train, y_train)]
    for rate, accuracy in zip(RATES, dask.compute(*(score(rate, *data) for rate in RATES)), strict=True):
        print(f"Learning rate {rate:g}: validation accuracy {accuracy:.3f}")
    print(f"Test accuracy after chunks: {fit_in_chunks(X_train, y_train).score(X_test, y_test):.3f}")


if __name__ == "__main__":
    main()
