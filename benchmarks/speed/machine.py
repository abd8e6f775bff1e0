"""What figures were measured on: hardware, versions, and how busy the machine was."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import monai
import torch

from unetdiff.training.run_folder import versions

CPU_INFO = Path("/proc/cpuinfo")


def machine(device: torch.device) -> dict[str, Any]:
    """The header of results."""
    return {
        "date": str(date.today()),
        "commit": commit(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {**versions(), "monai": monai.__version__},
    }


def processor() -> str:
    """The processor as it calls itself, and what it has for bf16."""
    text = CPU_INFO.read_text() if CPU_INFO.is_file() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    found = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(found.get("flags", "").split())
    has = [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    return ", ".join([found.get("model name", platform.machine()), *has])


def commit() -> str:
    """Of the code that was measured; empty outside a clone."""
    root = Path(__file__).parents[2]
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    return done.stdout.strip()


def in_words(header: dict[str, Any]) -> str:
    """One line of a page."""
    held = header["versions"]
    named = ", ".join(f"{name} {held[name]}" for name in ("python", "torch", "diffusers", "monai"))
    at = f" at {header['commit']}" if header["commit"] else ""
    return f"{header['date']}{at}, {header['device']}, {header['threads']} threads, load {header['load']}; {named}."
