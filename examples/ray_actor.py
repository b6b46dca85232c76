"""Keep classifiers in the processes of Ray actors, and average their weights between rounds of training.

Each actor holds its part of the data and a classifier. In a round it copies the averaged weights into its
classifier, trains an epoch, and returns its weights. The arrays are updated in place, so the optimizer of the
classifier keeps its state from round to round.

    python examples/ray_actor.py

It needs ray and scikit-learn.
"""

import numpy as np
import ray

from fastopt.nn.data import load_digits, train_test_split
from fastopt.sklearn import MLPClassifier

ACTORS, ROUNDS = 2, 12


@ray.remote(num_cpus=1)
class Worker:
    """A classifier and its part of the data."""

    def __init__(self, X, y):
        self.X, self.y = X, y
        self.model = MLPClassifier((32,), solver="sgd", learning_rate_init=0.1, batch_size=32, random_state=0)

    def train(self, weights):
        """Train an epoch from these weights, or from the initial ones, and return the weights."""
        if weights is None:
            self.model.partial_fit(self.X, self.y, classes=range(10))
        else:
            for own, new in zip([*self.model.coefs_, *self.model.intercepts_], weights, strict=True):
                own[...] = new
            self.model.partial_fit(self.X, self.y)
        return [*self.model.coefs_, *self.model.intercepts_]

    def score(self, X, y):
        """Return the accuracy of the classifier."""
        return self.model.score(X, y)


def main():
    ray.init(num_cpus=ACTORS, include_dashboard=False, log_to_driver=False, logging_level="error")
    X_train, X_test, y_train, y_test = train_test_split(*load_digits())
    workers = [Worker.remote(X_train[i::ACTORS], y_train[i::ACTORS]) for i in range(ACTORS)]
    weights = None
    for _ in range(ROUNDS):
        trained = ray.get([worker.train.remote(weights) for worker in workers])
        weights = [np.mean(arrays, axis=0) for arrays in zip(*trained, strict=True)]
    scores = ray.get([worker.score.remote(X_test, y_test) for worker in workers])
    print(f"Test accuracy of the {ACTORS} actors: {', '.join(f'{score:.3f}' for score in scores)}")
    ray.shutdown()


if __name__ == "__main__":
    main()
