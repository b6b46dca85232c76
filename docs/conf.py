"""The site of the docs. In the root of the repository, after ``pip install '.[test]' --group docs``:

    sphinx-build -W --keep-going docs docs/_build

Formulas are converted to MathML at build time, which browsers display without a network.
"""

import re
from pathlib import Path

from docutils.nodes import SkipNode, Text, literal_block, paragraph
from latex2mathml.converter import convert
from sphinx.addnodes import toctree
from sphinx.directives.code import LiteralInclude

import fastopt

project = "fastopt"
author = "The fastopt developers"
copyright = author
version = release = fastopt.__version__

extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton",
]
exclude_patterns = ["_build"]
templates_path = []
default_role = "py:obj"         # `name` in a docstring

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4        # as code hosts make them

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"      # docstrings say more
maximum_signature_line_length = 300
napoleon_use_ivar = True
napoleon_use_rtype = False
viewcode_line_numbers = True

copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "fastopt"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False


def _inline(translator, node):
    translator.body.append(convert(node.astext()))
    raise SkipNode


def _block(translator, node):
    formulas = re.split(r"\\q?quad\b", node.astext())     # side by side where there is room
    body = "".join(convert(formula, display="block") for formula in formulas)
    translator.body.append(f'<div class="math">{body}</div>')
    raise SkipNode


class _Code(LiteralInclude):
    """``literalinclude`` without docstrings, which the pages of the API show."""

    def run(self):
        result = super().run()
        for block in (block for node in result for block in node.findall(literal_block)):
            block.rawsource = re.sub(r'^ +"""(?:.|\n)*?"""\n', "", block.rawsource, flags=re.M)
            block.children = []
            block.append(Text(block.rawsource))
        return result


def _write_llms_txt(app, exception):
    """A map of the site for language models, in the form of https://llmstxt.org."""
    if exception or app.builder.format != "html":
        return
    env, index = app.env, app.env.get_doctree("index")

    def first_sentence(tree):
        return next(tree.findall(paragraph)).astext().replace("\n", " ").split(". ")[0].rstrip(".:")

    def entries(name):
        yield f"- [{env.titles[name].astext()}]({name}.html): {first_sentence(env.get_doctree(name))}"
        for below in env.toctree_includes.get(name, []):
            yield from entries(below)

    lines = ["# fastopt", "", f"> {first_sentence(index)}"]
    for part in index.findall(toctree):
        lines += ["", f"## {part['caption']}", ""]
        lines += [line for _, name in part["entries"] for line in entries(name)]
    Path(app.outdir, "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def setup(app):
    app.add_directive("literalinclude", _Code, override=True)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("build-finished", _write_llms_txt)
