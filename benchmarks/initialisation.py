"""Variances and gradients of every placement's network when it starts, beside what the rules predict.

python benchmarks/initialisation.py [--seeds 32] [--size 32]

Writes benchmarks/results/initialisation.md and initialisation.json; about two minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unetdiff.models.statistics import EXAMPLES, default_start, initial_statistics
from unetdiff.models.step import Step
from unetdiff.models.variance import Statistic, predict
from unetdiff.spec import NormPlacement, UNetSpec

RESULTS = Path(__file__).parent / "results"
Figures = Mapping[Step, Statistic]

# What a reader of a placement's table should know.
REMARKS = {
    "ddpm": "Branches start at zero, so the stream keeps the variance that the stem gave it, through strided and up "
    "convolutions and concatenations (what is missing goes into the zeros that this way down pads with). Emptied, "
    "every block adds 1, and concatenations average.",
    "adm": "As ddpm, but the input is white noise, and average pooling takes most of it away; an image, whose "
    "neighbours are alike, would keep its variance. In the decoder concatenations average it back.",
    "ncsnpp": "(v + v_b) / 2 with a branch that starts at zero halves the stream at every block, by definition; "
    "emptied, the same sum keeps it. The pyramid and the filters have no rule.",
    "ddpmpp": "As ncsnpp, without the pyramid; average pooling as in adm.",
    "edm2": "Unit variance by construction: sums, concatenations and weights keep magnitudes, pixel norm sets the "
    "encoder's. Branches vary from draw to draw, but have a share of 0.155 in the sum. The weights are normalised at "
    "every call, so torch's start is the same.",
    "nnunet": "The norm gives 1 (the branch), the leaky ReLU behind it leaves half: a mean square of 0.5 is what the "
    "next convolution makes up for. With torch's start the up-convolutions, which no norm follows, shrink what they "
    "read, so that the skip has most of the concatenation.",
    "unet2015": "No norm anywhere: variances before the nonlinearity (the branch) stay at 1 but for max-pooling, "
    "which raises them. Draws multiply, so means of few of them are rough. With torch's start the signal dies.",
}


def measure(settings: Mapping[str, Any], size: int, seeds: int) -> dict[str, Figures]:
    """The figures of a network as it starts (and predicted), without zeros to start from, and as torch starts it."""
    figures: dict[str, Figures] = {"measured": initial_statistics(settings, size=size, seeds=seeds)}
    figures["predicted"] = predict(UNetSpec(**settings), figures["measured"])
    placement = NormPlacement.of(settings["norm"])
    if placement.zero_init:
        emptied = {**settings, "norm": {"preset": settings["norm"], "zero_init": []}}
        figures["emptied"] = initial_statistics(emptied, size=size, seeds=seeds)
        figures["emptied, predicted"] = predict(UNetSpec(**emptied), figures["emptied"])
    if placement.weights == "plain":
        figures["torch"] = initial_statistics(settings, size=size, seeds=seeds, start=default_start)
    return figures


def number(value: float) -> str:
    """Three digits; a dash for what no rule says."""
    return "-" if math.isnan(value) else f"{value:.3g}" if value < 0.9995 else f"{value:.2f}"


COLUMNS = [
    ("variance", "measured", "variance"),
    ("predicted", "predicted", "variance"),
    ("branch", "measured", "branch"),
    ("predicted", "predicted", "branch"),
    ("gradient", "measured", "gradient"),
    ("predicted", "predicted", "gradient"),
    ("emptied: variance", "emptied", "variance"),
    ("predicted", "emptied, predicted", "variance"),
    ("gradient", "emptied", "gradient"),
    ("predicted", "emptied, predicted", "gradient"),
    ("torch: variance", "torch", "variance"),
    ("gradient", "torch", "gradient"),
]


def table(figures: Mapping[str, Figures]) -> list[str]:
    """One row per step."""
    columns = [column for column in COLUMNS if column[1] in figures]
    lines = [
        "| step | " + " | ".join(title for title, _, _ in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for step in figures["measured"]:
        cells = [number(getattr(figures[kind][step], name)) for _, kind, name in columns]
        lines.append(f"| {step.side} {step.name} | " + " | ".join(cells) + " |")
    return lines


def worst(measured: Figures, predicted: Figures, name: str) -> float:
    """The largest relative deviation from a prediction."""
    pairs = [(getattr(measured[step], name), getattr(predicted[step], name)) for step in measured]
    return max(abs(seen / rule - 1) for seen, rule in pairs if rule > 0)


def summary(results: Mapping[str, Mapping[str, Figures]]) -> list[str]:
    """One row per placement and start: ranges, and how far the rules are off at worst."""
    lines = [
        "| placement | start | variance of the stream | off at worst | gradient | off at worst |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in results.items():
        for kind, title in (("measured", "its own"), ("emptied", "zero_init emptied"), ("torch", "torch's")):
            if kind not in figures:
                continue
            rules = figures.get({"measured": "predicted", "emptied": "emptied, predicted"}.get(kind, ""))
            cells = []
            for entry in ("variance", "gradient"):
                values = [getattr(figure, entry) for figure in figures[kind].values()]
                cells.append(f"{number(min(values))} to {number(max(values))}")
                cells.append("" if rules is None else f"{worst(figures[kind], rules, entry):.0%}")
            lines.append(f"| {name} | {title} | " + " | ".join(cells) + " |")
    return lines


HEADING = """\
# Activations and gradients at the start, per placement

`python benchmarks/initialisation.py --size {size} --seeds {seeds}`, torch {torch}. Networks: `EXAMPLES` in
`unetdiff/models/statistics.py`, three levels of 64, 128 and 128 channels that resample as the placement's source does.

Unit normal input of 3 channels, {size} x {size}; means over {seeds} draws of weights with 2 samples each.
**variance**: mean square of the stream behind a step; **branch**: of what its residual branch adds; **gradient**: mean
square of the gradient of <g, features> at the stream, with g unit normal at the decoder's output (so not behind the
head, which may start at zero). Convolutions wrap around: with zero padding all is smaller at the border.
**predicted**: by the rules of `unetdiff/models/variance.py`, from the measured figures of the steps around it; `-`
where no rule says (pooling and filters, attention that does not start at zero). **emptied**: with `zero_init: []`;
**torch**: with the first weights that torch gives its layers.

The roughest rule is that a norm divides the gradient of its branch by the stream's root mean square: groups of few
channels that pooling has left nearly constant in space divide by less. With one group instead of 16 or 32, what is
emptied of ddpm and adm is off by 10% at most (`tests/models/test_statistics.py`).
"""


def plain(figures: Mapping[str, Figures]) -> dict[str, Any]:
    """The figures as JSON: null where no rule says."""
    return {
        kind: {
            f"{step.side}.{step.name}": {
                name: None if math.isnan(value) else value
                for name, value in (
                    ("variance", entry.variance),
                    ("branch", entry.branch),
                    ("gradient", entry.gradient),
                )
            }
            for step, entry in rows.items()
        }
        for kind, rows in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=32)
    options = parser.parse_args()
    results = {name: measure(settings, options.size, options.seeds) for name, settings in EXAMPLES.items()}
    heading = HEADING.format(size=options.size, seeds=options.seeds, torch=torch.__version__)
    lines = [heading, *summary(results)]
    for name, figures in results.items():
        lines += ["", f"## {name}", "", REMARKS[name], "", *table(figures)]
    (RESULTS / "initialisation.md").write_text("\n".join(lines) + "\n")
    saved = {name: plain(figures) for name, figures in results.items()}
    (RESULTS / "initialisation.json").write_text(json.dumps(saved, indent=1) + "\n")
    print("\n".join(summary(results)))


if __name__ == "__main__":
    main()
