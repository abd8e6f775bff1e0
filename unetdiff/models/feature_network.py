"""A frozen denoiser that segments: an ensemble of small networks reads its features position by position."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from unetdiff.models.frozen_features import FrozenFeatures, at_full_size, at_positions
from unetdiff.models.plan import Plan
from unetdiff.models.unet import UNet, UNetOutput, count_parameters
from unetdiff.spec import Memory, UNetSpec

LEAST_DEVIATION = 1e-6
"""Features that vary less than this are left as they are."""


class PixelNetwork(nn.Module):
    """Class scores of a position from its features: linear layers, each but the last with layer norm and ReLU.

    Baranchuk et al. 2022 have batch norm, whose statistics would depend on the batch.
    """

    def __init__(self, features: int, hidden: Sequence[int], classes: int):
        super().__init__()
        self.first = nn.Linear(features, hidden[0])
        layers: list[nn.Module] = []
        for width, after in zip(hidden, [*hidden[1:], classes], strict=True):
            layers += [nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, after)]
        self.rest = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """(..., features) to (..., K)."""
        return self.rest(self.first(features))

    def over_maps(self, levels: Sequence[Tensor], padded: Sequence[int], space: Sequence[int]) -> Tensor:
        """The same at every position of images: feature maps (n, C, *size) of several sizes to (n, K, *space).

        The first layer comes before the interpolation, which it commutes with: what is made in full size has as many
        channels as that layer, however many features there are.
        """
        weights = self.first.weight.split([maps.shape[1] for maps in levels], dim=1)
        total: Tensor | None = None
        for maps, weight in zip(levels, weights, strict=True):
            part = at_full_size(F.linear(maps.movedim(1, -1), weight).movedim(-1, 1), padded, space)
            total = part if total is None else total + part
        assert total is not None
        return self.rest(total.movedim(1, -1) + self.first.bias).movedim(-1, 1)


class FeatureNetwork(ModelMixin, ConfigMixin):
    """A frozen denoiser and an ensemble of per-pixel networks that read what it computes (Baranchuk et al. 2022).

    `forward(images).sample` are the logarithms of the members' mean probabilities: its softmax is the ensemble's
    answer. Features are standardised channel by channel with statistics that `set_statistics` takes once.

    Args:
        denoiser: the settings of the denoiser as JSON; its dropout is of no use here and is left out.
        blocks: keys of steps of its plan. timesteps: at which it is asked. alpha_bars: of its noise schedule there.
        classes: K. members: M. hidden: widths of the hidden layers of each member.

    Raises:
        ValueError: for settings that do not fit together, in one sentence that names the setting.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        denoiser: Mapping[str, Any],
        blocks: Sequence[str],
        timesteps: Sequence[int],
        alpha_bars: Sequence[float],
        classes: int,
        members: int = 10,
        hidden: Sequence[int] = (128, 32),
    ):
        super().__init__()
        body = UNet(**{**denoiser, "dropout": 0.0})
        self.features = FrozenFeatures(body, blocks, timesteps, alpha_bars)
        count = sum(self.features.channels)
        self.ensemble = nn.ModuleList(PixelNetwork(count, hidden, classes) for _ in range(members))
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))

    def forward(
        self, sample: Tensor, places: Tensor | None = None, return_dict: bool = True
    ) -> UNetOutput | tuple[Any, ...]:
        """Class scores of images, or of some of their positions.

        Args:
            sample: (n, C, *space) in [-1, 1], of any size.
            places: (n, M, P) int64, positions of each image for each member, counted along its flattened space; None:
                every position.
            return_dict: whether to return a `UNetOutput` rather than a tuple of what it holds.

        Returns:
            `.sample` (n, K, *space), the log of the mean over members of the probabilities; with `places`, the
            members' own scores (n, M, K, P).
        """
        if places is None:
            found: Tensor | None = None
            for one in self.answers(sample):
                found = one if found is None else torch.logaddexp(found, one)
            assert found is not None
            scores = found - math.log(len(self.ensemble))
        else:
            scores = self._scores_at(sample, places)
        output = UNetOutput(scores, {"sample": scores})
        return output if return_dict else output.to_tuple()

    def answers(self, images: Tensor) -> Iterator[Tensor]:
        """The log probabilities (n, K, *space) of each member in turn; what they share is computed once."""
        levels = self._levels(images)
        space = images.shape[2:]
        padded = self.features.padded_size(space)
        for member in self.ensemble:
            yield member.over_maps(levels, padded, space).float().log_softmax(1)  # pyright: ignore

    def _scores_at(self, images: Tensor, places: Tensor) -> Tensor:
        """The members' scores (n, M, K, P) at their positions (n, M, P)."""
        space = images.shape[2:]
        padded, flat = self.features.padded_size(space), places.flatten(1)
        parts = [at_positions(maps, flat, padded, space) for maps in self._levels(images)]
        features = torch.cat(parts, dim=-1).unflatten(1, tuple(places.shape[1:]))
        scores = [member(features[:, number]) for number, member in enumerate(self.ensemble)]
        return torch.stack(scores, dim=1).movedim(-1, 2).float()

    def _levels(self, images: Tensor) -> list[Tensor]:
        """Standardised feature maps (n, C, *size), those of one size side by side, fine to coarse."""
        maps, steps = self.features(images), self.features.steps
        together: dict[int, list[Tensor]] = {}
        for step, one in zip(steps, maps, strict=True):
            together.setdefault(step.level, []).append(one)
        levels = [torch.cat(ones, dim=1) for ones in together.values()]
        widths, dims = [level.shape[1] for level in levels], images.ndim - 2
        means, deviations = ([part.reshape(-1, *[1] * dims) for part in whole.split(widths)]
                             for whole in (self.mean, self.deviation))  # fmt: skip
        return [(level - mean) / by for level, mean, by in zip(levels, means, deviations, strict=True)]

    @torch.no_grad()
    def set_statistics(self, images: Tensor) -> None:
        """Standardise features by their mean and standard deviation over these images (n, C, *space)."""
        maps = [one.transpose(0, 1).flatten(1) for one in self.features(images)]
        self.mean.copy_(torch.cat([one.mean(1) for one in maps]))
        deviation = torch.cat([one.std(1, correction=0) for one in maps])
        self.deviation.copy_(torch.where(deviation < LEAST_DEVIATION, 1, deviation))

    @property
    def layout(self) -> Plan:
        """The denoiser's plan, which says what sizes go in."""
        return self.features.denoiser.layout

    @property
    def multiple(self) -> tuple[int, ...]:
        """Per axis, the product of the denoiser's strides."""
        return self.features.denoiser.multiple

    @property
    def spec(self) -> UNetSpec:
        """The settings of the denoiser."""
        return self.features.denoiser.spec

    @property
    def plan(self) -> str:
        """The denoiser's plan as a table, what is read of it, and the ensemble."""
        read = ", ".join(step.key for step in self.features.steps)
        shape = " -> ".join(map(str, [len(self.mean), *self.config["hidden"], self.config["classes"]]))
        return (
            f"{self.features.denoiser.plan}\n\nfrozen; read at timesteps {list(self.features.timesteps)}: {read}\n"
            f"{len(self.ensemble)} networks {shape} per position: {count_parameters(self.ensemble):,} parameters"
        )

    def set_memory(self, memory: Memory, checkpoint_levels: Collection[int] | None = None) -> None:
        """Choose what training keeps of the denoiser's passes; frozen, it keeps nothing. See `UNet.set_memory`."""
        self.features.denoiser.set_memory(memory, checkpoint_levels)

    def describe(self) -> str:
        """What the denoiser passes on of its input; see `UNet.describe`."""
        return self.features.denoiser.describe()


# diffusers finds a foreign component by the module that its class names; see `unetdiff.models.unet`.
FeatureNetwork.__module__ = "unetdiff"
