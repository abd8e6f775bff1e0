"""Embeddings of timestep and class, and how they enter a norm."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unetdiff.spec import UNetSpec


class SinusoidalEmbedding(nn.Module):
    """Sine and cosine of the timestep at geometrically spaced frequencies (Vaswani et al. 2017, section 3.5).

    Frequencies are exp(-log(max_period) i / (channels / 2 - frequency_shift)); `sin_first` puts sines before
    cosines. (N,) timesteps in, (N, channels) float32 out.
    """

    def __init__(self, channels: int, *, frequency_shift: int, sin_first: bool, max_period: float = 10_000.0):
        super().__init__()
        if channels % 2:
            raise ValueError(f"a sinusoidal embedding needs an even width; the first level has {channels} channels")
        self.channels, self.frequency_shift, self.sin_first = channels, frequency_shift, sin_first
        self.max_period = max_period

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.channels // 2
        index = torch.arange(half, dtype=torch.float32, device=timestep.device)
        frequency = torch.exp(-math.log(self.max_period) * index / (half - self.frequency_shift))
        angle = timestep.float()[:, None] * frequency[None]
        waves = (angle.sin(), angle.cos()) if self.sin_first else (angle.cos(), angle.sin())
        return torch.cat(waves, dim=-1)


class FourierEmbedding(nn.Module):
    """Random Fourier features of the timestep (Tancik et al. 2020): cos and sin of 2 pi f t / 1000, f ~ N(0, scale^2).

    The frequencies are drawn once and saved with the weights. (N,) in, (N, channels) float32 out.
    """

    frequency: Tensor

    def __init__(self, channels: int, *, scale: float = 16.0):
        super().__init__()
        if channels % 2:
            raise ValueError(f"a Fourier embedding needs an even width; the first level has {channels} channels")
        self.register_buffer("frequency", torch.randn(channels // 2) * scale)

    def forward(self, timestep: Tensor) -> Tensor:
        angle = 2 * math.pi * timestep.float()[:, None] / 1000 * self.frequency.float()[None]
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


TIME_EMBEDDINGS = {
    "sinusoidal": lambda spec: SinusoidalEmbedding(
        spec.channels[0], frequency_shift=spec.frequency_shift, sin_first=spec.sin_first
    ),
    "fourier": lambda spec: FourierEmbedding(spec.channels[0]),
}


class ConditionEmbedding(nn.Module):
    """One vector per sample from its timestep and class label: (N,) and (N,) in, (N, embedding_channels) out.

    The timestep passes its waves, a linear layer, the SiLU and another (Ho et al. 2020); the label's vector is
    added (Dhariwal & Nichol 2021). Index `num_classes` is the null class where the network has one.
    """

    def __init__(self, spec: UNetSpec):
        super().__init__()
        width = spec.embedding_channels
        assert width is not None
        self.num_classes, self.null_class = spec.num_classes, spec.null_class
        if spec.time_embedding != "none":
            self.waves = TIME_EMBEDDINGS[spec.time_embedding](spec)
            self.time = nn.Sequential(nn.Linear(spec.channels[0], width), nn.SiLU(), nn.Linear(width, width))
        else:
            self.waves = None
        self.label = None if spec.num_classes is None else nn.Embedding(spec.num_classes + spec.null_class, width)

    def forward(self, timestep: Any, class_labels: Any, batch: int) -> Tensor:
        """Embed; raises `ValueError` for a condition that is missing or that this network does not take."""
        device = next(self.parameters()).device
        embedding = []
        if self.waves is not None:
            if timestep is None:
                raise ValueError("this network is conditioned on the timestep: call it with one")
            waves = self.waves(per_sample("timestep", timestep, batch).to(device))
            embedding.append(self.time(waves.to(self.time[0].weight.dtype)))
        elif timestep is not None:
            raise ValueError("this network was built without a time embedding: call it without a timestep")
        if self.label is not None:
            embedding.append(self.label(self._labels(class_labels, batch, device)))
        elif class_labels is not None:
            raise ValueError("this network was built without classes: call it without class_labels")
        return torch.stack(embedding).sum(0) if len(embedding) > 1 else embedding[0]

    def _labels(self, class_labels: Any, batch: int, device: torch.device) -> Tensor:
        assert self.num_classes is not None
        if class_labels is None:
            if not self.null_class:
                last = self.num_classes - 1
                raise ValueError(f"this network was built without a null class: call it with class_labels, 0 to {last}")
            return torch.full((batch,), self.num_classes, dtype=torch.long, device=device)
        labels = per_sample("class_labels", class_labels, batch)
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"class_labels are of {labels.dtype}; expected integers")
        last = self.num_classes - (not self.null_class)
        # On a GPU, or while compiling, looking at the values would wait for them.
        if (
            labels.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and not ((labels >= 0) & (labels <= last)).all()
        ):
            raise ValueError(f"class_labels are {labels.tolist()}; expected 0 to {last}")
        return labels.to(device, torch.long)


def per_sample(name: str, value: Any, batch: int) -> Tensor:
    """A condition as a tensor (batch,), from one value for all or one per sample; `ValueError` names it otherwise."""
    tensor = torch.as_tensor(value)
    if tensor.ndim > 1 or tensor.numel() not in (1, batch):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected one value, or {batch}: one per sample")
    return tensor.reshape(-1).expand(batch)


class ConditionedNorm(nn.Module):
    """A norm through which the embedding enters a block: (N, C, *space) and (N, E) in, (N, C, *space) out.

    With s, b linear in SiLU(embedding): `none` norm(h); `add` norm(h + b) (Ho et al. 2020); `scale_shift`
    norm(h) (1 + s) + b (Dhariwal & Nichol 2021, AdaGN); `scale` norm(h) (1 + s).
    """

    PARTS: ClassVar = {"none": 0, "add": 1, "scale": 1, "scale_shift": 2}

    def __init__(self, norm: nn.Module, mode: str, channels: int, embedding_channels: int | None):
        super().__init__()
        self.norm = norm
        self.mode = mode if embedding_channels is not None else "none"
        parts = self.PARTS[self.mode]
        self.project = nn.Linear(embedding_channels or 0, parts * channels) if parts else None

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        if self.project is None:
            return self.norm(h)
        assert embedding is not None
        entry = self.project(nn.functional.silu(embedding))
        entry = entry.reshape(*entry.shape, *(1,) * (h.ndim - 2)).to(h.dtype)
        if self.mode == "add":
            return self.norm(h + entry)
        scale, *shift = entry.chunk(self.PARTS[self.mode], dim=1)
        h = self.norm(h) * (1 + scale)
        return h + shift[0] if shift else h
