"""Optimisers: schedules by table, masks that hold, and state that is restored to the bit."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import toys

from edgecil.engine.increment import begin
from edgecil.engine.optim import Optimisers, group_parameters, schedule_factor
from edgecil.method import Phase
from edgecil.settings import Optim, Schedule, Training

STEP = Schedule("step", (0.5, 0.75), 0.2)


@pytest.mark.parametrize(
    ("schedule", "progress", "factor"),
    [
        (Schedule("constant"), 0.0, 1.0),
        (Schedule("constant"), 0.999, 1.0),
        (Schedule("cosine"), 0.0, 1.0),
        (Schedule("cosine"), 0.25, 0.5 * (1 + math.sqrt(0.5))),
        (Schedule("cosine"), 0.5, 0.5),
        (Schedule("cosine"), 0.75, 0.5 * (1 - math.sqrt(0.5))),
        (Schedule("cosine", warmup=0.2), 0.0, 0.0),
        (Schedule("cosine", warmup=0.2), 0.1, 0.5),
        (Schedule("cosine", warmup=0.2), 0.2, 1.0),
        (Schedule("cosine", warmup=0.2), 0.6, 0.5),
        (STEP, 0.0, 1.0),
        (STEP, 0.49, 1.0),
        (STEP, 0.5, 0.2),
        (STEP, 0.74, 0.2),
        (STEP, 0.75, 0.04),
        (STEP, 0.99, 0.04),
        (Schedule("step", (49 / 70, 63 / 70), 0.2), 48.999 / 70, 1.0),
        (Schedule("constant", warmup=0.1), 0.05, 0.5),
    ],
)
def test_schedules(schedule, progress, factor):
    assert schedule_factor(schedule, progress) == pytest.approx(factor, abs=1e-9)


@pytest.mark.parametrize("epochs", [7, 70, 250])
def test_milestones_fall_on_whole_epochs_whatever_the_rounding(epochs):
    for milestone in range(1, epochs):
        schedule = Schedule("step", (milestone / epochs,), 0.1)
        for per_epoch in (1, 3, 391):
            first = milestone * per_epoch
            total = epochs * per_epoch
            assert schedule_factor(schedule, first / total) == pytest.approx(0.1)
            assert schedule_factor(schedule, (first - 1) / total) == 1.0


def started(optim, masks=None, optims=None, trains=("backbone", "head")):
    """Return a context with a small network and the optimisers of a phase."""
    given = toys.task("finetune", (3,))
    ctx, _ = begin(given, {"new": toys.image_set(range(3), 2)}, toys.session())
    training = Training(1, 4, optim)
    phase = Phase(
        "p", None, training, trains=trains, optims=optims or {}, masks=masks and (lambda ctx: masks)
    )
    return ctx, Optimisers(ctx, phase)


def fill(optimisers, seed):
    """Set random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in optimisers.parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(noise)


def state(ctx):
    return {k: v.clone() for k, v in ctx.net.named_parameters()}


KINDS = [Optim(0.1, 0.9, 0.05), Optim(0.1, 0.9, 0.05, kind="adam"), Optim(0.1, 0.0, 0.05)]


@pytest.mark.parametrize("optim", KINDS, ids=["sgd", "adam", "no momentum"])
class TestMasks:
    def masks(self):
        name = "backbone.conv1.weight"
        ctx, _ = started(Optim())
        shape = dict(ctx.net.named_parameters())[name].shape
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.5
        return name, mask

    def test_what_is_masked_stays_to_the_bit_under_decay_and_momentum(self, optim):
        name, mask = self.masks()
        ctx, optimisers = started(optim, {name: mask})
        before = state(ctx)
        for step in range(5):
            fill(optimisers, step)
            optimisers.step(step / 10)
        after = dict(ctx.net.named_parameters())
        assert torch.equal(after[name][~mask], before[name][~mask])
        assert (after[name][mask] != before[name][mask]).all()
        assert all((after[n] != before[n]).any() for n in before)
        for key, value in optimisers.tensors().items():
            if key.startswith(name) and value.shape == mask.shape:
                assert not value[~mask].any(), f"{key} would move masked weights later"

    def test_what_is_not_masked_moves_as_without_masks(self, optim):
        name, mask = self.masks()
        results = []
        for masks in (None, {name: mask}):
            ctx, optimisers = started(optim, masks)
            for step in range(4):
                fill(optimisers, step)
                optimisers.step(step / 10)
            results.append(state(ctx))
        plain, masked = results
        for other, value in plain.items():
            keep = mask if other == name else torch.ones_like(value, dtype=torch.bool)
            assert torch.allclose(masked[other][keep], value[keep], rtol=1e-5, atol=1e-7), other

    def test_state_is_restored_to_the_bit(self, optim):
        name, mask = self.masks()
        ctx, optimisers = started(optim, {name: mask})
        for step in range(3):
            fill(optimisers, step)
            optimisers.step(step / 10)
        # As it comes from a file: contiguous, in no special memory format.
        saved = {k: torch.from_numpy(v.numpy().copy()) for k, v in optimisers.tensors().items()}
        weights = {k: v.clone().contiguous() for k, v in ctx.net.state_dict().items()}
        other, resumed = started(optim, {name: mask})
        other.net.load_state_dict(weights)
        resumed.load(saved)
        for step in range(3, 6):
            for each in (optimisers, resumed):
                fill(each, step)
                each.step(step / 10)
        for key, value in ctx.net.named_parameters():
            assert torch.equal(value, dict(other.net.named_parameters())[key]), key


def test_restored_momentum_has_the_memory_format_that_fused_updates_walk_through():
    ctx, optimisers = started(Optim(0.1, 0.9))
    fill(optimisers, 0)
    optimisers.step(0.0)
    saved = {k: v.clone().contiguous() for k, v in optimisers.tensors().items()}
    _, resumed = started(Optim(0.1, 0.9))
    resumed.load(saved)
    weight = next(p for p in ctx.net.parameters() if p.ndim == 4 and p.shape[2] == 3)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    formats = {v.stride() for k, v in resumed.tensors().items() if "conv1.weight/" in k}
    assert formats == {v.stride() for k, v in optimisers.tensors().items() if "conv1.weight/" in k}


def test_groups_may_have_optimisers_of_their_own():
    own = Optim(0.5, 0.0, 0.0, Schedule("constant"))
    ctx, optimisers = started(Optim(0.0, 0.9, 0.0), optims={"head": own})
    before = state(ctx)
    fill(optimisers, 0)
    gradient = ctx.net.head.weight.grad.clone()
    optimisers.step(0.3)
    after = state(ctx)
    assert all(torch.equal(after[n], before[n]) for n in before if n.startswith("backbone"))
    assert torch.allclose(after["head.weight"], before["head.weight"] - 0.5 * gradient)


def test_only_the_groups_of_a_phase_are_in_its_optimisers():
    ctx, optimisers = started(Optim(), trains=("head",))
    assert set(optimisers.named) == set(group_parameters(ctx, "head"))
    fill(optimisers, 0)
    optimisers.zero()
    assert all(p.grad is None for p in optimisers.parameters)


def test_plain_steps_equal_a_reference_in_float64():
    optim = dataclasses.replace(KINDS[0], schedule=Schedule("constant"))
    ctx, optimisers = started(optim)
    name = "backbone.conv1.weight"
    weight = dict(ctx.net.named_parameters())[name].detach().double().clone()
    momentum = torch.zeros_like(weight)
    for step in range(4):
        fill(optimisers, step)
        gradient = dict(ctx.net.named_parameters())[name].grad.double()
        momentum = 0.9 * momentum + gradient + 0.05 * weight
        weight = weight - 0.1 * momentum
        optimisers.step(step / 10)
    assert torch.allclose(dict(ctx.net.named_parameters())[name].double(), weight, atol=1e-5)
