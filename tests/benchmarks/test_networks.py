"""The page of the named networks is what the networks say of themselves now."""

from __future__ import annotations

from benchmarks.networks import PAGE, page


def test_the_page_is_what_the_command_writes() -> None:
    """Else `python benchmarks/networks.py` was not run after a change."""
    assert PAGE.read_text() == page()
