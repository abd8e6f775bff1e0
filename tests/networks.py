"""Small networks, one per feature that a plan can have: the contract suite runs over all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unetdiff import UNet
from unetdiff.models.unet import UNetOutput
from unetdiff.presets import preset

SMALL: dict[str, Any] = {"channels": [8, 16], "blocks": 1, "in_channels": 2}

SITE = {"pos": "pre", "norm": {"kind": "group", "groups": 4}}

RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 16, 20],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3"],
}

CONVNEXT: dict[str, Any] = {
    "model_type": "convnext",
    "hidden_sizes": [8, 12],
    "depths": [1, 1],
    "num_stages": 2,
    "layer_scale_init_value": 0.5,
    "out_features": ["stage1", "stage2"],
}

NETWORKS: dict[str, dict[str, Any]] = {
    "1d": {**SMALL, "dims": 1, "attention": [False, True], "attention_heads": 2},
    "2d": {**SMALL, "attention": [False, True], "num_classes": 3, "null_class": True},
    "3d": {**SMALL, "dims": 3, "strides": [[1, 2, 2]], "num_classes": 2},
    "adm": {**SMALL, "norm": "adm", "downsample": "residual", "upsample": "residual", "attention_head_channels": 8},
    "asymmetric": {**SMALL, "downsample": "strided_asymmetric", "upsample": "transposed", "attention": True},
    "average_pool": {**SMALL, "downsample": "average_pool", "middle_attention": False},
    "max_pool": {**SMALL, "downsample": "max_pool", "padding_mode": "zeros"},
    "fourier": {**SMALL, "time_embedding": "fourier", "activation": "gelu"},
    "unconditioned": {**SMALL, "time_embedding": "none"},
    "heads": {"channels": [8, 16], "in_channels": 3, "heads": {"noise": 3, "mask": 2}},
    "three_levels": {**SMALL, "channels": [8, 16, 8], "blocks": [1, 2, 1], "dropout": 0.1, "strides": [2, 3]},
    "light_decoder": {**SMALL, "blocks": 2, "decoder_blocks": 1, "decoder_attention": True},
    "heavy_decoder": {**SMALL, "decoder_blocks": 3},
    "post_norm": {**SMALL, "norm": {"encoder": {"pos": "post"}, "decoder": {"pos": "post"}, "time": "scale"}},
    "main_norm": {
        **SMALL,
        "norm": {
            "encoder": {**SITE, "main": {"kind": "pixel", "eps": 1e-4}},
            "middle": {"pos": "none"},
            "residual": "mp",
            "concat": "mp",
            "qk": "rms",
        },
    },
    "normed_skips": {
        **SMALL,
        "norm": {
            "encoder": {"pos": "pre", "norm": {"kind": "rms"}},
            "skip": "before_concat",
            "skip_scale": "learned",
            "residual": "sqrt_half",
            "weights": "standardized",
            "qk": "l2",
            "time": "add",
        },
    },
    "normed_concat": {
        **SMALL,
        "norm": {
            "decoder": {"pos": "pre", "norm": {"kind": "layer"}},
            "input": {"kind": "group"},
            "out": {"kind": "instance"},
            "skip": "after_concat",
            "skip_scale": 0.7,
            "attention": "none",
            "time": "none",
            "zero_init": [],
        },
        "time_embedding": "none",
    },
    "mixed": {
        **SMALL,
        "channels": [8, 16, 16],
        "stem_channels": 4,
        "attention": [False, True, True],
        "attention_head_channels": [8, 4, 8],
        "decoder_attention_heads": [1, 2, 1],
        "downsample": ["residual", "strided"],
        "upsample": ["repeat", "residual"],
        "wave_channels": 12,
        "head_kernel": 1,
    },
    "ncsnpp": {
        **SMALL,
        "norm": "ncsnpp",
        "downsample": "residual",
        "upsample": "residual",
        "resample_filter": [1, 3, 3, 1],
        "resample_shortcut": "conv",
        "input_pyramid": True,
        "time_embedding": "fourier",
        "sin_first": True,
        "num_classes": 3,
        "null_class": True,
        "label_entry": "waves",
    },
    "pyramid_3d": {**SMALL, "dims": 3, "strides": [[1, 2, 2]], "input_pyramid": True, "resample_filter": [1, 1]},
    "score": {**SMALL, "time_embedding": "fourier", "time_input": "log", "divide_by_timestep": True},
    "edm2": {
        **SMALL,
        "norm": "edm2",
        "downsample": "residual",
        "upsample": "residual",
        "time_embedding": "fourier_phase",
        "num_classes": 3,
        "null_class": True,
        "attention": True,
    },
    "edm2_1d": {**SMALL, "dims": 1, "norm": "edm2", "downsample": "average_pool", "time_embedding": "fourier_phase"},
    "nnunet": {
        **SMALL,
        "norm": "nnunet",
        "stem_channels": 0,
        "middle": False,
        "downsample": "block",
        "upsample": "transposed",
        "up_channels": "next",
        "decoder_blocks": [1, 0],
        "activation": "leaky_relu",
        "head_kernel": 1,
        "time_embedding": "none",
    },
    "unet2015": {
        **SMALL,
        "dims": 1,
        "norm": "unet2015",
        "stem_channels": 0,
        "middle": False,
        "downsample": "max_pool",
        "upsample": "transposed",
        "up_channels": "next",
        "decoder_blocks": [1, 0],
        "activation": "relu",
    },
    "unpadded": {**preset("unet2015"), "channels": [4, 8], "decoder_blocks": [1, 0], "sample_size": 24},
    "strided_blocks": {**SMALL, "downsample": "block", "norm": {"encoder": "post", "decoder": "post"}},
    "pointwise_skips": {**SMALL, "channels": [8, 16, 12], "skip_fusion": "concat_1x1", "decoder_attention": True},
    "added_skips": {
        **SMALL,
        "dims": 3,
        "skip_fusion": "add",
        "norm": {"skip": "after_concat", "skip_scale": "learned"},
    },
    "gated_skips": {**SMALL, "dims": 1, "skip_fusion": "gate", "norm": "adm", "upsample": "residual"},
    "nested": {
        **SMALL,
        "channels": [8, 16, 12],
        "decoder_kind": "nested",
        "deep_supervision": True,
        "up_channels": "next",
        "skip_fusion": "add",
        "heads": {"noise": 2, "mask": 3},
        "num_classes": 2,
    },
    "nested_1d": {
        **SMALL,
        "channels": [8, 12, 16, 8],
        "strides": [2, 3, 2],
        "blocks": 2,
        "dims": 1,
        "decoder_kind": "nested",
        "upsample": ["repeat", "transposed", "residual"],
        "norm": {"preset": "edm2", "weights": "plain", "skip": "before_concat"},
    },
    "supervised": {
        **SMALL,
        "channels": [8, 16, 12],
        "strides": [2, 3],
        "deep_supervision": True,
        "heads": {"noise": 2, "mask": 3},
        "num_classes": 2,
    },
    "supervised_1d": {
        **SMALL,
        "dims": 1,
        "channels": [8, 12, 16],
        "deep_supervision": True,
        "decoder_blocks": [1, 2, 0],
        "upsample": "residual",
        "norm": "edm2",
        "time_embedding": "fourier_phase",
    },
    "supervised_3d": {
        **SMALL,
        "dims": 3,
        "channels": [8, 12, 16],
        "strides": [[1, 2, 2], 2],
        "norm": "nnunet",
        "stem_channels": 0,
        "middle": False,
        "downsample": "block",
        "upsample": "transposed",
        "up_channels": "next",
        "decoder_blocks": [1, 1, 0],
        "activation": "leaky_relu",
        "head_kernel": 1,
        "time_embedding": "none",
        "deep_supervision": True,
    },
    "transformer": {**SMALL, "transformer_layers": 2, "position_grid": 3, "attention_heads": 2, "dropout": 0.1},
    "transformer_edm2": {
        **SMALL,
        "dims": 3,
        "norm": "edm2",
        "middle": False,
        "transformer_layers": 1,
        "position_grid": 2,
        "time_embedding": "fourier_phase",
    },
    "separable": {**SMALL, "block_convolutions": "separable", "norm": "adm", "downsample": "block"},
    "separable_standardized": {
        **SMALL,
        "dims": 1,
        "block_convolutions": "separable",
        "norm": {"preset": "ddpm", "weights": "standardized"},
    },
    "separable_edm2": {**SMALL, "block_convolutions": "separable", "norm": "edm2", "time_embedding": "fourier_phase"},
    "linear": {**SMALL, "dims": 3, "upsample": "linear", "up_channels": "next", "strides": [[1, 2, 3]]},
    "narrow_decoder": {**SMALL, "decoder_channels": [4, 12], "decoder_blocks": 1, "decoder_attention": True},
    "pretrained": {
        **SMALL,
        "channels": [8, 8, 16, 16, 24],
        "decoder_blocks": 1,
        "backbone": {"config": RESNET},
        "num_classes": 2,
    },
    "pretrained_convnext": {**SMALL, "channels": [8, 12, 12], "strides": [4, 2], "backbone": {"config": CONVNEXT}},
    "pretrained_trained": {
        **SMALL,
        "in_channels": 1,
        "channels": [8, 12, 12],
        "strides": [4, 2],
        "downsample": "residual",
        "upsample": "residual",
        "backbone": {"config": CONVNEXT, "frozen": False},
    },
    "autoencoder": {**SMALL, "skip_fusion": "none", "num_classes": 2},
    "ddpm_cifar10": {**preset("ddpm_cifar10"), "channels": [8, 16, 16, 16], "blocks": 1},
    "adm_64": {**preset("adm_64"), "channels": [8, 16, 16, 24], "blocks": 1, "attention_head_channels": 8},
}


def redraw(module: nn.Module, scale: float = 0.2) -> nn.Module:
    """Give every parameter a random value, so that no zero initialisation hides what a network computes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise if parameter.ndim > 1 else 1 + noise)
    return module


def network(name: str) -> UNet:
    """One of NETWORKS with all its weights redrawn, in evaluation mode."""
    unet = UNet(**NETWORKS[name])
    redraw(unet)
    return unet.eval()


def inputs(unet: UNet, *, batch: int = 2, size: int | tuple[int, ...] = 8) -> dict[str, Any]:
    """Arguments for one call of a network."""
    space = unet.layout.fitting_size((size,) * unet.config["dims"] if isinstance(size, int) else size)
    generator = torch.Generator().manual_seed(2)
    call: dict[str, Any] = {"sample": torch.randn(batch, unet.config["in_channels"], *space, generator=generator)}
    if unet.config["time_embedding"] != "none":
        call["timestep"] = torch.linspace(10, 900, batch)
    if unet.config["num_classes"]:
        call["class_labels"] = torch.arange(batch) % unet.config["num_classes"]
    return call


def every_output(output: UNetOutput) -> list[Tensor]:
    """What a network returned: every head's output at every depth."""
    return [value for heads in (output.heads, *(output.deep or [])) for value in heads.values()]


def small_diffusers(**arguments: Any) -> Any:
    """A `UNet2DModel` of one level for 8x8 images."""
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        **arguments,
    )
    return unet.eval()
