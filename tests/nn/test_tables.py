"""Tables: their layout, the decisions about columns, and the preprocessing by column name."""

import bz2
import gzip
import io
import json
import lzma
import warnings
import zipfile

import numpy as np
import pytest

from fastopt.nn import data
from fastopt.nn.data import TableFormat, TablePreprocessor, TableReader

pd = pytest.importorskip("pandas")

ROWS = [["4.5", "red", "7"], ["5.25", "blue", "8"], ["-1e-3", "red", "9"], ["0", "blue", "7"]] * 5
HEAD = ["size", "color", "kind"]


def text(rows, sep=",", head=HEAD, decimal="."):
    lines = [sep.join(row) for row in ([head] if head else [])]
    return "\n".join([*lines, *(sep.join(cell.replace(".", decimal) for cell in row) for row in rows)]) + "\n"


@pytest.fixture
def write(tmp_path):
    def write(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def frame_of(path, layout=None):
    reader = TableReader(path, layout)
    return reader, reader.read().set_axis(reader.names, axis=1)


# --- Layout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".data"])
@pytest.mark.parametrize("head", [HEAD, None], ids=["header", "no header"])
@pytest.mark.parametrize(
    ("sep", "decimal"),
    [(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ","), ("|", "."), ("  ", ".")],
)
def test_separator_decimal_point_and_header_are_found(write, sep, decimal, head, suffix):
    reader, frame = frame_of(write(text(ROWS, sep, head, decimal), "t" + suffix))
    assert (reader.named, reader.decimal) == (head is not None, decimal)
    assert reader.names == (HEAD if head else ["0", "1", "2"])
    assert frame.iloc[:, 0].tolist() == [float(row[0]) for row in ROWS]
    assert frame.iloc[:, 1].tolist() == [row[1] for row in ROWS]


PACK = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("t.csv", content)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [*PACK, ".zip"])
def test_compressed_tables(write, suffix):
    content = text(ROWS).encode()
    packed = {**PACK, ".zip": zipped}[suffix](content)
    reader, frame = frame_of(write(packed, "t.csv" + suffix))
    assert reader.names == HEAD and len(frame) == len(ROWS)
    if suffix:
        with pytest.raises(ValueError, match="not a valid CSV file"):
            TableReader(write(packed[: len(packed) // 2], "cut.csv" + suffix)).read()


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + text(ROWS),
        "\n\n  \n" + text(ROWS),
        "\ufeff\n" + text(ROWS),
        text(ROWS).replace("\n", "\n\n"),
        text(ROWS).replace("\n", "\r\n"),
        text(ROWS).replace(",", " ,  ").replace("\n", "  \n"),
        text(ROWS).replace("color", '"color"').replace("red", '"red"'),
    ],
    ids=["BOM", "blank lines above", "both", "blank lines", "CRLF", "spaces", "quotes"],
)
def test_what_surrounds_cells_is_not_part_of_them(write, content):
    _, expected = frame_of(write(text(ROWS), "plain.csv"))
    reader, frame = frame_of(write(content))
    assert reader.names == HEAD
    assert frame.to_dict("list") == expected.to_dict("list")


def test_quoted_newlines_and_separators_are_part_of_a_cell(write):
    reader, frame = frame_of(write('"a\nb",c\n' + '"x\ny",1\n"p,q;r",2\n' * 4))
    assert reader.names == ["a\nb", "c"] and reader.sep == ","
    assert frame["a\nb"].tolist() == ["x\ny", "p,q;r"] * 4


@pytest.mark.parametrize(
    ("first", "rows", "named"),
    [
        ("0,1,outcome", "1.5,2,0\n3,4.5,1\n", True),    # a text above numbers
        ("0,1,2", "1.5,2,0\n3,4.5,1\n", True),          # the numbers of the columns
        ("age,bmi,outcome", "1,2,a\n3,4,b\n", True),
        (",a,b", "0,1,x\n1,2,y\n", True),               # an index column of pandas
        ("a,b", "x,y\nz,x\n", True),                    # all texts
        ("p,x,p", "e,x,s\np,b,s\n", False),              # repeated: the texts are values
        ("p,x,s", "e,x,s\np,b,n\n", False),              # they are values of the other lines
        ("2015,2016,total", "1,2,3\n4,5,6\n", True),
        ("5.1,3.5,setosa", "4.9,3.0,setosa\n7.0,3.2,virginica\n", False),
        ("1,2,3", "4,5,6\n7,8,9\n", False),
        ("?,2,a", "4,5,b\n7,8,a\n", False),             # a missing value is no name
        ("NA,2,3", "4,5,6\n7,8,9\n", False),
    ],
)
def test_header_is_found(write, first, rows, named):
    reader = TableReader(write(f"{first}\n{rows}"))
    assert reader.named == named
    is_repeated = len({*first.split(",")}) < len(first.split(","))     # which names may not be
    for header in (False,) if is_repeated else (True, False):
        assert TableReader(write(f"{first}\n{rows}"), TableFormat(header=header)).named == header


@pytest.mark.parametrize("missing", ["", "?", "NA", "NaN", "null", "#N/A", "-999"])
def test_missing_values(write, missing):
    rows = [[missing, "x", "1"], ["2", missing, "2"], ["3", "y", "1"]]
    reader, frame = frame_of(write(text(rows)), TableFormat(na_values=("-999",)))
    assert frame["size"].isna().tolist() == [True, False, False] and frame["size"].dtype == float
    assert frame["color"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a valid CSV file"),
        (b"\n\n", "not a valid CSV file"),
        (b"a,b\n", "no rows below the header"),
        (b"a,b\n\xff\xfe,2\n", "expected UTF-8: .*; --encoding selects another encoding"),
        (b'a,b\n1,"2\n', "not a valid CSV file"),
        (b"a,b,c\n1,2,3\n4,5,6,7\n", "not a valid CSV file"),
        (b"a,a\n1,2\n", "expected different column names, got 'a' twice; rename one of them"),
    ],
)
def test_refused_tables(write, content, message):
    with pytest.raises(ValueError, match=message) as error:
        data.load(write(content))
    assert "t.csv" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sep": "ab"}, "sep: expected one character"),
        ({"sep": ""}, "sep: expected one character"),
        ({"decimal": "x"}, "decimal: expected one of ., ,"),
        ({"header": "yes"}, "header: expected one of True, False, auto"),
    ],
)
def test_invalid_layout(options, message):
    with pytest.raises(ValueError, match=message):
        TableFormat(**options)


def test_parquet(write, tmp_path):
    pytest.importorskip("pyarrow")
    _, frame = frame_of(write(text(ROWS)))
    frame["color"] = frame["color"].astype("category")
    frame.to_parquet(tmp_path / "t.parquet")
    loaded, expected = data.load(tmp_path / "t.parquet"), data.load(tmp_path / "t.csv")
    np.testing.assert_array_equal(loaded.X_train, expected.X_train)
    assert loaded.classes.tolist() == expected.classes.tolist()


# --- Labels and the task -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["007", "7"], ["007", "7"]),
        (["TRUE", "FALSE"], ["FALSE", "TRUE"]),
        (["0.0", "1.0"], ["0.0", "1.0"]),
        (["10", "9"], ["9", "10"]),             # in the order of the numbers
        (["x", "1"], ["1", "x"]),
        (["NA", "None"], ["NA", "None"]),       # texts in the label column are labels
        ([" a", "b "], ["a", "b"]),
        (["1e5", "2e5"], ["1e5", "2e5"]),
    ],
)
def test_labels_are_texts(write, labels, classes):
    path = write("x,y\n" + "".join(f"{i},{labels[i % 2]}\n" for i in range(20)))
    dataset = data.load(path)
    assert dataset.classes.tolist() == classes
    counts = np.bincount(np.concatenate([dataset.y_train, dataset.y_test]))
    assert counts.tolist() == [10, 10]


@pytest.mark.parametrize(
    ("labels", "is_classification"),
    [
        ([0, 1] * 50, True),
        ([0.0, 1.0] * 50, True),
        (np.arange(20.0).repeat(5), True),
        (np.arange(21.0).repeat(5), False),     # too many different values
        (np.arange(20.0).repeat(4), False),     # too few samples of each
        ([0.5, 1.0] * 50, False),
        (np.linspace(0, 1, 100), False),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_task_of_numeric_labels(tmp_path, labels, is_classification, kind):
    labels = np.asarray(labels)
    path = tmp_path / f"t.{kind}"
    if kind == "npz":
        np.savez(path, X=np.arange(len(labels))[:, None], y=labels)
    else:
        pd.DataFrame({"x": np.arange(len(labels)), "y": labels}).to_csv(path, index=False)
    assert (data.load(path).classes is not None) == is_classification
    assert data.load(path, task="regression").classes is None
    assert data.load(path, task="classification").classes is not None


@pytest.mark.parametrize("kind", ["csv", "npz"])
@pytest.mark.parametrize(
    ("labels", "warns"),
    [
        (np.arange(100), True),
        (np.arange(200).repeat(60), True),
        (np.arange(20).repeat(3), False),
        (np.arange(62).repeat(60), False),
    ],
    ids=["all different", "200 values", "20 values", "62 classes"],
)
def test_integers_that_look_like_values_warn(tmp_path, labels, warns, kind):
    path = tmp_path / f"t.{kind}"
    if kind == "npz":
        np.savez(path, X=np.arange(len(labels))[:, None], y=labels)
    else:
        pd.DataFrame({"x": np.arange(len(labels)), "y": labels}).to_csv(path, index=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.load(path)
    assert [f"{len(set(labels))} different integers" in str(w.message) for w in caught] == [True] * warns


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("x,y\n1,a\n2,\n3,b\n", {}, "the cell in row 2 of column 'y' is missing, expected a label"),
        ("x,y\n1,a\n2,b\n", {"task": "regression"}, "row 1 of column 'y' is 'a', expected a finite"),
        ("x,y\n1,a\n2,b\n", {"label": "z"}, "label: no column 'z'; expected one of x, y"),
        ("width,y\n1,a\n2,b\n", {"label": "widht"}, "label: no column 'widht'; did you mean 'width'?"),
        ("x,y\n1,a\n2,b\n", {"ignore": ["y"]}, "the label column 'y' is not a feature"),
        ("x,y\n1,a\n2,b\n", {"ignore": ["x"]}, "expected a column of features, found none"),
        ("x,y\n1,a\n2,b\n", {"ignore": [3]}, "ignore=3 is not one of the 2 columns"),
        ("x\n1\n2\n", {}, "expected features and a label column, found 1 columns"),
        ("x,y\n1,a\nfour,b\n3,a\n", {}, "row 2 of column 'x' is 'four', expected a number; --na-values four"),
        ("x,y\n1,a\ninf,b\n3,a\n", {}, "row 2 of column 'x' is 'inf', expected a number"),
        ("x,y\n1,a\n1e40,b\n3,a\n", {"standardize": False}, "row 2 of column 'x' is 1e.40, which is too"),
    ],
)
def test_errors_show_the_cell(write, content, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(write(content * 1), test_size=0.5, **options)


# --- Columns -----------------------------------------------------------------------------------


def test_numbers_categories_and_missing_values(write):
    rows = "".join(f"{[1, 2, 30][i % 3]},{['u', 'v', ''][i % 3]},{'?' if i % 4 == 0 else i},{'ab'[i % 2]}\n"
                   for i in range(60))
    dataset = data.load(write("n,c,m,label\n" + rows), test_size=0.25)
    table = dataset.table
    assert [name for column in table.columns for name in column.feature_names] == [
        "n", "c=u", "c=v", "c=missing", "m", "m=missing",
    ]
    X = np.concatenate([dataset.X_train, dataset.X_test])
    assert X.shape == (60, 6) and set(X[:, 1:4].ravel()) == {0.0, 1.0} and (X[:, 1:4].sum(axis=1) == 1).all()
    np.testing.assert_allclose(dataset.X_train[:, [0, 4]].mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(dataset.X_train[:, [0, 4]].std(axis=0), 1.0, rtol=1e-6)
    assert X[:, 5].sum() == 15
    filled = X[X[:, 5] == 1][:, 4]
    assert len(set(filled)) == 1
    column = table.columns[2]
    assert filled[0] == pytest.approx((column.fill - column.mean) / column.scale)


def test_preprocessing_equals_scikit_learn(write, tmp_path):
    pytest.importorskip("sklearn")
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(3.0, 2.0, 90), "b": rng.choice(list("xyz"), 90), "y": [0, 1] * 45})
    frame.loc[::7, "a"] = np.nan
    frame.to_csv(tmp_path / "t.csv", index=False)
    dataset = data.load(tmp_path / "t.csv")
    train, _ = data.train_test_split(np.arange(90), frame["y"].to_numpy())[:2]
    impute = SimpleImputer(strategy="median", add_indicator=True)
    numbers = make_pipeline(impute, make_column_transformer((StandardScaler(), [0]), remainder="passthrough"))
    reference = make_column_transformer((numbers, ["a"]), (OneHotEncoder(sparse_output=False), ["b"]))
    expected = reference.fit_transform(frame.iloc[train])
    np.testing.assert_allclose(dataset.X_train, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([f"name {i}" for i in range(60)], "60 different texts"),
        ([""] * 60, "empty"),
    ],
)
def test_columns_that_are_left_out(write, cells, reason):
    rows = "".join(f"{cell},{i},{'ab'[i % 2]}\n" for i, cell in enumerate(cells))
    table = data.load(write("t,x,label\n" + rows)).table
    assert table.left_out == {"t": reason} and table.n_features == 1
    table = data.load(write("t,x,label\n" + rows), ignore=["t"]).table
    assert table.left_out == {"t": "--ignore"}


def test_an_unnamed_column_that_counts_the_rows_is_left_out(tmp_path):
    frame = pd.DataFrame({"x": np.arange(40) % 7, "label": ["a", "b"] * 20})
    frame.to_csv(tmp_path / "t.csv")
    table = data.load(tmp_path / "t.csv").table
    assert table.left_out == {"Unnamed: 0": "counts the rows"}


def test_categories_that_look_like_numbers(write):
    rows = "".join(f"{['01', '2', '10'][i % 3]},{i},{'ab'[i % 2]}\n" for i in range(60))
    path = write("code,x,label\n" + rows)
    assert data.load(path).table.columns[0].categories is None
    assert data.load(path, categorical=["code"]).table.columns[0].categories == ["01", "10", "2"]


# --- Other tables ------------------------------------------------------------------------------


@pytest.fixture
def fitted(write):
    rng = np.random.default_rng(0)
    rows = [
        [f"{rng.normal():.3f}", "uvw"[i % 3], f"{1e4 * rng.random():.1f}", "ab"[i % 2]] for i in range(50)
    ]
    names = ["p", "q", "r", "label"]
    return names, rows, data.load(write(text(rows, head=names))).table


def features(table, path, **options):
    read = table.read(path, **options)
    return table.transform(read), None if read.labels is None else read.labels.tolist()


def test_columns_are_found_by_name(write, fitted):
    names, rows, table = fitted
    X, labels = features(table, write(text(rows, head=names)))
    for order in ([3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 1]):
        for sep, decimal in ((",", "."), (";", ",")):
            shuffled = [[row[i] for i in order] for row in rows]
            path = write(text(shuffled, sep, [names[i] for i in order], decimal), "shuffled.csv")
            other, found = features(table, path)
            np.testing.assert_array_equal(other, X)
            assert found == (labels if 3 in order else None)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["p", "q"], "missing: 'r'"),
        (["q", "label"], "missing: 'p', 'r'"),
        (["id", "p", "q", "r"], "unknown: 'id'; leave them out with --ignore"),
    ],
)
def test_missing_and_unknown_columns_are_errors(write, fitted, columns, message):
    names, rows, table = fitted
    cells = {**dict(zip(names, rows[0], strict=True)), "id": "7"}
    path = write(text([[cells[name] for name in columns]] * 3, head=columns))
    with pytest.raises(ValueError, match=message):
        table.read(path)
    if "id" in columns:
        X, _ = features(table, path, ignore=["id"])
        assert X.shape == (3, table.n_features)


def test_a_table_without_header_for_a_model_of_named_columns(write, fitted):
    names, rows, table = fitted
    path = write(text(rows, head=None))
    with pytest.raises(ValueError, match="expected a header with the columns of the training data, 'p'"):
        table.read(path)
    X, labels = features(table, path, layout={"header": False})
    np.testing.assert_array_equal(X, features(table, write(text(rows, head=names)))[0])
    assert labels == [row[-1] for row in rows]


def test_columns_without_names_are_found_by_order(write, fitted):
    _, rows, _ = fitted
    table = data.load(write(text(rows, head=None))).table
    X, labels = features(table, write(text(rows, head=None)))
    bare, none = features(table, write(text([row[:-1] for row in rows], head=None)))
    np.testing.assert_array_equal(bare, X)
    assert labels == [row[-1] for row in rows] and none is None
    first = [[row[-1], *row[:-1]] for row in rows]
    np.testing.assert_array_equal(features(table, write(text(first, head=None)), label=0)[0], X)
    with pytest.raises(ValueError, match="expected 4 columns as in the training data, or 3 without the la"):
        table.read(write(text([[*row, "1"] for row in rows], head=None)))


@pytest.mark.parametrize("label", ["1", "x"])
def test_a_table_with_some_of_the_labels(write, label):
    path = write("v,y\n" + "".join(f"{i},{'1x'[i % 2]}\n" for i in range(20)))
    table = data.load(path).table
    read = table.read(write(f"v,y\n1,{label}\n2,{label}\n", "some.csv"))
    assert table.encode(read).tolist() == [["1", "x"].index(label)] * 2
    with pytest.raises(ValueError, match="row 1 of column 'y' is 'z', expected labels among the classes"):
        table.encode(table.read(write("v,y\n1,z\n", "some.csv")))


def test_unknown_and_missing_categories_count_as_none(write, fitted):
    _, _, table = fitted
    read = table.read(write("p,q,r\n1,u,2\n1,new,2\n1,,2\n"))
    assert table.unknown_categories(read) == {"q": ["new"]}
    assert table.transform(read)[:, 1:4].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_na_values_of_the_training_data_apply_to_other_tables(write):
    rows = "".join(f"{-999 if i % 5 == 0 else i},{'ab'[i % 2]}\n" for i in range(40))
    table = data.load(write("x,y\n" + rows), layout=TableFormat(na_values=("-999",))).table
    read = table.read(write("x\n-999\n5\n", "new.csv"))
    assert table.transform(read)[:, 1].tolist() == [1.0, 0.0]


def test_state_is_plain_and_restores_the_preprocessing(write, fitted):
    names, rows, table = fitted
    path = write(text(rows, head=names))
    restored = TablePreprocessor.from_state(json.loads(json.dumps(table.state_dict())))
    assert restored.state_dict() == json.loads(json.dumps(table.state_dict()))
    np.testing.assert_array_equal(features(restored, path)[0], features(table, path)[0])


# --- Validation and test data --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_parts_are_disjoint_and_complete(tmp_path, kind):
    X, y = np.arange(200.0)[:, None], np.arange(200) % 2
    if kind == "npz":
        np.savez(tmp_path / "t.npz", X=X, y=y)
    else:
        pd.DataFrame({"x": X[:, 0], "y": y}).to_csv(tmp_path / "t.csv", index=False)
    dataset = data.load(tmp_path / f"t.{kind}", validation_size=0.1)
    parts = [dataset.X_train, dataset.X_val, dataset.X_test]
    assert [len(part) for part in parts] == [144, 16, 40]
    assert len({*np.concatenate(parts).ravel().tolist()}) == 200
    assert np.bincount(dataset.y_val).tolist() == [8, 8]
    assert data.load(tmp_path / f"t.{kind}").validation_data is None


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_validation_and_test_files(tmp_path, kind):
    rng = np.random.default_rng(0)
    for name, n in (("train", 60), ("val", 20), ("test", 30)):
        X, y = rng.normal(5.0, 2.0, (n, 2)), np.array(["a", "b"])[np.arange(n) % 2]
        if kind == "npz":
            np.savez(tmp_path / f"{name}.npz", X=X, y=y)
        else:
            frame = pd.DataFrame({"p": X[:, 0], "q": X[:, 1], "y": y})
            frame[["p", "q", "y"] if name == "train" else ["y", "q", "p"]].to_csv(
                tmp_path / f"{name}.csv", index=False
            )
    paths = [tmp_path / f"{name}.{kind}" for name in ("train", "val", "test")]
    dataset = data.load(paths[0], validation=paths[1], test=paths[2], validation_size=0.5)
    assert [len(y) for y in (dataset.y_train, dataset.y_val, dataset.y_test)] == [60, 20, 30]
    if kind == "csv":
        np.testing.assert_allclose(dataset.X_train.mean(axis=0), 0.0, atol=1e-6)
        assert abs(dataset.X_test.mean()) < 1.0 and len(dataset.rows_test) == 30


def test_without_pandas_a_table_names_the_extra(write, monkeypatch):
    import sys

    path = write(text(ROWS))
    monkeypatch.setitem(sys.modules, "pandas", None)
    for read in (data.load, data.read, TableReader):
        with pytest.raises(ImportError, match=r"pip install 'fastopt\[data\]'"):
            read(path)
