"""BiC's pair: a true minimum, found exactly; the published form stops before it."""

import pytest
import torch

from edgecil.losses.bias_correction import corrected, fit_by_descent, fit_exactly, objective

NEW = slice(3, 5)


def biased(seed, count=60, bias=2.0):
    """Return logits of five classes whose new columns are too large, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 5
    logits = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    logits[torch.arange(count), labels] += 1.5
    logits[:, NEW] = 1.8 * logits[:, NEW] + bias
    return logits, labels


def test_corrected_changes_the_new_columns_alone():
    logits, _ = biased(0)
    found = corrected(logits, NEW, torch.tensor([0.5, -1.0], dtype=torch.float64))
    assert torch.equal(found[:, :3], logits[:, :3])
    assert torch.allclose(found[:, 3:], 0.5 * logits[:, 3:] - 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_fit_is_a_minimum_by_automatic_differentiation(seed):
    logits, labels = biased(seed)
    pair = fit_exactly(logits, labels, NEW, ridge=1e-3).requires_grad_()
    cost = objective(logits, labels, NEW, pair, 1e-3)
    (slope,) = torch.autograd.grad(cost, pair)
    assert slope.abs().max() < 1e-10
    for nearby in torch.randn(50, 2, dtype=torch.float64) * 0.1:
        assert objective(logits, labels, NEW, pair + nearby, 1e-3) >= cost
    assert pair[0] < 1 and pair[1] < 0  # what was too large is made smaller


def test_images_that_are_separable_still_have_a_finite_pair():
    logits = torch.tensor([[5.0, -5.0], [-5.0, 5.0]], dtype=torch.float64)
    pair = fit_exactly(logits, torch.tensor([0, 1]), slice(1, 2), ridge=1e-3)
    assert torch.isfinite(pair).all() and pair[0] < 100


def test_the_published_form_moves_towards_the_minimum_and_stops_before_it():
    logits, labels = biased(1)
    cost = [objective(logits, labels, NEW, pair, 0.0) for pair in (
        torch.tensor([1.0, 0.0], dtype=torch.float64),
        fit_by_descent(logits, labels, NEW),
        fit_exactly(logits, labels, NEW, ridge=1e-9),
    )]  # fmt: skip
    assert cost[0] > cost[1] > cost[2]
