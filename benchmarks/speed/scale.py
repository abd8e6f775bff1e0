"""How time and memory of forward and backward grow: with batch, pixels, depth; and time with processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.functional import mse_loss

from benchmarks.speed.cases import Options
from benchmarks.speed.memory import MEBI, allocated
from benchmarks.speed.results import Found, Row, Table, Target
from benchmarks.speed.start import ROOT, environment
from benchmarks.speed.timing import in_turn
from unetdiff.models.unet import UNet

NETWORK: dict[str, Any] = {"channels": [32, 64, 64], "blocks": 1, "in_channels": 3, "attention_head_channels": 32}
ATTENTION: dict[str, dict[str, Any]] = {
    "without attention": {"attention": [False, False, False], "middle_attention": False},
    "attention at two levels": {"attention": [False, True, True]},
}
PLAIN = next(iter(ATTENTION))
LINEAR = 1.1  # the largest exponent that counts as linear growth, from the largest sizes


def passes(network: UNet, batch: int, side: int) -> None:
    """Forward and backward of a batch of square images."""
    sample = torch.zeros(batch, 3, side, side, device=network.device)
    mse_loss(network(sample, torch.full((batch,), 500, device=network.device)).sample, sample).backward()


def grown(options: Options, cases: dict[Any, tuple[UNet, int, int]]) -> list[Row]:
    """Milliseconds and MiB of every case, in turn."""
    acts = {name: partial(passes, *case) for name, case in cases.items()}
    times = in_turn(acts, options.rounds(5))
    rows: list[Row] = []
    for name, act in acts.items():
        rows.append(
            {
                "at": name,
                "ms": round(median(entry[name] for entry in times) * 1e3, 2),
                "peak, MiB": round(allocated(act, options.device)[0] / MEBI, 2),
            }
        )
    return rows


def exponent(rows: Sequence[Row], column: str, power: float = 1.0) -> float:
    """Of the growth of a column between the last two rows: 1 is linear in at ** power."""
    (x0, y0), (x1, y1) = [(float(row["at"]) ** power, float(row[column])) for row in rows[-2:]]
    return float(np.log(y1 / y0) / np.log(x1 / x0))


def network(options: Options, attention: str, **settings: Any) -> UNet:
    """The network that grows."""
    torch.manual_seed(0)
    unet = UNet(**{**NETWORK, **ATTENTION[attention], **settings})
    return unet.to(options.device).train()  # pyright: ignore[reportArgumentType]


def with_processes(options: Options) -> list[Row]:
    """Samples per second of `train/denoise.py` on the digits with one process and more, cores shared out."""
    cores = len(os.sched_getaffinity(0))
    counts = [1, 2] if options.quick or cores < 4 else [1, 2, 4]
    rows: list[Row] = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            run, steps = Path(folder) / "run", 4 if options.quick else 40
            words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "train/denoise.py"]
            words += ["configs/digits.yaml", "--run_dir", str(run), "--train.steps", str(steps), "--train.log_every"]
            words += [str(steps // 4), "--train.sample_count", "10", "--sampling.steps", "2"]
            where = {**environment(), "OMP_NUM_THREADS": str(max(1, cores // count)), "ACCELERATE_USE_CPU": "1"}
            done = subprocess.run([sys.executable, *words], cwd=ROOT, env=where, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{count} processes failed:\n{done.stderr}")
            lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
        rates = [line["samples_per_second"] for line in lines if line["kind"] == "train"][1:]
        rows.append({"at": count, "samples/s": round(median(rates), 1), "threads each": max(1, cores // count)})
    return rows


def run(options: Options) -> Found:
    """The case."""
    large = options.device.type == "cuda"
    batches = [1, 2, 4] if options.quick else [1, 2, 4, 8, 16, 32] if not large else [8, 16, 32, 64, 128, 256]
    sides = [16, 32] if options.quick else [16, 32, 64, 128] if not large else [32, 64, 128, 256]
    tables, targets = [], []
    plain = network(options, PLAIN)
    rows = grown(options, {batch: (plain, batch, 32) for batch in batches})
    tables.append(Table("Batch, at 32 x 32", rows))
    targets.append(Target("memory against batch, exponent", exponent(rows, "peak, MiB"), LINEAR))
    targets.append(Target("time against batch, exponent", exponent(rows, "ms"), LINEAR))
    for name in ATTENTION:
        rows = grown(options, {side: (network(options, name), 2, side) for side in sides})
        tables.append(Table(f"Side of images, {name}, batch 2", rows))
        if name == PLAIN:
            targets.append(Target("memory against pixels, exponent", exponent(rows, "peak, MiB", 2), LINEAR))
            targets.append(Target("time against pixels, exponent", exponent(rows, "ms", 2), LINEAR))
    depths = [1, 2] if options.quick else [1, 2, 4, 8]
    rows = grown(options, {blocks: (network(options, PLAIN, blocks=blocks), 4, 32) for blocks in depths})
    tables.append(Table("Blocks per level, batch 4 at 32 x 32", rows))
    if not large:
        tables.append(Table("Processes, digits.yaml, 64 samples a step", with_processes(options)))
    return Found(tables, targets, ["Exponents are between the two largest sizes: 1 is linear growth."])
