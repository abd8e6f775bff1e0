"""EDM (Karras et al. 2022, https://arxiv.org/abs/2206.00364): `SongUNet` as DDPM++ and NCSN++, and `DhariwalUNet`.

Written from the paper (tables 1 and 7, appendix C) and from the names in published weights, which carry a
non-commercial licence. `timestep` is the library's noise label, c_noise = log(sigma) / 4.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unetdiff.models.interop.arguments import complete, refuse, require_positive
from unetdiff.models.interop.library import Arguments, Library
from unetdiff.models.interop.weights import Form, Weight, address, layer, layers, pointwise, projection
from unetdiff.models.plan import Plan
from unetdiff.models.step import Step


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """The arguments that both constructors have, with their defaults, and the name of the class."""

    class_name: str
    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    channel_mult_emb: int = 4
    dropout: float = 0.1
    label_dropout: float = 0


@dataclass(frozen=True, kw_only=True)
class _SongUNet(_Shared):
    model_channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: Sequence[int] = (16,)
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: Sequence[int] = (1, 1)


@dataclass(frozen=True, kw_only=True)
class _DhariwalUNet(_Shared):
    model_channels: int = 192
    channel_mult: Sequence[int] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: Sequence[int] = (32, 16, 8)


_NETWORKS = {"SongUNet": _SongUNet, "DhariwalUNet": _DhariwalUNet}
_SUPPORTED = {
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "residual"),
    "decoder_type": ("standard",),
}
_DHARIWAL_HEAD_CHANNELS = 64


def _complete(given: Arguments) -> dict[str, Any]:
    name = given.get("class_name") if isinstance(given, Mapping) else None
    if name not in _NETWORKS:
        raise ValueError(f"edm: class_name is {name!r}; expected {' or '.join(map(repr, _NETWORKS))}")
    arguments = complete(name, given, _NETWORKS[name])
    require_positive(name, arguments, "img_resolution", "model_channels", "channel_mult", "channel_mult_emb")
    require_positive(name, arguments, "num_blocks", *({"channel_mult_noise"} & arguments.keys()))
    if name == "SongUNet":
        refuse(name, arguments, _SUPPORTED)
    return arguments


def _resolution(arguments: Arguments, level: int) -> int:
    return arguments["img_resolution"] >> level


def _settings(arguments: Arguments) -> dict[str, Any]:
    own = {"SongUNet": _song, "DhariwalUNet": _dhariwal}[arguments["class_name"]](arguments)
    return {
        "blocks": arguments["num_blocks"],
        "downsample": "residual",
        "upsample": "residual",
        "time_input": "timestep",
        "time_channels": arguments["model_channels"] * arguments["channel_mult_emb"],
        "dropout": arguments["dropout"],
        "in_channels": arguments["in_channels"],
        "out_channels": arguments["out_channels"],
        "num_classes": arguments["label_dim"] or None,
        "null_class": bool(arguments["label_dim"]),
        "sample_size": arguments["img_resolution"],
        **own,
    }


def _song(arguments: Arguments) -> dict[str, Any]:
    """Table 7, columns DDPM++ and NCSN++: one head, in the decoder behind the last block of a level only."""
    width, blocks = arguments["model_channels"], arguments["num_blocks"]
    attends = _attends(arguments)
    taps = list(arguments["resample_filter"])
    return {
        "channels": [width * factor for factor in arguments["channel_mult"]],
        "stem_channels": width,
        "attention": attends,
        "decoder_attention": [[False] * blocks + [on] for on in attends],
        "resample_filter": None if taps == [1, 1] else taps,
        "resample_shortcut": "conv",
        "input_pyramid": arguments["encoder_type"] == "residual",
        "time_embedding": {"positional": "sinusoidal", "fourier": "fourier"}[arguments["embedding_type"]],
        "wave_channels": width * arguments["channel_mult_noise"],
        "frequency_shift": 1,
        "sin_first": True,
        "label_entry": "waves",
        "norm": "ddpmpp",
    }


def _dhariwal(arguments: Arguments) -> dict[str, Any]:
    """Table 7, column ADM."""
    width = arguments["model_channels"]
    channels = [width * factor for factor in arguments["channel_mult"]]
    heads = [count // _DHARIWAL_HEAD_CHANNELS for count in channels]
    return {
        "channels": channels,
        "attention": [on and count > 0 for on, count in zip(_attends(arguments), heads, strict=True)],
        "middle_attention": heads[-1] > 0,
        "attention_heads": [max(count, 1) for count in heads],
        "time_embedding": "sinusoidal",
        "wave_channels": width,
        "norm": "adm",
    }


def _attends(arguments: Arguments) -> list[bool]:
    """Whether each level attends, fine to coarse."""
    levels = range(len(arguments["channel_mult"]))
    return [_resolution(arguments, level) in arguments["attn_resolutions"] for level in levels]


def _prepare(arguments: Arguments, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the filters, which are settings, and without what augmentation labels enter by, absent in sampling."""
    filters = {name: tensor for name, tensor in state.items() if name.endswith(".resample_filter")}
    taps = torch.tensor(arguments.get("resample_filter", [1, 1]), dtype=torch.float32)
    expected = torch.outer(taps, taps) / taps.sum() ** 2
    for name, held in filters.items():
        if held.shape[-2:] != expected.shape or not torch.allclose(held.float(), expected.expand_as(held), atol=1e-3):
            raise ValueError(f"{name!r} in the state dict is another filter than resample_filter {taps.tolist()}")
    rest = {name: tensor for name, tensor in state.items() if name not in filters}
    if arguments["augment_dim"]:
        if rest.pop("map_augment.weight", None) is None:
            raise ValueError("the state dict has no 'map_augment.weight', which augment_dim needs")
        warnings.warn("map_augment.weight is left out: augmentation labels are zero in sampling", stacklevel=4)
    return rest


def _labels(arguments: Arguments) -> Form:
    """A table of vectors here, its last row the null class; a linear layer of one-hot labels there."""
    count = arguments["label_dim"]
    if arguments["class_name"] == "DhariwalUNet":

        def table(given: Any) -> Tensor:
            return torch.cat([given[0].T, torch.zeros_like(given[0].T[:1])])

    else:  # one-hot labels times sqrt(count), and a bias

        def table(given: Any) -> Tensor:
            weight, bias = (entry.float() for entry in given)  # the sum of two halves rounds
            return torch.cat([weight.T * math.sqrt(count) + bias, bias[None]])

    return Form(table, _one_way)


def _one_way(tensor: Tensor) -> Any:
    raise NotImplementedError("networks of EDM only come in")


_BLOCK = {"norm0": "norm1", "conv0": "conv1", "affine": "norm2.project", "norm1": "norm2.norm", "conv1": "conv2"}
_BLOCK |= {"skip": "shortcut"}


def _block(step: Step, theirs: str) -> list[Weight]:
    weights = layers(_BLOCK, theirs, f"{address(step)}.residual")
    if step.heads:
        ours = f"{address(step)}.attention"
        weights += layer(f"{ours}.norm", f"{theirs}.norm2")
        weights += layer(f"{ours}.query_key_value", f"{theirs}.qkv", projection("h c q", step.heads, 2))
        weights += layer(f"{ours}.out", f"{theirs}.proj", pointwise(2))
    return weights


def _down(step: Step, theirs: str) -> list[Weight]:
    if not step.stream:
        return _block(step, theirs)
    inner = [Weight(w.ours.replace(".residual.", ".down.residual."), w.theirs, w.form) for w in _block(step, theirs)]
    return inner + layer(f"{address(step)}.stream.conv", theirs.removesuffix("_down") + "_aux_residual")


def _head(step: Step, at: str, arguments: Arguments) -> list[Weight]:
    names = (f"{at}_aux_norm", f"{at}_aux_conv") if arguments["class_name"] == "SongUNet" else ("out_norm", "out_conv")
    return layer(f"{address(step)}.0", names[0]) + layer(f"{address(step)}.2", names[1])


def _named(step: Step) -> str:
    """What follows the resolution in the name of a block of theirs."""
    if step.kind != "block":
        return step.kind
    return f"{'in' if step.side == 'middle' else 'block'}{step.number}"


_STEPS: dict[str, Callable[[Step, str, Arguments], list[Weight]]] = {
    "stem": lambda step, at, arguments: layer(f"{address(step)}.module", f"{at}_conv"),
    "block": lambda step, at, arguments: _block(step, f"{at}_{_named(step)}"),
    "down": lambda step, at, arguments: _down(step, f"{at}_{_named(step)}"),
    "up": lambda step, at, arguments: _block(step, f"{at}_{_named(step)}"),
    "head": lambda step, at, arguments: _head(step, at, arguments),
}


def _walk(plan: Plan, arguments: Arguments) -> list[Weight]:
    """The steps of the plan, by the names that EDM gives them: resolution first."""
    weights: list[Weight] = []
    for step in plan.steps:
        side, size = "enc" if step.side == "encoder" else "dec", _resolution(arguments, step.level)
        weights += _STEPS[step.kind](step, f"{side}.{size}x{size}", arguments)
    return weights


def _weights(plan: Plan, arguments: Arguments) -> list[Weight]:
    weights = _walk(plan, arguments)
    for index, name in ((0, "map_layer0"), (2, "map_layer1")):
        weights += layer(f"embedding.time.{index}", name)
    if arguments.get("embedding_type") == "fourier":
        weights.append(Weight("embedding.waves.frequency", ("map_noise.freqs",)))
    if arguments["label_dim"]:
        biased = arguments["class_name"] == "SongUNet"
        names = ("map_label.weight", "map_label.bias") if biased else ("map_label.weight",)
        weights.append(Weight("embedding.label.weight", names, _labels(arguments)))
    return weights


EDM = Library(complete=_complete, settings=_settings, weights=_weights, prepare=_prepare, noise="edm")
