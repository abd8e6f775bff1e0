"""docs/speed.md and its plots, from the results alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.cases import CASES
from benchmarks.speed.results import page
from unetdiff.files import write_text

COMMAND = "python benchmarks/bench.py --report"
COLUMNS = {"ms": "milliseconds", "peak, MiB": "peak memory, MiB", "samples/s": "samples per second"}


def write_report(results: Mapping[str, Mapping[str, Any]], docs: Path) -> None:
    """Write the page of all devices, and a picture of `scale` for each device that has it."""
    parts = []
    for device, held in results.items():
        text = page(held, list(CASES), COMMAND).replace("# Speed\n", f"# Speed on {device}\n", 1)
        if "scale" in held:
            name = f"speed_scale_{device}.png"
            draw_scale(held["scale"]["tables"], docs / "pictures" / name)
            text = text.replace("\n## scale\n", f"\n## scale\n\n![Growth of time and memory](pictures/{name})\n")
        parts.append(text)
    write_text(docs / "speed.md", "\n".join(parts))


def draw_scale(tables: list[dict[str, Any]], file: Path) -> None:
    """A panel per quantity and table of `scale`, on logarithmic axes, linear growth dashed beside it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [(table, [name for name in COLUMNS if name in table["rows"][0]]) for table in tables]
    figure, axes = pyplot.subplots(2, len(shown), figsize=(3.4 * len(shown), 6), squeeze=False, layout="constrained")
    for column, (table, names) in enumerate(shown):
        for place, name in zip(axes[:, column], names, strict=False):
            x = [row["at"] for row in table["rows"]]
            y = [row[name] for row in table["rows"]]
            power = 2 if table["title"].startswith("Side") else 1
            place.loglog(x, y, "o-")
            place.loglog(x, [y[-1] * (at / x[-1]) ** power for at in x], "--", color="grey", linewidth=1)
            place.set_xticks(x, [str(at) for at in x])
            place.minorticks_off()
            place.set_ylabel(COLUMNS[name])
            place.set_title(table["title"], fontsize=8)
        for place in axes[len(names) :, column]:
            place.set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
