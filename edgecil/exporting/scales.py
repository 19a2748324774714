"""Scales for an int8 graph that make its weights look like those of a previous one.

Learning moves the weights of a channel a little, and batch normalisation, folded into them,
stretches them. A channel may keep its old scale, stretch it by what fits the old integers best,
or take its own; the differences of the integers decide, where rounding becomes hardly coarser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

WEIGHT_ERROR = 1.25
"""Largest squared error of a channel's weights, relative to that with a scale of its own."""
OVERSHOOT = 0.1
"""How far the values of a map may lie outside its old range, relative to that range's width."""
NARROWEST = 0.9
"""Least width of the new range of a map, relative to the old one: a wider range rounds coarser,
and the errors of many layers add up."""
_LIMITS = -127, 127

Overrides = dict[str, list[dict[str, Any]]]


def scales_like(
    old: ModelProto, new: ModelProto, ranges: Mapping[str, tuple[float, float]]
) -> Overrides:
    """Return scales for the float32 graph ``new`` that suit the int8 graph ``old``.

    They are in the form of onnxruntime's ``TensorQuantOverrides``: one entry for a map, one
    per channel for a weight.
    """
    before = {t.name: numpy_helper.to_array(t) for t in old.graph.initializer}
    found: Overrides = {}
    for tensor in new.graph.initializer:
        integers, scales = (before.get(tensor.name + end) for end in ("_quantized", "_scale"))
        if integers is not None and scales is not None and scales.ndim == 1:
            weights = numpy_helper.to_array(tensor)
            if integers.shape == weights.shape:
                found[tensor.name] = _channels(weights, integers, scales)
    for name, (low, high) in ranges.items():
        scale, zero = (before.get(name + end) for end in ("_scale", "_zero_point"))
        if scale is None or zero is None or scale.ndim:
            continue
        if covers(float(scale), int(zero), low, high):
            found[name] = [{"scale": scale, "zero_point": zero}]
    return found


def _channels(
    weights: NDArray[Any], integers: NDArray[Any], scales: NDArray[Any]
) -> list[dict[str, Any]]:
    kept = [
        channel_scale(values.ravel(), old.ravel().astype(np.float32), scale)
        for values, old, scale in zip(weights, integers, scales, strict=True)
    ]
    return [{"axis": 0, "scale": np.float32(scale), "zero_point": np.int8(0)} for scale in kept]


def channel_scale(values: NDArray[Any], integers: NDArray[Any], scale: np.float32) -> np.float32:
    """Return the scale for ``values`` whose integers differ least from the old ``integers``.

    Only scales count whose squared error is at most ``WEIGHT_ERROR`` times the least.
    """
    own = np.float32(np.abs(values).max() / 127 or 1.0)  # 1 where all values are zero
    fitted = np.float32(values @ integers / max(1.0, float(integers @ integers)))
    allowed = WEIGHT_ERROR * _error(values, own)
    candidates = [s for s in (scale, fitted) if s > 0 and _error(values, s) <= allowed]
    return min([*candidates, own], key=lambda s: _bits(_rounded(values, s) - integers))


def _rounded(values: NDArray[Any], scale: np.float32) -> NDArray[Any]:
    return np.clip(np.rint(values / scale), *_LIMITS)


def _error(values: NDArray[Any], scale: np.float32) -> float:
    return float(np.square(values - _rounded(values, scale) * scale, dtype=np.float64).sum())


def _bits(differences: NDArray[Any]) -> float:
    # What differences cost, but for a constant: small ones are frequent, large ones are not.
    return float(np.log2(1 + 2 * np.abs(differences)).sum())


def covers(scale: float, zero_point: int, low: float, high: float) -> bool:
    """Return whether an old uint8 range does for values from ``low`` to ``high``."""
    start, width = -zero_point * scale, 255 * scale
    low, high = min(low, 0.0), max(high, 0.0)
    inside = max(start - low, high - (start + width)) <= OVERSHOOT * width
    return inside and high - low >= NARROWEST * width
