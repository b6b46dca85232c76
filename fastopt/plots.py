"""Plots of training curves, confusion matrices, range tests and paths. Needs matplotlib (extra ``plot``).

Figures are created without pyplot, so they need no display, change no global state, and are freed when they
are no longer referenced. A notebook shows the returned figure.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _typeshed import StrPath
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from numpy.typing import ArrayLike, NDArray

    from fastopt._core.typing import AnyArray, Array
    from fastopt.nn.history import History
    from fastopt.nn.typing import LRFindResult
    from fastopt.surfaces import Surface

__all__ = [
    "check_path", "plot_comparison", "plot_confusion_matrix", "plot_history", "plot_lr_find", "plot_paths",
]

# The colors of Okabe and Ito, "Color universal design", 2008, which color-blind readers can distinguish,
# without yellow, which is too faint on white, and without black, which is the color of the text.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# Dashes distinguish curves in grayscale. Six colors and seven dashes repeat only after 42 curves.
_DASHES = (
    "-", (0, (6, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (6, 2, 1, 2, 1, 2)), (0, (10, 2)),
)
_DPI = 150
_MAX_COUNTS = 24    # with more classes, counts in the cells are too small to read
_MAX_LABELS = 60    # with more classes, only every n-th label is shown
# Animations: number of frames, and milliseconds per frame and for the last one.
_MAX_FRAMES, _FRAME_TIME, _LAST_FRAME_TIME = 100, 50, 2000
_ANIMATION_DPI = 100


def plot_history(history: History, path: StrPath | None = None, *, title: str = "") -> Figure:
    """Plot the loss and, for a classification, the accuracy of a training run against epochs.

    Parameters
    ----------
    history : fastopt.History
        History of at least one epoch.
    path : str or path-like, optional
        File to write. Its suffix selects the format: ``.png``, ``.pdf``, ``.svg``, ...
    title : str, default ""
        Title of the figure, such as the names of data set and optimizer.

    Returns
    -------
    matplotlib.figure.Figure
    """
    _check_histories({"history": history})
    quantities = [("loss", "Loss (mean per sample)", 1.0), ("accuracy", "Accuracy (%)", 100.0)]
    shown = [q for q in quantities if {q[0], "val_" + q[0]} & history.history.keys()]
    figure, panels = _figure(len(shown), path)
    for panel, (name, label, unit) in zip(panels, shown, strict=True):
        for index, (key, part) in enumerate([(name, "training"), ("val_" + name, "validation")]):
            if key in history.history:
                values = unit * np.asarray(history.history[key])
                _draw(panel, np.asarray(history.epoch) + 1, values, index, part)
        _label_epochs(panel, label)
        panel.set_title(name.title())
    panels[0].set_ylim(bottom=min(0.0, panels[0].get_ylim()[0]))
    _add_legend(panels[-1])
    return _finish(figure, path, title)


def plot_comparison(
    histories: Mapping[str, History], path: StrPath | None = None, *, title: str = ""
) -> Figure:
    """Plot the training losses of several training runs against epochs and against seconds.

    Parameters
    ----------
    histories : dict of fastopt.History
        Histories of at least one epoch each, by name. Their seconds exclude the time of evaluation.
    path : str or path-like, optional
        File to write. Its suffix selects the format: ``.png``, ``.pdf``, ``.svg``, ...
    title : str, default ""
        Title of the figure, such as the names of data set and optimizer.

    Returns
    -------
    matplotlib.figure.Figure
    """
    _check_histories(histories)
    figure, (by_epoch, by_time) = _figure(2, path, sharey=True)
    for index, (name, history) in enumerate(histories.items()):
        loss = np.asarray(history.history["loss"])
        _draw(by_epoch, np.asarray(history.epoch) + 1, loss, index, name)
        _draw(by_time, np.cumsum(history.history["seconds"]), loss, index, name)
    _label_epochs(by_epoch, "Training loss (mean per sample)")
    _label(by_time, "Time of the training steps (s)")
    by_time.set_xlim(left=0.0)
    _scale_losses(by_epoch)
    _add_legend(by_time)
    return _finish(figure, path, title)


def plot_confusion_matrix(
    matrix: ArrayLike, classes: Sequence[object] | AnyArray | None = None, path: StrPath | None = None, *,
    title: str = "",
) -> Figure:
    """Plot a confusion matrix.

    The text in the cells is the number of samples. The shade is the fraction of the samples of the true
    class, so that rare classes are as visible as common ones.

    Parameters
    ----------
    matrix : array_like of int, shape (n, n)
        Counts with one row per true class and one column per predicted class, as returned by
        `fastopt.nn.metrics.confusion_matrix`.
    classes : sequence of length n, optional
        Labels; by default 0 to n - 1.
    path : str or path-like, optional
        File to write. Its suffix selects the format: ``.png``, ``.pdf``, ``.svg``, ...
    title : str, default ""
        Title of the figure, such as the names of data set and optimizer.

    Returns
    -------
    matplotlib.figure.Figure
    """
    counts = _check_confusion_matrix(matrix)
    n = len(counts)
    labels = [str(label) for label in (range(n) if classes is None else classes)]
    if len(labels) != n:
        raise ValueError(f"classes: expected {n}, as many as matrix has rows, got {len(labels)}")
    figure, (panel,) = _figure(1, path)
    side = min(max(4.8, 0.5 * n + 1.6), 12.0)
    figure.set_size_inches(side + 0.8, side)
    percent = 100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = panel.imshow(percent, cmap="Blues", vmin=0.0, vmax=100.0)
    figure.colorbar(image, ax=panel, shrink=0.8, label="Share of the true class (%)")
    panel.set(xlabel="Predicted class", ylabel="True class")
    _label_classes(panel, labels)
    if n <= _MAX_COUNTS:
        for row, column in np.argwhere(counts):
            color = "white" if percent[row, column] > 55.0 else "0.15"
            panel.text(column, row, str(counts[row, column]), ha="center", va="center", color=color)
    return _finish(figure, path, title)


def plot_lr_find(found: LRFindResult, path: StrPath | None = None, *, title: str = "") -> Figure:
    """Plot the losses of a learning-rate range test against the learning rates.

    Parameters
    ----------
    found : fastopt.lr_finder.LRFind
        Result of `fastopt.lr_find`.
    path : str or path-like, optional
        File to write. Its suffix selects the format: ``.png``, ``.pdf``, ``.svg``, ...
    title : str, default ""
        Title of the figure, such as the names of data set and optimizer.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, (panel,) = _figure(1, path)
    panel.plot(found.lr, found.loss, color="0.6", linewidth=1.0, label="each batch")
    _draw(panel, found.lr, found.smoothed, 0, "smoothed")
    if found.suggestion is not None:
        loss = np.interp(found.suggestion, found.lr, found.smoothed)
        label = f"suggestion {found.suggestion:.2g}"
        panel.plot([found.suggestion], [loss], "o", color=_COLORS[1], label=label)
    panel.set_xscale("log")
    # The losses of the last batches, which have diverged, must not determine the scale.
    low, high = found.smoothed.min(), found.smoothed.max()
    margin = 0.05 * (high - low) or 1.0
    panel.set_ylim(low - margin, high + margin)
    _label(panel, "Learning rate", "Loss (mean per sample)")
    _add_legend(panel)
    return _finish(figure, path, title)


def plot_paths(surface: Surface, paths: Mapping[str, ArrayLike], path: StrPath | None = None) -> Figure:
    """Plot the paths of optimizers over the contours of a function of two variables.

    Contours are spaced evenly in the logarithm of the value above the minimum.

    Parameters
    ----------
    surface : fastopt.surfaces.Surface
    paths : dict of array_like, shape (steps + 1, 2)
        Finite points by optimizer name, beginning with the starting point, as returned by
        `fastopt.surfaces.descend`.
    path : str or path-like, optional
        File to write. Its suffix selects the format: ``.png``, ``.pdf``, ``.svg``, ...; ``.gif`` is an
        animation of the steps.

    Returns
    -------
    matplotlib.figure.Figure
    """
    arrays = _check_paths(paths)
    figure, (panel,) = _figure(1, path, moving=True)
    figure.set_size_inches(7.2, max(5.0, 0.21 * len(arrays) + 1.0))     # the legend grows
    _draw_contours(panel, surface)
    artists = [_draw_path(panel, *item, index, len(arrays)) for index, item in enumerate(arrays.items())]
    _add_legend(panel)
    if path is None or Path(path).suffix.lower() != ".gif":
        return _finish(figure, path)
    _animate(figure, panel, artists, list(arrays.values()), path)
    return figure


def check_path(path: StrPath, argument: str = "path", moving: bool = False) -> None:
    """Raise if matplotlib is not installed, or does not support the suffix of a path.

    Parameters
    ----------
    path : str or path-like
    argument : str, default "path"
        Name of the argument in error messages.
    moving : bool, default False
        Whether ``.gif`` is supported, for animations.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    known = {*make_figure().canvas.get_supported_filetypes(), *(["gif"] if moving else [])}
    if suffix not in known:
        raise ValueError(f"{argument}: expected a name that ends in .{', .'.join(sorted(known))}; got {path}")


def make_figure(**options: Any) -> Figure:
    """Return an empty figure, or raise ImportError if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ImportError("plotting needs matplotlib: pip install 'fastopt[plot]'") from None
    from fastopt._figure import NotebookFigure

    return NotebookFigure(layout="constrained", **options)


def _check_histories(histories: Mapping[str, History]) -> None:
    if not histories:
        raise ValueError("histories: expected at least one, got none")
    for name, history in histories.items():
        if not history.epoch:
            raise ValueError(f"{name}: expected at least one epoch, got none")


def _check_confusion_matrix(matrix: ArrayLike) -> NDArray[np.integer[Any]]:
    counts = np.asarray(matrix)
    if counts.ndim != 2 or len(counts) == 0 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"matrix: expected a square matrix, got shape {counts.shape}")
    if counts.dtype.kind not in "iu":
        raise ValueError(f"matrix: expected counts as integers, got {counts.dtype}")
    if counts.min() < 0:
        raise ValueError(f"matrix: expected non-negative counts, got {counts.min()}")
    return counts


def _label_classes(panel: Axes, labels: list[str]) -> None:
    """Label both axes; rotate long labels of the x axis, and omit some if there are many classes."""
    ticks = range(0, len(labels), -(-len(labels) // _MAX_LABELS))
    shown = [labels[tick] for tick in ticks]
    is_long = max(map(len, shown)) * len(shown) > 48
    panel.set_xticks(ticks, shown, rotation=90 if is_long else 0)
    panel.set_yticks(ticks, shown)
    panel.tick_params(length=0)
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)


def _figure(
    columns: int, path: StrPath | None, moving: bool = False, **options: Any
) -> tuple[Figure, list[Axes]]:
    if path is not None:
        check_path(path, moving=moving)
    figure = make_figure(figsize=(4.4 * columns + 1.2, 3.8))       # and a legend
    return figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def _draw(panel: Axes, x: AnyArray, y: AnyArray, index: int, name: str) -> None:
    """Draw a curve; its index selects color and dashes."""
    color, dashes = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
    marker = "o" if len(x) == 1 else None  # a line through a single point is invisible
    panel.plot(x, y, color=color, linestyle=dashes, linewidth=1.8, marker=marker, label=name)


def _label(panel: Axes, x: str, y: str = "") -> None:
    panel.set(xlabel=x, ylabel=y)
    panel.grid(color="0.5", alpha=0.25, linewidth=0.8)      # visible on light and on dark backgrounds
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _add_legend(panel: Axes) -> None:
    """Add a legend to the right of a panel, where it covers no curve."""
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _label_epochs(panel: Axes, y: str) -> None:
    """Label the axes, with ticks at integers only."""
    from matplotlib.ticker import MaxNLocator

    _label(panel, "Epoch", y)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _scale_losses(panel: Axes) -> None:
    """Use a logarithmic scale if all losses are positive, so that small losses are visible."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = np.concatenate([line.get_ydata() for line in panel.get_lines()])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0.0:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())


def _check_paths(paths: Mapping[str, ArrayLike]) -> dict[str, Array]:
    if not paths:
        raise ValueError("paths: expected at least one, got none")
    checked = {name: np.asarray(points, float) for name, points in paths.items()}
    for name, points in checked.items():
        if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0 or not np.isfinite(points).all():
            raise ValueError(f"{name}: expected finite points, shape (steps + 1, 2), got {points.shape}")
    return checked


def _draw_contours(panel: Axes, surface: Surface) -> None:
    """Draw contours in light grays, on which colored paths are visible, and mark the minima."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    left, right, bottom, top = surface.window
    x, y = np.meshgrid(np.linspace(left, right, 241), np.linspace(bottom, top, 241))
    heights = surface.value(x, y) - surface.least
    lowest, highest = np.quantile(heights, 0.002), heights.max()
    levels = np.geomspace(lowest, highest, 15)
    grays = LinearSegmentedColormap.from_list("heights", ["1.0", "0.72"])
    norm = LogNorm(lowest, highest)
    clipped = np.clip(heights, lowest, highest)
    panel.contourf(x, y, clipped, levels=levels, cmap=grays, norm=norm).set_rasterized(True)
    lines = panel.contour(x, y, heights, levels=levels, colors="0.6", linewidths=0.4)
    lines.set_rasterized(True)      # as curves they would make an SVG file several times as large
    panel.grid(visible=False)
    stars: dict[str, Any] = {"color": "black", "markeredgecolor": "white", "markersize": 15, "zorder": 4}
    panel.plot(*np.transpose(surface.minima), "*", linestyle="none", label="minimum", **stars)
    panel.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y", title=surface.name.capitalize())


def _draw_path(panel: Axes, name: str, points: Array, index: int, count: int) -> tuple[Line2D, Line2D]:
    """Draw one of `count` paths, and a marker at its last point; return both artists."""
    color, dashes = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
    width = 1.4 + 2.0 * (1.0 - (index + 1) / count)     # lines below are wider, and thus visible
    (line,) = panel.plot(*points.T, color=color, linestyle=dashes, linewidth=width, label=name, zorder=3)
    (marker,) = panel.plot(*points[-1:].T, "o", color=color, markeredgecolor="white", markersize=7, zorder=5)
    return line, marker


def _animate(
    figure: Figure, panel: Axes, artists: list[tuple[Line2D, Line2D]], paths: list[Array], path: StrPath
) -> None:
    """Write an animation that extends the drawn paths step by step.

    The contours are drawn once, and all frames share one palette. matplotlib's PillowWriter would draw the
    figure twice per frame and select a palette per frame: six times slower, with other colors.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(_ANIMATION_DPI)
    canvas = FigureCanvasAgg(figure)
    for artist in chain(*artists):
        artist.set_animated(True)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    palette = Image.new("P", (1, 1))
    palette.putpalette(_palette())
    longest = max(map(len, paths))
    frames = []
    for count in np.unique(np.linspace(1, longest, min(longest, _MAX_FRAMES)).round().astype(int)):
        canvas.restore_region(background)
        for (line, marker), points in zip(artists, paths, strict=True):
            line.set_data(*points[:count].T)
            marker.set_data(*points[:count][-1:].T)
            panel.draw_artist(line)
            panel.draw_artist(marker)
        frame = Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB")
        frames.append(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    durations = [_FRAME_TIME] * (len(frames) - 1) + [_LAST_FRAME_TIME]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _palette() -> bytes:
    """Return a palette with the grays, and with the colors of the paths and of their antialiased edges."""
    from matplotlib.colors import to_rgb

    # Pillow compares colors with five or six bits. There is no gray near white that it could confuse with it.
    grays = np.append(np.linspace(0.0, 0.96, 127), 1.0)[:, None] * np.ones(3)
    weights = np.linspace(1.0, 0.0, 7, endpoint=False)[:, None]
    edges = [
        weights * np.array(to_rgb(color)) + (1.0 - weights) * background
        for color in _COLORS for background in (0.5, 0.75, 1.0)
    ]
    return (255.0 * np.concatenate([grays, *edges])).round().astype(np.uint8).tobytes()


def _finish(figure: Figure, path: StrPath | None, title: str = "") -> Figure:
    if title:
        figure.suptitle(title, parse_math=False)
    if path is not None:
        figure.savefig(path, dpi=_DPI)
    return figure
