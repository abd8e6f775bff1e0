"""The outputs of reference networks come back; those of the libraries themselves where their files are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.models.interop import make_fixtures
from tests.models.interop.reference import OWN, SHARED, SHARED_NAMES, fixtures, read


@pytest.mark.parametrize("path", fixtures())
def test_weights_give_the_output(path: Path) -> None:
    reference = read(path)
    unet = reference.ours()
    with torch.no_grad():
        output = unet(**reference.inputs).sample
    assert output.shape == reference.output.shape
    assert (output - reference.output).norm() / reference.output.norm() < 1e-5


@pytest.mark.parametrize("path", fixtures("edm"))
def test_no_labels_are_the_null_class(path: Path) -> None:
    reference = read(path)
    unet = reference.ours()
    spec = unet.spec
    assert spec.null_class == (spec.num_classes is not None)
    x, noise = reference.inputs["sample"], reference.inputs["timestep"]
    null = None if spec.num_classes is None else torch.full((len(x),), spec.num_classes)
    assert torch.equal(unet(x, noise).sample, unet(x, noise, null).sample)


def test_our_own_files_are_those_that_are_made() -> None:
    assert {path.stem for path in OWN.iterdir()} == set(make_fixtures.NETWORKS)
    for name, (library, config) in make_fixtures.NETWORKS.items():
        reference = read(OWN / f"{name}.safetensors")
        assert (reference.library, reference.config) == (library, config)
        assert {key: value.shape for key, value in reference.weights.items()} == {
            key: value.shape for key, value in make_fixtures.state_dict(library, config).items()
        }
        assert all(value.count_nonzero() == value.numel() for value in reference.weights.values())


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/fixtures is not beside the checkout")
def test_no_file_of_the_libraries_is_left_out() -> None:
    assert {path.stem for path in SHARED.glob("*.safetensors")} == set(SHARED_NAMES)
    for name in SHARED_NAMES:
        with safe_open(SHARED / f"{name}.safetensors", "pt") as file:
            assert any(key.startswith("weights.") for key in file.keys())  # noqa: SIM118 # not a mapping
