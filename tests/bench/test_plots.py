"""Figures: every name is there, none lies upon another."""

import random
from itertools import pairwise

import pytest

from edgecil.bench.plots import _apart, learning_curves


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_apart_in_order_and_nobody_is_favoured(seed):
    draw = random.Random(seed)
    heights = [draw.uniform(0, 40) for _ in range(draw.randint(1, 12))]
    placed = _apart(heights, 5.0)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    steps = [placed[b] - placed[a] for a, b in pairwise(order)]
    assert all(step >= 5.0 - 1e-9 for step in steps)
    assert sum(placed) == pytest.approx(sum(heights))


def test_labels_stay_above_the_axis():
    assert _apart([1.0, 1.0, 2.0, 30.0], 5.0, 2.5) == [2.5, 7.5, 12.5, 30.0]
    assert _apart([1.0, 8.0], 5.0, 2.5) == [2.5, 8.0]


def test_labels_that_are_apart_stay():
    assert _apart([10.0, 30.0, 20.0], 5.0) == [10.0, 30.0, 20.0]


def test_a_figure_names_every_method(tmp_path):
    curves = {name: ([5, 10], [0.9, 0.5]) for name in ("lwm", "lwf-mc", "finetune")}
    svg = learning_curves(curves, tmp_path / "a.svg").read_text()
    assert all(f">{name}</text>" in svg for name in curves)
    assert learning_curves(curves, tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
