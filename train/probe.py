"""Rank what a denoiser computes by how well it segments: python train/probe.py CONFIG --model.init_from RUN

CONFIG is a segmentation run's: its training images, by cross-validation, say which blocks at which timesteps are worth
reading (model.kind features). Leaves a table, probe.json and grid.png.
"""

from __future__ import annotations

import sys

from unetdiff.command import run_command, user_errors
from unetdiff.segment_config import parse_probe


def main() -> int:
    config = parse_probe(sys.argv[1:])  # before torch is imported: --help and misspelt keys answer at once

    from unetdiff.training.probe import probe

    with user_errors():
        print("\n".join(probe(config)))
    return 0


if __name__ == "__main__":
    run_command(main)
