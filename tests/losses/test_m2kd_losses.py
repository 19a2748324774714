"""M2KD's losses against its equations, written out in float64 with both halves of each entropy."""

import numpy as np
import pytest
import torch

from edgecil.losses.distillation import auxiliary_losses, sigmoid_losses

GROUPS, IMAGES = (3, 2, 2), 5
OLD, SEEN = 5, 7


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def entropy(target, logit):
    return -(target * np.log(sigmoid(logit)) + (1 - target) * np.log(1 - sigmoid(logit)))


@pytest.fixture
def drawn():
    """Student logits, the logits of each snapshot for all classes it knew, and labels."""
    random = np.random.default_rng(0)
    student = random.normal(0, 2, (IMAGES, SEEN))
    snapshots = [random.normal(0, 2, (IMAGES, 3)), random.normal(0, 2, (IMAGES, 5))]
    return student, snapshots, random.integers(OLD, SEEN, IMAGES)


def taught(snapshots):
    """Return what each snapshot says about its own classes."""
    own = [snapshots[0][:, :3], snapshots[1][:, 3:]]
    return torch.cat([torch.tensor(part) for part in own], dim=1)


def distilled(student, snapshots):
    """Return the double sum over earlier increments k and their classes j of eqs. (2) and (3)."""
    total, start = 0.0, 0
    for logits, size in zip(snapshots, GROUPS, strict=False):
        for j in range(start, start + size):
            total += entropy(sigmoid(logits[:, j]), student[:, j]).sum()
        start += size
    return total / IMAGES


def test_multi_model_distillation_is_equation_2(drawn):
    student, snapshots, labels = drawn
    losses = sigmoid_losses(
        torch.tensor(student), torch.tensor(labels), OLD, taught(snapshots)
    )  # fmt: skip
    truth = sum(
        entropy(float(labels[i] == j), student[i, j]) for i in range(IMAGES) for j in range(5, 7)
    )
    assert losses["distillation"].item() == pytest.approx(distilled(student, snapshots), rel=1e-6)
    assert losses["classification"].item() == pytest.approx(truth / IMAGES, rel=1e-6)


def test_auxiliary_distillation_is_equation_3_with_the_truth_over_all_seen_classes(drawn):
    student, snapshots, labels = drawn
    losses = auxiliary_losses(
        torch.tensor(student), torch.tensor(labels), OLD, taught(snapshots)
    )  # fmt: skip
    truth = sum(
        entropy(float(labels[i] == j), student[i, j]) for i in range(IMAGES) for j in range(SEEN)
    )
    found = losses["auxiliary distillation"].item()
    assert found == pytest.approx(distilled(student, snapshots), rel=1e-6)
    assert losses["auxiliary classification"].item() == pytest.approx(truth / IMAGES, rel=1e-6)


def test_two_targets_of_an_old_auxiliary_unit_add_up_to_one_between_them():
    """They pull towards a' / (1 + alpha) with weight 1 + alpha, for images of new classes."""
    alpha, target = 0.5, torch.tensor([[0.6]], dtype=torch.float64)
    logit = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    losses = auxiliary_losses(logit, torch.tensor([1]), 1, torch.logit(target))
    total = losses["auxiliary distillation"] + alpha * losses["auxiliary classification"]
    (gradient,) = torch.autograd.grad(total, logit)
    expected = (1 + alpha) * (torch.sigmoid(logit) - target / (1 + alpha))
    assert torch.allclose(gradient, expected, atol=1e-7)


def test_the_first_increment_has_classification_alone(drawn):
    student, _, labels = drawn
    losses = auxiliary_losses(torch.tensor(student), torch.tensor(labels), 0, None)
    assert set(losses) == {"auxiliary classification"}
