"""What are skip connections worth? Three demonstrations and a control, measured.

python benchmarks/skips.py
python benchmarks/skips.py --report

The first measures what is not yet in benchmarks/results/skips, so that the same command goes on after a kill; all of it
takes about 45 minutes on one CPU core (OMP_NUM_THREADS=1), and --only some experiments less. The second writes
docs/skips.md and its pictures from the results alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from unetdiff.command import user_errors  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="write page and pictures from the results")
    parser.add_argument("--only", nargs="+", metavar="EXPERIMENT", help="measure these experiments alone")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "skips")
    given = parser.parse_args()
    with user_errors():
        if given.report:
            from benchmarks.skip_study.report import write_report

            write_report(given.results, ROOT / "docs")
        else:
            from benchmarks.skip_study.experiments import measurements
            from benchmarks.skip_study.study import run_study

            run_study(measurements(given.only), given.results)


if __name__ == "__main__":
    main()
