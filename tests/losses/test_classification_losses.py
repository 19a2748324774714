"""Classification losses against plain float64 references."""

import math

import pytest
import torch

from edgecil.losses.classification import binary_cross_entropy, cross_entropy, one_hot


def test_cross_entropy_over_a_span_ignores_the_other_units():
    logits = torch.tensor([[9.0, 0.0, 1.0], [-9.0, 2.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([2, 1])
    expected = (
        -math.log(math.exp(1) / (1 + math.exp(1))) - math.log(math.exp(2) / (1 + math.exp(2)))
    ) / 2
    assert cross_entropy(logits, labels, slice(1, 3)).item() == pytest.approx(expected, abs=1e-6)


def test_binary_cross_entropy_has_both_halves():
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.3, 0.0]])
    sigmoid = [1 / (1 + math.exp(-v)) for v in (2.0, -1.0)]
    expected = -(0.3 * math.log(sigmoid[0]) + 0.7 * math.log(1 - sigmoid[0])) - math.log(
        1 - sigmoid[1]
    )
    assert binary_cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_binary_cross_entropy_pushes_down_a_unit_with_target_zero():
    logits = torch.zeros(1, 1, requires_grad=True)
    binary_cross_entropy(logits, torch.zeros(1, 1)).backward()
    assert logits.grad.item() == pytest.approx(0.5)


def test_one_hot_leaves_labels_outside_the_span_without_a_one():
    assert one_hot(torch.tensor([0, 2, 3]), 2, 4).tolist() == [[0, 0], [1, 0], [0, 1]]
