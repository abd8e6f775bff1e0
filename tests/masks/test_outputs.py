"""Results of large images, written row by row: the same as those that are held whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from tests.networks import redraw
from unetdiff import UNet
from unetdiff.data.formats import DataFormat
from unetdiff.data.masks import MaskEncoding
from unetdiff.masks.outputs import check_names, probability_picture, write_rows, write_segmentation
from unetdiff.runs import Companions, Run
from unetdiff.segmentation.predict import Inference
from unetdiff.segmenting import MAPS, segment, segment_rows

COLOURS = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


@pytest.fixture
def run() -> Run:
    unet = redraw(UNet(channels=[4, 8], blocks=1, in_channels=1, out_channels=3, time_embedding="none", middle=False))
    format = DataFormat(dims=2, channels=1, dtype="uint8", low=0, high=255)
    masks = MaskEncoding(kind="colours", values=COLOURS, class_names=("a", "b", "c"))
    return Run(unet.eval(), Companions(format, masks=masks), Path("somewhere"))


def test_rows_are_the_whole(run: Run, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (101, 67, 1), dtype=np.uint8)
    inference = Inference(tile=32, overlap=0.5)
    whole = segment([run, run], image, inference)
    write_rows(tmp_path, "x", image, segment_rows([run, run], image, inference), run)
    assert (np.load(tmp_path / "x.npy") == run.masks.decode(whole.labels)).all()
    held = torch.from_numpy(np.load(tmp_path / "x_probabilities.npy").astype(np.float32))
    assert_close(held, torch.from_numpy(whole.probabilities), rtol=0, atol=1e-3)
    for name in MAPS:
        assert_close(np.load(tmp_path / f"x_{name}.npy").astype(np.float32), whole.maps[name], rtol=0, atol=2e-3)
        assert (tmp_path / f"x_{name}.png").is_file()
    assert Image.open(tmp_path / "x_overlay.png").size == (67, 101)
    write_segmentation(tmp_path, "whole", image, whole, run)
    by_rows, at_once = (
        np.asarray(Image.open(tmp_path / f"{name}_probability.png")).astype(int) for name in ("x", "whole")
    )
    assert by_rows.shape == at_once.shape
    assert (np.abs(by_rows - at_once) < 8).mean() > 0.99  # float16


@pytest.mark.parametrize(
    ("classes", "space"), [(2, (40, 60)), (3, (50,)), (14, (5, 9, 7)), (2, (1, 1)), (2, (3, 3000))]
)
def test_probabilities_are_shown_from_0_to_1(classes: int, space: tuple[int, ...]) -> None:
    """Colours that are certain stand for 1 and 0; of many classes the commonest are shown, at a size for a page."""
    probabilities = np.zeros((classes, *space), np.float16)
    probabilities[classes - 1] = 1
    picture = probability_picture(probabilities, tuple(f"class {number}" for number in range(classes)))
    assert 400 < picture.width < 1400
    assert 100 < picture.height < 1600
    colours = np.asarray(picture).reshape(-1, 3)
    for colour in ((68, 1, 84), (253, 231, 36)):  # the ends of viridis
        assert (colours == colour).all(1).mean() > 0.005


def test_names_that_would_share_a_file_are_refused() -> None:
    check_names(["a", "b_overlay", "overlay"])
    with pytest.raises(ValueError, match="a and a_overlay would share a file"):
        check_names(["a", "a_overlay"])
