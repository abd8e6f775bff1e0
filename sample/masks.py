"""Predict masks: python sample/masks.py RUN [RUN ...] IMAGES --out DIR

IMAGES is an image, a volume, an array, or a folder of them. Several runs are read as an ensemble. For every image: its
mask in the form of the training masks, an overlay, probabilities and uncertainty as .npz, and maps of uncertainty.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from unetdiff.command import CommandParser, run_command, user_errors


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line, checked as far as that goes without the network."""
    parser = CommandParser(prog="python sample/masks.py", description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders of segmentation networks, then IMAGES")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to write")
    parser.add_argument("--tile", type=int, help="side of the tiles in which larger images are predicted (default: "
                        "images are predicted whole)")  # fmt: skip
    parser.add_argument("--overlap", type=float, default=0.25, help="share of a tile that the next one covers too")
    parser.add_argument("--blend", choices=("gaussian", "mirror"), default="gaussian", help="default %(default)s")
    parser.add_argument("--tta", action="store_true", help="average over all mirrorings, undone")
    parser.add_argument(
        "--passes", type=int, default=1, help="passes with dropout on, for uncertainty (default 1: off)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the dropout")
    parser.add_argument(
        "--truth", type=Path, metavar="DIR", help="true masks by the images' names: writes metrics.json"
    )
    parser.add_argument("--weights", default="ema", help="ema, ema:1 (a further average) or raw (default %(default)s)")
    options = parser.parse_args(given)
    if len(options.runs) < 2:
        parser.error("expected RUN and IMAGES")
    *options.runs, options.images = options.runs
    return options


def main() -> int:
    options = arguments(sys.argv[1:])  # before torch is imported

    from unetdiff.mask_outputs import LARGE, find_images, read_truth, write_rows, write_segmentation
    from unetdiff.progress import progress
    from unetdiff.runs import load_run
    from unetdiff.segmentation.metrics import MetricOptions, SegmentationMetrics
    from unetdiff.segmentation.predict import Inference
    from unetdiff.segmenting import segment, segment_rows

    with user_errors():
        if options.out.exists() and not options.out.is_dir():
            raise ValueError(f"--out {options.out} is a file; expected a folder")
        if not 0 <= options.overlap < 1 or options.passes < 1:
            raise ValueError("expected --overlap of 0 to below 1, and --passes of at least 1")
        runs = [load_run(path, weights=options.weights) for path in options.runs]
        encoding, format = runs[0].masks, runs[0].format
        images = find_images(Path(options.images), format)
        options.out.mkdir(parents=True, exist_ok=True)
        inference = Inference(options.tile, options.overlap, options.blend, options.tta)
        metrics = SegmentationMetrics(MetricOptions(class_names=encoding.class_names))
        for name, read in progress(desc="segmenting", unit="image", iterable=list(images.items())):
            image = read()
            if image[..., 0].size >= LARGE:
                if options.truth is not None:
                    raise ValueError(f"{name} is too large for --truth, which holds images whole")
                rows = segment_rows(runs, image, inference, passes=options.passes, seed=options.seed)
                write_rows(options.out, name, image, rows, runs[0])
                continue
            found = segment(runs, image, inference, passes=options.passes, seed=options.seed)
            truth = None if options.truth is None else read_truth(options.truth, name, encoding, found.labels.shape)
            write_segmentation(options.out, name, image, found, runs[0], truth)
            if truth is not None:
                import torch

                metrics.update(torch.from_numpy(found.probabilities)[None], torch.from_numpy(truth)[None], names=[name])
    if options.truth is not None:
        computed = metrics.compute()
        (options.out / "metrics.json").write_text(json.dumps(computed, indent=1))
        print(f"mean IoU {computed['mean_iou']:.4f}, mean Dice {computed['mean_dice']:.4f} over {len(images)} images")
    print(f"{len(images)} masks in {options.out}")
    return 0


if __name__ == "__main__":
    run_command(main)
