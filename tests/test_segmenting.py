"""Networks together: the mean of each one's answers, dropout, and what members cost in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff import UNet
from unetdiff.data.formats import DataFormat
from unetdiff.data.masks import MaskEncoding
from unetdiff.members import has_dropout
from unetdiff.runs import Companions, Run
from unetdiff.segmentation import tiles
from unetdiff.segmentation.predict import Inference
from unetdiff.segmentation.uncertainty import decompose
from unetdiff.segmenting import segment

MASKS = MaskEncoding(kind="values", values=(0, 1, 2), class_names=("a", "b", "c"))
GREY = DataFormat(dims=2, channels=1, dtype="uint8", low=0, high=255)
FLOATS = DataFormat(dims=2, channels=1, dtype="float32", low=-1, high=1)
WAYS = {
    "whole": Inference(),
    "gaussian": Inference(tile=24, overlap=0.5),
    "mirror": Inference(tile=24, overlap=0.5, blend="mirror"),
    "flips": Inference(flips=(0, 1)),
}


def made(seed: int, format: DataFormat = GREY, **settings: Any) -> Run:
    """A network of three classes that was never trained."""
    plain = {"channels": [4, 8], "blocks": 1, "time_embedding": "none", "middle": False, **settings}
    network = redraw(UNet(**plain, in_channels=1, out_channels=3), 0.6).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return Run(network, Companions(format, masks=MASKS), Path(f"run{seed}"))


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (53, 40, 1), dtype=np.uint8)


@pytest.mark.parametrize("way", WAYS)
def test_members_are_averaged_and_disagree(way: str, image: np.ndarray) -> None:
    """What each says by itself, in closed form; blended, what they disagree about is a mean over tiles."""
    runs = [made(seed) for seed in range(3)]
    found = segment(runs, image, WAYS[way])
    alone = [torch.from_numpy(segment(run, image, WAYS[way]).probabilities)[None] for run in runs]
    expected = decompose(alone)
    assert_close(found.probabilities[None], expected.probabilities.numpy(), rtol=0, atol=1e-6)
    assert_close(found.maps["total_entropy"][None], expected.total.numpy(), rtol=0, atol=1e-5)
    apart = np.abs(found.maps["mutual_information"] - expected.mutual_information[0].numpy())
    assert apart.max() < (0.2 if way == "gaussian" else 1e-5)
    assert apart.mean() < 0.1 * expected.mutual_information.mean()
    assert expected.mutual_information.max() > 0.1
    difference = found.maps["total_entropy"] - found.maps["expected_entropy"]
    assert_close(difference.clip(0), found.maps["mutual_information"], rtol=0, atol=1e-6)
    assert (found.labels == found.probabilities.argmax(0)).all()


@pytest.mark.parametrize("way", WAYS)
def test_one_network_disagrees_with_nobody(way: str, image: np.ndarray) -> None:
    assert segment(made(0), image, WAYS[way]).maps["mutual_information"].max() == 0


@pytest.mark.parametrize("way", ["gaussian", "mirror"])
def test_members_share_one_strip_of_tiles(way: str, image: np.ndarray, monkeypatch) -> None:
    """Of probabilities and one map; networks of other strides have tiles, and so a strip, of their own."""
    strips: list[Any] = []

    class Counted(tiles._Strip):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            strips.append(self)

    monkeypatch.setattr(tiles, "_Strip", Counted)
    segment([made(0, dropout=0.3), made(1, dropout=0.3)], image, WAYS[way], passes=5)
    assert [len(strip._sums) for strip in strips] == [4]
    strips.clear()
    segment([made(0), made(1, channels=[4, 4, 8]), made(2)], image, WAYS[way])
    assert len(strips) == 2


def test_passes_need_dropout(image: np.ndarray) -> None:
    without, dropped = made(0), made(1, dropout=0.3)
    assert (has_dropout(without), has_dropout(dropped)) == (False, True)
    for runs in (without, [dropped, without]):
        with pytest.raises(ValueError, match=r"run0 was trained without dropout; expected --passes 1, or a run with"):
            segment(runs, image, passes=2)
    first, again, other = (segment(dropped, image, passes=3, seed=seed).probabilities for seed in (4, 4, 5))
    assert (first == again).all()
    assert np.abs(first - other).max() > 1e-4


def test_dropout_leaves_the_generators_as_they_were(image: np.ndarray, monkeypatch) -> None:
    """Those of the CPU, and of the GPU that a network is on."""
    run = made(1, dropout=0.3)
    before = torch.get_rng_state()
    segment(run, image, passes=2)
    assert torch.equal(torch.get_rng_state(), before)
    forked: list[list[Any]] = []
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: forked.append(devices) or fork(devices=[]))
    monkeypatch.setattr(type(run.unet), "device", property(lambda _: torch.device("cuda", 1)))
    monkeypatch.setattr(torch.Tensor, "to", lambda values, *_: values)
    segment(run, image, passes=2)
    assert forked == [[torch.device("cuda", 1)]] * 2


def test_members_read_images_in_ranges_of_their_own() -> None:
    """The range of floats is that of a training set; two folds of one data set differ in it."""
    image = np.random.default_rng(0).normal(size=(20, 17, 1)).astype(np.float32)
    runs = [made(0, FLOATS), made(1, replace(FLOATS, low=-3, high=2))]
    found = segment(runs, image).probabilities
    alone = [segment(run, image).probabilities for run in runs]
    assert_close(found, (alone[0] + alone[1]) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", [{"channels": 2}, {"dtype": "uint16"}, {"dims": 1}])
def test_members_of_other_data_are_refused(change: dict, image: np.ndarray) -> None:
    lead = made(0)
    other = replace(lead, beside=replace(lead.beside, format=replace(GREY, **change)), folder=Path("other"))
    with pytest.raises(ValueError, match=r"other was trained on other data or classes than run0"):
        segment([lead, other], image)
