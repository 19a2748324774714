"""What every method must keep to, whatever it does. New methods are found by themselves."""

import dataclasses

import numpy as np
import pytest
import torch
import toys

from edgecil.data.loader import Loader
from edgecil.data.streams import streams
from edgecil.engine import increment, state
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun
from edgecil.engine.optim import group_parameters
from edgecil.engine.selection import dimensions
from edgecil.errors import BudgetError, Interrupted
from edgecil.memory.budget import Budget
from edgecil.memory.fields import holds_images
from edgecil.memory.plan import plan
from edgecil.nets.net import NetSpec

pytestmark = pytest.mark.usefixtures("small_generators")

SIZES = (3, 1, 2)  # uneven, with an increment of one class
every_method = pytest.mark.parametrize("method", toys.METHODS)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Outcomes of three increments of every method, trained once."""
    made = {}

    def get(method):
        if method not in made:
            made[method] = toys.learn(method, SIZES, tmp_path_factory.mktemp(method))
        return made[method]

    return get


def started(method, learned, number):
    """Return context and phases at the start of increment ``number`` (from 0), and its task."""
    previous = learned(method)[number - 1].model if number else None
    given = toys.task(method, SIZES[: number + 1], previous)
    first = sum(SIZES[:number])
    new = toys.image_set(range(first, first + SIZES[number]))
    session = toys.session()
    ctx, phases = begin(given, toys.sets_of(given, new), session)
    return ctx, phases, session


@every_method
def test_scores_are_finite_and_the_rule_covers_all_classes(method, learned):
    for number, outcome in enumerate(learned(method), start=1):
        images = torch.randn(4, 3, 32, 32)
        outputs = outcome.model.net(images)
        scores = outcome.model.rule(outputs.features, outputs.logits)
        assert scores.shape == (4, sum(SIZES[:number]))
        assert torch.isfinite(scores).all()


@every_method
def test_it_learns_the_base_classes(method, tmp_path):
    training = dataclasses.replace(toys.TRAINING, epochs=10)
    (outcome,) = toys.learn(method, (3,), tmp_path, training=training)
    images = toys.image_set(range(3), 20, seed=1)
    batch = (images.pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    outputs = outcome.model.net(batch)
    predicted = outcome.model.rule(outputs.features, outputs.logits).argmax(dim=1)
    assert (predicted == images.labels).float().mean() > 0.8


@every_method
@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_term_sends_gradient_exactly_where_it_says(method, number, learned):
    ctx, phases, session = started(method, learned, number)
    for index, phase in enumerate(phases):
        phase.prepare(ctx)
        run = PhaseRun(ctx, phase, index, session)
        with torch.no_grad():  # old and new must differ, or a distance has no gradient
            for parameter in ctx.net.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        names = list(phase.step(ctx, run._batch(0)))
        assert names
        for name in names:
            run.optimisers.zero()
            term = phase.step(ctx, run._batch(0))[name]
            assert torch.isfinite(term.value)
            term.value.backward()
            for group in {*phase.trains, *term.to}:
                grads = [p.grad for p in group_parameters(ctx, group).values()]
                reached = any(g is not None and g.abs().max() > 0 for g in grads)
                assert reached == (group in term.to), f"{name} -> {group}"


@every_method
def test_teachers_stay_frozen_in_eval_mode_and_equal_to_the_bit(method, learned):
    ctx, phases, session = started(method, learned, 2)
    before = {name: {k: v.clone() for k, v in t.state_dict().items()}
              for name, t in ctx.teachers.items()}  # fmt: skip
    for index, phase in enumerate(phases):
        phase.prepare(ctx)
        PhaseRun(ctx, phase, index, session).run()
    ctx.net.train()
    for name, teacher in ctx.teachers.items():
        assert not any(module.training for module in teacher.modules())
        assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
        for key, value in teacher.state_dict().items() if name in before else ():
            assert torch.equal(value, before[name][key]), f"{name}.{key}"


@every_method
def test_kept_bytes_are_planned_measured_and_filed_alike(method, learned, tmp_path):
    for number, outcome in enumerate(learned(method), start=1):
        kept = outcome.model.kept
        report = kept.report()
        assert kept.save(tmp_path / "memory") == report.kept_bytes == len(kept.encode())
        count = len(kept.read("exemplars.images")) if "exemplars.images" in kept else 0
        sizes = dimensions(NetSpec("resnet8"), SIZES[:number], toys.SIDE, count)
        planned = plan(kept.fields, sizes)
        if planned.exact:
            assert planned.kept_bytes == report.kept_bytes
        else:
            assert report.kept_bytes <= planned.kept_bytes


def least_of(recipe, groups):
    """Return the bytes that a method's memory will hardly stay below, one image per class."""
    sizes = dimensions(NetSpec("resnet8"), groups, toys.SIDE, sum(groups))
    return plan(recipe.fields, sizes, size="least").kept_bytes


@every_method
@pytest.mark.parametrize("limit", [0, 16_000, 60_000])
def test_a_budget_in_bytes_holds_after_every_increment_or_is_refused(method, limit, tmp_path):
    recipe = toys.built(method)
    if recipe.selection is None:
        assert not holds_images(recipe.fields)
    if recipe.selection is not None and recipe.selection.everything:
        toys.learn(method, (2, 1), tmp_path, count=4)
    elif not recipe.fields:
        outcomes = toys.learn(method, (2, 1), tmp_path, count=4, budget=Budget(bytes=0))
        assert outcomes[-1].model.kept.encode() == b""
    elif limit < least_of(recipe, (2, 1, 2)):
        with pytest.raises(BudgetError):
            toys.learn(method, (2, 1, 2), tmp_path, budget=Budget(bytes=limit))
    else:
        outcomes = toys.learn(method, (2, 1, 2), tmp_path, budget=Budget(bytes=limit))
        for outcome in outcomes:
            assert 0 < len(outcome.model.kept.encode()) <= limit


@every_method
def test_without_a_field_for_images_old_images_are_out_of_reach(method, learned):
    ctx, _, _ = started(method, learned, 2)
    assert (len(ctx.sets["kept"]) > 0) == holds_images(toys.built(method).fields)


@every_method
def test_same_seed_same_result_and_another_seed_another(method, tmp_path):
    first, again = (toys.learn(method, (2, 1), tmp_path / n, count=6)[-1] for n in "ab")
    assert toys.equal(first.model.net, again.model.net)
    assert first.model.kept.encode() == again.model.kept.encode() or method == "joint"
    other = toys.learn(method, (2, 1), tmp_path / "c", count=6, seed=1)[-1]
    assert not toys.equal(first.model.net, other.model.net)


@every_method
@pytest.mark.parametrize("stop_at", [1, 4])
def test_interrupted_and_resumed_equals_uninterrupted(method, stop_at, learned, tmp_path):
    reference = learned(method)
    previous = reference[0].model
    given = toys.task(method, SIZES[:2], previous)
    new = toys.image_set(range(3, 4))
    paths = toys.files_of(new, tmp_path / "images")
    calls = 0

    def stop():
        nonlocal calls
        calls += 1
        return calls >= stop_at

    # A rank that is not alone polls by steps; here every step counts.
    session = toys.session(folder=tmp_path, should_stop=stop)
    session.poll_seconds = 0.0
    try:
        outcome = increment.train(given, toys.sets_of(given, new), session, paths=paths)
    except Interrupted:
        saved = state.load(tmp_path)
        assert saved is not None and saved.step > 0
        outcome = increment.train(
            given, toys.sets_of(given, new), toys.session(folder=tmp_path), saved=saved, paths=paths
        )
    else:
        ctx, phases, session = started(method, learned, 1)
        polls = 0  # a phase's last step is followed by no poll
        for index, phase in enumerate(phases):
            phase.prepare(ctx)
            polls += PhaseRun(ctx, phase, index, session).steps - 1
        assert stop_at > polls, "the run was long enough to be interrupted"
    assert toys.equal(outcome.model.net, reference[1].model.net)
    for name, value in outcome.model.rule.arrays().items():
        assert np.array_equal(value, reference[1].model.rule.arrays()[name])


@every_method
def test_a_fixed_width_head_gives_scores_for_the_seen_classes_only(method, tmp_path):
    outcome = toys.learn(method, (2, 1), tmp_path, count=4, width=10)[-1]
    net, rule = outcome.model.net, outcome.model.rule
    outputs = net(torch.randn(2, 3, 32, 32))
    assert outputs.logits.shape == (2, 10)
    assert rule(outputs.features, outputs.logits).shape == (2, 3)


def test_the_loader_of_a_phase_and_the_phase_count_the_same_steps():
    images = toys.image_set(range(3), 11)
    loader = Loader(images, toys.CIFAR, toys.Augment(), 16, "cpu")
    seen = [loader.batch(0, s, streams(0)).index for s in range(loader.steps)]
    assert len(torch.cat(seen).unique()) == 33 - (33 % 16 == 1)


def test_methods_with_the_same_base_begin_alike_to_the_bit(learned):
    first: dict[str, tuple[str, torch.nn.Module]] = {}
    shared = 0
    for method in toys.METHODS:
        ctx, phases, session = started(method, learned, 0)
        base = toys.built(method).base
        if base is None:
            continue
        phases[0].prepare(ctx)
        PhaseRun(ctx, phases[0], 0, session).run()
        like, net = first.setdefault(base, (method, ctx.net))
        assert toys.equal(net, ctx.net), f"{method} does not begin like {like}"
        shared += method != like
    assert shared >= 8
