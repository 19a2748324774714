"""Batches: one gather equals a plain loop, and every rank sees its part of one global batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgecil.data.augment import draw
from edgecil.data.images import Batch, ImageSet
from edgecil.data.loader import Loader, evaluation_batches, labelled_batches
from edgecil.data.streams import streams
from edgecil.errors import DataError
from edgecil.settings import CIFAR, Augment, Preprocess, Training

LARGE = Preprocess(20, 29, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SEEDED = streams(5, "train")


def make_set(count: int, edge: int) -> ImageSet:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, edge, edge, 3), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % 7)


def epoch(loader: Loader, number: int = 0, **ranks: int) -> list[Batch]:
    return [loader.batch(number, step, SEEDED, **ranks) for step in range(loader.steps)]


def as_input(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """One image (S, S, 3) in [0, 255] as the network sees it, in float64."""
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (preprocess.mean, preprocess.std))
    return ((pixels.double() / 255 - mean) / std).permute(2, 0, 1)


def one_by_one(images: ImageSet, batch: Batch, pad: int, size: int) -> Tensor:
    """The pixels (N, S, S, 3) of a batch by a loop over its images, from index and views."""
    crops = []
    for index, (row, column, flip) in zip(batch.index, batch.views, strict=True):
        padded = F.pad(images.pixels[index], (0, 0, pad, pad, pad, pad))
        crop = padded[row : row + size, column : column + size]
        crops.append(crop.flip(1) if flip else crop)
    return torch.stack(crops)


@pytest.mark.parametrize(
    ("preprocess", "augment"),
    [
        (CIFAR, Augment()),
        (CIFAR, Augment(flip=False)),
        (CIFAR, Augment("centre")),
        (LARGE, Augment("pad", pad=3)),
        (LARGE, Augment("pad", pad=0)),
        (LARGE, Augment("centre")),
    ],
)
def test_one_gather_equals_a_loop_bit_for_bit(preprocess: Preprocess, augment: Augment) -> None:
    images = make_set(37, preprocess.resize)
    loader = Loader(images, preprocess, augment, 16, "cpu")
    pad = augment.pad if augment.crop == "pad" else 0
    # With mean 0 and std 1/255 the network's input is the pixel value itself.
    raw = Preprocess(preprocess.size, preprocess.resize, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255))
    pixels = Loader(images, raw, augment, 16, "cpu")
    for batch, plain in zip(epoch(loader), epoch(pixels), strict=True):
        expected = one_by_one(images, batch, pad, preprocess.size)
        assert torch.equal(plain.images.permute(0, 2, 3, 1), expected.float())
        for got, crop in zip(batch.images, expected, strict=True):
            reference = as_input(crop, preprocess)
            assert (got.double() - reference).abs().max() < 2e-6
        assert torch.equal(batch.labels, images.labels[batch.index])
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.dtype == torch.float32


def test_the_centre_is_that_of_evaluation() -> None:
    images = make_set(9, 29)
    loader = Loader(images, LARGE, Augment("centre", flip=False), 9, "cpu")
    batch = loader.batch(0, 0, SEEDED)
    expected = next(iter(evaluation_batches(images, LARGE, 9)))
    assert torch.equal(batch.images, expected[batch.index])


def test_crops_and_flips_cover_all_views_evenly() -> None:
    plan = draw(20_000, Augment(), CIFAR, SEEDED(0))
    offsets, flips = plan.views[:, :2], plan.views[:, 2]
    for axis in (0, 1):
        counts = torch.bincount(offsets[:, axis], minlength=9)
        assert counts.shape == (9,)
        # Six standard deviations around 20000 / 9.
        assert (counts - 20_000 / 9).abs().max() < 6 * (20_000 * 8 / 81) ** 0.5
    assert abs(float(flips.float().mean()) - 0.5) < 6 * 0.5 / 20_000**0.5
    together = torch.stack((plan.views[:, 0], plan.views[:, 1], flips)).double()
    assert (torch.corrcoef(together) - torch.eye(3)).abs().max() < 0.05


def test_every_image_once_per_epoch_and_epochs_differ() -> None:
    loader = Loader(make_set(50, 32), CIFAR, Augment(), 16, "cpu")
    orders = []
    for number in (0, 1):
        order = torch.cat([b.index for b in epoch(loader, number)])
        assert torch.equal(order.sort().values, torch.arange(50))
        orders.append(order)
    assert not torch.equal(*orders)


def test_batches_depend_on_the_streams_alone() -> None:
    images = make_set(40, 32)
    first = Loader(images, CIFAR, Augment(), 16, "cpu")
    wanted = {(e, s): first.batch(e, s, SEEDED) for e in range(3) for s in range(3)}
    second = Loader(images, CIFAR, Augment(), 16, "cpu")
    for (number, step), batch in reversed(wanted.items()):
        torch.rand(3)  # the global generator plays no part
        again = second.batch(number, step, streams(5, "train"))
        assert torch.equal(batch.images, again.images)
        assert torch.equal(batch.views, again.views)
    other = second.batch(0, 0, streams(6, "train"))
    assert not torch.equal(other.index, wanted[0, 0].index)


@pytest.mark.parametrize("augment", [Augment(), Augment("resized", brightness=0.3)])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_partition_the_global_batch(augment: Augment, world: int) -> None:
    images = make_set(45, 29)
    loaders = [Loader(images, LARGE, augment, 16, "cpu") for _ in range(world + 1)]
    for step in range(loaders[0].steps):
        whole = loaders[-1].batch(0, step, SEEDED)
        parts = [loaders[r].batch(0, step, SEEDED, rank=r, world=world) for r in range(world)]
        for name in ("images", "labels", "index", "views"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name)), name
        sizes = [len(part.labels) for part in parts]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(32, [16, 16]), (33, [16, 16]), (34, [16, 16, 2]), (16, [16]), (5, [5]), (1, [1])],
)
def test_a_single_last_image_is_dropped_unless_it_is_all(count: int, sizes: list[int]) -> None:
    loader = Loader(make_set(count, 32), CIFAR, Augment(), 16, "cpu")
    assert [len(b.labels) for b in epoch(loader)] == sizes
    assert loader.steps == Training(batch_size=16).steps_for(count)
    with pytest.raises(IndexError, match="step"):
        loader.batch(0, len(sizes), SEEDED)


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match="no image"):
        Loader(make_set(0, 32), CIFAR, Augment(), 16, "cpu")


def test_the_loader_leaves_its_images_alone() -> None:
    images = make_set(20, 29)
    before = images.pixels.clone()
    for augment in (Augment("pad", pad=0), Augment("resized", contrast=0.5)):
        for batch in epoch(Loader(images, LARGE, augment, 8, "cpu")):
            batch.images.zero_()
    assert torch.equal(images.pixels, before)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_evaluation_takes_the_centre_in_order(batch_size: int) -> None:
    images = make_set(11, 29)
    batches = list(evaluation_batches(images, LARGE, batch_size))
    assert all(b.is_contiguous(memory_format=torch.channels_last) for b in batches)
    assert [len(b) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for got, pixels in zip(itertools.chain(*batches), images.pixels, strict=True):
        reference = as_input(pixels[4:24, 4:24], LARGE)
        assert (got.double() - reference).abs().max() < 2e-6


def test_labelled_batches_carry_the_labels_in_order() -> None:
    images = make_set(11, 32)
    pairs = list(labelled_batches(images, CIFAR, 4))
    assert torch.equal(torch.cat([labels for _, labels in pairs]), images.labels)
    joined = torch.cat([batch for batch, _ in pairs])
    assert torch.equal(joined, torch.cat(list(evaluation_batches(images, CIFAR, 4))))
