"""The rules of the house that a machine can check: short files, short functions, no foreign names outside interop."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.runs import ROOT
from unetdiff.models.interop import LIBRARIES
from unetdiff.presets import PRESETS

SOURCES = sorted(
    path for folder in ("unetdiff", "train", "sample", "benchmarks") for path in ROOT.glob(f"{folder}/**/*.py")
)
each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))

MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 400, 60


@each_source
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES_OF_A_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"


@each_source
def test_nothing_outside_interop_asks_for_a_library(path: Path) -> None:
    """No comparison with a library's name; an import of diffusers' classes by name is not one."""
    if "interop" in path.parts:
        return
    names = {*LIBRARIES, *(name.replace("-", "_") for name in LIBRARIES)} - {"diffusers"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Compare, ast.Match)):
            compared = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
            assert not compared & names, ast.unparse(node)


@each_source
def test_nothing_asks_for_a_variant_by_its_name(path: Path) -> None:
    """A preset is settings: the code asks for a setting, never for the name of the network that has it."""
    if path.name == "presets.py" or "unetdiff" not in path.relative_to(ROOT).parts:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Compare, ast.Match)):
            compared = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
            assert not compared & {*PRESETS}, ast.unparse(node)
