"""The page `docs/skips.md`: one section per experiment, filled in from the results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.skip_study.figures import Results
from benchmarks.skip_study.plots import PICTURES, draw
from benchmarks.skip_study.sections import SECTIONS
from benchmarks.skip_study.study import read_experiments
from unetdiff.files import write_text

HEADING = """\
# What skip connections are worth

Three demonstrations and a control, all with this project's own `UNet`, with its skips concatenated
(`skip_fusion: concat`), added (`add`), or without them (`none`: an autoencoder). Every number on this page is
generated, by

    python benchmarks/skips.py
    python benchmarks/skips.py --report

from the results in `{folder}`. {measurements} measurements, {minutes:.0f} minutes in all on {threads} {device} core,
torch {torch}, float32. Networks that are compared share seeds, data and steps. What follows is
mean ± standard deviation over seeds, where nothing else is said.
"""


def page(experiments: Mapping[str, Results], folder: str) -> str:
    """The page as Markdown; experiments that were not measured have no section."""
    results = [result for found in experiments.values() for result in found]

    def all_of(name: str) -> str:
        return ", ".join(sorted({str(result[name]) for result in results}))

    heading = HEADING.format(
        folder=folder,
        measurements=len(results),
        minutes=sum(result["seconds"] for result in results) / 60,
        **{name: all_of(name) for name in ("threads", "device", "torch")},
    )
    parts: Sequence[str] = [section(experiments) for name, section in SECTIONS.items() if name in experiments]
    return "\n".join([heading, *parts])


def write_report(folder: Path, docs: Path) -> None:
    """Write `skips.md` and its pictures into `docs` from the results in `folder`."""
    experiments = read_experiments(folder)
    for name in PICTURES:
        if name in experiments:
            draw(name, experiments[name], docs / "pictures")
    shown = folder.relative_to(docs.parent) if folder.is_relative_to(docs.parent) else Path(folder.name)
    write_text(docs / "skips.md", page(experiments, shown.as_posix()))
