"""Where should a denoising U-Net normalise? Placements x regimes x seeds, measured.

python benchmarks/norm_study.py configs/norm_study/small.yaml --data PATH/TO/cifar10_jpeg
python benchmarks/norm_study.py configs/norm_study/small.yaml --report

The first trains what is not yet in benchmarks/results/norm_study/small, so that the same command goes on after a kill;
several processes split the work with --shard 1/4, 2/4, ... The second writes docs/normalization.md and its plots from
the results alone. DATA is a folder of parquet files, one of them with "train" and one with "test" in its name, with a
column "img" (CIFAR-10 as on the hub).
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.normalization.settings import StudyConfig  # noqa: E402
from unetdiff.command import user_errors  # noqa: E402


def train_all(config: StudyConfig, data: str, folder: Path, shard: str) -> None:
    """Train and measure what is not yet in `folder`."""
    import torch

    from benchmarks.normalization.data import load_images
    from benchmarks.normalization.placements import find_arm
    from benchmarks.normalization.study import run_study
    from benchmarks.normalization.training import run_job
    from benchmarks.resumable import parse_shard

    with user_errors():
        part = parse_shard(shard)
        for placements in config.regimes.values():
            for name in placements:
                find_arm(name)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        images = load_images(data, config, device)
        run_study(config, folder, lambda job: run_job(job, config, images), part)


def main() -> None:
    from jsonargparse import ArgumentParser

    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--config")
    parser = ArgumentParser(prog="python benchmarks/norm_study.py CONFIG", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="settings file (YAML); CONFIG for short")
    parser.add_argument("--data", type=str | None, help="a folder with the parquet files of CIFAR-10")
    parser.add_argument("--shard", type=str, default="1/1", help="i/n: every n-th network, from the i-th")
    parser.add_argument("--results", type=str | None, help="folder of the results, one file per network")
    parser.add_argument("--report", action="store_true", help="write page and plots from the results")
    parser.add_class_arguments(StudyConfig, "study")
    given = parser.parse_args(arguments)
    config = parser.instantiate(given).study
    name = Path(str(given.config[0])).stem if given.config else "study"
    folder = Path(given.results or ROOT / "benchmarks" / "results" / "norm_study" / name)
    if given.report:
        from benchmarks.normalization.report import write_report

        with user_errors():
            write_report(folder, ROOT / "docs", f"configs/norm_study/{name}.yaml")
    elif given.data is None:
        parser.error("--data is missing: a folder with the parquet files of CIFAR-10, or --report")
    else:
        train_all(config, given.data, folder, given.shard)


if __name__ == "__main__":
    main()
