"""The networks that papers describe have the number of parameters that they report."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unetdiff import UNet
from unetdiff.models.interop import LIBRARIES


def millions(library: str, **config: Any) -> float:
    """Millions of learned numbers of a library's network as we build it, without storage."""
    found = LIBRARIES[library]
    with torch.device("meta"):
        unet = UNet(**found.settings(found.complete(config)))
    return sum(parameter.numel() for parameter in unet.parameters()) / 1e6


@pytest.mark.parametrize(
    ("width", "published"), [(128, 125), (192, 280), (256, 498), (320, 777), (384, 1119), (448, 1523)]
)
def test_edm2_from_xs_to_xxl(width: int, published: int) -> None:
    """Karras et al. 2024, table 2 and appendix: ImageNet in a latent space of 4 x 64 x 64, with labels."""
    held = millions("edm2", img_resolution=64, img_channels=4, label_dim=1000, model_channels=width)
    assert round(held) == pytest.approx(published, abs=1)


def test_adm_as_edm_has_it() -> None:
    """Dhariwal & Nichol 2021, table 4: 296M for ImageNet at 64x64."""
    size = {"img_resolution": 64, "in_channels": 3, "out_channels": 3, "label_dim": 1000}
    assert round(millions("edm", class_name="DhariwalUNet", **size)) == 296


def test_ddpmpp_of_cifar10() -> None:
    """The released training of EDM reports 55,735,299, of which 9 x 128 belong to augmentation labels."""
    size = {"img_resolution": 32, "in_channels": 3, "out_channels": 3, "label_dim": 10, "channel_mult": [2, 2, 2]}
    assert millions("edm", class_name="SongUNet", **size) * 1e6 == pytest.approx(55_735_299 - 9 * 128, abs=0.5)
