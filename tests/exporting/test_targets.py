"""Profiles of devices, and whether a bundle fits one."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from edgecil.errors import BudgetError, UsageError
from edgecil.exporting import targets
from edgecil.exporting.graph import IR_VERSION, OPSET
from edgecil.exporting.targets import Target
from edgecil_runtime.compatibility import limits_of

NAMED = ("rpi-zero2w", "rpi4", "rpi5", "jetson-orin-nano", "x86-n100")


@pytest.mark.parametrize("name", targets.names())
def test_every_profile_is_sound(name: str) -> None:
    target = targets.load(name)
    assert 0 < target.memory < target.ram and target.flash > 0
    assert set(target.unverified) <= {field.name for field in fields(Target)}
    limits = limits_of(target.onnxruntime)
    assert limits is not None and limits.ir >= IR_VERSION and limits.opset >= OPSET
    # Only x86 without VNNI saturates.
    vnni = {"avx_vnni", "avx512_vnni"} & set(target.isa)
    assert target.reduce_range == (target.arch == "x86_64" and not vnni)
    assert target.threads >= 1 and target.max_pixels >= 640 * 480


def test_the_promised_targets_are_there() -> None:
    assert set(NAMED) <= set(targets.names())


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown target 'rpi-4'") as caught:
        targets.load("rpi-4")
    assert caught.value.hint == "did you mean rpi4?"
    with pytest.raises(UsageError) as caught:
        targets.load("../rpi4")
    with pytest.raises(UsageError) as caught:
        targets.load("toaster oven")
    assert str(caught.value.hint).startswith("there are ")
    assert set(NAMED) <= set(str(caught.value.hint).removeprefix("there are ").split(", "))


def fit(target: Target, **changes: Any) -> None:
    need = {"model_peak": 60_000_000, "file_bytes": 600_000, "ir": 8, "opset": 18}
    targets.check_fit(target, precision="int8", **{**need, **changes})


def test_what_fits_and_what_does_not() -> None:
    zero = targets.load("rpi-zero2w")
    fit(zero)
    room = zero.memory - targets.memory_needed(zero, 0)
    fit(zero, model_peak=room)
    with pytest.raises(BudgetError, match=r"to decode 2,073,600 pixels") as caught:
        fit(zero, model_peak=room + 1)
    assert caught.value.hint.startswith("learn a smaller network")
    with pytest.raises(BudgetError, match="two slots with a baked copy each") as caught:
        fit(zero, file_bytes=zero.flash // 4 + 1)
    assert "rpi4" in caught.value.hint
    with pytest.raises(BudgetError, match="does not load IR 12 and opset 18"):
        fit(targets.load("jetson-orin-nano"), ir=12)
    with pytest.raises(BudgetError) as caught:
        targets.check_fit(
            replace(zero, memory=1), model_peak=10**12, file_bytes=1, ir=8, opset=18,
            precision="fp32",
        )  # fmt: skip
    assert caught.value.hint == (
        "export with --precision int8, or take a target with more memory: none has"
    )


@pytest.mark.parametrize("name", ["rpi4", "rpi5"])
def test_boards_sold_with_several_memories_say_which_is_meant(name):
    target = targets.load(name)
    assert target.note.startswith(f"The {target.ram // 10**9} GB board.")
