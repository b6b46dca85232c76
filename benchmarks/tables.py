"""Write the tables of README and documentation, made from the saved runs in benchmarks/results.

A table is between ``<!-- benchmark: RUN FORM -->`` and ``<!-- end -->``, where RUN is the name of a file
without ``.json``, and FORM is one of `FORMS`. The chart of sizes is drawn from ``steps.json``. A test
compares the pages with the runs.
"""

import json
import re
from pathlib import Path

from benchmarks import report, torch_steps

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
FORMS = {
    "summary": report.summary, "peers": report.peers, "report": report.markdown, "torch": torch_steps.report,
}
REGION = re.compile(
    rf"^(<!-- benchmark: ([\w-]+) ({'|'.join(FORMS)}) -->\n).*?^(<!-- end -->)$", re.M | re.S
)


def add_options(command):
    command.description = "Write the tables of README and documentation from the runs in benchmarks/results."


def run(options):
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (filled := fill(text)) != text:
            page.write_text(filled, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
    report.plot_steps(saved("steps"), ROOT / "docs" / "images" / "sizes.svg")


def pages():
    """Return the pages that have tables."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if REGION.search(page.read_text(encoding="utf-8"))]


def saved(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def fill(text):
    """Return the text of a page with the tables of the saved runs."""
    return REGION.sub(lambda found: f"{found[1]}\n{FORMS[found[3]](saved(found[2]))}\n{found[4]}", text)
