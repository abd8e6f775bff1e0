"""Imports run one way, and what should be light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT

# A module imports only from those named before it (or from its own row).
ORDER = [
    ["typed", "lazy", "files", "progress", "command"],
    ["placement", "levels"],
    ["architecture"],
    ["spec"],
    ["presets"],
    ["diffusion.options", "segmentation.options"],
    ["run_config"],
    ["precision"],
    ["data.mask_options", "feature_options", "mask_diffusion_options", "noise_options", "objective_options"],
    ["config", "joint_options", "segment_config"],
    ["pipeline_config"],
    ["nn"],
    ["models"],
    ["diffusion", "segmentation"],
    ["data"],
    ["figures"],
    ["mask_figures"],
    ["outputs", "runs"],
    ["drawing"],
    ["members"],
    ["segmenting"],
    ["masks.inputs", "masks.outputs", "masks.settings"],
    ["masks.scores", "masks.objects"],
    ["masks.judging"],
    ["training.processes"],
    ["masks.command"],
    ["convert"],
    ["models.interop.__main__"],
    ["training"],
]


def layer(module: str) -> int:
    """The row of ORDER of a module below unetdiff; the longest name that fits decides."""
    fits = [
        (len(name), row)
        for row, names in enumerate(ORDER)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    assert fits, f"{module} has no place in the order"
    return max(fits)[1]


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, without `unetdiff.`; for type checkers only does not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only or not isinstance(node, ast.ImportFrom):
            continue
        parent = path.relative_to(ROOT / "unetdiff").parent
        if node.level:
            above = list(parent.parts)[: len(parent.parts) - node.level + 1]
            found.add(".".join([*above, *(node.module or "").split(".")]).strip("."))
        elif (node.module or "").startswith("unetdiff."):
            found.add((node.module or "").removeprefix("unetdiff."))
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "unetdiff").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_run_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT / "unetdiff").with_suffix("").parts)
    if path.name == "__init__.py":
        return  # a package's front door
    for other in imported(path):
        assert layer(other) <= layer(module), f"{module} imports {other}"


LIGHT = ["", ".config", ".run_config", ".convert", ".data", ".diffusion", ".models.interop"]


@pytest.mark.parametrize("module", [f"unetdiff{name}" for name in LIGHT])
def test_light_modules_do_not_import_torch(module: str) -> None:
    program = f"import sys, {module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "False"


def test_nothing_needs_torchvision() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "unetdiff").rglob("*.py"))
    assert "import torchvision" not in sources
    assert "from torchvision" not in sources


def test_public_names_are_few_and_there() -> None:
    import unetdiff

    assert len(unetdiff.__all__) <= 25
    assert all(getattr(unetdiff, name) is not None for name in unetdiff.__all__)
