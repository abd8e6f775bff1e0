"""The named networks of the literature, each one setting of `UNet`. No torch: settings files name them too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A named network. source: whose it is; url: where that is read; settings: of `UNet`; note: what it is for, or
    where it differs.

    All but the network of 2015 take a timestep; `time_embedding: none` (with `num_classes: none` where there are
    classes) makes any of them a network without, such as for segmentation.
    """

    source: str
    url: str
    settings: Mapping[str, Any]
    note: str


# One block of two convolutions per level and side, none between the sides, and a 1x1 convolution at the end.
_PLAIN: dict[str, Any] = {
    "stem_channels": 0,
    "blocks": 1,
    "middle": False,
    "downsample": "max_pool",
    "upsample": "transposed",
    "up_channels": "next",
    "head_kernel": 1,
    "norm": "unet2015",
    "activation": "relu",
}

# The same with a norm behind every convolution.
_NORMED: dict[str, Any] = {**_PLAIN, "norm": "nnunet", "activation": "leaky_relu"}

PRESETS: dict[str, Preset] = {
    "ddpm_cifar10": Preset(
        "Ho et al. 2020, appendix B",
        "https://arxiv.org/abs/2006.11239",
        {
            "channels": [128, 256, 256, 256],
            "blocks": 2,
            "attention": [False, True, False, False],
            "downsample": "strided_asymmetric",
            "frequency_shift": 1,
            "sin_first": True,
            "norm": "ddpm",
            "dropout": 0.1,
            "in_channels": 3,
            "sample_size": 32,
        },
        "CIFAR-10 at 32 x 32",
    ),
    "adm_64": Preset(
        "Dhariwal & Nichol 2021, table 4",
        "https://arxiv.org/abs/2105.05233",
        {
            "channels": [192, 384, 576, 768],
            "blocks": 3,
            "attention": [False, True, True, True],
            "attention_head_channels": 64,
            "downsample": "residual",
            "upsample": "residual",
            "norm": "adm",
            "dropout": 0.1,
            "in_channels": 3,
            "out_channels": 6,
            "num_classes": 1000,
            "sample_size": 64,
        },
        "ImageNet at 64 x 64, class-conditional, learned variance",
    ),
    "unet2015": Preset(
        "Ronneberger et al. 2015, figure 1",
        "https://arxiv.org/abs/1505.04597",
        {
            **_PLAIN,
            "channels": [64, 128, 256, 512, 1024],
            "decoder_blocks": [1, 1, 1, 1, 0],
            "convolutions": "valid",
            "time_embedding": "none",
            "in_channels": 1,
            "out_channels": 2,
            "sample_size": 572,
        },
        "no padding, 572 to 388 pixels; no norm, no timestep",
    ),
    "unet_same": Preset(
        "Ronneberger et al. 2015",
        "https://arxiv.org/abs/1505.04597",
        {
            **_PLAIN,
            "channels": [64, 128, 256, 512],
            "decoder_blocks": [1, 1, 1, 0],
            "in_channels": 3,
            "sample_size": 256,
        },
        "padded, and one level less; sigmoid or softmax are left to the loss",
    ),
    "genome_track": Preset(
        "after Ronneberger et al. 2015",
        "https://arxiv.org/abs/1505.04597",
        {
            "channels": [32, 64, 96, 128, 160],
            "blocks": 1,
            "strides": [4, 5, 5, 5],
            "attention": [False, False, False, False, True],
            "attention_head_channels": 32,
            "dims": 1,
            "in_channels": 4,
            "out_channels": 1,
            "sample_size": 10_000,
        },
        "one dimension, residual blocks; the four bases one-hot in, one value per base out",
    ),
    "volume": Preset(
        "Isensee et al. 2021 (nnU-Net)",
        "https://doi.org/10.1038/s41592-020-01008-z",
        {
            **_NORMED,
            "channels": [32, 64, 128, 256, 320],
            "decoder_blocks": [1, 1, 1, 1, 0],
            "downsample": "block",
            "strides": [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
            "dims": 3,
            "in_channels": 1,
            "sample_size": [16, 64, 64],
        },
        "anisotropic: slices four times as far apart as pixels",
    ),
    "satellite": Preset(
        "Ho et al. 2020, narrower",
        "https://arxiv.org/abs/2006.11239",
        {
            "channels": [64, 128, 192, 256],
            "blocks": 2,
            "attention": [False, False, False, True],
            "attention_head_channels": 64,
            "in_channels": 12,
            "sample_size": 128,
        },
        "the 12 bands of Sentinel-2 L2A",
    ),
    "attention_unet": Preset(
        "Oktay et al. 2018",
        "https://arxiv.org/abs/1804.03999",
        {
            **_NORMED,
            "channels": [16, 32, 64, 128, 256],
            "decoder_blocks": [1, 1, 1, 1, 0],
            "upsample": "repeat",
            "up_channels": "same",
            "skip_fusion": "gate",
            "dims": 3,
            "in_channels": 1,
            "sample_size": 64,
        },
        "instance norm for batch norm, no deep supervision",
    ),
    "resunet": Preset(
        "Zhang et al. 2018",
        "https://arxiv.org/abs/1711.10684",
        {
            "channels": [64, 128, 256, 512],
            "blocks": 1,
            "decoder_blocks": [1, 1, 1, 0],
            "middle": False,
            "downsample": "block",
            "upsample": "repeat",
            "head_kernel": 1,
            "activation": "relu",
            "norm": {"preset": "ddpm", "out": "none"},
            "in_channels": 3,
            "sample_size": 224,
        },
        "group norm for batch norm; a stem before the first block",
    ),
    "autoencoder": Preset(
        "Hinton & Salakhutdinov 2006",
        "https://doi.org/10.1126/science.1127647",
        {
            "channels": [64, 128, 256],
            "blocks": 2,
            "attention": [False, False, True],
            "attention_head_channels": 64,
            "skip_fusion": "none",
            "in_channels": 3,
            "sample_size": 32,
        },
        "the default network without skips: the control of experiments",
    ),
    "unet_plus_plus": Preset(
        "Zhou et al. 2018",
        "https://arxiv.org/abs/1807.10165",
        {
            **_NORMED,
            "channels": [32, 64, 128, 256, 512],
            "decoder_kind": "nested",
            "deep_supervision": True,
            "in_channels": 3,
            "sample_size": 96,
        },
        "instance norm; `prune` takes out the U of any depth",
    ),
    "transunet": Preset(
        "Chen et al. 2021",
        "https://arxiv.org/abs/2102.04306",
        {
            "channels": [64, 128, 256, 512, 768],
            "decoder_channels": [16, 64, 128, 256, 512],
            "blocks": 1,
            "decoder_blocks": 1,
            "middle": False,
            "transformer_layers": 12,
            "attention_head_channels": 64,
            "position_grid": 14,
            "upsample": "linear",
            "up_channels": "next",
            "norm": {"preset": "ddpm", "weights": "standardized"},
            "in_channels": 3,
            "sample_size": 224,
        },
        "the layers of ViT-B/16 behind residual blocks of our own",
    ),
    "mobile_unet": Preset(
        "Howard et al. 2017 (separable convolutions)",
        "https://arxiv.org/abs/1704.04861",
        {
            "channels": [32, 64, 128, 160],
            "blocks": 1,
            "block_convolutions": "separable",
            "middle_attention": False,
            "downsample": "average_pool",
            "upsample": "repeat",
            "in_channels": 3,
            "sample_size": 128,
        },
        "under a million parameters; `torch.export` takes it",
    ),
    "pretrained": Preset(
        "He et al. 2016 (the backbone named)",
        "https://arxiv.org/abs/1512.03385",
        {
            "channels": [32, 32, 64, 96, 128, 256],
            "blocks": 1,
            "decoder_blocks": 1,
            "backbone": "microsoft/resnet-18",
            "in_channels": 3,
            "sample_size": 224,
        },
        "any backbone of transformers; its weights are downloaded",
    ),
}


def preset(name: str) -> dict[str, Any]:
    """The settings of a named network; `ValueError` lists the names there are."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
    return dict(PRESETS[name].settings)
