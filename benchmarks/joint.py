"""One run that samples and segments beside two runs with a task each, of the same total steps and batch.

python benchmarks/joint.py [--steps 300] [--config configs/scenes_joint.yaml] [--runs runs/joint]

A joint run of so many steps; a denoiser and a segmenter of half as many each, which so see as many samples of their
task. Runs that are there go on or are taken as they are. Writes a JSON file per run, a table and a picture to
benchmarks/results/joint/.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import sqrtm

from unetdiff.config import DataConfig, DenoiseConfig, DiffusionConfig, ModelConfig, SamplingConfig
from unetdiff.data.scenes import SCENE_CLASSES, scenes
from unetdiff.data.sources import open_source
from unetdiff.diffusion.sampler import sample_images
from unetdiff.figures import grid, stacked
from unetdiff.files import read_json, write_json, write_text
from unetdiff.joint_options import JointConfig
from unetdiff.mask_figures import image_plane, label_plane, panels
from unetdiff.members import members_of
from unetdiff.run_config import RunConfig
from unetdiff.runs import Run, load_run, step_of
from unetdiff.segment_config import SegmentConfig, UnlabelledConfig, parse_segment
from unetdiff.segmentation.metrics import MetricOptions, SegmentationMetrics
from unetdiff.training.denoise import denoise_workload, denoising_trainer
from unetdiff.training.loop import Trainer
from unetdiff.training.processes import make_accelerator
from unetdiff.training.segment import segmentation_trainer

RESULTS = Path(__file__).parent / "results" / "joint"
SAMPLES, SAMPLING_STEPS, SHOWN, BLOCK = 200, 20, 8, 4
TITLES = {
    "joint": "one joint run",
    "denoiser": "a denoiser alone",
    "segmenter": "a segmenter alone",
    "test scenes": "test scenes for samples",
}


def denoiser_of(config: SegmentConfig, folder: Path, steps: int) -> DenoiseConfig:
    """The denoising task of a joint run alone: the same network, noise, unlabelled images and batch."""
    network = {entry.name: getattr(config.model, entry.name) for entry in fields(ModelConfig)
               if hasattr(config.model, entry.name)}  # fmt: skip
    data = {entry.name: getattr(config.unlabelled, entry.name) for entry in fields(DataConfig)}
    return DenoiseConfig(
        run_dir=str(folder / "denoiser"),
        seed=config.seed,
        model=ModelConfig(**network),
        diffusion=config.diffusion,
        data=DataConfig(**data),
        sampling=config.sampling,
        train=replace(config.train, steps=steps),
        ema=config.ema,
    )


def segmenter_of(config: SegmentConfig, folder: Path, steps: int) -> SegmentConfig:
    """The segmentation task of a joint run alone: the same network without timestep, the same masks and batch."""
    alone = replace(config.model, kind="logits", timestep=None, time_embedding="none")
    return replace(
        config,
        run_dir=str(folder / "segmenter"),
        model=alone,
        joint=JointConfig(),
        unlabelled=UnlabelledConfig(),
        diffusion=DiffusionConfig(),
        sampling=SamplingConfig(),
        train=replace(config.train, steps=steps),
    )


def cpu_seconds(result: Path, config: RunConfig, make: Callable[[Any], Trainer]) -> float:
    """Train a run to its end; the processor seconds of that, those of its result where it had ended before."""
    if step_of(config.folder) == config.train.steps and result.is_file():
        return read_json(result)["cpu_seconds"]
    start = time.process_time()
    make(config).fit()
    return time.process_time() - start


def denoising_loss(run: Run, config: DenoiseConfig) -> dict[str, Any]:
    """The error of v on the test scenes, in all and by noise level, at the same noise for every run."""
    task: Any = denoise_workload(config, config.train.batch_size).task
    test = open_source(config.data, "test")
    held = replace(task, validation=test, validation_size=len(test))
    with torch.no_grad():
        found = held.validate(run.unet, make_accelerator("float32", "none", str(config.folder)))
    assert found is not None
    return {"denoising_loss": found["loss"], "bins": found["bins"]}


def features(images: np.ndarray) -> np.ndarray:
    """Images uint8 (n, 32, 32, 1) as the mean of every square of 4x4 pixels: (n, 64) in [0, 1]."""
    count, side = len(images), images.shape[1] // BLOCK
    return images.reshape(count, side, BLOCK, side, BLOCK).mean((2, 4)).reshape(count, -1) / 255


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Between the normal distributions with the means and covariances of features (n, d): Dowson & Landau 1982."""
    (mean, covariance), (other, spread) = ((part.mean(0), np.cov(part.T)) for part in (first, second))
    root = np.real(sqrtm(covariance @ spread))
    return float(((mean - other) ** 2).sum() + np.trace(covariance + spread - 2 * root))


def samples_of(run: Run) -> np.ndarray:
    """Samples uint8 (n, 32, 32, 1)."""
    return run.format.decode(sample_images(run.unet, run.scheduler, SAMPLES, steps=SAMPLING_STEPS))


def masks_of(run: Run, images: np.ndarray) -> torch.Tensor:
    """Class probabilities (n, K, 32, 32) of images uint8 (n, 32, 32, 1)."""
    predict = members_of(run, (), 1, 0)[0]
    with torch.no_grad():
        return torch.cat([predict(run.format.encode(part)) for part in np.array_split(images, 8)])


def mask_figures(probabilities: torch.Tensor, masks: np.ndarray) -> dict[str, Any]:
    """Of all scenes together."""
    metrics = SegmentationMetrics(MetricOptions(class_names=SCENE_CLASSES))
    metrics.update(probabilities, torch.from_numpy(masks.astype(np.int64)), names=[str(i) for i in range(len(masks))])
    found = metrics.compute()
    return {name: found[name] for name in ("mean_iou", "mean_dice", "accuracy", "ece")}


def measure(config: SegmentConfig, folder: Path) -> dict[str, dict[str, Any]]:
    """Train what is missing, and the figures of each run; pictures of their samples and masks beside the data."""
    half = config.train.steps // 2
    denoiser, segmenter = denoiser_of(config, folder, half), segmenter_of(config, folder, half)
    arms: dict[str, tuple[RunConfig, Any]] = {
        "joint": (config, segmentation_trainer),
        "denoiser": (denoiser, denoising_trainer),
        "segmenter": (segmenter, segmentation_trainer),
    }
    (images, masks), training = scenes("test"), features(scenes("train")[0])
    floor = frechet_distance(features(images[:SAMPLES]), training)
    results: dict[str, dict[str, Any]] = {"test scenes": {"frechet_distance": floor}}
    shown, found = [images[:SHOWN]], {}
    for name, (settings, make) in arms.items():
        spent = cpu_seconds(RESULTS / f"{name}.json", settings, make)
        run = load_run(settings.folder)
        figures: dict[str, Any] = {"steps": settings.train.steps, "batch_size": settings.train.batch_size,
                                   "cpu_seconds": round(spent, 1)}  # fmt: skip
        if run.beside.scheduler is not None:
            samples = samples_of(run)
            shown.append(samples[:SHOWN])
            figures |= denoising_loss(run, denoiser)
            figures["frechet_distance"] = frechet_distance(features(samples), training)
        if run.beside.masks is not None:
            found[name] = masks_of(run, images)
            figures |= mask_figures(found[name], masks)
        results[name] = figures
    save_picture(load_run(config.folder), np.concatenate(shown), images, masks, found)
    return results


def save_picture(run: Run, samples: np.ndarray, images: np.ndarray, masks: np.ndarray, found: dict[str, Any]) -> None:
    """Rows of samples, and under them scenes with their masks."""
    names = [name for name in ("test scenes", "joint", "denoiser") for _ in range(SHOWN)]
    colours = run.masks.colours()
    rows = [
        [image_plane(images[i], run.format), label_plane(masks[i].astype(np.int64), colours),
         *(label_plane(held[i].argmax(0).numpy(), colours) for held in found.values())]
        for i in range(SHOWN)
    ]  # fmt: skip
    whole = stacked([grid(samples, run.format, columns=SHOWN, labels=names), panels(rows, ["image", "truth", *found])])
    assert whole is not None
    whole.save(RESULTS / "joint.png")


COLUMNS = (
    *(("steps", "steps"), ("cpu_seconds", "CPU seconds"), ("denoising_loss", "error of v"), ("low", "t < 100")),
    *(("high", "t >= 900"), ("frechet_distance", "Fréchet distance"), ("mean_iou", "mean IoU"), ("ece", "ECE")),
)


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row per run."""
    lines = ["| | " + " | ".join(title for _, title in COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for name, title in TITLES.items():
        figures = results[name]
        bins = figures.get("bins") or [{"loss": None}]
        held = {**figures, "low": bins[0]["loss"], "high": bins[-1]["loss"]}
        cells = [_cell(held.get(key)) for key, _ in COLUMNS]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


HEADING = """\
# One run that samples and segments, beside two

`python benchmarks/joint.py --steps {steps} --config {config}`, torch {torch}, {threads} thread(s) of a CPU, one seed.
The joint run has {steps} steps of {batch} samples, {share:.0%} of them unlabelled; the others have half as many steps
of as many samples. **Error of v**: mean squared, on 200 test scenes, at the same noise for all. **Fréchet distance**:
of 200 samples ({sampling} steps of DPM-Solver++) from the 2,000 training scenes, between normal distributions of the
means of every 4x4 pixels; that of the test scenes is what sampling cannot be below. **Mean IoU** and **ECE**: of 11
classes, on the test scenes.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="of the joint run (default: as its config says)")
    parser.add_argument("--config", default="configs/scenes_joint.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs/joint"), help="where the runs are kept")
    options = parser.parse_args()
    config = parse_segment([options.config, "--run_dir", str(options.runs / "joint")])
    if options.steps is not None:
        config = replace(config, train=replace(config.train, steps=options.steps))
    RESULTS.mkdir(parents=True, exist_ok=True)
    results = measure(config, options.runs)
    for name, figures in results.items():
        write_json(RESULTS / f"{name.replace(' ', '_')}.json", figures)
    heading = HEADING.format(
        steps=config.train.steps, config=options.config, torch=torch.__version__, threads=torch.get_num_threads(),
        batch=config.train.batch_size, share=config.joint.unlabelled, sampling=SAMPLING_STEPS,
    )  # fmt: skip
    write_text(RESULTS / "joint.md", f"{heading}\n{table(results)}\n\n![Samples and masks](joint.png)\n")
    print(table(results))


if __name__ == "__main__":
    main()
