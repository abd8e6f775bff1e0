"""Train a denoiser: python train/denoise.py CONFIG [--group.key value ...]; the same command again goes on."""

from __future__ import annotations

import sys

from unetdiff.config import parse_denoise, user_errors


def main() -> int:
    config = parse_denoise(sys.argv[1:])  # before torch is imported: --help and misspelt keys answer at once

    from unetdiff.training.health import TrainingStopped
    from unetdiff.training.report import write_report
    from unetdiff.training.start import denoising_trainer

    with user_errors():
        trainer = denoising_trainer(config)
    try:
        with user_errors():
            trainer.fit()
    except TrainingStopped as reason:
        print(reason, file=sys.stderr)
        return 1
    if trainer.accelerator.is_main_process:
        print(f"finished: {trainer.run} ({write_report(trainer.run)})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
