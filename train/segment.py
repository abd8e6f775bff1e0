"""Train a segmentation network: python train/segment.py CONFIG [--group.key value ...]; the same command goes on.

With --check, look at the data, say what they are, and end.
"""

from __future__ import annotations

import sys

from unetdiff.command import run_command, user_errors
from unetdiff.segment_config import parse_segment

CHECK = "--check"


def main() -> int:
    # Before torch is imported: --help and misspelt keys answer at once.
    config = parse_segment([word for word in sys.argv[1:] if word != CHECK])
    if CHECK in sys.argv[1:]:
        from unetdiff.data.pairs import open_pairs

        with user_errors():
            print(open_pairs(config.data).report())
        return 0

    from unetdiff.training.command import train
    from unetdiff.training.segment import segmentation_trainer

    return train(lambda: segmentation_trainer(config))


if __name__ == "__main__":
    run_command(main)
