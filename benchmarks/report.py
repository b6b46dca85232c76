"""Reports of a run: text for the terminal, Markdown, and a plot. They read the dict that ``--json`` saves."""

import textwrap
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles

from benchmarks import heat_map
from benchmarks.contenders.torch import MODES
from benchmarks.measure import SUITES
from fastopt.cli.bench import plot_sizes, short, text_table

BYTES_HELD = 16     # of an element in p, g, m and v
PLOTTED = ("limit", "fastopt", "torch-fused", "numba", "optax", "numpy")
BOUNDS = ("floor", "limit")     # contenders that do a part of the work
TORCH = ("torch-fused", "torch-foreach", "torch")
TITLES = {
    "limit": "memory-bandwidth limit", "floor": "matrix products", "torch-fused": "torch, fused",
    "optax": "optax, jit", "numba": "numba, fastmath", "numpy": "NumPy", "sklearn": "scikit-learn",
}
AIM = 1.25          # largest ratio to its limit that an elementwise optimizer should have


@dataclass(frozen=True)
class Table:
    """A caption and cells; a table of details is optional in the terminal."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    is_detail: bool = False


# --- Results -------------------------------------------------------------------------------------


def best(run, workload, contender, threads):
    """Return the result of a contender's best variant, or None.

    A contender that knows one thread only counts for any number of threads. With None for `threads`, return
    the best of all numbers.
    """
    results = [
        result
        for result in run["results"]
        if (result["workload"], result["contender"]) == (workload, contender)
        and (threads is None or result["threads"] in (threads, None))
    ]
    return min(results, key=lambda result: result["median"], default=None)


def shown(run, workload, contender):
    """Return the result in the tables, or None.

    For steps it is that with the most threads. Small networks are often trained faster with one thread, so
    in training the best number counts for all but fastopt, which has to choose by itself.
    """
    best_counts = SUITES[run["suite"]].best_threads and contender != "fastopt"
    return best(run, workload, contender, None if best_counts else max(run["threads"]))


def ratio(run, workload, contender):
    """Return the median time over that of the yardstick; None if one is missing, and for the yardstick."""
    yardstick = SUITES[run["suite"]].yardstick
    result, unit = (shown(run, workload, name) for name in (contender, yardstick))
    return None if contender == yardstick or not result or not unit else result["median"] / unit["median"]


def speedup(run, workload, contender):
    """Return the time with the fewest threads over that with the most, or None."""
    few, many = (best(run, workload, contender, count(run["threads"])) for count in (min, max))
    return few["median"] / many["median"] if few and many and many["threads"] is not None else None


def contenders(run):
    """Return the contenders that have results, in their order."""
    measured = {result["contender"] for result in run["results"]}
    return [name for name in run["versions"] if name in measured]


def microseconds(result, key="median"):
    return short(result[key] * 1e6) if result else ""


def spread(result):
    """Return the interquartile range of the rounds relative to the median."""
    if len(result["rounds"]) < 2:
        return 0.0
    low, _, high = quantiles(result["rounds"], n=4, method="inclusive")
    return (high - low) / result["median"]


# --- Tables of steps and training -----------------------------------------------------------------


def tables(run, is_wide):
    """Return the tables of a run; wide ones have columns for which a terminal is too narrow."""
    if run["suite"] == "optimizers":
        return list(optimizer_tables(run, is_wide))
    names, suite = contenders(run), SUITES[run["suite"]]
    run = run | {"workloads": listed(run)}
    rates = partial(table_of, run, names, rate_of)
    parts = [Table(caption(run), ["workload", suite.unit, *names], rates(cell))]
    parts.append(Table(
        "Shortest time in microseconds, and in parentheses the interquartile range of "
        f"{run['settings']['rounds']} rounds in percent of the median.",
        ["workload", *names], table_of(run, names, None, spread_cell), is_detail=True,
    ))
    few, many = min(run["threads"]), max(run["threads"])
    threaded = [n for n in names if any(speedup(run, w["name"], n) for w in run["workloads"])]
    if few < many:
        rows = table_of(run, threaded, None, speedup_cell)
        parts.append(Table(f"Speed of {many} threads relative to {few}.", ["workload", *threaded], rows))
    return parts


def table_of(run, names, first, cell):
    """Return a row for each workload: its title, `first` where given, and a cell for each contender."""
    return [
        [w["title"], *([first(run, w)] if first else []), *(cell(run, w["name"], name) for name in names)]
        for w in run["workloads"]
    ]


def listed(run):
    """Return the workloads without those that are only drawn, unless there are no others."""
    drawn = {*SUITES[run["suite"]].sweep} - {*SUITES[run["suite"]].full.workloads}
    return [w for w in run["workloads"] if w["name"] not in drawn] or run["workloads"]


def rate_of(run, workload):
    result = shown(run, workload["name"], SUITES[run["suite"]].yardstick)
    return f"{workload['amount'] / result['median'] / 1e9:.0f}" if result else ""


def cell(run, workload, name):
    result, times = shown(run, workload, name), ratio(run, workload, name)
    inside = [short(times)] if times else []
    if result and result["threads"] and SUITES[run["suite"]].best_threads:
        inside.append(f"{result['threads']} t")
    return microseconds(result) + (f" ({', '.join(inside)})" if inside else "")


def spread_cell(run, workload, name):
    result = shown(run, workload, name)
    return f"{microseconds(result, 'min')} ({spread(result):.0%})" if result else ""


def speedup_cell(run, workload, name):
    value = speedup(run, workload, name)
    return f"{value:.2f}" if value else ""


def caption(run):
    suite, most = SUITES[run["suite"]], max(run["threads"])
    yardstick = suite.yardstick if suite.yardstick == "sklearn" else f"the {suite.yardstick}"
    has_ratios = suite.yardstick in contenders(run)
    ratios = f"; in parentheses the ratio to {yardstick}" if has_ratios else ""
    rate = f" {suite.unit}: the rate of {yardstick}." if has_ratios else ""
    if run["suite"] == "steps":
        return f"Median time of a step in microseconds with {most} thread{'s' * (most > 1)}{ratios}.{rate}"
    counts = " or ".join(map(str, run["threads"]))
    return (
        f"Median time of {suite.timed}{ratios}, and the number of threads: {most} for fastopt, {counts} for "
        f"the others, whichever is faster.{rate}"
    )


def denormal_note(run):
    """Return what denormal state costs, if both workloads were measured."""
    names, threads = contenders(run), max(run["threads"])
    parts = []
    for name in names:
        normal, denormal = (best(run, workload, name, threads) for workload in ("4e6", "denormal"))
        if normal and denormal and name != "limit":
            parts.append(f"{name} {short(denormal['median'] / normal['median'])}")
    return [f"Time with denormal state relative to normal state: {', '.join(parts)}"] if parts else []


def fastest_peer(run, workload):
    """Return the result of the fastest contender that does the same work, other than fastopt, or None."""
    names = [name for name in contenders(run) if name not in ("fastopt", *BOUNDS)]
    results = [result for name in names if (result := shown(run, workload, name))]
    return min(results, key=lambda result: result["median"], default=None)


def peer_ratio(run, workload):
    """Return fastopt's time over that of the fastest peer; None if one is missing."""
    result, peer = shown(run, workload, "fastopt"), fastest_peer(run, workload)
    return result["median"] / peer["median"] if result and peer else None


def worst_notes(run):
    """Return the workloads at which fastopt is slowest relative to the yardstick and to the fastest peer."""
    yardstick, notes = SUITES[run["suite"]].yardstick, []
    comparisons = {"the fastest peer": peer_ratio}
    if yardstick in BOUNDS:
        comparisons = {f"the {yardstick}": partial(ratio, contender="fastopt")} | comparisons
    for title, compare in comparisons.items():
        values = {w["title"]: value for w in run["workloads"] if (value := compare(run, w["name"]))}
        if values:
            worst = max(values, key=values.get)
            above = sum(value > 1.05 for value in values.values())
            notes.append(
                f"Largest ratio of fastopt to {title}: {values[worst]:.2f} at {worst}; "
                f"above 1.05 at {above} of {len(values)} workloads."
            )
    return notes


# --- Tables of optimizers -------------------------------------------------------------------------

OPTIMIZERS_CAPTION = (
    "Median time of a step in microseconds. Streams: arrays read + written; limit: these streams with almost "
    "no arithmetic; ratio: fastopt's time over the limit's; torch: the fastest of its modes for the "
    "optimizer; gain: its time over fastopt's."
)
WIDE_CAPTION = (
    " Bytes: of the streams, per parameter; over default: time of torch without a mode, one tensor at a "
    "time, over fastopt's."
)


def optimizer_tables(run, is_wide):
    groups = {}
    for workload in run["workloads"]:
        groups.setdefault((workload["elementwise"], tuple(workload["shape"])), []).append(workload)
    for (elementwise, shape), workloads in groups.items():
        kind = "Elementwise" if elementwise else "Norms, counts, factors and matrices"
        size = " x ".join(f"{n:,}" for n in shape)
        for threads in sorted(run["threads"], reverse=True):
            rows = [optimizer_cells(run, workload, threads) for workload in workloads]
            head = [name for name in rows[0] if is_wide or name not in ("bytes", "over default")]
            yield Table(
                f"{kind}: {size} float32, {threads} thread{'s' * (threads > 1)}", head,
                [[row[name] for name in head] for row in rows],
            )


def optimizer_results(run, workload, threads):
    """Return the results of limit, fastopt, the fastest mode of torch, and torch without a mode."""
    limit, local, *modes = (
        best(run, workload["name"], name, threads) for name in ("limit", "fastopt", *TORCH)
    )
    fastest = min(filter(None, modes), key=lambda result: result["median"], default=None)
    return limit, local, fastest, modes[-1]


def optimizer_cells(run, workload, threads):
    limit, local, torch, default = optimizer_results(run, workload, threads)
    reads, writes = workload["streams"]

    def over(result, other):
        return result["median"] / other["median"] if result and other else None

    return {
        "optimizer": workload["row"], "streams": f"{reads}+{writes}", "bytes": str(4 * (reads + writes)),
        "limit": microseconds(limit), "fastopt": microseconds(local),
        "ratio": f"{over(local, limit):.2f}" if local and limit else "", "torch": microseconds(torch),
        "mode": dict(zip(TORCH, reversed(MODES), strict=True))[torch["contender"]] if torch else "",
        "gain": short(over(torch, local)) if torch and local else "",
        "over default": short(over(default, local)) if default and local else "",
    }


def optimizer_notes(run):
    """Return which elementwise optimizers are far above their limit, and the noise."""
    above, spreads = {}, []
    for workload in run["workloads"]:
        for threads in run["threads"]:
            limit, local, *_ = optimizer_results(run, workload, threads)
            spreads += [spread(result) for result in (limit, local) if result]
            times = local["median"] / limit["median"] if local and limit else 0.0
            if workload["elementwise"] and times > AIM:
                above.setdefault(threads, []).append(f"{workload['row']} {times:.2f}")
    notes = [
        f"Above {AIM} of the limit with {threads} thread{'s' * (threads > 1)}: {', '.join(rows)}."
        for threads, rows in above.items()
    ]
    if any(spreads):
        notes.append(
            f"Interquartile range of {run['settings']['rounds']} rounds relative to the median, for limit "
            f"and fastopt: {median(spreads):.0%} in the median of all rows, at most {max(spreads):.0%}."
        )
    return notes


# --- Output ------------------------------------------------------------------------------------


def notes(run):
    if run["suite"] == "optimizers":
        lines = optimizer_notes(run)
    else:
        lines = worst_notes(run) if SUITES[run["suite"]].best_threads else denormal_note(run)
    return lines + [f"{name}: {reason}" for name, reason in run["absent"].items()] + run["notes"]


def facts(run):
    """Return where and how the run was measured."""
    machine = run["machine"]
    caches = ", ".join(
        f"L{cache['level']} {cache['bytes'] // 1024} KiB "
        + (f"for {cache['cores']} cores" if cache["cores"] > 1 else "per core")
        for cache in machine["caches"]
    )
    return [
        f"Date: {run['date']}",
        f"Machine: {machine['cpu']}, {machine['cores']} cores" + (f"; {caches}" if caches else ""),
        f"System: {machine['system']}, Python {machine['python']}",
        f"Versions: {', '.join(dict.fromkeys(run['versions'].values()))}",
        f"Command: `{run['command']}`",
    ]


def text(run, details=False, width=80):
    """Return the run for a terminal of the given width."""
    wrap = partial(textwrap.fill, width=width, subsequent_indent="  ", break_on_hyphens=False)
    parts = [wrap(OPTIMIZERS_CAPTION)] if run["suite"] == "optimizers" else []
    for table in tables(run, is_wide=False):
        if details or not table.is_detail:
            parts += [wrap(table.caption), text_table(table.head, table.rows, width)]
    parts += ["\n".join(map(wrap, lines)) for lines in (notes(run), facts(run))]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(run):
    """Return the run for the documentation."""
    parts = [bullets(facts(run)), OPTIMIZERS_CAPTION + WIDE_CAPTION if run["suite"] == "optimizers" else ""]
    for table in tables(run, is_wide=True):
        lines = [table.head, ["---", *["---:"] * (len(table.head) - 1)], *table.rows]
        parts += [table.caption, "\n".join(f"| {' | '.join(cells)} |" for cells in lines)]
    parts.append(bullets(notes(run)))
    return "\n\n".join(part for part in parts if part) + "\n"


def grouped(seconds):
    """Return microseconds with separators of thousands."""
    return short(seconds * 1e6) if seconds < 1e-4 else f"{seconds * 1e6:,.0f}"


def summary(run):
    """Return one Markdown table of a run, with the shortest time of each workload in bold."""
    suite, names = SUITES[run["suite"]], contenders(run)
    lines = [["workload", *(TITLES.get(name, name) for name in names)], ["---", *["---:"] * len(names)]]
    for workload in listed(run):
        results = {name: shown(run, workload["name"], name) for name in names}
        times = {name: result["median"] for name, result in results.items() if result}
        fastest = min((name for name in times if name not in BOUNDS), key=times.get)
        cells = {name: grouped(time) for name, time in times.items()}
        cells[fastest] = f"**{cells[fastest]}**"
        lines.append([workload["title"], *(cells.get(name, "") for name in names)])
    timed = "an Adam step in microseconds" if run["suite"] == "steps" else suite.timed
    machine, most = run["machine"], max(run["threads"])
    return (
        f"Median time of {timed}; {machine['cpu']}, {most} thread{'s' * (most > 1)}, {run['date']}:\n\n"
        + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
    )


def peers(run):
    """Return a Markdown table of the workloads at which another library is faster, the worst first."""
    run = run | {"workloads": listed(run)}
    slower = {w["name"]: value for w in run["workloads"] if (value := peer_ratio(run, w["name"]) or 0) > 1}
    lines = [["workload", "fastopt", "fastest library", "its time", "ratio"]]
    lines.append(["---", "---:", "---", "---:", "---:"])
    for workload in sorted(run["workloads"], key=lambda w: -slower.get(w["name"], 0)):
        if value := slower.get(workload["name"]):
            own, peer = shown(run, workload["name"], "fastopt"), fastest_peer(run, workload["name"])
            name = TITLES.get(peer["contender"], peer["contender"])
            times = [grouped(result["median"]) for result in (own, peer)]
            lines.append([workload["title"], times[0], name, times[1], f"{value:.2f}"])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n\n" if slower else ""
    return f"{table}{bullets(worst_notes(run))}\n"


def bullets(lines):
    return "\n".join(f"- {line}" for line in lines)


def plot_steps(run, path):
    """Draw the time per element against the size of one array, with the sizes of the caches.

    Raises
    ------
    ValueError
        If the run has less than two sizes of a single array.
    """
    workloads = sorted(
        (w for w in run["workloads"] if w["arrays"] == 1 and w["kind"] == "adam" and not w["denormal"]),
        key=lambda workload: workload["size"],
    )
    if len(workloads) < 2:
        raise ValueError(f"plot: expected a run with {', '.join(SUITES['steps'].sweep)} or some of them")
    times = {}
    for name in (name for name in PLOTTED if name in contenders(run)):
        results = (best(run, workload["name"], name, max(run["threads"])) for workload in workloads)
        times[name] = [result and result["median"] for result in results]
    figure = plot_sizes([workload["size"] for workload in workloads], times)
    (axes,) = figure.axes
    axes.legend([TITLES.get(name, name) for name in times])
    title = f"A step of Adam: {run['machine']['cpu']}, {max(run['threads'])} threads"
    axes.set_title(title, fontsize="medium")
    for cache in run["machine"]["caches"]:
        size = cache["bytes"] / BYTES_HELD      # parameter, gradient and both moments fill the cache
        if size < workloads[-1]["size"]:
            axes.axvline(size, color="0.5", alpha=0.6, linewidth=1, zorder=0)
            axes.annotate(
                f"L{cache['level']}", (size, 0), xycoords=("data", "axes fraction"),
                xytext=(-3, 5), textcoords="offset points", ha="right", color="0.5",
            )
    figure.savefig(path)


def plot_grid(run, path):
    """Draw fastopt's time over that of the floor, and over that of the fastest peer, as heat maps."""
    cells = [w for w in run["workloads"] if not w["form"]]
    rows = {
        "matrix products": {w["name"]: ratio(run, w["name"], "fastopt") for w in cells},
        "fastest peer": {w["name"]: peer_ratio(run, w["name"]) for w in cells},
    }
    if not any(value for ratios in rows.values() for value in ratios.values()):
        raise ValueError("plot: expected a run of fastopt with the floor or a peer, and cells without a form")
    heat_map.draw(run, cells, rows, path)


PLOTS = {"steps": plot_steps, "grid": plot_grid}
