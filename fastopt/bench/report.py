"""What ``fastopt bench`` shows of a run: the terminal's table, Markdown and a plot.

A run is the dict that `fastopt.bench.measure` returns and ``--json`` writes; everything here reads
it and nothing else, so that a saved run can be shown again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, TypedDict

from fastopt.bench.steps import SWEEP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BYTES_HELD = 16     # a number in p, g, m and v
PLOTTED = ("limit", "fastopt", "torch-fused", "numba", "optax", "numpy")
TITLE, COLUMN = 19, 8   # least and exact widths in the terminal
TORCH = {"torch-fused": "fused", "torch-foreach": "foreach", "torch": "single"}     # its modes
AIM = 1.25              # times its limit that an elementwise rule may take


class Cache(TypedDict):
    """A data cache, and how many processors share it."""

    level: int
    bytes: int
    cores: int


Machine = TypedDict("Machine", {
    "cpu": str, "cores": int | None, "caches": list[Cache], "system": str, "python": str,
    "huge pages": str | None,
})


class Result(TypedDict):
    """Times of a step in seconds: of a contender's variant at a work, with a number of threads."""

    work: str
    contender: str
    threads: int | None
    variant: str
    median: float
    quartiles: list[float]
    min: float
    rounds: list[float]


class Run(TypedDict):
    """A run, as `fastopt.bench.measure` says."""

    format: int
    suite: str
    yardstick: str
    unit: str
    date: str
    command: str
    machine: Machine
    settings: dict[str, float]
    threads: list[int]
    versions: dict[str, str]
    absent: dict[str, str]
    works: list[dict[str, Any]]
    results: list[Result]
    notes: list[str]


RuleResults = tuple[Result | None, Result | None, Result | None]    # of limit, fastopt and torch


def best(run: Run, work: str, contender: str, threads: int | None) -> Result | None:
    """The result of a contender's best variant, or None where it has none.

    A contender that uses one thread whatever it is given has a result for the most threads only.
    With None for `threads`, the best of all numbers of them.
    """
    found = [
        result
        for result in run["results"]
        if (result["work"], result["contender"]) == (work, contender)
        and (threads is None or result["threads"] in (threads, None))
    ]
    return min(found, key=lambda result: result["median"], default=None)


def shown(run: Run, work: str, contender: str) -> Result | None:
    """The result that tables show, or None.

    For steps that with the most threads. Small nets are often trained faster with one thread:
    everybody counts with the best number of them, but for fastopt, which is to find out by itself.
    """
    finds_out = run["suite"] != "training" or contender == "fastopt"
    return best(run, work, contender, max(run["threads"]) if finds_out else None)


def ratio(run: Run, work: str, contender: str) -> float | None:
    """Median time over the yardstick's; None without the one or the other, and for itself."""
    result, yardstick = (shown(run, work, name) for name in (contender, run["yardstick"]))
    if contender == run["yardstick"] or not result or not yardstick:
        return None
    return result["median"] / yardstick["median"]


def contenders(run: Run) -> list[str]:
    """Who has a result, in the order in which they were asked for."""
    measured = {result["contender"] for result in run["results"]}
    return [name for name in run["versions"] if name in measured]


# --- The terminal --------------------------------------------------------------------------------


def table(run: Run, details: bool = False) -> str:
    """The run as text, at most 100 columns wide with the contenders there are.

    Parameters
    ----------
    run : dict
    details : bool
        With a line for the shortest time and one for the spread: the distance of the quartiles in
        percent of the median.
    """
    if run["suite"] == "rules":
        return _rules_table(run, details)
    names, trains = contenders(run), run["suite"] == "training"
    lines = [*_wrapped(_caption(run, "below it")), "", *_header(run, names)]
    for work in run["works"]:
        results = [shown(run, work["name"], name) for name in names]
        ratios = [ratio(run, work["name"], name) for name in names]
        lines.append(_row(run, work["title"], [r and microseconds(r["median"]) for r in results]))
        if any(ratios):
            lines.append(_row(run, "", [f"{short(x)}x" if x else None for x in ratios]))
        if trains:
            lines.append(_row(run, "  threads", [r and str(r["threads"]) for r in results]))
        if details:
            lines.append(_row(run, "  shortest", [r and microseconds(r["min"]) for r in results]))
            lines.append(_row(run, "  spread", [r and f"{spread(r):.0%}" for r in results]))
    lines += ["", *denormals(run), *speedups(run), *notes(run)]
    if trains:
        lines += ["", *_wrapped(f"{run['date']}, {_processor(run['machine'])}: {run['command']}")]
    return "\n".join(lines).rstrip() + "\n"


def _caption(run: Run, where: str) -> str:
    """What the numbers of the main table are; `where` the ratios stand."""
    yardstick, most = run["yardstick"], max(run["threads"])
    ratios = f"; {where} the ratio to the {yardstick}" if yardstick in contenders(run) else ""
    if run["suite"] == "steps":
        return f"Median time of a step in microseconds with {most} threads{ratios}."
    numbers = " or ".join(map(str, run["threads"]))
    return (
        f"Median time of a training step in microseconds, on the average of whole epochs{ratios}, and the "
        f"number of threads: of fastopt {most}, of the others {numbers}, whichever is the fastest."
    )


def _header(run: Run, names: list[str]) -> list[str]:
    parts = [name.partition("-")[::2] for name in names]
    return [
        _row(run, "", [first if second else "" for first, second in parts]),
        _row(run, "", [second or first for first, second in parts]),
    ]


def _row(run: Run, title: str, cells: Iterable[str | None]) -> str:
    width = max([TITLE, *(len(work["title"]) + 1 for work in run["works"])])
    return (f"{title:{width}}" + "".join(f"{cell or '':>{COLUMN}}" for cell in cells)).rstrip()


def microseconds(seconds: float) -> str:
    return short(seconds * 1e6) if seconds < 1.0 else f"{seconds * 1e6:.2e}".replace("e+0", "e")


def short(value: float) -> str:
    """A number with three significant digits, or all before the point, and no exponent."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def spread(result: Result) -> float:
    low, high = result["quartiles"]
    return (high - low) / result["median"]


def denormals(run: Run) -> list[str]:
    """A line on what denormal state costs, if both works were measured."""
    names, threads = contenders(run), max(run["threads"])
    parts = []
    for name in names:
        normal, denormal = (best(run, work, name, threads) for work in ("4e6", "denormal"))
        if normal and denormal and name != "limit":
            parts.append(f"{name} {short(denormal['median'] / normal['median'])}")
    return _wrapped("Denormal state costs, times the normal: " + ", ".join(parts)) if parts else []


def speedups(run: Run) -> list[str]:
    """A table of what more threads bring, if the run has more than one number of them."""
    few, many = min(run["threads"]), max(run["threads"])
    if few == many:
        return []
    names = [n for n in contenders(run) if any(_speedup(run, w["name"], n) for w in run["works"])]
    lines = [f"Speed of {many} threads over that of {few}.", "", *_header(run, names)]
    for work in run["works"]:
        values = [_speedup(run, work["name"], name) for name in names]
        lines.append(_row(run, work["title"], [f"{x:.2f}" if x else None for x in values]))
    return [*lines, ""]


def _speedup(run: Run, work: str, name: str) -> float | None:
    few, many = (best(run, work, name, n) for n in (min(run["threads"]), max(run["threads"])))
    if not few or not many or many["threads"] is None:
        return None
    return few["median"] / many["median"]


def notes(run: Run) -> list[str]:
    """What a reader must know: what the tables of rules come to, who is missing and why, what went wrong."""
    lines = list(_rules_ends(run)) if run["suite"] == "rules" else []
    lines += [f"{name}: {reason}" for name, reason in run["absent"].items()] + run["notes"]
    return [part for line in lines for part in _wrapped(line)]


def _wrapped(text: str, width: int = 80) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, subsequent_indent="  ")


# --- Markdown ------------------------------------------------------------------------------------


def markdown(run: Run) -> str:
    """The run for the documentation: what was run where, the table, its spread, the threads."""
    if run["suite"] == "rules":
        return _rules_markdown(run)
    names = contenders(run)
    parts = [_facts(run), _main_table(run, names), _spread_table(run, names)]
    parts += ["\n".join(denormals(run)), _threads_table(run), _bullets(notes(run))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(run: Run) -> str:
    machine = run["machine"]
    versions = dict.fromkeys(run["versions"].values())
    return _bullets([
        f"Date: {run['date']}",
        f"Machine: {_processor(machine)}",
        f"System: {machine['system']}, Python {machine['python']}",
        f"Versions: {', '.join(versions)}",
        f"Command: `{run['command']}`",
    ])


def _processor(machine: Machine) -> str:
    caches = ", ".join(_cache(cache) for cache in machine["caches"])
    return f"{machine['cpu']}, {machine['cores']} cores" + (f"; {caches}" if caches else "")


def _cache(cache: Cache) -> str:
    shared = f" for {cache['cores']} cores" if cache["cores"] > 1 else " a core"
    return f"L{cache['level']} {cache['bytes'] // 1024} KiB{shared}"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _main_table(run: Run, names: list[str]) -> str:
    yardstick = run["yardstick"]
    rows: list[list[str]] = []
    for work in run["works"]:
        limit = shown(run, work["name"], yardstick)
        rate = f"{work['amount'] / limit['median'] / 1e9:.0f}" if limit else ""
        rows.append([work["title"], rate, *(_cell(run, work["name"], name) for name in names)])
    caption = f"{_caption(run, 'in parentheses')} {run['unit']} is what the {yardstick} makes of it."
    return f"{caption}\n\n" + _grid(["work", run["unit"], *names], rows)


def _cell(run: Run, work: str, name: str) -> str:
    result, times = shown(run, work, name), ratio(run, work, name)
    if not result:
        return ""
    inside = [short(times)] if times else []
    if run["suite"] == "training":
        inside.append(f"{result['threads']} t")
    return microseconds(result["median"]) + (f" ({', '.join(inside)})" if inside else "")


def _spread_table(run: Run, names: list[str]) -> str:
    rows = []
    for work in run["works"]:
        results = [shown(run, work["name"], name) for name in names]
        cells = [f"{microseconds(r['min'])} ({spread(r):.0%})" if r else "" for r in results]
        rows.append([work["title"], *cells])
    caption = (
        "The shortest time in microseconds, and in parentheses the distance of the quartiles of "
        f"{run['settings']['rounds']} rounds in percent of the median."
    )
    return f"{caption}\n\n" + _grid(["work", *names], rows)


def _threads_table(run: Run) -> str:
    few, many = min(run["threads"]), max(run["threads"])
    names = [n for n in contenders(run) if any(_speedup(run, w["name"], n) for w in run["works"])]
    if few == many:
        return ""
    rows = []
    for work in run["works"]:
        values = [_speedup(run, work["name"], name) for name in names]
        rows.append([work["title"], *(f"{x:.2f}" if x else "" for x in values)])
    return f"Speed of {many} threads over that of {few}.\n\n" + _grid(["work", *names], rows)


def _grid(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


# --- Rules ---------------------------------------------------------------------------------------

RULE_HEAD = ("rule", "streams", "bytes", "limit", "fastopt", "ratio", "torch", "mode", "gain")
RULE_WIDTHS = (25, 8, 6, 7, 8, 6, 7, 8, 5)
RULES_CAPTION = (
    "Median time of a step in microseconds. Streams: arrays read + written, and bytes: of these, a "
    "parameter; limit: these streams with next to no arithmetic; ratio: fastopt's time over the "
    "limit's; torch: the fastest of its modes for the rule; gain: its time over fastopt's."
)


def _rules_table(run: Run, details: bool) -> str:
    lines = _wrapped(RULES_CAPTION)
    for heading, works, threads in _rules_parts(run):
        lines += ["", heading, "", _rules_row(RULE_HEAD)]
        for work in works:
            results = _rule_results(run, work, threads)
            lines.append(_rules_row(_rule_cells(work, *results)))
            if details:
                lines.append(_rules_row(_details("  shortest", results, lambda r: microseconds(r["min"]))))
                lines.append(_rules_row(_details("  spread", results, lambda r: f"{spread(r):.0%}")))
    lines += ["", *notes(run)]
    return "\n".join(lines).rstrip() + "\n"


def _rules_markdown(run: Run) -> str:
    parts = [_facts(run), RULES_CAPTION]
    for heading, works, threads in _rules_parts(run):
        rows = [
            [*_rule_cells(work, *_rule_results(run, work, threads)), _gain_over_default(run, work, threads)]
            for work in works
        ]
        parts += [heading, _grid([*RULE_HEAD, "over default"], rows)]
    parts.append("Over default: time of torch without an argument, one tensor at a time, over fastopt's.")
    parts.append(_bullets(notes(run)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _rules_parts(run: Run) -> Iterator[tuple[str, list[dict[str, Any]], int]]:
    """Heading, works and number of threads of each table."""
    kinds = dict.fromkeys((work["elementwise"], tuple(work["shape"])) for work in run["works"])
    for elementwise, shape in kinds:
        works = [w for w in run["works"] if (w["elementwise"], tuple(w["shape"])) == (elementwise, shape)]
        name = "Elementwise rules" if elementwise else "Rules of norms, counts, factors and matrices"
        for threads in sorted(run["threads"], reverse=True):
            size = " x ".join(f"{n:,}" for n in shape)
            yield f"{name}: {size} float32, {threads} thread{'s' * (threads > 1)}", works, threads


def _rule_results(run: Run, work: dict[str, Any], threads: int) -> RuleResults:
    """Results of limit, fastopt, and torch's fastest mode."""
    limit, ours, *modes = (best(run, work["name"], name, threads) for name in ("limit", "fastopt", *TORCH))
    return limit, ours, min(filter(None, modes), key=lambda result: result["median"], default=None)


def _rule_cells(
    work: dict[str, Any], limit: Result | None, ours: Result | None, torch: Result | None
) -> list[str]:
    reads, writes = work["streams"]
    times = [result and microseconds(result["median"]) for result in (limit, ours, torch)]
    return [
        work["rule"], f"{reads}+{writes}", str(4 * (reads + writes)), times[0] or "", times[1] or "",
        f"{ours['median'] / limit['median']:.2f}" if ours and limit else "", times[2] or "",
        TORCH[torch["contender"]] if torch else "",
        short(torch["median"] / ours["median"]) if torch and ours else "",
    ]


def _gain_over_default(run: Run, work: dict[str, Any], threads: int) -> str:
    ours, torch = (best(run, work["name"], name, threads) for name in ("fastopt", "torch"))
    return short(torch["median"] / ours["median"]) if torch and ours else ""


def _details(title: str, results: RuleResults, text: Callable[[Result], str]) -> list[str]:
    limit, ours, torch = ((result and text(result)) or "" for result in results)
    return [title, "", "", limit, ours, "", torch, "", ""]


def _rules_row(cells: Sequence[str]) -> str:
    first, *rest = zip(cells, RULE_WIDTHS, strict=True)
    return ("{:{}}".format(*first) + "".join(f"{cell:>{width}}" for cell, width in rest)).rstrip()


def _rules_ends(run: Run) -> Iterator[str]:
    """Which elementwise rules are far from their limit, and the noise."""
    above: dict[int, list[str]] = {}
    spreads: list[float] = []
    for work in run["works"]:
        for threads in run["threads"]:
            limit, ours, _ = _rule_results(run, work, threads)
            spreads += [spread(result) for result in (limit, ours) if result]
            ratio = ours["median"] / limit["median"] if ours and limit else 0.0
            if work["elementwise"] and ratio > AIM:
                above.setdefault(threads, []).append(f"{work['rule']} {ratio:.2f}")
    for threads, rules in above.items():
        yield f"Above {AIM} of the limit with {threads} thread{'s' * (threads > 1)}: {', '.join(rules)}."
    if spreads:
        yield (
            f"Distance of the quartiles of {run['settings']['rounds']} rounds: {median(spreads):.0%} of the "
            f"median for limit and fastopt in the middle of all rows, at most {max(spreads):.0%}."
        )


# --- The plot ------------------------------------------------------------------------------------


def plot(run: Run, path: str) -> None:
    """Time a number in nanoseconds against the size of one array, with the sizes of the caches.

    Parameters
    ----------
    run : dict
    path : str
        Image to write; its ending says the format.

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        If the run has less than two sizes of a single array.
    """
    figure_class = load_figure()
    sizes = {
        work["name"]: work["size"]
        for work in sorted(run["works"], key=lambda work: work["size"])
        if work["arrays"] == 1 and work["kind"] == "adam" and not work["denormal"]
    }
    if len(sizes) < 2:
        raise ValueError(f"plot: expected a run with {', '.join(SWEEP)} or some of them")
    figure = figure_class(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    for name in (name for name in PLOTTED if name in contenders(run)):
        _draw(axes, run, name, sizes)
    _mark_caches(axes, run["machine"]["caches"], max(sizes.values()))
    axes.set_xlabel("numbers in the array (float32)")
    axes.set_ylabel("time of a step of Adam, ns a number")
    axes.set_title(f"{run['machine']['cpu']}, {max(run['threads'])} threads", fontsize="medium")
    axes.grid(which="major", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def load_figure() -> type[Figure]:
    """matplotlib's Figure, or an ImportError that says how to get it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'fastopt[plot]'") from error
    return Figure


def _draw(axes: Axes, run: Run, name: str, sizes: Mapping[str, int]) -> None:
    results = [(size, best(run, work, name, max(run["threads"]))) for work, size in sizes.items()]
    points = [(size, result["median"] / size * 1e9) for size, result in results if result]
    style: dict[str, Any] = {"color": "0.4", "linestyle": "--"} if name == "limit" else {"marker": "o"}
    axes.plot(*zip(*points, strict=True), label=name, markersize=4, **style)


def _mark_caches(axes: Axes, caches: Iterable[Cache], largest: int) -> None:
    """A line where parameter, gradient and both moments fill a cache."""
    for cache in caches:
        size = cache["bytes"] / BYTES_HELD
        if size < largest:
            axes.axvline(size, color="0.7", linewidth=1, zorder=0)
            axes.annotate(
                f"L{cache['level']}", (size, 1), xycoords=("data", "axes fraction"),
                xytext=(-3, -12), textcoords="offset points", ha="right", color="0.5",
            )
