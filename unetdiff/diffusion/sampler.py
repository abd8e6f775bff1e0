"""From noise to images: one loop over diffusers' solvers, one random generator per image."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Unpack

import diffusers
import torch
import torch.distributed as dist
from diffusers import DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from unetdiff.diffusion.denoiser import Fast, denoisers, weights_cast_once
from unetdiff.diffusion.guidance import Denoiser, classifier_free, clip_x0
from unetdiff.diffusion.network import Network
from unetdiff.diffusion.options import SamplerName
from unetdiff.diffusion.process import Betas, Preconditioned, process_of
from unetdiff.diffusion.schedule import Schedule, draws_samples, on_device, split_variance

# (step from 0, number of steps, x_t at the scale of `Process.picture`, predicted x0), both (N, C, *space)
OnStep = Callable[[int, int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Sampler:
    """A diffusers scheduler and the settings with which it samples from the stored one.

    Attributes:
        scheduler: name of the class in diffusers.
        arguments: what differs from the stored configuration and the class's defaults.
        max_sigma: noise level, in units of the data, to start from; None for the schedule's own.
    """

    scheduler: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    max_sigma: float | None = None


def _dpm_solver(order: int, algorithm: str = "dpmsolver++") -> Sampler:
    # variance_type None: the class would otherwise cut a learned variance off at three channels.
    arguments = {"solver_order": order, "algorithm_type": algorithm, "variance_type": None}
    return Sampler("DPMSolverMultistepScheduler", arguments)


SAMPLERS: dict[SamplerName, Sampler] = {
    "ddpm": Sampler("DDPMScheduler"),
    # The first-order DPM-Solver++ is DDIM (Lu et al. 2022, section 4.1). DDIMScheduler steps by T // steps and so
    # leaves the timesteps it announces wherever the number of steps does not divide T.
    "ddim": _dpm_solver(1),
    "dpmpp": _dpm_solver(2),
    "dpmpp_sde": _dpm_solver(2, "sde-dpmsolver++"),
    "unipc": Sampler("UniPCMultistepScheduler"),
    "euler": Sampler("EulerDiscreteScheduler"),
    # An ancestral Euler step in sigma is a draw from DDPM's posterior. EulerAncestralDiscreteScheduler takes the root
    # of a difference that float32 rounds below zero where a few steps cross a cosine schedule.
    "euler_ancestral": Sampler("DDPMScheduler", {"variance_type": "fixed_small"}),
    # A trapezoid in sigma needs noise levels that fall gradually. Cosine schedules begin with a fall from 20,000
    # to 30; these are the levels of Karras et al. 2022, equation 5, from their sigma_max down.
    "heun": Sampler(
        "HeunDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "linspace"}, max_sigma=80.0
    ),
}

# For EDM's preconditioned networks, for which diffusers has solvers of their own; these have no others.
EDM_SAMPLERS: dict[SamplerName, Sampler] = {
    "dpmpp": Sampler("EDMDPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpmpp_sde": Sampler("EDMDPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
    "euler": Sampler("EDMEulerScheduler"),
}


@dataclass(frozen=True)
class _Family:
    """The samplers of one kind of noise schedule.

    schedule: its name. samplers: those that there are. configuration: what they take over from the scheduler of
    training, before their own arguments.
    """

    schedule: str
    samplers: Mapping[SamplerName, Sampler]
    configuration: Callable[[Any, Sampler], dict[str, Any]]


def make_sampler(name: SamplerName, scheduler: Schedule) -> Any:
    """A diffusers scheduler that samples what `scheduler`, that of training, describes.

    None of them clips: see `clip_x0`, which does it alike for all. "heun" calls the denoiser twice per step.

    Raises:
        ValueError: an unknown name, or one that does not sample from such a schedule.
    """
    family = _FAMILIES[type(process_of(scheduler))]
    if name not in family.samplers:
        raise ValueError(f"sampler {name!r} is not one of {', '.join(family.samplers)}, those of {family.schedule}.")
    sampler = family.samplers[name]
    config = family.configuration(scheduler, sampler)
    return getattr(diffusers, sampler.scheduler).from_config({**config, **sampler.arguments})


def _beta_configuration(scheduler: Any, sampler: Sampler) -> dict[str, Any]:
    config = {**scheduler.config, "timestep_spacing": "trailing", "clip_sample": False, "thresholding": False}
    betas = scheduler.betas.clone()
    if scheduler.alphas_cumprod[-1] == 0:
        # Solvers in sigma need it finite, and falling: diffusers' own substitute for the last alpha_bar exceeds
        # the one before. To repeat the beta before instead leaves a signal of about 3e-5.
        betas[-1] = betas[-2]
        config |= {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": False}
    if sampler.max_sigma is not None:
        signal = torch.cumprod(1 - betas, dim=0)[-1].item()
        config["sigma_max"] = min(sampler.max_sigma, ((1 - signal) / signal) ** 0.5)
    return config


def _edm_configuration(scheduler: Any, sampler: Sampler) -> dict[str, Any]:
    return {**scheduler.config}


_FAMILIES: dict[type, _Family] = {
    Betas: _Family("a schedule of betas", SAMPLERS, _beta_configuration),
    Preconditioned: _Family("EDM's schedule", EDM_SAMPLERS, _edm_configuration),
}


@torch.no_grad()
def sample(
    denoise: Denoiser,
    scheduler: Any,
    *,
    shape: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    labels: Tensor | None = None,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw one sample per seed: (N, C, *space), float32 on `device`, not clamped.

    All noise of sample i, of the start and of every step, comes from a CPU generator with seed i, so it is the same
    on every device and in every batch. Memory does not grow with the number of steps. On a GPU no step waits for it,
    but for steps that add noise, which come from the CPU, and those of UniPC.

    Args:
        denoise: of the target that `scheduler.config.prediction_type` names; a learned variance in its output is
            used where the scheduler takes one (DDPMScheduler) and dropped elsewhere. For EDM it is F, see
            `Preconditioned`.
        scheduler: any diffusers scheduler of the DDPM or EDM family, see `make_sampler`; it is copied, not changed.
        shape: (C, *space) of one sample.
        seeds: N integers.
        steps: number of steps; the denoiser is called once in each, by Heun's method twice in all but the last.
        labels: (N,) int64, handed to the denoiser.
        on_step: called in every step, with nothing kept afterwards.
    """
    solver = copy.deepcopy(scheduler)
    process_of(solver).set_timesteps(steps)
    # The solver computes its factors on the CPU; what meets samples on their device is moved there once.
    process, times = process_of(on_device(solver, device)), solver.timesteps.to(device)
    count, channels = len(solver.timesteps), shape[0]
    takes_variance = _takes_variance(solver)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = {"generator": generators} if "generator" in inspect.signature(solver.step).parameters else {}
    start = randn_tensor((len(seeds), *shape), generator=generators, device=torch.device(device))
    x = start * solver.init_noise_sigma
    for index, timestep in enumerate(solver.timesteps):
        x_t = solver.scale_model_input(x, timestep)
        timesteps = times[index].expand(len(seeds))
        output = denoise(x_t, timesteps, labels).float()
        prediction, variance = split_variance(output, channels)
        if takes_variance and variance is None:
            held = f"the scheduler takes a learned variance, but the network makes {output.shape[1]} channels"
            raise ValueError(f"{held} of {channels}; expected twice as many.")
        if on_step is not None:
            x0 = process.x0(x_t, timesteps, prediction)
            on_step(index, count, process.picture(x_t, timesteps), x0)
        x = solver.step(output if takes_variance else prediction, timestep, x, **noise).prev_sample
    return x


def _takes_variance(solver: Any) -> bool:
    return isinstance(solver, DDPMScheduler) and solver.config["variance_type"] == "learned_range"


def sample_images(
    unet: nn.Module,
    scheduler: Schedule,
    num: int,
    *,
    labels: int | Sequence[int] | None = None,
    guidance: float = 1.0,
    sampler: SamplerName = "dpmpp",
    steps: int = 50,
    seed: int = 0,
    size: int | Sequence[int] | None = None,
    batch_size: int = 32,
    clip: bool = True,
    on_step: OnStep | None = None,
    **fast: Unpack[Fast],
) -> Tensor:
    """Draw `num` images (or signals, or volumes) from a trained network: CPU float32 (num, C, *space) in [-1, 1].

    Image i depends on `seed + i` and its label alone: it is the same, to rounding, at any batch size and number of
    processes. Where torch.distributed is initialised every process draws its share and all return all images.

    Args:
        unet: called as `unet(sample, timestep, class_labels).sample`: UNet or diffusers' UNet2DModel.
        scheduler: the one that the network was trained with.
        labels: a class or several, cycled over the images; without any, a network with a null class gets that.
        guidance: scale of classifier-free guidance; 1 for none.
        sampler: a key of SAMPLERS, or for EDM's schedule of EDM_SAMPLERS.
        steps: 1 to T.
        seed: that of image 0.
        size: spatial size, one number for every dimension alike; the network's `sample_size` by default.
        batch_size: images per call of the network and process; guidance doubles it.
        clip: keep the network's own x0 predictions in [-1, 1] at every step, which removes errors; what guidance
            makes of them is left alone, since clipping that spoils samples. The result is clamped either way.
        on_step: called in every step of every batch.
        fast: cache_interval, cache_step, precision, compiled: see `Fast`.

    Raises:
        ValueError: labels that the network does not know, or needs and did not get; guidance without a null class
            or labels; an unknown sampler, a number of steps, images or a size that cannot be; one noise level;
            deep features to reuse that the network does not have.
    """
    network = Network.of(unet)
    _check_counts(scheduler, num=num, batch_size=batch_size, steps=steps)
    classes = network.labels(labels, guidance)
    shape = (network.channels, *network.space(size))
    solver, begin, device = make_sampler(sampler, scheduler), denoisers(unet, **fast), next(unet.parameters()).device
    schedule = on_device(scheduler, device)

    def batch(indices: Sequence[int]) -> Tensor:
        denoise = clip_x0(begin(), schedule) if clip else begin()
        guided = classifier_free(denoise, guidance, null_class=network.num_classes)
        chosen = None if classes is None else torch.tensor([classes[i % len(classes)] for i in indices], device=device)
        how = {"shape": shape, "steps": steps, "labels": chosen, "device": device, "on_step": on_step}
        return sample(guided, solver, seeds=[seed + i for i in indices], **how).clamp(-1, 1).cpu()

    own = range(dist.get_rank(), num, dist.get_world_size()) if _is_distributed() else range(num)
    with _evaluating(unet), weights_cast_once(device):
        parts = [batch(own[first : first + batch_size]) for first in range(0, len(own), batch_size)]
    return _gather(torch.cat([torch.empty(0, *shape), *parts]), num, device)


def _check_counts(scheduler: Schedule, *, num: int, batch_size: int, steps: int) -> None:
    if not draws_samples(scheduler):
        raise ValueError(
            "this network was trained at one noise level, where it denoises but draws no samples: train/segment.py "
            "starts from it"
        )
    most_steps = scheduler.config["num_train_timesteps"]
    for name, value in {"num": num, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    if not 1 <= steps <= most_steps:
        raise ValueError(f"steps is {steps}; it must be from 1 to {most_steps}, the timesteps of its schedule.")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within, the mode of before afterwards."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gather(own: Tensor, num: int, device: torch.device) -> Tensor:
    """The images of all processes, of which image i was made by process i modulo their number, in order."""
    if not _is_distributed():
        return own
    most = -(-num // dist.get_world_size())
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own
    # NCCL moves tensors between GPUs only.
    padded = padded.to(device if dist.get_backend() == "nccl" else "cpu")
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:num].cpu()
