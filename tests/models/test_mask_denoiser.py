"""The network that draws masks: what it is made of, what it costs, and that an image's features are made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff import MaskDenoiser
from unetdiff.mask_diffusion_options import MaskDiffusionConfig
from unetdiff.segmentation.mask_diffusion import MaskDiffusion

SMALL: dict[str, Any] = {"channels": [8, 8], "blocks": 1, "middle": False}
SIZES = {1: (13,), 2: (7, 10), 3: (3, 6, 5)}
each_way = pytest.mark.parametrize(
    ("dims", "encoder"), [(dims, encoder) for dims in SIZES for encoder in (False, True)]
)


def made(dims: int = 2, encoder: bool = True, classes: int = 3) -> MaskDenoiser:
    """Masks of so many channels, images of two, five features of them."""
    known = 5 if encoder else 2
    unet = {**SMALL, "dims": dims, "in_channels": classes + known, "out_channels": classes}
    image = {**SMALL, "dims": dims, "in_channels": 2, "out_channels": 5, "time_embedding": "none"}
    torch.manual_seed(0)
    network = MaskDenoiser(unet, 2, image if encoder else None)
    redraw(network, 0.5)
    return network.eval()


def inputs(dims: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask, image = (torch.randn(batch, channels, *SIZES[dims], generator=generator) for channels in (3, 2))
    return mask, torch.tensor([3, 700])[:batch], image


@each_way
def test_features_then_a_step_are_the_whole(dims: int, encoder: bool) -> None:
    network, (mask, timestep, image) = made(dims, encoder), inputs(dims)
    whole = network(mask, timestep, image).sample
    assert whole.shape == mask.shape
    features = network.features(image)
    assert features.shape[1] == (5 if encoder else 2)
    assert_close(network.denoise(features, mask, timestep), whole, rtol=0, atol=0)
    for other in ((mask + 1, timestep, image), (mask, timestep - 3, image), (mask, timestep, image.flip(-1))):
        assert abs(network(*other).sample - whole).max() > 1e-3


@each_way
def test_every_parameter_has_a_gradient(dims: int, encoder: bool) -> None:
    network, call = made(dims, encoder).train(), inputs(dims)
    output = network(*call).sample
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    dead = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.abs().max() > 0]
    assert not dead


@pytest.mark.parametrize("encoder", [False, True])
def test_saved_and_loaded_is_equal(encoder: bool, tmp_path: Path) -> None:
    network, call = made(encoder=encoder), inputs(2)
    network.save_pretrained(tmp_path)
    loaded = MaskDenoiser.from_pretrained(tmp_path).eval()
    assert_close(loaded(*call).sample, network(*call).sample, rtol=0, atol=0)
    assert loaded.spec == network.spec


def test_gradient_checkpointing_changes_nothing() -> None:
    network, call = made().train(), inputs(2)
    plain = torch.autograd.grad(network(*call).sample.square().sum(), list(network.parameters()))
    network.enable_gradient_checkpointing()
    assert network.image_encoder is not None
    assert network.image_encoder.encoder.gradient_checkpointing
    again = torch.autograd.grad(network(*call).sample.square().sum(), list(network.parameters()))
    assert_close(again, plain)


def test_a_new_network_looks_at_the_image_and_learns_to_look_at_the_mask() -> None:
    mask, timestep, image = inputs(2)
    torch.manual_seed(0)
    network = MaskDenoiser(made().config["unet"], 2, made().config["image_unet"])
    for name, parameter in network.named_parameters():
        if name != "mask_gain":
            torch.nn.init.normal_(parameter, std=0.3)
    first = network(mask, timestep, image).sample
    assert_close(network(mask + 1, timestep, image).sample, first, rtol=0, atol=0)
    first.square().sum().backward()
    assert network.mask_gain.grad is not None
    assert (network.mask_gain.grad != 0).all()


@pytest.mark.parametrize(("masks", "steps"), [(1, 1), (4, 7)])
def test_the_image_is_looked_at_once(masks: int, steps: int) -> None:
    network, diffusion = made(), MaskDiffusion.of(MaskDiffusionConfig(), 3)
    assert network.image_encoder is not None
    calls = {"image": 0, "mask": 0}
    network.image_encoder.register_forward_hook(lambda *_: calls.update(image=calls["image"] + 1))
    network.denoiser.register_forward_hook(lambda *_: calls.update(mask=calls["mask"] + 1))
    diffusion.masks(network, inputs(2)[2], seeds=range(masks), steps=steps, sampler="ddim", batch=2)
    assert calls == {"image": 1, "mask": masks * steps}


@pytest.mark.parametrize("encoder", [False, True])
def test_operations_are_those_of_its_calls(encoder: bool) -> None:
    """Counted by torch where they happen: the image once, the mask in every step."""
    from torch.utils.flop_counter import FlopCounterMode

    network, diffusion = made(encoder=encoder), MaskDiffusion.of(MaskDiffusionConfig(), 3)
    counter = FlopCounterMode(display=False)
    with counter:
        diffusion.masks(network, torch.randn(1, 2, 32, 32), seeds=range(3), steps=4, sampler="ddim")
    assert network.plan.operations(steps=4, masks=3) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert ("the image, once" in str(network.plan)) == encoder


def test_channels_have_to_add_up() -> None:
    unet = {**SMALL, "in_channels": 2, "out_channels": 3}
    with pytest.raises(ValueError, match="takes 2 channels, 2 of them for an image of 2; expected some for the mask"):
        MaskDenoiser(unet, 2)
