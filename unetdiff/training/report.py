"""`report.html`: what a run did, on one page that opens from disk.

`python -m unetdiff.training.report RUN` writes it for a run that was stopped.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from unetdiff.command import user_errors
from unetdiff.config import DenoiseConfig
from unetdiff.figures import COLOURS, INK, MUTED, PANEL, PAPER, RULE, evenly_spaced
from unetdiff.files import write_text
from unetdiff.run_config import read_yaml, to_plain
from unetdiff.segment_config import SegmentConfig
from unetdiff.training.report_plots import (
    Record,
    curve_plot,
    loss_plot,
    noise_level_history_plot,
    noise_level_plot,
    series,
)

REPORT = "report.html"
LARGE_PICTURE, SMALL_PICTURE = 1200, 340  # pixels of the longer side, of the final grid and of earlier ones
EARLIER_GRIDS = 8

CURVES = (
    ("learning_rate", "Learning rate", False),
    ("grad_norm", "Gradient norm", True),
    ("samples_per_second", "Samples per second", True),
)
"""What is drawn of the training lines beside the loss: its key, its title, and whether it is noisy."""

MASK_CURVES = (("mean_iou", "Mean IoU"), ("mean_dice", "Mean Dice"), ("ece", "Calibration error (ECE)"))
MASK_FIGURES = ("mean_iou", "mean_dice", "accuracy", "mean_boundary_f", "ece", "nll", "v_rand", "v_info", "mean_hd95")

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
.three { grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); }
.strip { display: grid; gap: 12px; grid-template-columns: repeat(4, 1fr); }
.tables { columns: 2 440px; column-gap: 32px; }
table { width: 100%; margin-bottom: 20px; border-collapse: collapse; break-inside: avoid; font-size: 13px; }
caption { padding-bottom: 2px; text-align: left; font-size: 14px; font-weight: 600; }
th, td { padding: 3px 0; border-top: 1px solid $rule; text-align: left; vertical-align: top; font-weight: 400; }
th { width: 1%; min-width: 170px; white-space: nowrap; padding-right: 12px; color: $muted; }
td { overflow-wrap: anywhere; }
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

    Reads `config.yaml`, `runtime.json`, `metrics.jsonl`, the sample grids it names, `unet/config.json` and
    `plan.txt`. The page holds its pictures and its style, needs no network, and replaces an older one in one step.

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
        _masks(records["validation"]),
        _curves(records["train"]),
        _samples(run, records["samples"]),
        _notes(records["note"]),
        _section("Settings", _tables(settings, _defaults(settings)), "Coloured: other than the default."),
        _section("Machine and versions", _tables(runtime)),
        _section("Network", _network(run)),
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
    if len(series(train, "samples_per_second")[1]):
        figures.append((f"{np.median(series(train, 'samples_per_second')[1]):,.4g}", "samples / s"))
    if len(series(train, "elapsed")[1]):
        figures.append((_duration(seconds_trained(train)), "training time"))
    if train and train[-1].get("skipped"):
        figures.append((f"{train[-1]['skipped']:,}", "skipped steps"))
    figures += [(_plain(runtime[key]), key) for key in ("precision", "device") if key in runtime]
    cells = [f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in figures]
    return f'<div class="figures">{"".join(cells)}</div>' if cells else ""


def _losses(records: dict[str, list[Record]]) -> str:
    plot = loss_plot(records["train"], records["validation"])
    return _section("Loss", _plot(plot, "training and validation loss over steps"))


def _noise_levels(validation: Sequence[Record]) -> str:
    plots = [
        _plot(noise_level_plot(validation), "validation loss over the timestep"),
        _plot(noise_level_history_plot(validation), "validation loss of each range of timesteps over steps"),
    ]
    hint = "The larger the timestep, the more noise."
    return _section("Validation loss by noise level", _columns("two", plots), hint)


def _masks(validation: Sequence[Record]) -> str:
    """How held-out images are segmented: over steps, and by class after the last of them."""
    measured = [record for record in validation if "mean_iou" in record]
    if not measured:
        return ""
    plots = [
        (title, _plot(curve_plot(measured, key, False), f"{title.lower()} over steps")) for key, title in MASK_CURVES
    ]
    last = measured[-1]
    columns = [(title, last[key]) for key, title in (("iou", "IoU"), ("dice", "Dice")) if key in last]
    names = last.get("class_names") or range(len(last["iou"]))
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th>{''.join(f'<td>{_share(values[place])}</td>' for _, values in columns)}</tr>"
        for place, name in enumerate(names)
    )
    head = "".join(f"<th>{title}</th>" for title, _ in columns)
    table = f"<table><tr><th>class</th>{head}</tr>{rows}</table>"
    figures = ", ".join(f"{key.replace('_', ' ')} {last[key]:.4f}" for key in MASK_FIGURES if last.get(key) is not None)
    hint = f"After step {last['step']:,}: {figures}."
    drawn = _columns("three", [f"<h3>{title}</h3>{plot}" for title, plot in plots if plot])
    return _section("Masks of held-out images", drawn + table, hint)


def _share(value: float | None) -> str:
    """A figure between 0 and 1; a class that occurs nowhere has none."""
    return "–" if value is None else f"{value:.4f}"


def _defaults(settings: Record) -> Record:
    """The default settings of the kind of run that these are of."""
    return to_plain(SegmentConfig() if "objective" in settings else DenoiseConfig())


def _curves(train: Sequence[Record]) -> str:
    plots = [
        (title, _plot(curve_plot(train, key, noisy), f"{title.lower()} over steps")) for key, title, noisy in CURVES
    ]
    return _section(
        "Course of training", _columns("three", [f"<h3>{title}</h3>{plot}" for title, plot in plots if plot])
    )


def _samples(run: Path, records: Sequence[Record]) -> str:
    """The last grid that can be read, large, and earlier ones in a row."""
    found = [record for record in records if (run / str(record.get("file"))).is_file()]
    final = ""
    while found and not final:
        final = _figure(run, found.pop(), LARGE_PICTURE)
    strip = "".join(_figure(run, found[i], SMALL_PICTURE) for i in evenly_spaced(len(found), EARLIER_GRIDS))
    earlier = _section("Samples through training", f'<div class="strip">{strip}</div>' if strip else "")
    return _section("Samples", final) + earlier


def _figure(run: Path, record: Record, longest: int) -> str:
    """A sample grid with its step, reduced to `longest` pixels; empty if the file cannot be read."""
    try:
        with Image.open(run / record["file"]) as file:
            picture = file.convert("RGB")
    except OSError:  # a killed run leaves part of a picture
        return ""
    picture.thumbnail((longest, longest))
    data = io.BytesIO()
    picture.save(data, format="PNG")
    caption = f"step {record['step']:,}"
    image = _image("image/png", data.getvalue(), f"samples at {caption}")
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _notes(records: Sequence[Record]) -> str:
    rows = "".join(f"<tr><th>step {r['step']:,}</th><td>{escape(_plain(r.get('text')))}</td></tr>" for r in records)
    return _section("Notes", f"<table>{rows}</table>" if rows else "")


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
        changed = defaults is not None and key in defaults and _plain(defaults[key]) != _plain(value)
        mark = ' class="changed"' if changed else ""
        rows.append(f"<tr{mark}><th>{escape(str(key))}</th><td>{escape(_plain(value))}</td></tr>")
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


def _section(title: str, body: str, hint: str = "") -> str:
    """A heading over `body`; nothing without a body."""
    hint = f'<p class="hint">{hint}</p>' if hint else ""
    return f"<section><h2>{title}</h2>{hint}{body}</section>" if body else ""


def _columns(kind: str, parts: Sequence[str]) -> str:
    cells = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div class="columns {kind}">{cells}</div>' if cells else ""


def _plot(svg: str | None, description: str) -> str:
    return "" if svg is None else _image("image/svg+xml", svg.encode(), description)


def _image(kind: str, data: bytes, description: str) -> str:
    return f'<img alt="{escape(description)}" src="data:{kind};base64,{base64.b64encode(data).decode()}">'


def _plain(value: Any) -> str:
    """A value of YAML or JSON for a reader."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
