"""What training keeps of a sample, counted without storage: against real runs, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.networks import NETWORKS, SMALL, inputs, network
from unetdiff import UNet
from unetdiff.models.cost import bytes_kept

COUNTED = [
    "1d",
    "2d",
    "3d",
    "max_pool",
    "three_levels",  # dropout
    "normed_skips",  # standardized weights, cosine attention
    "ncsnpp",
    "edm2",
    "unpadded",
    "gated_skips",
    "nested",  # deep supervision
    "transformer",
    "separable",
]


def really_kept(unet: UNet, batch: int, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of all storages that autograd saves while a batch runs through a network."""
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage

    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda nothing: nothing),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        unet.train()(**inputs(unet, batch=batch))
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("name", COUNTED)
def test_one_more_sample_keeps_what_a_real_run_keeps(name: str) -> None:
    unet = network(name)
    kept = [really_kept(unet, batch) for batch in (1, 2, 3)]
    counted = bytes_kept(unet, inputs(unet)["sample"].shape[2:])
    assert kept[1] - kept[0] == kept[2] - kept[1] == counted


@pytest.mark.parametrize("name", ["2d", "edm2", "nested", "separable"])
def test_autocast_keeps_what_a_real_run_keeps(name: str) -> None:
    unet = network(name)
    kept = [really_kept(unet, batch, torch.bfloat16) for batch in (1, 2)]
    assert bytes_kept(unet, (8, 8), torch.bfloat16) == kept[1] - kept[0]


def test_by_hand() -> None:
    """Two levels of 8 and 16 channels on 2 x L: convolutions keep what they read, ReLUs what they return."""
    length, coarse = 32, 16
    unet = UNet(**{**NETWORKS["unet2015"], "time_embedding": "none"})
    encoder = (2 + 8 + 8) * length + (8 + 16 + 16) * coarse  # the input, and what is pooled, too
    decoder = (16 + 8 + 8) * length  # the concatenation, of which the skip and what came up are copies
    indices = 8 * coarse  # of the maxima, in 8 bytes each
    assert bytes_kept(unet, (length,)) == 4 * (encoder + decoder) + 8 * indices


def test_attention_keeps_no_logits() -> None:
    """What is kept grows as the number of positions, not as its square."""
    unet = network("1d")
    kept = [bytes_kept(unet, (length,)) for length in (512, 1024, 1536)]
    assert kept[2] - kept[1] == kept[1] - kept[0] > 0


def test_what_no_output_depends_on_is_not_kept() -> None:
    """Stages behind the last feature of a backbone run and leave nothing."""

    def kept(blocks: int) -> int:
        config = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "layer_type": "basic"}
        config |= {"depths": [1, 1, 1, blocks], "out_features": ["stage1", "stage2"]}
        settings = {**SMALL, "channels": [8, 8, 8, 8], "in_channels": 3}
        return bytes_kept(UNet(**settings, backbone={"config": config, "frozen": False}), (32, 32))

    assert kept(1) == kept(3)


def test_the_network_counted_stays_as_it_is() -> None:
    unet = network("three_levels")
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    bytes_kept(unet, (6, 6))
    assert not unet.training
    torch.testing.assert_close(unet.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in unet.parameters())
