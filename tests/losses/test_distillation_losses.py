"""Distillation against plain float64 references."""

import pytest
import torch

from edgecil.losses.distillation import sigmoid_losses, softmax_distillation


def reference_kd(teacher, student, temperature):
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        p = (t / temperature).exp() / (t / temperature).exp().sum()
        q = (s / temperature).exp() / (s / temperature).exp().sum()
        assert p.sum().item() == pytest.approx(1.0)  # the softmax runs over classes, per image
        total += -(p * q.log()).sum().item()
    return total / len(teacher)


def test_softmax_distillation_equals_the_reference():
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    expected = reference_kd(teacher, student, 2.0)
    assert softmax_distillation(teacher, student, 2.0).item() == pytest.approx(expected, rel=1e-6)


def test_softmax_distillation_of_one_image_does_not_depend_on_the_others():
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 4, 6).unbind()
    alone = [softmax_distillation(teacher[i : i + 1], student[i : i + 1]) for i in range(4)]
    together = softmax_distillation(teacher, student)
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_sigmoid_losses_equal_the_reference():
    torch.manual_seed(1)
    logits, teacher = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 4)
    labels = torch.tensor([2, 4, 3])
    losses = sigmoid_losses(logits, labels, 2, teacher)
    log_sigmoid = torch.nn.functional.logsigmoid
    new = old = 0.0
    for n in range(3):
        for c in range(2, 5):
            target = float(labels[n] == c)
            new -= target * log_sigmoid(logits[n, c]) + (1 - target) * log_sigmoid(-logits[n, c])
        for c in range(2):
            soft = torch.sigmoid(teacher[n, c].double())
            old -= soft * log_sigmoid(logits[n, c]) + (1 - soft) * log_sigmoid(-logits[n, c])
    assert losses["classification"].item() == pytest.approx(new.item() / 3, rel=1e-5)
    assert losses["distillation"].item() == pytest.approx(old.item() / 3, rel=1e-5)


def test_an_old_exemplar_is_taught_by_the_teacher_and_not_by_its_label():
    logits = torch.zeros(1, 3, requires_grad=True)
    teacher = torch.tensor([[-30.0, 30.0]])
    losses = sigmoid_losses(logits, torch.tensor([0]), 2, teacher)
    sum(losses.values()).backward()
    assert logits.grad[0].tolist() == pytest.approx([0.5, -0.5, 0.5])


def test_without_a_teacher_there_is_no_distillation():
    assert set(sigmoid_losses(torch.zeros(2, 2), torch.tensor([0, 1]), 0, None)) == {
        "classification"
    }
