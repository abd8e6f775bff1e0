"""Train a denoiser: python train/denoise.py CONFIG [--group.key value ...]; the same command again goes on."""

from __future__ import annotations

import sys

from unetdiff.command import run_command
from unetdiff.config import parse_denoise


def main() -> int:
    config = parse_denoise(sys.argv[1:])  # before torch is imported: --help and misspelt keys answer at once

    from unetdiff.training.command import train
    from unetdiff.training.denoise import denoising_trainer

    return train(lambda: denoising_trainer(config))


if __name__ == "__main__":
    run_command(main)
