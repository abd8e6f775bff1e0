"""Where the time of an act goes, by kind of operation."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

GROUPS: dict[str, tuple[str, ...]] = {
    "optimizer and averages": ("optimizer", "fused_adam", "foreach", "lerp", "linalg_vector_norm"),
    "convolutions": ("conv",),
    "matrix products, attention": ("mm", "attention"),
    "norms, activations, sums, copies": ("aten::",),
}
"""By what the table calls them: parts of the names of operations; the first that fits counts."""
OTHERS = "autograd and Python within it"


def milliseconds(act: Callable[[], object], times: int = 5) -> dict[str, float]:
    """Of each group of operations on the processor, per act; `act` has run before."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(times):
            act()
    spent = dict.fromkeys((*GROUPS, OTHERS), 0.0)
    for event in found.key_averages():
        name = event.key.lower()
        group = next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), OTHERS)
        spent[group] += event.self_cpu_time_total / times / 1e3
    return spent
