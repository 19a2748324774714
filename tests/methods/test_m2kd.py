"""M2KD through the real engine and store: snapshots to the bit, masks, ablations, the table."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
import toys

from edgecil import registry
from edgecil.engine import increment, state
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun
from edgecil.engine.selection import dimensions
from edgecil.errors import Interrupted, TrainingError, UsageError
from edgecil.memory.fields import holds_images
from edgecil.memory.plan import plan
from edgecil.memory.store import Store
from edgecil.method import Origin
from edgecil.model import Model
from edgecil.nets.build import build, load_arrays, net_arrays
from edgecil.nets.folding import conv_weights
from edgecil.nets.net import NetSpec
from edgecil.parts.lessons import lesson
from edgecil.parts.ownership import LABELS
from edgecil.parts.snapshots import FOLDED, TOLERANCE, WEIGHTS
from edgecil.settings import Augment, Optim

SHORT = dataclasses.replace(toys.TRAINING, epochs=1)
IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def filed(model, fields, folder):
    """Return a model as it comes back from its files."""
    model.kept.save(folder / "memory")
    net = build(model.net.spec, model.net.classes)
    load_arrays(net, net_arrays(model.net))
    return Model(
        net.eval().requires_grad_(False), model.rule, Store.load(folder / "memory", fields)
    )


def learn(method, sizes, folder, options=None, count=4, training=SHORT):
    """Return the models of increments that were saved and loaded between."""
    models, first = [], 0
    for number, size in enumerate(sizes, start=1):
        previous = models[-1] if models else None
        given = toys.task(method, sizes[:number], previous, options=options, training=training)
        new = toys.image_set(range(first, first + size), count)
        outcome = increment.train(given, toys.sets_of(given, new), toys.session())
        models.append(filed(outcome.model, given.recipe.fields, folder))
        first += size
    return models


def following(method, sizes, model, options=None, session=None, count=4, **changes):
    """Return context and phases at the start of an increment of one class after ``sizes``."""
    given = toys.task(method, (*sizes, 1), model, options=options, training=SHORT, **changes)
    new = toys.image_set(range(sum(sizes), sum(sizes) + 1), count)
    return begin(given, toys.sets_of(given, new), session or toys.session())


def members(method, sizes, model, options=None):
    """Return the snapshots that teach after increments of ``sizes``."""
    ctx, _ = following(method, sizes, model, options)
    return list(ctx.teachers["previous"].members)


SIZES = (2, *(1,) * 11)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """Models after each of twelve increments."""
    return learn("m2kd", SIZES, tmp_path_factory.mktemp("twelve"))


@pytest.mark.parametrize("number", [1, 2])
def test_a_snapshot_is_the_same_to_the_bit_ten_increments_later(number, twelve):
    then = members("m2kd", SIZES[:number], twelve[number - 1])[number - 1]
    now = members("m2kd", SIZES[: number + 10], twelve[number + 9])[number - 1]
    before, after = then.state_dict(), now.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(then(IMAGES), now(IMAGES), strict=True))


def test_the_newest_snapshot_says_what_the_committed_classifier_says(twelve):
    newest = members("m2kd", SIZES[:3], twelve[2])[-1]
    with torch.no_grad():
        own = twelve[2].net(IMAGES).logits[:, 3:4]
        assert (newest(IMAGES).logits - own).abs().max() <= TOLERANCE
    norms = twelve[2].kept.read(FOLDED, 3)
    assert all(np.array_equal(v, v.astype(np.float16)) for v in norms.values())


def test_owned_weights_never_change_and_free_ones_are_zero_at_commit(twelve):
    for earlier, later in pairwise(twelve):
        owners = earlier.kept.read(LABELS)
        for name, weight in conv_weights(later.net).items():
            owned = torch.from_numpy(owners[name] > 0)
            assert torch.equal(weight[owned], conv_weights(earlier.net)[name][owned]), name
    last = twelve[-1].kept.read(LABELS)
    for name, weight in conv_weights(twelve[-1].net).items():
        assert not weight[torch.from_numpy(last[name] == 0)].any()
        assert set(np.unique(last[name])) == set(range(13)), name


def test_decay_and_momentum_leave_owned_weights_alone(tmp_path):
    training = dataclasses.replace(SHORT, epochs=3, optim=Optim(0.05, 0.9, 0.1))
    first, second = learn("m2kd", (2, 2), tmp_path, training=training)
    owners = first.kept.read(LABELS)
    for name, weight in conv_weights(second.net).items():
        owned = torch.from_numpy(owners[name] > 0)
        assert torch.equal(weight[owned], conv_weights(first.net)[name][owned]), name


def test_weight_decay_ends_with_the_base_increment_where_the_paper_says_so():
    recipe = registry.build("m2kd", {"decay_base_only": True})
    ctx, _ = begin(toys.task("m2kd", (2,)), {"new": toys.image_set(range(2))}, toys.session())
    for groups, decay in (((2,), SHORT.optim.weight_decay), ((2, 1), 0.0)):
        classes = dataclasses.replace(ctx.setup.classes, groups=groups)
        setup = dataclasses.replace(ctx.setup, classes=classes)
        assert {p.training.optim.weight_decay for p in recipe.phases(setup)} == {decay}


def test_fine_tuning_is_half_as_long_and_trains_what_was_just_taken(twelve):
    options = {"pruning": 0.75}
    ctx, phases = following("m2kd", SIZES[:2], twelve[1], options)
    assert [phase.name for phase in phases] == ["train", "fine-tune"]
    training = dataclasses.replace(SHORT, epochs=8)
    assert training.epochs_for(4, phases[1].part) == 4
    phases[1].prepare(ctx)
    for name, mask in phases[1].masks(ctx).items():
        before = torch.from_numpy(twelve[1].kept.read(LABELS)[name])
        assert torch.equal(mask, (ctx.modules["owners"].labels()[name] == 3))
        assert not mask[before > 0].any()


def test_a_run_stopped_while_fine_tuning_goes_on_to_the_same_bits(tmp_path):
    training = dataclasses.replace(SHORT, epochs=6)
    (first,) = learn("m2kd", (2,), tmp_path)
    given = toys.task("m2kd", (2, 1), first, training=training)
    new = toys.image_set(range(2, 3), 4)
    whole = increment.train(given, toys.sets_of(given, new), toys.session()).model
    polls = iter(range(100))
    session = toys.session(folder=tmp_path, should_stop=lambda: next(polls) >= 6)
    session.poll_seconds = 0.0
    with pytest.raises(Interrupted):
        increment.train(given, toys.sets_of(given, new), session)
    saved = state.load(tmp_path)
    assert (saved.phase, saved.step) == (1, 2)
    resumed = toys.session(folder=tmp_path)
    model = increment.train(given, toys.sets_of(given, new), resumed, saved=saved).model
    assert model.kept.encode() == whole.kept.encode()
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, model.net.state_dict()[name]), name


@pytest.mark.parametrize(("method", "options"), [
    ("m2kd", {"skip": 3}), ("lwf-mc+mmd", {"skip": 3}), ("m2kd", {"skip": 9, "pruning": 0.0}),
])  # fmt: skip
def test_after_five_steps_skipping_three_leaves_the_one_teacher_of_lwf_mc(
    method, options, tmp_path
):
    sizes = (2, 1, 1, 1)
    models = learn(method, sizes, tmp_path, options)
    ctx, _ = following(method, sizes, models[-1], options)
    (only,) = ctx.teachers["previous"].members
    with torch.no_grad():
        assert only(IMAGES).logits.shape == (6, 5)
        assert (only(IMAGES).logits - ctx.previous(IMAGES).logits).abs().max() <= TOLERANCE
    assert models[-1].kept.increments(FOLDED) == (4,)


def test_with_one_skipped_the_second_snapshot_teaches_the_first_classes(tmp_path):
    sizes, options = (2, 1, 1), {"skip": 1}
    models = learn("m2kd", sizes, tmp_path, options)
    second, third = members("m2kd", sizes, models[-1], options)
    assert (second.head_weight.shape[0], third.head_weight.shape[0]) == (3, 1)
    with torch.no_grad():
        difference = second(IMAGES).logits - models[1].net(IMAGES).logits
    assert difference.abs().max() <= TOLERANCE
    planned = plan(models[-1].kept.fields, dimensions(NetSpec("resnet8"), sizes, toys.SIDE))
    assert models[-1].kept.report().kept_bytes <= planned.kept_bytes


@pytest.mark.parametrize("method", ["m2kd", "lwf-mc+mmd"])
def test_without_pruning_whole_earlier_networks_are_kept(method, tmp_path):
    options = {"pruning": 0.0} if method == "m2kd" else {}
    models = learn(method, (2, 1, 1), tmp_path, options)
    kept = models[-1].kept
    assert LABELS not in kept
    assert kept.increments(WEIGHTS) == (1, 2), "the newest is the classifier's own"
    for number in (1, 2):
        for name, weight in conv_weights(models[number - 1].net).items():
            assert np.array_equal(kept.read(WEIGHTS, number)[name], weight.numpy())
    first = members(method, (2, 1, 1), models[-1], options)[0]
    with torch.no_grad():
        difference = first(IMAGES).logits - models[0].net(IMAGES).logits
    assert difference.abs().max() <= TOLERANCE
    (weights,) = (r for r in kept.report().rows if r.name == WEIGHTS)
    size = sum(w.nbytes for w in conv_weights(models[0].net).values())
    assert 2 * size <= weights.bytes < 2 * size + 1000  # and the names of the layers


def test_icarl_keeps_its_exemplars_beside_the_snapshots(tmp_path):
    model = learn("icarl+m2kd", (2, 1), tmp_path)[-1]
    assert holds_images(model.kept.fields)
    assert len(model.kept.read("exemplars.images")) == 3 * 4
    assert len(members("icarl+m2kd", (2, 1), model)) == 2
    assert model.rule.kind == "nearest-mean"


def test_the_teacher_of_auxiliary_distillation_alone_is_the_last_network(tmp_path):
    model = learn("lwf-mc+aux", (2, 1), tmp_path)[-1]
    assert model.kept.read("auxiliary.weight").shape == (3, 32)
    ctx, _ = following("lwf-mc+aux", (2, 1), model)
    said = ctx.teachers["previous"](IMAGES)
    assert torch.allclose(said.logits, model.net(IMAGES).logits, atol=1e-6)
    assert said.auxiliary.shape == (6, 3)


@pytest.mark.parametrize("method", ["lwf-mc", "lwf-mc+aux", "m2kd", "icarl+m2kd"])
def test_looking_answers_up_teaches_what_asking_the_teachers_teaches(method, tmp_path):
    model = learn(method, (2, 1), tmp_path)[-1]
    session = dataclasses.replace(toys.session(), augment=Augment("centre"))
    ctx, phases = following(method, (2, 1), model, session=session)
    run = PhaseRun(ctx, phases[0], 0, session)
    mirrored = 0
    for step in range(2):
        batch = run._batch(step)
        found = lesson(ctx, batch)
        with torch.no_grad():
            asked = ctx.teachers["previous"](batch.images)
        mirrored += int(batch.views[:, 2].sum())
        assert torch.allclose(found.logits, asked.logits[:, :3], atol=1e-5)
        if method != "lwf-mc":
            assert torch.allclose(found.auxiliary, asked.auxiliary, atol=1e-5)
    assert mirrored
    table = ctx.by_view["logits"]
    assert table.shape == (2 * len(ctx.view), 3)
    ctx.teachers["previous"].forward = None  # nobody is asked any more
    PhaseRun(ctx, phases[-1], 0, session).run()
    assert ctx.by_view["logits"] is table


def test_where_views_are_many_a_batch_is_asked_about_once(tmp_path, monkeypatch):
    model = learn("m2kd", (2,), tmp_path)[-1]
    session = toys.session()
    ctx, phases = following("m2kd", (2,), model, session=session)
    run = PhaseRun(ctx, phases[0], 0, session)
    teacher, calls = ctx.teachers["previous"], []
    teacher.register_forward_hook(lambda *given: calls.append(1))
    phases[0].step(ctx, run._batch(0))
    assert len(calls) == 1
    assert not ctx.by_view


def test_an_increment_without_free_weights_is_refused_before_it_begins(twelve):
    kept = Store(twelve[2].kept.fields)
    for name in kept._fields:
        kept.copy(name, twelve[2].kept)
    owners = {n: np.maximum(v, 1) for n, v in kept.read(LABELS).items()}
    kept.write(LABELS, owners)
    model = dataclasses.replace(twelve[2], kept=kept)
    with pytest.raises(TrainingError, match=r"0\.00% of the weights free") as refusal:
        following("m2kd", SIZES[:3], model)
    assert "pruning" in refusal.value.hint


def origin_of(model, method):
    kept = tuple(model.kept.field(name) for name in model.kept.names)
    return Origin(method, "sigmoid", "argmax", kept)


def test_what_cannot_be_continued_from_is_refused(twelve):
    own = origin_of(twelve[2], "m2kd")
    assert registry.build("m2kd").adopt(own) is None
    assert "settings" in registry.build("m2kd", {"pruning": 0.8}).adopt(own)
    assert "settings" in registry.build("m2kd", {"skip": 1}).adopt(own)
    nothing = Origin("lwf-mc", "sigmoid", "argmax")
    for method in ("m2kd", "lwf-mc+mmd", "lwf-mc+aux", "icarl+m2kd"):
        assert "not kept" in registry.build(method).adopt(nothing)
    assert "not kept" in registry.build("lwf-mc+aux").adopt(own)
    assert registry.build("lwf-mc").adopt(own) is None
    soft = dataclasses.replace(own, head_kind="softmax")
    assert "sigmoid" in registry.build("m2kd").adopt(soft)


@pytest.mark.parametrize("method", ["lwm+mmd", "lwf+m2kd", "finetune+aux", "lwf-mc+mmd+aux"])
def test_a_host_whose_teacher_cannot_be_replaced_is_refused(method):
    with pytest.raises(UsageError, match="cannot be laid over"):
        registry.build(method)


@pytest.mark.parametrize(("arch", "limit"), [("resnet32", 300_000), ("resnet18", 5_000_000)])
def test_the_plan_of_ten_times_ten_classes(arch, limit):
    sizes = dimensions(NetSpec(arch), (10,) * 10, 32)
    most = plan(registry.build("m2kd").fields, sizes)
    least = plan(registry.build("m2kd").fields, sizes, size="least")
    assert not most.exact
    assert least.kept_bytes < most.kept_bytes <= limit
