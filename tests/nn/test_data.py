"""fastopt.nn.data: valid files are read correctly, damaged files raise errors."""

import gzip
import io
import math
import sys
import zipfile

import numpy as np
import pytest
from files import IDX_CODES, idx_bytes, write, write_idx_folder
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastopt.nn import data

# --- Test files ------------------------------------------------------------------------------


def images_and_labels(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3, 2), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 3


def write_mnist(folder, suffix=".gz", dot="-"):
    """Write 30 training and 12 test images in the published layout."""
    parts = {"train": images_and_labels(30), "t10k": images_and_labels(12, seed=1)}
    write_idx_folder(folder, parts, suffix, dot)
    return parts


# --- Digits ----------------------------------------------------------------------------------


def test_digits():
    X, y = data.load_digits()
    assert X.shape == (1797, 64) and X.dtype == np.float32
    assert X.min() == 0 and X.max() == 1
    assert (np.rint(X * 16) == X * 16).all()
    assert y.dtype == np.int64
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_by_name():
    d = data.load("digits")
    assert d.X_train.shape == (1438, 64) and d.X_test.shape == (359, 64)
    assert d.classes.tolist() == list(range(10))


# --- train_test_split ------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    test_size=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_split_is_a_stratified_partition(counts, test_size, seed):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    X = np.arange(len(y))[:, None]
    n_test = round(len(y) * test_size)
    if not 0 < n_test < len(y):
        with pytest.raises(ValueError, match="leaves one part empty"):
            data.train_test_split(X, y, test_size, seed)
        return
    X_train, X_test, y_train, y_test = data.train_test_split(X, y, test_size, seed)
    assert len(X_test) == n_test
    assert sorted(np.concatenate([X_train, X_test])[:, 0].tolist()) == list(range(len(y)))
    np.testing.assert_array_equal(y_train, y[X_train[:, 0]])
    np.testing.assert_array_equal(y_test, y[X_test[:, 0]])
    for label, count in enumerate(counts):
        share = count * n_test / len(y)
        assert math.floor(share) <= (y_test == label).sum() <= math.ceil(share)


def test_split_is_reproducible():
    X, y = data.load_digits()
    first, again, other = (data.train_test_split(X, y, seed=seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_split_of_values_is_random():
    y = np.arange(1000.0)
    _, _, y_train, y_test = data.train_test_split(y[:, None], y)
    assert len(y_train) == 800 and len(y_test) == 200
    assert 400 < y_test.mean() < 600
    assert len(set(np.diff(y_test))) > 5


@pytest.mark.parametrize("test_size", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_invalid_sizes(test_size):
    with pytest.raises(ValueError, match="test_size"):
        data.train_test_split(np.zeros((9, 1)), np.zeros(9), test_size)


def test_split_refuses_different_lengths():
    with pytest.raises(ValueError, match="y: expected 9 labels"):
        data.train_test_split(np.zeros((9, 1)), np.zeros(8))


# --- IDX -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", IDX_CODES)
def test_read_idx(tmp_path, dtype, compressed):
    array = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)
    content = idx_bytes(array)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content) if compressed else content)
    result = data.read_idx(path)
    assert result.dtype == np.dtype(dtype) and result.flags.writeable
    np.testing.assert_array_equal(result, array)


IDX = idx_bytes(np.arange(24, dtype="i4").reshape(4, 6))
GZIPPED_IDX = gzip.compress(IDX, mtime=0)   # without the time, which would be part of the tests' names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\x01" + IDX[1:], "not an IDX file, it begins with '01 00 0c 02'"),
        (b"\0\0\x0a" + IDX[3:], "not an IDX file"),
        (IDX[:9], "truncated in the header"),
        (IDX[:-1], r"shape \(4, 6\) needs 96 bytes of values, the file holds 95"),
        (IDX + b"\0", "the file holds 97"),
        (IDX[:4] + b"\xff" * 8 + IDX[12:], "truncated or damaged"),
        (GZIPPED_IDX[:-9], "damaged gzip"),
        (GZIPPED_IDX[:30] + b"??" + GZIPPED_IDX[32:], "damaged gzip"),
        (gzip.compress(IDX[:-1], mtime=0), "holds 95"),
    ],
)
def test_read_idx_refuses_damaged_files(tmp_path, content, message):
    path = tmp_path / "bad-idx2"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        data.read_idx(path)
    assert str(path) in str(error.value)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=64), as_idx=st.booleans())
def test_read_idx_raises_only_value_errors(tmp_path_factory, content, as_idx):
    path = tmp_path_factory.mktemp("idx") / "f"
    path.write_bytes(b"\0\0\x08" * as_idx + content)
    try:
        assert isinstance(data.read_idx(path), np.ndarray)
    except ValueError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dot", ["-", "."])
def test_mnist_folder(tmp_path, suffix, dot):
    parts = write_mnist(tmp_path, suffix, dot)
    arrays = data.read_idx_folder(tmp_path)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        np.testing.assert_array_equal(arrays[f"X_{part}"], parts[prefix][0])
        np.testing.assert_array_equal(arrays[f"y_{part}"], parts[prefix][1])
    d = data.load(tmp_path)
    assert d.X_train.shape == (30, 6) and d.X_train.dtype == np.float32
    np.testing.assert_array_equal(
        d.X_test, parts["t10k"][0].reshape(12, 6).astype(np.float32) / np.float32(255)
    )
    np.testing.assert_array_equal(d.y_test, parts["t10k"][1])
    assert d.y_train.dtype == np.int64 and d.classes.tolist() == [0, 1, 2]


def move_into_folders(folder):
    """Each file in a folder of its own name, without the suffix of an archive."""
    for file in [path for path in folder.iterdir() if path.is_file()]:
        content, target = file.read_bytes(), folder / file.name.replace(".idx", "-idx")
        file.unlink()
        target.mkdir()
        (target / target.name).write_bytes(content)


def folders(folder):
    write_mnist(folder, "")
    move_into_folders(folder)


def folders_next_to_files_with_dots(folder):
    folders(folder)
    write_mnist(folder, "", ".")


def files_next_to_archives(folder):
    write_mnist(folder, ".gz")
    write_mnist(folder, "")


def raw(folder):
    (folder / "raw").mkdir()
    files_next_to_archives(folder / "raw")


def root_of_torchvision(folder):
    (folder / "MNIST").mkdir()
    raw(folder / "MNIST")


def plain_next_to_emnist(folder):
    write_mnist(folder, "")
    write_emnist(folder, "letters")


LAYOUTS = [folders, folders_next_to_files_with_dots, files_next_to_archives, raw, root_of_torchvision,
           plain_next_to_emnist]


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_layouts_of_idx_folders(tmp_path, make):
    make(tmp_path)
    arrays = data.read_idx_folder(tmp_path)
    for part, (X, y) in (("train", images_and_labels(30)), ("test", images_and_labels(12, seed=1))):
        np.testing.assert_array_equal(arrays[f"X_{part}"], X)
        np.testing.assert_array_equal(arrays[f"y_{part}"], y)
    assert data.load(tmp_path).X_test.shape == (12, 6)


def write_emnist(folder, *names):
    for seed, name in enumerate(names):
        parts = {"train": images_and_labels(30, 2 * seed), "test": images_and_labels(12, 2 * seed + 1)}
        write_idx_folder(folder, {f"emnist-{name}-{part}": pair for part, pair in parts.items()})


def test_emnist_has_several_data_sets_in_one_folder(tmp_path):
    write_emnist(tmp_path, "letters")
    np.testing.assert_array_equal(data.read_idx_folder(tmp_path)["X_train"], images_and_labels(30)[0])
    write_emnist(tmp_path, "letters", "digits")
    with pytest.raises(ValueError, match=r"found several; choose one of .*emnist-digits, .*emnist-letters$"):
        data.load(tmp_path)
    arrays = data.read_idx_folder(tmp_path / "emnist-digits")
    np.testing.assert_array_equal(arrays["X_test"], images_and_labels(12, 3)[0])
    assert data.load(tmp_path / "emnist-digits").X_train.shape == (30, 6)


def test_several_folders_of_torchvision(tmp_path):
    for name in ("FashionMNIST", "MNIST"):
        (tmp_path / name).mkdir()
        raw(tmp_path / name)
    with pytest.raises(ValueError, match=r"found several; choose one of .*FashionMNIST.raw, .*MNIST.raw$"):
        data.load(tmp_path)
    assert data.load(tmp_path / "MNIST").X_train.shape == (30, 6)


def test_mnist_folder_with_a_missing_file(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte .* is missing"):
        data.load(tmp_path)


def test_images_with_matching_labels(tmp_path):
    (X, y), _ = write_mnist(tmp_path).values()
    d = data.load(tmp_path / "train-images-idx3-ubyte.gz", test_size=0.5)
    assert len(d.X_train) == len(d.X_test) == 15
    assert np.bincount(d.y_train).tolist() == [5, 5, 5]
    pair = data.read_idx_pair(*(tmp_path / f"train-{n}-ubyte.gz" for n in NAMES))
    np.testing.assert_array_equal(pair[0], X)
    np.testing.assert_array_equal(pair[1], y)


NAMES = ("images-idx3", "labels-idx1")


def test_images_without_labels(tmp_path):
    write(tmp_path / "train-images-idx3-ubyte", idx_bytes(images_and_labels(3)[0]))
    with pytest.raises(ValueError, match="the matching file of labels is missing"):
        data.load(tmp_path / "train-images-idx3-ubyte")


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.zeros((3, 2, 2), "u1"), np.zeros(4, "u1"), "has 3 rows, .* has 4"),
        (np.zeros((3, 2, 2), "u1"), np.zeros((3, 1), "u1"), "expected a vector of labels"),
        (np.zeros((0, 2, 2), "u1"), np.zeros(0, "u1"), "empty"),
        (np.zeros(3, "u1"), np.zeros(3, "u1"), "dimensions"),
    ],
)
def test_images_and_labels_that_do_not_match(tmp_path, X, y, message):
    paths = [write(tmp_path / name, idx_bytes(a)) for name, a in zip(NAMES, (X, y), strict=True)]
    with pytest.raises(ValueError, match=message) as error:
        data.read_idx_pair(*paths)
    assert str(tmp_path) in str(error.value)


# --- NPZ -------------------------------------------------------------------------------------


def test_npz_without_split(tmp_path):
    X, y = np.random.default_rng(0).standard_normal((20, 3)), np.repeat([7, 9], 10)
    np.savez(tmp_path / "d.npz", X=X, y=y, extra=np.zeros(3))
    assert set(data.read_npz(tmp_path / "d.npz")) == {"X", "y"}
    d = data.load(tmp_path / "d.npz", test_size=0.3)
    assert d.X_train.shape == (14, 3) and d.X_test.shape == (6, 3)
    assert d.classes.tolist() == [7, 9] and np.bincount(d.y_test).tolist() == [3, 3]
    assert {tuple(row) for row in X.astype(np.float32)} == {
        tuple(row) for row in np.concatenate([d.X_train, d.X_test])
    }


def test_npz_with_split(tmp_path):
    (X, y), (X_test, y_test) = images_and_labels(30), images_and_labels(12, 1)
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, x_train=X, y_train=y, x_test=X_test, y_test=y_test)
    d = data.load(path)
    assert d.X_train.shape == (30, 6) and d.X_train.max() <= 1
    np.testing.assert_array_equal(d.y_test, y_test)


def test_npz_of_values_is_a_regression(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, X=np.ones((10, 2), np.uint8), y=np.arange(10.0))
    d = data.load(path)
    assert d.classes is None and d.y_train.dtype == np.float32
    assert (d.X_train == np.float32(1) / np.float32(255)).all()
    assert (data.load(path, scale=2).X_train == 0.5).all()
    assert data.load(path, task="classification").classes.tolist() == list(range(10))


def test_npz_with_classes_named_by_strings_and_labels_in_a_column(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, X=np.ones((10, 2)), y=np.array(["dog", "cat"] * 5)[:, None])
    d = data.load(path)
    assert d.classes.tolist() == ["cat", "dog"] and d.y_train.dtype == np.int64
    with pytest.raises(ValueError, match="expected numeric labels"):
        data.load(path, task="regression")


def npz_bytes(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def zip_of_text():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("X.npy", "no array")
    return file.getvalue()


NOT_NPZ = r"damaged, or not an \.npz file of plain arrays$"
GOOD_NPZ = npz_bytes(X=np.ones((4, 3)), y=np.arange(4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", NOT_NPZ),
        (b"hello, world", NOT_NPZ),
        (GOOD_NPZ[:200], NOT_NPZ),
        (GOOD_NPZ[:-10], NOT_NPZ),
        (GOOD_NPZ.replace(b"\0\0\xf0?", b"\0\1\xf0?", 1), NOT_NPZ),  # fails its checksum
        (npz_bytes(y=np.ones((4, 3))), "expected the arrays X and y, .*; found y"),
        (npz_bytes(X=np.ones((4, 3))), "expected labels, got features only"),
        (npz_bytes(), "found none"),
        (npz_bytes(X_train=np.ones((4, 3)), y_train=np.ones(4)), "expected the arrays"),
        (npz_bytes(X=np.ones((4, 3)), y=np.ones(5)), "X has 4 rows, y has 5"),
        (npz_bytes(X=np.ones((0, 3)), y=np.ones(0)), "X is empty"),
        (npz_bytes(X=np.ones((3, 0)), y=np.ones(3)), "X is empty"),
        (npz_bytes(X=np.ones(4), y=np.ones(4)), "at least two dimensions"),
        (npz_bytes(X=np.ones((4, 3)), y=np.ones(())), "X has 4 rows, y has 0"),
        (npz_bytes(X=np.ones((4, 3)), y=np.array([{}, 1, 2, 3])), NOT_NPZ),
        (zip_of_text(), NOT_NPZ),
        (npz_bytes(X=np.full((4, 3), np.nan), y=np.arange(4)), "features hold NaN or Inf: sample 0, feature"),
        (
            npz_bytes(X=np.diag([1.0, 2.0, -1e40, 1.0]), y=np.arange(4)),
            r"features hold -1e\+40, which is too large for float32: sample 2, feature 2",
        ),
        (npz_bytes(X=np.ones((4, 3)), y=np.full(4, np.inf)), "labels hold NaN"),
        (npz_bytes(X=np.full((4, 3), "a"), y=np.arange(4)), "features that are real numbers"),
        (npz_bytes(X=np.ones((4, 3)), y=np.eye(4, dtype=int)), "one label per sample"),
        (
            npz_bytes(
                X_train=np.ones((4, 3)),
                y_train=np.arange(4),
                X_test=np.ones((4, 2)),
                y_test=[1] * 4,
            ),
            "X_train has 3 features, X_test 2",
        ),
    ],
)
def test_npz_refused(tmp_path, content, message):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        data.load(path)
    assert str(path) in str(error.value)


def test_npy_is_not_npz(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match=NOT_NPZ):
        data.read_npz(tmp_path / "a.npy")


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, len(GOOD_NPZ) - 1), flip=st.integers(1, 255))
@example(place=GOOD_NPZ.index(b"PK\1\2") + 31, flip=1)  # the first entry swallows the second
def test_npz_with_a_damaged_byte_is_read_correctly_or_refused(tmp_path_factory, place, flip):
    content = bytearray(GOOD_NPZ)
    content[place] ^= flip
    path = tmp_path_factory.mktemp("npz") / "d.npz"
    path.write_bytes(content)
    try:
        arrays = data.read_npz(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        np.testing.assert_array_equal(arrays["X"], np.ones((4, 3)))
        np.testing.assert_array_equal(arrays["y"], np.arange(4))


# --- CSV -------------------------------------------------------------------------------------


ROWS = "".join(f"{i},{i / 4},{'ab'[i % 2]}\n" for i in range(10))


@pytest.fixture
def csv(tmp_path):
    pytest.importorskip("pandas")
    return lambda text, name="t.csv": write(tmp_path / name, text)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("head", ["", "x1,x2,kind\n"])
def test_csv(csv, head, name):
    X, y = data.read_csv(csv(head + ROWS, name))
    np.testing.assert_array_equal(X, [[i, i / 4] for i in range(10)])
    assert X.dtype == np.float64
    assert y.tolist() == list("ab" * 5) and y.dtype.kind == "U"
    d = data.load(csv(head + ROWS, name))
    assert d.classes.tolist() == ["a", "b"] and d.table.named == bool(head)
    assert np.bincount(d.y_test).tolist() == [1, 1] and d.X_train.shape == (8, 2)


@pytest.mark.parametrize("label", ["kind", 1, -2])
def test_csv_label_by_name_or_index(csv, label):
    X, y = data.read_csv(csv("x1,kind,x2\n1,5,2\n3,6,4\n"), label=label)
    assert X.tolist() == [[1, 2], [3, 4]]
    assert y.tolist() == [5, 6] and y.dtype == np.int64


@pytest.mark.parametrize(
    "options", [{"label": None}, {"features": 3}, {"features": 3, "label": 0}], ids=str
)
def test_csv_without_labels(csv, options):
    X, y = data.read_csv(csv("x1,x2,x3\n1,2,3\n4,5,6\n"), **options)
    assert X.tolist() == [[1, 2, 3], [4, 5, 6]] and y is None
    X, y = data.read_csv(csv("1\n2\n"), label=None)
    assert X.tolist() == [[1], [2]] and y is None


def test_csv_of_more_columns_than_features_has_labels(csv):
    X, y = data.read_csv(csv("1,2,5\n3,4,6\n"), features=2)
    assert X.tolist() == [[1, 2], [3, 4]] and y.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("header", "rows"), [("auto", 2), (True, 1), (False, 2)], ids=["auto", "yes", "no"]
)
def test_csv_header_of_numeric_tables(csv, header, rows):
    X, y = data.read_csv(csv("1,2\n3,4.5\n"), header=header)
    assert X.shape == (rows, 1) and y.dtype == np.float64


def test_csv_is_scaled_only_on_request(csv):
    path = csv("0,255,1\n51,0,2\n255,102,1\n1,2,2\n")
    [(X, _)], [(scaled, _)] = data.read(path), data.read(path, scale=255)
    assert X.max() == 255
    np.testing.assert_array_equal(scaled, X / np.float32(255))
    with pytest.raises(ValueError, match="scale: expected None for a table"):
        data.load(path, scale=255)


def test_csv_labels_like_na_are_labels(csv):
    _, y = data.read_csv(csv("1,2,NA\n3,4,None\n"))
    assert y.tolist() == ["NA", "None"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "not a valid CSV"),
        ("a,b\n", {}, "not a valid CSV"),
        ("1\n2\n", {}, "found one column"),
        ("1,2,3\n4,5,6,7\n", {}, "not a valid CSV"),
        ("a,b,c\n1,2,3\n4,5,6,7\n", {}, "not a valid CSV"),
        ("a,b\n1,2,3\n4,5,6\n", {}, "not a valid CSV"),
        ("1,2,3\n4,5\n", {}, "row 2 of column '2' is missing"),
        ("1,2,3\n4,5\n", {"label": 0}, "row 2 of column '2' is missing"),
        ("a,b,c\n1,2,3\n4,,6\n", {}, "row 2 of column 'b' is missing"),
        ("a,b,c\n1,2,3\n4,x,6\n", {}, "row 2 of column 'b' is 'x', which is not a finite number"),
        ("a,b,c\n1,2,3\n4,NA,6\n", {}, "row 2 of column 'b' is missing"),
        ("a,b,c\n1,inf,3\n4,5,6\n", {}, "row 1 of column 'b' is 'inf', which is not a finite number"),
        ("a,b,c\n1,2,3.5\n4,5,inf\n", {}, "row 2 of column 'c' is 'inf', which is not a finite"),
        ("a,b\n1,2\n", {"label": "z"}, "label: no column 'z'; expected one of a, b"),
        ("a,b\n1,2\n", {"label": 2}, "label=2 is not one of the 2 columns"),
        ("a,b\n1,x\n", {"label": None}, "row 1 of column 'b' is 'x', which is not a finite number"),
        ("a,b\n1,x\n", {"features": 2}, "row 1 of column 'b' is 'x', which is not a finite number"),
        ("a,b\n1,2\n", {"header": "yes"}, "header: expected one of True, False, auto"),
        (b"a,b\n\xff\xfe,2\n", {}, "not a valid CSV"),
        ('a,b\n1,"2\n', {}, "not a valid CSV"),
    ],
)
def test_csv_refused(csv, text, options, message):
    path = csv(text)
    with pytest.raises(ValueError, match=message) as error:
        data.read_csv(path, **options)
    assert str(path) in str(error.value) or "header" in options


def test_csv_refuses_a_label_that_is_not_an_index(csv):
    with pytest.raises(TypeError, match=r"label: expected a column name or an index, got 1\.5"):
        data.read_csv(csv(ROWS), label=1.5)


def test_csv_truncated_gzip(csv):
    path = csv(ROWS * 100, "t.csv.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a valid CSV"):
        data.read_csv(path)


def test_csv_without_pandas(csv, monkeypatch):
    path = csv(ROWS)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'fastopt\[data\]'"):
        data.read_csv(path)


# --- load and read ---------------------------------------------------------------------------


def test_read_returns_the_parts_in_file_order(tmp_path, csv):
    written = write_mnist(tmp_path)
    for (X, y), (pixels, labels) in zip(data.read(tmp_path), written.values(), strict=True):
        np.testing.assert_array_equal(X, pixels.reshape(len(pixels), 6) / np.float32(255))
        np.testing.assert_array_equal(y, labels)
    [(X, y)] = data.read(csv("1,2,b\n3,4,a\n"), scale=2)
    assert X.dtype == np.float32 and X.tolist() == [[0.5, 1], [1.5, 2]] and y.tolist() == ["b", "a"]
    [(X, y)] = data.read("digits")
    assert X.shape == (1797, 64) and y.shape == (1797,)


def test_read_without_labels(tmp_path, csv):
    np.savez(tmp_path / "d.npz", X=np.ones((4, 3, 2)))
    [(X, y)] = data.read(tmp_path / "d.npz")
    assert X.shape == (4, 6) and y is None
    table = csv("1,2\n3,4\n")
    for options in ({"label": None}, {"features": 2}):
        [(X, y)] = data.read(table, **options)
        assert X.tolist() == [[1, 2], [3, 4]] and y is None
    with pytest.raises(ValueError, match="expected features and a label column"):
        data.load(table, label=None)


@pytest.mark.parametrize("name", ["absent.csv", "absent.npz", "absent", "absent-idx3-ubyte"])
def test_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        data.load(tmp_path / name)


@pytest.mark.parametrize("read", [data.read_idx, data.read_npz, data.read_csv])
def test_missing_file_of_each_reader(tmp_path, read):
    if read is data.read_csv:
        pytest.importorskip("pandas")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent")


def test_unknown_format(tmp_path):
    with pytest.raises(ValueError, match="unknown format"):
        data.load(write(tmp_path / "data.xlsx", "x"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"task": "ranking"}, "task"), ({"scale": 0}, "scale"), ({"scale": math.inf}, "scale")],
)
def test_load_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits", **options)
