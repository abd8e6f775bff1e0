"""Segmentation runs on the shared loop: exact resume, processes, a denoiser's body, what is refused, masks out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from tests.networks import RESNET
from tests.runs import TRAIN, as_a_new_process, command, fit, left_behind, one_sentence, relative_difference
from unetdiff.data.mask_options import MaskDataConfig
from unetdiff.data.scenes import scenes
from unetdiff.objective_options import ObjectiveConfig
from unetdiff.run_config import EmaConfig, TrainConfig
from unetdiff.runs import load_run
from unetdiff.segment_config import SegmentConfig, SegmentModelConfig
from unetdiff.segmentation.predict import Inference
from unetdiff.segmenting import segment
from unetdiff.training.evaluation import FIGURES, FOLDER, read_evaluation
from unetdiff.training.loop import Trainer
from unetdiff.training.report import write_report
from unetdiff.training.segment import segment_workload, segmentation_trainer

MODEL: dict[str, Any] = {"channels": [8, 8], "blocks": 1, "middle": False}
AUGMENT = {"flips": [1], "rotation": 10.0, "gain": 0.1}


def settings(run: Path, model: dict | None = None, objective: dict | None = None, **train: Any) -> SegmentConfig:
    """Settings of a run of seconds on the embedded scenes."""
    from unetdiff.data.mask_options import WarpConfig

    return SegmentConfig(
        run_dir=str(run),
        model=SegmentModelConfig(**{**MODEL, **(model or {})}),
        data=MaskDataConfig(train_limit=24, augment=WarpConfig(**AUGMENT)),
        objective=ObjectiveConfig(**(objective or {})),
        train=TrainConfig(**{**TRAIN, "sample_count": 2, **train}),
        ema=EmaConfig(widths=[0.1, 0.05]),
    )


def fit_masks(run: Path, **overrides: Any) -> Trainer:
    """Train such a run to its end, as a new process would."""
    as_a_new_process()
    made = segmentation_trainer(settings(run, **overrides))
    made.fit()
    return made


def words(run: Path, **train: Any) -> list[str]:
    """The same run as a command line."""
    given = ["--run_dir", str(run), "--model.channels", "[8,8]", "--model.blocks", "1", "--model.middle", "false"]
    given += ["--data.train_limit", "24", "--data.augment.flips", "[1]", "--data.augment.rotation", "10"]
    given += ["--data.augment.gain", "0.1", "--ema.widths", "[0.1,0.05]"]
    for name, value in {**TRAIN, "sample_count": 2, **train}.items():
        given += [f"--train.{name}", str(value)]
    return given


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    fit_masks(run, model={"dropout": 0.2})
    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with three scenes, and one with their masks."""
    root = tmp_path_factory.mktemp("scenes")
    samples, labels = scenes("test")
    for name, arrays in (("images", samples[..., 0]), ("masks", labels)):
        (root / name).mkdir()
        for number in range(3):
            Image.fromarray(arrays[number].astype(np.uint8)).save(root / name / f"{number}.png")
    return root


def test_resumed_equals_uninterrupted_bit_for_bit(straight: Path, tmp_path: Path) -> None:
    for steps in (2, 6):
        fit_masks(tmp_path / "run", model={"dropout": 0.2}, steps=steps)
    assert_close(left_behind(tmp_path / "run"), left_behind(straight), rtol=0, atol=0)
    files = sorted(path.name for path in (straight / FOLDER).iterdir())
    assert files == sorted(path.name for path in (tmp_path / "run" / FOLDER).iterdir())
    for name in files:
        assert (tmp_path / "run" / FOLDER / name).read_bytes() == (straight / FOLDER / name).read_bytes(), name


def test_several_processes_reach_weights_and_metrics_of_one(tmp_path: Path) -> None:
    fit_masks(tmp_path / "one", objective={"border_weight": 10.0})
    given = [*words(tmp_path / "two", processes=2), "--objective.border_weight", "10"]
    done = command("train/segment.py", *given, processes=2)
    assert done.returncode == 0, done.stderr
    assert relative_difference(left_behind(tmp_path / "one"), left_behind(tmp_path / "two")) < 1e-5
    first, second = (_validation(tmp_path / name) for name in ("one", "two"))
    assert first["iou"] == second["iou"]
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
    one, two = (read_evaluation(tmp_path / name) for name in ("one", "two"))
    assert [case["file"] for case in one["cases"]] == [case["file"] for case in two["cases"]]
    assert one["confusion"] == two["confusion"]
    for case in one["cases"]:
        pictures = [np.asarray(Image.open(tmp_path / name / FOLDER / case["file"]), float) for name in ("one", "two")]
        assert abs(pictures[0] - pictures[1]).mean() < 0.5
    assert "Worst held-out images" in (tmp_path / "two" / "report.html").read_text()


def test_validation_leaves_the_worst_images(straight: Path) -> None:
    """The pictures and figures of the last validation, and none of them a part of the line."""
    line, held = _validation(straight), read_evaluation(straight)
    assert {name: held[name] for name in line if name in held} == {
        name: value for name, value in line.items() if name in held
    }
    assert len(held["cases"]) == 10
    assert {path.name for path in (straight / FOLDER).iterdir()} == {FIGURES, *(case["file"] for case in held["cases"])}
    assert len(json.dumps(line)) < 2500
    page = write_report(straight).read_text()
    for heading in ("Masks of held-out images", "Worst held-out images", "Confidence", "Predictions"):
        assert f"<h2>{heading}</h2>" in page


@pytest.mark.parametrize("space", [(40,), (6, 12, 16)])
def test_signals_and_volumes_have_cases_too(space: tuple[int, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(5):
        labels = (rng.random(space) > 0.5).astype(np.uint8)
        image = labels + rng.normal(0, 0.2, space).astype(np.float32)
        np.save(tmp_path / "data" / "images" / f"{number}.npy", image.astype(np.float32).clip(-1, 2)[..., None])
        np.save(tmp_path / "data" / "masks" / f"{number}.npy", labels)
    as_a_new_process()
    dims: Any = len(space)
    data = MaskDataConfig(source="folder", path=str(tmp_path / "data"), dims=dims, split="names",
                          train=["[0-2].npy"], validation=["[34].npy"])  # fmt: skip
    segmentation_trainer(replace(settings(tmp_path / "run", steps=1, batch_size=2), data=data)).fit()
    held = read_evaluation(tmp_path / "run")
    assert sorted(case["name"][-5:] for case in held["cases"]) == ["3.npy", "4.npy"]
    assert all((case["slice"] is None) == (len(space) == 1) for case in held["cases"])
    assert "Worst held-out images" in write_report(tmp_path / "run").read_text()


def _validation(run: Path) -> dict[str, Any]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "validation"][-1]


def test_learns_a_few_images_by_heart(tmp_path: Path) -> None:
    """Every position of two scenes after some hundred steps: mean IoU of what it was trained on."""
    as_a_new_process()
    wide = {"channels": [16, 32, 32], "blocks": 1, "middle_attention": False, "middle": True}
    config = settings(tmp_path / "run", model=wide, steps=150, batch_size=2, learning_rate=5e-3)
    config = replace(config, data=MaskDataConfig(train_limit=2), ema=EmaConfig(kind="none"))
    made = segmentation_trainer(config)
    made.fit()
    made.unet.eval()
    batch = next(made.batches(0))
    found = made.unet(batch["sample"]).sample.argmax(1)
    assert (found == batch["mask"]).float().mean() > 0.99


@pytest.mark.parametrize("timestep", [None, 20])
def test_starts_from_a_denoiser_and_says_what_it_took(timestep: int | None, tmp_path: Path, capsys) -> None:
    fit(tmp_path / "denoiser", data={"source": "digit_scenes"}, steps=2)
    body = {"init_from": str(tmp_path / "denoiser"), "timestep": timestep}
    plain = {name: getattr(SegmentModelConfig(), name) for name in ("channels", "blocks", "middle")}
    fit_masks(tmp_path / "run", model={**plain, **body}, steps=1)
    said = capsys.readouterr().err
    assert re.search(r"\d+ tensors taken over; new: \d of the head;", said)
    left = said.split("left behind: ")[1]
    assert "of the head" in left
    assert ("embedding" in left) == (timestep is None)
    run, denoiser = load_run(tmp_path / "run"), load_run(tmp_path / "denoiser")
    assert run.unet.spec.channels == denoiser.unet.spec.channels
    assert (run.unet.embedding is None) == (timestep is None)
    assert run.beside.settings == {"kind": "logits", "timestep": timestep}


@pytest.mark.parametrize(("part", "learning"), [("encoder", {"decoder", "head"}), ("body", {"head"})])
def test_what_came_from_a_denoiser_is_frozen_at_first(part: Any, learning: set[str], tmp_path: Path) -> None:
    """Decay of weights would change what only has no gradient; after the frozen steps everything learns."""
    fit(tmp_path / "denoiser", data={"source": "digit_scenes"}, steps=1)
    body = {"channels": [8, 8], "blocks": 1, "middle": True, "init_from": str(tmp_path / "denoiser")}
    model = {**body, "freeze": part, "freeze_steps": 2}
    made = segmentation_trainer(settings(tmp_path / "run", model=model, steps=3, weight_decay=0.1))
    for done, _ in made.steps(made.restore()):
        if done == 1:
            before = {name: value.clone() for name, value in made.unet.state_dict().items()}
        if done >= 2:
            changed = {name for name, value in made.unet.state_dict().items() if not torch.equal(value, before[name])}
            parts = {name.split(".")[0] for name in changed}
            assert parts == (learning if done == 2 else {"encoder", "decoder", "head"})
    made.close()


def test_a_stop_within_the_frozen_steps_changes_nothing(tmp_path: Path) -> None:
    fit(tmp_path / "denoiser", data={"source": "digit_scenes"}, steps=1)
    body = {"channels": [8, 8], "blocks": 1, "middle": True, "init_from": str(tmp_path / "denoiser")}
    model = {**body, "freeze": "encoder", "freeze_steps": 2}
    fit_masks(tmp_path / "straight", model=model, steps=4)
    for steps in (1, 4):
        fit_masks(tmp_path / "halted", model=model, steps=steps)
    assert_close(left_behind(tmp_path / "halted"), left_behind(tmp_path / "straight"), rtol=0, atol=0)


def test_segments_with_a_pretrained_encoder(tmp_path: Path) -> None:
    """Its weights are frozen: they and its statistics end as they began; what stands behind them learns."""
    chosen = {"name": None, "config": {**RESNET, "out_features": ["stage1", "stage2"]}, "frozen": True}
    model = {"channels": [8, 8, 16, 16], "backbone": chosen}
    torch.manual_seed(0)
    made = segmentation_trainer(settings(tmp_path / "run", model=model, steps=2))
    before = {name: value.clone() for name, value in made.unet.state_dict().items()}
    made.fit()
    changed = {name for name, value in made.unet.state_dict().items() if not torch.equal(value, before[name])}
    assert not any("backbone" in name for name in changed)
    assert {name.split(".")[0] for name in changed} == {"encoder", "decoder", "head"}
    assert segment(load_run(tmp_path / "run"), scenes("test")[0][0]).labels.shape == (32, 32)


def test_border_weights_need_to_know_what_lies_between_objects(tmp_path: Path) -> None:
    """Cells of class 0 on a ground of class 1: weights that are 1 everywhere are spoken of."""
    mask = np.ones((16, 16), np.uint8)
    mask[2:8, 2:7] = mask[2:8, 9:14] = 0
    for name, array in (("images", 90 * mask + 9), ("masks", mask)):
        (tmp_path / name).mkdir()
        Image.fromarray(array).save(tmp_path / name / "a.png")
    config = replace(settings(tmp_path / "run"), data=MaskDataConfig(source="folder", path=str(tmp_path)))
    objective = ObjectiveConfig(border_weight=10.0)
    with pytest.warns(UserWarning, match="no training mask has two with class 0 between them"):
        work = segment_workload(replace(config, objective=objective), 8)
    assert (next(work.loader(batch_size=8, seed=0))["weight"] == 1).all()
    work = segment_workload(replace(config, objective=replace(objective, background=1)), 8)
    assert next(work.loader(batch_size=8, seed=0))["weight"].max() > 2


def test_goes_on_without_the_denoiser_it_started_from(tmp_path: Path) -> None:
    """What a run started from is moved away after its first checkpoint; it ends as it would have."""
    fit(tmp_path / "denoiser", data={"source": "digit_scenes"}, steps=1)
    model = {"channels": [8, 8], "blocks": 1, "middle": True, "init_from": str(tmp_path / "denoiser"), "timestep": 20}
    fit_masks(tmp_path / "straight", model=model, steps=4)
    fit_masks(tmp_path / "halted", model=model, steps=3)
    (tmp_path / "denoiser").rename(tmp_path / "elsewhere")
    fit_masks(tmp_path / "halted", model=model, steps=4)
    assert_close(left_behind(tmp_path / "halted"), left_behind(tmp_path / "straight"), rtol=0, atol=0)


def test_what_changes_no_weight_may_differ_from_the_denoiser(tmp_path: Path) -> None:
    """Dropout and supervised levels are the segmenter's own; without them, dropout is the denoiser's."""
    fit(tmp_path / "denoiser", model={"channels": [8, 8, 8], "dropout": 0.1}, data={"source": "digit_scenes"}, steps=1)
    config = settings(tmp_path / "run")
    for own, dropout in (({"dropout": 0.3, "deep_supervision": True}, 0.3), ({}, 0.1)):
        chosen = SegmentModelConfig(init_from=str(tmp_path / "denoiser"), **own)
        spec = segment_workload(replace(config, model=chosen), 8).spec
        assert (spec.dropout, spec.deep_supervision) == (dropout, "deep_supervision" in own)


def test_a_run_folder_says_what_it_is(straight: Path, tmp_path: Path) -> None:
    run = load_run(straight)
    assert run.masks.num_classes == 11
    with pytest.raises(ValueError, match="is a segmentation network, which draws no samples"):
        run.scheduler  # noqa: B018
    done = command("sample/images.py", str(straight), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "segmentation network" in one_sentence(done.stderr)


def test_masks_leave_as_they_came_with_pictures_and_figures(straight: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("sample/masks.py", str(straight), str(images / "images"), "--out", str(out), "--truth",
                   str(images / "masks"), "--tta", "--passes", "3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    mask = np.asarray(Image.open(out / "1.png"))
    assert (mask.shape, mask.dtype) == ((32, 32), np.uint8)
    with np.load(out / "1.npz") as held:
        assert held["probabilities"].shape == (11, 32, 32)
        assert (held["probabilities"].argmax(0) == mask).mean() > 0.98  # ties in float16
        assert (held["mutual_information"] >= 0).all()
        assert held["mutual_information"].max() > 0
        assert_close(held["total_entropy"] - held["expected_entropy"], held["mutual_information"], rtol=0, atol=1e-4)
    for name in ("1_overlay.png", "1_panels.png", "1_total_entropy.png", "metrics.json"):
        assert (out / name).is_file()
    assert json.loads((out / "metrics.json").read_text())["images"] == 3


def test_tiles_flips_and_members_in_memory(straight: Path) -> None:
    run = load_run(straight)
    image = np.concatenate([scenes("test")[0][number] for number in range(4)], axis=0)
    whole = segment(run, image)
    assert whole.labels.shape == (128, 32)
    assert_close(torch.from_numpy(whole.probabilities.sum(0)), torch.ones(128, 32))
    tiled = segment(run, image, Inference(tile=64, overlap=0.5))
    assert (tiled.labels == whole.labels).mean() > 0.9  # group norms read the whole of what they are given
    twice = segment([run, run], image)
    assert_close(torch.from_numpy(twice.probabilities), torch.from_numpy(whole.probabilities), rtol=1e-5, atol=1e-6)
    assert twice.maps["mutual_information"].max() < 1e-5
    again = [segment(run, image, passes=2, seed=5).probabilities for _ in range(2)]
    assert (again[0] == again[1]).all()
    assert abs(again[0] - whole.probabilities).max() > 1e-6


REFUSED = {
    "expected model.init_from beside it": ["--model.timestep", "5"],
    "nothing tells this network a timestep": ["--model.time_embedding", "sinusoidal"],
    "there is no folder NO/run": ["--model.init_from", "NO/run"],
    "expected a part and how many steps": ["--model.freeze", "body"],
    "model.freeze is body; it is for kind logits": ["--model.freeze", "body", "--model.freeze_steps", "5"],
    "class_weights": ["--objective.class_weights", "[1, 2]"],
    "objective.border_sigma is 0.0": ["--objective.border_sigma", "0"],
    "objective.class_weights acts in cross_entropy, dice_cross_entropy, focal, not in tversky": [
        *("--objective.class_weights", "inverse_frequency", "--objective.loss", "tversky"),
    ],
    "objective.gamma is 0.5; expected 0, or 1 or more": ["--objective.gamma", "0.5", "--objective.loss", "focal"],
    "objective.class_weights is [-1": ["--objective.class_weights", "[-1, 2]"],
    "objective.background is of border weights": ["--objective.background", "1"],
    "objective.gamma acts in focal, not in dice_cross_entropy": ["--objective.gamma", "3"],
    "objective.border_weight acts in": ["--objective.border_weight", "10", "--objective.loss", "dice"],
    "expected at most 10000": ["--objective.border_weight", "20000"],
    "needs decoder_blocks at a level below": ["--model.deep_supervision", "true", "--model.decoder_blocks", "[1,0]"],
    "did you mean data.train_limit": ["--data.train_limi", "3"],
}


@pytest.mark.parametrize("expected", REFUSED)
def test_mistakes_are_one_sentence(expected: str, tmp_path: Path) -> None:
    done = command("train/segment.py", *words(tmp_path / "run"), *REFUSED[expected])
    assert done.returncode == 2, done.stderr
    assert expected in one_sentence(done.stderr)


def test_check_says_what_the_data_are(tmp_path: Path) -> None:
    done = command("train/segment.py", *words(tmp_path / "run"), "--check")
    assert done.returncode == 0, done.stderr
    assert "background" in done.stdout
    assert not (tmp_path / "run").exists()


def test_several_processes_supervise_every_level(tmp_path: Path) -> None:
    """Each head of a plain decoder counts, or the processes would wait for gradients that never come."""
    model = {"channels": [8, 8, 8], "deep_supervision": True}
    fit_masks(tmp_path / "one", model=model)
    given = [*words(tmp_path / "two", processes=2), "--model.channels", "[8,8,8]", "--model.deep_supervision", "true"]
    done = command("train/segment.py", *given, processes=2)
    assert done.returncode == 0, done.stderr
    assert relative_difference(left_behind(tmp_path / "one"), left_behind(tmp_path / "two")) < 1e-5


def test_resumed_equals_uninterrupted_with_border_weights_and_supervised_levels(tmp_path: Path) -> None:
    chosen = {"model": {"channels": [8, 8, 8], "deep_supervision": True}, "objective": {"border_weight": 10.0}}
    for run, steps in (("halted", 2), ("halted", 4), ("straight", 4)):
        fit_masks(tmp_path / run, steps=steps, **chosen)
    assert_close(left_behind(tmp_path / "halted"), left_behind(tmp_path / "straight"), rtol=0, atol=0)


def _noise(size: tuple[int, ...], dtype: Any = np.uint8, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (count, *size), dtype, endpoint=True)


def _halves(size: tuple[int, ...], count: int = 2) -> np.ndarray:
    """Masks of two classes, one beside the other."""
    return np.stack([np.arange(np.prod(size)).reshape(size) * 2 >= np.prod(size)] * count).astype(np.uint8)


SMALL_TILES = ["--data.size", "8"]
IGNORED = ["--data.values", "[0, 1]", "--data.ignore", "[255]"]
VOID = np.full((2, 12, 10), 255, np.uint8)
VOID_AND_HALVES = np.stack([VOID[0], _halves((12, 10))[0]])

# Images (n, height, width[, channels]), masks, what the command is told beside, and the mistake that it names, if any.
ODD_DATA: dict[str, tuple[np.ndarray, np.ndarray, list[str], str | None]] = {
    "constant": (np.full((2, 12, 10), 100, np.uint8), _halves((12, 10)), [], None),
    "black": (np.zeros((2, 12, 10), np.uint8), _halves((12, 10)), [], None),
    "constant_floats": (np.full((2, 12, 10), 0.5, np.float32), _halves((12, 10)), [], "expected data that vary"),
    "one_class": (_noise((12, 10)), np.zeros((2, 12, 10), np.uint8), ["--data.values", "[0, 1]"], None),
    "some_ignored": (
        _noise((12, 10)),
        VOID_AND_HALVES,
        IGNORED,
        None,
    ),
    "all_ignored": (_noise((12, 10)), VOID, IGNORED, None),
    "all_ignored_weighted": (
        _noise((12, 10)),
        VOID,
        [*IGNORED, "--objective.border_weight", "10", "--objective.class_weights", "inverse_frequency"],
        None,
    ),
    "four_channels": (_noise((12, 10, 4)), _halves((12, 10)), [], None),
    "sixteen_bits": (_noise((12, 10), np.uint16), _halves((12, 10)), [], None),
    "one_image": (_noise((12, 10), count=1), _halves((12, 10), 1), [], None),
    "smaller_than_the_stride": (_noise((1, 3)), _halves((1, 3)), [], None),
    "smaller_than_the_crop": (_noise((3, 5)), _halves((3, 5)), SMALL_TILES, None),
    "one_pixel": (_noise((1, 1)), np.array([[[0]], [[1]]], np.uint8), SMALL_TILES, None),
}


def _write_split(root: Path, images: np.ndarray, masks: np.ndarray) -> None:
    """Train and validation folders with the same images."""
    for split in ("train", "val"):
        for name, arrays in (("images", images), ("masks", masks)):
            (root / split / name).mkdir(parents=True)
            for number, array in enumerate(arrays):
                if array.dtype == np.float32:
                    np.save(root / split / name / f"{number}.npy", array)
                else:
                    Image.fromarray(array).save(root / split / name / f"{number}.png")


def _no_nan(text: str) -> Any:
    raise AssertionError(f"{text} is no JSON")


@pytest.mark.parametrize("name", ODD_DATA)
def test_odd_data_train_or_are_refused_in_one_sentence(name: str, tmp_path: Path, run_script) -> None:
    """One step and one validation by command: finite figures, or a sentence."""
    images, masks, beside, mistake = ODD_DATA[name]
    _write_split(tmp_path / "data", images, masks)
    given = words(tmp_path / "run", steps=1, batch_size=2)
    drop = given.index("--data.train_limit")
    given[drop : drop + 2] = ["--data.source", "folder", "--data.path", str(tmp_path / "data")]
    code, _, errors = run_script("train/segment.py", *given, *beside)
    if mistake is not None:
        assert code == 2, errors
        assert mistake in one_sentence(errors)
        return
    assert code == 0, errors
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = {line["kind"]: line for line in (json.loads(row, parse_constant=_no_nan) for row in text.splitlines())}
    assert lines["train"]["loss"] >= 0
    assert lines["train"]["skipped"] == 0
    held_out = lines["validation"]
    ignored = (masks == 255).all()
    assert (lines["train"]["loss"] == 0) == ignored
    assert (held_out["mean_iou"] is None) == ignored
    assert held_out["loss"] >= 0
    weights = load_run(tmp_path / "run").unet.state_dict()
    assert all(value.isfinite().all() for value in weights.values())
