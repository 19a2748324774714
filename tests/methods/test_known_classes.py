"""More images of old classes, beside new classes or alone: every method that says it can."""

import dataclasses

import numpy as np
import pytest
import torch
import toys

from edgecil import registry
from edgecil.context import Classes, class_means
from edgecil.data.images import ImageSet, concat
from edgecil.engine import increment
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun
from edgecil.engine.optim import group_parameters
from edgecil.losses.distillation import sigmoid_losses
from edgecil.memory.fields import COUNTS, IMAGES

ABLE = [
    name
    for name, info in registry.methods().items()
    if info.kind == "method" and registry.build(name).updates_known
]
able = pytest.mark.parametrize("method", ABLE)
TAUGHT_AGAIN = 1


def other_look(label: int, count: int = 12, look: int = 6) -> ImageSet:
    """Return images that are called ``label`` and look like none of the first classes."""
    pixels = toys.image_set(range(look, look + 1), count).pixels
    return ImageSet(pixels, torch.full((count,), label))


def update(method, previous, new: ImageSet, groups, updated, folder, **changes):
    """Return task, sets and paths of an increment with new images of old classes."""
    given = toys.task(method, groups, previous, **changes)
    given = dataclasses.replace(given, classes=Classes(groups, updated))
    return given, toys.sets_of(given, new), toys.files_of(new, folder)


def margin(model, images: ImageSet) -> float:
    """Return by how much the score of an image's class is above that of the best other, on mean."""
    batch = (images.pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    outputs = model.net(batch)
    scores = model.rule(outputs.features, outputs.logits)
    own = torch.nn.functional.one_hot(images.labels, scores.shape[1]).bool()
    others = scores.masked_fill(own, -torch.inf)
    return float((scores[own] - others.amax(dim=1)).mean())


def test_those_that_the_front_door_promises_are_able():
    promised = {"finetune", "lwf", "lwf-mc", "lwm", "icarl", "rehearsal", "lwf-coreset", "ncm"}
    assert promised | {"joint"} <= set(ABLE)
    assert not {"m2kd", "bic", "lucir", "eeil"} & set(ABLE)
    assert not registry.build("icarl+aux").updates_known


@pytest.mark.parametrize("method", ["lwm+mfgr", "icarl+mfgr"])
def test_a_plug_in_promises_nothing_whatever_outputs_are_continued(method):
    recipe = registry.build(method)
    for kind in ("sigmoid", "softmax"):
        form = recipe.on(kind)
        assert (form.updates_known, form.base, form.name) == (False, None, method)
        assert any(module.name == "generator" for module in form.modules), "it is over all forms"


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The model of a method that knows three classes, trained once."""
    made = {}

    def get(method):
        if method not in made:
            training = dataclasses.replace(toys.TRAINING, epochs=4)
            folder = tmp_path_factory.mktemp(method)
            made[method] = toys.learn(method, (3,), folder, training=training)[-1].model
        return made[method]

    return get


@able
@pytest.mark.parametrize("with_new", [False, True])
def test_an_old_class_learns_its_new_images(method, with_new, learned, tmp_path):
    before, new, groups = learned(method), other_look(TAUGHT_AGAIN), (3, 0)
    if with_new:
        new, groups = concat([new, other_look(3, look=8)]), (3, 1)
    training = dataclasses.replace(toys.TRAINING, epochs=6)
    given, sets, paths = update(
        method, before, new, groups, (TAUGHT_AGAIN,), tmp_path, training=training
    )
    outcome = increment.train(given, sets, toys.session(), paths=paths)
    assert outcome.model.net.classes == sum(groups)
    images = other_look(TAUGHT_AGAIN, 20)
    assert margin(outcome.model, images) > margin(before, images) + 0.05
    outputs = outcome.model.net(torch.randn(2, 3, 32, 32))
    assert outcome.model.rule(outputs.features, outputs.logits).shape == (2, sum(groups))


@able
@pytest.mark.parametrize("groups", [(3, 0), (3, 1)])
def test_every_term_still_sends_gradient_where_it_says(method, groups, learned, tmp_path):
    new = concat([toys.image_set(range(sum(groups))), other_look(TAUGHT_AGAIN)])
    given, sets, _ = update(method, learned(method), new, groups, (0, 1, 2), tmp_path)
    session = toys.session()
    ctx, phases = begin(given, sets, session)
    for index, phase in enumerate(phases):
        phase.prepare(ctx)
        run = PhaseRun(ctx, phase, index, session)
        with torch.no_grad():
            for parameter in ctx.net.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        for name in list(phase.step(ctx, run._batch(0))):
            run.optimisers.zero()
            term = phase.step(ctx, run._batch(0))[name]
            assert torch.isfinite(term.value)
            term.value.backward()
            for group in {*phase.trains, *term.to}:
                grads = [p.grad for p in group_parameters(ctx, group).values()]
                assert any(g is not None and g.abs().max() > 0 for g in grads) == (group in term.to)


@pytest.mark.parametrize("updated", [(), (1,), (0, 2)])
def test_sigmoid_losses_equal_the_reference(updated):
    torch.manual_seed(2)
    logits, teacher = torch.randn(5, 5, dtype=torch.float64), torch.randn(5, 3)
    labels, log_sigmoid = torch.tensor([0, 1, 2, 3, 4]), torch.nn.functional.logsigmoid
    truth = taught = 0.0
    for n in range(5):
        for c in range(5):
            own = c >= 3 or (c in updated and labels[n] == c)
            target = float(labels[n] == c) if own else torch.sigmoid(teacher[n, c].double())
            loss = -target * log_sigmoid(logits[n, c]) - (1 - target) * log_sigmoid(-logits[n, c])
            truth, taught = (truth + loss, taught) if own else (truth, taught + loss)
    losses = sigmoid_losses(logits, labels, 3, teacher, updated)
    assert losses["classification"].item() == pytest.approx(float(truth) / 5, rel=1e-5)
    assert losses["distillation"].item() == pytest.approx(float(taught) / 5, rel=1e-5)


def test_the_exemplars_of_an_updated_class_are_chosen_among_kept_and_new(learned, tmp_path):
    before, new = learned("icarl"), other_look(TAUGHT_AGAIN, 4)
    given, sets, paths = update("icarl", before, new, (3, 0), (TAUGHT_AGAIN,), tmp_path)
    kept = increment.train(given, sets, toys.session(), paths=paths).model.kept
    assert kept.read(COUNTS).tolist() == [5, 5, 5]
    old, now = before.kept.read(IMAGES), kept.read(IMAGES)
    for other in (slice(0, 5), slice(10, 15)):  # the rest stays as it was stored
        assert np.array_equal(now[other], old[other])
    known = {image.tobytes() for image in old[5:10]}
    fresh = {image.numpy().tobytes() for image in new.pixels}
    mine = [image.tobytes() for image in now[5:10]]
    assert len(set(mine)) == 5 and set(mine) <= known | fresh
    assert known & set(mine) and fresh & set(mine)


def test_kept_images_of_an_updated_class_fill_the_budget_before_they_go(learned, tmp_path):
    before, new = learned("rehearsal"), other_look(0, 2)
    given, sets, paths = update("rehearsal", before, new, (3, 0), (0,), tmp_path)
    limit = dataclasses.replace(given.budget, per_class=50)
    given = dataclasses.replace(given, budget=limit)
    kept = increment.train(given, sets, toys.session(), paths=paths).model.kept
    assert kept.read(COUNTS).tolist() == [7, 5, 5]
    stored = {image.tobytes() for image in kept.read(IMAGES)[:7]}
    assert stored == {i.tobytes() for i in before.kept.read(IMAGES)[:5]} | {
        i.numpy().tobytes() for i in new.pixels
    }


def test_joint_refers_to_the_new_files_too(learned, tmp_path):
    given, sets, paths = update("joint", learned("joint"), other_look(2, 3), (3, 0), (2,), tmp_path)
    kept = increment.train(given, sets, toys.session(), paths=paths).model.kept
    assert kept.read(COUNTS).tolist() == [12, 12, 15]
    names = [item[32:].decode() for item in kept.items(IMAGES)[-3:]]
    assert sorted(names) == sorted(str(path) for path in paths)


def test_a_mean_moves_half_of_the_way_and_the_others_stay(learned, tmp_path):
    before, new = learned("ncm"), other_look(TAUGHT_AGAIN)
    given, sets, paths = update("ncm", before, new, (3, 0), (TAUGHT_AGAIN,), tmp_path)
    outcome = increment.train(given, sets, toys.session(), paths=paths)
    old, now = before.rule.means, outcome.model.rule.means
    assert torch.equal(now[[0, 2]], old[[0, 2]])
    ctx, _ = begin(given, sets, toys.session())
    theirs = class_means(ctx, new, 0)[1]
    halfway = torch.nn.functional.normalize(old[1] + theirs, dim=0)
    torch.testing.assert_close(now[1], halfway, atol=1e-5, rtol=0)


def test_lwf_balances_by_the_classes_that_have_new_images(learned, tmp_path):
    new = other_look(TAUGHT_AGAIN)
    given, sets, _ = update(
        "lwf", learned("lwf"), new, (3, 0), (TAUGHT_AGAIN,), tmp_path, options={"balance": True}
    )
    ctx, phases = begin(given, sets, toys.session())
    run = PhaseRun(ctx, phases[0], 0, toys.session())
    terms = phases[0].step(ctx, run._batch(0))
    assert {n: t.weight for n, t in terms.items()} == {
        "classification": pytest.approx(1 / 3), "distillation": pytest.approx(2 / 3),
    }  # fmt: skip
