"""LUCIR's terms beside loops written from the equations, in float64."""

import math

import pytest
import torch

from edgecil.losses.cosine import imprinted, less_forget, less_forget_weight, margin_ranking


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_less_forget_is_one_minus_the_mean_cosine():
    teacher, student = draw(6, 8), draw(6, 8, seed=1)
    cosines = [
        float(a @ b) / float(a.norm() * b.norm()) for a, b in zip(teacher, student, strict=True)
    ]
    assert float(less_forget(teacher, student)) == pytest.approx(1 - sum(cosines) / 6, abs=1e-6)
    assert float(less_forget(teacher, 3 * teacher)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("old", "new", "wanted"), [
    (50, 10, 5 * math.sqrt(5)), (50, 5, 5 * math.sqrt(10)), (60, 10, 5 * math.sqrt(6)),
    (90, 10, 15.0), (98, 2, 35.0), (1, 4, 2.5),
])  # fmt: skip
def test_the_weight_grows_with_what_there_is_to_forget(old, new, wanted):
    assert less_forget_weight(5.0, old, new) == pytest.approx(wanted)


@pytest.mark.parametrize("hardest", [1, 2, 5])
def test_margin_ranking_equals_a_loop_over_old_images_and_their_rivals(hardest):
    cosines, labels, old, margin = draw(9, 7).tanh(), torch.arange(9) % 7, 4, 0.5
    total, count = 0.0, 0
    for row, label in zip(cosines.tolist(), labels.tolist(), strict=True):
        if label >= old:
            continue
        rivals = sorted(row[old:], reverse=True)[:hardest]
        total += sum(max(0.0, margin - row[label] + r) for r in rivals) / len(rivals)
        count += 1
    found = margin_ranking(cosines, labels, old, margin, hardest)
    assert float(found) == pytest.approx(total / count)


def test_new_images_get_no_ranking_and_no_gradient():
    cosines = draw(4, 5).requires_grad_()
    loss = margin_ranking(cosines, torch.tensor([3, 4, 3, 4]), 3)
    loss.backward()
    assert loss == 0 and not cosines.grad.any()


def test_imprinted_rows_point_to_the_means_and_are_as_long_as_the_old_ones():
    features, labels = draw(12, 6).float(), 3 + torch.arange(12) % 2
    rows = draw(3, 6, seed=2).float()
    found = imprinted(features, labels, range(3, 5), rows)
    for at, label in enumerate((3, 4)):
        unit = torch.stack([f / f.norm() for f in features[labels == label]])
        mean = unit.mean(dim=0)
        assert torch.allclose(found[at] / found[at].norm(), mean / mean.norm(), atol=1e-6)
        assert float(found[at].norm()) == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-5)
