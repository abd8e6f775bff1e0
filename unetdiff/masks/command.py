"""The work of `sample/masks.py`: every image in turn, read, segmented, measured and written."""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unetdiff.data.windows import Windowed
from unetdiff.files import write_json, write_text
from unetdiff.masks.inputs import (
    TILES,
    ImageFile,
    TruthMask,
    check_output,
    class_of,
    find_images,
    is_large,
    open_truth,
)
from unetdiff.masks.objects import ObjectOptions, write_objects
from unetdiff.masks.outputs import check_names, write_rows, write_segmentation
from unetdiff.masks.scores import TruthScores, evaluation_of, score_list, score_page, shown
from unetdiff.progress import progress
from unetdiff.runs import Run, load_run
from unetdiff.segmentation.metrics import MetricOptions
from unetdiff.segmentation.predict import Inference
from unetdiff.segmentation.uncertainty import Uncertainty
from unetdiff.segmenting import segment, segment_rows


def segment_files(options: argparse.Namespace) -> list[str]:
    """Segment the images that a command line names; what is said at the end, line by line.

    Raises:
        ValueError: something that was given does not fit, in one sentence that names it.
    """
    images = Path(options.images)
    check_output(options.out, images, options.truth)
    runs = [load_run(path, weights=options.weights) for path in options.runs]
    objects = _object_options(options, runs[0])
    scores = None if options.truth is None else TruthScores(_metric_options(options, runs[0]))
    files = find_images(images, runs[0].format)
    check_names([file.name for file in files])
    options.out.mkdir(parents=True, exist_ok=True)
    said = []
    for file in progress(desc="segmenting", unit="image", iterable=files):
        image = file.open()
        truth = _truth(options.truth, file, runs[0], image)
        if is_large(image):
            _segment_large(options, runs, file, image, truth, scores)
        else:
            said += _segment_whole(options, runs, file, np.asarray(image), truth, scores, objects)
    if scores is not None:
        said += _write_scores(options.out, scores)
    return [*said, f"{len(files)} masks in {options.out}"]


def _truth(folder: Path | None, file: ImageFile, run: Run, image: Windowed) -> TruthMask | None:
    return None if folder is None else open_truth(folder, file.name, run.masks, image.shape[:-1])


def _inference(options: argparse.Namespace) -> Inference:
    return Inference(options.tile, options.overlap, options.blend, options.tta)


def _segment_whole(
    options: argparse.Namespace,
    runs: Sequence[Run],
    file: ImageFile,
    image: np.ndarray,
    truth: TruthMask | None,
    scores: TruthScores | None,
    objects: ObjectOptions | None,
) -> list[str]:
    """An image whose results are held; what is said of it."""
    how = _inference(options)
    found = segment(runs, image, how, passes=options.passes, seed=options.seed, name=str(file.path))
    labels = None if truth is None else truth.whole()
    write_segmentation(options.out, file.name, image, found, runs[0], labels, file.affine)
    if scores is not None and truth is not None:
        scores.add(file.name, found, truth)
    if objects is None:
        return []
    count = write_objects(options.out, file.name, image, found, runs[0], objects, file.affine)
    return [f"{file.name}: {count} objects"]


def _segment_large(
    options: argparse.Namespace,
    runs: Sequence[Run],
    file: ImageFile,
    image: Windowed,
    truth: TruthMask | None,
    scores: TruthScores | None,
) -> None:
    """An image whose results are written as they come."""
    if options.instances is not None:
        raise ValueError(f"{file.path} is too large for --instances, which need an image whole: cut it into parts")
    how = _inference(options)
    how = replace(how, tile=TILES[file.dims]) if how.tile is None else how
    rows = segment_rows(runs, image, how, passes=options.passes, seed=options.seed, name=str(file.path))
    if scores is not None and truth is not None:
        rows = scores.add_rows(file.name, rows, truth)
    write_rows(options.out, file.name, image, _counted(rows, file.name, image.shape[0]), runs[0])


def _counted(rows: Iterator[tuple[int, Uncertainty]], name: str, total: int) -> Iterator[tuple[int, Uncertainty]]:
    """The rows of a large image, with a progress bar of their own, and no more memory after each than before."""
    with progress(desc=name, unit="row", total=total, position=0, leave=False) as bar:
        for start, part in rows:
            yield start, part
            bar.update(part.probabilities.shape[2])
            _release_memory()


def _release_memory() -> None:
    """Give freed memory back to the system: tensors of many sizes leave holes, which glibc keeps and which add up."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)


def _object_options(options: argparse.Namespace, run: Run) -> ObjectOptions | None:
    """How objects are told apart; None: they are not."""
    if options.instances is None:
        if options.depth is not None or options.min_size != 1:
            raise ValueError("--depth and --min_size are of objects: expected --instances beside them")
        return None
    background = class_of(options.background, run.masks, "--background")
    return ObjectOptions(options.instances, options.depth, options.min_size, background)


def _metric_options(options: argparse.Namespace, run: Run) -> MetricOptions:
    """What is measured: what the run measured in training, unless the command line says otherwise."""
    trained, names = evaluation_of(run.folder), run.masks.class_names
    chosen = trained.membrane if options.membrane is None else class_of(options.membrane, run.masks, "--membrane")
    hd95 = trained.hd95 or options.hd95
    return MetricOptions(class_names=names, boundary_tolerance=trained.boundary_tolerance, hd95=hd95, membrane=chosen)


def _write_scores(out: Path, scores: TruthScores) -> list[str]:
    """Write the figures as metrics.json, metrics.csv and metrics.md; what is said of them."""
    computed = scores.compute()
    write_json(out / "metrics.json", computed)
    write_text(out / "metrics.csv", score_list(computed))
    write_text(out / "metrics.md", score_page(computed))
    rand = f", V-Rand {shown(computed['v_rand'])}" if "v_rand" in computed else ""
    means = f"mean IoU {shown(computed['mean_iou'])}, mean Dice {shown(computed['mean_dice'])}{rand}"
    return [f"{means} over {computed['images']} images; {out / 'metrics.md'} has the rest"]
