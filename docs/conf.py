"""The site of the docs. In the root of the repository, after ``pip install '.[test]' --group docs``:

    sphinx-build -W --keep-going docs docs/_build

Formulas are converted to MathML at build time, which browsers display without a network. The tutorials are
notebooks and the gallery consists of scripts; all are run, and an error in one is an error of the build.
"""

import json
import os
import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from docutils.nodes import Admonition, SkipNode, Text, literal_block, paragraph
from latex2mathml.converter import convert
from sphinx.addnodes import toctree
from sphinx.directives.code import LiteralInclude

import fastopt

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))                                   # for gallery_figures
os.environ["MATPLOTLIBRC"] = str(HERE / "matplotlibrc")         # of the gallery and of the notebooks

project = "fastopt"
author = "The fastopt developers"
copyright = author
version = release = fastopt.__version__

extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery", "examples/*.ipynb", "jupyter_execute"]
templates_path = ["_templates"]
default_role = "py:obj"         # `name` in a docstring

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4        # as code hosts make them

# Pages and scripts that need a large package, or a program, are shown without output where it is missing.
has_torch, has_mpi = find_spec("torch") is not None, find_spec("mpi4py") is not None and which("mpiexec")
missing = ["from-torch", "pytorch_drop_in"] * (not has_torch) + ["scaling_over_ranks"] * (not has_mpi)
for tag, is_there in (("torch", has_torch), ("mpi", has_mpi)):
    if is_there:
        tags.add(tag)       # noqa: F821 (Sphinx defines it)

nb_execution_mode = "auto"
nb_execution_excludepatterns = [f"{name}.md" for name in missing]
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_render_image_options = {"alt": "Output of the code above"}

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "filename_pattern": f"/(?!{'|'.join(missing)})[^/]+$" if missing else "",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("gallery_figures.save_figures",),
    "reset_modules": ("gallery_figures.reset_style",),
    "capture_repr": (),
    "abort_on_example_error": True,
    "default_thumb_file": str(HERE / "_static" / "favicon.svg"),    # of scripts that are shown without output
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 1000.0,
}

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
html_favicon = html_logo = "_static/favicon.svg"
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
# Below the navigation: the version, the URLs of pyproject.toml, and other versions if they are built.
html_sidebars = {"**": [
    *(f"sidebar/{part}.html" for part in ("brand", "search", "scroll-start", "navigation", "scroll-end")),
    "links.html",
]}
html_context = {
    "links": tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"].get("urls", {}),
    "versions": json.loads((HERE / "versions.json").read_text("utf-8")),
}


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
        notes = {text for note in tree.findall(Admonition) for text in note.findall(paragraph)}
        text = next(text for text in tree.findall(paragraph) if text not in notes).astext()
        return text.replace("\n", " ").split(". ")[0].rstrip(".:")

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
