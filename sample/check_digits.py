"""Judge a digits run: draw samples of every class and let a classifier of real digits read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from unetdiff.command import CommandParser, run_command, user_errors
from unetdiff.config import DataConfig
from unetdiff.data.sources import open_source
from unetdiff.diffusion.sampler import sample_images
from unetdiff.figures import grid
from unetdiff.files import write_json
from unetdiff.outputs import write_samples
from unetdiff.progress import progress
from unetdiff.runs import Run, load_run

BATCH = 50


def flat(images: np.ndarray) -> np.ndarray:
    """Images (N, 16, 16, 1) of 0 to 255 as vectors (N, 256) of 0 to 1."""
    return images.reshape(len(images), -1).astype(np.float64) / 255


def real_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The vectors and labels of all real digits of a split."""
    source = open_source(DataConfig(source="digits"), split)
    batch = source.read(np.arange(len(source)))
    return flat(batch["sample"]), batch["label"]


def median_distance(images: np.ndarray, others: np.ndarray) -> float:
    """The median over `images` of the Euclidean distance to the nearest of `others`."""
    return float(np.median([np.linalg.norm(others - image, axis=1).min() for image in images]))


def draw(run: Run, num: int, steps: int, guidance: float, seed: int) -> np.ndarray:
    """Samples of classes 0 to 9 in turn, (num, 16, 16, 1) of 0 to 255."""
    if run.format.num_classes != 10 or run.format.size != (16, 16):
        raise ValueError(f"{run.folder} is no class-conditional run on the embedded digits")
    with progress(desc="sampling", total=-(-num // BATCH) * steps) as bar:

        def on_step(*_: object) -> None:
            bar.update()

        samples = sample_images(
            run.unet,
            run.scheduler,
            num,
            labels=list(range(10)),
            guidance=guidance,
            steps=steps,
            seed=seed,
            batch_size=BATCH,
            on_step=on_step,
        )
    return run.format.decode(samples)


def judge(drawn: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """How a classifier of real training digits reads the samples, and how far they are from those digits."""
    images, labels = real_digits("train")
    test_images, test_labels = real_digits("test")
    classifier = SVC(C=10).fit(images, labels)
    return {
        "read_as_their_class": float((classifier.predict(flat(drawn)) == wanted).mean()),
        "real_test_digits_read_as_their_class": float((classifier.predict(test_images) == test_labels).mean()),
        "median_distance_to_training_digits": median_distance(flat(drawn), images),
        "median_distance_of_real_test_digits": median_distance(test_images, images),
    }


def main() -> int:
    parser = CommandParser(prog="python sample/check_digits.py", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run of configs/digits.yaml")
    parser.add_argument("--num", type=int, default=500, help="samples to judge (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default %(default)s)")
    parser.add_argument("--guidance", type=float, default=1.0, help="scale of classifier-free guidance, 1 for none")
    parser.add_argument("--seed", type=int, default=1000, help="of the first sample (default %(default)s)")
    options = parser.parse_args()
    with user_errors():
        run = load_run(options.run)
        drawn = draw(run, options.num, options.steps, options.guidance, options.seed)
    wanted = np.arange(options.num) % 10
    seeds = range(options.seed, options.seed + options.num)
    write_samples(options.run / "digits", drawn, run.format, wanted.tolist(), seeds)
    shown = np.argsort(wanted[:100], kind="stable")
    grid(drawn[shown], run.format, columns=10, labels=wanted[shown]).save(options.run / "grid.png")
    figures = judge(drawn, wanted)
    write_json(options.run / "digits.json", {"samples": options.num, **figures})
    share, real, distance, reference = figures.values()
    print(f"pictures: {options.run / 'grid.png'}, report: {options.run / 'report.html'}")
    print(f"median distance to the nearest training digit: {distance:.2f} (of real test digits: {reference:.2f})")
    print(f"{share:.1%} of {options.num} samples are read as their class (real test digits: {real:.1%})")
    return 0


if __name__ == "__main__":
    run_command(main)
