"""MFGR's recording losses against plain float64 loops."""

import math

import pytest
import torch

from edgecil.losses.recording import PAIRS, activation, sample_diversity
from edgecil.losses.synthesis import content, negative_entropy


def plain_divergence(images, pairs):
    """MFGR eq. (6), number by number: first half against second half."""
    rows = [[float(v) for v in image.flatten()] for image in images]
    half = len(rows) // 2
    total = 0.0
    count = min(half, pairs)
    for left, right in zip(rows[:count], rows[half : half + count], strict=True):
        p, q = ([math.exp(v) for v in row] for row in (left, right))
        p, q = ([v / sum(row) for v in row] for row in (p, q))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return -0.5 * total / count


@pytest.mark.parametrize(("count", "pairs"), [(2, PAIRS), (7, PAIRS), (10, 3)])
def test_sample_diversity_equals_a_plain_loop(count, pairs):
    images = torch.randn(count, 3, 4, 5, dtype=torch.float64)
    found = sample_diversity(images, pairs)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(plain_divergence(images, pairs), rel=1e-12)


def test_equal_images_are_the_worst_and_what_is_paired_moves_apart():
    same = torch.randn(1, 3, 4, 4, dtype=torch.float64).repeat(4, 1, 1, 1)
    assert float(sample_diversity(same)) == 0
    images = (same + 0.01 * torch.randn_like(same)).requires_grad_()
    before = sample_diversity(images)
    (gradient,) = torch.autograd.grad(before, images)
    assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0  # every image is in a pair
    assert sample_diversity(images - 10 * gradient) < before < 0
    assert torch.autograd.gradcheck(sample_diversity, images)


def test_one_image_has_no_pair():
    with pytest.raises(ValueError, match="two of them"):
        sample_diversity(torch.randn(1, 3, 4, 4))


def test_half_precision_images_are_compared_in_float32():
    images = torch.randn(8, 3, 8, 8).bfloat16()
    assert torch.equal(sample_diversity(images), sample_diversity(images.float()))


def test_activation_is_the_negative_mean_absolute_feature():
    features = torch.tensor([[1.0, -3.0], [0.0, 4.0]], dtype=torch.float64)
    assert float(activation(features)) == -2.0


def test_the_one_hot_loss_and_class_diversity_of_mfgr():
    """Section 5.2 with plain loops, in nats."""
    logits = torch.randn(5, 3, dtype=torch.float64)
    rows = [[math.exp(float(v)) for v in row] for row in logits]
    shares = [[v / sum(row) for v in row] for row in rows]
    one_hot = -sum(math.log(max(row)) for row in shares) / 5
    mean = [sum(row[c] for row in shares) / 5 for c in range(3)]
    assert float(content(logits)) == pytest.approx(one_hot, rel=1e-12)
    expected = sum(p * math.log(p) for p in mean)
    assert float(negative_entropy(logits)) == pytest.approx(expected, rel=1e-12)
