"""Images per second of `sample_images` beside diffusers' pipelines around its own network with the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, UNet2DModel

from unetdiff import UNet
from unetdiff.diffusion.options import SamplerName, SamplingPrecision
from unetdiff.diffusion.sampler import make_sampler, sample_images
from unetdiff.diffusion.schedule import make_schedule

STEPS: dict[SamplerName, int] = {"ddim": 50, "dpmpp": 20}
AGREES = 2e-3  # the most that any pixel of [0, 1] may differ between the two libraries
COMPARED_STEPS = 4
SCHEDULE = make_schedule("linear")

Draw = Callable[[int, int], torch.Tensor]  # (images, steps) -> images


@dataclass(frozen=True)
class Arm:
    """A way to sample: by diffusers, or ours with deep features reused over `interval` calls, divided at `cache_step`.

    sampler: by name.
    """

    sampler: SamplerName
    library: str = "unetdiff"
    interval: int = 1
    cache_step: str | None = None

    def timed_steps(self, about: int) -> int:
        """About this many of the steps, a multiple of the interval, so that as large a share is recomputed."""
        return min(self.interval * max(1, round(about / self.interval)), STEPS[self.sampler])


@dataclass(frozen=True)
class Networks:
    """A network and its twin of diffusers, with the same weights."""

    ours: UNet
    theirs: UNet2DModel

    @classmethod
    def of(cls, preset: str, device: torch.device) -> Networks:
        """A named network with random weights, none of them zero."""
        ours = UNet.from_preset(preset).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in ours.parameters():
                if parameter.ndim > 1:  # as wide as keeps the amplitude
                    parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        arguments, weights = ours.to_foreign("diffusers")
        theirs = UNet2DModel(**arguments)
        theirs.load_state_dict(weights)
        return cls(ours.to(device), theirs.to(device).eval())  # pyright: ignore[reportArgumentType]

    def draw(self, arm: Arm, precision: SamplingPrecision) -> Draw:
        """What an arm times: seeds are those of the images' numbers; images are in [0, 1] or [-1, 1]."""
        if arm.library == "unetdiff":
            return lambda count, steps: sample_images(
                self.ours,
                SCHEDULE,
                count,
                sampler=arm.sampler,
                steps=steps,
                batch_size=count,
                cache_interval=arm.interval,
                cache_step=arm.cache_step,
                precision=precision,
            )
        pipeline, how = self._pipeline(arm.sampler)
        pipeline.set_progress_bar_config(disable=True)
        device = next(self.ours.parameters()).device.type

        def draw(count: int, steps: int) -> torch.Tensor:
            seeds = [torch.Generator().manual_seed(seed) for seed in range(count)]
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                found = pipeline(count, seeds, num_inference_steps=steps, output_type="np", **how)
            return torch.from_numpy(found.images).movedim(-1, 1)  # pyright: ignore[reportAttributeAccessIssue]

        return draw

    def _pipeline(self, sampler: SamplerName) -> tuple[Any, dict[str, Any]]:
        """A pipeline of diffusers and what it is called with; the noise follows the clipped x0, as it does here."""
        if sampler == "ddim":
            solver: Any = DDIMScheduler.from_config(SCHEDULE.config)
            return DDIMPipeline(self.theirs, solver), {"use_clipped_model_output": True}
        return DDPMPipeline(self.theirs, make_sampler(sampler, SCHEDULE)), {}


def check_agreement(networks: Networks) -> float:
    """The largest difference between the two libraries' pixels, in [0, 1], after a few steps of DDIM.

    Raises:
        ValueError: it is more than rounding.
    """
    ours, theirs = (networks.draw(Arm("ddim", library), "float32")(2, COMPARED_STEPS) for library in LIBRARIES)
    error = ((ours + 1) / 2 - theirs).abs().max().item()
    if not error < AGREES:
        raise ValueError(f"the two libraries' images differ by {error:.1e}; expected less than {AGREES}")
    return error


LIBRARIES = ("unetdiff", "diffusers")


def measure(
    networks: Networks, arms: Sequence[Arm], *, batch_size: int, precision: SamplingPrecision, about: int, rounds: int
) -> list[dict[str, Any]]:
    """A row per arm: images per second at all its steps, and its speed over diffusers' in the same round.

    The arms take turns (A B C A B C ...), behind a round of one batch each that warms up.

    Args:
        about: steps that are timed, see `Arm.timed_steps`; the time of all steps is taken from that of these.
        rounds: turns of each arm.
    """
    draws: Mapping[Arm, Draw] = {arm: networks.draw(arm, precision) for arm in arms}
    for arm, draw in draws.items():
        draw(batch_size, arm.interval)
    seconds: dict[Arm, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, draw in draws.items():
            start = time.perf_counter()
            draw(batch_size, arm.timed_steps(about))  # ends on the CPU
            seconds[arm].append((time.perf_counter() - start) / arm.timed_steps(about))
    rows = []
    for arm, own in seconds.items():
        base = seconds[Arm(arm.sampler, "diffusers")]
        ratios = [theirs / ours for ours, theirs in zip(own, base, strict=True)]
        rows.append({
            **asdict(arm),
            "batch_size": batch_size,
            "precision": precision,
            "timed_steps": arm.timed_steps(about),
            "images_per_second": batch_size / (median(own) * STEPS[arm.sampler]),
            "ratio": median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        })  # fmt: skip
    return rows


def arms(intervals: Sequence[int], cache_steps: Sequence[str | None], samplers: Sequence[SamplerName]) -> list[Arm]:
    """Diffusers' and ours without reuse and with all intervals, at each step where the network is divided."""
    found = []
    for sampler in samplers:
        found += [Arm(sampler, "diffusers"), Arm(sampler)]
        found += [Arm(sampler, "unetdiff", n, step) for step in cache_steps for n in intervals if n > 1]
    return found
