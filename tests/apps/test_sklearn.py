"""The estimators: results equal to scikit-learn's, and the additional options."""

import copy
import functools
import inspect
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from files import id_without_address

pytest.importorskip("sklearn")

import joblib
import sklearn
from scipy.sparse import csc_array, csr_array, csr_matrix
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris, make_circles, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neural_network import MLPClassifier as SklearnClassifier
from sklearn.neural_network import MLPRegressor as SklearnRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler, scale
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastopt
from fastopt import schedules
from fastopt.sklearn import MLPClassifier, MLPRegressor, patch, unpatch

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning"),   # of older scikit-learn
]

RNG = np.random.RandomState(0)
IRIS_X, IRIS_Y = load_iris(return_X_y=True)
IRIS_X = scale(IRIS_X)
NAMES = np.array(["setosa", "versicolor", "virginica"])[IRIS_Y]
DIABETES_X, DIABETES_Y = load_diabetes(return_X_y=True)
DIABETES_X, DIABETES_Y = scale(DIABETES_X)[:120], scale(DIABETES_Y)[:120]
TWO_Y = np.column_stack([DIABETES_Y, DIABETES_X[:, 0] - DIABETES_Y])
MANY_X, MANY_Y = make_multilabel_classification(n_samples=90, n_features=6, n_classes=4, random_state=0)
MANY_X = scale(MANY_X)
WEIGHTS = RNG.uniform(0.5, 2.0, 150)

# scikit-learn's class, fastopt's class, options, X and y for every type of target.
TASKS = {
    "classes": (SklearnClassifier, MLPClassifier, {}, IRIS_X, IRIS_Y),
    "names": (SklearnClassifier, MLPClassifier, {}, IRIS_X, NAMES),
    "two classes": (SklearnClassifier, MLPClassifier, {}, IRIS_X[:100], NAMES[:100]),
    "0 or 1": (SklearnClassifier, MLPClassifier, {}, IRIS_X[:100], IRIS_Y[:100]),
    "labels": (SklearnClassifier, MLPClassifier, {}, MANY_X, MANY_Y),
    "values": (SklearnRegressor, MLPRegressor, {}, DIABETES_X, DIABETES_Y),
    "two values": (SklearnRegressor, MLPRegressor, {}, DIABETES_X, TWO_Y),
}
if "loss" in inspect.signature(SklearnRegressor).parameters:  # new in 1.7
    COUNTS = RNG.poisson(np.exp(0.5 * DIABETES_Y)).astype(float)
    TASKS["counts"] = (SklearnRegressor, MLPRegressor, {"loss": "poisson"}, DIABETES_X, COUNTS)
    WIDE = np.column_stack([COUNTS, COUNTS + 1])
    TASKS["two counts"] = (SklearnRegressor, MLPRegressor, {"loss": "poisson"}, DIABETES_X, WIDE)

WEIGHTED = "sample_weight" in inspect.signature(SklearnClassifier.fit).parameters  # new in 1.7


def both(task, fit_params=None, **params):
    """Fit scikit-learn's and fastopt's model with the same parameters."""
    sklearn_cls, cls, own, X, y = TASKS[task]
    params = {"hidden_layer_sizes": (9, 7), "random_state": 3, "batch_size": 32} | own | params
    fit_params = fit_params or {}
    return sklearn_cls(**params).fit(X, y, **fit_params), cls(**params).fit(X, y, **fit_params)


def assert_same(expected, actual, rtol=1e-10):
    for name in ("coefs_", "intercepts_"):
        for a, b in zip(getattr(expected, name), getattr(actual, name), strict=True):
            np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol)
    assert actual.loss_ == pytest.approx(expected.loss_, rel=rtol)
    assert actual.n_iter_ == expected.n_iter_
    assert actual.t_ == expected.t_


# --- check_estimator -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)])
def test_check_estimator(estimator, check):
    check(estimator)


# --- Parity with scikit-learn --------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("task", TASKS)
def test_same_random_state_gives_same_model(task, solver):
    expected, actual = both(task, solver=solver, max_iter=12, learning_rate_init=0.01, alpha=0.1)
    assert_same(expected, actual)
    np.testing.assert_allclose(actual.loss_curve_, expected.loss_curve_, rtol=1e-10)
    assert actual.best_loss_ == pytest.approx(expected.best_loss_, rel=1e-10)
    assert actual.validation_scores_ is None and actual.best_validation_score_ is None
    for name in ("n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(actual, name) == getattr(expected, name)
    X = TASKS[task][3]
    np.testing.assert_allclose(*(m.predict(X) for m in (actual, expected)), rtol=1e-9) if (
        hasattr(actual, "loss")
    ) else np.testing.assert_array_equal(actual.predict(X), expected.predict(X))
    assert actual.score(X, TASKS[task][4]) == pytest.approx(expected.score(X, TASKS[task][4]))


@pytest.mark.parametrize(
    "params",
    [
        {"activation": "logistic"},
        {"activation": "tanh", "alpha": 1.0},
        {"activation": "identity", "hidden_layer_sizes": 5},
        {"hidden_layer_sizes": ()},
        {"shuffle": False},
        {"batch_size": "auto"},
        {"solver": "sgd", "momentum": 0.0},
        {"solver": "sgd", "momentum": 1.0},
        {"solver": "sgd", "nesterovs_momentum": False},
        {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.3},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.05, "n_iter_no_change": 1},
        {"learning_rate": "adaptive", "tol": 0.05, "n_iter_no_change": 1},
        {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.01},
        {"tol": 0.1, "n_iter_no_change": 2},
        {"early_stopping": True, "tol": 0.01, "n_iter_no_change": 3},
        {"early_stopping": True, "validation_fraction": 0.4, "learning_rate_init": 1e-6},
    ],
    ids=str,
)
@pytest.mark.parametrize("task", ["classes", "0 or 1", "labels", "two values"])
def test_parameters_match_scikit_learn(task, params):
    expected, actual = both(task, **({"max_iter": 25, "learning_rate_init": 0.02} | params))
    assert_same(expected, actual)
    if actual.early_stopping:
        np.testing.assert_allclose(actual.validation_scores_, expected.validation_scores_, rtol=1e-10)
        assert actual.best_validation_score_ == pytest.approx(expected.best_validation_score_)
        assert actual.best_loss_ is None


@pytest.mark.skipif(not WEIGHTED, reason="this scikit-learn has no sample weights")
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("task", ["classes", "labels", "two values"])
def test_sample_weights_match_scikit_learn(task, solver):
    weights = WEIGHTS[: len(TASKS[task][4])]
    expected, actual = both(
        task, {"sample_weight": weights}, solver=solver, max_iter=6, alpha=0.1, hidden_layer_sizes=6,
        early_stopping=True,
    )
    if solver == "adam":
        assert_same(expected, actual)
    elif task != "two values":
        assert_same(expected, actual, rtol=1e-5)


@pytest.mark.parametrize("task", ["names", "two classes", "labels", "values"])
def test_lbfgs_matches_scikit_learn(task):
    expected, actual = both(task, solver="lbfgs", max_iter=8, alpha=0.01)
    assert_same(expected, actual, rtol=1e-6)
    assert not hasattr(actual, "loss_curve_") and not hasattr(actual, "partial_fit")


def test_lbfgs_converges_for_multi_output_targets():
    """scikit-learn minimizes a loss that does not match its gradient for these targets."""
    expected, actual = both("two values", solver="lbfgs", max_iter=300, alpha=0.01)
    assert actual.score(DIABETES_X, TWO_Y) > expected.score(DIABETES_X, TWO_Y) - 0.01


@pytest.mark.parametrize("shuffle", [False, True])
def test_partial_fit_from_assigned_weights(shuffle):
    """Assign weights and take full-batch steps."""
    params = {"hidden_layer_sizes": 8, "batch_size": 150, "shuffle": shuffle, "warm_start": True}
    expected, actual = (
        cls(max_iter=1, random_state=0, **params).fit(IRIS_X, IRIS_Y) for cls in TASKS["classes"][:2]
    )
    rng = np.random.RandomState(1)
    weights = [rng.uniform(-0.5, 0.5, W.shape) for W in actual.coefs_]
    biases = [rng.uniform(-0.5, 0.5, b.shape) for b in actual.intercepts_]
    for model in (expected, actual):
        model.coefs_ = [W.copy() for W in weights]
        model.intercepts_ = [b.copy() for b in biases]
    np.testing.assert_allclose(actual.predict_proba(IRIS_X), expected.predict_proba(IRIS_X), rtol=1e-12)
    for _ in range(20):
        expected.partial_fit(IRIS_X, IRIS_Y)
        actual.partial_fit(IRIS_X, IRIS_Y)
    for a, b in zip(expected.coefs_, actual.coefs_, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10)


def test_weights_modified_in_place_are_used():
    model = MLPRegressor(hidden_layer_sizes=4, max_iter=2, random_state=0).fit(DIABETES_X, DIABETES_Y)
    before = model.predict(DIABETES_X)
    model.intercepts_[-1][:] += 1.0
    np.testing.assert_allclose(model.predict(DIABETES_X), before + 1.0)


def test_predict_with_assigned_weights():
    fitted = MLPClassifier(hidden_layer_sizes=4, max_iter=5, random_state=0).fit(IRIS_X, NAMES)
    model = MLPClassifier(hidden_layer_sizes=4)
    for name in ("coefs_", "intercepts_", "classes_", "out_activation_", "n_outputs_", "n_features_in_"):
        setattr(model, name, copy.deepcopy(getattr(fitted, name)))
    np.testing.assert_array_equal(model.predict_proba(IRIS_X), fitted.predict_proba(IRIS_X))
    model.partial_fit(IRIS_X, NAMES)
    assert len(model.loss_curve_) == 1


@pytest.mark.parametrize(("sklearn_cls", "cls"), [t[:2] for t in (TASKS["classes"], TASKS["values"])])
def test_signature_matches_scikit_learn(sklearn_cls, cls):
    expected = inspect.signature(sklearn_cls).parameters
    actual = inspect.signature(cls).parameters
    assert {n: p.default for n, p in actual.items() if n in expected} == {
        n: p.default for n, p in expected.items()
    }
    positional = [n for n, p in actual.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if "loss" in expected or sklearn_cls is SklearnClassifier:
        assert positional == [n for n, p in expected.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    missing = set(dir(sklearn_cls)) - set(dir(cls))
    assert missing == {n for n in missing if n[0] == "_"}


@pytest.mark.parametrize("task", ["classes", "values"])
@pytest.mark.parametrize("params", [{}, {"solver": "lbfgs"}, {"early_stopping": True}], ids=str)
def test_fitted_attributes_match_scikit_learn(task, params):
    expected, actual = both(task, max_iter=3, **params)
    assert {n for n in vars(expected) if n[0] != "_"} <= set(vars(actual)) | {"loss"}


# --- Data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("task", ["names", "values"])
def test_dtype_is_preserved(task, dtype, solver):
    _, cls, _, X, y = TASKS[task]
    model = cls(hidden_layer_sizes=5, max_iter=4, solver=solver, random_state=0).fit(X.astype(dtype), y)
    assert {a.dtype for a in model.coefs_ + model.intercepts_} == {np.dtype(dtype)}
    out = model.predict(X.astype(dtype)) if task == "values" else model.predict_proba(X.astype(dtype))
    assert out.dtype == dtype
    model.set_params(warm_start=True).fit(X, y)
    assert {a.dtype for a in model.coefs_} == {np.dtype(dtype)}


def test_single_precision_is_close_to_double():
    models = [
        MLPClassifier(hidden_layer_sizes=9, max_iter=20, random_state=0).fit(IRIS_X.astype(dtype), IRIS_Y)
        for dtype in (np.float32, np.float64)
    ]
    np.testing.assert_allclose(*(m.predict_proba(IRIS_X) for m in models), atol=1e-4)


@pytest.mark.parametrize("container", [csr_array, csr_matrix, csc_array])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_sparse_and_dense_samples_give_same_model(solver, container):
    X = np.where(np.abs(IRIS_X) > 0.7, IRIS_X, 0.0)
    dense, sparse = (
        MLPClassifier(
            hidden_layer_sizes=6, max_iter=8, solver=solver, early_stopping=True, random_state=0
        ).fit(rows, IRIS_Y)
        for rows in (X, container(X))
    )
    np.testing.assert_allclose(
        sparse.predict_proba(container(X)), dense.predict_proba(X), rtol=1e-6, atol=1e-9
    )


def test_column_vector_of_labels_is_raveled():
    with pytest.warns(sklearn.exceptions.DataConversionWarning):
        model = MLPClassifier(hidden_layer_sizes=3, max_iter=2).fit(IRIS_X, NAMES[:, None])
    assert model.predict(IRIS_X).shape == (150,)


def test_multilabel_targets_may_be_sparse():
    models = [
        MLPClassifier(hidden_layer_sizes=5, max_iter=3, random_state=0).fit(MANY_X, y)
        for y in (MANY_Y, csr_matrix(MANY_Y))
    ]
    np.testing.assert_array_equal(*(m.coefs_[0] for m in models))


# --- Resuming ------------------------------------------------------------------------------------

SOLVERS = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.02},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.2},
    "adaptive": {
        "solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.2, "tol": 0.3,
        "n_iter_no_change": 1,
    },
    "rmsprop": {"solver": "rmsprop"},
    "adamw": {"solver": "adamw", "learning_rate_init": schedules.Cosine(0.01, steps=60)},
    "partial": {"solver": functools.partial(fastopt.Adagrad, lr=0.05)},
    "plateau": {"learning_rate_init": schedules.ReduceOnPlateau(0.05, patience=0, threshold=0.2)},
    "dropout": {"dropout": 0.3, "norm": "batch"},
}


def copied_by_joblib(model, tmp_path):
    joblib.dump(model, tmp_path / "model")
    return joblib.load(tmp_path / "model")


def copied_by_memory_map(model, tmp_path):
    joblib.dump(model, tmp_path / "model")
    return joblib.load(tmp_path / "model", mmap_mode="r")


COPIES = [
    lambda model, tmp_path: model,
    lambda model, tmp_path: pickle.loads(pickle.dumps(model)),
    lambda model, tmp_path: copy.deepcopy(model),
    copied_by_joblib,
    copied_by_memory_map,
]


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("params", SOLVERS.values(), ids=SOLVERS)
def test_two_fits_of_five_epochs_equal_one_of_ten(params, copied, tmp_path):
    params = {"hidden_layer_sizes": 6, "batch_size": 40, "random_state": 0} | params
    whole = MLPClassifier(max_iter=10, **params).fit(IRIS_X, IRIS_Y)
    parts = MLPClassifier(max_iter=5, warm_start=True, **params).fit(IRIS_X, IRIS_Y)
    parts = copied(parts, tmp_path).fit(IRIS_X, IRIS_Y)
    for a, b in zip(whole.coefs_ + whole.intercepts_, parts.coefs_ + parts.intercepts_, strict=True):
        np.testing.assert_array_equal(a, b)
    assert parts.loss_curve_ == whole.loss_curve_ and parts.t_ == whole.t_
    assert parts.history_.history["lr"] == whole.history_.history["lr"]


@pytest.mark.parametrize("params", SOLVERS.values(), ids=SOLVERS)
def test_ten_partial_fits_equal_one_fit_of_ten_epochs(params, tmp_path):
    params = {"hidden_layer_sizes": 6, "batch_size": 40, "random_state": 0, "shuffle": False} | params
    whole = MLPClassifier(max_iter=10, **params).fit(IRIS_X, IRIS_Y)
    parts = MLPClassifier(**params)
    for epoch in range(10):
        parts.partial_fit(IRIS_X, IRIS_Y, classes=[0, 1, 2] if epoch == 0 else None)
        if epoch == 4:
            parts = copied_by_joblib(parts, tmp_path)
    np.testing.assert_array_equal(whole.coefs_[0], parts.coefs_[0])
    assert parts.loss_curve_ == whole.loss_curve_


def test_hyperparameters_may_change_between_fits():
    model = MLPRegressor(hidden_layer_sizes=6, max_iter=3, warm_start=True, random_state=0)
    model.fit(DIABETES_X, DIABETES_Y)
    moments = model._training.optimizer.state[0]["exp_avg"].copy()
    weights = [W.copy() for W in model.coefs_]
    model.set_params(learning_rate_init=1e-12, alpha=0.5, dropout=0.1).fit(DIABETES_X, DIABETES_Y)
    assert model._training.optimizer.steps == 6 and model._training.optimizer.groups[0]["lr"] == 1e-12
    assert model._net.dropout == (0.1,)
    assert not np.array_equal(model._training.optimizer.state[0]["exp_avg"], moments)
    for a, b in zip(weights, model.coefs_, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    model.set_params(solver="sgd", learning_rate_init=0.01).fit(DIABETES_X, DIABETES_Y)
    assert model._training.optimizer.steps == 3


def test_validation_split_is_kept_between_fits():
    seen = []

    class Peek(MLPClassifier):
        def _split(self, data):
            train, validation = super()._split(data)
            seen.append(validation[0])
            return train, validation

    model = Peek(hidden_layer_sizes=3, max_iter=2, warm_start=True, early_stopping=True, random_state=0)
    model.fit(IRIS_X, IRIS_Y).fit(IRIS_X, IRIS_Y)
    np.testing.assert_array_equal(*seen)
    assert len(model.validation_scores_) == 4


def test_warm_start_requires_same_layer_sizes_and_classes():
    model = MLPClassifier(hidden_layer_sizes=3, max_iter=2, warm_start=True).fit(IRIS_X, IRIS_Y)
    with pytest.raises(ValueError, match="warm_start can only be used where `y` has the same classes"):
        model.fit(IRIS_X[:100], IRIS_Y[:100])
    with pytest.raises(ValueError, match=r"layer sizes \[4, 3, 3\] to resume from, got \[4, 5, 3\]"):
        model.set_params(hidden_layer_sizes=5).fit(IRIS_X, IRIS_Y)


def test_first_partial_fit_requires_all_classes():
    model = MLPClassifier(hidden_layer_sizes=3)
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        model.partial_fit(IRIS_X, NAMES)
    model.partial_fit(IRIS_X[:50], NAMES[:50], classes=np.unique(NAMES))
    model.partial_fit(IRIS_X[50:], NAMES[50:])
    assert model.t_ == 150
    with pytest.raises(ValueError, match="is not the same as on last call to partial_fit"):
        model.partial_fit(IRIS_X, NAMES, classes=["setosa", "other"])
    with pytest.raises(ValueError, match=r"`y` has classes not in `self.classes_`.*'y' has .'other'."):
        model.partial_fit(IRIS_X[:1], ["other"])


def test_fit_without_warm_start_resets_the_model():
    model = MLPClassifier(hidden_layer_sizes=4, max_iter=3, random_state=0).fit(IRIS_X, IRIS_Y)
    first = model.coefs_[0].copy()
    model.partial_fit(IRIS_X, IRIS_Y)
    np.testing.assert_array_equal(model.fit(IRIS_X, IRIS_Y).coefs_[0], first)


# --- Additional options --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [
        "adagrad", "rmsprop", "adamw", "momentum", "nesterov", fastopt.AdamW,
        functools.partial(fastopt.SGD, lr=0.05, momentum=0.9),
        lambda params: fastopt.RMSprop(params, lr=schedules.Cosine(0.01, steps=100)),
    ],
)
def test_every_optimizer_is_a_solver(solver):
    model = MLPClassifier(
        hidden_layer_sizes=8, solver=solver, learning_rate_init=0.02, max_iter=40, random_state=0
    ).fit(IRIS_X, IRIS_Y)
    assert model.loss_curve_[-1] < 0.85 * model.loss_curve_[0]


def test_solver_names_cover_every_optimizer():
    for name in set(fastopt.optimizers.__all__) - {"Optimizer"}:
        model = MLPRegressor(hidden_layer_sizes=3, solver=name.lower(), max_iter=1)
        model.fit(DIABETES_X, DIABETES_Y)
        assert type(model._training.optimizer).__name__ == name


def test_hyperparameters_reach_the_optimizer():
    model = MLPRegressor(hidden_layer_sizes=3, max_iter=1, solver="adamw", beta_1=0.8, epsilon=1e-3)
    group = model.fit(DIABETES_X, DIABETES_Y)._training.optimizer.groups[0]
    assert group["betas"] == (0.8, 0.999) and group["eps"] == 1e-3 and group["lr"] == 0.001
    nesterov = MLPRegressor(hidden_layer_sizes=3, max_iter=1, solver="nesterov", nesterovs_momentum=False)
    assert nesterov.fit(DIABETES_X, DIABETES_Y)._training.optimizer.groups[0]["nesterov"]


def test_schedule_receives_step_count():
    schedule = schedules.Step(0.1, step_size=4, gamma=0.5)
    model = MLPClassifier(
        hidden_layer_sizes=3, learning_rate_init=schedule, batch_size=75, max_iter=6, solver="sgd"
    ).fit(IRIS_X, IRIS_Y)
    assert model.history_.history["lr"] == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]


def test_activation_dropout_and_norm_per_layer():
    model = MLPRegressor(
        hidden_layer_sizes=(6, 5), activation=["gelu", "tanh"], dropout=[0.0, 0.2], norm=["layer", None],
        max_iter=3, random_state=0,
    ).fit(DIABETES_X, DIABETES_Y)
    assert model._net.activation == ("gelu", "tanh") and model._net.norm == ("layer", None)
    assert model._net.dropout == (0.0, 0.2)


@pytest.mark.parametrize("loss", ["huber", "quantile"])
def test_huber_and_quantile_losses(loss):
    model = MLPRegressor(
        loss, hidden_layer_sizes=(), delta=0.5, quantile=0.9, max_iter=300, learning_rate_init=0.01,
        random_state=0,
    ).fit(DIABETES_X, DIABETES_Y)
    if loss == "quantile":
        assert np.mean(model.predict(DIABETES_X) >= DIABETES_Y) == pytest.approx(0.9, abs=0.05)
    else:
        error = np.abs(model.predict(DIABETES_X) - DIABETES_Y)
        huber = np.where(error <= 0.5, 0.5 * error**2, 0.5 * (error - 0.25)).mean()
        assert model.loss_ == pytest.approx(huber, rel=0.02)


@pytest.mark.parametrize("class_weight", ["balanced", {"setosa": 3.0, "virginica": 0.5}])
def test_class_weights_multiply_sample_weights(class_weight):
    params = {"hidden_layer_sizes": 5, "max_iter": 6, "random_state": 0, "batch_size": 40}
    X, y = IRIS_X[20:], NAMES[20:]
    weights = compute_sample_weight(class_weight, y) * WEIGHTS[20:]
    by_class = MLPClassifier(class_weight=class_weight, **params).fit(X, y, sample_weight=WEIGHTS[20:])
    by_row = MLPClassifier(**params).fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(by_class.coefs_[0], by_row.coefs_[0], rtol=1e-12)
    plain = MLPClassifier(**params).fit(X, y)
    assert not np.allclose(by_class.coefs_[0], plain.coefs_[0])


def test_partial_fit_refuses_balanced_class_weight():
    with pytest.raises(ValueError, match="class_weight: expected a dict with partial_fit"):
        MLPClassifier(class_weight="balanced").partial_fit(IRIS_X, IRIS_Y, classes=[0, 1, 2])


@pytest.mark.parametrize("names", [IRIS_Y, NAMES], ids=["integers", "names"])
def test_validation_curves(names):
    X, X_val, y, y_val = train_test_split(IRIS_X, names, random_state=0)
    model = MLPClassifier(hidden_layer_sizes=6, max_iter=9, random_state=0, alpha=0.5)
    model.fit(X, y, validation_data=(X_val, y_val))
    assert len(model.validation_loss_curve_) == len(model.validation_scores_) == 9
    assert model.validation_loss_curve_[-1] == pytest.approx(log_loss(y_val, model.predict_proba(X_val)))
    assert model.validation_scores_[-1] == model.score(X_val, y_val)
    plain = MLPClassifier(hidden_layer_sizes=6, max_iter=9, random_state=0, alpha=0.5).fit(X, y)
    np.testing.assert_array_equal(plain.coefs_[0], model.coefs_[0])
    assert plain.validation_loss_curve_ is None


@pytest.mark.parametrize("task", ["names", "labels", "two values"])
def test_early_stopping_with_validation_data_restores_best_epoch(task):
    _, cls, own, X, y = TASKS[task]
    X, X_val, y, y_val = train_test_split(X, y, random_state=0)
    model = cls(
        hidden_layer_sizes=20, early_stopping=True, n_iter_no_change=4, learning_rate_init=0.05,
        max_iter=100, norm="batch", random_state=0, **own,
    ).fit(X, y, validation_data=(X_val, y_val))
    assert model.t_ == model.n_iter_ * len(X)
    assert model.n_iter_ < 100
    assert model.score(X_val, y_val) == pytest.approx(model.best_validation_score_)
    assert model.best_validation_score_ == max(model.validation_scores_)


def test_validation_data_with_sample_weight():
    weights = np.zeros(150)
    weights[:50] = 1.0
    model = MLPClassifier(hidden_layer_sizes=4, max_iter=3, random_state=0)
    model.fit(IRIS_X, NAMES, validation_data=(IRIS_X, NAMES, weights))
    assert model.validation_scores_[-1] == model.score(IRIS_X[:50], NAMES[:50])


class Recorder(fastopt.Callback):
    """Records validation losses and stops after a number of epochs."""

    def __init__(self, epochs):
        self.epochs = epochs
        self.seen = []

    def on_epoch_end(self, epoch, logs):
        self.seen.append((epoch, logs["val_loss"]))
        if len(self.seen) == self.epochs:
            self.trainer.stop_training = True


def test_callbacks_are_called_and_can_stop_training():
    recorder = Recorder(3)
    model = MLPClassifier(hidden_layer_sizes=4, callbacks=[recorder], random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(IRIS_X, IRIS_Y, validation_data=(IRIS_X, IRIS_Y))
    assert recorder.seen == list(enumerate(model.validation_loss_curve_)) and model.n_iter_ == 3
    assert model.history_.stopped_by == "Recorder"
    assert recorder.trainer is None
    assert clone(model).callbacks[0].seen == recorder.seen


def test_callbacks_keep_their_state_between_partial_fits():
    plateau = fastopt.callbacks.ReduceLROnPlateau(
        monitor="loss", patience=2, min_delta=100.0, factor=0.5
    )
    model = MLPClassifier(hidden_layer_sizes=4, callbacks=[plateau], learning_rate_init=0.01)
    for _ in range(8):
        model.partial_fit(IRIS_X, IRIS_Y, classes=[0, 1, 2])
    assert model.history_.history["lr"][-1] < 0.01


def test_swap_ema_weights_callback():
    solver = functools.partial(fastopt.Adam, lr=0.01, ema=0.9)
    params = {"hidden_layer_sizes": 4, "solver": solver, "max_iter": 5, "random_state": 0}
    plain = MLPClassifier(**params).fit(IRIS_X, IRIS_Y)
    averaged = MLPClassifier(callbacks=[fastopt.callbacks.SwapEMAWeights()], **params).fit(IRIS_X, IRIS_Y)
    np.testing.assert_array_equal(averaged.coefs_[0], plain._training.optimizer.ema[0][0])


def test_early_stopping_callback():
    stopping = fastopt.callbacks.EarlyStopping(patience=2, min_delta=1.0)
    model = MLPClassifier(hidden_layer_sizes=4, callbacks=[stopping], random_state=0)
    model.fit(IRIS_X, IRIS_Y, validation_data=(IRIS_X, IRIS_Y))
    assert model.n_iter_ == 3


def test_max_time_stops_training():
    model = MLPClassifier(max_iter=10**6, tol=0.0, n_iter_no_change=np.inf, max_time=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(IRIS_X, IRIS_Y)
    assert 0 < model.n_iter_ < 10**6 and model.history_.stopped_by == "max_time"


def test_max_time_stops_lbfgs():
    model = MLPClassifier((200, 200), solver="lbfgs", max_iter=10**6, max_fun=10**8, tol=0.0, max_time=1e-9)
    assert model.fit(IRIS_X, IRIS_Y).n_iter_ == 1


# --- scikit-learn utilities ----------------------------------------------------------------------


def test_pipeline_and_grid_search():
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(hidden_layer_sizes=8, random_state=0))
    grid = GridSearchCV(
        pipeline,
        {"mlpclassifier__solver": ["adam", "adagrad"], "mlpclassifier__learning_rate_init": [1e-4, 0.05]},
        cv=3,
    ).fit(IRIS_X, NAMES)
    assert grid.best_score_ > 0.9 and grid.best_params_["mlpclassifier__learning_rate_init"] == 0.05
    assert set(grid.predict(IRIS_X)) <= set(NAMES)


def test_metadata_routing_of_sample_weight():
    with sklearn.config_context(enable_metadata_routing=True):
        model = MLPClassifier(hidden_layer_sizes=3, max_iter=2).set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=True)
        scores = cross_val_score(model, IRIS_X, IRIS_Y, params={"sample_weight": WEIGHTS}, cv=2)
    assert scores.shape == (2,)


def test_feature_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(IRIS_X, columns=list("abcd"))
    model = MLPClassifier(hidden_layer_sizes=3, max_iter=2, early_stopping=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(frame, pandas.Series(NAMES), validation_data=(frame, pandas.Series(NAMES)))
        model.predict(frame)
    assert list(model.feature_names_in_) == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["b", "a", "c", "d"]])


def test_usage_from_scikit_learn_examples(capsys):
    """Learning curves of several solvers, decision surfaces, and images of the weights."""
    X, y = make_circles(noise=0.2, factor=0.5, random_state=1, n_samples=60)
    X = MinMaxScaler().fit_transform(X)
    for params in (
        {"solver": "sgd", "learning_rate": "constant", "momentum": 0, "learning_rate_init": 0.2},
        {"solver": "sgd", "learning_rate": "invscaling", "momentum": 0.9, "nesterovs_momentum": True},
        {"solver": "adam", "learning_rate_init": 0.01},
    ):
        mlp = MLPClassifier(random_state=0, max_iter=15, verbose=10, **params)
        mlp.fit(X, y)
        assert len(mlp.loss_curve_) == mlp.n_iter_ and mlp.loss_ == mlp.loss_curve_[-1]
        assert f"Iteration {mlp.n_iter_}, loss = {mlp.loss_:.8f}" in capsys.readouterr().out
    pipeline = make_pipeline(
        StandardScaler(),
        MLPClassifier(
            solver="lbfgs", alpha=0.1, random_state=1, max_iter=200, early_stopping=True,
            hidden_layer_sizes=[10, 10],
        ),
    ).fit(X, y)
    assert not hasattr(pipeline, "decision_function")
    surface = pipeline.predict_proba(np.c_[X[:, 0], X[:, 1]])[:, 1]
    assert surface.shape == (60,) and pipeline.score(X, y) > 0.8
    pictures = MLPClassifier(hidden_layer_sizes=(40,), max_iter=2).fit(RNG.rand(20, 784), np.arange(20) % 10)
    assert [w.reshape(28, 28).shape for w in pictures.coefs_[0].T] == [(28, 28)] * 40


# --- Validation data -----------------------------------------------------------------------------


def test_separate_validation_arguments_equal_validation_data():
    weights = WEIGHTS[:60]
    models = [MLPClassifier(hidden_layer_sizes=4, max_iter=4, random_state=0) for _ in range(2)]
    models[0].fit(IRIS_X, NAMES, validation_data=(IRIS_X[:60], NAMES[:60], weights))
    models[1].fit(IRIS_X, NAMES, X_val=IRIS_X[:60], y_val=NAMES[:60], sample_weight_val=weights)
    assert models[0].history_.history["val_loss"] == models[1].history_.history["val_loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X_val": IRIS_X}, "X_val: expected y_val with it"),
        ({"y_val": IRIS_Y}, "y_val: expected X_val with it"),
        ({"sample_weight_val": WEIGHTS}, "sample_weight_val: expected X_val and y_val with it"),
        (
            {"X_val": IRIS_X, "y_val": IRIS_Y, "validation_data": (IRIS_X, IRIS_Y)},
            "expected either validation_data or X_val and y_val, got both",
        ),
    ],
)
def test_invalid_validation_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLPClassifier().fit(IRIS_X, IRIS_Y, **arguments)


@pytest.mark.parametrize("kind", [np.asarray, csr_array], ids=["dense", "sparse"])
def test_pipeline_does_not_transform_validation_data_and_says_so(kind):
    model = MLPClassifier(hidden_layer_sizes=16, early_stopping=True, random_state=0)
    pipeline = make_pipeline(StandardScaler(with_mean=False), model)
    with pytest.warns(UserWarning, match=r"columns of X differs .* transform_input=\['X_val'\]"):
        pipeline.fit(kind(IRIS_X * 20), IRIS_Y, mlpclassifier__validation_data=(kind(IRIS_X * 20), IRIS_Y))


def test_transform_input_transforms_the_validation_samples():
    scaled = StandardScaler().fit_transform(IRIS_X)
    params = {"early_stopping": True, "learning_rate_init": 0.01, "random_state": 0}
    expected = MLPClassifier(**params).fit(scaled, IRIS_Y, X_val=scaled, y_val=IRIS_Y)
    with sklearn.config_context(enable_metadata_routing=True), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = MLPClassifier(**params).set_fit_request(X_val=True, y_val=True)
        pipeline = make_pipeline(StandardScaler(), model, transform_input=["X_val"])
        pipeline.fit(IRIS_X, IRIS_Y, X_val=IRIS_X, y_val=IRIS_Y)
    assert pipeline[-1].validation_scores_ == expected.validation_scores_
    assert pipeline[-1].best_validation_score_ > 0.9


def test_transformed_target_regressor_does_not_transform_validation_targets_and_says_so():
    X, y = DIABETES_X, 50.0 * DIABETES_Y + 200.0
    model = TransformedTargetRegressor(MLPRegressor(max_iter=5), transformer=StandardScaler())
    with pytest.warns(UserWarning, match="of y differs .* TransformedTargetRegressor transforms y only"):
        model.fit(X, y, validation_data=(X, y))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y, validation_data=(X, DIABETES_Y))


@pytest.mark.parametrize("seed", range(5))
def test_random_validation_parts_do_not_warn(seed):
    order = np.random.default_rng(seed).permutation(150)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        MLPClassifier(hidden_layer_sizes=2, max_iter=1).fit(
            IRIS_X[order[12:]], IRIS_Y[order[12:]], validation_data=(IRIS_X[order[:12]], IRIS_Y[order[:12]])
        )


# --- Private names that code for scikit-learn reads ----------------------------------------------


@pytest.mark.parametrize(
    "params",
    [{"solver": "adam"}, {"solver": "sgd"}, {"solver": "sgd", "learning_rate": "invscaling"}],
    ids=["adam", "sgd", "invscaling"],
)
def test_learning_rate_of_the_optimizer_is_that_of_scikit_learn(params):
    options = {"hidden_layer_sizes": 4, "max_iter": 3, "random_state": 0, **params}
    models = [cls(**options).fit(IRIS_X, IRIS_Y) for cls in (MLPClassifier, SklearnClassifier)]
    rates = [model._optimizer.learning_rate for model in models]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    assert pickle.loads(pickle.dumps(models[0]))._optimizer.learning_rate == rates[0]
    models[0]._optimizer.learning_rate = 0.5
    assert models[0]._training.optimizer.lr == 0.5


def test_there_is_no_optimizer_before_fit_and_with_lbfgs():
    assert not hasattr(MLPClassifier(), "_optimizer")
    assert not hasattr(MLPClassifier(solver="lbfgs", max_iter=500).fit(IRIS_X, IRIS_Y), "_optimizer")


# --- Warnings and errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ("adam", r"Stochastic Optimizer: Maximum iterations \(1\) reached"),
        ("lbfgs", "lbfgs failed to converge"),
    ],
)
def test_convergence_warning(solver, message):
    with pytest.warns(ConvergenceWarning, match=message):
        MLPClassifier(hidden_layer_sizes=4, max_iter=1, solver=solver).fit(IRIS_X, IRIS_Y)


def test_keyboard_interrupt_keeps_trained_weights():
    class Interrupt(fastopt.Callback):
        def on_epoch_begin(self, epoch, logs):
            if epoch == 2:
                raise KeyboardInterrupt

    model = MLPClassifier(hidden_layer_sizes=4, callbacks=[Interrupt()])
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.fit(IRIS_X, IRIS_Y)
    assert model.n_iter_ == 2 and model.predict(IRIS_X).shape == (150,)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"alpha": -1.0}, ValueError, "The 'alpha' parameter of MLPClassifier must be a float in the range"),
        ({"alpha": "x"}, ValueError, "The 'alpha' parameter of .* Got 'x' instead"),
        ({"momentum": 1.5}, ValueError, "The 'momentum' parameter of .* Got 1.5 instead"),
        ({"epsilon": 0.0}, ValueError, "The 'epsilon' parameter of .* Got 0.0 instead"),
        ({"learning_rate_init": 0.0}, ValueError, "The 'learning_rate_init' parameter of "),
        ({"max_time": 0}, ValueError, "The 'max_time' parameter of "),
        ({"max_iter": 0}, ValueError, "The 'max_iter' parameter of .* Got 0 instead"),
        ({"batch_size": 1.5}, TypeError, "The 'batch_size' parameter of .* Got 1.5 instead"),
        ({"n_iter_no_change": 0}, ValueError, "The 'n_iter_no_change' parameter of .* Got 0 instead"),
        ({"shuffle": "yes"}, TypeError, "The 'shuffle' parameter of .* Got 'yes' instead"),
        ({"random_state": "x"}, TypeError, "The 'random_state' parameter of .* Got 'x' instead"),
        ({"solver": "newton"}, ValueError, "The 'solver' parameter of .*'adam'.* Got 'newton' instead"),
        ({"solver": lambda params: 3}, TypeError, "solver: expected a callable that returns"),
        ({"learning_rate": "slow"}, ValueError, "The 'learning_rate' parameter of .*'constant'"),
        ({"activation": "swoosh"}, ValueError, "The 'activation' parameter of .*'relu'.* Got 'swoosh' inst"),
        ({"hidden_layer_sizes": (3, 0)}, ValueError, r"hidden_layer_sizes must be > 0, got \[3, 0\]"),
        ({"hidden_layer_sizes": (3, 2.5)}, ValueError, r"hidden_layer_sizes must be > 0, got \[3, 2.5\]"),
        ({"callbacks": [print]}, TypeError, "callbacks: expected a list of fastopt.Callback objects"),
        ({"callbacks": None}, TypeError, "callbacks: expected a list of fastopt.Callback objects, got None"),
        (
            {"callbacks": [fastopt.callbacks.BackupAndRestore("unused")]},
            ValueError,
            "callbacks: expected no BackupAndRestore",
        ),
        ({"dropout": 0.5, "solver": "lbfgs"}, ValueError, "dropout: expected none with solver='lbfgs'"),
        (
            {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": schedules.Constant(0.1)},
            ValueError,
            "learning_rate: expected 'constant' with a schedule as learning_rate_init, got 'adaptive'",
        ),
    ],
    ids=id_without_address,
)
def test_invalid_parameters_raise(params, error, message):
    with pytest.raises(error, match=message):
        MLPClassifier(**params).fit(IRIS_X, IRIS_Y)


def test_invalid_data_raises():
    with pytest.raises(ValueError, match="validation_data: expected a stochastic solver"):
        MLPClassifier(solver="lbfgs").fit(IRIS_X, IRIS_Y, validation_data=(IRIS_X, IRIS_Y))
    with pytest.raises(ValueError, match=r"validation_data: expected .X, y. or"):
        MLPClassifier().fit(IRIS_X, IRIS_Y, validation_data=IRIS_X)
    with pytest.raises(ValueError, match=r"`y` has classes not in `self.classes_`.*'y' has .'unknown'."):
        MLPClassifier().fit(IRIS_X, NAMES, validation_data=(IRIS_X[:1], ["unknown"]))
    with pytest.raises(ValueError, match=r"The validation set is too small\. Increase 'validation_fraction'"):
        MLPRegressor(early_stopping=True).fit(DIABETES_X[:2], DIABETES_Y[:2])
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
        MLPRegressor(early_stopping=True).partial_fit(DIABETES_X, DIABETES_Y)
    with pytest.raises(ValueError, match="y: expected no negative value"):
        MLPRegressor("poisson").fit(DIABETES_X, DIABETES_Y)
    with pytest.raises(ValueError, match="Multioutput target data is not supported with label binarization"):
        MLPClassifier().fit(IRIS_X, np.column_stack([IRIS_Y, IRIS_Y]))
    with pytest.warns(UserWarning, match="Got `batch_size` less than 1 or larger than sample size. It is"):
        MLPClassifier(batch_size=151, max_iter=1).fit(IRIS_X, IRIS_Y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_raises():
    with pytest.raises(ValueError, match=r"Solver produced non-finite parameter weights\. The input data"):
        MLPRegressor(
            hidden_layer_sizes=5, activation="identity", solver="sgd", learning_rate_init=1e6, max_iter=60
        ).fit(DIABETES_X, DIABETES_Y)


def test_import_error_without_scikit_learn():
    code = "import sys; sys.modules['sklearn'] = None; import fastopt.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: fastopt.sklearn needs scikit-learn 1.6 or newer: pip install 'fastopt[sklearn]'" in (
        done.stderr
    )


# --- patch ---------------------------------------------------------------------------------------


@pytest.fixture
def patched():
    """Return `patch`; call `unpatch` after the test."""
    yield patch
    unpatch()


PATCHED = [
    {},
    {"solver": "sgd"},
    {"solver": "sgd", "momentum": 0.0},
    {"solver": "sgd", "nesterovs_momentum": False, "learning_rate": "invscaling"},
    {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.5, "n_iter_no_change": 1},
    {"early_stopping": True, "warm_start": True},
]


@pytest.mark.parametrize("params", PATCHED, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_patched_fit_equals_unpatched_fit(params, dtype, patched):
    def train():
        model = SklearnClassifier((8,), random_state=0, max_iter=10, **params)
        model.fit(IRIS_X.astype(dtype), IRIS_Y)
        if params.get("warm_start"):
            return model.fit(IRIS_X.astype(dtype), IRIS_Y)
        for _ in range(3):
            model.partial_fit(IRIS_X.astype(dtype), IRIS_Y)
        return model

    own = train()
    patched()
    patched()
    compiled = train()
    assert type(compiled._optimizer).__module__.startswith("fastopt")
    unpatch()
    again = train()
    assert type(again._optimizer).__module__.startswith("sklearn")
    tolerance = 50 * np.finfo(dtype).eps
    for a, b, c in zip(own.coefs_, compiled.coefs_, again.coefs_, strict=True):
        assert b.dtype == dtype
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(c, a)
    assert compiled._optimizer.learning_rate == own._optimizer.learning_rate


@pytest.mark.parametrize("params", PATCHED[:4], ids=str)
@pytest.mark.parametrize("copied", COPIES[1:])
def test_patched_model_pickles_scikit_learn_optimizer(params, copied, patched, tmp_path):
    patched()
    model = SklearnClassifier((8,), random_state=0, max_iter=5, **params).fit(IRIS_X, IRIS_Y)
    assert b"fastopt" not in pickle.dumps(model)
    loaded = copied(model, tmp_path)
    if copied is copied_by_memory_map:
        np.testing.assert_array_equal(loaded.predict_proba(IRIS_X), model.predict_proba(IRIS_X))
        return
    for _ in range(3):
        model.partial_fit(IRIS_X, IRIS_Y)
        loaded.partial_fit(IRIS_X, IRIS_Y)
    for a, b in zip(model.coefs_, loaded.coefs_, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-14)


def test_assigned_weights_of_patched_model(patched):
    """The arrays of the parameters change between two steps."""
    patched()
    model = SklearnRegressor(hidden_layer_sizes=(4,), random_state=0, max_iter=3).fit(DIABETES_X, DIABETES_Y)
    moments = [m.copy() for m in model._optimizer.ms]
    model.coefs_ = [W.copy() for W in model.coefs_]
    before = model.coefs_[0].copy()
    model.partial_fit(DIABETES_X, DIABETES_Y)
    assert model._optimizer.t == 4
    assert not np.array_equal(model.coefs_[0], before)
    assert not np.array_equal(model._optimizer.ms[0], moments[0])


@pytest.mark.parametrize("version", ["1.5.2", "1.10.0", "2.0.1"])
def test_untested_releases_are_refused(version, monkeypatch, patched):
    monkeypatch.setattr(sklearn, "__version__", version)
    with pytest.raises(RuntimeError, match=f"expected scikit-learn 1.6, .*, got {version}"):
        patched()
    model = SklearnRegressor(hidden_layer_sizes=(4,), max_iter=1).fit(DIABETES_X, DIABETES_Y)
    assert type(model._optimizer).__module__.startswith("sklearn")


@pytest.mark.parametrize("change", [
    {}, {"dtype": "float32"}, {"dtype": "int64"}, {"order": "F"}, {"rows": 1}, {"rows": 0}, {"columns": 3},
    {"value": np.nan}, {"value": np.inf},
], ids=str)
@pytest.mark.parametrize("names", [False, True])
def test_data_of_predictions_are_checked_as_by_scikit_learn(change, names):
    """Plain arrays are predicted without its validation."""
    pd = pytest.importorskip("pandas")
    X = IRIS_X.copy()
    ours, theirs = (
        cls(8, max_iter=3, random_state=0).fit(pd.DataFrame(X, columns=list("abcd")) if names else X, IRIS_Y)
        for cls in (MLPClassifier, SklearnClassifier)
    )
    X[0, 0] = change.get("value", X[0, 0])
    X = X.astype(change.get("dtype", "float64"), change.get("order", "C"))
    X = X[: change.get("rows", 150), : change.get("columns", 4)]
    outcomes = []
    for model in (ours, theirs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                outcome = model.predict_proba(X)
            except ValueError as error:
                outcome = type(error)
        outcomes.append((outcome, [str(w.message) for w in caught if w.category is UserWarning]))
    (actual, ours_warned), (expected, theirs_warned) = outcomes
    assert [w.replace(SklearnClassifier.__name__, "") for w in ours_warned] == [
        w.replace(SklearnClassifier.__name__, "") for w in theirs_warned
    ]
    assert names == bool(theirs_warned)
    if isinstance(expected, type):
        assert actual is expected
    else:
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
