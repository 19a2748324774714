"""Labels as bit planes and short floats: nothing is lost, and the bounds hold."""

import math

import numpy as np
import pytest

from edgecil.memory import codecs
from edgecil.memory.codec import CodecError
from edgecil.memory.compact import Labels, huffman_bits
from edgecil.memory.fields import Dimensions, Field
from edgecil.memory.plan import plan
from edgecil.memory.store import Store


def owned(count, left, increments, seed=0):
    """Return labels of which every increment took its share at random."""
    random = np.random.default_rng(seed)
    labels = np.zeros(count, np.uint8)
    for increment in range(1, increments + 1):
        free = np.flatnonzero(labels == 0)
        labels[random.permutation(free)[: round(len(free) * (1 - left))]] = increment
    return labels


def entropy(labels):
    """Return the bits per label that no code of independent labels undercuts."""
    share = np.bincount(labels) / len(labels)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


@pytest.mark.parametrize("left", [0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("increments", [1, 3, 10])
def test_labels_come_back_within_the_bound_and_near_their_entropy(left, increments):
    labels = owned(100_000, left, increments)
    codec = codecs.get(f"labels-{left:g}")
    parts = codec.encode(labels)
    assert np.array_equal(codec.decode(parts), labels)
    size = sum(part.nbytes for part in parts.values())
    (bound,) = codec.after(increments).bound("U8", labels.shape)[""][1]
    (least,) = codec.after(increments).least("U8", labels.shape)[""][1]
    assert least < parts[""].nbytes <= bound < 1.1 * parts[""].nbytes
    assert 8 * size / len(labels) < 1.02 * entropy(labels) + 0.05


def test_ten_increments_take_less_than_a_code_of_whole_labels():
    labels = owned(461_232, 0.75, 10)
    bits = 8 * Labels(0.75).encode(labels)[""].nbytes / len(labels)
    assert entropy(labels) == pytest.approx(3.062, abs=0.001)
    assert bits < 3.10 < 4


@pytest.mark.parametrize("labels", [
    np.zeros(0, np.uint8), np.zeros(9, np.uint8), np.full(17, 3, np.uint8),
    np.array([0, 255, 1], np.uint8), np.repeat(np.arange(4, dtype=np.uint8), 1000),
], ids=["none", "nobody", "one", "sparse", "runs"])  # fmt: skip
def test_any_labels_come_back(labels):
    codec = Labels(0.75)
    parts = codec.encode(labels)
    assert np.array_equal(codec.decode(parts), labels)
    assert codec.decode(parts).flags.writeable


def test_a_plane_is_never_larger_than_its_bits():
    noise = owned(4000, 0.5, 1)  # bits that are 1 by half do not compress
    assert Labels(0.5).encode(noise)[""].nbytes == 500


@pytest.mark.parametrize("damage", [
    lambda p: {"": p[""]},
    lambda p: {**p, "": p[""][:-1]},
    lambda p: {**p, "lengths": np.append(p["lengths"], np.uint32(0))},
    lambda p: {"": p[""] ^ np.uint8(255), "lengths": p["lengths"]},
    lambda p: {**p, "lengths": p["lengths"] + np.array([64, 0, 0, 0], np.uint32)},
])  # fmt: skip
def test_damaged_planes_are_refused(damage):
    with pytest.raises(CodecError):
        Labels(0.75).decode(damage(Labels(0.75).encode(owned(5000, 0.75, 3))))


def test_the_huffman_code_is_between_the_entropy_and_a_bit_above():
    for share in (0.1, 0.25, 0.5):
        entropy8 = -8 * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
        assert entropy8 <= huffman_bits(share) + 1e-9 <= entropy8 + 1
    assert huffman_bits(0.5) == pytest.approx(8)


@pytest.mark.parametrize(("values", "dtype"), [
    ([0.5, -2.0, 1024.0], np.float16), ([0.1], np.float32), ([1e6], np.float32), ([], np.float16),
])  # fmt: skip
def test_floats_are_short_where_nothing_is_lost(values, dtype):
    codec, array = codecs.get("narrow"), np.array(values, np.float32)
    parts = codec.encode(array)
    assert parts[""].dtype == dtype
    assert np.array_equal(codec.decode(parts), array)
    assert codec.decode(parts).dtype == np.float32


def test_which_increments_are_planned_and_stored_alike():
    fields = (
        Field("late", ("C_new",), "from the second on", per_increment=True, first=2),
        Field("early", ("C_new",), "all but the newest", per_increment=True, newest=False),
    )
    store = Store(fields)
    store.write("late", np.zeros(4, np.float32), 2)
    store.write("late", np.zeros(5, np.float32), 3)
    store.write("early", np.zeros(3, np.float32), 1)
    store.write("early", np.zeros(4, np.float32), 2)
    planned = plan(fields, Dimensions((3, 4, 5), 1, 1, 1))
    assert planned.kept_bytes == store.report().kept_bytes == len(store.encode())
    assert list(fields[0].increments(1)) == [1]
    assert list(fields[1].increments(1)) == []
