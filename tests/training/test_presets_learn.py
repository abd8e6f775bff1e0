"""Every named network, narrow, learns to denoise the embedded digits to the loss that is stated beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.networks import RESNET
from unetdiff import UNet
from unetdiff.config import DataConfig
from unetdiff.data.loader import fixed_batches
from unetdiff.data.sources import open_source
from unetdiff.diffusion.objective import DiffusionObjective
from unetdiff.diffusion.schedule import make_schedule
from unetdiff.presets import PRESETS

STEPS, BATCH, LEARNING_RATE = 300, 16, 2e-3

# (settings that make the preset small, the loss that it has to reach on held-out digits: about a tenth above what it
# reached). A network that always says zero has 0.82; the demo's, which is trained for longer, 0.10.
NARROW: dict[str, tuple[dict[str, Any], float]] = {
    "ddpm_cifar10": ({"channels": [16, 32, 32], "blocks": 1, "attention": [False, True, False]}, 0.18),
    "adm_64": (
        {"channels": [16, 32, 32], "blocks": 1, "attention": [False, False, True], "attention_head_channels": 16},
        0.175,
    ),
    "unet_same": ({"channels": [16, 32, 64], "decoder_blocks": [1, 1, 0]}, 0.23),
    "genome_track": ({"channels": [16, 32, 32, 32, 32], "attention": False}, 0.22),
    "volume": ({"channels": [8, 16, 32], "decoder_blocks": [1, 1, 0], "strides": [[1, 2, 2], 2]}, 0.235),
    "satellite": ({"channels": [16, 32, 32], "blocks": 1, "attention": False, "attention_head_channels": 16}, 0.18),
    "attention_unet": ({"channels": [8, 16, 32], "decoder_blocks": [1, 1, 0], "dims": 2}, 0.33),
    "resunet": ({"channels": [16, 32, 64], "decoder_blocks": [1, 1, 0]}, 0.2),
    "autoencoder": ({"channels": [16, 32, 32], "blocks": 1, "attention": False, "attention_head_channels": 16}, 0.53),
    "unet_plus_plus": ({"channels": [16, 32, 64]}, 0.26),
    "transunet": (
        {
            "channels": [16, 32, 32],
            "decoder_channels": [16, 16, 32],
            "transformer_layers": 2,
            "attention_head_channels": 16,
            "position_grid": 4,
        },
        0.205,
    ),
    "mobile_unet": ({"channels": [16, 32, 32]}, 0.2),
    "pretrained": (
        {
            "channels": [16, 16, 32, 32],
            "backbone": {"config": {**RESNET, "out_features": ["stage1", "stage2"]}, "frozen": False},
        },
        0.19,
    ),
}


def digits(split: str, dims: int) -> Tensor:
    """(n, 1, *space) in [-1, 1]: rows one behind the other, images, or images four times one behind the other."""
    source = open_source(DataConfig(), split)
    images = next(iter(fixed_batches(source, list(range(len(source))), len(source))))["sample"]
    shaped = {1: lambda x: x.flatten(2), 2: lambda x: x, 3: lambda x: x[:, :, None].expand(-1, -1, 4, -1, -1)}
    return shaped[dims](images)


def trained(unet: UNet, images: Tensor, objective: DiffusionObjective) -> None:
    """Some hundred steps; all outputs of a deeply supervised network count."""
    optimizer = torch.optim.AdamW(unet.train().parameters(), lr=LEARNING_RATE)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 20, 2 - 2 * step / STEPS, 1.0))
    for _ in range(STEPS):
        x0 = images[torch.randint(len(images), (BATCH,))]
        timesteps, noise = torch.randint(1000, (BATCH,)), torch.randn_like(x0)
        x_t = objective.noisy(x0, noise, timesteps)
        output = unet(x_t, timesteps)
        every = [output.sample, *(heads["sample"] for heads in output.deep or [])]
        loss = torch.stack([objective.score(one, x0, x_t, noise, timesteps).loss.mean() for one in every]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()


def held_out_loss(unet: UNet, images: Tensor, objective: DiffusionObjective) -> float:
    """The mean over held-out digits, at noise levels that cover all evenly."""
    timesteps = torch.linspace(0, 999, len(images)).long()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x_t = objective.noisy(images, noise, timesteps)
        output = unet.eval()(x_t, timesteps).sample
        return float(objective.score(output, images, x_t, noise, timesteps).unweighted.mean())


def test_every_denoiser_is_here() -> None:
    assert set(NARROW) == set(PRESETS) - {"unet2015"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_learns_to_denoise_digits(name: str) -> None:
    settings, stated = NARROW[name]
    torch.manual_seed(0)
    plain = {"in_channels": 1, "out_channels": None, "num_classes": None, "dropout": 0.0, "sample_size": None}
    unet = UNet.from_preset(name, **{**plain, **settings})
    dims = unet.config["dims"]
    objective = DiffusionObjective(make_schedule("cosine", target="v"), target="v")
    trained(unet, digits("train", dims), objective)
    loss = held_out_loss(unet, digits("validation", dims), objective)
    assert loss <= stated
