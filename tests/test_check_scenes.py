"""The judge of runs on digit scenes: figures, pictures, its last line, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sample import check_scenes
from sample.check_scenes import groups_of
from tests.runs import command, fit, one_sentence
from tests.training.test_segment import fit_masks
from unetdiff.data.scenes import SCENE_GROUPS, scene_classes


def test_judges_runs_side_by_side(tmp_path: Path) -> None:
    for name in ("one", "two"):
        fit_masks(tmp_path / name, steps=1)
    (tmp_path / "digits.json").write_text(json.dumps({"samples": 500, "read_as_their_class": 0.97}))
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    done = command("sample/check_scenes.py", *runs, "--shown", "1", "--digits", str(tmp_path))
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "one" / "scenes.json").read_text())
    assert figures["images"] == 200
    said = f"{figures['mean_iou']:.3f}"
    assert done.stdout.splitlines()[-1] == (
        "digits: 97.0% of 500 samples are read as their class; "
        f"test mean IoU on 200 digit scenes: {said} one, {said} two"
    )
    assert (tmp_path / "one" / "comparison.png").is_file()
    for name in ("00.png", "00_overlay.png", "00_total_entropy.png", "00_mutual_information.png"):
        assert (tmp_path / "two" / "scenes" / name).is_file()


@pytest.mark.parametrize("groups", SCENE_GROUPS)
def test_knows_how_a_run_groups_the_digits(groups: str) -> None:
    assert groups_of(of_classes(scene_classes(groups))) == groups


def test_refuses_runs_of_different_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"a": of_classes(scene_classes("groups")), "b": of_classes(scene_classes("digits"))}
    monkeypatch.setattr(check_scenes, "load_run", lambda path, device: runs[path.name])
    with pytest.raises(ValueError, match=r"has other data\.scene_classes than a run; expected the same"):
        check_scenes.load_runs([Path("a"), Path("b")])
    with pytest.raises(ValueError, match="a run is no run on the embedded digit scenes"):
        groups_of(of_classes(("background", "cell")))


def of_classes(names: tuple[str, ...]) -> Any:
    """What stands for a run of these classes."""
    return SimpleNamespace(masks=SimpleNamespace(class_names=names), folder="a run")


def test_refuses_a_run_on_other_data(tmp_path: Path) -> None:
    fit(tmp_path / "denoiser", steps=1)
    done = command("sample/check_scenes.py", str(tmp_path / "denoiser"))
    assert done.returncode == 2
    assert "is a denoiser" in one_sentence(done.stderr)
