"""Exemplars: rankings against references, budgets that hold, prefixes that stay verbatim."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from edgecil.errors import AdoptError, BudgetError, DataError, UsageError
from edgecil.exemplars import build_exemplars, least_bytes
from edgecil.memory import codecs
from edgecil.memory.budget import Budget, choose_count, most_per_class
from edgecil.memory.fields import COUNTS, IMAGES, Dimensions, Field, exemplar_fields
from edgecil.memory.plan import plan
from edgecil.memory.store import Store
from edgecil.rankings import herding, herding_dot, keep_all, nearest_to_mean, random_ranking
from edgecil_runtime.images import fit_square

CODECS = ("raw", "png", "webp-lossless", "jpeg-75", "jpeg-95")
HELD_OUT = Field("exemplars.held_out", ("K",), "not trained on", "BOOL")
IMPORTANCE = Field("importance", "conv", "how much each weight matters")


def brute_force(features, count, normalise):
    """Return the greedy picks of Algorithm 4 of iCaRL, candidate by candidate, in float64."""
    points = features.astype(np.float64)
    if normalise:
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
    mean = points.mean(0)
    picks = []
    for k in range(min(count, len(points))):
        distances = [
            np.inf
            if i in picks
            else np.linalg.norm(mean - (points[i] + points[picks].sum(0)) / (k + 1))
            for i in range(len(points))
        ]
        picks.append(int(np.argmin(distances)))
    return picks


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("images", "count"), [(1, 1), (7, 20), (60, 60), (200, 20)])
def test_herding_is_the_exact_greedy_choice(normalise, images, count):
    for seed in range(5):
        features = np.random.default_rng(seed).normal(0.3, 1, (images, 16)).astype(np.float32)
        picks = herding(torch.from_numpy(features), count, normalise=normalise)
        assert picks.dtype == torch.int64
        assert picks.tolist() == brute_force(features, count, normalise)


def test_herding_of_equal_images_repeats_none():
    assert sorted(herding(torch.ones(5, 3), 5).tolist()) == list(range(5))
    assert sorted(herding(torch.zeros(5, 3), 4).tolist()) == list(range(4))


@pytest.mark.parametrize("rank", [herding, herding_dot, nearest_to_mean, random_ranking, keep_all])
def test_rankings_of_few_images(rank):
    generator = torch.Generator().manual_seed(0)
    assert rank(torch.zeros(0, 4), 3, generator).tolist() == []
    assert rank(torch.ones(1, 4), 3, generator).tolist() == [0]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        picks = rank(torch.rand(9, 4, dtype=dtype), 9, generator).tolist()
        assert len(picks) == len(set(picks)) <= 9


class CountCalls(TorchDispatchMode):
    """Counts the tensor operations that run."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def test_herding_does_one_matrix_product_per_pick():
    totals = []
    for images in (50, 500):
        features = torch.randn(images, 64)
        with CountCalls() as counted:
            herding(features, 20)
        products = {n: c for n, c in counted.calls.items() if n in ("mm", "mv", "bmm", "addmv")}
        assert products == {"addmv": 20}
        totals.append(counted.calls.total())
    assert totals[0] == totals[1] < 20 * 20  # nothing per candidate


def test_dot_form_agrees_with_icarls_code():
    features = np.random.default_rng(3).normal(0.5, 1, (40, 8))
    points = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = points.mean(0)
    weight, order, steps = mean.copy(), np.zeros(40), 0
    while np.sum(order != 0) < 12 and steps < 1000:
        index = int(np.argmax(points @ weight))
        if order[index] == 0:
            order[index] = 1 + steps
        steps += 1
        weight = weight + mean - points[index]
    wanted = [int(i) for i in np.argsort(order) if order[i] > 0]
    assert herding_dot(torch.from_numpy(features), 12).tolist() == wanted


def test_the_dot_form_differs_where_it_comes_back_to_an_image():
    features = np.array([[3.2, -2.6], [1.6, -0.6], [0.7, -0.2], [-0.8, -0.2], [0.3, 3.3]])
    points = features / np.linalg.norm(features, axis=1, keepdims=True)
    weight, seen, mean = points.mean(0), [], points.mean(0)
    for _ in range(20):
        seen.append(int(np.argmax(points @ weight)))
        weight = weight + mean - points[seen[-1]]
    assert len(set(seen[:3])) < 3
    found, once = (f(torch.from_numpy(features), 4).tolist() for f in (herding_dot, herding))
    assert found == list(dict.fromkeys(seen))[:4] != once


def test_nearest_and_random():
    features = torch.tensor([[5.0], [0.0], [2.0], [1.0]])
    assert nearest_to_mean(features, 3, normalise=False).tolist() == [2, 3, 1]
    first, again, other = (
        random_ranking(torch.zeros(50, 1), 50, torch.Generator().manual_seed(s)).tolist()
        for s in (1, 1, 2)
    )
    assert first == again != other
    assert sorted(first) == list(range(50))


def test_the_largest_count_that_fits():
    sizes = [[10, 20, 30], [5], [1, 1, 100]]

    def file_bytes(counts, item_bytes):
        assert item_bytes == sum(sum(s[:n]) for s, n in zip(sizes, counts, strict=True))
        return 7 + sum(counts) + item_bytes

    for budget, count in ((26, 1), (27, 1), (48, 1), (49, 2), (180, 2), (181, 3), (10**9, 3)):
        assert choose_count(sizes, budget, file_bytes) == count
    with pytest.raises(BudgetError, match=r"each of 3 classes takes 26 bytes.* 25 bytes") as error:
        choose_count(sizes, 25, file_bytes)
    assert error.value.exit_code == 3
    assert "--memory-budget 26" in error.value.hint


def test_budgets_are_one_number():
    assert Budget().unlimited and not Budget(bytes=0).unlimited
    for wrong in ({"bytes": 1, "total": 2}, {"per_class": -1}):
        with pytest.raises(UsageError):
            Budget(**wrong)


def photos(count, seed, size=12):
    random = np.random.default_rng(seed)
    smooth = random.normal(size=(count, 3, 3, 3)).repeat(size // 3, 1).repeat(size // 3, 2)
    noise = random.normal(size=(count, size, size, 3)) * random.uniform(0, 1, (count, 1, 1, 1))
    return np.clip(128 + 50 * smooth + 40 * noise, 0, 255).astype(np.uint8)


def learn(old, codec, groups, budget, seed, fields=None, **more):
    """Return the store after an increment with ``groups`` images per new class, and its count."""
    pixels = photos(sum(groups), seed)
    order = np.random.default_rng(seed).permutation(sum(groups))
    ranked = np.split(order, np.cumsum(groups)[:-1])
    new = Store(fields or exemplar_fields(codec))
    count = build_exemplars(old, new, pixels, ranked, budget, **more)
    return new, count, [pixels[rows] for rows in ranked]


def by_class(store):
    items, stops = store.items(IMAGES), np.cumsum(store.read(COUNTS).astype(int))
    return [items[a:b] for a, b in zip([0, *stops], stops, strict=False)]


@settings(max_examples=40, deadline=None)
@given(
    codec=st.sampled_from(CODECS),
    increments=st.lists(
        st.lists(st.integers(1, 6), min_size=1, max_size=50), min_size=1, max_size=4
    ),
    budget=st.integers(0, 60_000),
    seed=st.integers(0, 2**16),
)
def test_every_file_fits_and_one_more_per_class_would_not(codec, increments, budget, seed):
    kept = Store(())
    for number, groups in enumerate(increments):
        try:
            new, count, _ = learn(kept, codec, groups, Budget(bytes=budget), seed + number)
        except BudgetError:
            least, _, _ = learn(kept, codec, groups, Budget(per_class=1), seed + number)
            assert least.report().kept_bytes > budget
            return
        assert len(new.encode()) == new.report().kept_bytes <= budget
        more, larger, _ = learn(kept, codec, groups, Budget(per_class=count + 1), seed + number)
        assert larger == count or more.report().kept_bytes > budget
        old = by_class(kept) if number else []
        available = [len(c) for c in old] + groups
        assert new.read(COUNTS).tolist() == [min(count, n) for n in available]
        assert all(b == a[:count] for a, b in zip(old, by_class(new), strict=False))
        kept = new


@pytest.mark.parametrize("codec", CODECS)
def test_a_budget_holds_after_each_of_a_hundred_increments(codec):
    kept, budget, stored = Store(()), 25_000 if codec == "jpeg-75" else 60_000, []
    for number in range(100):
        kept, count, _ = learn(kept, codec, [5], Budget(bytes=budget), number)
        assert len(kept.encode()) == kept.report().kept_bytes <= budget
        stored = [min(count, n) for n in [*stored, 5]]  # what a class has lost is not there again
        assert kept.read(COUNTS).tolist() == stored
    assert min(stored) >= 1
    assert sum(stored) < 500


@pytest.mark.parametrize("codec", CODECS)
def test_a_smaller_budget_keeps_a_prefix_and_one_too_small_says_what_would_do(codec):
    kept, before, _ = learn(Store(()), codec, [9, 9], Budget(bytes=12_000), 0)
    new, count, _ = learn(kept, codec, [9], Budget(bytes=2_400), 1)
    assert len(new.encode()) <= 2_400
    assert 1 <= count < before
    assert by_class(new)[:2] == [of_class[:count] for of_class in by_class(kept)]
    with pytest.raises(BudgetError, match="one exemplar of each of 4 classes"):
        learn(new, codec, [9], Budget(bytes=300), 2)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("classes", [1, 2, 9, 10, 11, 50, 99, 100])
def test_the_error_names_the_bytes_that_suffice(codec, classes):
    with pytest.raises(BudgetError) as error:
        learn(Store(()), codec, [3] * classes, Budget(bytes=0), 1)
    enough = int(error.value.hint.split()[1].rstrip(","))
    store, count, _ = learn(Store(()), codec, [3] * classes, Budget(bytes=enough), 1)
    assert count == 1
    assert store.report().kept_bytes == enough
    with pytest.raises(BudgetError):
        learn(Store(()), codec, [3] * classes, Budget(bytes=enough - 1), 1)


@pytest.mark.parametrize("codec", CODECS)
def test_old_exemplars_are_never_encoded_again(codec, tmp_path):
    kept, _, pixels = learn(Store(()), codec, [9, 9], Budget(total=18), 0)
    first, decoded = by_class(kept), kept.read(IMAGES).reshape(2, 9, 12, 12, 3)
    if codec in ("raw", "png", "webp-lossless"):
        assert np.array_equal(decoded, pixels)
    for number in range(1, 6):
        kept.save(tmp_path / "m")
        kept = Store.load(tmp_path / "m", exemplar_fields(codec))
        kept, count, _ = learn(kept, codec, [9], Budget(total=18), number)
        assert count == 18 // (2 + number)
        assert by_class(kept)[:2] == [of_class[:count] for of_class in first]
        assert np.array_equal(kept.read(IMAGES)[:count], decoded[0, :count])


@pytest.mark.parametrize("classes", range(1, 101))
def test_a_total_holds_for_every_number_of_classes(classes):
    budget = Budget(total=100)
    groups = np.full(classes, 101)
    store = Store(exemplar_fields())
    pixels = np.zeros((101, 1, 1, 3), np.uint8)
    count = build_exemplars(Store(()), store, pixels, [np.arange(n) for n in groups], budget)
    assert count == 100 // classes
    assert store.read(COUNTS).tolist() == [count] * classes
    assert len(store.read(IMAGES)) <= 100


def test_budgets_without_room_for_a_class():
    for budget in (Budget(total=2), Budget(total=0), Budget(per_class=0), Budget(bytes=0)):
        with pytest.raises(BudgetError):
            learn(Store(()), "raw", [4, 4, 4], budget, 0)


def test_a_larger_budget_keeps_what_is_there_and_more_of_the_new():
    kept, _, _ = learn(Store(()), "png", [9], Budget(per_class=2), 0)
    new, count, _ = learn(kept, "png", [9, 1], Budget(per_class=5), 1)
    assert count == 5
    assert new.read(COUNTS).tolist() == [2, 5, 1]


def test_other_kept_fields_share_the_budget():
    fields = (*exemplar_fields("png"), IMPORTANCE)
    dimensions = Dimensions((2,), 4, 12, 12, trees={"conv": {"a": (900,), "b": (3, 3)}})
    alone, _, _ = learn(Store(()), "png", [50, 50], Budget(bytes=9000), 0)
    with pytest.raises(ValueError, match=r"\['importance'\] their dimensions are needed"):
        learn(Store(()), "png", [50, 50], Budget(bytes=9000), 0, fields)
    store, count, _ = learn(
        Store(()), "png", [50, 50], Budget(bytes=9000), 0, fields, dimensions=dimensions
    )
    store.write("importance", {"a": np.zeros(900, np.float32), "b": np.zeros((3, 3), np.float32)})
    assert store.report().kept_bytes <= 9000
    assert 1 <= count < alone.read(COUNTS)[0]


def test_columns_are_shrunk_with_their_images():
    fields = (*exemplar_fields("jpeg-75"), HELD_OUT)
    flags = np.arange(20) % 3 == 0
    kept, _, _ = learn(
        Store(()), "", [10, 10], Budget(per_class=6), 0, fields, values={HELD_OUT.name: flags}
    )
    order = np.random.default_rng(0).permutation(20).reshape(2, 10)
    assert np.array_equal(kept.read(HELD_OUT.name), flags[order[:, :6]].ravel())
    new, _, _ = learn(
        kept, "", [5], Budget(bytes=kept.report().kept_bytes), 1, fields,
        values={HELD_OUT.name: np.ones(5, np.bool_)},
    )  # fmt: skip
    counts = new.read(COUNTS).tolist()
    assert 0 < counts[0] < 6
    wanted = [*flags[order[:, : counts[0]]].ravel(), *[True] * counts[2]]
    assert new.read(HELD_OUT.name).tolist() == wanted
    assert new.report().kept_bytes <= kept.report().kept_bytes
    with pytest.raises(ValueError, match=r"exemplars\.held_out: no value for each new image"):
        learn(kept, "", [5], Budget(per_class=2), 1, fields)


def test_a_column_is_false_for_exemplars_of_a_method_without_it():
    kept, _, _ = learn(Store(()), "raw", [3], Budget(per_class=2), 0)
    fields = (*exemplar_fields(), HELD_OUT)
    new, _, _ = learn(
        kept, "", [3], Budget(per_class=2), 1, fields, values={HELD_OUT.name: np.ones(3, np.bool_)}
    )
    assert new.read(HELD_OUT.name).tolist() == [False, False, True, True]


def test_another_codec_encodes_what_the_old_one_decodes():
    kept, _, _ = learn(Store(()), "jpeg-75", [3, 3], Budget(), 0)
    new, _, fresh = learn(kept, "webp-lossless", [2], Budget(), 1)
    assert np.array_equal(new.read(IMAGES), np.concatenate([kept.read(IMAGES), fresh[0]]))


def test_only_what_the_budget_reaches_is_encoded(monkeypatch):
    from edgecil.memory import pictures

    encoded = []
    encode = pictures.Pictures.encode_item
    monkeypatch.setattr(
        pictures.Pictures, "encode_item", lambda self, s: encoded.append(1) or encode(self, s)
    )
    _, count, _ = learn(Store(()), "jpeg-75", [300, 300], Budget(bytes=4000), 0)
    assert 2 <= count < 40
    assert len(encoded) <= 2 * (count + 1) + 2 + 4  # a flat one and noise, for the bound


def test_old_exemplars_shrink_with_a_smaller_size_and_are_never_enlarged():
    kept, _, _ = learn(Store(()), "png", [3], Budget(), 0)
    smaller = Store(exemplar_fields("png"))
    build_exemplars(kept, smaller, np.zeros((1, 6, 6, 3), np.uint8), [np.arange(1)], Budget())
    wanted = [fit_square(image, 6) for image in kept.read(IMAGES)]
    assert np.array_equal(smaller.read(IMAGES)[:3], wanted)
    with pytest.raises(ValueError, match=r"\(6, 6\) pixels and cannot be enlarged to \(12, 12\)"):
        learn(smaller, "png", [1], Budget(), 1)


def test_more_exemplars_of_a_class_than_can_be_counted():
    pixels = np.zeros((65536, 1, 1, 3), np.uint8)
    with pytest.raises(DataError, match="65536 exemplars"):
        build_exemplars(Store(()), Store(exemplar_fields()), pixels, [np.arange(65536)], Budget())


def test_joint_keeps_references_to_everything(tmp_path):
    fields = exemplar_fields("reference")
    kept = Store(())
    for number in range(2):
        pixels = photos(4, number)
        paths = [tmp_path / f"{number}-{i}.png" for i in range(4)]
        for path, image in zip(paths, pixels, strict=True):
            Image.fromarray(image).save(path)
        new = Store(fields)
        ranked = [np.array([0, 2]), np.array([1, 3])]
        assert build_exemplars(kept, new, pixels, ranked, Budget(), paths=paths) == 2
        assert np.array_equal(new.read(IMAGES)[-4:], pixels[[0, 2, 1, 3]])
        new.save(tmp_path / "m")
        kept = Store.load(tmp_path / "m", fields)
    assert kept.read(COUNTS).tolist() == [2, 2, 2, 2]
    planned = plan(fields, Dimensions((2, 2), 1, 12, 12, exemplars=8))
    assert kept.report().kept_bytes <= planned.kept_bytes
    (tmp_path / "0-2.png").unlink()
    with pytest.raises(DataError, match=r"0-2\.png"):
        kept.read(IMAGES)


def test_references_take_no_budget_and_need_files():
    for more in ({"budget": Budget(total=5), "paths": ["a"]}, {"budget": Budget()}):
        with pytest.raises(ValueError, match="references need the paths"):
            build_exemplars(
                Store(()), Store(exemplar_fields("reference")), photos(1, 0), [np.arange(1)], **more
            )
    kept, _, _ = learn(Store(()), "png", [2], Budget(), 0)
    with pytest.raises(AdoptError):
        learn(kept, "reference", [1], Budget(), 1, paths=["a"])


@pytest.mark.parametrize("codec", CODECS)
def test_ranking_limit_is_never_below_what_fits(codec):
    for size in (3000, 10_000, 30_000):
        flat = np.zeros((400, 12, 12, 3), np.uint8)  # the most that can fit
        store = Store(exemplar_fields(codec))
        ranked = [np.arange(200), np.arange(200, 400)]
        count = build_exemplars(Store(()), store, flat, ranked, Budget(bytes=size))
        limit = most_per_class(Budget(bytes=size), 2, codec, (12, 12))
        assert limit is not None
        assert count <= limit
    assert most_per_class(Budget(), 2, codec, (12, 12)) is None
    assert most_per_class(Budget(total=9), 2, codec, (12, 12)) == 4
    assert most_per_class(Budget(per_class=9), 2, codec, (12, 12)) == 9


@pytest.mark.parametrize("codec", ["raw", "png", "webp-lossless", "jpeg-75"])
def test_the_least_bytes_are_those_of_the_smallest_choice(codec):
    """Any image of a class may be ranked best: all of them are tried, and stored."""
    random = np.random.default_rng(0)
    spread = np.arange(1, 7)[:, None, None, None] * 8
    pixels = (random.integers(0, 256, (6, 8, 8, 3)) * spread // 64 % 256).astype(np.uint8)
    fields = exemplar_fields(codec)
    old = Store(fields)
    build_exemplars(Store(fields), old, pixels[3:5], [np.array([0, 1])], Budget())

    def stored(first, second):
        new = Store(fields)
        ranked = [np.array([first]), np.array([second])]
        build_exemplars(old, new, pixels, ranked, Budget(per_class=1))
        return new.report().kept_bytes

    sizes = [stored(first, second) for first in (0, 1, 2) for second in (3, 4, 5)]
    asked = []

    def encode(row):
        asked.append(row)
        return codecs.item_codec(codec).encode_item(pixels[row])

    def least(limit):
        return least_bytes(old, fields, (8, 8), {1: [0, 1, 2], 2: [3, 4, 5]}, encode, limit)

    assert least(0) == least(min(sizes) - 1) == min(sizes)
    assert least(min(sizes)) <= min(sizes)
    asked.clear()
    assert least(10**6) == sizes[0] and asked == [0, 3]  # room for the first: no other is encoded


def test_the_least_of_a_known_class_with_new_images_is_any_of_them():
    fields = exemplar_fields("png")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    flat = np.zeros((1, 8, 8, 3), np.uint8)
    old = Store(fields)
    build_exemplars(Store(fields), old, pixels, [np.array([0, 1])], Budget())
    found = []
    for rows, images in (({}, pixels), ({0: [0]}, flat), ({0: [0]}, pixels)):
        encode = lambda row, images=images: codecs.item_codec("png").encode_item(images[row])  # noqa: E731
        found.append(least_bytes(old, fields, (8, 8), rows, encode, 0))
    assert found[1] < min(found[0], found[2])
