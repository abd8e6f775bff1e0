"""Synthetic annotators: each change beside morphology done another way, and who is drawn when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from unetdiff.data.annotators import CHANGES, annotated, as_counts
from unetdiff.data.loader import training_loader
from unetdiff.data.mask_options import AnnotatorConfig, MaskDataConfig, WarpConfig
from unetdiff.data.pairs import PairSource, open_pairs
from unetdiff.data.scenes import COUNTS, scenes
from unetdiff.segmentation.options import IGNORE

FOUR = AnnotatorConfig(none=0.4, dilate=0.3, erode=0.2, delete=0.1)


def digits(count: int = 50) -> np.ndarray:
    """Masks (n, 32, 32) int64 of digits as foreground."""
    return (scenes("test")[1][:count] > 0).astype(np.int64)


def opened(**settings) -> PairSource:
    given = {"scene_classes": "foreground", "annotators": FOUR, "train_limit": 16, **settings}
    return open_pairs(MaskDataConfig(**given)).train


# ---------------------------------------------------------------- what each makes of a mask


@pytest.mark.parametrize(("radius", "connectivity"), [(1.0, 1), (1.5, 2)])
def test_scipy_agrees_on_binary_masks(radius: float, connectivity: int) -> None:
    ball = ndimage.generate_binary_structure(2, connectivity)
    settings = AnnotatorConfig(none=0.4, dilate=0.3, erode=0.2, delete=0.1, radius=radius)
    for mask in digits():
        as_it_is, dilated, eroded, deleted = annotated(mask, settings)
        np.testing.assert_array_equal(as_it_is, mask)
        np.testing.assert_array_equal(dilated, ndimage.binary_dilation(mask, ball))
        np.testing.assert_array_equal(eroded, ndimage.binary_erosion(mask, ball, border_value=1))
        parts, count = ndimage.label(mask, np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
        sizes = [(parts == number).sum() for number in range(1, count + 1)]
        assert mask.sum() - deleted.sum() == max(sizes)
        assert ndimage.label(deleted, np.ones((3, 3)))[1] == count - 1  # pyright: ignore[reportIndexIssue]


def test_by_hand_with_classes_and_ignored_positions() -> None:
    mask = np.array([[0, 0, 0, 0, 0, 0, 0, -1, 0], [1, 1, 1, 2, 2, 0, -1, -1, 0], [0, 0, 0, 0, 0, 0, 0, -1, 2]])
    as_it_is, dilated, eroded, deleted = annotated(mask, FOUR)
    np.testing.assert_array_equal(as_it_is, mask)
    grown = [[1, 1, 1, 2, 2, 0, 0, -1, 2], [1, 1, 1, 2, 2, 2, -1, -1, 2], [1, 1, 1, 2, 2, 0, 0, -1, 2]]
    grown[0][8] = 0  # two away from the class
    np.testing.assert_array_equal(dilated, grown)
    np.testing.assert_array_equal(eroded, np.where(mask == IGNORE, IGNORE, 0))
    np.testing.assert_array_equal(deleted, np.where(mask == 1, 0, mask))


def test_the_background_may_be_another_class_than_the_first() -> None:
    mask = digits(5)
    other = AnnotatorConfig(none=0.4, dilate=0.3, erode=0.2, delete=0.1, background=1)
    for one in mask:
        np.testing.assert_array_equal(annotated(1 - one, other), 1 - annotated(one, FOUR))


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("value", [0, 1, IGNORE])
def test_masks_of_one_value_have_no_border(name: str, value: int) -> None:
    for shape in ((7,), (5, 6), (3, 4, 5)):
        mask = np.full(shape, value)
        expected = np.zeros(shape) if (name, value) == ("delete", 1) else mask
        np.testing.assert_array_equal(CHANGES[name](mask, FOUR), expected)


# ---------------------------------------------------------------- who is drawn


def test_annotators_are_drawn_with_their_probabilities_and_by_position_alone() -> None:
    annotators = opened().annotators
    assert annotators is not None
    positions = np.arange(40_000)
    drawn = annotators.drawn(positions, 3)
    # Four standard deviations of a share of 40,000 are at most 0.01.
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), [0.4, 0.3, 0.2, 0.1], atol=0.01)
    np.testing.assert_array_equal(annotators.drawn(positions[5:9], 3), drawn[5:9])
    assert (annotators.drawn(positions, 4) != drawn).any()


def test_a_batch_holds_the_masks_of_those_drawn() -> None:
    source, positions = opened(), np.arange(64, 128)
    indices = positions % len(source)
    batch = source.draw(indices, positions, 0, MaskDataConfig())
    assert source.annotators is not None
    drawn = source.annotators.drawn(positions, 0)
    assert set(drawn.tolist()) == {0, 1, 2, 3}
    truth = source.read(indices)
    np.testing.assert_array_equal(batch["sample"], truth["sample"])
    for mask, index, annotator, plain in zip(batch["mask"], indices.tolist(), drawn, truth["mask"], strict=True):
        np.testing.assert_array_equal(mask, source.annotators.labels(index)[annotator])
        np.testing.assert_array_equal(mask, annotated(plain, FOUR)[annotator])


def test_masks_are_changed_before_they_are_cut() -> None:
    source = opened(size=8)
    batch = source.draw(np.zeros(40, int), np.arange(40), 0, MaskDataConfig(size=8))
    assert source.annotators is not None
    whole = source.annotators.labels(0)
    windows = [np.lib.stride_tricks.sliding_window_view(one, (8, 8)).reshape(-1, 8, 8) for one in whole]
    for mask, annotator in zip(batch["mask"], source.annotators.drawn(np.arange(40), 0), strict=True):
        assert (windows[annotator] == mask).all((1, 2)).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_start_and_other_divisions_draw_the_same(workers: int) -> None:
    settings = MaskDataConfig(
        scene_classes="foreground", annotators=FOUR, train_limit=16, augment=WarpConfig(flips=[0])
    )
    source = open_pairs(settings).train

    def first(**how) -> np.ndarray:
        batches = training_loader(source, settings, batch_size=8, seed=1, workers=workers, **how)
        try:
            return next(batches)["mask"].numpy()
        finally:
            batches.close()

    batches = training_loader(source, settings, batch_size=8, seed=1, workers=0)
    third = [next(batches)["mask"].numpy() for _ in range(3)][2]
    np.testing.assert_array_equal(first(start_step=2), third)
    halves = [first(start_step=2, rank=rank, world_size=2) for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), third)


def test_border_weights_are_those_of_the_annotators_mask() -> None:
    source = opened().weighted(lambda labels: (labels > 0).astype(np.float64))
    batch = source.draw(np.arange(16), np.arange(16), 0, MaskDataConfig())
    np.testing.assert_array_equal(batch["weight"], batch["mask"] > 0)


def test_held_out_images_keep_their_masks_and_know_the_annotators() -> None:
    data = open_pairs(MaskDataConfig(scene_classes="foreground", annotators=FOUR, train_limit=2))
    truth = (scenes("test")[1] > 0).astype(int)
    assert len(data.test) == COUNTS["test"]
    np.testing.assert_array_equal(data.test.read([7])["mask"][0], truth[7])
    assert data.test.annotators is not None
    np.testing.assert_array_equal(data.test.annotators.labels(7), annotated(truth[7], FOUR))
    assert data.report().splitlines()[-1] == (
        "training masks are changed by annotators with probabilities: none 0.4, dilate 0.3, erode 0.2, delete 0.1; "
        "the classes above are unchanged"
    )
    assert open_pairs(MaskDataConfig(train_limit=2)).train.annotators is None


def test_masks_of_any_source_and_encoding(tmp_path: Path) -> None:
    """One-hot masks from arrays: changed as class numbers, and stored again as they came."""
    masks = scenes("test")[1][:4] % 3
    np.save(tmp_path / "images.npy", scenes("test")[0][:4])
    np.save(tmp_path / "masks.npy", np.eye(3, dtype=np.uint8)[masks] * 7)
    data = open_pairs(
        MaskDataConfig(source="npy", path=str(tmp_path), dims=2, annotators=FOUR, class_names=["a", "b", "c"])
    )
    assert data.train.encoding.kind == "one_hot"
    assert data.train.annotators is not None
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(data.train.annotators.labels(index), annotated(mask.astype(int), FOUR))


# ---------------------------------------------------------------- settings


def test_probabilities_as_numbers_of_annotators() -> None:
    assert as_counts([0.4, 0.3, 0.2, 0.1]) == [4, 3, 2, 1]
    assert as_counts([1 / 3, 2 / 3]) == [1, 2]
    assert as_counts([1.0]) == [1]
    with pytest.raises(ValueError, match=r"probabilities are 0\.1234, 0\.8766; expected shares"):
        as_counts([0.1234, 0.8766])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"none": 0.4, "dilate": 0.3}, r"data\.annotators has probabilities that sum to 0\.7; expected 1, or all 0"),
        ({"none": 1.5, "erode": -0.5}, r"erode is -0\.5; expected at least 0"),
        ({"none": 1.0, "radius": 2.0}, r"data\.annotators\.radius is 2\.0, which nothing reads without .*dilate or er"),
        ({"dilate": 1.0, "radius": 0.5}, r"radius is 0\.5; expected at least 1"),
        ({"background": 1}, r"data\.annotators\.background is 1, which nothing reads"),
        ({"delete": 1.0, "background": -1}, r"background is -1; expected at least 0"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnnotatorConfig(**settings)


def test_a_background_that_is_no_class() -> None:
    with pytest.raises(ValueError, match=r"data\.annotators\.background is 2; expected a class, 0 to 1\."):
        opened(annotators=AnnotatorConfig(erode=1.0, background=2))
