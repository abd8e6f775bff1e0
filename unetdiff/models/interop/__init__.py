"""Networks of other libraries, in and out: one file per library, and `foreign.py` with the table of them.

Weights that carry a licence keep it: those of EDM and EDM2 are non-commercial. The names below are loaded when first
used, so that the command of this package answers without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unetdiff.lazy import lazy_names

if TYPE_CHECKING:
    from unetdiff.models.interop.files import load_foreign as load_foreign
    from unetdiff.models.interop.foreign import LIBRARIES as LIBRARIES
    from unetdiff.models.interop.foreign import from_foreign as from_foreign
    from unetdiff.models.interop.foreign import to_foreign as to_foreign

# The keys of LIBRARIES, known without importing torch.
LIBRARY_NAMES = ("diffusers", "guided-diffusion", "edm", "edm2", "monai")

__getattr__, __dir__ = lazy_names(
    __name__,
    {"LIBRARIES": ".foreign", "from_foreign": ".foreign", "to_foreign": ".foreign", "load_foreign": ".files"},
)
