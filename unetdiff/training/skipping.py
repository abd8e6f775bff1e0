"""Counting the steps that a GPU leaves out, on the GPU, so that the host need not wait for it at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Skips:
    """What was left out since the last look. count: steps. row: in a row up to now. longest: the longest row.

    first: the first of them, counted from 0; -1 where there is none.
    """

    count: int
    row: int
    longest: int
    first: int


class SkipTally:
    """Counts on the device; only `read` waits for it.

    Attributes:
        skipped: (), float32: 1 where the step in hand is to be left out, else 0.
    """

    def __init__(self, device: torch.device) -> None:
        self.skipped = torch.zeros((), device=device)
        self._count, self._row, self._longest = (torch.zeros((), dtype=torch.long, device=device) for _ in range(3))
        self._first = torch.full((), -1, device=device)

    def take(self, skipped: Tensor, step: int) -> None:
        """Take in whether `step` is left out: (), 1 or 0, the same in all processes."""
        self.skipped, bad = skipped, skipped.long()
        self._first = torch.where((self._first < 0) & (bad > 0), step, self._first)
        self._count = self._count + bad
        self._row = (self._row + 1) * bad
        self._longest = torch.maximum(self._longest, self._row)

    def read(self) -> Skips:
        """What happened since the last call; a row goes on."""
        found = Skips(*torch.stack([self._count, self._row, self._longest, self._first]).tolist())
        self._count, self._longest, self._first = self._count * 0, self._row, self._first * 0 - 1
        return found
