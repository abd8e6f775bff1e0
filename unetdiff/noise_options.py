"""Settings of segmentation from noisy images. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unetdiff.data.mask_options import check_read
from unetdiff.typed import check_at_least, check_types

NoiseInputName = Literal["none", "gaussian", "self"]
NOISY: tuple[NoiseInputName, ...] = ("gaussian", "self")


@dataclass(frozen=True, kw_only=True)
class NoiseInputConfig:
    """Noise in the images that a segmentation network is given, at a timestep that it is told.

    In training the timestep is drawn for every image; predictions are made at `model.timestep`.

    Args:
        kind: `none`; `gaussian`, sqrt(alpha_bar) x + sqrt(1 - alpha_bar) epsilon; or `self`, the same with the image
            itself for epsilon, so that only its amplitude varies (Noise2Map).
        schedule: of alpha_bar; with `model.init_from`, that of the denoiser.
        num_train_timesteps: number of noise levels.
    """

    kind: NoiseInputName = "none"
    schedule: Literal["linear", "cosine", "zero_terminal_snr"] = "linear"
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 2, "num_train_timesteps")
        check_read(self, "noise_input", dict.fromkeys(("schedule", "num_train_timesteps"), (("kind",), NOISY)))
