"""Runs that read a frozen denoiser: what is frozen stays, exact resume, what members see, the control, memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tests.runs import TRAIN, command, fit, fit_segmentation, left_behind, relative_difference
from unetdiff.data.mask_options import MaskDataConfig
from unetdiff.data.scenes import scenes
from unetdiff.feature_options import FeaturesConfig
from unetdiff.models.unet import UNet
from unetdiff.run_config import EmaConfig, TrainConfig
from unetdiff.runs import RAW_WEIGHTS, checkpoints, load_run
from unetdiff.segment_config import EvaluationConfig, SegmentConfig, SegmentModelConfig, parse_segment
from unetdiff.segmentation.options import IGNORE
from unetdiff.segmentation.predict import Inference
from unetdiff.segmentation.uncertainty import decompose
from unetdiff.segmenting import segment
from unetdiff.training.kinds.features import FeaturesTask
from unetdiff.training.segment import segment_workload

SPACES = {1: (40,), 2: (14, 18), 3: (6, 12, 10)}
SMALL = FeaturesConfig(timesteps=[20, 200], members=3, hidden=[8, 6], positions=16)


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser of digit scenes, hardly trained."""
    run = tmp_path_factory.mktemp("denoiser") / "run"
    fit(run, data={"source": "digit_scenes"}, steps=2)
    return run


def settings(run: Path, denoiser: Path, features: FeaturesConfig = SMALL, **train: Any) -> SegmentConfig:
    """Settings of a run of seconds on the embedded scenes."""
    return SegmentConfig(
        run_dir=str(run),
        model=SegmentModelConfig(kind="features", init_from=str(denoiser), channels=[8, 8], blocks=1),
        data=MaskDataConfig(train_limit=24),
        train=TrainConfig(**{**TRAIN, "sample_count": 2, **train}),
        ema=EmaConfig(widths=[0.1, 0.05]),
        evaluation=EvaluationConfig(boundary_tolerance=None),
        features=features,
    )


@pytest.fixture(scope="module")
def straight(denoiser: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("features") / "run"
    fit_segmentation(settings(run, denoiser))
    return run


def frozen_weights(run: Path, name: str = RAW_WEIGHTS) -> dict[str, torch.Tensor]:
    """Those of the denoiser within the newest checkpoint."""
    weights = load_file(checkpoints(run)[-1] / name)
    prefix = "features.denoiser."
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def test_the_denoiser_ends_as_it_began(straight: Path, denoiser: Path) -> None:
    """Bit for bit, in the weights and in their average; the optimizer and further averages do not hold it."""
    theirs = load_run(denoiser).unet.state_dict()
    for name in (RAW_WEIGHTS, "unet/diffusion_pytorch_model.safetensors"):
        assert_close(frozen_weights(straight, name), dict(theirs), rtol=0, atol=0)
    assert all(
        key.startswith("ensemble.") for key in load_file(checkpoints(straight)[-1] / "training/ema_1.safetensors")
    )
    held = left_behind(straight)
    learned = [key for key in held if key.startswith("raw.ensemble")]
    assert sum(key.endswith("exp_avg") for key in held) == len(learned)
    assert load_run(straight).beside.settings["kind"] == "features"


def test_resumed_equals_uninterrupted_without_the_denoiser(straight: Path, denoiser: Path, tmp_path: Path) -> None:
    fit_segmentation(settings(tmp_path / "run", denoiser, steps=2))
    denoiser.rename(denoiser.with_name("elsewhere"))
    try:
        fit_segmentation(settings(tmp_path / "run", denoiser))
    finally:
        denoiser.with_name("elsewhere").rename(denoiser)
    assert_close(left_behind(tmp_path / "run"), left_behind(straight), rtol=0, atol=0)


def test_two_processes_reach_the_weights_of_one(straight: Path, denoiser: Path, tmp_path: Path) -> None:
    words = ["--run_dir", str(tmp_path / "two"), "--model.kind", "features", "--model.init_from", str(denoiser)]
    words += ["--data.train_limit", "24", "--ema.widths", "[0.1,0.05]", "--features.timesteps", "[20,200]"]
    words += ["--features.members", "3", "--features.hidden", "[8,6]", "--features.positions", "16"]
    words += ["--evaluation.boundary_tolerance", "null"]
    for name, value in {**TRAIN, "sample_count": 2, "processes": 2}.items():
        words += [f"--train.{name}", str(value)]
    done = command("train/segment.py", *words, processes=2)
    assert done.returncode == 0, done.stderr
    assert relative_difference(left_behind(straight), left_behind(tmp_path / "two")) < 1e-5


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_signals_images_and_volumes(dims: Any, tmp_path: Path) -> None:
    """One step on arrays with ignored positions, in sizes that the strides do not divide."""
    rng, space = np.random.default_rng(0), SPACES[dims]
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(4):
        labels = (rng.random(space) > 0.5).astype(np.uint8)
        image = (labels + rng.normal(0, 0.2, space)).astype(np.float32).clip(-1, 2)[..., None]
        labels[:2] = 9
        np.save(tmp_path / "data" / "images" / f"{number}.npy", image)
        np.save(tmp_path / "data" / "masks" / f"{number}.npy", labels)
    plain = {"source": "npy", "path": str(tmp_path / "data" / "images"), "dims": dims, "validation_fraction": 0.0}
    fit(tmp_path / "denoiser", data=plain, steps=1, batch_size=2, sample_count=1)
    data = MaskDataConfig(source="folder", path=str(tmp_path / "data"), dims=dims, values=[0, 1], ignore=[9],
                          split="names", train=["[0-2].npy"], validation=["3.npy"])  # fmt: skip
    config = replace(settings(tmp_path / "run", tmp_path / "denoiser", steps=1, batch_size=2), data=data)
    fit_segmentation(config)
    run, whole = load_run(tmp_path / "run"), np.load(tmp_path / "data" / "images" / "3.npy")
    found = segment(run, whole)
    assert found.labels.shape == space
    assert np.isfinite(found.probabilities).all()
    with torch.no_grad():
        members = [one.exp() for one in run.unet.answers(run.format.encode(whole[None]))]
    assert_close(torch.from_numpy(found.maps["mutual_information"]), decompose(members).mutual_information[0])


def test_members_learn_from_their_own_positions_and_images(denoiser: Path, tmp_path: Path) -> None:
    """Draws are a function of seed and position; they differ from member to member; ignored positions are not drawn."""
    task: Any = segment_workload(settings(tmp_path / "run", denoiser), 8).task
    mask = torch.zeros(4, 8, 8, dtype=torch.int64)
    mask[:, :, 3:] = IGNORE
    mask[3] = IGNORE
    batch = {"sample": torch.zeros(4, 1, 8, 8), "mask": mask, "position": torch.tensor([22, 23, 24, 25])}
    prepared = task.prepare(batch)
    places = prepared["places"]
    assert places.shape == (4, 3, 16)
    drawn = mask.flatten(1).gather(1, places.flatten(1))
    assert (drawn[:3] == 0).all()
    assert len({tuple(row.tolist()) for row in places.flatten(0, 1)}) == 12
    part = task.prepare({name: value[1:2] for name, value in batch.items()})
    assert_close(part["places"], places[1:2])
    assert_close(part["counts"], prepared["counts"][1:2])
    counts = task._counts()
    assert (counts.sum(1) == 24).all()
    assert len({tuple(row) for row in counts}) == 3
    assert 0.4 < (counts > 0).mean() < 0.85  # 1 - 1/e of the images on average
    once = replace(task, features=replace(SMALL, bootstrap=False))
    assert (once.prepare(batch)["counts"] == 1).all()


def test_the_loss_counts_nothing_but_drawn_labels(denoiser: Path, tmp_path: Path) -> None:
    """Labels elsewhere change nothing, a count of 0 leaves an image out, and a position's own label counts."""
    work = segment_workload(settings(tmp_path / "run", denoiser), 8)
    task: Any = work.task
    network = work.build(work.spec)
    batch = next(work.loader(batch_size=8, seed=0, prepare=task.prepare))
    value = task.loss(network, batch)
    seen = torch.zeros_like(batch["mask"].flatten(1), dtype=torch.bool)
    seen.scatter_(1, batch["places"].flatten(1), True)
    seen = seen.reshape(batch["mask"].shape)
    other = batch["mask"].where(seen, (batch["mask"] + 1) % 11)
    assert_close(task.loss(network, {**batch, "mask": other}), value)
    changed = batch["mask"].where(~seen, (batch["mask"] + 1) % 11)
    assert not torch.isclose(task.loss(network, {**batch, "mask": changed}), value)
    none = {**batch, "counts": torch.zeros_like(batch["counts"])}
    assert task.loss(network, none).item() == 0


class Largest(TorchDispatchMode):
    """The most numbers that a tensor had that came into being."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(one, torch.Tensor):
                self.most = max(self.most, one.numel())
        return found


def test_no_tensor_holds_all_features_of_an_image(denoiser: Path, tmp_path: Path) -> None:
    """Neither a training step nor the answer makes every feature at every position."""
    many = replace(SMALL, timesteps=list(range(0, 1000, 50)))
    work = segment_workload(settings(tmp_path / "run", denoiser, many), 8)
    network, task = work.build(work.spec), work.task
    batch = next(work.loader(batch_size=2, seed=0, prepare=task.prepare))
    full = 32 * 32 * len(network.mean)
    with Largest() as training:
        task.loss(network, batch).backward()
    assert training.most < 2 * full * 0.6  # the maps of one level, at their own size
    with Largest() as answering, torch.no_grad():
        network(batch["sample"][:1])
    assert answering.most < 0.6 * full


def test_features_are_computed_once_for_all_members(straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass per timestep and mirror image, and as many members as there are networks."""
    run, calls = load_run(straight), []
    forward = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, *given, **more: calls.append(1) or forward(self, *given, **more))
    image = scenes("test")[0][0]
    plain = segment(run, image)
    assert len(calls) == 2
    flipped = segment(run, image, Inference(flips=(0, 1)))
    assert len(calls) == 2 + 2 * 4
    assert plain.maps["mutual_information"].max() > 0
    assert not np.array_equal(plain.probabilities, flipped.probabilities)
    np.testing.assert_allclose(plain.probabilities.sum(0), 1, atol=1e-5)
    with pytest.raises(ValueError, match="trained without dropout"):
        segment(run, image, passes=2)


def test_the_control_has_random_weights_of_the_seed(denoiser: Path, tmp_path: Path) -> None:
    """Of the denoiser's architecture, without what starts at zero, and not the denoiser's."""

    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        config = settings(tmp_path / name, denoiser, replace(SMALL, random=True), steps=1)
        made = fit_segmentation(replace(config, seed=seed))
        return {key: value.clone() for key, value in made.unet.features.denoiser.state_dict().items()}  # pyright: ignore

    theirs = load_run(denoiser).unet.state_dict()
    first, again, other = weights("first", 0), weights("again", 0), weights("other", 1)
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in theirs.items()}
    assert_close(first, again, rtol=0, atol=0)
    kernels = [name for name in first if first[name].ndim > 1 and "project" not in name]  # what scales by 1 + 0
    assert all(not torch.equal(other[name], theirs[name]) for name in kernels)
    assert all(not torch.equal(first[name], other[name]) for name in kernels)
    assert all(first[name].abs().sum() > 0 for name in kernels)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.init_from", "none"], "there is no folder none"),
        ([], "expected model.init_from, its run folder"),
        (["--features.blocks", "[decoder.nothing]"], "has no step 'decoder.nothing'"),
        (["--features.timesteps", "[20,1000]"], "has timesteps 0 to 999; expected none of 1000"),
        (["--features.timesteps", "[20,20]"], "expected timesteps of at least 0, each once"),
        (
            ["--model.kind", "logits", "--features.members", "3"],
            "features.members is of kind features; model.kind is logits",
        ),
        (["--model.timestep", "20"], "see features.timesteps"),
        (["--model.channels", "[8,9]"], "model.channels is [8, 9], but model.init_from has [8, 8]: leave it out"),
    ],
)
def test_wrong_settings_are_named(words: list[str], said: str, denoiser: Path, capsys: Any) -> None:
    begin = [] if not words or words[0] == "--model.init_from" else ["--model.init_from", str(denoiser)]

    def start() -> None:
        work = segment_workload(parse_segment(["--run_dir", "no", "--model.kind", "features", *begin, *words]), 8)
        work.build(work.spec)

    with pytest.raises((ValueError, SystemExit)) as caught:
        start()
    assert said in f"{caught.value} {capsys.readouterr().err}"


def test_a_task_keeps_nothing_between_batches(denoiser: Path, tmp_path: Path) -> None:
    """Its fields are those it began with: features of images are not collected."""
    work = segment_workload(settings(tmp_path / "run", denoiser), 8)
    task, network = work.task, work.build(work.spec)
    assert isinstance(task, FeaturesTask)
    before = dict(vars(task))
    batch = next(work.loader(batch_size=2, seed=0, prepare=task.prepare))
    buffers = {name: value.numel() for name, value in network.state_dict().items()}
    task.loss(network, batch)
    assert vars(task) == before
    assert {name: value.numel() for name, value in network.state_dict().items()} == buffers
