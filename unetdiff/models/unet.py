"""The U-Net. Read this first: the constructor builds what the plan says, `forward` walks it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from unetdiff.models.plan import Plan, make_plan
from unetdiff.models.pretrained import load_pretrained, resolve
from unetdiff.models.step import INPUT, Step
from unetdiff.models.steps import build_step
from unetdiff.nn.dims import crop, pad_to_multiple
from unetdiff.nn.embed import make_embedding, per_sample
from unetdiff.nn.layers import Forced, force_unit_weights
from unetdiff.nn.lean import Lean, forget, join
from unetdiff.nn.norm import make_norm
from unetdiff.presets import preset
from unetdiff.spec import Memory, PaddingMode, UNetSpec
from unetdiff.typed import from_json

if TYPE_CHECKING:
    from unetdiff.models.reuse import DividedUNet


@dataclass
class UNetOutput(BaseOutput):
    """What a `UNet` returns: `sample`, (N, C, *space), the first head's output; `heads`, every output by name.

    deep: in training with `deep_supervision`, further outputs by name, of the same size: of a nested decoder those of
    every shallower U, the deepest first; of a plain one those of every coarser level, the finest first.
    weights: beside `deep`, what `sample` and each of those count in a loss; they sum to 1.
    """

    sample: Tensor
    heads: dict[str, Tensor] = None  # pyright: ignore # never None: accelerate rebuilds outputs from one mapping
    deep: list[dict[str, Tensor]] = None  # pyright: ignore
    weights: list[float] = None  # pyright: ignore

    def supervise(self, loss: Callable[[Tensor], Tensor], head: str | None = None) -> Tensor:
        """The loss of a head, None for the first; with `deep`, the weighted mean over it and that of each of those."""
        name = next(iter(self.heads)) if head is None else head
        if self.deep is None:
            return loss(self.heads[name])
        every = [heads[name] for heads in (self.heads, *self.deep)]
        return torch.stack([weight * loss(one) for weight, one in zip(self.weights, every, strict=True)]).sum()


class _Walk(Lean, nn.ModuleDict):
    """Modules by step name, walked in the plan's order; each may be recomputed in the backward pass.

    checkpoint_levels: those whose steps are, where `gradient_checkpointing` is on; None: all.
    """

    gradient_checkpointing = False
    checkpoint_levels: Collection[int] | None = None

    def __init__(self, spec: UNetSpec, steps: Sequence[Step]):
        super().__init__({step.name: build_step(spec, step) for step in steps})
        self.steps = tuple(steps)
        self.sources = {key for step in steps for key in (step.source, *step.takes)}

    def run(self, step: Step, x: Tensor, embedding: Tensor | None, skip: Tensor | None = None) -> Tensor:
        """One step: (N, C, *space) in and out."""
        module = self[step.name]
        if self.checkpoints(step) and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(module, x, embedding, skip)  # pyright: ignore
        return module(x, embedding, skip)

    def checkpoints(self, step: Step) -> bool:
        """Whether this step is recomputed in the backward pass."""
        return self.gradient_checkpointing and (self.checkpoint_levels is None or step.level in self.checkpoint_levels)


class Encoder(_Walk):
    """(x, embedding) -> the saved features, fine to coarse; `channels` and `levels` say what they will be."""

    def __init__(self, spec: UNetSpec, plan: Plan):
        super().__init__(spec, plan.side("encoder"))
        self.channels = [step.out_channels for step in plan.features]
        self.levels = [step.level for step in plan.features]

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> list[Tensor]:
        features, stream, kept = [], x, {INPUT: x}
        for step in self.steps:
            x = self.run(step, kept[step.source] if step.source else x, embedding, stream if step.stream else None)
            if step.stream:
                stream = x
            if step.key in self.sources:
                kept[step.key] = x
            if step.saves:
                features.append(x)
        return features


class Decoder(_Walk):
    """(features fine to coarse, embedding) -> [outputs], the network's own first: the middle, then the way up."""

    def __init__(self, spec: UNetSpec, plan: Plan):
        super().__init__(spec, (*plan.side("middle"), *plan.side("decoder")))
        self.features, self.outputs = [step.key for step in plan.features], plan.outputs

    def forward(self, features: Sequence[Tensor], embedding: Tensor | None = None) -> list[Tensor]:
        x, kept = features[-1], dict(zip(self.features, features, strict=True))
        for step in self.steps:
            entry = kept[step.source] if step.source else x
            skip = self.together([kept[key] for key in step.takes])
            x = self.run(step, entry, embedding, skip)
            forget(skip)
            if step.key in self.sources or step.key in self.outputs:
                kept[step.key] = x
        return [kept[key] for key in self.outputs]

    def together(self, skips: Sequence[Tensor]) -> Tensor | None:
        """Skips side by side; None where there are none."""
        if len(skips) > 1:
            return join(skips) if self.recomputes() else torch.cat(list(skips), dim=1)
        return next(iter(skips), None)


class UNet(ModelMixin, ConfigMixin):
    """A timestep-conditioned U-Net for signals, images and volumes: noise predictor and segmentation network.

    Takes the fields of `UNetSpec` as keyword arguments. Any input size goes in and the exact size comes back. It
    is a diffusers model: `save_pretrained`, `from_pretrained`, the hub, `enable_gradient_checkpointing` and the
    pipelines work. `print(unet.plan)` shows every step with its parameters and operations, `print(unet.describe())`
    what the norms leave of the input's amplitude and mean.

    Ronneberger et al. 2015 (the U), Ho et al. 2020 (as a denoiser), Dhariwal & Nichol 2021 (its later form).

    Raises:
        ValueError: for settings that do not fit together, in one sentence that names the setting.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules: ClassVar[list[str]] = ["waves"]  # diffusers reads it where it loads in half precision

    def __init__(self, **settings: Any):
        super().__init__()
        given = from_json(UNetSpec, settings)
        spec = resolve(given)
        self.register_to_config(**spec.to_json())
        plan = make_plan(spec)
        self._plan, self.multiple = plan, plan.multiple
        self.padding_mode: PaddingMode = spec.padding_mode
        self.input_norm = make_norm(spec.in_channels, spec.placement.input, spec.dims)
        self.embedding = None if spec.embedding_channels is None else make_embedding(spec)
        self.encoder = Encoder(spec, plan)
        self.decoder = Decoder(spec, plan)
        self.head = _named_heads({step.name: build_step(spec, step) for step in plan.side("head")})
        self._head_keys = _head_keys(plan, list(spec.outputs))
        load_pretrained(self, given)
        self._forced = [module for module in self.modules() if isinstance(module, Forced)]

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNetOutput | tuple[Any, ...]:
        """Predict from a noisy sample.

        Args:
            sample: (N, in_channels, *space), float, any size.
            timestep: a number, or (N,), in 0 .. 999 for a network trained with 1,000 steps; fractions are fine.
            class_labels: (N,) integers; None takes the null class where the network has one.
            return_dict: whether to return a `UNetOutput` rather than a tuple of what it holds.

        Returns:
            `.sample` (N, out_channels, *space) of exactly the input's size (smaller with `valid` convolutions:
            `layout.output_size` says how large).

        Raises:
            ValueError: for a wrong number of axes or channels, or a condition that is missing or not taken.
        """
        self._check(sample)
        if self.training and self._forced:
            force_unit_weights(self._forced)
        size = self._plan.output_size(sample.shape[2:])
        x = pad_to_multiple(sample, self.multiple, self.padding_mode) if self._plan.pads else sample
        embedding = self.embed(timestep, class_labels, x.shape[0])
        features = self.encoder(self.input_norm(x), embedding)
        decoded = self.decoder(features, embedding)
        outputs = [
            {name: self._finish(self.head[key](x), size, timestep) for name, key in keys.items()}
            for x, keys in zip(decoded, self._head_keys if self.training else self._head_keys[:1], strict=False)
        ]
        heads, *deep = outputs
        weights = list(self._plan.output_weights) if deep else None
        output = UNetOutput(next(iter(heads.values())), heads, deep or None, weights)  # pyright: ignore
        return output if return_dict else output.to_tuple()

    def _finish(self, output: Tensor, size: Sequence[int], timestep: Any) -> Tensor:
        """A head's output at the size that leaves the network."""
        output = crop(output, size)
        return _over(output, timestep) if self.config["divide_by_timestep"] else output

    def embed(self, timestep: Tensor | float | None, class_labels: Tensor | None, batch: int) -> Tensor | None:
        """The vector that conditions the blocks, (N, embedding_channels); None for an unconditioned network."""
        if self.embedding is not None:
            return self.embedding(timestep, class_labels, batch)
        if timestep is not None or class_labels is not None:
            raise ValueError("this network was built without an embedding: call it without timestep and class_labels")
        return None

    def _check(self, sample: Tensor) -> None:
        axes, channels = self.config["dims"] + 2, self.config["in_channels"]
        if not sample.is_floating_point():
            raise ValueError(f"the input is of {sample.dtype}; expected floating-point numbers, images in [-1, 1]")
        if sample.ndim != axes or sample.shape[1] != channels:
            expected = f"(N, {channels}, {', '.join(['depth', 'height', 'width'][-self.config['dims'] :])})"
            raise ValueError(f"the input has shape {tuple(sample.shape)}; this network takes {expected}")

    def set_memory(self, memory: Memory, checkpoint_levels: Collection[int] | None = None) -> None:
        """Choose what training keeps between forward and backward pass; outputs and gradients stay the same.

        Args:
            memory: `lean` (how a network starts): norms and activations are computed again, where a layer allows it;
                `plain`: all is kept, as gradients of gradients need; `checkpoint`: whole steps are computed again
                (Chen et al. 2016), with less memory and about a third more time. Compiled networks keep what the
                compiler chooses.
            checkpoint_levels: the levels that `checkpoint` is for, 0 the finest, the others being lean; None: all.

        Raises:
            ValueError: for another word, or a level that there is not.
        """
        if memory not in get_args(Memory):
            raise ValueError(f"memory is {memory!r}; expected one of {', '.join(get_args(Memory))}")
        last = len(self.config["channels"]) - 1
        if checkpoint_levels is not None and not all(0 <= level <= last for level in checkpoint_levels):
            raise ValueError(f"checkpoint_levels is {list(checkpoint_levels)}; expected levels of 0 to {last}")
        (self.enable_gradient_checkpointing if memory == "checkpoint" else self.disable_gradient_checkpointing)()
        for module in self.modules():
            if isinstance(module, Lean):
                module.lean = memory != "plain"
        for walk in (self.encoder, self.decoder):
            walk.checkpoint_levels = checkpoint_levels
            for step in walk.steps:
                for module in walk[step.name].modules():
                    if isinstance(module, Lean) and walk.checkpoints(step):
                        module.lean = False  # it would be computed a third time

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> UNet:
        """A named network of the literature (see `unetdiff.presets`), with settings changed by keyword."""
        return cls(**{**preset(name), **overrides})

    @classmethod
    def from_foreign(cls, library: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> UNet:
        """A network of another library, by its own arguments and weights (see `models.interop.from_foreign`)."""
        from unetdiff.models.interop import from_foreign

        return from_foreign(library, config, state_dict)

    def to_foreign(self, library: str, **choices: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """This network as another library's arguments and weights (see `models.interop.to_foreign`)."""
        from unetdiff.models.interop import to_foreign

        return to_foreign(self, library, **choices)

    @property
    def spec(self) -> UNetSpec:
        """The settings of this network as a typed value."""
        known = inspect.signature(UNetSpec).parameters
        return from_json(UNetSpec, {name: self.config[name] for name in known})

    @property
    def layout(self) -> Plan:
        """The plan alone, without the parameters and operations that `plan` counts."""
        return self._plan

    @property
    def plan(self) -> Plan:
        """Every step with its parameters, and its operations for one sample of `sample_size` (or 32 per axis)."""
        size = self.config["sample_size"] or 32
        space = (size,) * self.config["dims"] if isinstance(size, int) else tuple(size)
        return self.plan_at(self._plan.fitting_size(space))

    def plan_at(self, size: Sequence[int]) -> Plan:
        """The plan with the operations for one sample of this size, counted on a copy without storage."""
        from unetdiff.models.cost import step_operations

        operations = step_operations(self, size)
        modules: Mapping[str, nn.Module] = self.step_modules()
        steps = tuple(
            replace(step, parameters=count_parameters(modules[step.key]), operations=operations[step.key])
            for step in self._plan.steps
        )
        extra = sum(count_parameters(module) for module in (self.embedding, self.input_norm) if module is not None)
        return replace(self._plan, steps=steps, embedding_parameters=extra, size=tuple(size))

    def describe(self) -> str:
        """Which paths from input to output pass on the amplitude and the mean of the input (see `models.paths`)."""
        from unetdiff.models.paths import describe

        return describe(self._plan)

    def divide(self, cache_step: str | None = None) -> DividedUNet:
        """This network divided at a skip, so that its deep features can be reused (see `models.reuse`)."""
        from unetdiff.models.reuse import DividedUNet

        return DividedUNet(self, cache_step)

    def step_modules(self) -> dict[str, nn.Module]:
        """The module of every step of the plan by its key."""
        walks = {"encoder": self.encoder, "middle": self.decoder, "decoder": self.decoder, "head": self.head}
        return {step.key: walks[step.side][step.name] for step in self._plan.steps}


def _named_heads(heads: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """The outputs by name; `ValueError` for a name that torch needs for itself."""
    held = nn.ModuleDict()
    for name, head in heads.items():
        if hasattr(held, name):
            raise ValueError(f"heads names an output {name!r}, which torch's modules use themselves; expected another")
        held[name] = head
    return held


def _head_keys(plan: Plan, names: Sequence[str]) -> list[dict[str, str]]:
    """For each output of the decoder, the heads that read it, by the names of the network's outputs."""
    keys = [step.name for step in plan.side("head")]
    count = len(names)
    return [dict(zip(names, keys[start : start + count], strict=True)) for start in range(0, len(keys), count)]


def _over(output: Tensor, timestep: Any) -> Tensor:
    """(N, C, *space) over the timestep of each sample."""
    divisor = per_sample("timestep", timestep, len(output)).to(output)
    return output / divisor.reshape(-1, *(1,) * (output.ndim - 1))


def count_parameters(module: nn.Module) -> int:
    """How many parameters a module has, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())


def _take_fields_of(kind: type) -> inspect.Signature:
    """The signature `(self, *, fields of kind)`: what diffusers reads to know a model's settings."""
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return inspect.Signature([own, *inspect.signature(kind).parameters.values()])


UNet.__init__.__signature__ = _take_fields_of(UNetSpec)  # pyright: ignore[reportFunctionMemberAccess]
# diffusers finds a foreign component by the module that its class names: the package itself, which answers lazily.
UNet.__module__ = "unetdiff"
