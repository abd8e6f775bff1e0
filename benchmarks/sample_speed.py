"""Sampling beside diffusers' pipelines with the same weights, and the price of reused features on a digits run.

python benchmarks/sample_speed.py [--run runs/digits] [--batch_size 16 1 64] [--timed_steps 6] [--rounds 3]

The ways to sample take turns, since machines are noisy. All intervals and both precisions are timed for the first
batch size, fewer for the others. It writes sample_speed.json, .md and, of a run of configs/digits.yaml, .png into
benchmarks/results; about 5 minutes on two CPU cores. `--timed_steps 50` times whole runs.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from unetdiff.command import user_errors  # noqa: E402

LARGE = 16  # of batches above this, fewer steps are timed
FEW = [1, 3]  # intervals that are timed for further batch sizes


def measure_speeds(given: argparse.Namespace) -> dict[str, Any]:
    """The rows of all batch sizes and precisions, and how far the libraries agree."""
    import torch

    from benchmarks.sampling.speed import Networks, arms, check_agreement, measure

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = Networks.of(given.preset, device)
    steps = [networks.ours.divide(step).cut.skip.key for step in given.cache_step or (None, *deeper(networks.ours))]
    rows: list[dict[str, Any]] = []
    difference = check_agreement(networks)
    for batch_size in given.batch_size:
        first = batch_size == given.batch_size[0]
        about = given.timed_steps if batch_size <= LARGE else timed_steps_large(given)
        for precision in given.precision:
            whole = first and precision == given.precision[0]
            chosen = arms(given.interval, steps, ["ddim"]) if first else arms(FEW, steps[:1], ["ddim"])
            chosen += arms(FEW, steps[:1], ["dpmpp"]) if whole else []
            how = {"batch_size": batch_size, "precision": precision, "about": about, "rounds": given.rounds}
            rows += measure(networks, chosen, **how)
            for row in rows[-len(chosen) :]:
                print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    return {"difference": difference, "speed": rows}


def timed_steps_large(given: argparse.Namespace) -> int:
    """Steps that are timed of large batches."""
    return max(1, given.timed_steps // 2)


def deeper(unet: Any) -> list[str]:
    """The key of the next place where a network can be divided, below that which is the default."""
    from unetdiff.models.reuse import cuts

    keys, default = [cut.skip.key for cut in cuts(unet.plan)], unet.divide().cut.skip.key
    return keys[keys.index(default) + 1 :][:1]


def measure_prices(given: argparse.Namespace) -> dict[str, Any]:
    """The rows of a digits run, and what was drawn."""
    from benchmarks.sampling.price import COMPONENTS, measure_price
    from unetdiff.runs import load_run

    steps = [None, *deeper(load_run(given.run).unet)]
    cuts: Sequence[tuple[int, str | None]] = [(n, step) for step in steps for n in given.interval if n > 1]
    drawn = {"count": given.images, "sampler": given.price_sampler, "steps": given.price_steps}
    rows = measure_price(given.run, cuts, **drawn)
    return {**drawn, "run": given.run.name, "components": COMPONENTS, "rows": rows}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ddpm_cifar10")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[16, 1, 64])
    parser.add_argument("--precision", nargs="+", choices=["float32", "bf16"], default=["float32", "bf16"])
    parser.add_argument("--interval", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--cache_step", nargs="+", help="default: that of the network and the next deeper one")
    parser.add_argument("--timed_steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", type=Path, help="a run of configs/digits.yaml, to measure the price on")
    parser.add_argument("--images", type=int, default=300, help="samples per interval, a multiple of 50")
    parser.add_argument("--price_sampler", default="ddim")
    parser.add_argument("--price_steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    import diffusers
    import torch

    from benchmarks.sampling.report import draw, page
    from unetdiff.files import write_json, write_text

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    settings = {"preset": given.preset, "rounds": given.rounds, "timed_steps": given.timed_steps}
    with user_errors():
        results = {
            "date": str(date.today()),
            "device": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "command": " ".join(["python benchmarks/sample_speed.py", *sys.argv[1:]]),
            "settings": {**settings, "timed_steps_large": timed_steps_large(given)},
            **measure_speeds(given),
            **({"price": measure_prices(given)} if given.run else {}),
        }
    write_json(given.out / "sample_speed.json", results)
    write_text(given.out / "sample_speed.md", page(results))
    if given.run:
        draw(results["price"]["rows"], given.out / "sample_speed.png")
    print(page(results))


if __name__ == "__main__":
    main()
