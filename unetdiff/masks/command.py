"""The work of `sample/masks.py`: every image in turn, read, segmented, measured and written, by all processes."""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import PartialState

from unetdiff.data.windows import Windowed
from unetdiff.drawing import ADVICE, Drawing, check_drawing, draws
from unetdiff.masks.inputs import (
    TILES,
    ImageFile,
    TruthMask,
    check_output,
    check_truth,
    class_of,
    find_images,
    header_size,
    is_large,
    open_truth,
)
from unetdiff.masks.judging import Scores
from unetdiff.masks.objects import ObjectOptions, write_objects
from unetdiff.masks.outputs import check_names, write_rows, write_segmentation
from unetdiff.masks.settings import evaluation_of, flips_of
from unetdiff.progress import progress
from unetdiff.runs import Run, load_run
from unetdiff.segmentation.metrics import MetricOptions
from unetdiff.segmentation.predict import Inference
from unetdiff.segmenting import DRAWN_MAPS, Segmentation, check_members, segment, segment_rows
from unetdiff.training.processes import Agreement, device_of, first_alone, together

SEVERAL_TRUTHS = "several --truth, which need an image whole"


@dataclass(frozen=True)
class Job:
    """What a command line asks for, checked before the first image.

    Attributes:
        runs: the members, on the device of this process.
        files: the images, of all processes.
        out: where results go. truths: the folders of true masks, one by annotator.
        inference: how images are predicted that are held whole. in_parts: how those are that are not.
        passes: with dropout on. drawing: how masks are drawn; its seed is that of dropout too.
        objects: how objects are told apart; None: they are not.
        metrics: what is measured, with truth.
    """

    runs: Sequence[Run]
    files: Sequence[ImageFile]
    out: Path
    truths: Sequence[Path]
    inference: Inference
    in_parts: Inference
    passes: int
    drawing: Drawing
    objects: ObjectOptions | None
    metrics: MetricOptions


def segment_files(options: argparse.Namespace, state: PartialState) -> list[str]:
    """Segment the images that a command line names, shared out over the processes that were launched.

    Processes keep in step, an image each at a time: a failure ends all of them, and none waits for more than an image.

    Returns:
        what is said at the end, line by line; the same in every process.

    Raises:
        ValueError: something that was given does not fit, in one sentence that names it.
    """
    job = together(lambda: _prepare(options, str(device_of(state))))
    scores = Scores(job.metrics, len(job.truths), draws(job.runs[0])) if job.truths else None
    said: list[str] = []
    note = [f"Note: {ADVICE}"] if draws(job.runs[0]) else []
    count, first = state.num_processes, state.is_main_process
    with progress(desc="segmenting", unit="image", total=len(job.files), disable=not first) as bar:
        for start in range(0, len(job.files), count):
            mine = job.files[start : start + count][state.process_index : state.process_index + 1]
            lines = together(lambda mine=mine: [line for file in mine for line in _segment_file(job, file, scores)])
            said += [line for part in Agreement().collect(lines) for line in part]
            bar.update(min(count, len(job.files) - start))
    if scores is not None:
        merged = Scores.merged(Agreement().collect(scores))
        said.append(first_alone(lambda: merged.write(job.out, len(job.runs), note)))
    said += note
    return [*said, f"{len(job.files)} masks in {job.out}"]


def _prepare(options: argparse.Namespace, device: str) -> Job:
    """Load the networks, find the images, and look at whatever may be wrong before the first is segmented."""
    images = Path(options.images)
    truths = _truths(options)
    check_output(options.out, images, truths)
    runs = [load_run(path, weights=options.weights, device=device) for path in options.runs]
    drawing = _drawing(options, runs)
    check_members(runs, options.passes or 1)
    lead = runs[0]
    files = find_images(images, lead.format)
    check_names([file.name for file in files])
    objects, metrics = _object_options(options, lead), _metric_options(options, lead)
    whole, in_parts = _inference(options, runs)
    for file in files:
        _check_file(file, truths, objects, lead)
    options.out.mkdir(parents=True, exist_ok=True)
    passes = options.passes or 1
    return Job(runs, files, options.out, truths, whole, in_parts, passes, drawing, objects, metrics)


def _truths(options: argparse.Namespace) -> list[Path]:
    """The folders of true masks, one by annotator; `ValueError` for one that is named twice."""
    truths: list[Path] = options.truth or []
    for place, folder in enumerate(truths):
        if folder.resolve() in {other.resolve() for other in truths[:place]}:
            raise ValueError(f"--truth names {folder} twice; expected a folder for each annotator")
    return truths


def _drawing(options: argparse.Namespace, runs: Sequence[Run]) -> Drawing:
    """How masks are drawn; `ValueError` for an option that none of the runs reads."""
    drawing = Drawing(options.masks, options.steps, options.sampler, options.seed or 0)
    check_drawing(runs, drawing, options.passes or 1)
    drawn = draws(runs[0])
    if drawn:
        for name in ("tile", "overlap", "tta", "passes"):
            if getattr(options, name) not in (None, 0):
                raise ValueError(f"{runs[0].folder} draws masks, of whole images: expected no --{name}")
    elif options.seed is not None and options.passes is None:
        raise ValueError("nothing reads --seed without --passes: expected both or neither")
    return drawing


def _check_file(file: ImageFile, truths: Sequence[Path], objects: ObjectOptions | None, run: Run) -> None:
    """What would end the work at this image, as far as headers say."""
    size = header_size(file.path, file.dims)
    if size is not None and is_large((*size, run.format.channels)):
        if objects is not None:
            raise _too_large(file, "--instances, which need an image whole")
        if draws(run):
            raise _too_large(file, f"{run.folder}, which draws masks of whole images")
        if len(truths) > 1:
            raise _too_large(file, SEVERAL_TRUTHS)
    for truth in truths:
        check_truth(truth, file, run.masks)


def _too_large(file: ImageFile, reader: str) -> ValueError:
    return ValueError(f"{file.path} is too large for {reader}: cut it into parts")


def _inference(options: argparse.Namespace, runs: Sequence[Run]) -> tuple[Inference, Inference]:
    """How images are predicted that are held whole, and the others: as in validation, unless the command line says."""
    trained = evaluation_of(runs[0].folder)
    tile = trained.tile if options.tile is None else options.tile
    overlap = trained.overlap if options.overlap is None else options.overlap
    how = Inference(tile or None, overlap, options.blend, _flips(options.tta, runs))
    return how, replace(how, tile=TILES[runs[0].format.dims]) if tile is None else how


def _flips(axes: tuple[int, ...] | None, runs: Sequence[Run]) -> tuple[int, ...]:
    """The axes of --tta: None for none, and for no axes those that all the runs were trained with."""
    if axes is None:
        return ()
    dims = runs[0].format.dims
    for axis in axes:
        if axis >= dims:
            raise ValueError(f"--tta names axis {axis}; expected axes from 0 to {dims - 1} of {dims}-D images")
    if axes:
        return axes
    known = set.intersection(*(set(flips_of(run.folder)) for run in runs))
    if not known:
        told = ",".join(map(str, range(dims)))
        whose = " and ".join(str(run.folder) for run in runs)
        raise ValueError(
            f"--tta takes the axes of data.augment.flips in the settings of {whose}, where there are none: name them, "
            f"such as --tta {told}, if mirrored images are images as likely"
        )
    return tuple(sorted(known))


def _segment_file(job: Job, file: ImageFile, scores: Scores | None) -> list[str]:
    """An image from its file to its results; what is said of it."""
    image = file.open()
    truths = [open_truth(folder, file.name, job.runs[0].masks, image.shape[:-1]) for folder in job.truths]
    if not is_large(image.shape):
        return _segment_whole(job, file, np.asarray(image), truths, scores)
    _segment_large(job, file, image, truths, scores)
    return []


def _segment_whole(
    job: Job, file: ImageFile, image: np.ndarray, truths: Sequence[TruthMask], scores: Scores | None
) -> list[str]:
    """An image whose results are held; what is said of it."""
    found = segment(job.runs, image, job.inference, passes=job.passes, name=str(file.path), **vars(job.drawing))
    labels = {str(folder): truth.whole() for folder, truth in zip(job.truths, truths, strict=True)}
    shown = next(iter(labels.values()), None)
    write_segmentation(job.out, file.name, image, found, job.runs[0], shown, file.affine)
    if scores is not None:
        scores.add(file.name, found, labels, file.spacing)
    said = _uncertainty(file, found)
    if job.objects is None:
        return said
    count = write_objects(job.out, file.name, image, found, job.runs[0], job.objects, file.affine)
    return [*said, f"{file.name}: {count} objects"]


def _uncertainty(file: ImageFile, found: Segmentation) -> list[str]:
    """What is said of masks that were drawn."""
    if found.masks is None:
        return []
    entropy, apart = (float(found.maps[name].mean()) for name in DRAWN_MAPS)
    return [f"{file.name}: {len(found.masks)} masks, vote entropy {entropy:.4f} nats, disagreement {apart:.4f}"]


def _segment_large(
    job: Job, file: ImageFile, image: Windowed, truths: Sequence[TruthMask], scores: Scores | None
) -> None:
    """An image whose results are written as they come."""
    if job.objects is not None:
        raise _too_large(file, "--instances, which need an image whole")
    if len(truths) > 1:  # only decoding says how large some files are
        raise _too_large(file, SEVERAL_TRUTHS)
    rows = segment_rows(job.runs, image, job.in_parts, passes=job.passes, seed=job.drawing.seed, name=str(file.path))
    if scores is not None:
        rows = scores.add_rows(file.name, rows, truths[0])
    write_rows(job.out, file.name, image, _counted(rows, file.name, image.shape[0]), job.runs[0])


def _counted(rows: Iterator[tuple[int, Segmentation]], name: str, total: int) -> Iterator[tuple[int, Segmentation]]:
    """The rows of a large image, with a progress bar of their own, and no more memory after each than before."""
    with progress(desc=name, unit="row", total=total, position=0, leave=False) as bar:
        for start, part in rows:
            yield start, part
            bar.update(len(part.labels))
            _release_memory()


def _release_memory() -> None:
    """Give freed memory back to the system: tensors of many sizes leave holes, which glibc keeps and which add up."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)


def _object_options(options: argparse.Namespace, run: Run) -> ObjectOptions | None:
    """How objects are told apart; None: they are not."""
    if options.instances is None:
        return None
    background = class_of(options.background or "0", run.masks, "--background")
    least = 1 if options.min_size is None else options.min_size
    return ObjectOptions(options.instances, options.depth, least, background)


def _metric_options(options: argparse.Namespace, run: Run) -> MetricOptions:
    """What is measured: what the run measured in training, unless the command line says otherwise."""
    trained, names = evaluation_of(run.folder), run.masks.class_names
    chosen = trained.membrane if options.membrane is None else class_of(options.membrane, run.masks, "--membrane")
    hd95 = trained.hd95 or options.hd95
    return MetricOptions(class_names=names, boundary_tolerance=trained.boundary_tolerance, hd95=hd95, membrane=chosen)
