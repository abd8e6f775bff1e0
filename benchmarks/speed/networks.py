"""The networks of the cases, with the same weights wherever the networks are the same."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from unetdiff.models.unet import UNet

AUTOCAST = {"float32": None, "bf16": torch.bfloat16}
SEGMENTER: dict[str, Any] = {  # of configs/em_membranes.yaml
    "channels": [16, 32, 64, 96],
    "blocks": 1,
    "decoder_blocks": 1,
    "middle": False,
    "norm": {"preset": "nnunet", "time": "none"},
    "activation": "leaky_relu",
    "time_embedding": "none",
    "in_channels": 1,
    "out_channels": 2,
}
LARGEST_DIFFERENCE = 1e-4  # relative, of outputs


def diffusers_network() -> UNet2DModel:
    """The network of the DDPM paper as diffusers publishes it for CIFAR-10: 35.7M parameters."""
    plain, attention = "Block2D", "AttnDownBlock2D"
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("Down" + plain, attention, "Down" + plain, "Down" + plain),
        up_block_types=("Up" + plain, "Up" + plain, "AttnUpBlock2D", "Up" + plain),
        attention_head_dim=None,  # pyright: ignore[reportArgumentType] # one head, as published
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        dropout=0.1,
    )


def diffusers_digits() -> UNet2DModel:
    """A network of 1.1M parameters for digits of 16 x 16, with heads 8 wide as diffusers' default has them."""
    return UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )


def ours_of(theirs: UNet2DModel) -> UNet:
    """The same network with the same weights, and dropout as in theirs.

    Raises:
        RuntimeError: its outputs differ.
    """
    return _checked(UNet.from_foreign("diffusers", dict(theirs.config), theirs.state_dict()), theirs)


def monai_cifar() -> tuple[nn.Module, UNet]:
    """MONAI's `DiffusionModelUNet` of the DDPM paper's shape, without dropout, and ours with its weights."""
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    arguments: dict[str, Any] = {
        "spatial_dims": 2,
        "in_channels": 3,
        "out_channels": 3,
        "num_res_blocks": (2, 2, 2, 2),
        "channels": (128, 256, 256, 256),
        "attention_levels": (False, True, False, False),
        "num_head_channels": (0, 256, 0, 256),
    }
    theirs = DiffusionModelUNet(**arguments)
    return theirs, _checked(UNet.from_foreign("monai", arguments, theirs.state_dict()), theirs)


@torch.no_grad()
def _checked(ours: UNet, theirs: nn.Module) -> UNet:
    """Our network, in training mode, once its outputs are those of theirs.

    Both have a last convolution of zeros, or small ones, in their first weights; it is drawn anew for the comparison
    and stays so.
    """
    generator = torch.Generator().manual_seed(0)
    last = [list(network.parameters())[-2] for network in (ours, theirs)]
    drawn = torch.randn(last[0].shape, generator=generator) * 0.02
    for weight in last:
        weight.copy_(drawn)
    size, channels = ours.config["sample_size"] or 32, ours.config["in_channels"]
    sample = torch.randn(2, channels, size, size, generator=generator)
    timestep = torch.tensor([5, 700])
    found, wanted = (network.eval()(sample, timestep) for network in (ours, theirs))
    apart = relative_difference(found.sample, wanted if isinstance(wanted, Tensor) else wanted.sample)
    if not apart < LARGEST_DIFFERENCE:
        raise RuntimeError(f"outputs differ from {type(theirs).__name__}'s by {apart:.1e}; nothing is timed")
    theirs.train()
    return ours.train()


def segmenter(dims: int = 2) -> UNet:
    """The segmentation network, of images or volumes, with its first weights the same in every process."""
    torch.manual_seed(0)
    return UNet(**SEGMENTER, dims=dims)


def monai_unet(dims: int = 2) -> nn.Module:
    """MONAI's `UNet` with about as many parameters, two residual units and instance norm."""
    from monai.networks.nets.unet import UNet as MonaiUNet

    return MonaiUNet(dims, 1, 2, (24, 48, 96, 144), (2, 2, 2), num_res_units=2)


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm of theirs."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
