"""Figures of the gallery in one style: those of pyplot, and the value of the last expression of a block."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst, matplotlib_scraper


def save_figures(block, block_vars, gallery_conf):
    """Save the figures of a block as SVG, and return the lines that show them."""
    lines = matplotlib_scraper(block, block_vars, gallery_conf, format="svg")
    last = block_vars["example_globals"].get("___")
    if isinstance(last, Figure) and last is not block_vars.get("saved"):
        path = Path(next(block_vars["image_path_iterator"])).with_suffix(".svg")
        last.savefig(path)
        lines += figure_rst([path], gallery_conf["src_dir"])
        block_vars["saved"] = last
    return lines


def reset_style(gallery_conf, name):
    """Begin each example with the style of docs/matplotlibrc."""
    matplotlib.rc_file_defaults()
