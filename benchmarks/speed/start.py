"""What starting costs: `--help`, the import, the first training step; every time in a new process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.speed.cases import Options
from benchmarks.speed.results import Found, Row, Table, Target
from benchmarks.speed.timing import Spread

ROOT = Path(__file__).parents[2]
INTERPRETER = "the interpreter alone"
PROGRAMS: dict[str, list[str]] = {
    INTERPRETER: ["-c", "pass"],
    "import unetdiff": ["-c", "import unetdiff"],
    "train/denoise.py --help": ["train/denoise.py", "--help"],
    "train/segment.py --help": ["train/segment.py", "--help"],
    "sample/images.py --help": ["sample/images.py", "--help"],
    "sample/masks.py --help": ["sample/masks.py", "--help"],
}
PEERS: dict[str, list[str]] = {
    "import torch": ["-c", "import torch"],
    "from unetdiff import UNet": ["-c", "from unetdiff import UNet"],
    "from diffusers import UNet2DModel": ["-c", "from diffusers import UNet2DModel"],
    "from monai.networks.nets import UNet": ["-c", "from monai.networks.nets import UNet"],
}
HELP, IMPORT = 0.4, 0.1  # seconds: what the first may take, and the second over the interpreter


def started(words: list[str]) -> tuple[float, float]:
    """Seconds of a new process: on the clock, and of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def environment() -> dict[str, str]:
    """This process's, with the package of this clone in reach."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def processes(programs: dict[str, list[str]], rounds: int) -> dict[str, tuple[Spread, Spread]]:
    """Seconds of every program in turn, after one round that fills the file cache: on the clock, of the processor."""
    found: list[dict[str, tuple[float, float]]] = []
    for _ in range(rounds + 1):
        found.append({name: started(words) for name, words in programs.items()})
    taken = {name: [entry[name] for entry in found[1:]] for name in programs}
    return {
        name: (Spread.of([clock for clock, _ in pairs]), Spread.of([processor for _, processor in pairs]))
        for name, pairs in taken.items()
    }


def seconds_to_first_step(folder: Path, config: str, *settings: str) -> float:
    """From the start of `train/denoise.py` until the line of its first step is in metrics.jsonl; then it is ended."""
    words = ["train/denoise.py", config, "--run_dir", str(folder), "--train.log_every", "1", "--train.steps", "10"]
    words += settings
    metrics = folder / "metrics.jsonl"
    start = time.perf_counter()
    quiet = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment(), stdout=quiet, stderr=quiet) as process:
        while not (metrics.is_file() and '"train"' in metrics.read_text()):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(words)} ended before its first step")
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        process.kill()
    return seconds


def first_steps(options: Options) -> list[Row]:
    """How long training takes to begin, with the precision set and with `auto`."""
    rows: list[Row] = []
    for precision in ("float32", "auto"):
        found = []
        for _ in range(1 if options.quick else 3):
            with tempfile.TemporaryDirectory() as folder:
                run_folder = Path(folder) / "run"
                found.append(seconds_to_first_step(run_folder, "configs/digits.yaml", "--train.precision", precision))
        spread = Spread.of(found)
        seconds, fastest = round(spread.middle, 2), round(spread.least, 2)
        rows.append(
            {"train/denoise.py configs/digits.yaml": f"precision {precision}", "seconds": seconds, "fastest": fastest}
        )
    return rows


def run(options: Options) -> Found:
    """The case."""
    own = processes(PROGRAMS, options.rounds(15))
    peers = processes(PEERS, options.rounds(3))
    rows: list[Row] = [
        {
            "program": name,
            "seconds": round(clock.middle, 3),
            "quartiles": f"{clock.low:.2f} - {clock.high:.2f}",
            "fastest": round(clock.least, 3),
            "of the processor": round(processor.middle, 3),
        }
        for name, (clock, processor) in {**own, **peers}.items()
    ]
    least = {name: clock.least for name, (clock, _) in own.items()}
    helps = [Target(f"seconds of {name}", least[name], HELP) for name in own if name.endswith("--help")]
    over = Target(
        "seconds of import unetdiff over the interpreter", least["import unetdiff"] - least[INTERPRETER], IMPORT
    )
    note = "Targets are held against the fastest of the rounds: other work on the machine only ever slows a process."
    tables = [Table("New processes", rows), Table("To the first step", first_steps(options))]
    return Found(tables, [*helps, over], [note])
