from __future__ import annotations

import numpy as np
import pytest

from unetdiff.config import DataConfig
from unetdiff.data.mask_options import MaskDataConfig
from unetdiff.data.pairs import open_pairs
from unetdiff.data.scenes import COUNTS, SCENE_CLASSES, SCENE_GROUPS, SIDE, _scene, grouped, scene_classes, scenes
from unetdiff.data.sources import open_source


@pytest.mark.parametrize("split", COUNTS)
def test_scenes_have_digits_of_every_class_on_background(split: str):
    images, masks = scenes(split)
    assert (images.shape, images.dtype) == ((COUNTS[split], SIDE, SIDE, 1), np.uint8)
    assert (masks.shape, masks.dtype) == ((COUNTS[split], SIDE, SIDE), np.uint8)
    shares = np.bincount(masks.ravel(), minlength=11) / masks.size
    assert len(shares) == len(SCENE_CLASSES) == 11
    assert 0.7 < shares[0] < 0.85
    assert shares[1:].min() > 0.01
    assert (masks.reshape(len(masks), -1).max(1) > 0).all()  # no scene without a digit


def test_digits_stand_out_and_overlap():
    images, masks = scenes("train")
    inside, outside = images[..., 0][masks > 0], images[..., 0][masks == 0]
    assert inside.mean() - outside.mean() > 60
    neighbours = (masks[:, 1:] != masks[:, :-1]) & (masks[:, 1:] > 0) & (masks[:, :-1] > 0)
    assert neighbours.any(axis=(1, 2)).mean() > 0.3  # digits of two classes touch


def test_a_scene_is_a_function_of_split_and_index():
    glyphs, labels = np.arange(5 * 256).reshape(5, 16, 16, 1).astype(np.uint8), np.arange(5)
    one, other = _scene("train", 7, glyphs, labels), _scene("train", 7, glyphs, labels)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    assert (_scene("train", 8, glyphs, labels)[0] != one[0]).any()
    assert (_scene("test", 7, glyphs, labels)[0] != one[0]).any()


def test_the_unlabelled_pool_is_the_same_images():
    source = open_source(DataConfig(source="digit_scenes"), "train")
    assert source.num_classes == 0
    np.testing.assert_array_equal(source.read(np.arange(20))["sample"], scenes("train")[0][:20])


def test_few_labels_are_spread_over_the_training_scenes():
    data = open_pairs(MaskDataConfig(train_limit=4))
    assert (len(data.train), len(data.validation), len(data.test)) == (4, COUNTS["validation"], COUNTS["test"])
    assert data.train.encoding.class_names == SCENE_CLASSES
    batch = data.train.read(np.arange(4))
    np.testing.assert_array_equal(batch["sample"], scenes("train")[0][[250, 750, 1250, 1750]])
    np.testing.assert_array_equal(batch["mask"], scenes("train")[1][[250, 750, 1250, 1750]])


@pytest.mark.parametrize(("groups", "classes"), [("digits", 11), ("groups", 4), ("foreground", 2)])
def test_digits_in_groups(groups, classes: int):
    data = open_pairs(MaskDataConfig(scene_classes=groups, train_limit=30))
    assert data.train.encoding.class_names == scene_classes(groups)
    assert data.train.num_classes == len(scene_classes(groups)) == classes
    truth, masks = data.test.read(np.arange(100))["mask"], scenes("test")[1][:100]
    for label, digits in enumerate(SCENE_GROUPS[groups].values(), start=1):
        np.testing.assert_array_equal(truth == label, np.isin(masks, np.array(digits) + 1))
    np.testing.assert_array_equal(truth == 0, masks == 0)


def test_every_digit_is_in_one_group():
    for groups in SCENE_GROUPS:
        assert sorted(digit for digits in SCENE_GROUPS[groups].values() for digit in digits) == list(range(10))
    masks = scenes("test")[1]
    np.testing.assert_array_equal(grouped(masks, "digits"), masks)


def test_groups_are_of_the_scenes_alone():
    with pytest.raises(
        ValueError, match=r"data\.scene_classes is 'groups', which nothing reads where data\.source is fo"
    ):
        MaskDataConfig(source="folder", path="x", scene_classes="groups")
