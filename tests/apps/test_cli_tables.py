"""The command line on tables in the shapes of well-known data sets."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from fastopt.nn.data import TableFormat, TableReader

pd = pytest.importorskip("pandas")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run every test in a temporary folder, without plots."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    return tmp_path


# --- Tables in the shapes of well-known ones -----------------------------------------------------


def scores(rng, y):
    """Three columns that tell the classes apart, with noise."""
    return np.stack([y + 0.5 * rng.normal(size=len(y)) for _ in range(3)], axis=1)


def wine(rng):
    """Semicolons, decimal commas, integer labels."""
    y = rng.integers(0, 3, 240)
    X = scores(rng, y) * [1.0, 100.0, 1e-3]
    frame = pd.DataFrame(X, columns=["fixed acidity", "sulfur", "chlorides"])
    frame["quality"] = y + 4
    return frame.to_csv(sep=";", decimal=",", index=False), "wine.csv", "quality", []


def automobiles(rng):
    """Question marks, categories, a text of its own in each row, blanks, no header."""
    y = rng.integers(0, 2, 200)
    X = scores(rng, y)
    lines = [
        f"{x[0]:.2f}  {'?' if i % 9 == 0 else f'{1e4 * x[1]:.0f}'}  {['gas', 'diesel'][int(x[2] > 0.5)]}  "
        f'"car {i}"  {"ab"[k]}'
        for i, (x, k) in enumerate(zip(X, y, strict=True))
    ]
    return "\n".join(lines) + "\n", "auto.data", None, []


def adult(rng):
    """Blanks after commas, missing categories, labels with signs."""
    y = rng.integers(0, 2, 300)
    X = scores(rng, y)
    lines = [
        f"{40 + 10 * x[0]:.0f}, {'?' if i % 7 == 0 else ['Private', 'State-gov'][int(x[1] > 0.5)]}, "
        f"{1e5 * x[2]:.0f}, {['<=50K', '>50K'][k]}"
        for i, (x, k) in enumerate(zip(X, y, strict=True))
    ]
    return "age, workclass, fnlwgt, income\n" + "\n".join(lines) + "\n", "adult.data", "income", []


def iris(rng):
    """An index column of pandas, quoted names with newlines."""
    y = rng.integers(0, 3, 150)
    frame = pd.DataFrame(scores(rng, y), columns=["sepal\nlength", "sepal, width", "petal"])
    frame["species"] = np.array(["setosa", "versi\ncolor", "virginica"])[y]
    return frame.to_csv(), "iris.csv", "species", []


def numeric_header(rng):
    """Column names that are numbers, floating-point class labels."""
    y = rng.integers(0, 2, 150)
    frame = pd.DataFrame(scores(rng, y), columns=["0", "1", "2"])
    frame["outcome"] = y.astype(float)
    return frame.to_csv(index=False), "numbers.csv", "outcome", []


def housing(rng):
    """A regression with wild scales and an id."""
    X = np.column_stack([np.arange(300), rng.uniform(50, 300, 300), rng.integers(1, 6, 300) * 1e-4])
    frame = pd.DataFrame(X, columns=["Id", "area", "rooms"])
    frame["price"] = 5000.0 * X[:, 1] + 2e8 * X[:, 2] + rng.normal(0.0, 2e4, 300)
    return "\n\n\ufeff".lstrip("\n") + frame.to_csv(index=False), "housing.csv", "price", ["--ignore", "Id"]


def titanic(rng):
    """The label first, missing numbers, names, tabs."""
    y = rng.integers(0, 2, 250)
    X = scores(rng, y)
    frame = pd.DataFrame({
        "Survived": y, "Name": [f"Mr. {i}, \"Bob\"" for i in range(250)],
        "Sex": np.array(["male", "female"])[(X[:, 0] > 0.5).astype(int)],
        "Age": np.where(np.arange(250) % 5 == 0, np.nan, 30 + 10 * X[:, 1]), "Fare": 100 * X[:, 2],
    })
    return frame.to_csv(sep="\t", index=False), "titanic.tsv", "Survived", ["--label", "Survived"]


def mushrooms(rng):
    """Texts only; booleans and missing ones."""
    y = rng.integers(0, 2, 300)
    X = scores(rng, y) > 0.5
    frame = pd.DataFrame({"bruises": X[:, 0], "ring": X[:, 1].astype(object)})
    frame["odor"] = np.array(["a", "n"])[X[:, 2].astype(int)]
    frame.loc[::6, "ring"] = None
    frame["class"] = np.array(["e", "p"])[y]
    return frame.to_csv(index=False), "mushrooms.data.csv", "class", []


def cities(rng):
    """Separators of thousands, an encoding of its own, missing values in any case."""
    y = rng.integers(0, 2, 300)
    X = scores(rng, y)
    frame = pd.DataFrame({
        "Einwohner": [f"{round(abs(x)):,}".replace(",", ".") for x in 1e6 * X[:, 0]],
        "Höhe": [("na", "NULL", "None", "N/a")[i % 4] if i % 8 == 0 else f"{x:.2f}".replace(".", ",")
                  for i, x in enumerate(X[:, 1])],
        "Fläche": [f"{1000 + x:,.1f}".translate({44: ".", 46: ","}) for x in X[:, 2]],
        "Größe": np.array(["groß", "klein"])[y],
    })
    options = ["--thousands", ".", "--encoding", "latin-1"]
    return frame.to_csv(sep=";", index=False), "cities.csv", "Größe", options


def accounts(rng):
    """Integers that are too large for 64 bits, and labels of them; constant columns."""
    y = rng.integers(0, 2, 300)
    frame = pd.DataFrame(scores(rng, y), columns=["a", "b", "c"])
    frame.insert(0, "account", [10**30 + i for i in range(300)])
    frame.insert(1, "time", [2**63 - 1 - i for i in range(300)])
    frame.insert(2, "version", 3)
    frame["kind"] = [10**25 + int(k) for k in y]
    return frame.to_csv(index=False), "accounts.csv", "kind", []


SHAPES = [
    wine, automobiles, adult, iris, numeric_header, housing, titanic, mushrooms, cities, accounts,
]


@pytest.mark.parametrize("make", SHAPES, ids=lambda make: make.__name__)
def test_tables_are_learned_with_the_defaults_and_predicted_by_name(run, make):
    content, name, label, options = make(np.random.default_rng(0))
    encoding = options[-1] if "--encoding" in options else "utf-8"
    Path(name).write_text(content, encoding=encoding, newline="")
    status, out, err = run("train", "--data", name, *options)
    assert (status, err) == (0, "") and max(map(len, out.splitlines())) <= 80
    score = float(re.search(r"^Test (?:Accuracy|R2) = (.*)$", out, re.M)[1])
    if make is housing:
        assert score > 0.9
    else:
        share = float(re.search(r"has\s+(\S+) % of", out)[1]) / 100.0
        assert share < 0.6 and score > share + 0.15

    status, predicted, err = run("predict", "fastopt-run", name)
    assert status == 0 and float(re.search(r"= (\S+) \(", err)[1]) > score - 0.15
    if label is None:
        return
    assert predicted.splitlines()[0] == label
    sep = TableReader(name, TableFormat(encoding=encoding)).sep
    layout = {"sep": ";" if ";" in content else ",", "encoding": encoding, "index": False}
    frame = pd.read_csv(
        name, sep=sep, dtype=str, keep_default_na=False, skipinitialspace=True, encoding=encoding
    )
    shuffled = frame[frame.columns[np.random.default_rng(1).permutation(len(frame.columns))]]
    shuffled.to_csv("shuffled.csv", **layout)
    assert run("predict", "fastopt-run", "shuffled.csv")[1] == predicted
    frame.drop(columns=label).to_csv("unlabeled.csv", **layout)
    assert run("predict", "fastopt-run", "unlabeled.csv")[1:] == (predicted, "")
    frame.drop(columns=frame.columns[-2]).to_csv("less.csv", **layout)
    status, out, err = run("predict", "fastopt-run", "less.csv")
    assert (status, out) == (2, "") and "expected the columns of the training data; missing:" in err


# --- What is printed about a table ---------------------------------------------------------------


def test_what_was_decided_is_printed(run):
    content, name, _, options = titanic(np.random.default_rng(0))
    Path(name).write_text(content)
    _, out, _ = run("train", "--data", name, *options, "--epochs", 1)
    lines = out.partition("Samples:")[0].splitlines()
    assert lines[0] == "Data: titanic.tsv"
    assert lines[1].startswith("Label: Survived, classification, 2 classes; the largest, ")
    assert lines[-4:] == [
        "Numbers: Age, Fare", "Categories: Sex (2)", "Missing values: Age",
        "Left out: Name (250 different texts)",
    ]


def test_a_warning_is_printed_once_on_standard_error(run):
    pd.DataFrame({"x": range(100), "y": range(100)}).to_csv("t.csv", index=False)
    status, out, err = run("train", "--data", "t.csv", "--epochs", 1)
    assert status == 0 and err == (
        "fastopt: warning: t.csv: 100 different integers in 100 labels are treated as classes; "
        "--task regression (task='regression' in Python) predicts them as values\n"
    )
    assert run("train", "--data", "t.csv", "--epochs", 1, "--task", "regression")[2] == ""


WARNINGS = {
    "column 'x' has texts that look like numbers, such as '1,233'; "
    "--thousands CHARACTER reads them as numbers":
        (lambda i: f'"{1000 + i % 234:,}"', ["--thousands", ","]),
    "column 'x' has texts that look like numbers, such as '9.5%'; remove the unit to use them as numbers":
        (lambda i: f"{i % 10}.5%", ["--ignore", "x"]),
    "column 'x' has texts that look like numbers, such as '$ 9'; remove the unit to use them as numbers":
        (lambda i: f"$ {i % 10}", ["--ignore", "x"]),
}


@pytest.mark.parametrize("message", WARNINGS)
def test_texts_that_look_like_numbers(run, message):
    cell, remedy = WARNINGS[message]
    Path("t.csv").write_text("x,z,y\n" + "".join(f"{cell(i)},{i % 7},{'ab'[i % 2]}\n" for i in range(300)))
    assert run("train", "--data", "t.csv", "--epochs", 1)[::2] == (0, f"fastopt: warning: t.csv: {message}\n")
    assert run("train", "--data", "t.csv", "--epochs", 1, *remedy)[::2] == (0, "")
    status, out, err = run("predict", "fastopt-run-2", "t.csv")
    assert status == 0 and "Accuracy" in err


def test_a_header_of_numbers_may_be_data(run):
    Path("t.csv").write_text("10,20,30\n" + "".join(f"{i / 8},{i % 7},{i % 2}\n" for i in range(100)))
    assert run("train", "--data", "t.csv", "--epochs", 1)[2] == (
        "fastopt: warning: t.csv: the first line is read as data, but no other line has its label '30'; "
        "--header reads it as column names\n"
    )
    for option in ("--header", "--no-header"):
        assert run("train", "--data", "t.csv", "--epochs", 1, option)[::2] == (0, "")


def test_errors_of_the_layout(run):
    Path("t.csv").write_text("größe,y\n" + "1,a\n2,b\n" * 20, encoding="latin-1")
    status, _, err = run("train", "--data", "t.csv")
    assert status == 2 and "--encoding selects another encoding, for example latin-1 or utf-16" in err
    for option, value in (("encoding", "klingon"), ("thousands", ",,"), ("thousands", "")):
        status, _, err = run("train", "--data", "t.csv", f"--{option}={value}")
        assert status == 2 and err.startswith(f"fastopt: {option}: expected ") and repr(value) in err
    status, _, err = run("train", "--data", "digits", "--thousands", ".")
    assert status == 2 and "--thousands: expected a table as data" in err


def test_no_confusion_matrix_beyond_a_hundred_classes(run, folder):
    for n in (100, 101):
        frame = pd.DataFrame({"x": range(4 * n), "y": [f"c{i}" for i in range(n)] * 4})
        frame.to_csv("t.csv", index=False)
        run("train", "--data", "t.csv", "--epochs", 1, "--out", str(n))
        assert (folder / str(n) / "confusion_matrix.csv").exists() == (n == 100)


# --- Predictions ---------------------------------------------------------------------------------


@pytest.fixture
def table(run):
    rng = np.random.default_rng(0)
    x = rng.normal(size=120)
    frame = pd.DataFrame({"y": np.where(x > 0, "007", "TRUE"), "a": x, "b": 1e5 * rng.normal(size=120)})
    frame.to_csv("train.csv", index=False)
    assert run("train", "--data", "train.csv", "--label", "y", "--epochs", 40, "--out", "run")[0] == 0
    return frame


def test_the_label_column_is_known(run, table):
    status, out, err = run("predict", "run", "train.csv")
    assert status == 0 and out.splitlines()[0] == "y" and set(out.splitlines()[1:]) == {"007", "TRUE"}
    assert float(re.search(r"Accuracy = (\S+) \(120", err)[1]) > 0.9


def test_probabilities_have_the_classes_as_header(run, table):
    _, labels, _ = run("predict", "run", "train.csv")
    status, out, _ = run("predict", "run", "train.csv", "--proba")
    frame = pd.read_csv(io.StringIO(out))
    assert status == 0 and list(frame.columns) == ["007", "TRUE"]
    np.testing.assert_allclose(frame.sum(axis=1), 1.0, rtol=1e-5)
    assert frame.idxmax(axis=1).tolist() == labels.split()[1:]


def test_standard_input(run, table, monkeypatch):
    expected = run("predict", "run", "train.csv")
    stream = io.TextIOWrapper(io.BytesIO(Path("train.csv").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stream)
    assert run("predict", "run", "-") == expected


def test_a_regression_is_predicted_in_its_own_unit(run):
    x = np.random.default_rng(0).normal(size=200)
    pd.DataFrame({"price": 1e6 + 2e5 * x, "x": x}).to_csv("t.csv", index=False)
    run("train", "--data", "t.csv", "--label", "price", "--epochs", 60)
    status, out, err = run("predict", "fastopt-run", "t.csv")
    values = np.array(out.split()[1:], float)
    assert status == 0 and np.corrcoef(values, x)[0, 1] > 0.99 and 9e5 < values.mean() < 1.1e6
    assert run("predict", "fastopt-run", "t.csv", "--proba")[2] == (
        "fastopt: --proba: expected a classification, got a regression model\n"
    )


@pytest.mark.parametrize("name", ["npz", "safetensors"])
def test_every_model_format_has_the_preprocessing(run, table, name):
    if name == "safetensors":
        pytest.importorskip("safetensors")
    options = ["--label", "y", "--epochs", 40, "--out", name, "--model-format", name]
    run("train", "--data", "train.csv", *options)
    assert run("predict", name, "train.csv") == run("predict", "run", "train.csv")


def test_unknown_categories_are_a_warning(run):
    pd.DataFrame({"c": ["u", "v"] * 50, "y": ["a", "b"] * 50}).to_csv("t.csv", index=False)
    run("train", "--data", "t.csv", "--epochs", 2)
    Path("new.csv").write_text("c\nu\nw\n")
    status, out, err = run("predict", "fastopt-run", "new.csv")
    assert status == 0 and len(out.splitlines()) == 3
    assert "column 'c' has values that are not in the training data, 'w'" in err


def test_options_of_the_layout(run):
    rows = "".join(f"{i}/{i % 3},5/x/{'ab'[i % 2]}\n" for i in range(60))
    Path("t.csv").write_text("n/-1/c/y\n" + rows)
    options = ["--sep", "/", "--decimal", ",", "--header", "--na-values=-1,x", "--ignore", "n"]
    status, out, err = run("train", "--data", "t.csv", *options, "--epochs", 2)
    assert (status, err) == (0, "") and "Numbers: -1\n" in out and "Left out: n (--ignore), c (empty)" in out
    assert run("predict", "fastopt-run", "t.csv")[0] == 0
    assert run("train", "--config", "fastopt-run/config.toml")[0] == 0
    assert Path("fastopt-run/model.npz").read_bytes() == Path("fastopt-run-2/model.npz").read_bytes()


# --- Validation and test data --------------------------------------------------------------------


def test_callbacks_see_the_validation_data_and_not_the_test_data(run):
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    for name, rows in (("train", slice(0, 200)), ("val", slice(200, 250)), ("test", slice(250, 300))):
        labels = np.where((x > 0) != (name == "test"), "p", "n")   # the labels of the test data are wrong
        pd.DataFrame({"y": labels, "x": x}).iloc[rows].to_csv(f"{name}.csv", index=False)
    options = ["--label", "y", "--validation", "val.csv", "--test", "test.csv", "--epochs", 60]
    status, out, _ = run("train", "--data", "train.csv", *options)
    assert status == 0 and "Samples: 200 training, 50 validation, 50 test; 1 feature, 2 classes" in out
    assert float(re.findall(r"Validation Accuracy = (\S+)", out)[-1]) > 0.9
    assert float(re.search(r"^Test Accuracy = (\S+)", out, re.M)[1]) < 0.1


def test_without_validation_data_no_metric_is_of_it(run):
    _, out, _ = run("train", "--hidden", "8", "--epochs", 1, "--validation-split", 0)
    assert "0 validation" in out and "Validation" not in out
    assert Path("fastopt-run/history.csv").read_text().startswith("epoch,loss,lr,seconds,accuracy\n") or (
        "val_" not in Path("fastopt-run/history.csv").read_text()
    )
