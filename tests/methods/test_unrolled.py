"""Gradients through the training of a temporary model, against the plain form and differences."""

import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from edgecil.losses.prototypes import class_prototypes, prototype_logits
from edgecil.parts.unrolled import Descent, checkpointed, unrolled


class Tiny(nn.Module):
    """A convolution, batch norm in eval mode, tanh and a linear layer, in float64."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x))).mean(dim=(2, 3)))


@pytest.fixture
def given():
    torch.manual_seed(0)
    net = Tiny().double().eval()
    net.norm.running_mean.normal_()
    images = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    queries = torch.randn(6, 2, 5, 5, dtype=torch.float64)
    return net, images, torch.arange(4), queries, torch.tensor([0, 1, 2, 3, 1, 0])


def descent_of(net, labels, steps, lr=0.3):
    # Every step sees other images: the number of the step matters.
    picks = [torch.tensor([s % 4, (s + 1) % 4, (2 * s + 3) % 4]) for s in range(steps)]

    def inner(weights, images, step):
        logits = functional_call(net, dict(weights), (images[picks[step]],))
        return F.cross_entropy(logits, labels[picks[step]])

    return Descent(inner, steps, lr), picks


def outer(net, weights, queries, labels):
    return F.cross_entropy(functional_call(net, dict(weights), (queries,)), labels)


def by_hand(net, images, labels, picks, lr, queries, answers):
    """Return outer loss and gradient of images by descent that is written out."""
    images = images.clone().requires_grad_()
    names = [n for n, _ in net.named_parameters()]
    theta = [p.detach().clone().requires_grad_() for p in net.parameters()]
    for pick in picks:
        out = functional_call(net, dict(zip(names, theta, strict=True)), (images[pick],))
        loss = -torch.log_softmax(out, 1).gather(1, labels[pick][:, None]).mean()
        grads = torch.autograd.grad(loss, theta, create_graph=True)
        theta = [t - lr * g for t, g in zip(theta, grads, strict=True)]
    out = functional_call(net, dict(zip(names, theta, strict=True)), (queries,))
    loss = -torch.log_softmax(out, 1).gather(1, answers[:, None]).mean()
    return loss.detach(), torch.autograd.grad(loss, images)[0]


@pytest.mark.parametrize("train", [unrolled, checkpointed])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_gradient_into_the_pixels_is_that_of_descent_written_out(given, train, steps):
    net, images, labels, queries, answers = given
    descent, picks = descent_of(net, labels, steps)
    pixels = images.clone().requires_grad_()
    loss = outer(net, train(descent, dict(net.named_parameters()), pixels), queries, answers)
    loss.backward()
    expected, gradient = by_hand(net, images, labels, picks, 0.3, queries, answers)
    assert gradient.abs().max() > 1e-4
    assert torch.allclose(loss, expected, rtol=0, atol=1e-14)
    assert torch.allclose(pixels.grad, gradient, rtol=0, atol=1e-14)
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


def test_it_agrees_with_finite_differences(given):
    net, images, labels, queries, answers = given
    descent, _ = descent_of(net, labels, 4)
    weights = dict(net.named_parameters())

    def loss(pixels):
        return outer(net, checkpointed(descent, weights, pixels), queries, answers)

    pixels = images.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (pixels,), eps=1e-6, atol=1e-8)


def test_without_a_step_the_weights_stay_and_no_gradient_comes(given):
    net, images, labels, queries, answers = given
    pixels = images.clone().requires_grad_()
    descent, _ = descent_of(net, labels, 0)
    trained = checkpointed(descent, dict(net.named_parameters()), pixels)
    for name, parameter in net.named_parameters():
        assert torch.equal(trained[name], parameter)
    outer(net, trained, queries, answers).backward()
    assert not pixels.grad.any()


class Saved:
    """A tensor that a graph holds for its way back."""

    def __init__(self, tensor):
        self.tensor = tensor


def held(given, train, steps):
    """Return how many tensors graphs hold after ``steps`` of training, and at most on both ways."""
    net, images, labels, queries, answers = given
    descent, _ = descent_of(net, labels, steps)
    alive, most = weakref.WeakSet(), 0

    def pack(tensor):
        nonlocal most
        saved = Saved(tensor)
        alive.add(saved)
        most = max(most, len(alive))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        pixels = images.clone().requires_grad_()
        trained = train(descent, dict(net.named_parameters()), pixels)
        after = len(alive)
        outer(net, trained, queries, answers).backward()
    return after, most


def test_checkpointed_holds_the_graph_of_one_step(given):
    assert held(given, checkpointed, 8) == held(given, checkpointed, 2)
    few, many = held(given, unrolled, 2), held(given, unrolled, 8)
    assert many[0] > 3 * few[0] and many[1] > 3 * few[1]


def test_descent_on_pixels_lowers_the_outer_loss(given):
    net, images, labels, queries, answers = given
    descent, _ = descent_of(net, labels, 4)
    pixels, losses = images.clone().requires_grad_(), []
    optimiser = torch.optim.Adam([pixels], lr=0.2)
    for _ in range(30):
        trained = checkpointed(descent, dict(net.named_parameters()), pixels)
        loss = outer(net, trained, queries, answers)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.97 * losses[0]


def test_prototype_logits_are_cosines_to_class_means():
    torch.manual_seed(0)
    features = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    labels, fixed = torch.tensor([2, 2, 0, 2, 0, 4, 4]), torch.randn(5, 5, dtype=torch.float64)
    queries = torch.randn(3, 5, dtype=torch.float64)
    logits = prototype_logits(queries, class_prototypes(features, labels, fixed))
    for row, query in enumerate(queries):
        for label in range(5):
            mine = features[labels == label]
            mean = mine.mean(0) if len(mine) else fixed[label]
            cosine = query @ mean / (query.norm() * mean.norm())
            assert torch.allclose(logits[row, label], cosine, atol=1e-14)
    (gradient,) = torch.autograd.grad(logits.sum(), features)
    assert gradient.abs().min() > 0
