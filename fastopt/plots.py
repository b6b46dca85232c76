"""Training curves, confusion matrices, range tests and paths, drawn with matplotlib (extra ``plot``).

Figures are made without pyplot: nothing needs a display, no global state is touched, and a figure
is freed as soon as nobody holds it. A notebook shows what a function returns.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

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

# Okabe and Ito, "Color universal design", 2008: told apart by color-blind readers too. Their
# yellow and black are left out: one is too faint on white, the other is the text's.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# A second mark for readers of gray prints. There is one dash more than colors, so that a pair of
# both comes back after 42 curves.
_DASHES = (
    "-", (0, (6, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (6, 2, 1, 2, 1, 2)),
    (0, (10, 2)),
)
_DPI = 150
_MOST_COUNTS = 24   # classes beyond which counts in the cells cannot be read
_MOST_LABELS = 60   # and labels beside them
# Of an animation: frames at most, milliseconds of one and of the last.
_FRAMES, _FRAME_TIME, _REST_TIME = 100, 50, 2000
_ANIMATION_DPI = 100


def plot_history(history: History, path: str | PathLike[str] | None = None) -> Figure:
    """Draw a training's loss and, where it has one, its accuracy against epochs.

    Parameters
    ----------
    history : fastopt.History
        At least one epoch.
    path : str or path-like, optional
        Write the figure there, in the format of the suffix: ``.png``, ``.pdf``, ``.svg``, ...

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If `history` holds no epochs, or matplotlib does not know the suffix of `path`.
    ImportError
        If matplotlib is not installed.
    """
    _check_histories({"history": history})
    quantities = [("loss", "Loss (mean per row)", 1.0), ("accuracy", "Accuracy (%)", 100.0)]
    shown = [q for q in quantities if {q[0], "val_" + q[0]} & history.history.keys()]
    figure, panels = _figure(len(shown), path)
    epochs = _epochs(history)
    for panel, (name, label, unit) in zip(panels, shown, strict=True):
        for place, (key, who) in enumerate([(name, "training"), ("val_" + name, "test")]):
            if key in history.history:
                values = unit * np.asarray(history.history[key])
                _draw(panel, epochs, values, place, who)
        _label(panel, "Epoch", label)
        _count_epochs(panel)
    panels[0].set_ylim(bottom=min(0.0, panels[0].get_ylim()[0]))
    panels[-1].legend(frameon=False)
    return _finish(figure, path)


def plot_comparison(histories: Mapping[str, History], path: str | PathLike[str] | None = None) -> Figure:
    """Draw the training losses of several trainings against epochs and against seconds.

    Parameters
    ----------
    histories : dict of fastopt.History
        By name; each at least one epoch. Seconds are those of the training steps: evaluation is
        not counted.
    path : str or path-like, optional
        Write the figure there, in the format of the suffix: ``.png``, ``.pdf``, ``.svg``, ...

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there are no histories, one holds no epochs, or matplotlib does not know the suffix of
        `path`.
    ImportError
        If matplotlib is not installed.
    """
    _check_histories(histories)
    figure, (by_epoch, by_time) = _figure(2, path, sharey=True)
    for place, (name, history) in enumerate(histories.items()):
        loss = np.asarray(history.history["loss"])
        _draw(by_epoch, _epochs(history), loss, place, name)
        _draw(by_time, np.cumsum(history.history["seconds"]), loss, place, name)
    _label(by_epoch, "Epoch", "Training loss (mean per row)")
    _count_epochs(by_epoch)
    _label(by_time, "Time of the training steps (s)")
    by_time.set_xlim(left=0.0)
    _scale_losses(by_epoch)
    by_time.legend(frameon=False)
    return _finish(figure, path)


def plot_confusion_matrix(
    matrix: ArrayLike, classes: Sequence[object] | AnyArray | None = None,
    path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw how often each class was taken for each.

    Shade is the share of the true class, so that rare classes are as visible as common ones; the
    numbers are counts.

    Parameters
    ----------
    matrix : array_like of int, shape (n, n)
        Row: the true class; column: the predicted one, as `fastopt.nn.metrics.confusion_matrix` returns.
    classes : sequence of length n, optional
        Labels; by default 0 to n - 1.
    path : str or path-like, optional
        Write the figure there, in the format of the suffix: ``.png``, ``.pdf``, ``.svg``, ...

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If `matrix` is not square, holds anything but counts, or is not as long as `classes`; or
        matplotlib does not know the suffix of `path`.
    ImportError
        If matplotlib is not installed.
    """
    counts = _check_confusion_matrix(matrix)
    n = len(counts)
    labels = [str(label) for label in (range(n) if classes is None else classes)]
    if len(labels) != n:
        raise ValueError(f"classes: expected {n}, as many as matrix has rows, got {len(labels)}")
    figure, (panel,) = _figure(1, path)
    side = min(max(4.8, 0.5 * n + 1.6), 12.0)
    figure.set_size_inches(side + 0.8, side)
    shares = 100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = panel.imshow(shares, cmap="Blues", vmin=0.0, vmax=100.0)
    figure.colorbar(image, ax=panel, shrink=0.8, label="Share of the true class (%)")
    panel.set(xlabel="Predicted class", ylabel="True class")
    _label_classes(panel, labels)
    if n <= _MOST_COUNTS:
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 55.0 else "0.15"
            panel.text(column, row, str(counts[row, column]), ha="center", va="center", color=color)
    return _finish(figure, path)


def plot_lr_find(found: LRFindResult, path: str | PathLike[str] | None = None) -> Figure:
    """Draw the losses of a learning-rate range test against the learning rates.

    Parameters
    ----------
    found : fastopt.nn.lr_find.LRFind
        What `fastopt.lr_find` has returned.
    path : str or path-like, optional
        Write the figure there, in the format of the suffix: ``.png``, ``.pdf``, ``.svg``, ...

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If matplotlib does not know the suffix of `path`.
    ImportError
        If matplotlib is not installed.
    """
    figure, (panel,) = _figure(1, path)
    panel.plot(found.lr, found.loss, color="0.75", linewidth=1.0, label="each batch")
    _draw(panel, found.lr, found.smoothed, 0, "smoothed")
    if found.suggestion is not None:
        at = np.interp(found.suggestion, found.lr, found.smoothed)
        panel.plot(
            [found.suggestion], [at], "o", color=_COLORS[1], label=f"suggestion {found.suggestion:.2g}"
        )
    panel.set_xscale("log")
    # A batch that has already diverged would press the curve flat.
    low, high = found.smoothed.min(), found.smoothed.max()
    margin = 0.05 * (high - low) or 1.0
    panel.set_ylim(low - margin, high + margin)
    _label(panel, "Learning rate", "Loss (mean per row)")
    panel.legend(frameon=False)
    return _finish(figure, path)


def plot_paths(
    surface: Surface, paths: Mapping[str, ArrayLike], path: str | PathLike[str] | None = None,
) -> Figure:
    """Draw the paths of optimizers over the contours of a function of two variables.

    Contours are spaced evenly in the logarithm of the height above the minimum.

    Parameters
    ----------
    surface : fastopt.surfaces.Surface
    paths : dict of array_like, shape (steps + 1, 2)
        Points by the optimizer's name, the start first, as `fastopt.surfaces.descend` returns them; all
        finite.
    path : str or path-like, optional
        Write the figure there, in the format of the suffix: ``.png``, ``.pdf``, ``.svg``, ...; with
        ``.gif``, an animation of the steps.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there are no paths, one is no list of points, or matplotlib does not know the suffix of `path`.
    ImportError
        If matplotlib is not installed.
    """
    arrays = _check_paths(paths)
    figure, (panel,) = _figure(1, path, moving=True)
    figure.set_size_inches(7.2, max(5.0, 0.21 * len(arrays) + 1.0))     # the legend grows
    _draw_contours(figure, panel, surface)
    artists = [_draw_path(panel, *item, place, len(arrays)) for place, item in enumerate(arrays.items())]
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    if path is not None and Path(path).suffix.lower() == ".gif":
        _animate(figure, panel, artists, list(arrays.values()), path)
        return figure
    return _finish(figure, path)


def check_path(path: str | PathLike[str], argument: str = "path", moving: bool = False) -> None:
    """Raise if a figure could not be written to `path` for want of matplotlib or a known suffix.

    Parameters
    ----------
    path : str or path-like
    argument : str, default "path"
        What the error calls it.
    moving : bool, default False
        Whether the figure may be an animation, ``.gif``.

    Raises
    ------
    ValueError, ImportError
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    known = {*_matplotlib_figure().canvas.get_supported_filetypes(), *(["gif"] if moving else [])}
    if suffix not in known:
        raise ValueError(
            f"{argument}: expected a name that ends in .{', .'.join(sorted(known))}; got {path}"
        )


def _matplotlib_figure(**options: Any) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plotting needs matplotlib: pip install 'fastopt[plot]'") from None
    return Figure(layout="constrained", **options)


def _check_histories(histories: Mapping[str, History]) -> None:
    if not histories:
        raise ValueError("histories: expected at least one, got none")
    for name, history in histories.items():
        if not history.epoch:
            raise ValueError(f"{name}: expected at least one epoch, got none")


def _check_confusion_matrix(matrix: ArrayLike) -> NDArray[np.integer[Any]]:
    counts = np.asarray(matrix)
    if counts.ndim != 2 or len(counts) == 0 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"matrix: expected a square one, got the shape {counts.shape}")
    if counts.dtype.kind not in "iu" or counts.min() < 0:
        raise ValueError(f"matrix: expected counts, whole numbers from 0 on, got {counts.dtype}")
    return counts


def _label_classes(panel: Axes, labels: list[str]) -> None:
    """Write the labels at both sides; long ones stand upright below, and of very many only some are there."""
    places = range(0, len(labels), -(-len(labels) // _MOST_LABELS))
    shown = [labels[place] for place in places]
    is_long = max(map(len, shown)) * len(shown) > 48
    panel.set_xticks(places, shown, rotation=90 if is_long else 0)
    panel.set_yticks(places, shown)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def _figure(
    columns: int, path: str | PathLike[str] | None, moving: bool = False, **options: Any,
) -> tuple[Figure, list[Axes]]:
    if path is not None:
        check_path(path, moving=moving)
    figure = _matplotlib_figure(figsize=(4.8 * columns, 3.8))
    return figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def _epochs(history: History) -> NDArray[np.int_]:
    """Return the numbers of the epochs as people count them, from 1."""
    return np.asarray(history.epoch) + 1


def _draw(panel: Axes, x: AnyArray, y: AnyArray, place: int, name: str) -> None:
    """Draw the curve which is at `place` among those of the panel."""
    color = _COLORS[place % len(_COLORS)]
    dashes = _DASHES[place % len(_DASHES)]
    marker = "o" if len(x) == 1 else None  # a single point has no line
    panel.plot(x, y, color=color, linestyle=dashes, linewidth=1.8, marker=marker, label=name)


def _label(panel: Axes, x: str, y: str | None = None) -> None:
    panel.set_xlabel(x)
    if y is not None:
        panel.set_ylabel(y)
    panel.grid(color="0.9", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _count_epochs(panel: Axes) -> None:
    """Put ticks at whole epochs alone."""
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _scale_losses(panel: Axes) -> None:
    """Losses that are all positive span decades: a logarithmic scale shows the small ones too."""
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


def _draw_contours(figure: Figure, panel: Axes, surface: Surface) -> None:
    """Shade the window by height, light enough for colored paths, and mark the minima."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    left, right, bottom, top = surface.window
    x, y = np.meshgrid(np.linspace(left, right, 241), np.linspace(bottom, top, 241))
    heights = surface.value(x, y) - surface.least
    lowest, highest = np.quantile(heights, 0.002), heights.max()
    levels = np.geomspace(lowest, highest, 15)
    grays = LinearSegmentedColormap.from_list("heights", ["1.0", "0.72"])
    norm = LogNorm(lowest, highest)
    panel.contourf(x, y, np.clip(heights, lowest, highest), levels=levels, cmap=grays, norm=norm)
    panel.contour(x, y, heights, levels=levels, colors="0.6", linewidths=0.4)
    stars: dict[str, Any] = {"color": "black", "markeredgecolor": "white", "markersize": 15, "zorder": 4}
    panel.plot(*np.transpose(surface.minima), "*", linestyle="none", label="minimum", **stars)
    panel.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y", title=surface.name.capitalize())


def _draw_path(panel: Axes, name: str, points: Array, place: int, count: int) -> tuple[Line2D, Line2D]:
    """Draw one of `count` paths and, as the ball that has rolled down it, its last point; return both."""
    color, dashes = _COLORS[place % len(_COLORS)], _DASHES[place % len(_DASHES)]
    width = 1.4 + 2.0 * (1.0 - (place + 1) / count)     # those below show beside those above
    (line,) = panel.plot(*points.T, color=color, linestyle=dashes, linewidth=width, label=name, zorder=3)
    (ball,) = panel.plot(*points[-1:].T, "o", color=color, markeredgecolor="white", markersize=7, zorder=5)
    return line, ball


def _animate(
    figure: Figure, panel: Axes, artists: list[tuple[Line2D, Line2D]], paths: list[Array],
    path: str | PathLike[str],
) -> None:
    """Write the drawn paths step by step: what stands still is drawn once, and shown below every frame."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(_ANIMATION_DPI)
    canvas = FigureCanvasAgg(figure)
    for artist in (artist for pair in artists for artist in pair):
        artist.set_animated(True)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    longest = max(map(len, paths))
    frames = []
    for count in np.unique(np.linspace(1, longest, min(longest, _FRAMES)).round().astype(int)):
        canvas.restore_region(background)
        for (line, ball), points in zip(artists, paths, strict=True):
            line.set_data(*points[:count].T)
            ball.set_data(*points[:count][-1:].T)
            panel.draw_artist(line)
            panel.draw_artist(ball)
        frames.append(Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB"))
    palette = Image.new("P", (1, 1))
    palette.putpalette(_palette())
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [_FRAME_TIME] * len(others) + [_REST_TIME]
    first.save(path, "GIF", save_all=True, append_images=others, duration=durations, loop=0)


def _palette() -> bytes:
    """Grays, and the colors of the paths with their edges on them: a GIF has 256 colors."""
    from matplotlib.colors import to_rgb

    # Pillow looks colors up with five or six bits: next to white there is nothing it could be taken for.
    grays = np.append(np.linspace(0.0, 0.96, 127), 1.0)[:, None] * np.ones(3)
    shares = np.linspace(1.0, 0.0, 7, endpoint=False)[:, None]
    edges = [
        shares * np.array(to_rgb(color)) + (1.0 - shares) * ground
        for color in _COLORS for ground in (0.5, 0.75, 1.0)
    ]
    return (255.0 * np.concatenate([grays, *edges])).round().astype(np.uint8).tobytes()


def _finish(figure: Figure, path: str | PathLike[str] | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=_DPI)
    return figure
