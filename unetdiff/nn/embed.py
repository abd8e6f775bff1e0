"""Embeddings of timestep and class, and how they enter a norm."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from unetdiff.nn.activation import make_activation
from unetdiff.nn.layers import ForcedLinear, linear, zero_
from unetdiff.nn.residual import mp_sum
from unetdiff.placement import Weights
from unetdiff.spec import UNetSpec


class SinusoidalEmbedding(nn.Module):
    """Sine and cosine of the timestep at geometrically spaced frequencies (Vaswani et al. 2017, section 3.5).

    Frequencies are exp(-log(max_period) i / (channels / 2 - frequency_shift)); `sin_first` puts sines before
    cosines. (N,) timesteps in, (N, channels) float32 out.
    """

    def __init__(self, channels: int, *, frequency_shift: int, sin_first: bool, max_period: float = 10_000.0):
        super().__init__()
        if channels % 2:
            raise ValueError(f"a sinusoidal embedding needs an even width; it has {channels} channels")
        self.channels, self.frequency_shift, self.sin_first = channels, frequency_shift, sin_first
        self.max_period = max_period

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.channels // 2
        index = torch.arange(half, dtype=torch.float32, device=timestep.device)
        frequency = torch.exp(-math.log(self.max_period) * index / (half - self.frequency_shift))
        angle = timestep.float()[:, None] * frequency[None]
        waves = (angle.sin(), angle.cos()) if self.sin_first else (angle.cos(), angle.sin())
        return torch.cat(waves, dim=-1)


class _Float32Buffers(nn.Module):
    """Keeps its buffers in float32 in a network of half precision: the waves of a rounded frequency are others."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self.get_buffer(name)
            if moved.dtype != buffer.dtype:
                self.register_buffer(name, buffer.to(moved.device))
        return self


class FourierEmbedding(_Float32Buffers):
    """Random Fourier features (Tancik et al. 2020): cos and sin of 2 pi f t for f ~ N(0, scale^2).

    The frequencies are drawn once and saved with the weights. (N,) in, (N, channels) float32 out.
    """

    frequency: Tensor

    def __init__(self, channels: int, *, sin_first: bool = False, scale: float = 16.0):
        super().__init__()
        if channels % 2:
            raise ValueError(f"a Fourier embedding needs an even width; it has {channels} channels")
        self.sin_first = sin_first
        self.register_buffer("frequency", torch.randn(channels // 2) * scale)

    def forward(self, timestep: Tensor) -> Tensor:
        angle = timestep.float()[:, None] * (2 * math.pi * self.frequency.float())[None]
        waves = (angle.sin(), angle.cos()) if self.sin_first else (angle.cos(), angle.sin())
        return torch.cat(waves, dim=-1)


class FourierPhaseEmbedding(_Float32Buffers):
    """Random frequencies and phases, of unit magnitude: sqrt(2) cos(f t + p) (Karras et al. 2024, Eq. 75).

    f / 2 pi ~ N(0, 1) and p ~ U(0, 2 pi), both in radians, drawn once and saved with the weights. (N,) in,
    (N, channels) float32 out.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("frequency", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phase", 2 * math.pi * torch.rand(channels))

    def forward(self, timestep: Tensor) -> Tensor:
        angle = timestep.float()[:, None] * self.frequency.float()[None] + self.phase.float()[None]
        return angle.cos() * math.sqrt(2)


TIME_EMBEDDINGS = {
    "sinusoidal": lambda spec: SinusoidalEmbedding(
        spec.waves, frequency_shift=spec.frequency_shift, sin_first=spec.sin_first
    ),
    "fourier": lambda spec: FourierEmbedding(spec.waves, sin_first=spec.sin_first),
    "fourier_phase": lambda spec: FourierPhaseEmbedding(spec.waves),
}

TIME_INPUTS = {
    "timestep": lambda timestep: timestep.float(),
    "thousandth": lambda timestep: timestep.float() / 1000,
    "log": lambda timestep: timestep.float().log(),
}


class ConditionEmbedding(nn.Module):
    """One vector per sample from its timestep and class label: (N,) and (N,) in, (N, embedding_channels) out.

    The timestep passes its waves, a linear layer, the SiLU and another (Ho et al. 2020). The label's vector is added
    behind them (Dhariwal & Nichol 2021), or to the waves (Karras et al. 2022). Index `num_classes` is the null class
    where the network has one.
    """

    def __init__(self, spec: UNetSpec):
        super().__init__()
        width = spec.embedding_channels
        assert width is not None
        self.num_classes, self.null_class = spec.num_classes, spec.null_class
        self.enters_waves = spec.label_entry == "waves"
        timed = spec.time_embedding != "none"
        self.time_input = spec.embedded_time
        self.waves = TIME_EMBEDDINGS[spec.time_embedding](spec) if timed else None
        self.time = self.make_time(spec.waves, width) if timed else None
        classes = spec.num_classes
        self.label = None if classes is None else self.make_label(classes, spec.waves if self.enters_waves else width)

    def make_time(self, waves: int, width: int) -> nn.Module:
        """The layers between the waves and the embedding."""
        return nn.Sequential(linear(waves, width, reads="waves"), nn.SiLU(), linear(width, width, reads="silu"))

    def make_label(self, classes: int, width: int) -> nn.Module:
        """The module that turns labels (N,) into vectors."""
        return nn.Embedding(classes + self.null_class, width)

    def join(self, time: Tensor, label: Tensor) -> Tensor:
        """Timestep's and label's vectors together."""
        return time + label

    def forward(self, timestep: Any, class_labels: Any, batch: int) -> Tensor:
        """Embed; raises `ValueError` for a condition that is missing or that this network does not take."""
        device = next(self.parameters()).device
        label = self._label_vectors(class_labels, batch, device)
        if self.waves is None:
            if timestep is not None:
                raise ValueError("this network was built without a time embedding: call it without a timestep")
            assert label is not None
            return label
        if timestep is None:
            raise ValueError("this network is conditioned on the timestep: call it with one")
        assert self.time is not None
        waves = self.waves(TIME_INPUTS[self.time_input](per_sample("timestep", timestep, batch).to(device)))
        waves = waves.to(next(self.time.parameters()).dtype)
        if label is None:
            return self.time(waves)
        return self.time(waves + label) if self.enters_waves else self.join(self.time(waves), label)

    def _label_vectors(self, class_labels: Any, batch: int, device: torch.device) -> Tensor | None:
        if self.label is not None:
            return self.label(self._labels(class_labels, batch, device))
        if class_labels is not None:
            raise ValueError("this network was built without classes: call it without class_labels")
        return None

    def _labels(self, class_labels: Any, batch: int, device: torch.device) -> Tensor:
        """Labels (N,), checked."""
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


class ForcedLabels(nn.Module):
    """Class vectors of a magnitude-preserving network: (N,) labels in, (N, width) out; the null class is zero.

    One-hot labels times the square root of their number, through a forced linear layer (Karras et al. 2024).
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.classes = classes
        self.project = ForcedLinear(classes, width)

    def forward(self, labels: Tensor) -> Tensor:
        hot = nn.functional.one_hot(labels, self.classes + 1)[:, : self.classes]
        return self.project(hot.to(self.project.weight.dtype) * math.sqrt(self.classes))


class MagnitudePreservingEmbedding(ConditionEmbedding):
    """The embedding of EDM2 (Karras et al. 2024, Fig. 21): one forced layer behind the waves, labels in an mp sum."""

    def __init__(self, spec: UNetSpec):
        super().__init__(spec)
        self.balance = spec.label_balance

    def make_time(self, waves: int, width: int) -> nn.Module:
        return ForcedLinear(waves, width)

    def make_label(self, classes: int, width: int) -> nn.Module:
        return ForcedLabels(classes, width)

    def join(self, time: Tensor, label: Tensor) -> Tensor:
        return mp_sum(time, label, self.balance)


def make_embedding(spec: UNetSpec) -> ConditionEmbedding:
    """The embedding of a network that is conditioned on something."""
    forced = spec.placement.weights == "mp_forced"
    return (MagnitudePreservingEmbedding if forced else ConditionEmbedding)(spec)


def per_sample(name: str, value: Any, batch: int) -> Tensor:
    """A condition as a tensor (batch,), from one value for all or one per sample; `ValueError` names it otherwise."""
    tensor = torch.as_tensor(value)
    if tensor.ndim > 1 or tensor.numel() not in (1, batch):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected one value, or {batch}: one per sample")
    return tensor.reshape(-1).expand(batch)


class ConditionedNorm(nn.Module):
    """A norm through which the embedding enters a block: (N, C, *space) and (N, E) in, (N, C, *space) out.

    With s, b linear in SiLU(embedding): `none` norm(h); `add` norm(h + b) (Ho et al. 2020); `scale_shift`
    norm(h) (1 + s) + b (Dhariwal & Nichol 2021, AdaGN); `scale` norm(h) (1 + s). Both start at zero.
    """

    PARTS: ClassVar = {"none": 0, "add": 1, "scale": 1, "scale_shift": 2}

    def __init__(
        self,
        norm: nn.Module,
        mode: str,
        channels: int,
        embedding_channels: int | None,
        weights: Weights = "plain",
    ):
        super().__init__()
        self.norm = norm
        self.mode = mode if embedding_channels is not None else "none"
        parts = self.PARTS[self.mode]
        self.activation = make_activation("silu", weights)
        width = embedding_channels or 0
        self.project = zero_(linear(width, parts * channels, weights=weights, gained=True)) if parts else None

    def forward(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        if self.project is None:
            return self.norm(h)
        added, scale, shift = self.entries(embedding, h.ndim, h.dtype)
        h = self.norm(h if added is None else h + added)
        h = h if scale is None else h * scale
        return h if shift is None else h + shift

    def entries(self, embedding: Tensor | None, axes: int, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        """What is added before the norm, and the factor and what is added behind it: (N, C, 1, ...), or none.

        axes: of what is normalised. dtype: of it.
        """
        if self.project is None:
            return None, None, None
        assert embedding is not None
        entry = self.project(self.activation(embedding))
        entry = entry.reshape(*entry.shape, *(1,) * (axes - 2)).to(dtype)
        if self.mode == "add":
            return entry, None, None
        scale, *shift = entry.chunk(self.PARTS[self.mode], dim=1)
        return None, 1 + scale, shift[0] if shift else None
