"""Images per second of sampling beside diffusers' pipelines around its own network with the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.sampling.speed import Networks, arms, check_agreement, measure
from benchmarks.speed.cases import Options
from benchmarks.speed.results import Found, Row, Table, Target

BATCHES: Mapping[int, int] = {16: 3, 1: 6, 64: 1}
"""Images at once, and how many of the steps are timed; only the first has DPM-Solver++ and bf16 as well."""
LARGE = 16  # of batches above this, reuse is not timed
INTERVAL = 3  # of deep features
EQUAL, REUSED = 1.0, 1.9  # images per second over the pipeline's, without and with reuse
PRESET = "ddpm_cifar10"


def run(options: Options) -> Found:
    """The case."""
    networks = Networks.of(PRESET, options.device)
    difference = check_agreement(networks)
    held: list[dict[str, Any]] = []
    for batch, about in ({2: 1} if options.quick else BATCHES).items():
        first = not held
        for precision in ("float32", "bf16") if first else ("float32",):
            both = first and precision == "float32" and not options.quick
            intervals = [1] if batch > LARGE else [1, INTERVAL]
            chosen = arms(intervals, [None], ["ddim", "dpmpp"] if both else ["ddim"])
            held += measure(networks, chosen, batch_size=batch, precision=precision, about=about,
                            rounds=options.rounds(3))  # fmt: skip
    named = {"ddim": "DDIM, 50 steps", "dpmpp": "DPM-Solver++, 20 steps"}
    rows: list[Row] = [
        {
            "images at once": row["batch_size"],
            "precision": row["precision"],
            "sampler": named[row["sampler"]],
            "library": row["library"] + (f", features reused over {row['interval']}" if row["interval"] > 1 else ""),
            "images/s": row["images_per_second"],
            "times as fast as the pipeline (range)": "{ratio:.2f} ({ratio_low:.2f} - {ratio_high:.2f})".format(**row),
        }
        for row in held
    ]
    ours = {row["interval"]: row["ratio"] for row in held[:3] if row["library"] == "unetdiff"}
    targets = [
        Target("DDIM beside DDIMPipeline, images per second", ours[1], EQUAL, True),
        Target(f"the same, features reused over {INTERVAL}", ours[INTERVAL], REUSED, True),
    ]
    note = (
        f"`{PRESET}`; the two libraries' images differ by {difference:.1e} of [0, 1] before anything is timed. Of each "
        "run a few steps are timed, in which as large a share is recomputed, and taken to all of them; ratios are "
        "medians of rounds in turn with their range. The price of reuse: docs/sampling.md."
    )
    return Found([Table("Sampling", rows)], targets, [note])
