"""LwM as the paper has it: one class for both maps, a term that trains, a fallback that agrees."""

import dataclasses

import pytest
import torch
import toys
from torch import nn

from edgecil import registry
from edgecil.engine.increment import begin
from edgecil.engine.loop import PhaseRun
from edgecil.engine.optim import group_parameters
from edgecil.methods import lwm
from edgecil.nets.taps import freeze


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return toys.learn("lwm", (3,), tmp_path_factory.mktemp("base"))[0].model


def running(base, **options):
    """Return a run of the second increment whose student has moved away from its teacher."""
    given = toys.task("lwm", (3, 2), base, options=options)
    new = toys.image_set(range(3, 5))
    ctx, phases = begin(given, toys.sets_of(given, new), toys.session())
    run = PhaseRun(ctx, phases[0], 0, toys.session())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in ctx.net.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return run


def gradients(run):
    """Return the gradient of every student parameter for the first batch."""
    terms = run.phase.step(run.ctx, run._batch(0))
    loss = sum(term.weight * term.value for term in terms.values())
    return torch.autograd.grad(loss, list(run.ctx.net.parameters()), allow_unused=True)


def test_gamma_changes_the_gradient_of_the_backbone_and_of_the_head(base):
    without, with_term = gradients(running(base, gamma=0.0)), gradients(running(base, gamma=5.0))
    names = [name for name, _ in running(base).ctx.net.named_parameters()]
    moved = {n for n, a, b in zip(names, without, with_term, strict=True) if not torch.equal(a, b)}
    assert "backbone.conv1.weight" in moved
    assert "head.weight" in moved
    assert "head.bias" not in moved  # a constant added to a score moves no attention


def test_gamma_zero_and_beta_one_is_lwf_mc_to_the_bit(tmp_path):
    options = {"gamma": 0.0, "beta": 1.0}
    ours = toys.learn("lwm", (2, 2), tmp_path / "a", options=options)[-1].model
    theirs = toys.learn("lwf-mc", (2, 2), tmp_path / "b")[-1].model
    for name, value in ours.net.state_dict().items():
        assert torch.equal(value, theirs.net.state_dict()[name]), name


def test_both_maps_are_of_the_students_best_old_class(base, monkeypatch):
    run, asked = running(base), []
    real = lwm.attention

    def watched(net, outputs, classes, *, trains):
        asked.append((net, outputs.logits, classes))
        return real(net, outputs, classes, trains=trains)

    monkeypatch.setattr(lwm, "attention", watched)
    run.phase.step(run.ctx, run._batch(0))
    (teacher, _, first), (student, logits, second) = asked
    assert teacher is run.ctx.teachers["previous"] and student is run.ctx.net
    assert torch.equal(first, second)
    assert first.max() < run.ctx.classes.old
    assert torch.equal(first, logits[:, : run.ctx.classes.old].argmax(dim=1))
    assert first.shape == (len(logits),)  # one class for each image, not a matrix


class Opaque(nn.Module):
    """A head that hides its closed form."""

    def __init__(self, head):
        super().__init__()
        self.inner, self.classes = head, head.classes

    def forward(self, features):
        return self.inner(features)


def test_the_fallback_for_heads_without_a_closed_form_gives_the_same_term_and_gradients(base):
    run = running(base)
    images = run._batch(0).images.double()
    nets = []
    for hide in (False, True):
        net, teacher = freeze(run.ctx.net).double(), freeze(base.net).double()
        if hide:
            net.head, teacher.head = Opaque(net.head), Opaque(teacher.head)
        nets.append((net.requires_grad_(True), teacher))
    found = []
    for net, teacher in nets:
        outputs = net(images)
        best = outputs.logits[:, :3].argmax(dim=1)
        with torch.no_grad():
            target = teacher(images)
        maps = [
            lwm.attention(teacher, target, best, trains=False),
            lwm.attention(net, outputs, best, trains=True),
        ]
        loss = lwm.attention_distance(maps[0].detach(), maps[1])
        parameters = [p for n, p in net.named_parameters() if not n.endswith("head.bias")]
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        found.append((loss, [g for g in grads if g is not None]))
    (closed, closed_grads), (naive, naive_grads) = found
    assert closed.item() == pytest.approx(naive.item(), abs=1e-6)
    assert closed.item() > 0.01
    for a, b in zip(closed_grads, naive_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_cosine_head_is_served_by_its_own_closed_form(tmp_path):
    recipe = dataclasses.replace(registry.build("lwm"), head_kind="cosine")
    given = toys.task("lwm", (3,))
    spec = dataclasses.replace(given.spec, head="cosine")
    ctx, _ = begin(
        dataclasses.replace(given, recipe=recipe, spec=spec),
        toys.sets_of(given, toys.image_set(range(3))), toys.session(),
    )  # fmt: skip
    outputs = ctx.net.eval()(torch.randn(4, 3, 32, 32))
    classes = torch.tensor([0, 1, 2, 0])
    closed = lwm.attention(ctx.net, outputs, classes, trains=False)
    scores = outputs.logits.gather(1, classes[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(scores.sum(), outputs.map)
    alpha = gradient.mean(dim=(2, 3), keepdim=True)
    grad_cam = torch.relu((alpha * outputs.map).sum(dim=1)).flatten(1)
    torch.testing.assert_close(
        nn.functional.normalize(closed), nn.functional.normalize(grad_cam), rtol=1e-4, atol=1e-5
    )


@pytest.fixture(scope="module")
def softmax_base(tmp_path_factory):
    return toys.learn("finetune", (3,), tmp_path_factory.mktemp("softmax"))[0].model


def on_softmax(base, arch="resnet8", hide=False, **options):
    """Return a run of LwM's form for softmax outputs, the student moved away from its teacher."""
    given = toys.task("lwm", (3, 2), base, options=options)
    given = dataclasses.replace(given, recipe=given.recipe.on("softmax"))
    if hide:
        base = dataclasses.replace(base, net=freeze(base.net))
        base.net.head = Growing(base.net.head)
        given = dataclasses.replace(given, previous=base)
    said = []
    session = toys.session(listener=said.append)
    ctx, phases = begin(given, toys.sets_of(given, toys.image_set(range(3, 5))), session)
    run = PhaseRun(ctx, phases[0], 0, session)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in ctx.net.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return run, said


class Growing(Opaque):
    """A head without a closed form that can be continued."""

    def grow(self, count):
        self.inner.grow(count)
        self.classes += count


@pytest.mark.parametrize("hide", [False, True])
def test_on_softmax_outputs_every_term_trains_what_it_says(softmax_base, hide):
    run, said = on_softmax(softmax_base, hide=hide)
    assert any("distils them as lwf does" in getattr(event, "text", "") for event in said)
    batch = run._batch(0)
    assert set(run.phase.step(run.ctx, batch)) == {"classification", "distillation", "attention"}
    for name in ("classification", "distillation", "attention"):
        run.optimisers.zero()
        term = run.phase.step(run.ctx, batch)[name]
        term.value.backward()
        for group in ("backbone", "head"):
            grads = [p.grad for p in group_parameters(run.ctx, group).values()]
            reached = any(g is not None and g.abs().max() > 0 for g in grads)
            assert reached == (group in term.to), f"{name} -> {group}"


def test_on_softmax_outputs_its_terms_are_those_of_lwf_and_of_the_sigmoid_form(softmax_base):
    run, _ = on_softmax(softmax_base, beta=3.0, gamma=0.5)
    run.ctx.net.eval()  # one batch's statistics must not differ between the passes
    batch = run._batch(0)
    terms = run.phase.step(run.ctx, batch)
    lwf = registry.build("lwf").phases(run.ctx.setup)[0].step(run.ctx, batch)
    sigmoid = registry.build("lwm").phases(run.ctx.setup)[0].step(run.ctx, batch)
    for name, other in (("classification", lwf), ("distillation", lwf), ("attention", sigmoid)):
        torch.testing.assert_close(terms[name].value, other[name].value)
    weights = {name: term.weight for name, term in terms.items()}
    assert weights == {"classification": 1.0, "distillation": 3.0, "attention": 0.5}
