"""How large activations and gradients are when a network starts, measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unetdiff.models.step import Step
from unetdiff.models.steps import BlockStep, PyramidStep
from unetdiff.models.unet import UNet
from unetdiff.models.variance import Statistic

_BASE: dict[str, Any] = {"channels": [64, 128, 128], "blocks": 2, "in_channels": 3}
_RESAMPLED: dict[str, Any] = {**_BASE, "downsample": "residual", "upsample": "residual"}
_PLAIN: dict[str, Any] = {
    **_BASE,
    "stem_channels": 0,
    "blocks": 1,
    "decoder_blocks": [1, 1, 0],
    "middle": False,
    "upsample": "transposed",
    "up_channels": "next",
    "head_kernel": 1,
    "time_embedding": "none",
}

# For each placement a small network that resamples as its source does.
EXAMPLES: dict[str, dict[str, Any]] = {
    "ddpm": {**_BASE, "norm": "ddpm", "downsample": "strided_asymmetric"},
    "adm": {**_RESAMPLED, "norm": "adm"},
    "ncsnpp": {
        **_RESAMPLED,
        "norm": "ncsnpp",
        "resample_filter": [1, 3, 3, 1],
        "resample_shortcut": "conv",
        "input_pyramid": True,
        "time_embedding": "fourier",
    },
    "ddpmpp": {**_RESAMPLED, "norm": "ddpmpp", "resample_shortcut": "conv"},
    "edm2": {**_RESAMPLED, "norm": "edm2", "time_embedding": "fourier_phase"},
    "nnunet": {**_PLAIN, "norm": "nnunet", "downsample": "block", "activation": "leaky_relu"},
    "unet2015": {**_PLAIN, "norm": "unet2015", "downsample": "max_pool", "activation": "relu"},
}


def default_start(unet: UNet) -> None:
    """Give every layer the first weights that torch gives it, for comparison."""
    for module in unet.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()


def initial_statistics(
    settings: Mapping[str, Any],
    *,
    size: int = 64,
    batch: int = 2,
    seeds: int = 4,
    start: Callable[[UNet], None] | None = None,
) -> dict[Step, Statistic]:
    """Run new networks on unit normal input and gradient; mean squares of every step up to the decoder's last.

    The gradient is that of <g, features> with g unit normal at the decoder's output, so that a head which starts at
    zero hides nothing. All figures are means over `seeds` draws of weights, input and g. Convolutions wrap around:
    the zeros that they pad with make activations smaller at the border, which is a matter of the input's size.

    Args:
        settings: of `UNet`.
        size: positions along each axis of the input; a multiple of the network's strides.
        batch: samples.
        seeds: networks.
        start: what gives the new networks other first weights.

    Raises:
        ValueError: for a size that the strides do not divide, or a network with a pretrained backbone.
    """
    if settings.get("backbone") is not None:
        raise ValueError("a network with a pretrained backbone has no first weights to measure")
    rows: list[dict[Step, Statistic]] = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(seeds):
            torch.manual_seed(seed)
            unet = UNet(**settings).eval()
            if start is not None:
                start(unet)
            rows.append(_measure(unet, size, batch))
    return {step: _mean([row[step] for row in rows]) for step in rows[0]}


def _mean(rows: list[Statistic]) -> Statistic:
    count = len(rows)
    return Statistic(
        sum(row.variance for row in rows) / count,
        sum(row.branch for row in rows) / count,
        sum(row.gradient for row in rows) / count,
    )


def _measure(unet: UNet, size: int, batch: int) -> dict[Step, Statistic]:
    """One network, one batch."""
    for module in unet.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            module.padding_mode = "circular"
    modules = unet.step_modules()
    steps = [step for step in unet.layout.steps if step.side != "head"]
    streams = {step: _keep_output(modules[step.key]) for step in steps}
    branches = {step: _keep_output(_branch_end(modules[step.key])) for step in steps}
    finest = unet.decoder(*_features(unet, size, batch))[0]
    kept = [streams[step][0] for step in steps]
    gradients = torch.autograd.grad(finest, kept, torch.randn_like(finest))
    return {
        step: Statistic(_mean_square(stream), sum(map(_mean_square, branches[step])), _mean_square(gradient))
        for step, stream, gradient in zip(steps, kept, gradients, strict=True)
    }


def _features(unet: UNet, size: int, batch: int) -> tuple[list[Tensor], Tensor | None]:
    """The encoder's features of unit normal input, and the embedding of timesteps and labels drawn evenly."""
    config = unet.config
    if any(size % factor for factor in unet.multiple):
        raise ValueError(f"size is {size}; expected a multiple of {unet.multiple}, the network's strides")
    sample = torch.randn(batch, config["in_channels"], *unet.layout.fitting_size((size,) * config["dims"]))
    timestep = None if config["time_embedding"] == "none" else torch.linspace(1, 999, batch)
    labels = torch.randint(config["num_classes"], (batch,)) if config["num_classes"] else None
    embedding = unet.embed(timestep, labels, batch)
    return unet.encoder(unet.input_norm(sample), embedding), embedding


def _mean_square(x: Tensor) -> float:
    return float(x.detach().square().mean())


def _branch_end(step: nn.Module) -> nn.Module | None:
    """The last layer of a step's residual branch; None where it has none."""
    block = step.down if isinstance(step, PyramidStep) else step
    return block.residual.last_layer() if isinstance(block, BlockStep) else None


def _keep_output(module: nn.Module | None) -> list[Tensor]:
    """A list that will hold what `module` returns."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append(output)

    if module is not None:
        module.register_forward_hook(keep)
    return kept
