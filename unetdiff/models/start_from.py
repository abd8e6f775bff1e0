"""A network that starts from the body of another: what is taken over, and what is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from unetdiff.models.unet import UNet
from unetdiff.spec import UNetSpec


@dataclass(frozen=True)
class TakenOver:
    """Names of weights: taken over, new in the network, and left behind in the other."""

    taken: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        new, left = (_some(names) for names in (self.new, self.left))
        return f"{len(self.taken)} tensors taken over; new: {new}; left behind: {left}"


def _some(names: tuple[str, ...]) -> str:
    """How many names belong to each part of the network."""
    parts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{count} of the {part}" for part, count in parts.items()) or "none"


def body_spec(other: UNetSpec, *, out_channels: int, timed: bool, **own: Any) -> UNetSpec:
    """The settings of a network with the body of `other`, another number of outputs, and no classes.

    timed: whether it is told a timestep; without, it has nothing that conditions it. own: settings of its own, which
    change no weight that is taken over.
    """
    embedding = other.time_embedding if timed else "none"
    bare = replace(other, num_classes=None, null_class=False, label_entry="embedding", divide_by_timestep=False,
                   time_embedding=embedding)  # fmt: skip
    return replace(bare, **{"heads": None, "out_channels": out_channels, "deep_supervision": False, **own})


def take_over(unet: UNet, other: UNet) -> TakenOver:
    """Fill `unet` with the weights of `other` that have its names and shapes, but for the outputs."""
    theirs, ours = other.state_dict(), unet.state_dict()
    fits = {
        name: value
        for name, value in theirs.items()
        if not name.startswith("head.") and name in ours and ours[name].shape == value.shape
    }
    unet.load_state_dict({**ours, **fits})
    left = tuple(name for name in theirs if name not in fits)
    return TakenOver(tuple(fits), tuple(name for name in ours if name not in fits), left)
