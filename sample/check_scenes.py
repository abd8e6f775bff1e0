"""Judge segmentation runs on the embedded digit scenes: held-out test scenes, with figures and pictures.

python sample/check_scenes.py RUN [RUN ...]

Every run gets `scenes.json` and, in `scenes/`, masks, overlays and maps of uncertainty of some scenes; the first run's
folder gets `comparison.png` too, where each run's masks of the same scenes stand side by side.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unetdiff.command import CommandParser, run_command, user_errors
from unetdiff.data.scenes import SCENE_GROUPS, grouped, scene_classes, scenes
from unetdiff.files import read_json, write_json
from unetdiff.mask_figures import entropy_plane, image_plane, label_plane, panels
from unetdiff.masks.outputs import write_segmentation
from unetdiff.members import has_dropout
from unetdiff.progress import progress
from unetdiff.runs import Run, load_run
from unetdiff.segmentation.metrics import MetricOptions, SegmentationMetrics
from unetdiff.segmenting import segment
from unetdiff.training.processes import device_of, start_processes

PASSES = 20  # with dropout on, of the scenes that are shown, by networks that have it
COMPARED = 8  # scenes in the picture of all runs


def load_runs(paths: list[Path]) -> list[Run]:
    """The runs; `ValueError` where one knows no digit scenes, or other classes of them than the first."""
    device = str(device_of(start_processes(None)))
    runs = [load_run(path, device=device) for path in paths]
    for run in runs:
        if groups_of(run) != groups_of(runs[0]):
            raise ValueError(f"{run.folder} has other data.scene_classes than {runs[0].folder}; expected the same")
    return runs


def groups_of(run: Run) -> str:
    """How a run groups the digits, by `data.scene_classes`."""
    for groups in SCENE_GROUPS:
        if run.masks.class_names == scene_classes(groups):
            return groups
    raise ValueError(f"{run.folder} is no run on the embedded digit scenes")


def judge(run: Run, images: np.ndarray, masks: np.ndarray) -> dict:
    """The metrics of a run over all scenes: images uint8 (n, 32, 32, 1), masks (n, 32, 32)."""
    metrics = SegmentationMetrics(MetricOptions(class_names=run.masks.class_names))
    pairs = progress(
        desc=f"segmenting, {run.folder.name}", unit="scene", iterable=list(zip(images, masks, strict=True))
    )
    for number, (image, mask) in enumerate(pairs):
        found = segment(run, image)
        labels = torch.from_numpy(mask.astype(np.int64))
        metrics.update(torch.from_numpy(found.probabilities)[None], labels[None], names=[f"scene {number}"])
    return metrics.compute()


def write_pictures(run: Run, images: np.ndarray, masks: np.ndarray) -> None:
    """Masks, overlays and maps of uncertainty of some scenes."""
    folder = run.folder / "scenes"
    folder.mkdir(exist_ok=True)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        found = segment(run, image, passes=PASSES if has_dropout(run) else 1)
        write_segmentation(folder, f"{number:02}", image, found, run, mask.astype(np.int64))


def comparison(runs: list[Run], images: np.ndarray, masks: np.ndarray) -> Image.Image:
    """Scenes, their truth, and for each run its masks and where it is unsure."""
    colours = runs[0].masks.colours()
    rows = []
    for image, mask in zip(images, masks, strict=True):
        row = [image_plane(image, runs[0].format), label_plane(mask.astype(np.int64), colours)]
        for run in runs:
            found = segment(run, image)
            row += [label_plane(found.labels, colours), entropy_plane(found.probabilities)]
        rows.append(row)
    captions = [caption for name in short_names(runs) for caption in (name, "entropy")]
    return panels(rows, ["image", "truth", *captions])


def short_names(runs: list[Run]) -> list[str]:
    """The runs' names without the words that all of them begin with."""
    words = [run.folder.name.split("_") for run in runs]
    while all(len(left) > 1 for left in words) and len({left[0] for left in words}) == 1:
        words = [left[1:] for left in words]
    return ["_".join(left) for left in words]


def main() -> int:
    parser = CommandParser(prog="python sample/check_scenes.py", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="segmentation runs on digit scenes")
    parser.add_argument("--shown", type=int, default=6, help="scenes that get pictures (default %(default)s)")
    parser.add_argument("--digits", type=Path, metavar="RUN", help="a run that sample/check_digits.py judged: its "
                        "share is said again in the last line")  # fmt: skip
    options = parser.parse_args()
    with user_errors():
        runs = load_runs(options.runs)
        said = [] if options.digits is None else [digits_line(options.digits)]
    images, masks = scenes("test")
    masks = grouped(masks, groups_of(runs[0]))
    results = []
    for run in runs:
        figures = judge(run, images, masks)
        write_json(run.folder / "scenes.json", figures)
        write_pictures(run, images[: options.shown], masks[: options.shown])
        results.append(f"{figures['mean_iou']:.3f} {run.folder.name}")
        print(f"{run.folder.name}: mean Dice {figures['mean_dice']:.3f}, accuracy {figures['accuracy']:.3f}, "
              f"ECE {figures['ece']:.3f}; pictures in {run.folder / 'scenes'}")  # fmt: skip
    comparison(runs, images[:COMPARED], masks[:COMPARED]).save(runs[0].folder / "comparison.png")
    print(f"side by side: {runs[0].folder / 'comparison.png'}")
    print("; ".join([*said, f"test mean IoU on {len(images)} digit scenes: {', '.join(results)}"]))
    return 0


def digits_line(run: Path) -> str:
    """What `sample/check_digits.py` found."""
    figures = read_json(run / "digits.json")
    return f"digits: {figures['read_as_their_class']:.1%} of {figures['samples']} samples are read as their class"


if __name__ == "__main__":
    run_command(main)
