"""Train a segmentation network: python train/segment.py CONFIG [--group.key value ...]; the same command goes on.

With --check, look at the data, say what they are, and end.
"""

from __future__ import annotations

import sys

from unetdiff.command import run_command, user_errors
from unetdiff.segment_config import parse_segment


def main() -> int:
    given = [word for word in sys.argv[1:] if word != "--check"]
    config = parse_segment(given)  # before torch is imported: --help and misspelt keys answer at once
    if "--check" in sys.argv[1:]:
        from unetdiff.data.pairs import open_pairs

        with user_errors():
            print(open_pairs(config.data).report())
        return 0

    from unetdiff.training.health import TrainingStopped
    from unetdiff.training.report import write_report
    from unetdiff.training.segment import segmentation_trainer

    with user_errors():
        trainer = segmentation_trainer(config)
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
