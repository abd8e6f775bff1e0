"""Turn a checkpoint of another library into a folder that sample/images.py and load_run read."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from unetdiff.command import CommandParser, user_errors
from unetdiff.diffusion.options import ScheduleName, TargetName, VarianceName, check_combination
from unetdiff.models.interop import LIBRARY_NAMES

if TYPE_CHECKING:
    from unetdiff.data.formats import DataFormat
    from unetdiff.diffusion.schedule import Schedule
    from unetdiff.models.unet import UNet

# The options that describe a schedule of betas, with what they are where they are not given.
_BETA_DEFAULTS: dict[str, Any] = {"schedule": "linear", "num_train_timesteps": 1000, "target": "epsilon"}


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line, checked as far as that goes without the network."""
    parser = CommandParser(prog="python -m unetdiff.models.interop", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a .safetensors or .pt file, or a diffusers folder")
    parser.add_argument("--library", required=True, choices=LIBRARY_NAMES, help="whose network it is")
    parser.add_argument("--config", type=Path, metavar="JSON", help="the arguments of the network's constructor there "
                        "(default: those that FILE holds)")  # fmt: skip
    parser.add_argument("--schedule", choices=get_args(ScheduleName), help="betas of its training (default linear; "
                        "edm and edm2 have their own, and so has a diffusers pipeline)")  # fmt: skip
    parser.add_argument("--num_train_timesteps", type=int, help="timesteps of its training (default 1000)")
    parser.add_argument("--target", choices=get_args(TargetName), help="what it predicts (default epsilon)")
    parser.add_argument("--class_names", help="comma-separated, or a text file with one name per line")
    parser.add_argument("--size", type=int, nargs="+", help="spatial size of samples (default: that of the arguments)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to write; must not exist")
    return parser.parse_args(given)


def main() -> int:
    """The command; returns its exit code."""
    options = arguments(sys.argv[1:])  # before torch is imported
    with user_errors():
        _check_out(options.out)
        from unetdiff.models.interop import LIBRARIES, load_foreign
        from unetdiff.runs import Companions, write_network

        unet = load_foreign(options.file, library=options.library, config=options.config)
        _check_denoiser(unet)
        _set_size(unet, options.size)
        scheduler, described = _SCHEDULES[_noise(options, LIBRARIES[options.library].noise)](options, unet)
        write_network(options.out, unet, Companions(_format(unet, options.class_names), scheduler))
    count = sum(parameter.numel() for parameter in unet.parameters())
    how = f"python sample/images.py {options.out} --num 16 --out samples/{options.out.name}"
    print(f"{count:,} parameters, {described}; sample with: {how}")
    return 0


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} is there already; expected a folder that is empty or does not exist")


def _outputs(unet: UNet) -> int:
    return unet.layout.steps[-1].out_channels


def _check_denoiser(unet: UNet) -> None:
    channels = unet.config["in_channels"]
    if _outputs(unet) not in (channels, 2 * channels):
        raise ValueError(
            f"the network makes {_outputs(unet)} channels of {channels}; a denoiser makes as many or twice"
        )


def _noise(options: argparse.Namespace, usual: str) -> str:
    """A key of _SCHEDULES: `usual` is that of the library. Raises `ValueError` for options where it is known."""
    stored = (options.file / "scheduler").is_dir()
    given = [name for name in _BETA_DEFAULTS if getattr(options, name) is not None]
    if given and (stored or usual != "betas"):
        known = f"{options.file / 'scheduler'} says" if stored else f"for {options.library} it is EDM's"
        raise ValueError(f"--{given[0]} does not apply: the noise schedule is known, {known}")
    return "stored" if stored else usual


def _stored(options: argparse.Namespace, unet: UNet) -> tuple[Schedule, str]:
    from unetdiff.runs import load_scheduler

    scheduler = load_scheduler(options.file)
    learned = scheduler.config.get("variance_type") in ("learned", "learned_range")
    if learned and _outputs(unet) == unet.config["in_channels"]:
        held = f"the scheduler in {options.file} takes a learned variance"
        raise ValueError(f"{held}, but the network makes {_outputs(unet)} channels; expected twice as many")
    return scheduler, f"the schedule of {options.file / 'scheduler'}"


def _edm(options: argparse.Namespace, unet: UNet) -> tuple[Schedule, str]:
    from unetdiff.diffusion.schedule import make_edm_schedule

    return make_edm_schedule(), "EDM's noise levels from 80 to 0.002"


def _betas(options: argparse.Namespace, unet: UNet) -> tuple[Schedule, str]:
    from unetdiff.diffusion.schedule import make_schedule

    chosen = {name: default if (given := getattr(options, name)) is None else given
              for name, default in _BETA_DEFAULTS.items()}  # fmt: skip
    name, count, target = chosen.values()
    variance: VarianceName = "learned" if _outputs(unet) > unet.config["in_channels"] else "fixed"
    check_combination(target=target, weighting="uniform", variance=variance, schedule=name)
    scheduler = make_schedule(name, num_train_timesteps=count, target=target, variance=variance)
    return scheduler, f"{name} schedule of {count} timesteps, target {target}, {variance} variance"


# How the noise of a network's training becomes known: (options, network) -> the scheduler, and it in words.
_SCHEDULES: dict[str, Callable[[argparse.Namespace, Any], tuple[Any, str]]] = {
    "stored": _stored,
    "edm": _edm,
    "betas": _betas,
}


def _set_size(unet: UNet, size: Sequence[int] | None) -> None:
    """Note the size of samples in the network's configuration, where sampling finds it."""
    if size is None:
        if unet.config["sample_size"] is None:
            raise ValueError("the network's arguments name no size of its samples; give --size")
        return
    dims = unet.config["dims"]
    space = list(size) * dims if len(size) == 1 else list(size)
    if len(space) != dims or min(space) < 1:
        raise ValueError(f"--size is {list(size)}; expected one positive number or {dims}, the network's dimensions")
    unet.register_to_config(sample_size=space[0] if len(set(space)) == 1 else space)


def _format(unet: UNet, class_names: str | None) -> DataFormat:
    """The form of samples: 8-bit pictures for one or three channels in 2-D, numbers in [-1, 1] for all else."""
    from unetdiff.data.formats import DataFormat

    dims, channels, size = (unet.config[name] for name in ("dims", "in_channels", "sample_size"))
    pictures = dims == 2 and channels in (1, 3)
    dtype, low, high = ("uint8", 0.0, 255.0) if pictures else ("float32", -1.0, 1.0)
    space = (size,) * dims if isinstance(size, int) else tuple(size)
    names = None if class_names is None else _names(class_names, unet.config["num_classes"] or 0)
    return DataFormat(dims=dims, channels=channels, dtype=dtype, low=low, high=high, size=space, class_names=names)


def _names(given: str, count: int) -> tuple[str, ...]:
    is_file = os.path.isfile(given)  # a Path raises where so many names are too long for one
    try:
        parts = Path(given).read_text(encoding="utf-8").splitlines() if is_file else given.split(",")
    except UnicodeDecodeError as error:
        raise ValueError(f"--class_names {given} is no text file; expected one name per line") from error
    names = tuple(part.strip() for part in parts if part.strip())
    if len(names) != count:
        raise ValueError(f"--class_names has {len(names)} names; the network has {count} classes")
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise ValueError(f"--class_names has {twice[0]!r} twice; expected a name of its own for every class")
    return names
