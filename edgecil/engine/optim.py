"""Optimisers of a phase: schedules, per-group settings, and masks that really hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from edgecil.context import Context
from edgecil.method import Phase
from edgecil.settings import Optim, Schedule

Named = dict[str, nn.Parameter]


def schedule_factor(schedule: Schedule, progress: float) -> float:
    """Return what the base learning rate is multiplied by at ``progress`` in [0, 1) of a phase."""
    if progress < schedule.warmup:
        return progress / schedule.warmup
    if schedule.kind == "cosine":
        rest = (progress - schedule.warmup) / (1 - schedule.warmup)
        return 0.5 * (1 + math.cos(math.pi * rest))
    if schedule.kind == "step":
        return schedule.factor ** sum(progress >= m - 1e-9 for m in schedule.milestones)
    return 1.0


def group_parameters(ctx: Context, group: str) -> Named:
    """Return the parameters of a group by qualified name, such as ``head.weight``."""
    module = ctx.modules.get(group) or getattr(ctx.net, group)
    return {f"{group}.{name}": p for name, p in module.named_parameters()}


def _make(optim: Optim, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if optim.kind == "adam":
        return torch.optim.Adam(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
    fused = all(p.is_floating_point() for p in parameters)
    return torch.optim.SGD(
        parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay,
        fused=fused,
    )  # fmt: skip


class Optimisers:
    """All that changes parameters in one phase."""

    def __init__(self, ctx: Context, phase: Phase) -> None:
        self.named: Named = {}
        self.masks: Mapping[str, Tensor] = phase.masks(ctx) if phase.masks else {}
        self._parts: list[tuple[Optim, torch.optim.Optimizer]] = []
        shared: list[nn.Parameter] = []
        for group in phase.trains:
            parameters = group_parameters(ctx, group)
            self.named |= parameters
            if group in phase.optims:
                own = phase.optims[group]
                self._parts.append((own, _make(own, list(parameters.values()))))
            else:
                shared += parameters.values()
        if shared:
            self._parts.insert(0, (phase.training.optim, _make(phase.training.optim, shared)))
        unknown = set(self.masks) - set(self.named)
        if unknown:
            raise KeyError(f"phase {phase.name!r} masks what it does not train: {sorted(unknown)}")
        self._decay = {p: part[0] for part in self._parts for p in self._of(part[1])}
        for _, optimiser in self._parts:
            self._decay_by_hand(optimiser)

    @staticmethod
    def _of(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
        return [p for group in optimiser.param_groups for p in group["params"]]

    def _decay_by_hand(self, optimiser: torch.optim.Optimizer) -> None:
        # A masked parameter leaves the optimiser's own weight decay, which knows no masks.
        masked = {self.named[name] for name in self.masks}
        (group,) = optimiser.param_groups
        mine = [p for p in group["params"] if p in masked]
        if mine:
            group["params"] = [p for p in group["params"] if p not in masked]
            optimiser.add_param_group({"params": mine, "weight_decay": 0.0})

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained, in a fixed order."""
        return list(self.named.values())

    def zero(self) -> None:
        """Forget the gradients."""
        for parameter in self.named.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """Update all parameters at ``progress`` in [0, 1) of the phase."""
        for name, mask in self.masks.items():
            parameter = self.named[name]
            if parameter.grad is not None:
                decay = self._decay[parameter].weight_decay
                parameter.grad.add_(parameter, alpha=decay).mul_(mask)
        for optim, optimiser in self._parts:
            lr = optim.lr * schedule_factor(optim.schedule, progress)
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()

    def _states(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        states = {p: o.state[p] for _, o in self._parts for p in self._of(o) if p in o.state}
        for name, parameter in self.named.items():
            if parameter in states:
                yield name, states[parameter]

    def tensors(self) -> dict[str, Tensor]:
        """Return momentum buffers and the like by name, for the run state."""
        return {
            f"{name}/{key}": value
            for name, state in self._states()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        owners = {p: o for _, o in self._parts for p in self._of(o)}
        for key, value in tensors.items():
            name, _, part = key.rpartition("/")
            parameter = self.named[name]
            if value.shape == parameter.shape:
                # In the parameter's memory format: fused optimisers walk through raw memory.
                value = torch.empty_like(parameter).copy_(value).detach()
            owners[parameter].state[parameter][part] = value
