"""Predict masks: python sample/masks.py RUN [RUN ...] IMAGES --out DIR

IMAGES is an image, a volume, an array, or a folder of them. Several runs are read as an ensemble. For every image: its
mask in the form of the training masks, an overlay, probabilities and uncertainty as .npz, and maps of uncertainty;
with --truth figures, with --instances its objects. Large images are read, predicted and written in parts. A run of kind
diffusion draws --masks N of each image, which vote, and which a folder beside the mask holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from unetdiff.command import CommandParser, run_command, user_errors
from unetdiff.diffusion.options import SamplerName

READ_WITH = {
    "membrane": "truth",
    "hd95": "truth",
    "depth": "instances",
    "min_size": "instances",
    "background": "instances",
}
"""Options that say how another is done."""


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line, checked as far as that goes without the network."""
    parser = CommandParser(prog="python sample/masks.py", description=__doc__)
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="run folders of segmentation networks, then IMAGES")
    add("--out", required=True, type=Path, metavar="DIR", help="where to write")
    add("--tile", type=int, help="side of the tiles in which larger images are predicted, 0: whole (default: as the "
        "run's evaluation; else whole, and images of four million positions or more 512, volumes 96)")  # fmt: skip
    add("--overlap", type=float, help="share of a tile that the next one covers too (default: as the run's evaluation; "
        "else 0.25)")  # fmt: skip
    add("--blend", choices=("gaussian", "mirror"), default="gaussian", help="default %(default)s")
    add("--tta", type=_axes, nargs="?", const=(), metavar="AXES", help="average over mirrorings along spatial axes "
        "such as 0,1, undone (default: those of the runs' training, data.augment.flips)")  # fmt: skip
    add("--passes", type=int, help="passes with dropout on, for uncertainty (default 1: off)")
    add("--masks", type=int, metavar="N", help="masks to draw of each image, with seeds that count on from --seed, by "
        "runs of kind diffusion (default: as the run says)")  # fmt: skip
    add("--steps", type=int, help="in which each is drawn (default: as the run says)")
    add("--sampler", choices=get_args(SamplerName), help="that draws them (default: as the run says)")
    add("--seed", type=int, help="of the dropout, or of the first mask that is drawn (default 0)")
    add("--truth", type=Path, action="append", metavar="DIR", help="true masks by the images' names: writes "
        "metrics.md, .csv and .json; given again, those of another annotator")  # fmt: skip
    add("--membrane", metavar="CLASS", help="class, by number or name, that separates cells, for V-Rand and V-Info, or "
        "'none' (default: as the run's settings say)")  # fmt: skip
    add("--hd95", action="store_true", help="measure the 95%% Hausdorff distance too")
    add("--instances", choices=("components", "distance", "probability"), help="tell objects apart: connected "
        "components, or watershed on the distance to other classes or on the class's probability")  # fmt: skip
    add("--depth", type=float, help="of the watershed: more, fewer objects (default: 1 position; 0.1 of probability)")
    add("--min_size", type=int, help="objects of fewer positions are left out (default: none)")
    add("--background", metavar="CLASS", help="class that has no objects, or 'none' (default 0)")
    add("--weights", default="ema", help="ema, ema:1 (a further average) or raw (default %(default)s)")
    options = parser.parse_args(given)
    if len(options.runs) < 2:
        parser.error("expected RUN and IMAGES")
    *options.runs, options.images = options.runs
    least = options.passes is None or options.passes >= 1
    if not (0 <= (options.overlap or 0) < 1 and (options.tile or 0) >= 0 and least):
        parser.error("expected --overlap of 0 to below 1, --passes of at least 1, and --tile of at least 0")
    for name, other in READ_WITH.items():
        value = getattr(options, name)
        if value is not None and value is not False and getattr(options, other) is None:
            parser.error(f"nothing reads --{name} without --{other}: expected both or neither")
    return options


def _axes(text: str) -> tuple[int, ...]:
    """Axes as a command line names them."""
    axes = text.split(",")
    if not all(axis.isdigit() for axis in axes) or len(set(axes)) < len(axes):
        raise argparse.ArgumentTypeError(f"expected spatial axes by number, each once, such as 0,1; got {text!r}")
    return tuple(map(int, axes))


def main() -> int:
    options = arguments(sys.argv[1:])  # before torch is imported

    from unetdiff.masks.command import segment_files
    from unetdiff.training.processes import start_processes

    with user_errors():
        state = start_processes(None)
        lines = segment_files(options, state)
    if state.is_main_process:
        print("\n".join(lines))
    return 0


if __name__ == "__main__":
    run_command(main)
