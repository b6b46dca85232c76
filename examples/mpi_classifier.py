"""Train one scikit-learn classifier on several processes or machines.

The optimizer of the classifier divides each batch between the ranks of an MPI job. The classifier is the
same, bit for bit, on all ranks and for any number of ranks.

    mpiexec -n 4 python examples/mpi_classifier.py

Without mpiexec there is one rank. It needs scikit-learn, and mpi4py with mpiexec.
"""

import zlib

import fastopt
from fastopt import mpi
from fastopt.nn.data import load_digits, train_test_split
from fastopt.sklearn import MLPClassifier


def make_optimizer(params):
    """Return the optimizer of a classifier, whose state is divided between the ranks, too."""
    return mpi.DistributedOptimizer(fastopt.AdamW(params, lr=3e-3), sharded=True)


def main():
    X_train, X_test, y_train, y_test = train_test_split(*load_digits())
    model = MLPClassifier(
        (64,), solver=make_optimizer, batch_size=256, early_stopping=True, random_state=0
    )
    model.fit(X_train, y_train)
    if mpi.rank() == 0:
        weights = b"".join(array.tobytes() for array in (*model.coefs_, *model.intercepts_))
        print(f"Test accuracy {model.score(X_test, y_test):.3f}, checksum {zlib.crc32(weights):08x}")


if __name__ == "__main__":
    main()
