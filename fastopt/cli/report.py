"""The page ``report.html`` of a training run: a single self-contained file."""

from __future__ import annotations

import argparse
import base64
import html
import io
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from fastopt import plots
from fastopt._config import config as versions
from fastopt._core.typing import AnyArray
from fastopt.cli import training
from fastopt.cli.model import Model
from fastopt.nn import History
from fastopt.nn.data import Dataset

_MAX_MISTAKES = 12
_MAX_CELLS = 10     # columns of a table that are shown with a mistake
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222 }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-size: .9rem } .wide { overflow-x: auto }
th, td { padding: .25rem .6rem; text-align: left } thead th { border-bottom: 2px solid #ddd }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.matrix td { text-align: center; border: 1px solid #fff } .matrix tbody th { text-align: right }
.score { font-size: 2rem; font-weight: 600; color: #0072B2 }
pre { background: #f5f5f5; padding: .6rem .8rem; overflow-x: auto } svg, img { max-width: 100%; height: auto }
.samples { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0; font-size: .85rem }
figure img { width: 112px; image-rendering: pixelated; border: 1px solid #ddd }
"""


@dataclass(frozen=True)
class Results:
    """Results of a training run: predictions of the test data and their score."""

    history: History
    summary: dict[str, Any]
    score: tuple[str, float]
    predicted: AnyArray
    matrix: AnyArray | None


def format_report(
    args: argparse.Namespace, dataset: Dataset, net: Model, results: Results, folder: str
) -> str:
    """Return the page as HTML."""
    sections = [
        ("Data and network", _describe(args, dataset, net)),
        ("Results", _results(dataset, results)),
        ("Training curves", _curves(results.history)),
    ]
    if dataset.classes is not None:
        if results.matrix is not None:
            sections.append(("Confusion matrix of the test data", _matrix(results.matrix, dataset.classes)))
        sections.append(("Most confident mistakes", _mistakes(dataset, net, results.predicted)))
    else:
        sections.append(("Largest errors", _errors(dataset, results.predicted)))
    sections += [("Repeat this run", _command(args, folder)), ("Environment", _rows(versions().items()))]
    title = html.escape(f"Training run: {args.data}")
    body = "".join(f"<section><h2>{name}</h2>{content}</section>\n" for name, content in sections if content)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f'<p><span class="score">{_score(results.score)}</span> on the test data</p>\n{body}</body></html>\n'
    )


def _score(score: tuple[str, float]) -> str:
    name, value = score
    return f"Accuracy {100.0 * value:.1f} %" if name == "Accuracy" else f"R² {value:.3f}"


def _describe(args: argparse.Namespace, dataset: Dataset, net: Model) -> str:
    text = training.describe(args, dataset, net).replace("\n  ", " ")
    optimizer = f"Optimizer: {args.optimizer}, learning rate {args.lr:g}, batch size {args.batch_size}"
    return _rows(line.partition(": ")[::2] for line in [*text.splitlines(), optimizer])


def _results(dataset: Dataset, results: Results) -> str:
    last, test = results.history.last(), results.summary["test"]
    samples = results.summary["samples"]
    metric = "accuracy" if dataset.classes is not None else "r2"
    rows: list[Any] = [("Training", samples["training"], last.get("loss"), last.get(metric))]
    if samples["validation"]:
        rows.append(("Validation", samples["validation"], last.get("val_loss"), last.get(f"val_{metric}")))
    rows.append(("Test", samples["test"], test["loss"], test[metric]))
    rows = [(*row[:2], *(_round(value) for value in row[2:])) for row in rows]
    head = ["", "Samples", "Loss", "Accuracy" if metric == "accuracy" else "R²"]
    stopped = results.summary["stopped_by"]
    text = f"{training.plural(results.summary['epochs'], 'epoch')} in {results.summary['seconds']:.2g} s"
    reason = f", stopped by {html.escape(stopped)}" if stopped else ""
    note = ". The loss is that of the standardized target" if dataset.table and metric == "r2" else ""
    return f"<p>{text} of training steps{reason}{note}.</p>{_table(head, rows)}"


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _curves(history: History) -> str:
    if not history.epoch:
        return "<p>No epoch was finished.</p>"
    stream = io.StringIO()
    try:
        plots.plot_history(history).savefig(stream, format="svg")
    except ImportError as error:
        return f"<p>No curves: {html.escape(str(error))}</p>"
    return stream.getvalue()[stream.getvalue().index("<svg") :]


def _matrix(matrix: AnyArray, classes: AnyArray) -> str:
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [html.escape(str(name)) for name in classes.tolist()]
    rows = []
    for name, counts, fractions in zip(names, matrix.tolist(), shares.tolist(), strict=True):
        cells = "".join(
            f'<td style="background: rgba(0, 114, 178, {share:.3f}); color: {_text_color(share)}">'
            f"{count or ''}</td>"
            for count, share in zip(counts, fractions, strict=True)
        )
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        "<p>Rows are true classes, columns are predicted classes. The shade is the fraction of the true "
        "class.</p>"
        f'<div class="wide"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _text_color(share: float) -> str:
    return "#fff" if share > 0.5 else "#222"


def _mistakes(dataset: Dataset, net: Model, predicted: AnyArray) -> str:
    """Return the wrong predictions with the largest probabilities."""
    assert dataset.classes is not None
    wrong = np.flatnonzero(predicted != dataset.y_test)
    if not len(wrong):
        return "<p>All predictions of the test data are correct.</p>"
    probabilities = net.predict_proba(dataset.X_test[wrong]).max(axis=1)
    order = np.argsort(-probabilities, kind="stable")[:_MAX_MISTAKES]
    shown = [(int(wrong[i]), f"{100.0 * probabilities[i]:.1f} %") for i in order]
    names = [str(name) for name in dataset.classes.tolist()]
    true = {i: (names[int(dataset.y_test[i])], names[int(predicted[i])]) for i, _ in shown}
    count = f"<p>{len(wrong)} of {len(predicted)} predictions of the test data are wrong.</p>"
    if len(dataset.sample_shape) in (2, 3):
        try:
            figures = [
                f'<figure><img alt="sample {i}" src="{_image(dataset, i)}"><figcaption>'
                f"true: {html.escape(names[0])}<br>predicted: {html.escape(names[1])}, {share}"
                "</figcaption></figure>"
                for (i, share), names in zip(shown, true.values(), strict=True)
            ]
            return f'{count}<div class="samples">{"".join(figures)}</div>'
        except ImportError:     # without matplotlib they are shown as a table
            pass
    head, cells = _cells(dataset)
    rows = [(i + 1, *true[i], share, *cells(i)) for i, share in shown]
    return count + _table(["Test sample", "True", "Predicted", "Probability", *head], rows)


def _errors(dataset: Dataset, predicted: AnyArray) -> str:
    """Return the predictions of a regression with the largest errors."""
    y, predicted = dataset.y_test.reshape(len(predicted), -1), predicted.reshape(len(predicted), -1)
    order = np.argsort(-np.abs(y - predicted).max(axis=1), kind="stable")[:_MAX_MISTAKES]
    table = dataset.table
    if table is not None:
        y, predicted = table.unscale_target(y), table.unscale_target(predicted)
    head, cells = _cells(dataset)
    rows = [(int(i) + 1, _values(y[i]), _values(predicted[i]), *cells(int(i))) for i in order]
    return _table(["Test sample", "True", "Predicted", *head], rows)


def _cells(dataset: Dataset) -> tuple[list[str], Any]:
    """Return names of the first columns of a table, and a function that returns the cells of a row."""
    rows = dataset.rows_test
    if rows is None:
        return [], lambda i: ()
    names = [str(name) for name in rows.columns[:_MAX_CELLS]]
    return names, lambda i: rows.iloc[i, :_MAX_CELLS].tolist()


def _image(dataset: Dataset, i: int) -> str:
    """Return an image of the test data as a data URL; matplotlib writes the PNG."""
    plots.make_figure()     # raises if matplotlib is missing
    pixels = dataset.X_test[i].reshape(dataset.sample_shape)
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(stream, pixels.clip(0.0, 1.0), cmap="gray_r", vmin=0.0, vmax=1.0, format="png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _command(args: argparse.Namespace, folder: str) -> str:
    given = html.escape(shlex.join(["fastopt", *args.argv]))
    repeat = html.escape(shlex.join(["fastopt", "train", "--config", f"{folder}/config.toml"]))
    return f"<pre>{given}</pre><p>With all options, defaults included:</p><pre>{repeat}</pre>"


def _rows(rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<table><tbody>{cells}</tbody></table>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table, with numbers aligned to the right."""
    lines, numeric = [], [True] * len(head)
    for row in rows:
        is_number = [cell is None or isinstance(cell, Real) for cell in row]
        numeric = [all(pair) for pair in zip(numeric, is_number, strict=True)]
        lines.append([_format(cell) for cell in row])
    kinds = [' class="number"' if n else "" for n in numeric]
    names = "".join(f"<th{kind}>{html.escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, line, strict=True))}</tr>"
        for line in lines
    )
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _format(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Real) and not isinstance(value, Integral):
        return "missing" if math.isnan(value) else f"{float(value):.7g}"
    return html.escape(str(value))


def _values(values: AnyArray) -> Any:
    """Return the only value of a sample as a number, several as a text."""
    items = values.tolist()
    return items[0] if len(items) == 1 else ", ".join(f"{value:.7g}" for value in items)
