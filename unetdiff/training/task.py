"""What the loop asks of a task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.nn import Parameter

from unetdiff.models.unet import UNet
from unetdiff.runs import Companions

Batch = dict[str, Tensor]


class Task(Protocol):
    """What a network is trained to do: the loop knows nothing more of it."""

    @property
    def beside(self) -> Companions:
        """What is stored with the network."""
        ...

    def prepare(self, batch: Batch) -> Batch:
        """The batch with its random draws, a function of its `position`; called where batches are loaded."""
        ...

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a prepared batch, a scalar; its only randomness is the network's dropout."""
        ...

    def held(self, network: UNet, step: int) -> Iterable[Parameter]:
        """Weights that a step, counted from 0, leaves as they are."""
        ...

    def validate(self, network: UNet, accelerator: Accelerator) -> dict[str, Any] | None:
        """Figures on held-out data, each process with its share, the same in all; None without such data."""
        ...

    def picture(self, network: UNet) -> Image.Image | None:
        """What the network makes at present; called in every process."""
        ...
