"""Train and evaluate in stages: python train/pipeline.py PIPELINE.yaml [--folder DIR]; the same command goes on.

PIPELINE names runs of train/denoise.py and train/segment.py and evaluations of sample/masks.py in their order; see
docs/training.md. Several processes: torchrun --nproc-per-node 2 -- train/pipeline.py PIPELINE.yaml
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from unetdiff.command import CommandParser, run_command, user_errors
from unetdiff.pipeline_config import read_pipeline

MASKS = Path(__file__).parents[1] / "sample" / "masks.py"


def main() -> int:
    parser = CommandParser(prog="python train/pipeline.py", description=__doc__)
    parser.add_argument("pipeline", metavar="PIPELINE", help="the YAML file")
    parser.add_argument("--folder", help="below which every stage has its folder (default: as the file says)")
    options = parser.parse_args(sys.argv[1:])
    with user_errors():
        pipeline = read_pipeline(options.pipeline, options.folder)  # before torch is imported

    from unetdiff.training.pipeline import run_pipeline

    return run_pipeline(pipeline, runpy.run_path(str(MASKS))["arguments"])


if __name__ == "__main__":
    run_command(main)
