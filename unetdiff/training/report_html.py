"""What the parts of a report are written with: headings, columns, tables of figures, pictures that the page holds."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

LARGE_PICTURE, SMALL_PICTURE = 1200, 340  # pixels of the longer side


def section(title: str, body: str, hint: str = "") -> str:
    """A heading over `body`; nothing without a body. Title, body and hint are HTML."""
    hint = f'<p class="hint">{hint}</p>' if hint else ""
    return f"<section><h2>{title}</h2>{hint}{body}</section>" if body else ""


def columns(kind: str, parts: Sequence[str]) -> str:
    """Parts side by side, as many as fit; kind: `two`, `three`, `table-and-plot`."""
    cells = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div class="columns {kind}">{cells}</div>' if cells else ""


def figure_row(figures: Sequence[tuple[str, str]]) -> str:
    """A row of (value, what it is), large."""
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in figures)
    return f'<div class="figures">{cells}</div>' if cells else ""


def titled(title: str, part: str) -> str:
    """A small heading over a part; nothing without one."""
    return f"<h3>{escape(title)}</h3>{part}" if part else ""


def plot(svg: str | None, description: str) -> str:
    """A plot; nothing without one."""
    return "" if svg is None else image("image/svg+xml", svg.encode(), description)


def image(kind: str, data: bytes, description: str) -> str:
    """A picture that is part of the page; kind: its MIME type."""
    return f'<img alt="{escape(description)}" src="data:{kind};base64,{base64.b64encode(data).decode()}">'


def figure(path: Path, longest: int, caption: str, description: str) -> str:
    """A picture file over its caption (HTML), reduced to `longest` pixels; empty if the file cannot be read."""
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except OSError:  # a killed run leaves part of a picture
        return ""
    picture.thumbnail((longest, longest))
    data = io.BytesIO()
    picture.save(data, format="PNG")
    shown = image("image/png", data.getvalue(), description)
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def plain(value: Any) -> str:
    """A value of YAML or JSON for a reader."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
