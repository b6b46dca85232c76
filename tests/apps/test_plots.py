"""Plots of training curves, confusion matrices, range tests and paths, and their errors."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from fastopt.lr_finder import LRFind
from fastopt.nn import History
from fastopt.plots import (
    check_path,
    plot_comparison,
    plot_confusion_matrix,
    plot_history,
    plot_lr_find,
    plot_paths,
)
from fastopt.surfaces import SURFACES

pytest.importorskip("matplotlib")


def history(losses, **others):
    made = History()
    for epoch, loss in enumerate(losses):
        logs = {name: values[epoch] for name, values in others.items()}
        made.record(epoch, {"loss": loss, "seconds": 0.5, **logs})
    return made


def curves(panel):
    return {line.get_label(): line.get_xydata().T.tolist() for line in panel.get_lines()}


def test_history_draws_loss_and_accuracy():
    given = history(
        [2.0, 1.0], val_loss=[2.5, 1.5], accuracy=[0.5, 0.75], val_accuracy=[0.25, 0.5]
    )
    loss, accuracy = plot_history(given).axes
    assert curves(loss) == {"training": [[1, 2], [2, 1]], "validation": [[1, 2], [2.5, 1.5]]}
    assert curves(accuracy) == {"training": [[1, 2], [50, 75]], "validation": [[1, 2], [25, 50]]}
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("Epoch", "Loss (mean per sample)")
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("Epoch", "Accuracy (%)")
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["training", "validation"]


def test_history_without_accuracy_has_one_panel():
    (panel,) = plot_history(history([3.0, 2.0, 1.0])).axes
    assert curves(panel) == {"training": [[1, 2, 3], [3, 2, 1]]}
    assert panel.get_ylim()[0] == 0.0
    assert all(tick == round(tick) for tick in panel.get_xticks())


def test_negative_losses_are_visible():
    (panel,) = plot_history(history([1.0, -2.0])).axes
    assert panel.get_ylim()[0] < -2.0


def test_one_epoch_is_a_visible_point():
    (panel,) = plot_history(history([1.0])).axes
    assert panel.get_lines()[0].get_marker() == "o"


def test_comparison_by_epoch_and_by_time():
    by_epoch, by_time = plot_comparison({"a": history([2.0, 1.0]), "b": history([4.0])}).axes
    assert curves(by_epoch) == {"a": [[1, 2], [2, 1]], "b": [[1], [4]]}
    assert curves(by_time) == {"a": [[0.5, 1.0], [2, 1]], "b": [[0.5], [4]]}
    assert by_epoch.get_ylabel() == "Training loss (mean per sample)"
    assert by_time.get_xlabel() == "Time of the training steps (s)"
    assert [text.get_text() for text in by_time.get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize(
    ("losses", "scale"), [([1.0, 0.01], "log"), ([1.0, -1.0], "linear"), ([1.0, np.nan], "log")]
)
def test_scale_of_the_compared_losses(losses, scale):
    assert plot_comparison({"a": history(losses)}).axes[0].get_yscale() == scale


def test_diverged_run_is_drawn(tmp_path):
    given = {"fine": history([1.0, 0.5]), "diverged": history([1e30, np.inf])}
    plot_comparison(given, tmp_path / "curves.png")
    plot_comparison({"nothing finite": history([np.nan])}, tmp_path / "curves.png")


def test_curves_are_distinguishable():
    figure = plot_comparison({str(i): history([1.0, 0.5]) for i in range(40)})
    looks = {(line.get_color(), str(line._dash_pattern)) for line in figure.axes[0].get_lines()}
    assert len(looks) == 40


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def counts(panel):
    return {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in panel.texts}


def test_confusion_matrix_has_true_classes_in_rows():
    panel, bar = plot_confusion_matrix([[3, 1], [0, 8]], ["ash", "oak"]).axes
    np.testing.assert_array_equal(panel.get_images()[0].get_array(), [[75.0, 25.0], [0.0, 100.0]])
    assert counts(panel) == {(0, 0): "3", (0, 1): "1", (1, 1): "8"}  # no text in empty cells
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("Predicted class", "True class")
    assert ticks(panel.xaxis) == ticks(panel.yaxis) == ["ash", "oak"]
    assert bar.get_ylabel() == "Share of the true class (%)"


def test_counts_are_legible():
    panel = plot_confusion_matrix([[9, 1], [4, 6]]).axes[0]
    colors = {text.get_text(): text.get_color() for text in panel.texts}
    assert colors == {"9": "white", "1": "0.15", "4": "0.15", "6": "white"}


def test_class_without_samples():
    panel = plot_confusion_matrix([[5, 0], [0, 0]]).axes[0]
    np.testing.assert_array_equal(panel.get_images()[0].get_array(), [[100.0, 0.0], [0.0, 0.0]])


def test_many_classes_have_fewer_labels_and_no_counts():
    panel = plot_confusion_matrix(np.eye(200, dtype=int)).axes[0]
    assert not panel.texts
    assert ticks(panel.yaxis) == [str(n) for n in range(0, 200, 4)]


def lr_find_result(loss, smoothed, suggestion):
    lr = 10.0 ** np.arange(-len(loss), 0)
    return LRFind(lr, np.array(loss), np.array(smoothed), suggestion)


def test_range_test_draws_losses_and_suggestion():
    (panel,) = plot_lr_find(lr_find_result([3.0, 1.0, 90.0], [3.0, 2.0, 4.0], 0.01)).axes
    rates = [0.001, 0.01, 0.1]
    assert curves(panel) == {
        "each batch": [rates, [3, 1, 90]],
        "smoothed": [rates, [3, 2, 4]],
        "suggestion 0.01": [[0.01], [2.0]],
    }
    assert panel.get_xscale() == "log" and panel.get_xlabel() == "Learning rate"
    low, high = panel.get_ylim()
    assert low < 2.0 and 4.0 < high < 5.0  # the batch of 90 does not set the scale


def test_range_test_without_suggestion():
    (panel,) = plot_lr_find(lr_find_result([1.0, 1.0], [1.0, 1.0], None)).axes
    assert list(curves(panel)) == ["each batch", "smoothed"]
    low, high = panel.get_ylim()
    assert low < 1.0 < high


def plot_saddle(paths, path=None):
    return plot_paths(SURFACES["saddle"], paths, path)


TWO_PATHS = {
    "long": np.column_stack([np.linspace(-1.3, 0.0, 30), np.linspace(0.1, 1.0, 30)]),
    "short": [[-1.3, 0.1], [-1.0, -0.2], [-0.5, -0.9]],
}


def test_paths_are_drawn_over_contours():
    (panel,) = plot_saddle(TWO_PATHS).axes
    drawn = curves(panel)
    assert drawn["minimum"] == [[0, 0], [1, -1]]
    np.testing.assert_array_equal(drawn["long"], TWO_PATHS["long"].T)
    np.testing.assert_array_equal(drawn["short"], np.transpose(TWO_PATHS["short"]))
    markers = [line for line in panel.get_lines() if line.get_marker() == "o"]
    assert [marker.get_xydata()[0].tolist() for marker in markers] == [[0.0, 1.0], [-0.5, -0.9]]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["minimum", "long", "short"]
    assert (*panel.get_xlim(), *panel.get_ylim()) == SURFACES["saddle"].window
    assert panel.get_title() == "Saddle"


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
def test_contours_are_evenly_spaced_in_the_logarithm(surface):
    (panel,) = plot_paths(surface, {"a": [surface.start]}).axes
    shades, lines = panel.collections
    ratios = np.diff(np.log(lines.levels))
    np.testing.assert_allclose(ratios, ratios[0])
    assert lines.levels[0] > 0 and len(shades.levels) == len(lines.levels) == 15
    high, low = (np.mean(shades.to_rgba(shades.levels[k])) for k in (-1, 0))
    assert high < low  # lower is lighter


def test_overlapping_paths_are_visible():
    figure = plot_saddle({str(i): TWO_PATHS["short"] for i in range(30)})
    lines = [line for line in figure.axes[0].get_lines() if line.get_label().isdigit()]
    widths = [line.get_linewidth() for line in lines]
    assert len(widths) == 30 and widths == sorted(set(widths), reverse=True)
    assert figure.get_size_inches()[1] > 6.0  # room for the legend


def test_animation(tmp_path):
    image = pytest.importorskip("PIL.Image")
    plot_saddle(TWO_PATHS, tmp_path / "paths.gif")
    with image.open(tmp_path / "paths.gif") as animation:
        frames = []
        for k in range(animation.n_frames):
            animation.seek(k)
            frames.append((animation.info["duration"], np.asarray(animation.convert("RGB"), int)))
        assert animation.info["loop"] == 0
    assert len(frames) == 30 and {time for time, _ in frames[:-1]} == {50} and frames[-1][0] == 2000
    grown = [(abs(after - before).sum(axis=2) > 30).sum() for (_, before), (_, after) in pairwise(frames)]
    assert min(grown) > 10                      # every frame changes,
    assert max(grown) < 0.02 * frames[0][1][..., 0].size   # by no more than markers and lines
    colors = {tuple(color) for color in frames[-1][1].reshape(-1, 3).tolist()}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (255, 255, 255)} <= colors  # exact colors


def test_long_animations_skip_steps(tmp_path):
    image = pytest.importorskip("PIL.Image")
    steps = np.linspace(0.0, 1.0, 1001)
    plot_saddle({"a": np.column_stack([steps, steps])}, tmp_path / "paths.gif")
    with image.open(tmp_path / "paths.gif") as animation:
        assert animation.n_frames == 100


@pytest.mark.parametrize(
    ("suffix", "begin"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")]
)
def test_suffix_selects_the_format(tmp_path, suffix, begin):
    for plot, given in (
        (plot_history, history([1.0])),
        (plot_comparison, {"a": history([1.0])}),
        (plot_confusion_matrix, [[1]]),
        (plot_lr_find, lr_find_result([1.0, 0.5], [1.0, 0.75], 0.1)),
        (plot_saddle, TWO_PATHS),
    ):
        path = tmp_path / f"curves{suffix}"
        plot(given, path=path)
        assert path.read_bytes().startswith(begin)
        path.unlink()


@pytest.mark.parametrize(
    ("plot", "given", "message"),
    [
        (plot_history, History(), "history: expected at least one epoch, got none"),
        (plot_comparison, {}, "histories: expected at least one, got none"),
        (plot_comparison, {"a": History()}, "a: expected at least one epoch, got none"),
        (plot_saddle, {}, "paths: expected at least one, got none"),
        (plot_saddle, {"a": [1.0, 2.0]}, r"a: expected finite points, shape \(steps \+ 1, 2\), got \(2,\)"),
        (plot_saddle, {"a": [[1.0, np.nan]]}, r"a: expected finite points"),
        (plot_confusion_matrix, [], r"matrix: expected a square matrix, got shape \(0,\)"),
        (plot_confusion_matrix, [[1, 2]], r"matrix: expected a square matrix, got shape \(1, 2\)"),
        (plot_confusion_matrix, [[0.5]], "matrix: expected counts as integers, got float64"),
        (plot_confusion_matrix, [[-1]], "matrix: expected non-negative counts, got -1"),
    ],
)
def test_invalid_data(tmp_path, plot, given, message):
    with pytest.raises(ValueError, match=message):
        plot(given, path=tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_wrong_number_of_classes():
    with pytest.raises(ValueError, match="classes: expected 2, as many as matrix has rows, got 1"):
        plot_confusion_matrix(np.eye(2, dtype=int), ["ash"])


@pytest.mark.parametrize("name", ["curves", "curves.doc", "png"])
def test_unknown_suffix(tmp_path, name):
    with pytest.raises(ValueError, match=r"path: expected a name that ends in .*\.png"):
        plot_history(history([1.0]), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for call in (
        lambda: plot_history(history([1.0])),
        lambda: plot_confusion_matrix([[1]]),
        lambda: check_path("curves.png"),
        lambda: plot_saddle(TWO_PATHS),
    ):
        with pytest.raises(ImportError, match=r"pip install 'fastopt\[plot\]'"):
            call()


def test_pyplot_is_not_imported(tmp_path):
    code = (
        "import sys, fastopt.plots as p\n"
        "from fastopt.nn import History\n"
        "assert 'matplotlib' not in sys.modules\n"
        "h = History(); h.record(0, {'loss': 1.0, 'seconds': 1.0}); p.plot_history(h)\n"
        "from fastopt.surfaces import SURFACES\n"
        "p.plot_paths(SURFACES['beale'], {'a': [[1, 1], [2, 1]]}, sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "paths.gif"], check=True)


def test_notebooks_display_figures_without_pyplot():
    svg = plot_history(history([2.0, 1.0]))._repr_svg_()
    assert svg.startswith("<?xml") and svg.rstrip().endswith("</svg>")


def test_legends_are_right_of_the_panels():
    figures = {
        "comparison": plot_comparison({"a": history([2.0, 1.0]), "b": history([4.0, 3.0])}),
        "history": plot_history(history([2.0, 1.0], val_loss=[2.5, 1.5])),
        "paths": plot_saddle(TWO_PATHS),
        "range test": plot_lr_find(lr_find_result([1.0, 0.5], [1.0, 0.75], 0.1)),
    }
    for name, figure in figures.items():
        figure.draw_without_rendering()
        panel = figure.axes[-1]
        legend = panel.get_legend().get_window_extent()
        assert panel.get_window_extent().x1 <= legend.x0 < legend.x1 <= figure.bbox.x1, name


TITLED = {
    "history": lambda title: plot_history(history([2.0, 1.0]), title=title),
    "comparison": lambda title: plot_comparison({"a": history([2.0, 1.0])}, title=title),
    "confusion matrix": lambda title: plot_confusion_matrix([[1, 0], [0, 1]], title=title),
    "range test": lambda title: LRFind(
        np.array([0.1, 1.0]), np.array([2.0, 1.0]), np.array([2.0, 1.0]), None
    ).plot(title=title),
}


@pytest.mark.parametrize("name", TITLED)
def test_titles(name, tmp_path):
    """A title is shown as it is, also one that would be a formula."""
    assert TITLED[name]("").get_suptitle() == ""
    figure = TITLED[name]("costs $1 to $2_, adam")
    assert figure.get_suptitle() == "costs $1 to $2_, adam"
    figure.savefig(tmp_path / "title.png")
