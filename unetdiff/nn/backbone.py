"""Image encoders of transformers: any `AutoBackbone`, frozen or trained, as features from fine to coarse.

`read_config` and `load_weights` read a hub name or a local folder; between them, a configuration in JSON is all that
is needed, so that a saved network builds again without the hub.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unetdiff.levels import IMAGENET_MEAN, IMAGENET_STD
from unetdiff.nn.layers import conv

VIT_LAYERS = 4  # as many layers of a plain vision transformer are returned where none are named (Ranftl et al. 2021)

# What a configuration says of its file, its labels and its ways of returning, and nothing of the layers.
_BOOKKEEPING = {
    *("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "auto_map"),
    *("id2label", "label2id", "problem_type", "stage_names", "out_indices"),
    *("return_dict", "output_hidden_states", "output_attentions"),
}
_LEVEL_NORMS = "hidden_states_norms."  # norms of what is returned; only a backbone has them, no pretrained model does
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


def read_config(name: str, features: Sequence[str] | None = None) -> dict[str, Any]:
    """The configuration of a pretrained backbone, as JSON takes it, with `out_features` set.

    Args:
        name: a name on the hub (owner/name), or a local folder that holds `config.json`.
        features: the stages to return by transformers' names, in any order. None: all but the stem; of a plain vision
            transformer, whose stages have one stride, four evenly spaced layers, the last included.

    Raises:
        ValueError: in one sentence, where transformers is not installed, the configuration cannot be had, the model
            has no backbone class, does not take RGB images, or does not have a feature of that name.
    """
    settings = _read_settings(name)
    stages: list[str] = getattr(settings, "stage_names", None) or []
    if type(settings) not in _transformers().AutoBackbone._model_mapping or not stages:
        kind = f"{name!r} is a model of type {settings.model_type!r}"
        raise ValueError(f"{kind}, which transformers cannot use as a backbone; expected one such as 'resnet'")
    if (channels := getattr(settings, "num_channels", 3)) != 3:
        raise ValueError(f"backbone {name!r} takes {channels} channels; expected one of RGB images")
    if features is not None and (not features or not {*features} <= {*stages}):
        raise ValueError(f"features {list(features)} of backbone {name!r}: expected some of {stages}")
    wanted = [stage for stage in stages if (stage != "stem" if features is None else stage in features)]
    held = json.loads(settings.to_json_string(use_diff=False))
    config = {key: value for key, value in held.items() if key not in _BOOKKEEPING} | {"out_features": wanted}
    if "reshape_hidden_states" in config:
        config["reshape_hidden_states"] = True  # maps, not sequences of tokens
    if features is None and len(probe(config)[1]) == 1:
        config["out_features"] = _evenly_spaced(wanted, VIT_LAYERS)
    return config


def probe(config: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(channels, strides) of what a backbone returns, fine to coarse, one entry per distinct stride.

    Features of equal stride count together. Nothing is downloaded or computed: the backbone runs without storage.

    Raises:
        ValueError: where transformers is not installed, the backbone does not run at other sizes than its own, or its
            strides are not whole numbers, equal along both axes.
    """
    trace = _trace(_key(config))
    return trace.channels, trace.strides


class PretrainedBackbone(nn.Module):
    """An image encoder of transformers: (N, in_channels, H, W) in [-1, 1] -> [(N, C, H / stride, W / stride)].

    Fine to coarse, one entry per distinct stride: features of equal stride stand side by side. `channels` and
    `strides` say what they are. H and W are multiples of the largest stride. Three channels are RGB, normalised to
    (x - mean) / std from [0, 1]; one channel is repeated; any other number passes a 1x1 convolution first. The
    weights are random until `load_weights`.

    frozen: nothing of the backbone learns, and it stays in evaluation mode (statistics of batch norm, dropout, drop
    path) whatever `train` says; gradients still pass through it to its input. Otherwise all parameters learn that
    something returned depends on; the others (`unused`) require no gradient, so that distributed training finds one
    for every parameter that does.

    Raises:
        ValueError: as `probe`, or for a mean or std that is not of three colours.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        in_channels: int = 3,
        *,
        frozen: bool = True,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean {list(mean)} and std {list(std)}: expected three numbers each, std above zero")
        trace = _trace(_key(config))
        self.channels, self.strides, self.unused = trace.channels, trace.strides, trace.unused
        self._map_strides, self.frozen = trace.map_strides, frozen
        self.to_rgb = nn.Identity() if in_channels in (1, 3) else conv(2, in_channels, 3, 1)
        # Numbers, not buffers: a network built without storage has nothing to fill in that its weights do not hold.
        self.mean, self.std = (tuple(map(float, values)) for values in (mean, std))
        self.backbone = _build(config)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(not frozen and name not in self.unused)
        self.train()

    def train(self, mode: bool = True) -> PretrainedBackbone:
        """As of any module, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.to_rgb(x).expand(-1, 3, -1, -1)
        mean, std = (_per_channel(x, values) for values in (self.mean, self.std))
        maps = _feature_maps(self.backbone, ((x + 1) / 2 - mean) / std)
        return [_side_by_side(maps, self._map_strides, stride) for stride in self.strides]


def load_weights(module: PretrainedBackbone, name: str) -> None:
    """Fill `module` with the pretrained weights of a hub name or a local folder, in the module's type and place.

    A checkpoint of the full model fits, its head is left out. What it lacks is an error, but for parameters without
    influence and for the norms that ConvNeXt and Swin put on each returned feature only as backbones, which start as
    plain normalisation. Weights are read from safetensors alone: a pickle may run code.

    Raises:
        ValueError: in one sentence, where there are no such weights or they do not fit.
    """
    backbone = module.backbone
    with _one_sentence(f"the weights of backbone {name!r} cannot be read"):
        found = _has_safetensors(name)
    if not found:
        raise ValueError(f"backbone {name!r} has no model.safetensors; expected one, since pickled weights are refused")
    with _one_sentence(f"the weights of backbone {name!r} cannot be read"):
        loaded, report = _from_pretrained(backbone, name)
    missing = {key for key in report["missing_keys"] if not key.startswith(_LEVEL_NORMS)} - module.unused
    unfit = sorted(missing | {key for key, *_ in report["mismatched_keys"]})
    if unfit:
        kind = f"a backbone of type {backbone.config.model_type!r} with these settings"
        held = f"{len(unfit)} tensors are missing or of another shape, {unfit[0]} the first"
        raise ValueError(f"the weights of backbone {name!r} do not fit {kind}: {held}")
    backbone.load_state_dict(loaded.state_dict())


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError("a pretrained backbone needs transformers: pip install 'unetdiff[backbones]'") from error
    return transformers


def _read_settings(name: str) -> Any:
    """transformers' configuration object of a hub name or a local folder."""
    auto_config, folder = _transformers().AutoConfig, Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"backbone folder {name!r} has no config.json; expected one as save_pretrained writes it")
    with _one_sentence(f"the configuration of backbone {name!r} cannot be read"):
        return auto_config.from_pretrained(name, trust_remote_code=False)


@contextmanager
def _one_sentence(start: str) -> Iterator[None]:
    """Whatever transformers, safetensors or the hub's client raise becomes a `ValueError`: `start`, then their line."""
    try:
        yield
    except Exception as error:  # unknown, offline, gated, damaged, of an unknown type: each has its own
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{start}: {line.rstrip('.:').replace('. ', '; ')}") from error


def _evenly_spaced(stages: Sequence[str], count: int) -> list[str]:
    """`count` of the stages, the last included, or all where there are no more."""
    count = min(count, len(stages))
    return [stages[math.ceil(len(stages) * (i + 1) / count) - 1] for i in range(count)]


def _build(config: Mapping[str, Any]) -> Any:
    """A backbone with random weights."""
    transformers = _transformers()
    return transformers.AutoBackbone.from_config(transformers.AutoConfig.for_model(**json.loads(_key(config))))


def _feature_maps(backbone: Any, images: Tensor) -> Sequence[Tensor]:
    """Normalised images (N, 3, H, W) -> the features of a backbone, (N, C, h, w) each, in the order of its stages."""
    # Swin has positions of its own only where its configuration says so, and interpolates them only if asked.
    absolute = getattr(backbone.config, "use_absolute_embeddings", False)
    return backbone(images, **({"interpolate_pos_encoding": True} if absolute else {})).feature_maps


def _per_channel(like: Tensor, values: Sequence[float]) -> Tensor:
    """Numbers as (C, 1, 1), of the type and on the device of `like`, made there without a copy."""
    return torch.cat([like.new_full((1, 1, 1), value) for value in values])


def _side_by_side(maps: Sequence[Tensor], strides: Sequence[int], stride: int) -> Tensor:
    """The maps of one stride, concatenated along the channels."""
    chosen = [feature for feature, own in zip(maps, strides, strict=True) if own == stride]
    return chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=1)


def _key(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


@dataclass(frozen=True)
class _Trace:
    """What a run without storage shows: stride of each feature map, the levels they make, parameters without use."""

    map_strides: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    unused: frozenset[str]


@lru_cache(maxsize=64)
def _trace(key: str) -> _Trace:
    """Run a backbone of this configuration on the meta device, which knows shapes and gradients but no numbers."""
    config = json.loads(key)
    patch = config.get("patch_size") or 1
    side = math.lcm(448, *(patch if isinstance(patch, list) else [patch]))  # of strides up to 64, and of 14
    _transformers()
    failure = f"a backbone of type {config.get('model_type')!r} does not run on {side} x {side} images"
    with _one_sentence(failure), torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        backbone = _build(config).eval()
        maps = _feature_maps(backbone, torch.zeros(1, 3, side, side))
        names, parameters = zip(*backbone.named_parameters(), strict=True)
        gradients = torch.autograd.grad([feature.sum() for feature in maps], parameters, allow_unused=True)
    sizes = [feature.shape[2:] for feature in maps]
    if any(height != width or side % height for height, width in sizes):
        found = sorted({f"{height} x {width}" for height, width in sizes})
        raise ValueError(f"features of {side} x {side} images are {', '.join(found)}; expected whole, equal strides")
    map_strides = tuple(side // height for height, _ in sizes)
    strides = tuple(sorted({*map_strides}))
    channels = tuple(_side_by_side(maps, map_strides, stride).shape[1] for stride in strides)
    unused = frozenset(name for name, gradient in zip(names, gradients, strict=True) if gradient is None)
    return _Trace(map_strides, channels, strides, unused)


def _has_safetensors(name: str) -> bool:
    """Whether a folder or a hub name, which is downloaded to the cache, has weights as safetensors.

    Asked first, since transformers would have the hub convert a pickle. Raises where the hub cannot be asked.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if (folder := Path(name)).is_dir():
        return any((folder / file).is_file() for file in _WEIGHT_FILES)
    for file in _WEIGHT_FILES:
        with suppress(RemoteEntryNotFoundError):
            hf_hub_download(name, file)
            return True
    return False


def _from_pretrained(backbone: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """A new backbone of the same class with the weights of `name`, and which of them were missing or did not fit.

    Through the class, not `AutoBackbone`: that one asks the hub even about a local folder.
    """
    with _quiet():
        return type(backbone).from_pretrained(
            name,
            config=copy.deepcopy(backbone.config),
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar for what is read from disk in a moment, and no table of what is left out, which `load_weights` judges."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
