"""Train a denoiser: python train/denoise.py CONFIG [--group.key value ...]; the same command again goes on."""

from __future__ import annotations

import sys

from unetdiff.command import run_command, user_errors
from unetdiff.config import parse_denoise


def main() -> int:
    config = parse_denoise(sys.argv[1:])  # before torch is imported: --help and misspelt keys answer at once

    from unetdiff.training.denoise import denoising_trainer
    from unetdiff.training.health import TrainingStopped
    from unetdiff.training.report import write_report

    with user_errors():
        trainer = denoising_trainer(config)
    try:
        with user_errors():
            trainer.fit()
    except TrainingStopped as reason:
        if trainer.main:
            print(reason, file=sys.stderr)
        return 1
    if trainer.main:
        print(f"finished: {trainer.run} ({write_report(trainer.run)})")
    return 0


if __name__ == "__main__":
    run_command(main)
