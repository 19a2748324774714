"""Who owns which weight: properties of the masks over many layers, ratios and increments."""

import numpy as np
import pytest
import torch

from edgecil.parts.pruning import as_of, free_share, full_layers, share_taken, take

SHAPES = ((16, 3, 3, 3), (7, 5, 1, 1), (64, 64, 3, 3))


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_increment_takes_the_largest_of_what_is_free(ratio, shape):
    torch.manual_seed(0)
    labels = torch.zeros(shape, dtype=torch.uint8)
    for increment in range(1, 6):
        weight = torch.randn(shape)
        free = labels == 0
        after = take(weight, labels, increment, ratio)
        fresh = after == increment
        assert torch.equal(after[~free], labels[~free]), "what is owned stays owned"
        assert int(fresh.sum()) == share_taken(int(free.sum()), ratio)
        left = free & ~fresh
        if fresh.any() and left.any():
            assert weight[fresh].abs().min() >= weight[left].abs().max()
        labels = after
    expected = ratio**5
    assert abs(free_share({"layer": labels}) - expected) < 5 / labels.numel()


def test_ties_are_taken_in_order_and_zeros_too():
    labels = take(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.uint8), 1, 0.5)
    assert labels.flatten().tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_weights_in_channels_last_are_labelled_as_in_c_order():
    weight = torch.randn(8, 4, 3, 3)
    free = torch.zeros(weight.shape, dtype=torch.uint8)
    last = weight.to(memory_format=torch.channels_last)
    assert torch.equal(take(weight, free, 1, 0.75), take(last, free, 1, 0.75))


def test_a_snapshot_has_the_weights_of_its_time_and_plain_zeros():
    labels = torch.tensor([0, 1, 2, 3], dtype=torch.uint8)
    weight = torch.tensor([-5.0, -6.0, -7.0, -8.0])
    assert as_of(weight, labels, 2).tolist() == [0, -6, -7, 0]
    assert not np.signbit(as_of(weight, labels, 2)[0].numpy()), "-0.0 would be another bit pattern"


@pytest.mark.parametrize(("free", "full"), [(3, []), (1, ["small"]), (0, ["small"])])
def test_a_layer_without_a_weight_to_take_is_named(free, full):
    small = torch.ones(20, dtype=torch.uint8)
    small[:free] = 0
    labels = {"large": torch.zeros(100, dtype=torch.uint8), "small": small}
    assert full_layers(labels, 0.75) == full
