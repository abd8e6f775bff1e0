"""Sample from a trained denoiser: python sample/images.py RUN --num 64 --steps 50 --out DIR"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from unetdiff.command import CommandParser, run_command, user_errors
from unetdiff.config import SAMPLER_NAMES
from unetdiff.diffusion.options import SamplingPrecision

if TYPE_CHECKING:
    from unetdiff.diffusion.denoiser import Fast
    from unetdiff.runs import Run


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
    parser.add_argument("--cache_interval", type=int, default=1, help="compute the network's deep part in every so "
                        "manieth call only: faster, at a price in quality (default %(default)s: in all)")  # fmt: skip
    parser.add_argument("--cache_step", metavar="KEY", help="step of the encoder, as plan.txt names it, down to which "
                        "every call computes all (default: one that costs up to a quarter)")  # fmt: skip
    parser.add_argument("--precision", choices=[*get_args(SamplingPrecision), "auto"], default="float32",
                        help="auto times both first (default %(default)s)")  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="compile the network; pays for many samples")
    parser.add_argument("--checkpoint", help="a checkpoint of the run, such as step-00001000 (default: the newest)")
    parser.add_argument("--weights", default="ema", help="ema, ema:1 (a further average) or raw (default %(default)s)")
    parser.add_argument("--animate", action="store_true", help="write the denoising as denoising.gif")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to write")
    options = parser.parse_args(given)
    if options.size and len(options.size) == 1:
        options.size = options.size[0]
    return options


def fast(options: argparse.Namespace, run: Run) -> Fast:
    """How the network is called; the first process decides on the precision where that is open, and says so."""
    from unetdiff.diffusion.denoiser import choose_sampling_precision
    from unetdiff.training.processes import first_alone

    def choose() -> SamplingPrecision:
        how = {"size": options.size, "batch_size": options.batch_size, "guided": options.guidance != 1}
        choice = choose_sampling_precision(run.unet, **how)
        print(f"precision {choice.precision}: {choice.reason}")
        return choice.precision  # pyright: ignore[reportReturnType] # one of the two

    return {
        "cache_interval": options.cache_interval,
        "cache_step": options.cache_step,
        "precision": first_alone(choose) if options.precision == "auto" else options.precision,
        "compiled": options.compile,
    }


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
            size=options.size,
            batch_size=options.batch_size,
            on_step=on_step,
            **fast(options, run),
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
