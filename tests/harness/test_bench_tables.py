"""The tables of README and documentation are those of the saved runs."""

import json

import pytest

from benchmarks import __main__ as main
from benchmarks import report, steps, tables


def test_the_tables_of_the_pages_are_those_of_the_saved_runs():
    found = [(page, text) for page in tables.pages() if (text := page.read_text(encoding="utf-8"))]
    named = {match[2] for _, text in found for match in tables.REGION.finditer(text)}
    assert named >= {"steps", "training", "grid"} and tables.ROOT / "README.md" in dict(found)
    outdated = [page.name for page, text in found if tables.fill(text) != text]
    assert outdated == [], "run `python -m benchmarks tables`"


@pytest.fixture
def run(make_run):
    workloads = [steps.find(name) for name in ("1e3", "3e3", "mlp")]
    return make_run("steps", workloads, [
        ("1e3", "limit", 2, 1e-6), ("1e3", "fastopt", 2, 2e-6), ("1e3", "numba", 2, 3e-6),
        ("3e3", "fastopt", 2, 3e-6),
        ("mlp", "fastopt", 2, 2e-3), ("mlp", "numba", 2, 1.5e-3),
    ])


def test_a_summary_marks_the_fastest_library_and_leaves_out_the_sweep(run):
    lines = report.summary(run).splitlines()
    assert lines[2] == "| workload | memory-bandwidth limit | fastopt | numba, fastmath |"
    assert lines[4:] == [
        "| 1 array of 1e3 | 1.00 | **2.00** | 3.00 |",
        "| 784-256-128-10 |  | 2,000 | **1,500** |",
    ]


def test_the_table_of_peers_has_the_workloads_at_which_another_library_is_faster(run):
    lines = report.peers(run).splitlines()
    assert lines[0] == "| workload | fastopt | fastest library | its time | ratio |"
    assert lines[2] == "| 784-256-128-10 | 2,000 | numba, fastmath | 1,500 | 1.33 |"
    assert lines[-1].startswith("- Largest ratio of fastopt to the fastest peer: 1.33 at 784-256-128-10; ")
    only = [result for result in run["results"] if result["workload"] == "1e3"]
    assert report.peers(run | {"results": only}).startswith("- Largest ratio")


def test_pages_are_written(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "docs" / "images").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "steps.json").write_text(json.dumps(run))
    page = tmp_path / "README.md"
    page.write_text("Before\n<!-- benchmark: steps summary -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    pytest.importorskip("matplotlib")
    assert main.main(["tables"]) == 0
    text = page.read_text()
    assert "old" not in text and report.summary(run) in text and text.endswith("<!-- end -->\nafter\n")
    assert (tmp_path / "docs" / "images" / "sizes.svg").stat().st_size > 1000
    main.main(["tables"])
    assert capsys.readouterr().out == "wrote README.md\n"
