"""Whole images and tiles give the same rows, and leave gradients as they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff import UNet
from unetdiff.segmentation.predict import ArrayImage, Inference, predict_image, predict_rows, probabilities_of

WAYS = {
    "whole": Inference(),
    "gaussian": Inference(tile=16),
    "mirror": Inference(tile=16, overlap=0.5, blend="mirror"),
    "flips": Inference(flips=(0, 1)),
}


def local_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_probabilities_of_the_whole_image(way: str) -> None:
    predict = probabilities_of(local_network(), torch.device("cpu"))
    image = torch.randn(1, 40, 23)
    found = predict_image(predict, image, WAYS[way], (1, 1))
    assert found.shape == (3, 40, 23)
    assert_close(found.sum(0), torch.ones(40, 23))
    if way == "mirror":  # a context of 4 covers the receptive field
        assert_close(found, predict(image[None])[0], rtol=1e-5, atol=1e-5)


def test_flips_are_along_the_axes_that_are_named() -> None:
    predict = probabilities_of(local_network(), torch.device("cpu"))
    image = torch.randn(1, 9, 7)
    straight, mirrored = predict(image[None])[0], predict(image[None].flip(3)).flip(3)[0]
    assert (straight - mirrored).abs().max() > 1e-3
    assert_close(predict_image(predict, image, Inference(flips=(1,)), (1, 1)), (straight + mirrored) / 2)
    assert_close(predict_image(predict, image, Inference(), (1, 1)), straight)


@pytest.mark.parametrize("way", WAYS)
def test_a_generator_that_is_left_waiting_does_not_switch_gradients_off(way: str) -> None:
    predict = probabilities_of(local_network(), torch.device("cpu"))
    rows = predict_rows(predict, ArrayImage(torch.randn(1, 40, 23).numpy()), WAYS[way], (1, 1))
    _, first = next(rows)
    assert torch.is_grad_enabled()
    assert not first.requires_grad


@pytest.fixture(scope="module")
def unpadded() -> UNet:
    """A small network of 2015: no padding, two levels below the first."""
    small = {"channels": [4, 8, 8], "decoder_blocks": [1, 1, 0], "sample_size": None, "out_channels": 3}
    return redraw(UNet.from_preset("unet2015", **small)).eval()


def of_the_mirrored_whole(network: UNet, image: Tensor) -> Tensor:
    """Probabilities (K, H, W) from one pass over the image with mirrored positions all around."""
    smallest = network.layout.fitting_size((1, 1))
    lost = (smallest[0] - network.layout.output_size(smallest)[0]) // 2
    inner = [length + 2 * lost for length in image.shape[1:]]
    size = network.layout.fitting_size(inner)
    pads = [(lost, full - length - lost) for full, length in zip(size, image.shape[1:], strict=True)]
    padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), *pads], mode="reflect"))
    with torch.no_grad():
        found = network(padded[None]).sample.softmax(1)[0]
    return found[:, : image.shape[1], : image.shape[2]]


@pytest.mark.parametrize("shape", [(61, 50), (9, 100), (1, 1)])
@pytest.mark.parametrize("way", [*WAYS, "too small a tile"])
def test_a_network_without_padding_gives_what_the_mirrored_image_gives(
    way: str, shape: tuple[int, int], unpadded: UNet
) -> None:
    inference = replace(WAYS.get(way, Inference(tile=1)), flips=())
    image = torch.randn(1, *shape)
    plan = unpadded.layout
    predict = probabilities_of(lambda images: unpadded(images).sample, torch.device("cpu"))
    found = predict_image(predict, image, inference, plan.multiple, plan)
    assert_close(found, of_the_mirrored_whole(unpadded, image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("blend", ["gaussian", "mirror"])
def test_tiles_smaller_than_the_stride_leave_nothing_out(blend: str) -> None:
    """Tiles lie at distances of the stride, so they must be as long: without, positions between them are 0 / 0."""
    predict = probabilities_of(local_network(), torch.device("cpu"))
    found = predict_image(predict, torch.randn(1, 40, 23), Inference(3, 0.0, blend), (8, 8))
    assert_close(found.sum(0), torch.ones(40, 23))


def test_tiles_of_a_call_are_bounded_by_their_positions() -> None:
    calls: list[int] = []

    def predict(tiles: Tensor) -> Tensor:
        calls.append(len(tiles))
        return tiles.expand(-1, 2, -1, -1).softmax(1)

    predict_image(predict, torch.zeros(1, 64, 64), Inference(tile=16, overlap=0.0), (1, 1))
    assert calls == [16]
    calls.clear()
    predict_image(predict, torch.zeros(1, 600, 1200), Inference(tile=600, overlap=0.0), (1, 1))
    assert calls == [1, 1]
    calls.clear()
    predict_image(predict, torch.zeros(1, 64, 64), Inference(tile=16, overlap=0.0, batch=5), (1, 1))
    assert calls == [5, 5, 5, 1]
