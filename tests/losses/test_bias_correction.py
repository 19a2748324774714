"""BiC's pair: a true minimum, found exactly, and the published descent, which ends near it."""

import numpy as np
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


def descent(logits, labels, lr, epochs, batch_size, milestones):
    """Return alpha and beta after the published stage 2, written out image by image."""
    order = np.argsort(labels, kind="stable")
    alpha, beta, speed = 1.0, 0.0, np.zeros(2)
    rows = np.tile(order, epochs)
    for start in range(0, len(rows), batch_size):
        batch, slope = rows[start : start + batch_size], np.zeros(2)
        for row in batch:
            z = logits[row].copy()
            z[NEW] = alpha * z[NEW] + beta
            off = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            off[labels[row]] -= 1
            slope += [off[NEW] @ logits[row][NEW] / len(batch), off[NEW].sum() / len(batch)]
        slope[1] += 0.1 * beta
        speed = 0.9 * speed + slope
        rate = lr * 0.1 ** sum(start / len(rows) >= m for m in milestones)
        alpha, beta = (alpha, beta) - rate * speed
    return [alpha, beta]


@pytest.mark.parametrize("batch_size", [16, 60, 100])  # across the end of an epoch, too
def test_the_published_descent_is_momentum_on_batches_in_order_of_class(batch_size):
    logits, labels = biased(1)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    settings = {"lr": 0.05, "epochs": 4, "batch_size": batch_size, "milestones": (0.5, 0.75)}
    found = fit_by_descent(logits[shuffled], labels[shuffled], NEW, **settings)
    wanted = descent(logits[shuffled].numpy(), labels[shuffled].numpy(), **settings)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(wanted, rel=1e-10)


def test_the_published_descent_ends_near_the_minimum():
    """Far from (1, 0): the published log has alpha from 0.39 to 0.59, beta about -0.5."""
    logits, labels = biased(1)
    found = fit_by_descent(logits, labels, NEW, batch_size=32)
    minimum = fit_exactly(logits, labels, NEW, ridge=1e-9)
    assert (found - minimum).abs().max() < 0.05
    assert found[0] < 0.7 and found[1] < -0.3
