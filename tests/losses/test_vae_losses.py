"""The losses of a VAE and the weights of old and new classes, against plain float64 loops."""

import math

import pytest
import torch

from edgecil.losses.replay import task_weights, weighted_cross_entropy
from edgecil.losses.vae import latent_divergence, reconstruction


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_reconstruction_is_a_weighted_mean_over_images_of_means_over_pixels():
    logits, images = draw(3, 2, 4, 5), torch.sigmoid(draw(3, 2, 4, 5, seed=1))
    weights = [0.25, 0.75, 0.6]
    total = 0.0
    for weight, row, wanted in zip(weights, logits.tolist(), images.tolist(), strict=True):
        losses = []
        flat = (torch.tensor(part).flatten().tolist() for part in (row, wanted))
        for logit, value in zip(*flat, strict=True):
            share = 1 / (1 + math.exp(-logit))
            losses.append(-value * math.log(share) - (1 - value) * math.log(1 - share))
        assert len(losses) == 40
        total += weight * sum(losses) / 40
    found = reconstruction(logits, images, torch.tensor(weights, dtype=torch.float64))
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(total / 3, rel=1e-6)


def test_reconstruction_is_least_at_the_image_and_finite_far_from_it():
    images = torch.tensor([[[[0.0, 1.0, 0.3]]]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    best = float(reconstruction(torch.logit(images, 1e-12), images, one))
    for change in (-0.5, 0.5):
        assert float(reconstruction(torch.logit(images, 1e-12) + change, images, one)) > best
    far = torch.tensor([[[[500.0, -500.0, 0.0]]]])
    assert float(reconstruction(far, images, one)) == pytest.approx((1000 + math.log(2)) / 3)
    assert torch.autograd.gradcheck(
        lambda x: reconstruction(x, images, one), draw(1, 1, 1, 3).requires_grad_()
    )


def test_divergence_is_that_of_two_normal_distributions():
    mean, log_variance = draw(4, 6), draw(4, 6, seed=1)
    one = torch.distributions.Normal(mean, (log_variance / 2).exp())
    other = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
    wanted = torch.distributions.kl_divergence(one, other).sum(dim=1).mean() / 48
    assert float(latent_divergence(mean, log_variance, 48)) == pytest.approx(
        float(wanted), rel=1e-12
    )
    zero = torch.zeros(2, 3)
    assert float(latent_divergence(zero, zero, 48)) == 0


def test_half_precision_is_compared_in_float32():
    logits, images = draw(2, 3, 4, 4).bfloat16(), torch.rand(2, 3, 4, 4)
    ones = torch.ones(2)
    assert torch.equal(
        reconstruction(logits, images, ones), reconstruction(logits.float(), images, ones)
    )
    mean = draw(2, 8).bfloat16()
    found = latent_divergence(mean, mean, 10)
    assert torch.equal(found, latent_divergence(mean.float(), mean.float(), 10))


@pytest.mark.parametrize(("old", "seen"), [(0, 3), (3, 5), (80, 100), (5, 5)])
def test_a_class_weighs_what_its_side_has_of_all_classes(old, seen):
    weights = task_weights(old, seen)
    wanted = [old / seen] * old + [(seen - old) / seen] * (seen - old)
    assert weights.tolist() == pytest.approx(wanted, rel=1e-6)


def test_the_weighted_cross_entropy_is_a_mean_over_images_alone():
    logits, labels = draw(4, 5), [0, 4, 2, 3]
    weights = [3 / 5] * 3 + [2 / 5] * 2
    total = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        total += weights[label] * (math.log(sum(math.exp(v) for v in row)) - row[label])
    found = weighted_cross_entropy(logits, torch.tensor(labels), task_weights(3, 5))
    assert float(found) == pytest.approx(total / 4, rel=1e-6)
