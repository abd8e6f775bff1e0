"""`report.html`: what a run did, on one page that opens from disk.

`python -m unetdiff.training.report RUN` writes it for a run that was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from unetdiff.command import user_errors
from unetdiff.config import DenoiseConfig
from unetdiff.figures import COLOURS, INK, MUTED, PANEL, PAPER, RULE, evenly_spaced
from unetdiff.files import write_text
from unetdiff.run_config import read_yaml, to_plain
from unetdiff.segment_config import SegmentConfig
from unetdiff.training.report_html import (
    LARGE_PICTURE,
    SMALL_PICTURE,
    columns,
    figure,
    figure_row,
    plain,
    plot,
    section,
    titled,
)
from unetdiff.training.report_masks import mask_sections
from unetdiff.training.report_plots import (
    Record,
    curve_plot,
    loss_plot,
    noise_level_history_plot,
    noise_level_plot,
    series,
)

REPORT = "report.html"
EARLIER_GRIDS = 8

CURVES = (
    ("learning_rate", "Learning rate", False),
    ("grad_norm", "Gradient norm", True),
    ("samples_per_second", "Samples per second", True),
)
"""What is drawn of the training lines beside the loss: its key, its title, and whether it is noisy."""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; background: $paper; color: $ink;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
h1 { margin: 0 0 20px; font-size: 28px; overflow-wrap: anywhere; }
h2 { margin: 44px 0 10px; font-size: 19px; }
h3 { margin: 0 0 4px; font-size: 14px; font-weight: 600; }
p.hint { margin: 0 0 10px; color: $muted; font-size: 13px; }
img { display: block; max-width: 100%; }
figure { margin: 0; }
figcaption { margin-top: 4px; color: $muted; font-size: 13px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(125px, 1fr)); gap: 10px; }
.figures div { padding: 10px 14px; background: $panel; border-radius: 6px; }
.figures b { display: block; font-size: 20px; font-weight: 600; overflow-wrap: anywhere; }
.figures span { color: $muted; font-size: 13px; }
.columns { display: grid; gap: 24px; align-items: start; }
.two { grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); }
.table-and-plot { grid-template-columns: minmax(0, 5fr) minmax(0, 4fr); }
.figures + .columns, .columns + .columns { margin-top: 24px; }
.three { grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); }
.strip { display: grid; gap: 12px; grid-template-columns: repeat(4, 1fr); }
.tables { columns: 2 440px; column-gap: 32px; }
table { width: 100%; margin-bottom: 20px; border-collapse: collapse; break-inside: avoid; font-size: 13px; }
caption { padding-bottom: 2px; text-align: left; font-size: 14px; font-weight: 600; }
th, td { padding: 3px 0; border-top: 1px solid $rule; text-align: left; vertical-align: top; font-weight: 400; }
th { width: 1%; min-width: 170px; white-space: nowrap; padding-right: 12px; color: $muted; }
td { overflow-wrap: anywhere; }
.scroll { max-height: 560px; overflow: auto; }
.classes td, .classes th { padding: 3px 0 3px 12px; text-align: right; white-space: nowrap; min-width: 0; width: auto; }
.classes th:first-child { padding-left: 0; text-align: left; color: $ink; }
.classes tr:last-child td, .classes tr:last-child th { font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0 0 14px; font-size: 13px; }
.swatch { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border: 1px solid $rule;
  border-radius: 3px; vertical-align: -1px; }
.bar { display: inline-block; width: 120px; height: 12px; margin: 0 6px; border-radius: 3px; vertical-align: -1px; }
.cases figure { margin-bottom: 20px; }
.changed td { color: $accent; font-weight: 600; }
details { margin-top: 12px; }
summary { cursor: pointer; font-weight: 600; }
pre { max-height: 520px; overflow: auto; padding: 12px; background: $panel; border-radius: 6px; font-size: 12px;
  line-height: 1.4; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def write_report(run: Path) -> Path:
    """Write `report.html` of a run folder from what the folder holds; what is missing is left out.

    Reads `config.yaml`, `runtime.json`, `metrics.jsonl`, the sample grids it names, `evaluation/` of a segmentation
    run, `unet/config.json` and `plan.txt`. The page holds its pictures and its style, needs no network, and replaces an
    older one in one step.

    Args:
        run: the run folder, of a run that ended, was stopped, or still trains.

    Returns:
        the page's path.

    Raises:
        ValueError: the folder holds neither settings nor metrics, or one of its YAML or JSON files is damaged.
    """
    config, metrics = run / "config.yaml", run / "metrics.jsonl"
    if not config.is_file() and not metrics.is_file():
        raise ValueError(f"{run} holds neither config.yaml nor metrics.jsonl; expected a run folder")
    settings = read_yaml(config) if config.is_file() else {}
    records = read_metrics(metrics)
    runtime = _read_json(run / "runtime.json")
    sections = [
        _headline(settings, runtime, records),
        _losses(records),
        _noise_levels(records["validation"]),
        mask_sections(run, records["validation"]),
        _curves(records["train"]),
        _samples(run, records["samples"], _pictured(settings)),
        _notes(records["note"]),
        section("Settings", _tables(settings, _defaults(settings)), "Coloured: other than the default."),
        section("Machine and versions", _tables(runtime)),
        section("Network", _network(run)),
    ]
    colours = {"ink": INK, "muted": MUTED, "rule": RULE, "panel": PANEL, "paper": PAPER, "accent": COLOURS[0]}
    title = escape(run.resolve().name)
    write_text(run / REPORT, PAGE.substitute(colours, title=title, body="\n".join(filter(None, sections))))
    return run / REPORT


def read_metrics(path: Path) -> dict[str, list[Record]]:
    """The lines of `metrics.jsonl` by kind (`train`, `validation`, `samples`, `note`), in the order of the file.

    Broken lines, which a killed run leaves, and other kinds are passed over; without a file there are no lines.
    """
    records: dict[str, list[Record]] = {"train": [], "validation": [], "samples": [], "note": []}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int) and record.get("kind") in records:
            records[record["kind"]].append(record)
    return records


def seconds_trained(train: Sequence[Record]) -> float:
    """Seconds over all sessions of a run; `elapsed` starts again with every session that resumes it."""
    _, elapsed = series(train, "elapsed")
    advance = np.diff(elapsed, prepend=0.0)
    return float(np.where(advance < 0, elapsed, advance).sum())


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty without a file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def _headline(settings: Record, runtime: Record, records: dict[str, list[Record]]) -> str:
    """The row of figures at the top, (value, what it is) each."""
    train, validation = records["train"], records["validation"]
    figures = []
    step = max((record["step"] for lines in records.values() for record in lines), default=None)
    if step is not None:
        planned = (settings.get("train") or {}).get("steps", step)
        figures.append((f"{step:,}", "steps" if step >= planned else f"of {planned:,} steps"))
    if "parameters" in runtime:
        figures.append((_count(runtime["parameters"]), "parameters"))
    if len(series(validation, "loss")[1]):
        figures.append((f"{series(validation, 'loss')[1][-1]:.4g}", "validation loss"))
    elif len(series(train, "loss")[1]):
        figures.append((f"{series(train, 'loss')[1][-1]:.4g}", "training loss"))
    if len(series(validation, "mean_iou")[1]):
        figures.append((f"{series(validation, 'mean_iou')[1][-1]:.4f}", "mean IoU"))
    if len(series(validation, "denoising_loss")[1]):
        figures.append((f"{series(validation, 'denoising_loss')[1][-1]:.4g}", "denoising loss"))
    if len(series(train, "samples_per_second")[1]):
        figures.append((f"{np.median(series(train, 'samples_per_second')[1]):,.4g}", "samples / s"))
    if len(series(train, "elapsed")[1]):
        figures.append((_duration(seconds_trained(train)), "training time"))
    if train and train[-1].get("skipped"):
        figures.append((f"{train[-1]['skipped']:,}", "skipped steps"))
    figures += [(plain(runtime[key]), key) for key in ("precision", "device") if key in runtime]
    return figure_row(figures)


def _losses(records: dict[str, list[Record]]) -> str:
    drawn = loss_plot(records["train"], records["validation"])
    return section("Loss", plot(drawn, "training and validation loss over steps"))


def _noise_levels(validation: Sequence[Record]) -> str:
    plots = [
        plot(noise_level_plot(validation), "validation loss over the timestep"),
        plot(noise_level_history_plot(validation), "validation loss of each range of timesteps over steps"),
    ]
    hint = "The larger the timestep, the more noise."
    return section("Validation loss by noise level", columns("two", plots), hint)


def _is_segmentation(settings: Record) -> bool:
    """Whether these are the settings of a segmentation run."""
    return "objective" in settings


def _defaults(settings: Record) -> Record:
    """The default settings of the kind of run that these are of."""
    return to_plain(SegmentConfig() if _is_segmentation(settings) else DenoiseConfig())


def _curves(train: Sequence[Record]) -> str:
    plots = [
        titled(title, plot(curve_plot(train, key, noisy), f"{title.lower()} over steps"))
        for key, title, noisy in CURVES
    ]
    return section("Course of training", columns("three", plots))


def _pictured(settings: Record) -> str:
    """What pictures of such a run show."""
    kinds = {"joint": "Predictions and samples"}
    kind = str((settings.get("model") or {}).get("kind"))
    return kinds.get(kind, "Predictions") if _is_segmentation(settings) else "Samples"


def _samples(run: Path, records: Sequence[Record], name: str) -> str:
    """The last grid that can be read, large, and earlier ones in a row."""
    found = [record for record in records if (run / str(record.get("file"))).is_file()]
    final = ""
    while found and not final:
        final = _grid(run, found.pop(), LARGE_PICTURE)
    strip = "".join(_grid(run, found[i], SMALL_PICTURE) for i in evenly_spaced(len(found), EARLIER_GRIDS))
    return section(name, final) + section(
        f"{name} through training", f'<div class="strip">{strip}</div>' if strip else ""
    )


def _grid(run: Path, record: Record, longest: int) -> str:
    caption = f"step {record['step']:,}"
    return figure(run / record["file"], longest, caption, f"samples at {caption}")


def _notes(records: Sequence[Record]) -> str:
    rows = "".join(f"<tr><th>step {r['step']:,}</th><td>{escape(plain(r.get('text')))}</td></tr>" for r in records)
    return section("Notes", f"<table>{rows}</table>" if rows else "")


def _tables(groups: Record, defaults: Record | None = None) -> str:
    """One table per group of settings; the values outside a group come first.

    A row whose value differs from that of the same name in `defaults` is marked.
    """
    loose = {key: value for key, value in groups.items() if not isinstance(value, dict)}
    tables = [_table("run", loose, defaults)] if loose else []
    for name, group in groups.items():
        if isinstance(group, dict):
            tables.append(_table(name, group, None if defaults is None else defaults.get(name)))
    return f'<div class="tables">{"".join(tables)}</div>' if tables else ""


def _table(name: str, group: Record, defaults: Record | None) -> str:
    rows = []
    for key, value in group.items():
        changed = defaults is not None and key in defaults and plain(defaults[key]) != plain(value)
        mark = ' class="changed"' if changed else ""
        rows.append(f"<tr{mark}><th>{escape(str(key))}</th><td>{escape(plain(value))}</td></tr>")
    return f"<table><caption>{escape(name)}</caption>{''.join(rows)}</table>"


def _network(run: Path) -> str:
    """The plan and the configuration of the network, folded."""
    parts = []
    if (run / "plan.txt").is_file():
        parts.append(("Plan", (run / "plan.txt").read_text(encoding="utf-8", errors="replace")))
    config = _read_json(run / "unet" / "config.json")
    if config:
        parts.append(("Configuration", json.dumps(config, indent=2, ensure_ascii=False)))
    return "".join(f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>" for name, text in parts)


def _count(number: float) -> str:
    """A number to three digits: 987, 35.7 M."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def _duration(seconds: float) -> str:
    """A time in its two largest units: 45 s, 4 min 30 s, 3 h 12 min, 2 d 4 h."""
    units: tuple[tuple[int, str], ...] = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    rest, parts = round(seconds), []
    for size, unit in units:
        if rest >= size or (unit == "s" and not parts):
            parts.append(f"{rest // size} {unit}")
            rest %= size
    return " ".join(parts[:2])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: write the report of one run folder and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m unetdiff.training.report", description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder")
    with user_errors():
        print(write_report(parser.parse_args(arguments).run))


if __name__ == "__main__":
    main()
