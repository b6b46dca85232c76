"""What ``fastopt bench`` shows of a run: the terminal's table, Markdown and a plot.

A run is the dict that `fastopt.bench.measure` returns and ``--json`` writes; everything here reads
it and nothing else, so that a saved run can be shown again.
"""

from fastopt.bench.worker import SWEEP

BYTES_HELD = 16     # a number in p, g, m and v
PLOTTED = ("limit", "fastopt", "torch-fused", "numba", "optax", "numpy")
TITLE, COLUMN = 19, 8   # widths in the terminal


def best(run, work, contender, threads):
    """The result of a contender's best variant, or None where it has none.

    A contender that uses one thread whatever it is given has a result for the most threads only.
    """
    found = [
        result
        for result in run["results"]
        if (result["work"], result["contender"]) == (work, contender)
        and result["threads"] in (threads, None)
    ]
    return min(found, key=lambda result: result["median"], default=None)


def ratio(run, work, contender, threads):
    """Median time over the limit's; None without the one or the other, and for the limit itself."""
    result, limit = (best(run, work, name, threads) for name in (contender, "limit"))
    if contender == "limit" or not result or not limit:
        return None
    return result["median"] / limit["median"]


def contenders(run):
    """Who has a result, in the order in which they were asked for."""
    measured = {result["contender"] for result in run["results"]}
    return [name for name in run["versions"] if name in measured]


# --- The terminal --------------------------------------------------------------------------------


def table(run, details=False):
    """The run as text, at most 100 columns wide with the contenders there are.

    Parameters
    ----------
    run : dict
    details : bool
        With a line for the shortest time and one for the spread: the distance of the quartiles in
        percent of the median.
    """
    names, threads = contenders(run), max(run["threads"])
    limited = "; below it the ratio to the limit" if "limit" in names else ""
    lines = [f"Median time of a step in microseconds, {threads} threads{limited}."]
    lines += ["", *_header(names)]
    for work in run["works"]:
        results = [best(run, work["name"], name, threads) for name in names]
        ratios = [ratio(run, work["name"], name, threads) for name in names]
        lines.append(_row(work["title"], [r and microseconds(r["median"]) for r in results]))
        if any(ratios):
            lines.append(_row("", [x and f"{short(x)}x" for x in ratios]))
        if details:
            lines.append(_row("  shortest", [r and microseconds(r["min"]) for r in results]))
            lines.append(_row("  spread", [r and f"{spread(r):.0%}" for r in results]))
    lines += ["", *denormals(run), *speedups(run), *notes(run)]
    return "\n".join(lines).rstrip() + "\n"


def _header(names):
    parts = [name.partition("-")[::2] for name in names]
    return [
        _row("", [first if second else "" for first, second in parts]),
        _row("", [second or first for first, second in parts]),
    ]


def _row(title, cells):
    return (f"{title:{TITLE}}" + "".join(f"{cell or '':>{COLUMN}}" for cell in cells)).rstrip()


def microseconds(seconds):
    return short(seconds * 1e6)


def short(value):
    """A number with three significant digits, or all before the point, and no exponent."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def spread(result):
    low, high = result["quartiles"]
    return (high - low) / result["median"]


def denormals(run):
    """A line on what denormal state costs, if both works were measured."""
    names, threads = contenders(run), max(run["threads"])
    parts = []
    for name in names:
        normal, denormal = (best(run, work, name, threads) for work in ("4e6", "denormal"))
        if normal and denormal and name != "limit":
            parts.append(f"{name} {short(denormal['median'] / normal['median'])}")
    return _wrapped("Denormal state costs, times the normal: " + ", ".join(parts)) if parts else []


def speedups(run):
    """A table of what more threads bring, if the run has more than one number of them."""
    few, many = min(run["threads"]), max(run["threads"])
    if few == many:
        return []
    names = [n for n in contenders(run) if any(_speedup(run, w["name"], n) for w in run["works"])]
    lines = [f"Speed of {many} threads over that of {few}.", "", *_header(names)]
    for work in run["works"]:
        values = [_speedup(run, work["name"], name) for name in names]
        lines.append(_row(work["title"], [x and f"{x:.2f}" for x in values]))
    return [*lines, ""]


def _speedup(run, work, name):
    few, many = (best(run, work, name, n) for n in (min(run["threads"]), max(run["threads"])))
    if not few or not many or many["threads"] is None:
        return None
    return few["median"] / many["median"]


def notes(run):
    """What a reader must know: who is missing and why, and what went wrong."""
    lines = [f"{name}: {reason}" for name, reason in run["absent"].items()] + run["notes"]
    return [part for line in lines for part in _wrapped(line)]


def _wrapped(text, width=96):
    import textwrap

    return textwrap.wrap(text, width, subsequent_indent="  ")


# --- Markdown ------------------------------------------------------------------------------------


def markdown(run):
    """The run for the documentation: what was run where, the table, its spread, the threads."""
    names, threads = contenders(run), max(run["threads"])
    parts = [_facts(run), _main_table(run, names, threads), _spread_table(run, names, threads)]
    parts += ["\n".join(denormals(run)), _threads_table(run), _bullets(notes(run))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(run):
    machine = run["machine"]
    caches = ", ".join(_cache(cache) for cache in machine["caches"])
    versions = dict.fromkeys(run["versions"].values())
    return _bullets([
        f"Date: {run['date']}",
        f"Machine: {machine['cpu']}, {machine['cores']} cores" + (f"; {caches}" if caches else ""),
        f"System: {machine['system']}, Python {machine['python']}",
        f"Versions: {', '.join(versions)}",
        f"Command: `{run['command']}`",
    ])


def _cache(cache):
    shared = f" for {cache['cores']} cores" if cache["cores"] > 1 else " a core"
    return f"L{cache['level']} {cache['bytes'] // 1024} KiB{shared}"


def _bullets(lines):
    return "\n".join(f"- {line}" for line in lines)


def _main_table(run, names, threads):
    rows = []
    for work in run["works"]:
        limit = best(run, work["name"], "limit", threads)
        cells = [f"{work['bytes'] / limit['median'] / 1e9:.0f}" if limit else ""]
        for name in names:
            result = best(run, work["name"], name, threads)
            times = ratio(run, work["name"], name, threads)
            text = microseconds(result["median"]) if result else ""
            cells.append(f"{text} ({short(times)})" if times else text)
        rows.append([work["title"], *cells])
    caption = (
        f"Median time of a step in microseconds with {threads} threads, and in parentheses its "
        "ratio to the limit. GB/s is what the limit moves."
    )
    return f"{caption}\n\n" + _grid(["work", "GB/s", *names], rows)


def _spread_table(run, names, threads):
    rows = []
    for work in run["works"]:
        results = [best(run, work["name"], name, threads) for name in names]
        cells = [f"{microseconds(r['min'])} ({spread(r):.0%})" if r else "" for r in results]
        rows.append([work["title"], *cells])
    caption = (
        "The shortest time in microseconds, and in parentheses the distance of the quartiles of "
        f"{run['settings']['rounds']} rounds in percent of the median."
    )
    return f"{caption}\n\n" + _grid(["work", *names], rows)


def _threads_table(run):
    few, many = min(run["threads"]), max(run["threads"])
    names = [n for n in contenders(run) if any(_speedup(run, w["name"], n) for w in run["works"])]
    if few == many:
        return ""
    rows = []
    for work in run["works"]:
        values = [_speedup(run, work["name"], name) for name in names]
        rows.append([work["title"], *(f"{x:.2f}" if x else "" for x in values)])
    return f"Speed of {many} threads over that of {few}.\n\n" + _grid(["work", *names], rows)


def _grid(head, rows):
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


# --- The plot ------------------------------------------------------------------------------------


def plot(run, path):
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


def load_figure():
    """matplotlib's Figure, or an ImportError that says how to get it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'fastopt[plot]'") from error
    return Figure


def _draw(axes, run, name, sizes):
    results = [(size, best(run, work, name, max(run["threads"]))) for work, size in sizes.items()]
    results = [(size, result["median"] / size * 1e9) for size, result in results if result]
    style = {"color": "0.4", "linestyle": "--"} if name == "limit" else {"marker": "o"}
    axes.plot(*zip(*results, strict=True), label=name, markersize=4, **style)


def _mark_caches(axes, caches, largest):
    """A line where parameter, gradient and both moments fill a cache."""
    for cache in caches:
        size = cache["bytes"] / BYTES_HELD
        if size < largest:
            axes.axvline(size, color="0.7", linewidth=1, zorder=0)
            axes.annotate(
                f"L{cache['level']}", (size, 1), xycoords=("data", "axes fraction"),
                xytext=(-3, -12), textcoords="offset points", ha="right", color="0.5",
            )
