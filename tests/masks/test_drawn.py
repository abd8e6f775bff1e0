"""Masks that are drawn, from a run folder to files: seeds, votes, several networks, and what is refused."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from tests.networks import redraw
from tests.runs import command, one_sentence
from unetdiff import MaskDenoiser, UNet, load_run
from unetdiff.data.formats import DataFormat
from unetdiff.data.masks import MaskEncoding
from unetdiff.drawing import ADVICE
from unetdiff.mask_diffusion_options import MaskDiffusionConfig
from unetdiff.masks.inputs import LARGE
from unetdiff.members import members_of
from unetdiff.runs import Companions, write_network
from unetdiff.segmentation.predict import Inference
from unetdiff.segmenting import segment, segment_rows

ENCODING = MaskEncoding(kind="values", values=(0, 100, 200), class_names=("ground", "cell", "wall"), ignore=(255,))
GREY = DataFormat(dims=2, channels=1, dtype="uint8", low=0, high=255)
SMALL: dict[str, Any] = {"channels": [4, 8], "blocks": 1, "middle": False}
SIZE = (11, 14)


def run_folder(path: Path, scale: float = 0.6) -> Path:
    """A network that draws masks of three classes and was never trained."""
    unet = {**SMALL, "in_channels": 4, "out_channels": 3}
    network = MaskDenoiser(unet, 1)
    redraw(network, scale)
    settings = {"kind": "diffusion", "mask_diffusion": asdict(MaskDiffusionConfig(steps=3, masks=2))}
    path.mkdir(parents=True)
    made: Any = network
    write_network(path, made, Companions(GREY, masks=ENCODING, settings=settings))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return run_folder(tmp_path_factory.mktemp("drawn") / "run")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    return run_folder(tmp_path_factory.mktemp("other") / "run", scale=0.7)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A network that says scores."""
    path = tmp_path_factory.mktemp("plain") / "run"
    path.mkdir()
    network = UNet(**SMALL, time_embedding="none", in_channels=1, out_channels=3)
    write_network(path, network, Companions(GREY, masks=ENCODING, settings={"timestep": None}))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number, array in enumerate(np.random.default_rng(0).integers(0, 256, (2, *SIZE), dtype=np.uint8)):
        Image.fromarray(array).save(root / f"{number}.png")
    return root


def image_of(images: Path) -> np.ndarray:
    return np.asarray(Image.open(images / "0.png"))[..., None]


def entropy_of(shares: np.ndarray) -> np.ndarray:
    """-sum f log f by hand."""
    return -np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0).sum(0)


def test_votes_of_masks(folder: Path, images: Path) -> None:
    """Shares, labels, vote entropy and disagreement follow from the masks alone."""
    found = segment(load_run(folder), image_of(images), masks=5, seed=3)
    assert found.masks is not None
    assert found.masks.shape == (5, *SIZE)
    shares = np.stack([(found.masks == label).mean(0) for label in range(3)])
    assert_close(found.probabilities, shares.astype(np.float32), rtol=0, atol=1e-6)
    assert (found.labels == shares.argmax(0)).all()
    assert set(found.maps) == {"vote_entropy", "disagreement"}
    assert_close(found.maps["vote_entropy"], entropy_of(shares).astype(np.float32), rtol=0, atol=1e-5)
    assert_close(found.maps["disagreement"], (1 - shares.max(0)).astype(np.float32), rtol=0, atol=1e-6)
    assert found.maps["disagreement"].max() > 0


def test_mask_i_is_the_same_however_many_there_are(folder: Path, images: Path) -> None:
    run, image = load_run(folder), image_of(images)
    many = segment(run, image, masks=6, seed=10).masks
    few = segment(run, image, masks=2, seed=12).masks
    assert many is not None
    assert few is not None
    assert (many[2:4] == few).all()
    assert (many[0] != many[1]).any()
    plain = segment(run, image).masks  # as the run's settings say
    assert plain is not None
    assert len(plain) == 2


def test_one_mask_is_sure_of_itself(folder: Path, images: Path) -> None:
    """Hard votes have logarithms too: no entropy, and nothing that is not finite."""
    found = segment(load_run(folder), image_of(images), masks=1)
    assert found.maps["vote_entropy"].max() == 0
    assert np.isfinite(found.probabilities).all()
    assert set(np.unique(found.probabilities)) == {0, 1}


def test_several_networks_disagree_by_their_votes(folder: Path, other: Path, images: Path) -> None:
    """Between networks: H[mean] - mean H, each network's votes as one member (Houlsby et al. 2011)."""
    runs, image = [load_run(folder), load_run(other)], image_of(images)
    found = segment(runs, image, masks=4)
    alone = [segment(run, image, masks=4) for run in runs]
    mean = np.mean([one.probabilities for one in alone], axis=0)
    within = np.mean([entropy_of(one.probabilities) for one in alone], axis=0)
    assert_close(found.probabilities, mean, rtol=0, atol=1e-6)
    assert_close(found.maps["expected_entropy"], within.astype(np.float32), rtol=0, atol=1e-5)
    between = (entropy_of(mean) - within).astype(np.float32).clip(0)
    assert_close(found.maps["mutual_information"], between, rtol=0, atol=1e-5)
    assert between.max() > 0.1
    assert found.masks is not None
    assert alone[1].masks is not None
    assert (found.masks[4:] == alone[1].masks).all()
    twice = segment([runs[0], runs[0]], image, masks=4)
    assert twice.maps["mutual_information"].max() < 1e-5
    assert twice.maps["vote_entropy"].max() > 0.1


def test_a_run_answers_with_shares_of_votes(folder: Path, images: Path) -> None:
    run = load_run(folder)
    (answer,) = members_of(run, (), 1, seed=0)
    found = answer(run.format.encode(image_of(images)[None]))
    assert_close(found[0].numpy(), segment(run, image_of(images)).probabilities, rtol=0, atol=0)


def test_masks_by_command(folder: Path, images: Path, tmp_path: Path) -> None:
    """All files, in the form of the training masks; the masks that the library draws."""
    given = ["--masks", "3", "--steps", "4", "--sampler", "ddpm", "--seed", "5", "--truth", str(tmp_path / "truth")]
    (tmp_path / "truth").mkdir()
    for number in range(2):
        Image.fromarray(np.full(SIZE, 100 * number, np.uint8)).save(tmp_path / "truth" / f"{number}.png")
    done = command("sample/masks.py", str(folder), str(images), "--out", str(tmp_path / "out"), *given)
    assert done.returncode == 0, done.stderr
    assert ADVICE in done.stdout
    assert "0: 3 masks, vote entropy" in done.stdout
    found = segment(load_run(folder), image_of(images), masks=3, steps=4, sampler="ddpm", seed=5)
    files = sorted((tmp_path / "out" / "0_masks").iterdir())
    assert [file.name for file in files] == ["0.png", "1.png", "2.png"]
    assert found.masks is not None
    for file, mask in zip(files, found.masks, strict=True):
        assert (np.asarray(Image.open(file)) == 100 * mask).all()
    assert (np.asarray(Image.open(tmp_path / "out" / "0.png")) == 100 * found.labels).all()
    with np.load(tmp_path / "out" / "0.npz") as held:
        assert set(held) == {"probabilities", "vote_entropy", "disagreement"}
    for ending in ("drawn", "vote_entropy", "disagreement", "overlay", "panels"):
        assert (tmp_path / "out" / f"0_{ending}.png").is_file()


REFUSED = {
    "masks is of runs that draw masks": ("plain", ["--masks", "2"]),
    "sampler is of runs that draw masks": ("plain", ["--sampler", "ddim"]),
    "nothing reads --seed without --passes": ("plain", ["--seed", "2"]),
    "expected how many by masks, not 3 passes": ("folder", ["--passes", "3"]),
    "of whole images: expected no --tta": ("folder", ["--tta", "0"]),
    "of whole images: expected no --tile": ("folder", ["--tile", "8"]),
    "masks is 0; expected at least 1": ("folder", ["--masks", "0"]),
    "steps is 0; expected at least 1": ("folder", ["--steps", "0"]),
    "steps is 2000; expected 1 to 1000": ("folder", ["--steps", "2000"]),
    "draws masks of whole images: cut it into parts": ("folder", []),
}


@pytest.mark.parametrize("expected", REFUSED)
def test_mistakes_are_one_sentence(expected: str, request, images: Path, tmp_path: Path, run_script) -> None:
    run, given = REFUSED[expected]
    if not given:
        np.save(tmp_path / "large.npy", np.zeros((2048, LARGE // 2048, 1), np.uint8))
        images = tmp_path / "large.npy"
    words = [str(request.getfixturevalue(run)), str(images), "--out", str(tmp_path / "out"), *given]
    code, _, errors = run_script("sample/masks.py", *words)
    assert code == 2, errors
    assert expected in one_sentence(errors)


def test_what_cannot_be_drawn(folder: Path, plain: Path, images: Path) -> None:
    run, image = load_run(folder), image_of(images)
    with pytest.raises(ValueError, match="masks are drawn of whole images: expected no tile"):
        segment(run, image, Inference(tile=8))
    segment(run, image, Inference(tile=16))  # larger than the image
    with pytest.raises(ValueError, match="expected more masks"):
        segment(run, image, Inference(flips=(0,)))
    with pytest.raises(ValueError, match="expected runs of one kind"):
        segment([run, load_run(plain)], image)
    with pytest.raises(ValueError, match="cut it into parts"):
        next(segment_rows(run, image))
    with pytest.raises(ValueError, match="steps is of runs that draw masks"):
        segment(load_run(plain), image, steps=3)


def test_disagreement_is_drawn_to_its_largest_value() -> None:
    from unetdiff.masks.outputs import SCALES

    votes = torch.full((4,), 0.25)
    assert SCALES["disagreement"](np.zeros(2), 4)[0] == pytest.approx(float(1 - votes.amax()))
    assert math.isfinite(SCALES["mutual_information"](np.zeros(2), 4)[0])
