"""LwM's attention: the closed form is Grad-CAM, for the loss and for every gradient."""

import pytest
import torch
from torch import nn

from edgecil.losses.attention import attention_distance, class_attention, grad_attention


class Tiny(nn.Module):
    """A convolutional net in float64 with train-mode batch norm and a linear head."""

    def __init__(self, classes=5):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(6, classes)

    def forward(self, images):
        feature_map = self.body(images)
        return feature_map, self.head(feature_map.mean(dim=(2, 3)))


def nets(seed=0):
    torch.manual_seed(seed)
    return Tiny().double(), Tiny().double().eval(), torch.randn(7, 3, 9, 9).double()


def both_losses(student, teacher, images):
    """Return LwM's term in closed form and by double backward, for the student's own choice."""
    feature_map, logits = student(images)
    best = logits[:, :3].argmax(dim=1)
    with torch.no_grad():
        teacher_map, _ = teacher(images)
        target = class_attention(teacher_map, teacher.head.weight[best])
    closed = attention_distance(target, class_attention(feature_map, student.head.weight[best]))
    scores = logits.gather(1, best[:, None])[:, 0]
    naive = attention_distance(target, grad_attention(scores, feature_map, create_graph=True))
    return closed, naive


def double_precision(monkeypatch):
    # The module computes in float32 under autocast; here every .float() must stay double.
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


def test_closed_form_equals_autograd_in_value_and_in_every_gradient(monkeypatch):
    double_precision(monkeypatch)
    student, teacher, images = nets()
    closed, naive = both_losses(student, teacher, images)
    assert closed.item() == pytest.approx(naive.item(), abs=1e-13)
    parameters = [p for n, p in student.named_parameters() if n != "head.bias"]
    for a, b in zip(
        torch.autograd.grad(closed, parameters, retain_graph=True),
        torch.autograd.grad(naive, parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_gradient_reaches_activations_and_head_weights():
    student, teacher, images = nets()
    closed, _ = both_losses(student, teacher, images)
    closed.backward()
    assert student.body[0].weight.grad.abs().max() > 0
    assert student.head.weight.grad.abs().max() > 0
    assert student.head.weight.grad[3:].abs().max() == 0  # never a class that is not old


def test_one_images_map_does_not_depend_on_the_others():
    student, _, images = nets()
    student.eval()
    feature_map, _ = student(images)
    classes = torch.arange(7) % 3
    whole = class_attention(feature_map, student.head.weight[classes])
    assert whole.shape == (7, 81)
    alone = class_attention(feature_map[2:3], student.head.weight[classes[2:3]])
    torch.testing.assert_close(whole[2:3], alone)


def test_distance_is_scale_free_bounded_and_zero_for_equal_maps():
    torch.manual_seed(0)
    maps = torch.rand(4, 16)
    assert attention_distance(maps, 7 * maps).item() == pytest.approx(0, abs=1e-5)
    left, right = torch.zeros(1, 16), torch.zeros(1, 16)
    left[0, :8], right[0, 8:] = 1, 1
    # Disjoint maps of length l reach the bound sqrt(2 l).
    assert attention_distance(left, right).item() == pytest.approx((2 * 16) ** 0.5, rel=1e-6)


def test_an_all_zero_map_is_left_out_and_sends_no_gradient():
    student = torch.zeros(2, 9)
    student[1] = torch.rand(9)
    student.requires_grad_()
    loss = attention_distance(torch.rand(2, 9), student)
    loss.backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad[0].abs().max() == 0
    assert student.grad[1].abs().max() > 0
