"""What the training commands do once their settings are parsed."""

from __future__ import annotations

import sys
from collections.abc import Callable

from unetdiff.command import user_errors
from unetdiff.training.health import TrainingStopped
from unetdiff.training.loop import Trainer
from unetdiff.training.report import write_report


def train(make: Callable[[], Trainer]) -> int:
    """Train to the end and write the report; returns the exit code: 1 where training stopped before.

    A mistake of the user ends the program with one sentence and exit code 2.
    """
    with user_errors():
        trainer = make()
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
