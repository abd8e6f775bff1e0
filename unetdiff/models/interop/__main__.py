"""`python -m unetdiff.models.interop`: the command of `unetdiff.convert`."""

from __future__ import annotations

from unetdiff.command import run_command
from unetdiff.convert import main

if __name__ == "__main__":
    run_command(main)
