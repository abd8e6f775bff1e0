"""Membranes from scratch, beside MONAI's `UNet` of the same size: one JSON per fit, and a table of them.

python benchmarks/membranes.py configs/em_membranes.yaml --data PATH/TO/isbi2012_em
python benchmarks/membranes.py configs/em_membranes.yaml --report

The first fits what is not yet in benchmarks/results/em_membranes, every network on the same crops in the same order,
with the same loss, optimizer, rate and averaging of weights, in one loop; the second writes the table. Held-out slices
are predicted whole, once, after the last step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.bootstrap import paired_interval  # noqa: E402
from benchmarks.mask_fits import NETWORKS, fit_and_measure  # noqa: E402
from benchmarks.resumable import finished, read_results  # noqa: E402
from unetdiff.command import user_errors  # noqa: E402
from unetdiff.files import write_json, write_text  # noqa: E402
from unetdiff.run_config import read_yaml  # noqa: E402
from unetdiff.segment_config import parse_segment  # noqa: E402

FIGURES = {"membrane Dice": "dice", "membrane IoU": "iou", "V-Rand": "v_rand", "V-Info": "v_info", "ECE": "ece"}
"""Columns of the table, and the metric of each; of Dice and IoU the membrane's class."""


def table(results: list[dict[str, Any]], membrane: int) -> str:
    """Mean and standard deviation over seeds of each network, as a Markdown table."""
    lines = [
        f"| network | parameters | seeds | {' | '.join(FIGURES)} | seconds a fit |",
        "|" + "---|" * (len(FIGURES) + 4),
    ]
    for name in NETWORKS:
        fits = [result for result in results if result["network"] == name]
        if not fits:
            continue
        cells = []
        for key in FIGURES.values():
            values = [result["figures"][key] for result in fits]
            values = [value[membrane] if isinstance(value, list) else value for value in values]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        seconds = statistics.median(result["seconds"] for result in fits)
        row = [f"{name}, {fits[0]['precision']}", f"{fits[0]['parameters']:,}", len(fits), *cells, f"{seconds:.0f}"]
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def difference(results: list[dict[str, Any]], membrane: int) -> str:
    """How ours differs from MONAI's in membrane Dice and V-Rand, with 95% intervals over seeds and slices."""
    fits = {(result["network"], result["seed"]): result for result in results}
    seeds = sorted({seed for _, seed in fits if all((name, seed) in fits for name in NETWORKS)})
    if not seeds:
        return ""
    said = []
    for title, key in (("membrane Dice", "dice"), ("V-Rand", "v_rand")):
        ours, theirs = (
            np.array([_per_slice(fits[name, seed], key, membrane) for seed in seeds], dtype=float)
            for name in ("unetdiff", "monai")
        )
        mean, low, high = paired_interval(ours, theirs)
        said.append(f"{title} {mean:+.3f} ({low:+.3f} to {high:+.3f})")
    return f"unetdiff - monai, mean over slices, paired bootstrap over seeds and slices: {', '.join(said)}."


def _per_slice(result: dict[str, Any], key: str, membrane: int) -> list[float | None]:
    rows = sorted(result["figures"]["per_image"], key=lambda row: row["name"])
    return [row[key][membrane] if isinstance(row[key], list) else row[key] for row in rows]


def report(results: list[dict[str, Any]], membrane: int, name: str, steps: int) -> str:
    """The page of results as Markdown."""
    devices = ", ".join(sorted({result["device"] for result in results}))
    lines = [f"# {name}, {steps} steps", "", f"Fitted on {devices}, torch {results[0]['torch']}.", ""]
    return "\n".join([*lines, table(results, membrane), "", difference(results, membrane)]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/membranes.py CONFIG", description=__doc__)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--data", metavar="DIR", help="the folder of images and masks")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="default: those of CONFIG")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/ and the name of CONFIG")
    parser.add_argument("--report", action="store_true", help="write the table from the results")
    options = parser.parse_args()
    folder = options.results or ROOT / "benchmarks" / "results" / Path(options.config).stem
    config = parse_segment([options.config, *(["--data.path", options.data] if options.data else [])])
    config = replace(config, train=replace(config.train, steps=options.steps or config.train.steps))
    conditions = {"steps": config.train.steps, "settings": read_yaml(options.config)}
    with user_errors():
        if options.report:
            text = report(read_results(folder), config.evaluation.membrane or 0, folder.name, config.train.steps)
            write_text(folder.with_suffix(".md"), text)
            print(text)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            for name in options.networks:
                path = folder / f"{name}-{seed}.json"
                if not finished(path, conditions):
                    print(f"{name}, seed {seed}", file=sys.stderr)
                    write_json(path, fit_and_measure(name, replace(config, seed=seed), conditions))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
