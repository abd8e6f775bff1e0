"""Progress bars: live on a terminal, a line now and then in a file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]\n"


def progress(*, desc: str, unit: str = "step", **options: Any) -> tqdm:
    """A progress bar on standard error; `options` are tqdm's."""
    if sys.stderr.isatty():
        return tqdm(desc=desc, unit=unit, dynamic_ncols=True, mininterval=0.2, **options)
    return tqdm(desc=desc, unit=unit, mininterval=15, bar_format=LINE, **options)
