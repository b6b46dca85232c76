"""The site of the docs. In the root of the repository, with ``pip install -e '.[test]' --group docs``:

    sphinx-build -W --keep-going docs docs/_build

Formulas become MathML here and now, which browsers show by themselves, so that pages need no network.
"""

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

import fastopt

project = "fastopt"
author = "The fastopt developers"
copyright = author
version = release = fastopt.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
templates_path = []
default_role = "py:obj"         # `name` in a docstring

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4        # as code hosts make them

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"      # docstrings say more
maximum_signature_line_length = 88
napoleon_use_rtype = False
viewcode_line_numbers = True

html_theme = "furo"
html_title = "fastopt"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["llms.txt"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False


def _inline(translator, node):
    translator.body.append(convert(node.astext()))
    raise SkipNode


def _block(translator, node):
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
