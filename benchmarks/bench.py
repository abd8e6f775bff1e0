"""Speed and memory beside what a user would pick instead, measured in one run.

python benchmarks/bench.py [--cases segment loop ...] [--device cpu] [--data PATH/TO/cifar10] [--quick]

Everything takes about half an hour on two quiet CPU cores (13 minutes of it the training steps). Results go to
benchmarks/results/speed/DEVICE.json and .md, where a case replaces its own last result; --quick writes nothing unless
--out says where. --report writes the page, docs/speed.md and its plots from the results alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.speed.cases import CASES, Options  # noqa: E402
from unetdiff.command import user_errors  # noqa: E402
from unetdiff.files import read_json, write_text  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "speed"
COMMAND = "python benchmarks/bench.py"


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="default: all of them")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument(
        "--data", type=Path, help="a folder with the parquet files of CIFAR-10; else generated pictures"
    )
    parser.add_argument("--quick", action="store_true", help="see that everything runs, in about two minutes")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/speed)")
    parser.add_argument("--report", action="store_true", help="write pages and plots from the results")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path | None) -> None:
    """Run the cases one after another; each is kept as soon as it is done."""
    import torch

    from benchmarks.speed.machine import machine
    from benchmarks.speed.results import entry, keep, page

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = Options(device, options.quick, options.data)
    failed: list[str] = []
    for name in options.cases or CASES:
        start = time.perf_counter()
        header = machine(device)  # before: the load is that of others
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            found = CASES[name].run(settings)
        except RuntimeError as error:  # the other cases are worth having all the same
            failed.append(f"{name}: {error}")
            print(f"{name} failed: {error}", file=sys.stderr, flush=True)
            continue
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        result = entry(CASES[name].says, header, found)
        print(page({name: result}, list(CASES), COMMAND), flush=True)
        if folder is not None:
            held = keep(folder / f"{device.type}.json", name, result)
            write_text(folder / f"{device.type}.md", page(held, list(CASES), COMMAND))
    if failed:
        raise ValueError(f"{len(failed)} case(s) failed: {'; '.join(failed)}")


def main() -> None:
    options = arguments()
    folder = options.out or (None if options.quick else RESULTS)
    with user_errors():
        if options.report:
            from benchmarks.speed.report import write_report

            files = sorted((options.out or RESULTS).glob("*.json"))
            if not files:
                raise ValueError(f"{options.out or RESULTS} has no results: run without --report first")
            write_report({file.stem: read_json(file) for file in files}, ROOT / "docs")
            return
        measure(options, folder)


if __name__ == "__main__":
    main()
