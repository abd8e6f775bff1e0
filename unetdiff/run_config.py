"""What the settings of every run have in common: the network, the loop, averages of the weights; a YAML file, the
command line. No torch, so that `--help` answers at once.

A command reads `python SCRIPT CONFIG.yaml --group.key value ...`: the file first, then the overrides. The complete
settings of a run are saved beside it as `config.yaml`, which is itself a file that the command takes.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from unetdiff.command import user_errors
from unetdiff.files import write_text
from unetdiff.presets import preset
from unetdiff.spec import Architecture, Memory
from unetdiff.typed import check_at_least, check_types

Precision = Literal["auto", "float32", "bf16", "fp16"]
Switch = Literal["auto", "on", "off"] | bool  # YAML reads on and off as true and false
GROUPS = (
    *("model", "diffusion", "objective", "data", "train", "ema", "sampling", "evaluation"),
    *("features", "probe", "mask_diffusion", "noise_input", "joint", "unlabelled"),
)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Architecture):
    """The network. `preset` names one of the literature; settings given beside it replace its own.

    Args:
        preset: a name of docs/networks.md, such as `ddpm_cifar10`, or none; parsing fills the settings in.
        memory: what training keeps between forward and backward pass. `lean`: norms and activations are computed
            again; `plain`: all is kept (compiled networks keep what the compiler chooses); `checkpoint`: whole steps
            are computed again, with less memory than `lean` and about a third more time.
        checkpoint_levels: with `checkpoint`, the levels whose steps are computed again, 0 the finest, the others
            being lean; none: all.
    """

    preset: str | None = None
    memory: Memory = "lean"
    checkpoint_levels: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint_levels is not None and self.memory != "checkpoint":
            raise ValueError(f"model.checkpoint_levels has no use with model.memory {self.memory}; expected checkpoint")


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Averages of the weights; the first one is what samples by default.

    Args:
        kind: `power` (power-function profiles, Karras et al. 2024, section 3.1), `decay` (plain exponential), `none`.
        widths: relative standard deviation of each power-function profile, above 0 and below 0.289.
        decay: of the plain exponential, with the warm-up min(decay, (1 + step) / (10 + step)).
    """

    kind: Literal["power", "decay", "none"] = "power"
    widths: list[float] = field(default_factory=lambda: [0.1])
    decay: float = 0.9999

    def __post_init__(self) -> None:
        check_types(self)
        if self.kind == "power" and (not self.widths or not all(0 < width < 0.2886 for width in self.widths)):
            raise ValueError(f"ema.widths is {self.widths}; expected widths above 0 and below 0.2886")
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay is {self.decay}; expected 0 <= decay < 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop.

    Args:
        steps: optimizer steps.
        batch_size: samples per step, all processes and accumulation together.
        accumulation: micro-batches per process and step.
        learning_rate: peak rate of AdamW.
        warmup_steps: steps of the linear rise to it.
        decay: what follows the warm-up, over the rest of `steps`.
        betas: of AdamW.
        weight_decay: of AdamW.
        gradient_clip: largest norm of the gradient.
        precision: `auto` times a few steps in float32 and in bf16 and takes what pays; stored with the run.
        compile: the network, by torch.compile: `on`, `off`, or `auto`, which times a compiled copy where the run takes
            over an hour and compiles where that pays; stored with the run. Where it fails, the run goes on without.
        channels_last: keep the weights of convolutions channels-last: `on`, `off`, or `auto`, which times both where
            the run takes over 10 minutes; stored with the run.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many to keep.
        log_every: steps between lines in metrics.jsonl.
        validate_every: steps between validation losses; 0: after the last step only.
        sample_every: steps between sample grids; 0: after the last step only.
        validation_size: samples of the validation loss.
        sample_count: samples in a grid.
        non_finite_limit: stop after this many steps in a row with a non-finite loss or gradient.
        tracker: write the figures to TensorBoard (the `track` extra) or Weights & Biases (where it is installed) too.
        deterministic: on GPUs, only kernels that repeat bit for bit, at some cost; CPU runs do so in any case.
        processes: how many processes there must be; none: as many as were started.
    """

    steps: int = 10_000
    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 2e-4
    warmup_steps: int = 100
    decay: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    precision: Precision = "auto"
    compile: Switch = "auto"
    channels_last: Switch = "auto"
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 10
    validate_every: int = 1000
    sample_every: int = 1000
    validation_size: int = 256
    sample_count: int = 64
    non_finite_limit: int = 10
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    deterministic: bool = False
    processes: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        ones = ("steps", "batch_size", "accumulation", "checkpoint_every", "keep_checkpoints", "log_every")
        check_at_least(self, 1, *ones, "validation_size", "sample_count", "non_finite_limit", "processes")
        check_at_least(self, 0, "warmup_steps", "validate_every", "sample_every", "weight_decay")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}; expected two numbers from 0 to below 1")
        if self.learning_rate <= 0 or self.gradient_clip <= 0:
            raise ValueError("train.learning_rate and train.gradient_clip must be above 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run is made of.

    Args:
        run_dir: the run's folder; none: runs/ and the settings file's name.
        seed: of everything random.
        model: the network.
        train: the loop.
        ema: averages of the weights.
    """

    run_dir: str | None = None
    seed: int = 0
    model: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)

    @property
    def folder(self) -> Path:
        """The run folder."""
        assert self.run_dir is not None
        return Path(self.run_dir)


Config = TypeVar("Config", bound=RunConfig)


def parse_settings(kind: type[Config], arguments: Sequence[str], program: str, purpose: str) -> Config:
    """The settings of a run from a command line: `[CONFIG] [--group.key value ...]`.

    A wrong setting ends the program with one sentence and exit code 2; `--help` and `--print_config` end it too.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--config")
    with user_errors():
        file = _value_of(arguments, "--config")
        if file is not None and not Path(file).is_file():
            raise ValueError(f"there is no settings file {file}")
        parser = ArgumentParser(
            prog=f"python {program} [CONFIG]",
            description=f"{purpose} CONFIG is a YAML file; every setting below overrides it.",
            exit_on_error=False,
            allow_abbrev=False,
        )
        parser.add_argument("--config", action="config", help="settings file (YAML); CONFIG for short")
        parser.add_class_arguments(kind, as_group=False)
        parser.set_defaults(_preset_defaults(arguments, file))
        if file is not None:
            parser.set_defaults({"run_dir": str(Path("runs") / Path(file).stem)})
        try:
            parsed = parser.instantiate(parser.parse_args(arguments))
        except ArgumentError as error:
            raise ValueError(
                _with_suggestion(str(error), list(parser.get_defaults(skip_validation=True).keys()))
            ) from error
        config = kind(**{entry.name: parsed[entry.name] for entry in dataclasses.fields(kind)})
        if config.run_dir is None:
            raise ValueError("no run folder: give a CONFIG file, or --run_dir DIR")
    return config


def _with_suggestion(message: str, known: Sequence[str]) -> str:
    """A parser's message, with the setting that a misspelt one probably meant."""
    misspelt = re.search(r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'", message)
    if misspelt is None:
        return message
    near = difflib.get_close_matches(misspelt[1] or misspelt[2], known, n=1)
    return f"{message}; did you mean {near[0]}?" if near else message


def _value_of(arguments: Sequence[str], option: str) -> str | None:
    """The last value of a command-line option, written `--option value` or `--option=value`."""
    value = None
    for place, argument in enumerate(arguments):
        if argument == option and place + 1 < len(arguments):
            value = arguments[place + 1]
        elif argument.startswith(option + "="):
            value = argument.partition("=")[2]
    return value


def _preset_defaults(arguments: Sequence[str], file: str | None) -> dict[str, Any]:
    """The settings of the preset that the command line or the file names, as defaults for the parser."""
    name = _value_of(arguments, "--model.preset")
    if name is None and file is not None:
        name = read_yaml(file).get("model", {}).get("preset")
    if name in (None, "null"):
        return {}
    known = {entry.name for entry in dataclasses.fields(Architecture)}
    return {f"model.{key}": value for key, value in preset(name).items() if key in known}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds settings; `ValueError` names the file where it does not."""
    import yaml

    try:
        value = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no settings; expected groups such as model: and train:")
    for name in set(GROUPS) & set(value):
        if not isinstance(value[name], dict):
            raise ValueError(f"{path} has {name}: {value[name]!r}; expected settings by name")
    return value


def to_plain(config: Any) -> dict[str, Any]:
    """A settings dataclass as nested dictionaries of YAML values, complete, unset values included."""
    return dataclasses.asdict(config)


def write_yaml(config: Any, path: Path) -> None:
    """Save complete settings so that the same command, given this file, does the same."""
    import yaml

    write_text(path, yaml.safe_dump(to_plain(config), sort_keys=False, width=100))
