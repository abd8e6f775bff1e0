"""Batches of network input: an endless training stream that resumes exactly, and fixed validation batches."""

from __future__ import annotations

import atexit
import signal
import sys
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from unetdiff.data.formats import DataFormat
from unetdiff.data.order import StepBatchSampler

if TYPE_CHECKING:
    from unetdiff.config import DataConfig
    from unetdiff.data.mask_options import MaskDataConfig

Batch = dict[str, torch.Tensor]
"""Keys: "sample" float32 (n, C, *space) in [-1, 1], "label" int64 (n,) or "mask" int64 (n, *space) if any, "weight"
float32 (n, *space) of its positions if any, "position" int64 (n,). Until `to_network` scales it, "sample" has the dtype
of the data."""

GRACE_SECONDS = 30
"""How long a worker outlives SIGTERM."""


class Drawn(Protocol):
    """What training batches are drawn from: a `Source`, or a `PairSource` of images with masks."""

    @property
    def format(self) -> DataFormat:
        """What samples look like."""
        ...

    def __len__(self) -> int: ...

    def draw(self, indices: np.ndarray, positions: np.ndarray, seed: int, settings: Any) -> dict[str, np.ndarray]:
        """Samples as training sees them, a function of the arguments alone."""
        ...


class Readable(Protocol):
    """What validation batches are read from: samples of one shape, as of `Source`."""

    @property
    def format(self) -> DataFormat:
        """What samples look like."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray, /) -> dict[str, np.ndarray]:
        """Samples cut at the centre."""
        ...


def to_tensors(format: DataFormat, arrays: dict[str, np.ndarray], positions: np.ndarray) -> Batch:
    """What a source's `read` or `draw` returned, samples in the dtype of their source: `to_network` does the rest."""
    others = {name: torch.from_numpy(arrays[name]) for name in ("label", "mask", "weight") if name in arrays}
    return {"sample": format.stored(arrays["sample"]), "position": torch.from_numpy(positions), **others}


def to_network(format: DataFormat, batch: Batch, device: torch.device | str) -> Batch:
    """The batch as network input on `device`: bytes travel as bytes and are scaled there.

    Positions stay behind: only messages read them.
    """
    moved = {
        name: tensor if name == "position" else tensor.to(device, non_blocking=True) for name, tensor in batch.items()
    }
    return {**moved, "sample": format.scale(moved["sample"])}


@dataclass(frozen=True)
class _TrainingBatches(Dataset):
    """Reads and augments one batch per (index, position) list: a pure function of it and the seed."""

    source: Drawn
    seed: int
    settings: Any
    prepare: Callable[[Batch], Batch] | None

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch | ValueError:
        indices, positions = np.array(pairs, dtype=np.int64).T.copy()
        try:
            arrays = self.source.draw(indices, positions, self.seed, self.settings)
        except ValueError as error:  # returned, since a worker would bury its message in a traceback
            return error
        batch = to_tensors(self.source.format, arrays, positions)
        return batch if self.prepare is None else self.prepare(batch)


def _as_is(batch: Any) -> Any:
    """The batches are made whole by `__getitems__`, so there is nothing to collate."""
    return batch


def _start_worker(worker: int) -> None:
    """Leaves the signals that stop a run to its main process, which still needs its workers to end well.

    A batch system sends SIGTERM to every process, so that a worker must outlive it until the main process
    has saved its work; Python sends it at exit and then waits, so that a worker must not outlive it for long.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))


def training_loader(
    source: Drawn,
    settings: DataConfig | MaskDataConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    micro_batches: int = 1,
    prepare: Callable[[Batch], Batch] | None = None,
    workers: int | None = None,
    device: torch.device | str = "cpu",
) -> Generator[Batch]:
    """The endless training batches of one process, from a given step on; `close()` stops its workers.

    Every batch is a function of the seed, the step, the rank and the settings alone; the number of workers
    changes nothing, and torch's global random state is neither read nor changed.

    Args:
        source: the training data.
        settings: those that the source's `draw` reads, and `workers`.
        batch_size: the global batch size, a multiple of `world_size` times `micro_batches`.
        seed: the seed of the run.
        start_step: the first step.
        rank, world_size: this process and how many there are.
        micro_batches: batches per step; see `StepBatchSampler`.
        prepare: what else a batch needs, a function of the batch alone; the workers do it, to samples that are not
            scaled yet.
        workers: processes that read ahead, 0 for none; None takes `settings.workers`.
        device: where batches are wanted. Those for a GPU pass through page-locked memory, so that nobody waits.

    Raises:
        ValueError: the batch size does not divide; while iterating, a record cannot be decoded.
    """
    sampler = StepBatchSampler(
        length=len(source),
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        rank=rank,
        world_size=world_size,
        micro_batches=micro_batches,
    )
    workers = settings.workers if workers is None else workers
    loader = DataLoader(
        _TrainingBatches(source, seed, settings, prepare),
        batch_sampler=sampler,  # pyright: ignore[reportArgumentType] # any iterable of lists will do
        collate_fn=_as_is,
        num_workers=workers,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(seed),
        pin_memory=torch.device(device).type == "cuda",
        # Forked workers share the decoded data instead of receiving a copy each.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    stream = _arriving(iter(loader), source.format, device)
    atexit.register(_close, weakref.ref(stream))
    return stream


def _close(stream: weakref.ref[Generator]) -> None:
    """Stops the workers of a stream that nobody closed; Python would wait seconds for each of them."""
    if (alive := stream()) is not None:
        alive.close()


def _arriving(
    batches: Iterator[Batch | ValueError], format: DataFormat, device: torch.device | str
) -> Generator[Batch]:
    """The loader's batches as network input; an error that came in place of one is raised here, its message intact."""
    try:
        for batch in batches:
            if isinstance(batch, ValueError):
                raise batch
            yield to_network(format, batch, device)
    finally:
        del batches  # stops the workers now, although the error's traceback keeps this frame


def fixed_batches(source: Readable, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
    """Samples in the given order, cut at the centre and not augmented, for validation.

    Args:
        source: the validation data.
        indices: which samples; "position" in a batch is the place in this list.
        batch_size: samples per batch; the last may be smaller.
    """
    for first in range(0, len(indices), batch_size):
        chunk = np.asarray(indices[first : first + batch_size], dtype=np.int64)
        batch = to_tensors(source.format, source.read(chunk), np.arange(first, first + len(chunk)))
        yield to_network(source.format, batch, "cpu")
