"""Judge a class-conditional digits run: draw samples, let a classifier of real digits read them."""

from __future__ import annotations

import sys
from pathlib import Path

from unetdiff.config import CommandParser, user_errors


def main() -> int:
    parser = CommandParser(prog="python sample/check_digits.py", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run of configs/digits.yaml")
    parser.add_argument("--num", type=int, default=500, help="samples to judge (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default %(default)s)")
    parser.add_argument("--guidance", type=float, default=1.0, help="scale of classifier-free guidance, 1 for none")
    parser.add_argument("--seed", type=int, default=1000, help="of the first sample (default %(default)s)")
    options = parser.parse_args()

    import numpy as np
    from sklearn.svm import SVC
    from tqdm import tqdm

    from unetdiff.config import DataConfig
    from unetdiff.data.sources import Source, open_source
    from unetdiff.diffusion.sampler import sample_images
    from unetdiff.files import write_json
    from unetdiff.outputs import write_samples
    from unetdiff.runs import load_run

    def flat(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float64) / 255

    def everything(source: Source) -> tuple[np.ndarray, np.ndarray]:
        batch = source.read(np.arange(len(source)))
        return flat(batch["sample"]), batch["label"]

    def nearest(images: np.ndarray, others: np.ndarray) -> float:
        """The median over images of the distance to the nearest of the others."""
        return float(np.median([np.linalg.norm(others - image, axis=1).min() for image in images]))

    with user_errors():
        run = load_run(options.run)
        if run.format.num_classes != 10 or run.format.size != (16, 16):
            raise ValueError(f"{options.run} is no run of configs/digits.yaml: it is of {run.format}")
        batches = -(-options.num // 50)
        with tqdm(total=batches * options.steps, unit="step", desc="sampling") as bar:
            samples = sample_images(
                run.unet,
                run.scheduler,
                options.num,
                labels=list(range(10)),
                guidance=options.guidance,
                steps=options.steps,
                seed=options.seed,
                batch_size=50,
                on_step=lambda *_: bar.update(),
            )
    drawn, wanted = run.format.decode(samples), np.arange(options.num) % 10
    write_samples(options.run / "digits", drawn, run.format, wanted.tolist(), range(options.seed, options.seed + options.num))
    first = (np.arange(min(100, options.num)),)
    from unetdiff.figures import grid

    order = np.argsort(wanted[first], kind="stable")
    grid(drawn[first][order], run.format, columns=10, labels=wanted[first][order].tolist()).save(options.run / "grid.png")

    images, labels = everything(open_source(DataConfig(), "train"))
    test_images, test_labels = everything(open_source(DataConfig(), "test"))
    classifier = SVC(C=10).fit(images, labels)
    share = float((classifier.predict(flat(drawn)) == wanted).mean())
    accuracy = float((classifier.predict(test_images) == test_labels).mean())
    distance, reference = nearest(flat(drawn), images), nearest(test_images, images)
    figures = {
        "samples": options.num,
        "read_as_their_class": share,
        "classifier_on_real_test_digits": accuracy,
        "distance_to_training_digits": distance,
        "distance_of_test_digits": reference,
    }
    write_json(options.run / "digits.json", figures)
    print(f"pictures: {options.run / 'grid.png'}, report: {options.run / 'report.html'}")
    print(f"median distance to the nearest training digit: {distance:.2f} (real test digits: {reference:.2f})")
    print(f"{share:.1%} of {options.num} samples are read as their class (real test digits: {accuracy:.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
