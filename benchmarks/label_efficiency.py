"""What is a denoiser worth where few images have masks? Ways to a mask x labelled draws x seeds, one JSON per fit.

python benchmarks/label_efficiency.py configs/label_efficiency/small.yaml --data ISBI --unlabelled MORE
python benchmarks/label_efficiency.py configs/label_efficiency/small.yaml --report

The first trains the denoisers in runs/label_efficiency/NAME, then what is not yet in
benchmarks/results/label_efficiency/NAME, so that the same command goes on after a kill; once the denoisers are there
(--pretrain NAME trains one and ends), several processes split the rest with --shard 1/4, 2/4, ... The second writes
docs/segmentation.md and its pictures from results alone. ISBI is the folder of images and masks of the ISBI 2012
challenge, MORE that of its unlabelled slices.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.label_study.settings import StudyConfig  # noqa: E402
from benchmarks.resumable import parse_shard  # noqa: E402
from unetdiff.command import user_errors  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/label_efficiency.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--data", metavar="ISBI", help="images with masks")
    parser.add_argument("--unlabelled", metavar="MORE", help="images without")
    parser.add_argument("--pretrain", metavar="NAME", help="train this denoiser and end; `none`: expect them all there")
    parser.add_argument("--shard", default="1/1", help="i/n: every n-th network, from the i-th")
    parser.add_argument("--results", type=Path, help="folder of the results, one file per network")
    parser.add_argument("--report", action="store_true", help="write page and pictures from the results")
    options = parser.parse_args()
    name = Path(options.config).stem
    folder = options.results or ROOT / "benchmarks" / "results" / "label_efficiency" / name
    runs = Path("runs") / "label_efficiency" / name
    with user_errors():
        config = StudyConfig.read(options.config)
        if options.report:
            from benchmarks.label_study.report import write_report

            write_report(config, folder, ROOT / "docs", f"configs/label_efficiency/{name}.yaml")
            return
        if not (options.data and options.unlabelled):
            parser.error("expected --data ISBI and --unlabelled MORE, or --report")
        from benchmarks.label_study.study import pretrain, run_fits

        places = {"data": options.data, "unlabelled": options.unlabelled}
        wanted = list(config.pretraining) if options.pretrain is None else [options.pretrain]
        pretrain(config, places, runs, [entry for entry in wanted if entry != "none"])
        if options.pretrain in (None, "none"):
            run_fits(config, places, runs, folder, parse_shard(options.shard))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
