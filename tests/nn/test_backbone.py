"""Image encoders of transformers: against transformers itself, with small random backbones of five kinds."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from unetdiff.levels import IMAGENET_MEAN, IMAGENET_STD
from unetdiff.nn.backbone import PretrainedBackbone, load_weights, probe, read_config

transformers = pytest.importorskip("transformers")


@dataclass(frozen=True)
class Family:
    """One kind of backbone: its small settings, and what the architecture says of its levels, fine to coarse."""

    settings: dict[str, Any]
    full: str  # the class that a pretrained checkpoint is saved with
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    unused: tuple[str, ...] = ()
    new_norms: bool = False  # whether the backbone has norms that the full model lacks


STAGES = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 2, 1, 1]}
RESNET = {"model_type": "resnet", "embedding_size": 8, **STAGES}
FAMILIES = {
    "resnet_basic": Family(
        {**RESNET, "layer_type": "basic"}, "ResNetForImageClassification", (4, 8, 16, 32), (8, 12, 16, 20)
    ),
    "resnet_bottleneck": Family(RESNET, "ResNetModel", (4, 8, 16, 32), (8, 12, 16, 20)),
    "convnext": Family(
        {"model_type": "convnext", "drop_path_rate": 0.5, "layer_scale_init_value": 0.5, **STAGES},
        "ConvNextForImageClassification",
        (4, 8, 16, 32),
        (8, 12, 16, 20),
        new_norms=True,
    ),
    "swin": Family(
        {"model_type": "swin", "embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 4], "window_size": 3},
        "SwinForImageClassification",
        (4, 8, 16),
        (8, 16, 32),
        ("swin.layernorm.weight", "swin.layernorm.bias"),
        new_norms=True,
    ),
    "dinov2": Family(
        {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 56},
        "Dinov2ForImageClassification",
        (14,),
        (4 * 16,),
        ("embeddings.mask_token",),
    ),
}
each_family = pytest.mark.parametrize("family", FAMILIES)


def own_config(family: str) -> Any:
    """transformers' configuration object."""
    return transformers.AutoConfig.for_model(**copy.deepcopy(FAMILIES[family].settings))


def scramble_(module: nn.Module) -> Any:
    """Random values in every weight and statistic, so that none is at its start; returns the module."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.normal_(std=0.2)
    return module


def save_full(family: str, folder: Path) -> nn.Module:
    """A full model with random weights, saved as a pretrained one is."""
    full = scramble_(getattr(transformers, FAMILIES[family].full)(own_config(family)))
    full.save_pretrained(folder)
    return full


@cache
def config_text(family: str) -> str:
    """The configuration of a family with its default features, as JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.AutoConfig, "from_pretrained", lambda name, **_: own_config(name))
        return json.dumps(read_config(family))


def make(family: str, in_channels: int = 3, **options: Any) -> PretrainedBackbone:
    """A backbone of ours with random weights."""
    return scramble_(PretrainedBackbone(json.loads(config_text(family)), in_channels, **options))


def images(module: PretrainedBackbone, channels: int = 3, rows: int = 2, columns: int = 3) -> Tensor:
    """Two random images in [-1, 1] of so many positions at the coarsest level."""
    stride = module.strides[-1]
    return torch.rand(2, channels, rows * stride, columns * stride) * 2 - 1


def normalized(x: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] -> as transformers' image processors would hand it to the model."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((x * 0.5 + 0.5) - mean) / std


def total(features: list[Tensor]) -> Tensor:
    """A number that depends on every feature."""
    return torch.stack([feature.square().mean() for feature in features]).sum()


# what it computes


@each_family
def test_features_are_those_of_transformers(family: str) -> None:
    module = make(family).eval()
    theirs = transformers.AutoBackbone.from_config(own_config(family)).eval()
    theirs.config.out_features = module.backbone.config.out_features
    if FAMILIES[family].new_norms:  # they are built for the features that were asked for
        theirs = transformers.AutoBackbone.from_config(theirs.config).eval()
    theirs.load_state_dict(module.backbone.state_dict())
    x = images(module)
    maps = theirs(normalized(x)).feature_maps
    expected = list(maps) if len(module.strides) > 1 else [torch.cat(maps, dim=1)]
    assert_close(module(x), expected)


@each_family
@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 3), (3, 5)])
def test_levels_are_those_of_the_architecture_at_any_multiple(family: str, rows: int, columns: int) -> None:
    known = FAMILIES[family]
    module = make(family)
    assert (
        (known.channels, known.strides) == (module.channels, module.strides) == probe(json.loads(config_text(family)))
    )
    height, width = rows * known.strides[-1], columns * known.strides[-1]
    features = module.eval()(torch.rand(2, 3, height, width))
    shapes = [(2, c, height // s, width // s) for c, s in zip(known.channels, known.strides, strict=True)]
    assert [tuple(feature.shape) for feature in features] == shapes


def test_features_of_equal_stride_stand_side_by_side_in_order(tmp_path: Path) -> None:
    save_full("resnet_basic", tmp_path)
    config = read_config(str(tmp_path), ["stage2", "stem", "stage1"])
    assert config["out_features"] == ["stem", "stage1", "stage2"]
    assert probe(config) == ((8 + 8, 12), (4, 8))
    module = scramble_(PretrainedBackbone(config)).eval()
    x = images(module)
    stem, first, second = module.backbone(normalized(x)).feature_maps
    assert_close(module(x), [torch.cat([stem, first], 1), second])


def test_a_plain_transformer_returns_four_layers_evenly_spaced(tmp_path: Path) -> None:
    settings = {**FAMILIES["dinov2"].settings, "num_hidden_layers": 12, "reshape_hidden_states": False}
    transformers.AutoConfig.for_model(**settings).save_pretrained(tmp_path)
    config = read_config(str(tmp_path))
    assert config["out_features"] == ["stage3", "stage6", "stage9", "stage12"]
    assert probe(config) == ((4 * 16,), (14,))  # maps, though this configuration asks for tokens
    assert json.loads(config_text("dinov2"))["out_features"] == ["stage2", "stage3", "stage4", "stage5"]


def test_positions_of_a_swin_transformer_follow_the_size() -> None:
    settings = {**json.loads(config_text("swin")), "use_absolute_embeddings": True, "image_size": 32}
    module = scramble_(PretrainedBackbone(settings)).eval()
    assert [tuple(feature.shape[2:]) for feature in module(images(module))] == [(8, 12), (4, 6), (2, 3)]


def test_one_channel_is_repeated_and_others_are_mixed_to_three() -> None:
    gray = make("resnet_basic", 1).eval()
    x = images(gray, 1)
    assert_close(gray(x), gray(x.repeat(1, 3, 1, 1)))
    module = make("resnet_basic", 12).eval()
    x = images(module, 12)
    mixed = F.conv2d(x, module.to_rgb.weight, module.to_rgb.bias)  # pyright: ignore
    assert_close(module(x), list(module.backbone(normalized(mixed)).feature_maps))


def test_mean_and_std_are_of_numbers_in_zero_to_one() -> None:
    module = make("convnext", mean=(0.5, 0.5, 0.5), std=(1, 1, 1)).eval()
    x = images(module)
    assert_close(module(x), list(module.backbone(x / 2).feature_maps))


# what learns


@each_family
@pytest.mark.parametrize("in_channels", [3, 4])
def test_frozen_means_frozen(family: str, in_channels: int) -> None:
    module = make(family, in_channels)
    before = copy.deepcopy(module.backbone.state_dict())
    x = images(module, in_channels).requires_grad_()
    first = module.train()(x)
    assert not any(inner.training for inner in module.backbone.modules())
    total(first).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    learns = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert learns == ({"to_rgb.weight", "to_rgb.bias"} if in_channels == 4 else set())
    assert all(parameter.grad is None for parameter in module.backbone.parameters())
    assert_close(module.backbone.state_dict(), before, rtol=0, atol=0)
    assert_close(module(x), first, rtol=0, atol=0)  # no dropout, no drop path


@each_family
def test_every_parameter_that_learns_gets_a_gradient(family: str) -> None:
    module = make(family, 4, frozen=False)
    assert module.backbone.training
    total(module(images(module, 4))).backward()
    idle = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    still = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    assert idle == still == {f"backbone.{name}" for name in FAMILIES[family].unused}
    assert not module.eval().backbone.training


def test_stages_behind_the_last_feature_do_not_learn() -> None:
    config = {**json.loads(config_text("resnet_basic")), "out_features": ["stage2"]}
    module = PretrainedBackbone(config, frozen=False)
    names = {name for name, _ in module.backbone.named_parameters()}
    assert module.unused == {name for name in names if name.startswith(("encoder.stages.2", "encoder.stages.3"))}
    total(module(images(module))).backward()
    used = [parameter.grad for name, parameter in module.backbone.named_parameters() if name not in module.unused]
    assert None not in used


def test_batch_statistics_move_where_it_is_not_frozen() -> None:
    module = make("resnet_basic", frozen=False)
    before = copy.deepcopy(dict(module.named_buffers()))
    module(images(module))
    moved = {name for name, buffer in module.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == {name for name in before if name not in ("mean", "std")}


# how it is used


@each_family
def test_it_runs_in_half_precision_and_under_autocast(family: str) -> None:
    module = make(family, 4).eval()
    x = images(module, 4)
    plain = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(x)
    half = copy.deepcopy(module).to(torch.bfloat16)(x.bfloat16())
    assert {feature.dtype for feature in half} == {torch.bfloat16}
    for one, other in ((mixed, plain), (half, plain)):
        for got, expected in zip(one, other, strict=True):
            assert (got.float() - expected).norm() < 0.1 * expected.norm()


@each_family
def test_it_compiles_as_one_graph(family: str) -> None:
    module = make(family).eval()
    x = images(module)
    torch._dynamo.reset()
    assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(x), module(x))


@each_family
def test_it_is_built_without_storage_and_filled(family: str) -> None:
    module = make(family, 4).eval()
    with init_empty_weights():
        empty = PretrainedBackbone(json.loads(config_text(family)), 4)
    assert next(empty.backbone.parameters()).is_meta
    empty.load_state_dict(module.state_dict(), assign=True)
    x = images(module, 4)
    assert_close(empty.eval()(x), module(x), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in empty.backbone.parameters())


def test_probing_changes_no_random_state() -> None:
    config = {**json.loads(config_text("swin")), "window_size": 5}
    before = torch.get_rng_state()
    probe(config)
    assert torch.equal(torch.get_rng_state(), before)


# weights


@each_family
def test_weights_of_the_full_model_load(family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    full = save_full(family, tmp_path).state_dict()
    capfd.readouterr()
    module = PretrainedBackbone(read_config(str(tmp_path)))
    verbosity = transformers.utils.logging.get_verbosity()
    load_weights(module, str(tmp_path))
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.get_verbosity() == verbosity
    assert transformers.utils.logging.is_progress_bar_enabled()
    theirs = {**full, **{name.partition(".")[2]: tensor for name, tensor in full.items()}}
    new = {}
    for name, tensor in module.backbone.state_dict().items():
        expected = theirs.get(name)
        if expected is None:
            new[name] = tensor
            continue
        assert_close(tensor, expected, rtol=0, atol=0)
    norms = FAMILIES[family].new_norms
    assert len(new) == (2 * len(module.strides) if norms else 0)
    assert all(torch.equal(tensor, torch.full_like(tensor, name.endswith("weight"))) for name, tensor in new.items())


def test_weights_of_a_backbone_load_with_its_norms(tmp_path: Path) -> None:
    module = make("convnext")
    module.backbone.save_pretrained(tmp_path)
    other = PretrainedBackbone(read_config(str(tmp_path)), frozen=False).to(torch.float64)
    load_weights(other, str(tmp_path))
    assert_close(other.backbone.state_dict(), module.backbone.double().state_dict(), rtol=0, atol=0)


def drop(folder: Path, name: str) -> None:
    """Take one tensor out of the saved weights."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_weights_without_influence_may_be_missing(tmp_path: Path) -> None:
    full = save_full("dinov2", tmp_path)
    drop(tmp_path, "dinov2.embeddings.mask_token")
    module = make("dinov2")
    load_weights(module, str(tmp_path))
    assert_close(module.backbone.layernorm.weight, full.dinov2.layernorm.weight, rtol=0, atol=0)  # pyright: ignore


def drop_weight(folder: Path) -> None:
    drop(folder, "resnet.encoder.stages.1.layers.0.layer.0.convolution.weight")


def widen(folder: Path) -> None:
    """Weights of a model that is wider in its last stage: three convolutions, each with four vectors of its norm."""
    settings = {**FAMILIES["resnet_basic"].settings, "hidden_sizes": [8, 12, 16, 24]}
    config = transformers.AutoConfig.for_model(**settings)
    transformers.ResNetForImageClassification(config).save_pretrained(folder)


def pickle(folder: Path) -> None:
    """The weights as PyTorch's pickle."""
    (folder / "model.safetensors").unlink()
    torch.save({"resnet.weight": torch.ones(1)}, folder / "pytorch_model.bin")


def truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x08")


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (drop_weight, r"do not fit .* 'resnet' .*: 1 tensors .* encoder\.stages\.1\.layers\.0\.layer\.0\.conv\S+ the"),
        (widen, r"do not fit .*: 15 tensors are missing or of another shape, encoder\.stages\.3\."),
        (pickle, r"has no model\.safetensors; expected one, since pickled weights are refused"),
        (truncate, r"the weights of backbone .* cannot be read: "),
    ],
)
def test_weights_that_do_not_fit_are_an_error(damage: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    save_full("resnet_basic", tmp_path)
    module = make("resnet_basic")
    before = copy.deepcopy(module.state_dict())
    damage(tmp_path)
    with pytest.raises(ValueError, match=sentence) as error:
        load_weights(module, str(tmp_path))
    assert "\n" not in str(error.value)
    assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_weights_of_an_unknown_name_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"the weights of backbone 'nobody/nothing' cannot be read: ") as error:
        load_weights(make("resnet_basic"), "nobody/nothing")
    assert "\n" not in str(error.value)


# configurations


def write(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text) and None


@pytest.mark.parametrize(
    "prepare, features, sentence",
    [
        (lambda folder: None, None, r"has no config\.json"),
        (write("{}"), None, r"cannot be read: Unrecognized model in [^.]+; Should have a `model_type` key"),
        (write("{"), None, r"the configuration of backbone .* cannot be read: "),
        (write('{"model_type": "resnet", "depths": "many"}'), None, r"the configuration of backbone .* cannot be read"),
        (write('{"model_type": "vit"}'), None, r"of type 'vit', which transformers cannot use as a backbone"),
        (write('{"model_type": "timm_backbone"}'), None, r"of type 'timm_backbone', which transformers cannot use"),
        (write('{"model_type": "resnet", "num_channels": 4}'), None, r"takes 4 channels; expected one of RGB images"),
        (
            write('{"model_type": "resnet", "depths": [1]}'),
            ["top"],
            r"\['top'\] .* expected some of \['stem', 'stage1'\]",
        ),
        (write('{"model_type": "resnet"}'), [], r"features \[\] of backbone .* expected some of"),
    ],
)
def test_configurations_that_do_not_fit_are_an_error(
    prepare: Callable[[Path], None], features: list[str] | None, sentence: str, tmp_path: Path
) -> None:
    prepare(tmp_path)
    with pytest.raises(ValueError, match=sentence) as error:
        read_config(str(tmp_path), features)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nobody/nothing", "no/such/place"])
def test_an_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=rf"the configuration of backbone '{name}' cannot be read: ") as error:
        read_config(name)
    assert "\n" not in str(error.value)


def test_a_model_of_one_size_is_refused() -> None:
    settings = {"model_type": "vitpose_backbone", "image_size": [32, 32], "out_features": ["stage1"]}
    with pytest.raises(ValueError, match=r"a backbone of type 'vitpose_backbone' does not run on 448 x 448 images: "):
        probe(settings)


@pytest.mark.parametrize("options", [{"mean": (0.5,)}, {"std": (1, 1)}, {"std": (1, 0, 1)}])
def test_a_mean_or_std_not_of_three_colours_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected three numbers each, std above zero"):
        make("resnet_basic", **options)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**json.loads(config_text("resnet_basic")), "embedding_size": 10}
    monkeypatch.setitem(sys.modules, "transformers", None)
    for use in (lambda: read_config("nobody/nothing"), lambda: probe(config), lambda: PretrainedBackbone(config)):
        with pytest.raises(ValueError, match=r"pip install 'unetdiff\[backbones\]'"):
            use()
