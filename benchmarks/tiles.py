"""How far tiles are from the whole image: python benchmarks/tiles.py RUN IMAGES --truth MASKS

IMAGES are four images of one size, which are laid side by side as one of twice the side; MASKS, by the same names, are
their truth. Prints a table in Markdown: the difference of probabilities, and the Dice of one class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from unetdiff import load_run, segment
from unetdiff.masks.inputs import ImageFile, find_images, open_truth
from unetdiff.segmentation.predict import Inference


def side_by_side(parts: list[np.ndarray]) -> np.ndarray:
    """Four arrays (H, W, ...) as one, (2 H, 2 W, ...)."""
    return np.concatenate([np.concatenate(parts[start : start + 2], axis=1) for start in (0, 2)])


def dice(found: np.ndarray, truth: np.ndarray, place: int) -> float:
    """Of one class, over counted positions."""
    counted = truth >= 0
    hits = 2 * ((found == place) & (truth == place)).sum()
    return float(hits / (((found == place) & counted).sum() + (truth == place).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/tiles.py", description=__doc__)
    parser.add_argument("run", help="a segmentation run")
    parser.add_argument("images", type=Path, help="a folder with at least four images of one size")
    parser.add_argument("--truth", type=Path, required=True, help="their masks")
    parser.add_argument("--first", type=int, default=0, help="the first of the four (default %(default)s)")
    parser.add_argument("--tiles", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--blend", choices=("gaussian", "mirror"), default="gaussian")
    parser.add_argument("--target", type=int, default=0, help="the class whose Dice is shown (default %(default)s)")
    options = parser.parse_args()
    run = load_run(options.run)
    files: list[ImageFile] = find_images(options.images, run.format)[options.first : options.first + 4]
    opened = [np.asarray(file.open()) for file in files]
    image = side_by_side(opened)
    truths = [
        open_truth(options.truth, file.name, run.masks, held.shape[:-1]).whole()
        for file, held in zip(files, opened, strict=True)
    ]
    truth = side_by_side(truths)
    whole = segment(run, image)
    print(f"{' and '.join(file.name for file in files)}: {image.shape[0]} x {image.shape[1]}, {options.blend}, overlap "
          f"{options.overlap}\n\n| tile | mean difference | 99th percentile | largest | other class | Dice |\n"
          "| --- | ---: | ---: | ---: | ---: | ---: |")  # fmt: skip
    for tile in options.tiles:
        found = segment(run, image, Inference(tile, options.overlap, options.blend))
        apart = np.abs(found.probabilities - whole.probabilities).max(0)
        changed = 100 * (found.labels != whole.labels).mean()
        print(f"| {tile} | {apart.mean():.4f} | {np.quantile(apart, 0.99):.3f} | {apart.max():.3f} | {changed:.2f}% | "
              f"{dice(found.labels, truth, options.target):.4f} |", flush=True)  # fmt: skip
    print(f"| whole | | | | | {dice(whole.labels, truth, options.target):.4f} |")


if __name__ == "__main__":
    main()
