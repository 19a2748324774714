"""Losses of synthetic images against plain references in float64."""

import math

import numpy as np
import pytest
import torch

from edgecil.losses.synthesis import (
    LayerStatistics,
    blurred,
    content,
    layer_divergence,
    negative_entropy,
    roughness,
    statistics_distance,
    statistics_divergence,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(row):
    exponentials = [math.exp(v) for v in row]
    return [e / sum(exponentials) for e in exponentials]


def layer(channels, seed, eps=0.0):
    values = draw(4, channels, seed=seed)
    return LayerStatistics(values[0], values[1].exp(), values[2], values[3].exp(), eps)


def test_content_is_the_cross_entropy_with_the_own_argmax():
    logits = draw(5, 7)
    expected = [-math.log(max(softmax([v / 10 for v in row]))) for row in logits.tolist()]
    assert content(logits, 10.0).item() == pytest.approx(sum(expected) / 5, rel=1e-12)
    assert content(logits.float()).dtype == torch.float32


def test_negative_entropy_is_that_of_the_mean_probabilities():
    logits = draw(5, 7)
    mean = np.mean([softmax(row) for row in logits.tolist()], axis=0)
    expected = sum(p * math.log(p) for p in mean)
    assert negative_entropy(logits).item() == pytest.approx(expected, rel=1e-12)


def test_negative_entropy_is_smallest_for_even_classes_and_finite_without_a_class():
    even = torch.eye(4, dtype=torch.float64) * 1000
    assert negative_entropy(even).item() == pytest.approx(-math.log(4))
    one = torch.zeros(3, 4, dtype=torch.float64)
    one[:, 2] = 1e4
    one.requires_grad_()
    value = negative_entropy(one)
    value.backward()
    assert value.item() == pytest.approx(0)
    assert torch.isfinite(one.grad).all()


def test_layer_divergence_is_the_divergence_of_two_normal_distributions():
    found = layer(6, seed=3)
    remembered = torch.distributions.Normal(found.running_mean, found.running_variance.sqrt())
    batch = torch.distributions.Normal(found.mean, found.variance.sqrt())
    expected = torch.distributions.kl_divergence(remembered, batch).mean()
    assert torch.allclose(layer_divergence(found), expected, rtol=1e-12)


def test_divergence_is_zero_at_the_remembered_statistics_and_finite_for_a_dead_channel():
    found = layer(6, seed=3, eps=1e-5)
    same = found._replace(mean=found.running_mean, variance=found.running_variance)
    assert layer_divergence(same).item() == pytest.approx(0, abs=1e-15)
    dead = same._replace(variance=torch.zeros(6).double(), running_variance=torch.zeros(6).double())
    assert layer_divergence(dead).item() == pytest.approx(0, abs=1e-15)


def test_layers_weigh_alike_however_many_channels_they_have():
    layers = [layer(2, 1), layer(50, 2)]
    mean = sum(layer_divergence(found) for found in layers) / 2
    assert torch.allclose(statistics_divergence(layers), mean, rtol=1e-12)


def test_distance_is_the_euclidean_one_of_means_and_variances():
    layers = [layer(2, 1), layer(5, 2)]
    total = 0.0
    for found in layers:
        for a, b in ((found.mean, found.running_mean), (found.variance, found.running_variance)):
            total += math.sqrt(
                sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))
            )
    assert statistics_distance(layers).item() == pytest.approx(total / 2, rel=1e-12)


def test_blur_is_a_gaussian_window_with_reflected_edges():
    images, deviation = draw(2, 3, 6, 6), 1.3
    weights = [math.exp(-(d**2) / (2 * deviation**2)) for d in range(-2, 3)]
    whole = sum(weights) ** 2

    def reflect(i):
        return -i if i < 0 else 2 * 5 - i if i > 5 else i

    for row, column in ((0, 0), (5, 2), (3, 4)):
        expected = sum(
            weights[a + 2] * weights[b + 2] * images[1, 2, reflect(row + a), reflect(column + b)]
            for a in range(-2, 3)
            for b in range(-2, 3)
        )
        found = blurred(images, deviation)[1, 2, row, column]
        assert found.item() == pytest.approx(expected.item() / whole, rel=1e-12)


def test_roughness_is_zero_on_flat_images_and_the_mean_square_elsewhere():
    assert roughness(torch.full((2, 3, 8, 8), 0.7, dtype=torch.float64)).item() < 1e-28
    images = draw(2, 3, 8, 8)
    expected = ((images - blurred(images)) ** 2).sum() / images.numel()
    assert torch.allclose(roughness(images), expected, rtol=1e-12)
