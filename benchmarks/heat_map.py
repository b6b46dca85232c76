"""The heat map of a run of the suite ``grid``."""

import math

from fastopt import plots

RANGE = 3.0     # ratio at which the colors end, and its reciprocal
SHADES = 0.62   # share of the range from which a number is white


def draw(run, cells, rows, path):
    """Draw ratios of fastopt's time for each depth, width and batch size.

    Cells that were not measured are empty. The largest ratio of each row of panels has a frame.

    Parameters
    ----------
    run : dict
    cells : list of dict
        Its workloads that are drawn.
    rows : dict of dict
        Ratios by name of the workload, or None, for each row of panels, by what the time is compared with.
    path : str
    """
    depths, widths, batches = (sorted({w[name] for w in cells}) for name in ("depth", "width", "batch"))
    rows = {title: ratios for title, ratios in rows.items() if any(ratios.values())}
    width, height = 1.6 + 0.42 * len(batches) * len(depths), 0.9 + (0.7 + 0.36 * len(widths)) * len(rows)
    figure = plots.make_figure(figsize=(max(4.0, width), max(4.0, height)))
    axes = figure.subplots(len(rows), len(depths), squeeze=False, sharex=True, sharey=True)
    for line, (title, ratios) in zip(axes, rows.items(), strict=True):
        worst = max((name for name in ratios if ratios[name]), key=ratios.get)
        for panel, depth in zip(line, depths, strict=True):
            chosen = [w for w in cells if w["depth"] == depth]
            image = draw_panel(panel, chosen, ratios, widths, batches, worst)
            panel.set_title(f"{depth} hidden layer{'s' * (depth > 1)}", fontsize="small")
        line[0].set_ylabel(f"over {title}\nwidth", fontsize="small")
    for panel in axes[-1]:
        panel.set_xlabel("batch size", fontsize="small")
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
    ticks = [1 / RANGE, 0.5, 1, 2, RANGE]
    bar.set_ticks([math.log(tick) for tick in ticks], labels=[f"{tick:.2g}" for tick in ticks])
    figure.suptitle(
        f"Time of fastopt over that of {' and '.join(rows)}: {run['machine']['cpu']}, "
        f"{max(run['threads'])} threads", fontsize="small",
    )
    figure.savefig(path)


def draw_panel(panel, cells, ratios, widths, batches, worst):
    """Draw the cells of one depth; return the image, for the color bar."""
    from matplotlib.patches import Rectangle

    grid = [[math.nan] * len(batches) for _ in widths]
    limit = math.log(RANGE)
    for cell in cells:
        value = ratios[cell["name"]]
        if not value:
            continue
        i, j = widths.index(cell["width"]), batches.index(cell["batch"])
        grid[i][j] = shade = math.log(value)
        is_dark = abs(shade) > SHADES * limit
        panel.text(
            j, i, f"{value:.2f}", ha="center", va="center", fontsize="x-small",
            color="white" if is_dark else "black",
        )
        if cell["name"] == worst:
            panel.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, fill=False, linewidth=2))
    image = panel.imshow(grid, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", aspect="auto")
    panel.grid(visible=False)
    panel.set_xticks(range(len(batches)), labels=batches, fontsize="x-small")
    panel.set_yticks(range(len(widths)), labels=widths, fontsize="x-small")
    return image
