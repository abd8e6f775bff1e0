"""Mistakes that published segmentation code has made, and the test of ours that each of them would fail.

Those without a path are below; `test_every_test_that_is_named_exists` looks up the others.

Figures
- predictions on ignored positions counted in the union (DDPM-seg), in ECE and the rest:
  tests/segmentation/test_overlap.py::test_predictions_on_ignored_positions_are_in_no_union
  tests/segmentation/test_metrics.py::test_nothing_that_is_predicted_on_void_changes_a_value
- ignored positions in the loss: tests/segmentation/test_objective.py::test_ignored_positions_take_no_part
- an absent class has IoU 0 (DDPM-seg) or Dice 1 (milesial's U-Net):
  tests/segmentation/test_overlap.py::test_a_class_on_neither_side_is_left_out_of_the_means
- means over batches instead of the data set:
  tests/segmentation/test_overlap.py::test_the_data_set_is_one_matrix_and_not_a_mean_over_images
  test_every_held_out_image_counts_once_whatever_the_batch
- the last, smaller batch of validation dropped (milesial's U-Net):
  test_every_held_out_image_counts_once_whatever_the_batch
  tests/segmentation/test_metrics.py::test_several_processes_give_the_bits_of_one
- micro IoU, void included, called mean IoU (a notebook of segmentation_models.pytorch):
  tests/segmentation/test_overlap.py::test_the_mean_is_over_classes_and_not_over_positions
- an area ratio called overlap (SegDiff):
  tests/segmentation/test_overlap.py::test_overlap_is_of_positions_and_not_of_areas
- thresholds averaged over, on truth as well (MedSegDiff); here the best one is called an oracle's:
  tests/segmentation/test_rand_scores.py::test_the_oracle_is_one_threshold_for_the_data_set
- probabilities divided by their maximum (MedSegDiff):
  tests/segmentation/test_metrics.py::test_bad_batches_are_one_sentence
- the logarithm of 0, as of one-hot votes (CCDM): test_certain_mistakes_leave_a_finite_loss_and_valid_json
  tests/segmentation/test_calibration.py::test_certain_mistakes_cost_a_finite_amount
  tests/segmentation/test_uncertainty.py::test_zeros_and_half_precision_make_no_nan
- labels exchanged with predictions (VALUES), hard samples without their meaning:
  tests/segmentation/test_uncertainty.py::test_hard_samples_are_all_disagreement
  tests/segmentation/test_overlap.py::test_by_hand

Which images
- the test split, called validation, decides on the best checkpoint (SegDiff, Noise2Map):
  test_training_reads_no_image_of_the_test_split_and_every_other
  test_the_last_network_is_kept_whatever_validation_says
- stopping by the loss of one training batch (DDPM-seg): test_the_last_network_is_kept_whatever_validation_says
- figures of images that were trained on (zhixuhao's U-Net): test_without_held_out_images_there_are_no_figures
  tests/data/test_pairs.py::test_splits_by_glob_and_by_list
- neighbouring slices on both sides of a split: test_the_split_of_the_membranes_leaves_a_gap
  tests/data/test_pairs.py::test_splits_by_group
- split at random (milesial's U-Net), without a seed (CCDM):
  tests/data/test_pairs.py::test_a_stated_fraction_is_drawn_from_its_seed
  tests/data/test_pairs.py::test_settings_that_nothing_would_read_are_refused
- only the first images of a folder (`images[:2]`, MedSegDiff; 180 images, BerDiff):
  test_training_reads_no_image_of_the_test_split_and_every_other
  tests/data/test_order.py::test_batches_walk_through_epochs_without_a_gap

What the network reads
- masks divided by their maximum: test_a_mask_is_read_by_its_values_and_not_by_its_maximum
- masks or predictions stored as JPEG (MedSegDiff): test_a_mask_stored_as_jpeg_is_refused_by_name
  tests/data/test_masks.py::test_what_is_written_reads_as_it_was
- labels interpolated by resizing or augmentation: test_no_augmentation_makes_a_label
  tests/data/test_warp.py::test_masks_are_nearest_where_images_are_linear
- degrees taken for radians (zhixuhao's U-Net): tests/data/test_warp.py::test_affine_maps_stay_in_their_bounds
- no normalisation of intensities in 3-D (MedSegDiff): test_intensities_are_normalised_in_any_number_of_dimensions
- everything resized to one square (Noise2Map): test_masks_have_the_size_of_their_images
  tests/data/test_pairs.py::test_evaluation_keeps_images_whole
- hard-coded shapes (Wolleb et al.): test_masks_have_the_size_of_their_images
  tests/models/test_contract.py::test_odd_sizes_come_back_exactly

Training
- frozen by requires_grad alone, so that batch statistics drift (a DDeP reimplementation):
  tests/nn/test_backbone.py::test_frozen_means_frozen
- norm statistics of the batch at hand in evaluation (FC-DenseNets) or in dropout passes:
  test_dropout_passes_use_the_statistics_of_training
- gradient accumulation that drops micro-batches (Noise2Map): test_accumulated_micro_batches_all_count
- objects cut by a crop weighed as smaller ones: test_border_weights_are_those_of_the_whole_mask

Masks that are drawn
- a forward process without half of its mean (BerDiff), or one step off its own schedule (CCDM):
  tests/segmentation/test_mask_diffusion.py::test_noisy_masks_have_the_marginals_of_the_closed_form
- masks in [0, 1] and predictions clipped to [-1, 1] (Wolleb, MedSegDiff, CIMD):
  tests/segmentation/test_mask_diffusion.py::test_what_is_drawn_stays_in_the_range_of_the_codes
- as many calls as the schedule has timesteps, whatever the steps (Wolleb):
  tests/segmentation/test_mask_diffusion.py::test_a_perfect_network_draws_the_truth
- the image looked at again in every step (SegDiff):
  tests/models/test_mask_denoiser.py::test_the_image_is_looked_at_once
- draws without a seed: tests/segmentation/test_mask_diffusion.py::test_a_mask_is_the_same_beside_any_others
- one-hot votes as probabilities: tests/masks/test_drawn.py::test_one_mask_is_sure_of_itself
- a part of the network given noise where it expects a mask (CIMD):
  tests/segmentation/test_mask_diffusion.py::test_a_perfect_network_draws_the_truth
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from tests.networks import redraw
from tests.runs import ROOT, TRAIN, as_a_new_process, left_behind, relative_difference
from unetdiff.data.loader import training_loader
from unetdiff.data.mask_options import MaskDataConfig, WarpConfig
from unetdiff.data.pair_splits import depth_range
from unetdiff.data.pairs import PairSource, open_pairs
from unetdiff.objective_options import ObjectiveConfig
from unetdiff.run_config import EmaConfig, TrainConfig
from unetdiff.runs import checkpoints, load_run
from unetdiff.segment_config import SegmentConfig, SegmentModelConfig
from unetdiff.segmentation.metrics import SegmentationMetrics
from unetdiff.segmentation.objective import border_weights
from unetdiff.segmentation.options import IGNORE
from unetdiff.segmenting import segment
from unetdiff.training.kinds.task import MaskTask
from unetdiff.training.loop import Trainer
from unetdiff.training.segment import segment_workload, segmentation_trainer

SPLIT: dict[str, Any] = {"split": "names", "train": ["[0-5]"], "validation": ["[6-9]", "10"], "test": ["1[12]"]}


def write_arrays(root: Path, space: tuple[int, ...] = (8, 8), count: int = 13, dtype: str = "uint8") -> Path:
    """Random images that reach both ends of their range, and masks that say which values are above the middle."""
    draw = np.random.default_rng(0)
    top = 1000.0 if dtype == "float32" else np.iinfo(dtype).max
    images = (draw.uniform(0, 1, (count, *space, 1)) * top).astype(dtype)
    images.reshape(count, -1)[:, :2] = 0, top
    np.save(root / "images.npy", images)
    np.save(root / "masks.npy", (images[..., 0] > top / 2).astype(np.uint8))
    return root


def arrays_config(root: Path, **settings: Any) -> MaskDataConfig:
    return MaskDataConfig(source="npy", path=str(root), **settings)


def trainer(run: Path, data: MaskDataConfig, model: dict | None = None, **train: Any) -> Trainer:
    """The trainer of a tiny run, as a new process would make it."""
    as_a_new_process()
    config = SegmentConfig(
        run_dir=str(run),
        model=SegmentModelConfig(**{"channels": [8, 8], "blocks": 1, "middle": False, **(model or {})}),
        data=data,
        train=TrainConfig(**{**TRAIN, "sample_count": 2, **train}),
        ema=EmaConfig(widths=[0.1, 0.05]),
    )
    return segmentation_trainer(config)


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"(?:(tests/\S+\.py)::)?(test_[a-z0-9_]+)\b(?!\.py|/)", __doc__ or "")
    assert len(named) > 40
    for path, name in named:
        tree = ast.parse((ROOT / (path or Path(__file__).relative_to(ROOT))).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


# ---------------------------------------------------------------- figures


def test_every_held_out_image_counts_once_whatever_the_batch(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", arrays_config(write_arrays(tmp_path), **SPLIT), batch_size=4, steps=1)
    made.fit()
    made.unet.eval()
    expected = SegmentationMetrics(made.task.options)
    images, masks = np.load(tmp_path / "images.npy"), np.load(tmp_path / "masks.npy")
    with torch.no_grad():
        for place in range(6, 11):
            logits = made.unet(torch.from_numpy(images[place].astype(np.float32) / 127.5 - 1).movedim(-1, 0)[None])
            expected.update(logits.sample.softmax(1), torch.from_numpy(masks[place])[None])
        found = made.task.validate(made.unet, made.accelerator)
    values = expected.compute()
    assert values["images"] == 5
    for name in ("iou", "mean_dice", "accuracy", "ece"):
        assert found[name] == pytest.approx(values[name], abs=1e-6), name


def test_certain_mistakes_leave_a_finite_loss_and_valid_json(tmp_path: Path) -> None:
    """Scores so large that probabilities are exactly 0 and 1."""
    made = trainer(tmp_path / "run", arrays_config(write_arrays(tmp_path), **SPLIT))
    made.unet.eval()
    head: nn.Conv2d = made.unet.head["sample"][2]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([1e4, -1e4]))
        found = made.task.validate(made.unet, made.accelerator)
    assert 1 < found["loss"] < 100
    assert json.loads(json.dumps(found, allow_nan=False))["nll"] > 1


# ---------------------------------------------------------------- which images


def test_training_reads_no_image_of_the_test_split_and_every_other(tmp_path: Path, monkeypatch) -> None:
    made = trainer(tmp_path / "run", arrays_config(write_arrays(tmp_path), **SPLIT), steps=2, batch_size=6)
    read: list[str] = []
    load = PairSource.load
    monkeypatch.setattr(PairSource, "load", lambda self, index: (read.append(self.name(index)), load(self, index))[1])
    made.fit()
    numbers = sorted({int(name.rpartition("sample ")[2]) for name in read})
    assert numbers == list(range(11))


def test_the_last_network_is_kept_whatever_validation_says(tmp_path: Path, monkeypatch) -> None:
    said = []

    def worse(task: MaskTask, network: nn.Module, accelerator: Any) -> dict[str, Any]:
        said.append(float(len(said)))
        return {"loss": said[-1]}

    monkeypatch.setattr(MaskTask, "validate", worse)
    run = tmp_path / "run"
    trainer(run, arrays_config(write_arrays(tmp_path), **SPLIT), validate_every=1, checkpoint_every=1).fit()
    assert len(said) == TRAIN["steps"]
    assert checkpoints(run)[-1].name == f"step-{TRAIN['steps']:08d}"
    weights = load_file(checkpoints(run)[-1] / "unet" / "diffusion_pytorch_model.safetensors")
    assert_close(load_file(run / "unet" / "diffusion_pytorch_model.safetensors"), weights, rtol=0, atol=0)


def test_without_held_out_images_there_are_no_figures(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer(run, arrays_config(write_arrays(tmp_path)), steps=2, validate_every=1).fit()
    assert lines_of(run, "train")
    assert not lines_of(run, "validation")


def test_the_split_of_the_membranes_leaves_a_gap() -> None:
    """Neighbouring slices look alike: those beside a held-out one are not trained on."""
    data = yaml.safe_load((ROOT / "configs" / "em_membranes.yaml").read_text())["data"]
    assert data["split"] == "depth"
    trained, held = (
        {slice for text in data[split] for slice in range(depth_range(text)[0], depth_range(text)[1] + 1)}
        for split in ("train", "validation")
    )
    assert min(abs(one - other) for one in trained for other in held) > 1


# ---------------------------------------------------------------- what the network reads


def test_a_mask_is_read_by_its_values_and_not_by_its_maximum(tmp_path: Path) -> None:
    masks = np.zeros((3, 4, 4), np.uint8)
    masks[1, 0], masks[2, 0] = 1, 2
    np.save(tmp_path / "images.npy", np.arange(48, dtype=np.uint8).reshape(3, 4, 4))
    np.save(tmp_path / "masks.npy", masks)
    np.testing.assert_array_equal(open_pairs(arrays_config(tmp_path)).train.read([0, 1, 2])["mask"], masks)


def test_a_mask_stored_as_jpeg_is_refused_by_name(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(draw.integers(0, 255, (16, 16), np.uint8)).save(tmp_path / "images" / "a.png")
    Image.fromarray((draw.random((16, 16)) > 0.5).astype(np.uint8) * 255).save(tmp_path / "masks" / "a.jpg")
    for declared in ({}, {"values": [0, 255]}):
        with pytest.raises(ValueError, match=r"a\.jpg|values") as refusal:
            open_pairs(MaskDataConfig(source="folder", path=str(tmp_path), **declared))
        assert not declared or "a.jpg" in str(refusal.value)


@pytest.mark.parametrize("space", [(40,), (16, 16), (8, 12, 12)])
@pytest.mark.parametrize("fill", ["reflect", "ignore"])
def test_no_augmentation_makes_a_label(tmp_path: Path, space: tuple[int, ...], fill: Any) -> None:
    """Between 0 and 2 lies 1, which only interpolation would bring in; crops and padding are part of it."""
    np.save(tmp_path / "images.npy", np.arange(3 * np.prod(space), dtype=np.float32).reshape(3, *space, 1))
    masks = 2 * np.random.default_rng(0).integers(0, 2, (3, *space))
    masks[0].flat[0] = 1  # the class exists, once
    np.save(tmp_path / "masks.npy", masks)
    turning = {} if len(space) == 1 else {"rotation": 20.0, "shear": 5.0, "quarter_turns": "plane"}
    changes = WarpConfig(flips=[0], scale=0.2, elastic=2.0, fill=fill, gain=0.1, noise=0.1, **turning)
    settings = arrays_config(tmp_path, dims=len(space), size=10, augment=changes)
    drawn = open_pairs(settings).train.draw(np.full(20, 1), np.arange(20), 0, settings)["mask"]
    assert set(np.unique(drawn)) <= {IGNORE, 0, 2}
    assert {0, 2} <= set(np.unique(drawn))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("space", [(40,), (8, 10), (4, 6, 6)])
def test_intensities_are_normalised_in_any_number_of_dimensions(
    tmp_path: Path, space: tuple[int, ...], dtype: str
) -> None:
    settings = arrays_config(write_arrays(tmp_path, space, dtype=dtype), dims=len(space), **SPLIT)
    data = open_pairs(settings)
    batch = next(training_loader(data.train, settings, batch_size=6, seed=0))
    held_out = data.validation.format.encode(data.validation.read([0])["sample"])
    for sample in (batch["sample"], held_out):
        assert sample.dtype == torch.float32
        assert (float(sample.min()), float(sample.max())) == (-1, 1)


def test_masks_have_the_size_of_their_images(tmp_path: Path) -> None:
    trainer(tmp_path / "run", arrays_config(write_arrays(tmp_path)), steps=1).fit()
    run = load_run(tmp_path / "run")
    draw = np.random.default_rng(0)
    for size in [(8, 8), (7, 19), (33, 2), (1, 1)]:
        found = segment(run, draw.integers(0, 255, (*size, 1), np.uint8))
        assert found.labels.shape == size
        assert np.isfinite(found.probabilities).all()


# ---------------------------------------------------------------- training


@pytest.mark.filterwarnings("ignore:batch norm mixes")
def test_dropout_passes_use_the_statistics_of_training(tmp_path: Path) -> None:
    """With dropout that drops nothing, a pass is the evaluation: batch norm must not look at the image at hand."""
    site = {"pos": "pre", "norm": {"kind": "batch"}}
    model = {"dropout": 0.5, "norm": {"preset": "ddpm", "encoder": site, "decoder": site, "out": "batch"}}
    trainer(tmp_path / "run", arrays_config(write_arrays(tmp_path)), model, steps=2).fit()
    run = load_run(tmp_path / "run")
    redraw(run.unet)  # first weights of blocks are zero, which no dropout changes
    before = {name: value.clone() for name, value in run.unet.named_buffers()}
    assert any("running_var" in name for name in before)
    image = np.full((8, 8, 1), 200, np.uint8)  # no image of training is like it
    image[0] = 0
    single = segment(run, image).probabilities
    assert abs(segment(run, image, passes=3).probabilities - single).max() > 0.01
    for layer in run.unet.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 1e-12
    np.testing.assert_allclose(segment(run, image, passes=3).probabilities, single, atol=1e-6)
    assert_close(dict(run.unet.named_buffers()), before, rtol=0, atol=0)
    assert not any(module.training for module in run.unet.modules())


def test_accumulated_micro_batches_all_count(tmp_path: Path) -> None:
    data = arrays_config(write_arrays(tmp_path), **SPLIT)
    for accumulation in (1, 4):
        trainer(tmp_path / str(accumulation), data, accumulation=accumulation, steps=3).fit()
    assert relative_difference(left_behind(tmp_path / "1"), left_behind(tmp_path / "4")) < 1e-5


def test_border_weights_are_those_of_the_whole_mask(tmp_path: Path) -> None:
    """A crop that holds one of two touching objects still weighs the gap between them."""
    np.save(tmp_path / "images.npy", np.arange(20, dtype=np.uint8)[None])
    mask = np.zeros((1, 20), np.uint8)
    mask[0, 2:9], mask[0, 11:18] = 1, 1
    np.save(tmp_path / "masks.npy", mask)
    settings = arrays_config(tmp_path, dims=1, size=10)
    config = SegmentConfig(run_dir="run", data=settings, objective=ObjectiveConfig(border_weight=10.0))
    batch = next(segment_workload(config, 8).loader(batch_size=8, seed=0))
    whole = border_weights(mask[0].astype(np.int64))
    assert whole.max() > 8
    for sample, weight in zip(batch["sample"], batch["weight"], strict=True):
        first = int(((sample[0, 0] + 1) * 127.5).round())  # the images say where the crop was taken
        np.testing.assert_allclose(weight.numpy(), whole[first : first + 10], rtol=1e-3)
        assert weight.max() > 8 or not {9, 10} & set(range(first, first + 10))
