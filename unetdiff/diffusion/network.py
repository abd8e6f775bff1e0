"""What the configuration of a network says about the samples that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Network:
    """What the configuration of a network says about its samples and classes."""

    channels: int
    dims: int
    sample_size: int | Sequence[int] | None
    num_classes: int
    null_class: bool

    @classmethod
    def of(cls, unet: Any) -> Network:
        config = unet.config
        return cls(
            channels=config["in_channels"],
            dims=config.get("dims", 2),
            sample_size=config.get("sample_size"),
            num_classes=config.get("num_classes", config.get("num_class_embeds")) or 0,
            null_class=bool(config.get("null_class", False)),
        )

    def space(self, size: int | Sequence[int] | None) -> tuple[int, ...]:
        """The spatial size of the samples, or ValueError."""
        size = self.sample_size if size is None else size
        if size is None:
            raise ValueError("The network's configuration names no sample_size: give size.")
        space = (size,) * self.dims if isinstance(size, int) else tuple(size)
        if len(space) != self.dims or min(space) < 1:
            raise ValueError(f"size {list(space)} is not {self.dims} positive numbers, the network's dimensions.")
        return space

    def labels(self, labels: int | Sequence[int] | None, guidance: float) -> list[int] | None:
        """The labels to cycle through, None for a network without classes, or ValueError."""
        if guidance != 1 and not (self.num_classes and self.null_class):
            raise ValueError(f"guidance {guidance} needs a network trained with a null class, this one has none.")
        if labels is None:
            return self._unconditional(guidance)
        if not self.num_classes:
            raise ValueError(f"labels {labels} were given, but the network has no classes.")
        chosen = [labels] if isinstance(labels, int) else list(labels)
        outside = [label for label in chosen if not 0 <= label < self.num_classes]
        if outside or not chosen:
            raise ValueError(f"labels {outside} are not classes of the network, 0 to {self.num_classes - 1}.")
        return chosen

    def _unconditional(self, guidance: float) -> list[int] | None:
        if guidance != 1:
            raise ValueError(f"guidance {guidance} needs labels to guide towards.")
        if self.num_classes and not self.null_class:
            raise ValueError(
                f"The network was trained with labels only: give labels, from 0 to {self.num_classes - 1}."
            )
        return [self.num_classes] if self.num_classes else None
