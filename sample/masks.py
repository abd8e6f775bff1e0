"""Predict masks: python sample/masks.py RUN [RUN ...] IMAGES --out DIR

IMAGES is an image, a volume, an array, or a folder of them. Several runs are read as an ensemble. For every image: its
mask in the form of the training masks, an overlay, probabilities and uncertainty as .npz, and maps of uncertainty;
with --truth figures, with --instances its objects. Large images are read, predicted and written in parts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unetdiff.command import CommandParser, run_command, user_errors


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line, checked as far as that goes without the network."""
    parser = CommandParser(prog="python sample/masks.py", description=__doc__)
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="run folders of segmentation networks, then IMAGES")
    add("--out", required=True, type=Path, metavar="DIR", help="where to write")
    add("--tile", type=int, help="side of the tiles in which larger images are predicted (default: whole; images of "
        "four million positions or more: 512, volumes: 96)")  # fmt: skip
    add("--overlap", type=float, default=0.25, help="share of a tile that the next one covers too")
    add("--blend", choices=("gaussian", "mirror"), default="gaussian", help="default %(default)s")
    add("--tta", action="store_true", help="average over all mirrorings, undone")
    add("--passes", type=int, default=1, help="passes with dropout on, for uncertainty (default 1: off)")
    add("--seed", type=int, default=0, help="of the dropout")
    add("--truth", type=Path, metavar="DIR", help="true masks by the images' names: writes metrics.md, .csv and .json")
    add("--membrane", metavar="CLASS", help="class, by number or name, that separates cells, for V-Rand and V-Info, or "
        "'none' (default: as the run's settings say)")  # fmt: skip
    add("--hd95", action="store_true", help="measure the 95%% Hausdorff distance too")
    add("--instances", choices=("components", "distance", "probability"), help="tell objects apart: connected "
        "components, or watershed on the distance to other classes or on the class's probability")  # fmt: skip
    add("--depth", type=float, help="of the watershed: more, fewer objects (default: 1 position; 0.1 of probability)")
    add("--min_size", type=int, default=1, help="objects of fewer positions are left out")
    add("--background", metavar="CLASS", default="0", help="class that has no objects, or 'none' (default %(default)s)")
    add("--weights", default="ema", help="ema, ema:1 (a further average) or raw (default %(default)s)")
    options = parser.parse_args(given)
    if len(options.runs) < 2:
        parser.error("expected RUN and IMAGES")
    *options.runs, options.images = options.runs
    if not 0 <= options.overlap < 1 or options.passes < 1 or (options.tile is not None and options.tile < 1):
        parser.error("expected --overlap of 0 to below 1, --passes of at least 1, and --tile of at least 1")
    return options


def main() -> int:
    options = arguments(sys.argv[1:])  # before torch is imported

    from unetdiff.masks.command import segment_files

    with user_errors():
        for line in segment_files(options):
            print(line)
    return 0


if __name__ == "__main__":
    run_command(main)
