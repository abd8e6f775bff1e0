"""What every command does with mistakes, and how it ends. No torch."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NoReturn

_subject: ContextVar[str] = ContextVar("subject", default="")


@contextmanager
def speaking_of(subject: str) -> Iterator[None]:
    """Within, the sentences of `fail` begin with what they are about, such as one of several runs."""
    token = _subject.set(f"{subject}: ")
    try:
        yield
    finally:
        _subject.reset(token)


def fail(message: object) -> NoReturn:
    """End the command with one sentence on standard error and exit code 2.

    Mistakes are known to all processes (see `unetdiff.training.processes.together`), so the first one says them.
    """
    if os.environ.get("RANK", "0") == "0":
        print("error: " + _subject.get() + " ".join(str(message).split()), file=sys.stderr)
    raise SystemExit(2)


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, like all others here."""

    def error(self, message: str) -> NoReturn:
        """End the command with `message` and exit code 2."""
        fail(message)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a `ValueError` or `OSError` of the set-up into one sentence and exit code 2, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        fail(error)


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run `main` and end the process with the exit code that it returns.

    One process of several ends without clearing up: torch's gloo groups wait for their threads while they hold the
    lock of the interpreter, which such a thread may need for its last tensor, and then neither ever ends.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise SystemExit(main())
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
