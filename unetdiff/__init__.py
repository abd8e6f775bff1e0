"""One timestep-conditioned U-Net for denoising diffusion and for segmentation, in 1-D, 2-D and 3-D.

The public names below load on first use, so `import unetdiff` costs nothing until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unetdiff.lazy import lazy_names

__version__ = "0.1.0"

_HOMES = {
    "UNet": "unetdiff.models.unet",
    "UNetOutput": "unetdiff.models.unet",
    "UNetSpec": "unetdiff.spec",
    "FeatureNetwork": "unetdiff.models.feature_network",
    "DataFormat": "unetdiff.data.formats",
    "MaskDenoiser": "unetdiff.models.mask_denoiser",
    "Norm": "unetdiff.spec",
    "NormPlacement": "unetdiff.spec",
    "Site": "unetdiff.spec",
    "load_foreign": "unetdiff.models.interop.files",
    "load_run": "unetdiff.runs",
    "make_schedule": "unetdiff.diffusion.schedule",
    "prune": "unetdiff.models.pruning",
    "sample_images": "unetdiff.diffusion.sampler",
    "segment": "unetdiff.segmenting",
    # diffusers asks the package that a component names for the base class of its models.
    "ModelMixin": "diffusers",
}

__all__ = [*sorted(set(_HOMES) - {"ModelMixin"}), "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from unetdiff.data.formats import DataFormat as DataFormat
    from unetdiff.diffusion.sampler import sample_images as sample_images
    from unetdiff.diffusion.schedule import make_schedule as make_schedule
    from unetdiff.models.feature_network import FeatureNetwork as FeatureNetwork
    from unetdiff.models.interop.files import load_foreign as load_foreign
    from unetdiff.models.mask_denoiser import MaskDenoiser as MaskDenoiser
    from unetdiff.models.pruning import prune as prune
    from unetdiff.models.unet import UNet as UNet
    from unetdiff.models.unet import UNetOutput as UNetOutput
    from unetdiff.runs import load_run as load_run
    from unetdiff.segmenting import segment as segment
    from unetdiff.spec import Norm as Norm
    from unetdiff.spec import NormPlacement as NormPlacement
    from unetdiff.spec import Site as Site
    from unetdiff.spec import UNetSpec as UNetSpec


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
