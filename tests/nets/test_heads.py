"""Heads: growth leaves old rows alone, and the closed form of a logit's gradient is exact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgecil.errors import UsageError
from edgecil.nets.heads import CosineHead, GrowingHead, LinearHead

Kind = type[LinearHead] | type[CosineHead]
HEADS = (LinearHead, CosineHead)
FEATURES = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))


def rows(head: GrowingHead) -> list[Tensor]:
    return [head.weight] if head.bias is None else [head.weight, head.bias]


@pytest.mark.parametrize("kind", HEADS)
def test_growth_keeps_old_rows_bit_for_bit(kind: Kind) -> None:
    torch.manual_seed(0)
    head = kind(16, 4)
    before, logits = [r.detach().clone() for r in rows(head)], head(FEATURES)
    head.grow(1)
    head.grow(3)
    assert head.classes == head.width == 8
    assert head(FEATURES).shape == (9, 8)
    for old, new in zip(before, rows(head), strict=True):
        assert torch.equal(old, new[:4])
        assert isinstance(new, torch.nn.Parameter) and new.requires_grad
        assert new[4:].abs().min() > 0
    torch.testing.assert_close(head(FEATURES)[:, :4], logits)
    assert head(FEATURES)[:, :4].argmax(1).equal(logits.argmax(1))


@pytest.mark.parametrize("kind", HEADS)
def test_new_rows_follow_the_seed_and_the_range_of_linear_layers(kind: Kind) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(kind(16, 2))
        heads[-1].grow(500)
    first, again, other = (head.weight.detach() for head in heads)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.abs().max() <= 1 / 4 and first.std().item() == pytest.approx(1 / 48**0.5, rel=0.02)


@pytest.mark.parametrize("kind", HEADS)
def test_fixed_width_uses_units_that_exist(kind: Kind) -> None:
    head = kind(16, 10, 12)
    weight = head.weight
    assert (head.classes, head.width) == (10, 12)
    assert head(FEATURES).shape == (9, 12)
    head.grow(2)
    assert (head.classes, head.width) == (12, 12)
    assert head.weight is weight
    with pytest.raises(UsageError, match="width 12 with 12 classes has no room for 1 more"):
        head.grow(1)
    assert head.classes == 12
    with pytest.raises(UsageError, match="width 3"):
        kind(16, 4, 3)


def test_a_frozen_head_grows_frozen_rows_of_its_type() -> None:
    head = LinearHead(16, 2).double().requires_grad_(False)
    head.grow(2)
    assert not head.weight.requires_grad and head.weight.dtype == torch.float64


def test_cosine_head_sees_directions_only() -> None:
    head = CosineHead(16, 5)
    head.eta.data.fill_(3.0)
    expected = 3 * F.cosine_similarity(FEATURES[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(FEATURES), expected)
    torch.testing.assert_close(head(7 * FEATURES), expected)
    assert head.cosines(head.weight).diagonal().tolist() == pytest.approx([1] * 5)
    assert head(torch.zeros(1, 16)).isfinite().all()


@pytest.mark.parametrize("kind", HEADS)
def test_heads_stay_precise_under_autocast(kind: Kind) -> None:
    head = kind(16, 5)
    expected = head(FEATURES)
    classes = torch.arange(9) % 5
    gradient = head.logit_gradient(FEATURES, classes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(FEATURES), expected)
        assert torch.equal(head.logit_gradient(FEATURES, classes), gradient)
        assert head(FEATURES.bfloat16()).dtype == torch.float32


def double_case(kind: Kind) -> tuple[LinearHead | CosineHead, Tensor, Tensor]:
    torch.manual_seed(5)
    head = kind(6, 7).double()
    if isinstance(head, CosineHead):
        head.eta.data.fill_(2.5)
    features = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    return head, features, torch.tensor([0, 3, 3, 6, 1, 0, 2, 5])


@pytest.mark.parametrize("kind", HEADS)
def test_logit_gradient_equals_autograd(kind: Kind) -> None:
    head, features, classes = double_case(kind)
    scores = head(features).gather(1, classes[:, None])
    (expected,) = torch.autograd.grad(scores.sum(), features)
    closed = head.logit_gradient(features, classes)
    torch.testing.assert_close(closed, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_through_the_closed_form_equal_double_backward(kind: Kind) -> None:
    """The attention loss of LwM sends the same gradient to maps and head weights either way."""
    head, _, classes = double_case(kind)
    torch.manual_seed(6)
    feature_map = torch.randn(8, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(8, 9, dtype=torch.float64)
    wanted = [feature_map, *head.parameters()]
    features = feature_map.mean(dim=(2, 3))

    def attend(weights: Tensor) -> Tensor:
        summed = torch.relu((weights[:, :, None] * feature_map.flatten(2)).sum(1))
        unit = [F.normalize(q, dim=1) for q in (teacher, summed)]
        return (unit[0] - unit[1]).abs().sum(1).mean()

    scores = head(features).gather(1, classes[:, None]).sum()
    (through_graph,) = torch.autograd.grad(scores, feature_map, create_graph=True)
    naive = torch.autograd.grad(
        attend(through_graph.sum((2, 3))), wanted, retain_graph=True, allow_unused=True
    )
    closed = torch.autograd.grad(
        attend(head.logit_gradient(features, classes)),
        wanted,
        retain_graph=True,
        allow_unused=True,
    )
    for expected, found in zip(naive, closed, strict=True):
        assert (expected is None) == (found is None)
        if expected is not None and found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)
    assert closed[0].abs().max() > 0 and closed[1].abs().max() > 0


@pytest.mark.parametrize("kind", HEADS)
def test_logit_gradient_passes_gradgradcheck(kind: Kind) -> None:
    head, features, classes = double_case(kind)

    def closed(features: Tensor, weight: Tensor) -> Tensor:
        result = torch.func.functional_call(
            _Gradient(head), {"head.weight": weight}, (features, classes)
        )
        assert isinstance(result, Tensor)
        return result

    weight = head.weight.detach().clone().requires_grad_()
    arguments = (features[:3].detach().requires_grad_(), weight)
    classes = classes[:3]
    assert torch.autograd.gradcheck(closed, arguments)
    assert torch.autograd.gradgradcheck(closed, arguments)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_gradients_of_the_closed_form_repeat_bit_for_bit() -> None:
    """Indexing the weights instead fails here: threads add up its gradient in any order."""
    torch.manual_seed(0)
    head = LinearHead(512, 10)
    classes, weights = torch.randint(0, 10, (4096,)), torch.randn(4096, 512)

    def gradient() -> Tensor:
        closed = head.logit_gradient(torch.empty(0), classes)
        return torch.autograd.grad(closed, head.weight, weights)[0]

    first = gradient()
    assert all(torch.equal(first, gradient()) for _ in range(20))


class _Gradient(torch.nn.Module):
    """``logit_gradient`` as a forward pass."""

    def __init__(self, head: LinearHead | CosineHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        # The linear form does not depend on the features; 0 * keeps them in the graph.
        closed = self.head.logit_gradient(features, classes)
        result: Tensor = closed + 0 * features
        return result
