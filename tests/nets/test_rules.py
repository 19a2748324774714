"""Rules: the nearest mean is the nearest mean, and what is stored makes the same rule again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edgecil.errors import WorkspaceError
from edgecil.nets.build import build
from edgecil.nets.net import NetSpec
from edgecil.nets.rules import (
    ArgmaxRule,
    CorrectedRule,
    NearestMeanRule,
    Rule,
    build_rule,
    rule_arrays,
)

GENERATOR = torch.Generator().manual_seed(3)
MEANS = torch.randn(6, 12, generator=GENERATOR)
FEATURES = 5 * torch.randn(200, 12, generator=GENERATOR)
LOGITS = torch.randn(200, 10, generator=GENERATOR)


def test_argmax_takes_the_units_in_use() -> None:
    assert torch.equal(ArgmaxRule(4)(FEATURES, LOGITS), LOGITS[:, :4])


def test_nearest_mean_equals_brute_force_distances() -> None:
    scores = NearestMeanRule(MEANS)(FEATURES, LOGITS)
    features, means = FEATURES.double().numpy(), MEANS.double().numpy()
    for feature, row in zip(features, scores.double().numpy(), strict=True):
        unit = feature / np.linalg.norm(feature)
        distances = [np.sum((unit - m / np.linalg.norm(m)) ** 2) for m in means]
        assert np.argmin(distances) == np.argmax(row)
        np.testing.assert_allclose(2 - 2 * row, distances, atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet8", "mobilenet_v3_small"])  # whose head has a layer more
@pytest.mark.parametrize("width", [None, 9])
def test_a_correction_fits_into_a_linear_head(arch: str, width: int | None) -> None:
    net = build(NetSpec(arch, width=width), 4).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rule = CorrectedRule(torch.tensor([1.0, 1.0, 0.5, 0.5]), torch.tensor([0.0, 0.0, -2.0, -2.0]))
    folded, left = rule.folded(net)
    assert left.kind == "argmax"
    with torch.no_grad():
        images = torch.randn(5, 3, 32, 32, generator=GENERATOR)
        old, new = net(images), folded(images)
    torch.testing.assert_close(
        left(new.features, new.logits), rule(old.features, old.logits), atol=1e-6, rtol=1e-6
    )
    assert torch.equal(new.logits[:, 4:], old.logits[:, 4:])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    means = NearestMeanRule(torch.randn(4, 64, generator=GENERATOR))
    assert means.folded(net) == (net, means)


def test_means_have_unit_length_and_do_not_drift() -> None:
    once = NearestMeanRule(MEANS).means
    torch.testing.assert_close(once.norm(dim=1), torch.ones(6))
    again = NearestMeanRule(torch.cat([once, MEANS])).means
    assert torch.equal(again[:6], once) and torch.equal(again[6:], once)
    # A normalised vector, normalised again, is often another vector in the last bit.
    assert not torch.equal(F.normalize(once), once)


def test_a_zero_feature_or_mean_gives_zero_not_nan() -> None:
    scores = NearestMeanRule(torch.zeros(2, 12))(torch.zeros(1, 12), LOGITS)
    assert torch.equal(scores, torch.zeros(1, 2))


def test_nearest_mean_is_precise_under_autocast() -> None:
    rule = NearestMeanRule(MEANS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rule(FEATURES, LOGITS), rule(FEATURES.float(), LOGITS))
        inside = rule(FEATURES, LOGITS)
    assert torch.equal(inside, rule(FEATURES, LOGITS))


CORRECTED = CorrectedRule(torch.linspace(0.4, 1, 7), torch.linspace(-2, 0, 7))


@pytest.mark.parametrize("rule", [ArgmaxRule(7), NearestMeanRule(MEANS), CORRECTED])
def test_a_rule_is_rebuilt_from_its_arrays(rule: Rule) -> None:
    rebuilt = build_rule(rule.kind, rule_arrays(rule))
    assert type(rebuilt) is type(rule)
    assert torch.equal(rebuilt(FEATURES, LOGITS), rule(FEATURES, LOGITS))


def test_unknown_kinds_and_missing_arrays_are_named() -> None:
    with pytest.raises(WorkspaceError, match=r"unknown rule 'oracle' \(known: argmax, nearest"):
        build_rule("oracle", {})
    with pytest.raises(WorkspaceError, match="nearest-mean rule has no array 'means'"):
        build_rule("nearest-mean", {})
