"""What a study is made of. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unetdiff.run_config import TrainConfig, read_yaml
from unetdiff.typed import check_types, from_json


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A denoiser that arms start from: a configuration of train/denoise.py and the settings that differ from it."""

    config: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to a mask.

    says: it, in the page's table. network: a name of `benchmarks.mask_fits.NETWORKS`. settings: of train/segment.py,
    beside those of the study; `model.init_from` names a pretraining, `{denoiser}`.
    """

    says: str
    network: str = "unetdiff"
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class Fit:
    """One network to fit: an arm, how many labelled images, which draw of them, a seed."""

    arm: str
    n: int
    draw: int
    seed: int

    @property
    def file(self) -> str:
        """Of its result."""
        return f"{self.arm}-n{self.n}-draw{self.draw}-seed{self.seed}.json"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study: every arm on every draw with every seed.

    Attributes:
        segment: the configuration of train/segment.py that every arm starts from.
        body: what differs from it in every arm and in every denoiser.
        settings: what else differs from it in every arm.
        pretraining: denoisers by name.
        arms: ways to a mask by name.
        labelled: by the number of labelled images, draws, each as `data.train` takes it.
        seeds: by the number of labelled images, the seeds of each draw.
        control: the arm that the others are compared with.
        questions: pairs of arms whose difference the page says in words.
    """

    segment: str
    body: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    pretraining: Mapping[str, Pretraining] = field(default_factory=dict)
    arms: Mapping[str, Arm] = field(default_factory=dict)
    labelled: dict[int, list[list[str]]] = field(default_factory=dict)
    seeds: dict[int, list[int]] = field(default_factory=dict)
    control: str = "scratch"
    questions: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_types(self)
        unknown = [arm for pair in self.questions for arm in pair if arm not in self.arms]
        if unknown:
            raise ValueError(f"questions has {unknown[0]!r}; expected arms: {', '.join(self.arms)}")
        if self.control not in self.arms:
            raise ValueError(f"control is {self.control!r}; expected one of the arms: {', '.join(self.arms)}")
        if set(self.seeds) != set(self.labelled):
            raise ValueError(f"seeds has {list(self.seeds)} labelled images, labelled {list(self.labelled)}")

    @classmethod
    def read(cls, path: str | Path) -> StudyConfig:
        """A study from its YAML file; `base` in it names another that it changes.

        Raises:
            ValueError: what is wrong with it.
        """
        held = _with_base(path)
        try:
            for name, kind in (("pretraining", Pretraining), ("arms", Arm)):
                held[name] = {key: from_json(kind, value) for key, value in held.get(name, {}).items()}
            return from_json(cls, held)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def fits(self) -> Iterator[Fit]:
        """Every network; what is compared with each other comes together."""
        for n, draws in self.labelled.items():
            for seed in self.seeds[n]:
                for draw in range(len(draws)):
                    for arm in self.arms:
                        yield Fit(arm, n, draw, seed)

    def conditions(self, fit: Fit) -> dict[str, Any]:
        """What tells a result from one of other settings."""
        arm = self.arms[fit.arm]
        begun = arm.settings.get("model.init_from", "").strip("{}")
        return {
            "segment": read_yaml(self.segment),
            "settings": self.settings_of(arm),
            "labelled": self.labelled[fit.n][fit.draw],
            "pretraining": self._pretrained(begun) if begun else None,
        }

    def settings_of(self, part: Arm | Pretraining) -> dict[str, Any]:
        """What differs from the configuration in an arm or a denoiser."""
        of_arms = self.settings if isinstance(part, Arm) else {}
        return {**self.body, **of_arms, **part.settings}

    def pretraining_steps(self) -> dict[str, int]:
        """How long each denoiser is trained."""
        given = {name: self.settings_of(chosen).get("train.steps") for name, chosen in self.pretraining.items()}
        default = TrainConfig().steps
        return {
            name: steps or read_yaml(self.pretraining[name].config).get("train", {}).get("steps", default)
            for name, steps in given.items()
        }

    def _pretrained(self, name: str) -> dict[str, Any]:
        """What a denoiser was made with, as JSON."""
        chosen = self.pretraining[name]
        return {"settings": read_yaml(chosen.config), "changed": self.settings_of(chosen)}


def _with_base(path: str | Path) -> dict[str, Any]:
    """The settings of a file as changes of those of its base, if it names one."""
    held = read_yaml(path)
    base = held.pop("base", None)
    return held if base is None else _changed(_with_base(base), held)


def _changed(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes; groups of settings are changed entry by entry."""
    merged = dict(base)
    for key, value in changes.items():
        held = base.get(key)
        merged[key] = _changed(held, value) if isinstance(held, dict) and isinstance(value, dict) else value
    return merged


def command_line(settings: Mapping[str, Any], places: Mapping[str, str]) -> list[str]:
    """Settings by dotted name as a command line; `{name}` in a text becomes the place of that name."""

    def told(value: Any) -> Any:
        if isinstance(value, list):
            return [told(entry) for entry in value]
        if isinstance(value, str):
            for name, place in places.items():
                value = value.replace(f"{{{name}}}", place)
        return value

    words = []
    for name, value in settings.items():
        value = told(value)
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return words
