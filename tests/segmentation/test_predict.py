"""Whole images and tiles give the same rows, and leave gradients as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unetdiff.segmentation.predict import ArrayImage, Inference, predict_image, predict_rows, probabilities_of

WAYS = {
    "whole": Inference(),
    "gaussian": Inference(tile=16),
    "mirror": Inference(tile=16, overlap=0.5, blend="mirror"),
    "flips": Inference(flips=True),
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


@pytest.mark.parametrize("way", WAYS)
def test_a_generator_that_is_left_waiting_does_not_switch_gradients_off(way: str) -> None:
    predict = probabilities_of(local_network(), torch.device("cpu"))
    rows = predict_rows(predict, ArrayImage(torch.randn(1, 40, 23).numpy()), WAYS[way], (1, 1))
    _, first = next(rows)
    assert torch.is_grad_enabled()
    assert not first.requires_grad
