"""Networks of other libraries, in and out: one file per library, and `foreign.py` with the table of them.

Weights that carry a licence keep it: those of EDM and EDM2 are non-commercial. The names below are loaded when first
used, so that the command of this package answers without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetdiff.models.interop.files import load_foreign as load_foreign
    from unetdiff.models.interop.foreign import LIBRARIES as LIBRARIES
    from unetdiff.models.interop.foreign import from_foreign as from_foreign
    from unetdiff.models.interop.foreign import to_foreign as to_foreign

# The keys of LIBRARIES, known without importing torch.
LIBRARY_NAMES = ("diffusers", "guided-diffusion", "edm", "edm2", "monai")

_HOME = {"LIBRARIES": "foreign", "from_foreign": "foreign", "to_foreign": "foreign", "load_foreign": "files"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
