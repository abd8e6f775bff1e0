from __future__ import annotations

import pytest

from unetdiff.data.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"), [(OSError("a\nb"), "a"), (OSError("\n a"), "a"), (OSError(), "OSError"), (KeyError(" "), "' '")]
)
def test_first_line(error: Exception, line: str):
    assert first_line(error) == line
