"""report.html: complete, self-contained, and shown by a browser."""

import html
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fastopt import cli


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Page(HTMLParser):
    """The text, the headings and the references of a page; raises if a tag is not closed."""

    def __init__(self, path):
        super().__init__()
        self.open, self.headings, self.references, self.words = [], [], [], []
        self.feed(Path(path).read_text(encoding="utf-8"))
        assert not self.open
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data + " ")
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def train(*args):
    assert cli.main(["train", *map(str, args), "--epochs", "3", "--out", "run"]) == 0
    page = Page("run/report.html")
    assert all(url.startswith(("data:image/png;base64,", "#")) for url in page.references)
    return page


def test_report_of_images():
    pytest.importorskip("matplotlib")
    page = train("--hidden", 16)
    assert page.headings == [
        "Data and network", "Results", "Training curves", "Confusion matrix of the test data",
        "Most confident mistakes", "Repeat this run", "Environment",
    ]
    assert sum(url.startswith("data:") for url in page.references) == 12
    assert re.search(r"Accuracy \d\d\.\d % on the test data", page.text)
    for text in ("1294 training, 144 validation, 359 test", "fastopt train --hidden 16 --epochs 3 --out run",
                 "fastopt train --config run/config.toml", np.__version__):
        assert text in page.text
    assert "<svg" in Path("run/report.html").read_text()


def write_table(kind):
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    x = rng.normal(size=100)
    frame = pd.DataFrame({"x<1>": x, "c": rng.choice(["u & v", "w"], 100), "n": np.where(x > 1, np.nan, 7.5)})
    noise = x + rng.normal(size=100)
    frame["y"] = noise * 1e6 if kind == "regression" else np.where(noise > 0, "<b>yes</b>", "no")
    frame.to_csv("a & b.csv", index=False)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_report_of_a_table_escapes_its_texts(monkeypatch, kind):
    write_table(kind)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    page = train("--data", "a & b.csv")
    text = Path("run/report.html").read_text(encoding="utf-8")
    for cell in ("x<1>", "u & v", "a & b.csv", *(["<b>yes</b>"] if kind == "classification" else [])):
        assert html.escape(cell) in text and cell not in text and cell in page.text
    assert "missing" in page.text and "No curves: plotting needs matplotlib" in page.text
    assert page.headings[-3] == ("Largest errors" if kind == "regression" else "Most confident mistakes")


def test_report_without_mistakes_and_without_validation_data():
    X = np.repeat(np.eye(2), 50, axis=0)
    np.savez("t.npz", X=X, y=np.repeat(["a", "b"], 50))
    page = train("--data", "t.npz", "--lr", 0.1, "--validation-split", 0)
    assert "All predictions of the test data are correct." in page.text and "Validation" not in page.text


def test_a_browser_shows_the_report(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    pytest.importorskip("matplotlib")
    train("--hidden", 16)
    # The page reports how many images were decoded, the curves, and whether it is wider than the window.
    script = """<script>
    onload = () => { document.title = JSON.stringify([
        [...document.images].filter(image => image.naturalWidth == 8).length,
        document.querySelector("svg").getBoundingClientRect().width > 300,
        document.querySelectorAll("table.matrix tbody tr").length,
        document.documentElement.scrollWidth <= innerWidth]) }</script>"""
    text = Path("run/report.html").read_text(encoding="utf-8").replace("</body>", script + "</body>")
    Path("page.html").write_text(text, encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,900", "--dump-dom",
        (tmp_path / "page.html").as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "<title>[12,true,10,true]</title>" in shown
