"""Sample from a trained denoiser: python sample/images.py RUN --num 64 --steps 50 --out DIR"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unetdiff.command import CommandParser, run_command, user_errors
from unetdiff.config import SAMPLER_NAMES


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line, checked as far as that goes without the network."""
    parser = CommandParser(prog="python sample/images.py", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, a checkpoint, or a diffusers folder")
    parser.add_argument("--num", type=int, default=64, help="how many (default %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps (default %(default)s)")
    parser.add_argument("--sampler", choices=SAMPLER_NAMES, default="dpmpp", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample; sample i has seed + i")
    parser.add_argument("--labels", help="classes by number or name, comma-separated and cycled over the samples; "
                        "'none' samples without class (default: every class in turn)")  # fmt: skip
    parser.add_argument("--guidance", type=float, default=1.0, help="scale of classifier-free guidance, 1 for none")
    parser.add_argument("--batch_size", type=int, default=32, help="samples at a time (default %(default)s)")
    parser.add_argument("--size", type=int, nargs="+", help="spatial size (default: that of the training data)")
    parser.add_argument("--checkpoint", help="a checkpoint of the run, such as step-00001000 (default: the newest)")
    parser.add_argument("--weights", default="ema", help="ema, ema:1 (a further average) or raw (default %(default)s)")
    parser.add_argument("--animate", action="store_true", help="write the denoising as denoising.gif")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to write")
    return parser.parse_args(given)


def main() -> int:
    options = arguments(sys.argv[1:])  # before torch is imported

    import numpy as np

    from unetdiff.diffusion.sampler import sample_images
    from unetdiff.figures import animation
    from unetdiff.outputs import write_samples
    from unetdiff.progress import progress
    from unetdiff.runs import class_labels, load_run
    from unetdiff.training.processes import device_of, start_processes

    with user_errors():
        state = start_processes(None)
        if options.out.exists() and not options.out.is_dir():
            raise ValueError(f"--out {options.out} is a file; expected a folder")
        options.out.mkdir(parents=True, exist_ok=True)
        run = load_run(
            options.run, checkpoint=options.checkpoint, weights=options.weights, device=str(device_of(state))
        )
        labels = class_labels(options.labels, run)
        frames: list[np.ndarray] = []
        bar = progress(desc="sampling", disable=not state.is_main_process, delay=0.5)

        def on_step(step, total, x_t, x0):
            bar.total = total * -(-options.num // (options.batch_size * state.num_processes))
            bar.update()
            # The first batch of the first process is the one that is shown; other bars do not count.
            if options.animate and state.is_main_process and bar.n <= total:
                frames.append(run.format.decode(x_t.clamp(-1, 1)))

        samples = sample_images(
            run.unet,
            run.scheduler,
            options.num,
            labels=labels,
            guidance=options.guidance,
            sampler=options.sampler,
            steps=options.steps,
            seed=options.seed,
            size=options.size[0] if options.size and len(options.size) == 1 else options.size,
            batch_size=options.batch_size,
            on_step=on_step,
        )
        bar.close()
    if state.is_main_process:
        arrays = run.format.decode(samples)
        cycled = None if labels is None else [labels[i % len(labels)] for i in range(options.num)]
        write_samples(options.out, arrays, run.format, cycled, range(options.seed, options.seed + options.num))
        if options.animate:
            shown = arrays[:: state.num_processes][: len(frames[0])]
            animation([*frames, shown], run.format, options.out / "denoising.gif")
        print(f"{options.num} samples of {run.folder} in {options.out}")
    return 0


if __name__ == "__main__":
    run_command(main)
