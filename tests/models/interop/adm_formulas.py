"""A second evaluation of guided-diffusion's `UNetModel`, straight from a state dict under its names.

Written from Ho et al. 2020 and Dhariwal & Nichol 2021, with torch's functions alone: it shares no code with the
package, knows no plan, and walks the numbered modules by the constructor's arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Evaluation:
    """One call of the network; `used` collects the names of the weights that it read."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]):
        self.config, self.weights = config, weights
        self.used: set[str] = set()
        self.dims = config.get("dims", 2)
        self.factors = (1, 2, 2) if self.dims == 3 else (2,) * self.dims

    def get(self, name: str) -> Tensor:
        self.used.add(name)
        return self.weights[name]

    def conv(self, name: str, x: Tensor, dims: int | None = None, **how: Any) -> Tensor:
        weight = self.get(f"{name}.weight")
        padding = weight.shape[-1] // 2
        return CONV[dims or self.dims](x, weight, self.get(f"{name}.bias"), padding=padding, **how)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.get(f"{name}.weight"), self.get(f"{name}.bias"), 1e-5)

    def repeat(self, x: Tensor) -> Tensor:
        for axis, factor in enumerate(self.factors):
            x = x.repeat_interleave(factor, dim=axis + 2)
        return x

    def pool(self, x: Tensor) -> Tensor:
        return POOL[self.dims](x, self.factors)

    def block(self, at: str, x: Tensor, e: Tensor, resample: Any = lambda x: x) -> Tensor:
        h = self.conv(f"{at}.in_layers.2", resample(F.silu(self.norm(f"{at}.in_layers.0", x))))
        entry = self.linear(f"{at}.emb_layers.1", F.silu(e)).reshape(len(x), -1, *(1,) * self.dims)
        if self.config.get("use_scale_shift_norm"):
            width = h.shape[1]
            h = self.norm(f"{at}.out_layers.0", h) * (1 + entry[:, :width]) + entry[:, width:]
        else:
            h = self.norm(f"{at}.out_layers.0", h + entry)
        h = self.conv(f"{at}.out_layers.3", F.silu(h))
        x = resample(x)
        return h + (x if x.shape[1] == h.shape[1] else self.conv(f"{at}.skip_connection", x))

    def attend(self, at: str, x: Tensor, heads: int) -> Tensor:
        count, channels = x.shape[:2]
        if self.config.get("num_head_channels", -1) != -1:
            heads = channels // self.config["num_head_channels"]
        width = channels // heads
        rows = self.conv(f"{at}.qkv", self.norm(f"{at}.norm", x.reshape(count, channels, -1)), dims=1)
        mixed = []
        for head in range(heads):
            if self.config.get("use_new_attention_order"):  # all queries, all keys, all values
                starts = [part * channels + head * width for part in range(3)]
            else:  # the three of a head beside each other
                starts = [(3 * head + part) * width for part in range(3)]
            query, key, value = (rows[:, start : start + width] for start in starts)
            logits = torch.einsum("ncq,nck->nqk", query, key) / math.sqrt(width)
            mixed.append(torch.einsum("nqk,nck->ncq", logits.softmax(-1), value))
        return x + self.conv(f"{at}.proj_out", torch.cat(mixed, 1), dims=1).reshape(x.shape)

    def down(self, at: str, x: Tensor, e: Tensor) -> Tensor:
        if self.config.get("resblock_updown"):
            return self.block(f"{at}.0", x, e, self.pool)
        learned = self.config.get("conv_resample", True)
        return self.conv(f"{at}.0.op", x, stride=self.factors) if learned else self.pool(x)

    def up(self, at: str, x: Tensor, e: Tensor) -> Tensor:
        if self.config.get("resblock_updown"):
            return self.block(at, x, e, self.repeat)
        x = self.repeat(x)
        return self.conv(f"{at}.conv", x) if self.config.get("conv_resample", True) else x

    def embed(self, timestep: Tensor, class_labels: Tensor | None) -> Tensor:
        half = self.config["model_channels"] // 2
        angles = timestep.float()[:, None] * 10_000 ** (-torch.arange(half) / half)
        e = F.silu(self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1)))
        e = self.linear("time_embed.2", e)
        return e if class_labels is None else e + self.get("label_emb.weight")[class_labels]

    def __call__(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        below = self.config.get("num_heads", 1)
        above = self.config.get("num_heads_upsample", -1)
        above = below if above == -1 else above
        levels, blocks = len(self.config["channel_mult"]), self.config["num_res_blocks"]
        e = self.embed(timestep, class_labels)
        x = self.conv("input_blocks.0.0", sample)
        saved = [x]
        for level in range(levels):
            for _ in range(blocks):
                at = f"input_blocks.{len(saved)}"
                x = self.block(f"{at}.0", x, e)
                if 2**level in self.config["attention_resolutions"]:
                    x = self.attend(f"{at}.1", x, below)
                saved.append(x)
            if level < levels - 1:
                x = self.down(f"input_blocks.{len(saved)}", x, e)
                saved.append(x)
        x = self.block("middle_block.0", x, e)
        x = self.block("middle_block.2", self.attend("middle_block.1", x, below), e)
        for number in range(levels * (blocks + 1)):
            level, at, part = levels - 1 - number // (blocks + 1), f"output_blocks.{number}", 1
            x = self.block(f"{at}.0", torch.cat([x, saved.pop()], 1), e)
            if 2**level in self.config["attention_resolutions"]:
                x, part = self.attend(f"{at}.1", x, above), 2
            if level and number % (blocks + 1) == blocks:
                x = self.up(f"{at}.{part}", x, e)
        return self.conv("out.2", F.silu(self.norm("out.0", x)))
