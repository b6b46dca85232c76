"""Draw docs/images/paths/NAME.svg: the path of each optimizer on Beale's function. Needs matplotlib.

Usage: python tools/draw_paths.py [NAME ...]

The colors are those of docs/matplotlibrc, which are readable on light and dark pages.
"""

import io
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import fastopt
from fastopt.optimizers import BY_NAME
from fastopt.surfaces import SURFACES, descend, find_rate

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images" / "paths"
SURFACE = SURFACES["beale"]
STYLE = matplotlib.rc_params_from_file(FOLDER.parents[1] / "matplotlibrc", use_default_template=False)
GRAY, (BLUE, ORANGE, *_) = STYLE["text.color"], STYLE["axes.prop_cycle"].by_key()["color"]
# Arguments other than the learning rate. SGD without momentum is drawn in each plot, for comparison.
ARGUMENTS = {"SGD": {"momentum": 0.9}, "SignSGD": {"momentum": 0.9}}


class OneRow:
    """Muon for a point as a matrix with one row; it updates vectors as AdamW does."""

    def __init__(self, point, lr):
        self.opt = fastopt.Muon(point[None], lr=lr, weight_decay=0.0)

    def step(self, grad):
        self.opt.step(grad[None])


def make(cls):
    if cls is fastopt.Muon:
        return OneRow
    return lambda point, lr: cls(point, lr=lr, **ARGUMENTS.get(cls.__name__, {}))


def best_path(factory, start):
    lr = find_rate(SURFACE, factory, start=start)
    return descend(SURFACE, lambda point: factory(point, lr), start=start), lr


def draw(cls):
    start = (0.0, 0.0) if cls is fastopt.FTRL else SURFACE.start    # where FTRL always starts
    path, lr = best_path(make(cls), start)
    plain, plain_lr = best_path(fastopt.SGD, start)
    style = {
        "svg.fonttype": "none", "font.size": 9, "path.simplify_threshold": 0.5,
        "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True,
        "figure.constrained_layout.use": False,
    }
    with matplotlib.rc_context({**STYLE, **style}):
        figure = Figure(figsize=(5.2, 3.6))
        axes = figure.add_axes((0.11, 0.13, 0.87, 0.71))
        left, right, bottom, top = SURFACE.window
        x, y = np.meshgrid(np.linspace(left, right, 91), np.linspace(bottom, top, 91))
        heights = SURFACE.value(x, y)
        levels = np.geomspace(0.05, heights.max() / 4, 9)
        axes.contour(x, y, heights, levels=levels, colors=GRAY, linewidths=0.6, alpha=0.6)
        axes.plot(*path.T, color=BLUE, linewidth=1.8, label=f"{label_of(cls)}, lr={lr:g}")
        axes.plot(*plain.T, color=ORANGE, linestyle=(0, (4, 2)), linewidth=1.2, label=f"SGD, lr={plain_lr:g}")
        for points, color in ((plain, ORANGE), (path, BLUE)):
            axes.plot(*points[-1], "o", color=color, markersize=5)
        axes.plot(*start, "s", color=GRAY, markersize=5, label="start")
        axes.plot(*SURFACE.minima[0], "*", color=GRAY, markersize=11, label="minimum")
        axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)
        with io.StringIO() as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
            return shorten(file.getvalue())


def label_of(cls):
    arguments = ", ".join(f"{name}={value}" for name, value in ARGUMENTS.get(cls.__name__, {}).items())
    return f"{cls.__name__}({arguments})" if arguments else cls.__name__


def shorten(svg):
    """Return the picture without metadata and names of fonts, with coordinates of one decimal."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"font-family: [^;]+;", "font-family: sans-serif;", svg)
    svg = re.sub(r'(?<= )[dxy]="[^"]+"', lambda found: re.sub(r"\d+\.\d{2,}", to_tenths, found[0]), svg)
    return re.sub(r"\s+", " ", svg).replace("> <", "><") + "\n"


def to_tenths(found):
    return f"{float(found[0]):.1f}"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or BY_NAME.values():
        cls = getattr(fastopt, name) if isinstance(name, str) else name
        (FOLDER / f"{cls.__name__}.svg").write_text(draw(cls), encoding="utf-8")
