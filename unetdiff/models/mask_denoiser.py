"""The network that draws masks: a U-Net that sees a noisy mask beside its image, or beside features of its image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from unetdiff.models.plan import Plan
from unetdiff.models.unet import UNet, UNetOutput
from unetdiff.spec import Memory, UNetSpec


@dataclass(frozen=True)
class MaskPlan:
    """The plans of a `MaskDenoiser`: mask, which runs in every step, and image, which runs once, if there is one."""

    mask: Plan
    image: Plan | None

    def operations(self, steps: int, masks: int = 1) -> int:
        """Of so many calls of the network for so many masks of one image (2 per multiply-add)."""
        return steps * masks * _operations(self.mask) + (0 if self.image is None else _operations(self.image))

    def __str__(self) -> str:
        head = "" if self.image is None else f"the image, once\n\n{self.image}\n\n"
        return f"{head}the mask, in every step\n\n{self.mask}"


def _operations(plan: Plan) -> int:
    return sum(step.operations for step in plan.steps)


class MaskDenoiser(ModelMixin, ConfigMixin):
    """Predicts what was a mask from its noisy numbers, given the image.

    Args:
        unet: the settings of the `UNet` that is told the timestep; its input is the noisy mask, and behind it what is
            known of the image.
        image_channels: of images.
        image_unet: the settings of a `UNet` without timestep whose output is what is known of the image; None: the
            image itself is.

    Raises:
        ValueError: the channels of the two do not add up.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules: ClassVar[list[str]] = ["waves"]

    def __init__(
        self, unet: Mapping[str, Any], image_channels: int, image_unet: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.register_to_config(unet=unet, image_channels=image_channels, image_unet=image_unet)
        self.denoiser = UNet(**unet)
        self.image_encoder = None if image_unet is None else UNet(**image_unet)
        taken, given = image_channels, image_channels
        if self.image_encoder is not None:
            taken, given = self.image_encoder.config["in_channels"], self.image_encoder.config["out_channels"]
        self.mask_channels = self.denoiser.config["in_channels"] - given
        if self.mask_channels < 1 or taken != image_channels:
            raise ValueError(
                f"the network takes {self.denoiser.config['in_channels']} channels, {given} of them for an image of "
                f"{image_channels}; expected some for the mask"
            )
        # Zero at first: a new network looks at the image alone, rather than at a mask that is all noise.
        self.mask_gain = nn.Parameter(torch.zeros(self.mask_channels))

    def forward(
        self, sample: Tensor, timestep: Tensor | float, image: Tensor, return_dict: bool = True
    ) -> UNetOutput | tuple[Any, ...]:
        """Predict from noisy masks.

        Args:
            sample: (N, mask channels, *space). timestep: a number, or (N,). image: (N, image_channels, *space).
            return_dict: whether to return a `UNetOutput` rather than a tuple of what it holds.
        """
        return self.denoiser(self._joined(sample, self.features(image)), timestep, return_dict=return_dict)

    def features(self, images: Tensor) -> Tensor:
        """What is known of images (N, image_channels, *space), (N, F, *space): to be made once per image."""
        return images if self.image_encoder is None else self.image_encoder(images).sample

    def denoise(self, features: Tensor, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """The prediction for noisy masks (N, mask channels, *space), given the features of their images."""
        return self.denoiser(self._joined(sample, features), timestep).sample

    def _joined(self, sample: Tensor, features: Tensor) -> Tensor:
        """What the network sees: the noisy mask, each channel times its gain, and what is known of the image."""
        gain = self.mask_gain.reshape(-1, *[1] * (sample.ndim - 2))
        return torch.cat([gain * sample, features], dim=1)

    @property
    def spec(self) -> UNetSpec:
        """The settings of the network that is told the timestep."""
        return self.denoiser.spec

    @property
    def layout(self) -> Plan:
        """The plan of that network, without the parameters and operations."""
        return self.denoiser.layout

    @property
    def multiple(self) -> tuple[int, ...]:
        """What sizes are padded to inside, per axis."""
        return self.denoiser.multiple

    @property
    def plan(self) -> MaskPlan:
        """Every step of both networks, with parameters and operations."""
        return MaskPlan(self.denoiser.plan, None if self.image_encoder is None else self.image_encoder.plan)

    def set_memory(self, memory: Memory, checkpoint_levels: Collection[int] | None = None) -> None:
        """Choose what training keeps between forward and backward pass; see `UNet.set_memory`."""
        for network in (self.denoiser, self.image_encoder):
            if network is not None:
                network.set_memory(memory, checkpoint_levels)

    def describe(self) -> str:
        """Which paths pass on the amplitude and the mean of the input, of the network that is told the timestep."""
        return self.denoiser.describe()


# diffusers finds a foreign component by the module that its class names, as of `UNet`.
MaskDenoiser.__module__ = "unetdiff"
