from __future__ import annotations

import sys

import numpy as np
import pytest

from unetdiff.config import DataConfig
from unetdiff.data.generated import WAVEFORMS
from unetdiff.data.sources import open_source

SPLITS = ("train", "validation", "test")


def everything(kind: str, split: str) -> dict[str, np.ndarray]:
    source = open_source(DataConfig(source=kind), split)  # pyright: ignore[reportArgumentType]
    return source.read(np.arange(len(source)))


def test_digits_are_all_there_once_and_stratified():
    splits = {split: everything("digits", split) for split in SPLITS}
    assert sum(len(part["label"]) for part in splits.values()) == 1797
    for part, share in zip(splits.values(), (0.75, 0.05, 0.2), strict=True):
        assert part["sample"].shape[1:] == (16, 16, 1)
        assert part["sample"].dtype == np.uint8
        np.testing.assert_allclose(np.bincount(part["label"]), 179.7 * share, atol=5)
    scans = np.concatenate([part["sample"] for part in splits.values()]).reshape(1797, -1)
    assert len(np.unique(scans, axis=0)) > 1790
    assert scans.min() == 0
    assert scans.max() == 255


def test_digits_average_to_the_scans():
    from sklearn.datasets import load_digits

    small = np.concatenate([everything("digits", split)["sample"] for split in SPLITS])
    small = small.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4))
    original = load_digits().images * 255 / 16
    assert np.corrcoef(small.mean(0).ravel(), original.mean(0).ravel())[0, 1] > 0.99


def test_digits_need_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'unetdiff\[demo\]'"):
        open_source(DataConfig(source="digits"))


def test_waveforms_have_the_shapes_of_their_names():
    part = everything("waveforms", "train")
    signals = part["sample"][..., 0]
    assert signals.dtype == np.float32
    assert signals.shape == (2000, 64)
    amplitude = np.abs(signals).max(1)
    assert 0.4 < amplitude.min() < amplitude.max() <= 1
    shares = {  # how many values lie near the extremes tells the shapes apart
        name: np.mean(np.abs(signals[part["label"] == label]) > 0.8 * amplitude[part["label"] == label, None])
        for label, name in enumerate(WAVEFORMS)
    }
    assert shares["square"] == 1
    assert shares["sine"] == pytest.approx(2 * np.arccos(0.8) / np.pi, abs=0.05)
    for name in ("sawtooth", "triangle"):
        assert shares[name] == pytest.approx(0.2, abs=0.06)
    steps = np.abs(np.diff(signals, axis=1)).max(1) / amplitude
    assert np.median(steps[part["label"] == 2]) > 1 > np.median(steps[part["label"] == 3])


def test_blobs_have_one_two_or_three_balls():
    from scipy.ndimage import label as connected

    part = everything("blobs", "validation")
    assert part["sample"].shape == (200, 16, 16, 16, 1)
    counts = [connected(volume[..., 0] > 0.7)[1] for volume in part["sample"]]
    assert np.mean(np.array(counts) == part["label"] + 1) > 0.97


@pytest.mark.parametrize("kind", ["waveforms", "blobs"])
def test_splits_are_fixed_and_differ(kind: str):
    train, again, test = everything(kind, "train"), everything(kind, "train"), everything(kind, "test")
    np.testing.assert_array_equal(train["sample"], again["sample"])
    together = np.concatenate([train["sample"], test["sample"]]).reshape(2200, -1)
    assert len(np.unique(together, axis=0)) == 2200


def test_generated_data_can_go_unlabelled():
    source = open_source(DataConfig(source="waveforms", label_column=None))
    assert source.num_classes == 0
    assert list(source.read([0])) == ["sample"]
