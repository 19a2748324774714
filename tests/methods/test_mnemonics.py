"""Mnemonics over its hosts: what is chosen, what is optimised, and what is stored of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
from torch.nn import functional as F

from edgecil import registry
from edgecil.context import Classes, Context, Setup
from edgecil.data.pixels import to_pixels, to_values
from edgecil.engine import increment, state
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun
from edgecil.engine.selection import Memory, exemplar_images
from edgecil.errors import UsageError
from edgecil.memory import process
from edgecil.memory.budget import Budget
from edgecil.memory.fields import COUNTS, IMAGES
from edgecil.parts import mnemonics
from edgecil.parts.learned_exemplars import Learned, halves
from edgecil.parts.unrolled import unrolled
from edgecil.parts.weight_transfer import ScaledConv
from edgecil.rankings import herding, random_ranking
from edgecil.settings import CIFAR, IMAGENET

PLAIN = {"adjust": False, "exemplar_epochs": 0}


def stored(outcome):
    return outcome.model.kept.read(IMAGES)


def same(left, right):
    """Return whether two outcomes are equal to the bit: network, rule, and what is kept."""
    networks = [o.model.net.state_dict() for o in (left, right)]
    rules = [o.model.rule.arrays() for o in (left, right)]
    return (
        all(torch.equal(a, b) for a, b in zip(*(n.values() for n in networks), strict=True))
        and all(np.array_equal(rules[0][k], rules[1][k]) for k in rules[0])
        and left.model.kept.encode() == right.model.kept.encode()
    )


def ready(method, groups, previous=None, options=None, **session):
    """Return the context of an increment with its phases, and a session."""
    given = toys.task(method, groups, previous, options=options)
    first = sum(groups[:-1])
    new = toys.image_set(range(first, first + groups[-1]))
    run = toys.session(**session)
    ctx, phases = begin(given, toys.sets_of(given, new), run)
    return ctx, phases, run


@pytest.mark.parametrize("preprocess", [CIFAR, IMAGENET])
def test_every_pixel_comes_back_from_its_parameter(preprocess):
    pixels = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 2, 2, 3)
    assert torch.equal(to_pixels(to_values(pixels, preprocess), preprocess), pixels)


def test_values_are_clamped_and_rounded_not_wrapped():
    own = Learned(torch.zeros(1), torch.zeros(1), torch.full((1, 3, 2, 2), 99.0))
    own.values.data[0, 0] = -99.0
    assert to_pixels(own.values, CIFAR)[0, 0, 0].tolist() == [0, 255, 255]
    own.project(CIFAR)
    inside = own.values.detach()
    assert inside.abs().max() < 3
    assert torch.equal(to_pixels(inside, CIFAR), to_pixels(torch.sign(inside) * 99, CIFAR))


def test_halves_are_disjoint_complete_and_even_in_every_prefix():
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor([4, 1, 3, 0, 6]))
    usable = torch.ones(len(labels), dtype=torch.bool)
    usable[2] = False
    a, b = halves(labels, usable)
    assert sorted(torch.cat([a, b]).tolist()) == torch.nonzero(usable)[:, 0].tolist()
    for label in labels.unique():
        mine = torch.nonzero((labels == label) & usable)[:, 0]
        for stop in range(len(mine) + 1):
            prefix = set(mine[:stop].tolist())
            assert abs(len(prefix & set(a.tolist())) - len(prefix & set(b.tolist()))) <= 1


@pytest.mark.parametrize("host", ["icarl", "bic", "lucir", "lwf-coreset"])
def test_herded_exemplars_without_adjusting_and_fine_tuning_are_the_plain_host(host, tmp_path):
    plain = toys.learn(host, (2, 2), tmp_path / "a")
    plugged = toys.learn(
        f"{host}+mnemonics", (2, 2), tmp_path / "b", options={"exemplars": "herding", **PLAIN}
    )
    assert all(same(a, b) for a, b in zip(plain, plugged, strict=True))


def test_random_exemplars_are_those_of_the_host_with_random_ranking(tmp_path):
    plain = toys.learn("lwf-coreset", (2, 2), tmp_path / "a", options={"ranking": "random"})
    plugged = toys.learn(
        "lwf-coreset+mnemonics", (2, 2), tmp_path / "b", options={"exemplars": "random", **PLAIN}
    )
    assert all(same(a, b) for a, b in zip(plain, plugged, strict=True))


@pytest.mark.parametrize(("mode", "start"), [("unrolled", "random"), ("prototype", "herding")])
def test_optimised_exemplars_begin_as_the_ablation_and_take_its_bytes(mode, start, tmp_path):
    options = {"mode": mode, "adjust": False, "exemplar_epochs": 0}
    (learned,) = toys.learn("icarl+mnemonics", (2,), tmp_path / "a", options=options)
    (chosen,) = toys.learn(
        "icarl+mnemonics", (2,), tmp_path / "b", options={"exemplars": start, **options}
    )
    assert len(learned.model.kept.encode()) == len(chosen.model.kept.encode())
    change = np.abs(stored(learned).astype(int) - stored(chosen).astype(int))
    assert 0 < change.max() <= 12 and (change > 0).mean() > 0.3  # a few steps of 0.01
    networks = [o.model.net.state_dict() for o in (learned, chosen)]
    assert all(torch.equal(a, b) for a, b in zip(*(n.values() for n in networks), strict=True))


@pytest.mark.parametrize("codec", ["raw", "webp-lossless", "jpeg-90"])
def test_fine_tuning_and_rule_see_exactly_what_the_store_returns(codec, tmp_path, monkeypatch):
    seen = []
    original = mnemonics.exemplars
    monkeypatch.setattr(
        mnemonics, "exemplars", lambda *args: seen.append(original(*args)) or seen[-1]
    )
    outcome = None
    for groups in ((2,), (2, 1)):
        given = toys.task(
            "icarl+mnemonics", groups, outcome and outcome.model, Budget(bytes=40_000), codec=codec
        )
        first = sum(groups[:-1])
        new = toys.image_set(range(first, first + groups[-1]))
        outcome = increment.train(given, toys.sets_of(given, new), toys.session())
    images = exemplar_images(outcome.model.kept, toys.SIDE)
    assert len(outcome.model.kept.encode()) <= 40_000
    assert len(seen) == 1 and torch.equal(seen[0].pixels, images.pixels)
    assert torch.equal(seen[0].labels, images.labels)
    # The means, computed again from the stored images, are those of the rule.
    batch = to_values(images.pixels, CIFAR)
    with torch.no_grad():
        both = [outcome.model.net(x).features for x in (batch, batch.flip(3))]
    means = [
        F.normalize(sum(F.normalize(f[images.labels == c]).sum(0) for f in both), dim=0)
        for c in range(3)
    ]
    assert np.allclose(outcome.model.rule.arrays()["means"], torch.stack(means), atol=1e-4)


@pytest.mark.parametrize("estimate", [1, 3, 5])
def test_every_class_has_as_many_images_whatever_was_estimated(estimate, tmp_path, monkeypatch):
    # Encoded images are smaller or larger once they are optimised: the budget says how many fit.
    def taken(ctx):
        return torch.repeat_interleave(torch.arange(ctx.classes.seen), estimate)

    monkeypatch.setattr(mnemonics, "_taken", taken)
    first, second = toys.learn(
        "icarl+mnemonics", (2, 1), tmp_path, options={"mode": "prototype", "adjust": False}
    )
    originals = {image.tobytes() for image in toys.image_set(range(3)).pixels.numpy()}
    for outcome, classes in ((first, 2), (second, 3)):
        assert outcome.model.kept.read(COUNTS).tolist() == [5] * classes
        as_they_were = [image.tobytes() in originals for image in stored(outcome)]
        optimised = [rank < estimate for rank in range(5)] * classes
        assert as_they_were == [not changed for changed in optimised]


def test_the_outer_loss_falls(tmp_path):
    options = {"inner_steps": 3, "outer_epochs": 12, "inner_lr": 0.1, "pixel_lr": 0.1}
    ctx, phases, run = ready("lwf-coreset+mnemonics", (3,), options=options)
    for number, phase in enumerate(phases):
        phase.prepare(ctx)
        loop = PhaseRun(ctx, phase, number, run)
        if phase.name == mnemonics.NEW:
            break
        loop.run()

    def loss():
        with torch.enable_grad():
            return float(phase.step(ctx, loop._batch(0))["exemplars"].value.detach())

    before = loss()
    loop.run()
    ctx.step = 0
    assert loss() < before - 0.02


def test_prototype_loss_is_the_cross_entropy_of_cosines(tmp_path):
    (first,) = toys.learn("icarl+mnemonics", (2,), tmp_path, options={"mode": "prototype"})
    ctx, phases, run = ready("icarl+mnemonics", (2, 2), first.model, {"mode": "prototype"})
    for number, phase in enumerate(phases):
        phase.prepare(ctx)
        loop = PhaseRun(ctx, phase, number, run)
        if phase.name == mnemonics.NEW:
            break
        loop.run()
    batch = loop._batch(0)
    value = phase.step(ctx, batch)["exemplars"].value
    own = mnemonics.learned(ctx, mnemonics.NEW)
    kept = ctx.sets["kept"]
    with torch.no_grad():
        new, queries = ctx.net(own.values).features, ctx.net(batch.images).features
        old = ctx.net(to_values(kept.pixels, CIFAR)).features
    means = [old[kept.labels == c].mean(0) for c in (0, 1)]
    means += [new[own.labels == c].mean(0) for c in (2, 3)]
    cosines = F.normalize(queries) @ F.normalize(torch.stack(means)).T
    expected = -torch.log_softmax(cosines, 1).gather(1, batch.labels[:, None]).mean()
    assert set(batch.labels.tolist()) & {0, 1} and set(batch.labels.tolist()) & {2, 3}
    assert torch.allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("mnemonics", mnemonics.NEW), ("mnemonics", mnemonics.HALF_A), ("herding", mnemonics.HALF_A)],
)
def test_prototypes_are_of_no_image_that_bic_holds_out(kind, name, tmp_path):
    options = {"mode": "prototype", "held_out": 0.3, "exemplars": kind}
    (first,) = toys.learn("bic+mnemonics", (2,), tmp_path, options=options)
    ctx, phases, run = ready("bic+mnemonics", (2, 2), first.model, options)
    loop = started(ctx, phases, run, name)
    batch, own = loop._batch(0), mnemonics.learned(ctx, mnemonics.NEW)
    if name == mnemonics.NEW:
        images = ctx.sets["kept"].pixels
        held = torch.from_numpy(ctx.kept.read("exemplars.held_out"))
    else:
        images = own.values.data if own.count else ctx.sets["new"].pixels
        held = torch.from_numpy(ctx.columns["exemplars.held_out"])
        held = held[own.rows[: own.count]] if own.count else held

    def loss():
        ctx.scratch.clear()
        return float(loop.phase.step(ctx, batch)["exemplars"].value.detach())

    before = loss()
    for rows, same in ((held, True), (~held, False)):
        assert rows.any()
        images[rows] = images[rows] // 2
        assert (loss() == before) == same


@pytest.mark.parametrize("mode", ["unrolled", "prototype"])
def test_no_phase_sees_an_image_that_bic_holds_out(mode, tmp_path):
    options = {"mode": mode, "held_out": 0.3}
    (first,) = toys.learn("bic+mnemonics", (2,), tmp_path, options=options)
    ctx, phases, run = ready("bic+mnemonics", (2, 2), first.model, options)
    flags = {"kept": ctx.kept.read("exemplars.held_out"), "new": ctx.columns["exemplars.held_out"]}
    held = {i.tobytes() for n, out in flags.items() for i in ctx.sets[n].pixels.numpy()[out]}
    assert len(held) == sum(out.sum() for out in flags.values()) > 4
    for number, phase in enumerate(phases):
        phase.prepare(ctx)
        PhaseRun(ctx, phase, number, run)
        seen = {image.tobytes() for image in ctx.view.pixels.numpy()}
        assert seen and not seen & held, phase.name


def test_old_exemplars_change_by_adjusting_and_only_by_it(tmp_path):
    options = {"exemplars": "herding", "exemplar_epochs": 0}
    first, adjusted = toys.learn("icarl+mnemonics", (2, 1), tmp_path / "a", options=options)
    _, left = toys.learn(
        "icarl+mnemonics", (2, 1), tmp_path / "b", options={**options, "adjust": False}
    )
    count = int(first.model.kept.read(COUNTS).sum())
    assert np.array_equal(stored(left)[:count], stored(first))
    change = np.abs(stored(adjusted)[:count].astype(int) - stored(first).astype(int))
    assert (change.reshape(count, -1).max(axis=1) > 0).all() and change.max() <= 12
    assert np.array_equal(stored(left)[count:], stored(adjusted)[count:])


def test_images_that_bic_holds_out_stay_as_they_are(tmp_path):
    options = {"held_out": 0.3, "inner_batch": 128, "pixel_decay": 0.1}
    first, second = toys.learn("bic+mnemonics", (2, 1), tmp_path, options=options)
    originals = {i.tobytes() for i in toys.image_set(range(3)).pixels.numpy()}
    for outcome in (first, second):
        held = outcome.model.kept.read("exemplars.held_out")
        real = np.array([image.tobytes() in originals for image in stored(outcome)])
        assert held.any() and not held.all()
        assert np.array_equal(real, held)


def test_without_any_that_is_trained_the_gradient_is_zero(monkeypatch):
    ctx, phases, run = ready("bic+mnemonics", (2,), options={"pixel_decay": 0.1})
    phase = next(p for p in phases if p.name == mnemonics.NEW)
    monkeypatch.setattr(mnemonics, "_active", lambda *_: torch.zeros(0, dtype=torch.int64))
    phase.prepare(ctx)
    loop = PhaseRun(ctx, phase, phases.index(phase), run)
    values = mnemonics.learned(ctx, mnemonics.NEW).values
    before = values.detach().clone()
    phase.step(ctx, loop._batch(0))["exemplars"].value.backward()
    assert values.grad is not None and not values.grad.any()
    loop.step(0)
    assert torch.equal(values, before)


def started(ctx, phases, run, name):
    """Return the run of a phase, with all that comes before prepared and not trained."""
    number = next(n for n, p in enumerate(phases) if p.name == name)
    for phase in phases[: number + 1]:
        phase.prepare(ctx)
    return PhaseRun(ctx, phases[number], number, run)


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """Two classes, learned with exemplars."""
    return toys.learn("lwf-coreset", (2,), tmp_path_factory.mktemp("base"))[0].model


def test_what_the_budget_takes_is_found_out_once_and_by_chance_without_features(
    replayed, monkeypatch
):
    tried, trial = [], Memory.trial
    monkeypatch.setattr(Memory, "trial", lambda *args: tried.append(args) or trial(*args))
    monkeypatch.setattr(Context, "features", lambda *_: pytest.fail("looked at for no reason"))
    ctx, _, _ = ready("lwf-coreset+mnemonics", (2, 1), replayed)
    assert len(tried) == 1
    assert all(mnemonics.learned(ctx, name).count for name in (mnemonics.NEW, mnemonics.HALF_A))


def test_each_half_is_validated_on_the_other_and_new_ones_on_new_images(replayed):
    ctx, phases, run = ready("lwf-coreset+mnemonics", (2, 1), replayed)
    views = {p.name: p.view for p in phases}
    loop = started(ctx, phases, run, mnemonics.HALF_B)
    halved = {name: mnemonics.learned(ctx, name) for name in (mnemonics.HALF_A, mnemonics.HALF_B)}
    assert all(group.count for group in halved.values())
    with torch.no_grad():  # as they are by now, not as they were stored
        for group in halved.values():
            group.values.mul_(0.5)
    for name, other in zip(halved, reversed(halved), strict=True):
        images = views[name](ctx)
        assert torch.equal(images.labels, halved[other].labels)
        assert torch.equal(images.pixels, to_pixels(halved[other].values, CIFAR))
    assert torch.equal(views[mnemonics.NEW](ctx).pixels, ctx.sets["new"].pixels)
    before = [group.values.detach().clone() for group in halved.values()]
    loop.step(0)
    assert torch.equal(halved[mnemonics.HALF_A].values, before[0])
    assert not torch.equal(halved[mnemonics.HALF_B].values, before[1])


def test_gradients_go_through_the_training_of_scales(replayed, monkeypatch):
    """Several inner steps beside weight transfer, against the plain form of the descent."""
    options = {"weight_transfer": True, "inner_steps": 3, "inner_batch": 8, "inner_lr": 0.1}
    ctx, phases, run = ready("lwf-coreset+mnemonics", (2, 1), replayed, options)
    loop = started(ctx, phases, run, mnemonics.NEW)
    with torch.no_grad():
        for module in ctx.net.modules():
            if isinstance(module, ScaledConv):
                module.scale.uniform_(0.8, 1.2)
    before = {name: value.clone() for name, value in ctx.net.state_dict().items()}
    values, found, trained = mnemonics.learned(ctx, mnemonics.NEW).values, [], []
    for train in (mnemonics.checkpointed, unrolled):

        def remembered(descent, weights, images, train=train):
            trained.append(train(descent, weights, images))
            return trained[-1]

        monkeypatch.setattr(mnemonics, "checkpointed", remembered)
        value = loop.phase.step(ctx, loop._batch(0))["exemplars"].value
        found.append((value.detach(), *torch.autograd.grad(value, values)))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    assert found[0][1].abs().max() > 0
    assert (found[0][1] - found[1][1]).abs().max() < 1e-3 * found[1][1].abs().max()
    scales = [name for name in trained[0] if name.endswith(".scale")]
    assert scales and all(not torch.equal(trained[0][name], before[name]) for name in scales)
    after = ctx.net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("host", "options", "expected"),
    [("rehearsal", {}, herding), ("lwf-coreset", {"ranking": "random"}, herding),
     ("lucir", {}, herding)],
)  # fmt: skip
def test_herding_is_herding_over_hosts_that_draw(host, options, expected):
    wanted = {"mnemonics": random_ranking, "random": random_ranking, "herding": expected}
    for start, rank in wanted.items():
        recipe = registry.build(f"{host}+mnemonics", {**options, "exemplars": start})
        assert recipe.selection.rank is rank
    recipe = registry.build(f"{host}+mnemonics", {**options, "mode": "prototype"})
    assert recipe.selection.rank is expected
    own = registry.build("bic+mnemonics", {"exemplars": "herding"}).selection.rank
    assert own.func is herding and own.keywords == {"normalise": False}  # BiC's own form


def test_the_preset_of_the_released_code_trains_as_it_does():
    preset = registry.presets("icarl+mnemonics")["mnemonics-released"]
    recipe = registry.build("icarl+mnemonics", preset.options)
    setup = Setup(Classes((5, 5)), preset.training, {"new": 500, "kept": 100})
    names = [p.name for p in recipe.phases(setup)]
    assert names == ["train", mnemonics.NEW]
    training = recipe.phases(setup)[-1].training
    optim = training.optim
    assert (training.epochs, optim.kind, optim.lr) == (1, "sgd", 1e-5)
    assert (optim.momentum, optim.weight_decay) == (0.9, 5e-4)
    paper = registry.presets("icarl+mnemonics")["mnemonics"]
    names = [p.name for p in registry.build("icarl+mnemonics", paper.options).phases(setup)]
    assert names[1:] == [mnemonics.NEW, mnemonics.HALF_A, mnemonics.HALF_B,
                         "fine-tuning on exemplars"]  # fmt: skip


def test_the_peak_is_that_of_the_gpu_where_there_is_one(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123_000_000)
    gpu, cpu = torch.device("cuda:0"), torch.device("cpu")
    for device in (cpu, gpu):
        process.watch_device(device)
    assert asked == [gpu]
    assert (process.device_peak(cpu), process.device_peak(gpu)) == (None, 123_000_000)
    notes = []
    for device in (cpu, gpu):
        recipe = registry.build("icarl+mnemonics")
        recipe.end(SimpleNamespace(device=device, note=notes.append))
    assert "the process took" in notes[0] and "123 MB of the GPU's memory" in notes[1]


def test_a_single_old_exemplar_has_no_other_half(tmp_path):
    outcomes = toys.learn("icarl+mnemonics", (1, 1), tmp_path, budget=Budget(per_class=1))
    assert outcomes[-1].model.kept.read(COUNTS).tolist() == [1, 1]


@pytest.mark.parametrize("host", ["lwm", "ncm", "joint", "ewc", "icarl+m2kd", "icarl+aux"])
def test_hosts_that_do_not_fit_are_refused_before_training(host):
    with pytest.raises(UsageError, match="mnemonics cannot be laid over") as caught:
        registry.build(f"{host}+mnemonics")
    assert "icarl" in caught.value.hint


def test_new_images_of_known_classes_are_not_taken():
    assert registry.build("icarl").updates_known
    assert not registry.build("icarl+mnemonics").updates_known


def test_it_continues_from_a_base_that_its_host_trained(tmp_path):
    # Comparisons train a base once for all that begin alike: its state knows no mnemonics.
    sets = toys.sets_of(toys.task("icarl", (2,)), toys.image_set(range(2)))
    increment.train(toys.task("icarl", (2,)), dict(sets), toys.session(folder=tmp_path))
    saved = state.load(tmp_path)
    assert saved is not None and saved.phase == 0 and not saved.part("module:mnemonics")
    given = toys.task("icarl+mnemonics", (2,))
    continued = increment.train(given, dict(sets), toys.session(), saved=saved)
    assert same(continued, increment.train(given, dict(sets), toys.session()))
