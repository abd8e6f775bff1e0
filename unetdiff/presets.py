"""The named networks of the literature, each one setting of `UNet`. No torch: settings files name them too."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # Ho et al. 2020, appendix B: CIFAR-10 at 32x32, 35.7M parameters.
    "ddpm_cifar10": {
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
    # Dhariwal & Nichol 2021, table 4: ImageNet at 64x64, class-conditional, learned variance, 296M parameters.
    "adm_64": {
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
    # Ronneberger et al. 2015, figure 1: 572 to 388 pixels, no padding, no norm, two classes.
    "unet2015": {
        "channels": [64, 128, 256, 512, 1024],
        "stem_channels": 0,
        "convolutions": "valid",
        "blocks": 1,
        "decoder_blocks": [1, 1, 1, 1, 0],
        "middle": False,
        "downsample": "max_pool",
        "upsample": "transposed",
        "up_channels": "next",
        "head_kernel": 1,
        "time_embedding": "none",
        "norm": "unet2015",
        "activation": "relu",
        "in_channels": 1,
        "out_channels": 2,
        "sample_size": 572,
    },
}


def preset(name: str) -> dict[str, Any]:
    """The settings of a named network; `ValueError` lists the names there are."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
    return dict(PRESETS[name])
