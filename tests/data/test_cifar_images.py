"""The way from files to pixels on real images; needs EDGECIL_TEST_DATA with the CIFAR-100 zips."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch

from edgecil.data.decode import load
from edgecil.data.images import ImageSet
from edgecil.data.loader import Loader, evaluation_batches
from edgecil.data.source import scan
from edgecil.data.streams import streams
from edgecil.settings import CIFAR, Augment

DATA = Path(os.environ.get("EDGECIL_TEST_DATA", ""))
PER_CLASS = 20
PUBLISHED = torch.tensor([0.50708, 0.48655, 0.44092])

pytestmark = pytest.mark.skipif(
    not os.environ.get("EDGECIL_TEST_DATA"), reason="EDGECIL_TEST_DATA is not set"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """The first 20 training images of every class."""
    root = tmp_path_factory.mktemp("cifar")
    with zipfile.ZipFile(DATA / "cifar100-train-a.zip") as archive:
        members = [n for n in archive.namelist() if n.endswith(".webp")]
        archive.extractall(root, [n for n in members if int(Path(n).stem) < PER_CLASS])
    folder = scan(root)
    assert folder.root == root / "train"
    assert len(folder.classes) == 100
    assert folder.classes[:3] == ("apple", "aquarium_fish", "baby")
    assert set(folder.counts) == {PER_CLASS}
    return load(folder, CIFAR).images


def test_channel_means_are_those_published(images: ImageSet) -> None:
    assert images.pixels.shape == (100 * PER_CLASS, 32, 32, 3)
    means = images.pixels.double().mean((1, 2)) / 255
    # 2,000 of 50,000 images: five standard errors of their mean.
    error = 5 * means.std(0) / len(images) ** 0.5
    assert ((means.mean(0) - PUBLISHED).abs() < error).all()


def test_evaluation_batches_are_normalised(images: ImageSet) -> None:
    batches = torch.cat(list(evaluation_batches(images, CIFAR, 512)))
    assert batches.shape == (len(images), 3, 32, 32)
    assert batches.mean((0, 2, 3)).abs().max() < 0.05
    assert (batches.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_an_epoch_shows_every_image_once(images: ImageSet) -> None:
    loader = Loader(images, CIFAR, Augment(), 128, "cpu")
    batches = [loader.batch(0, step, streams(0)) for step in range(loader.steps)]
    labels = torch.cat([b.labels for b in batches])
    assert torch.bincount(labels).tolist() == [PER_CLASS] * 100
    assert torch.stack([b.images.mean() for b in batches[:-1]]).abs().max() < 0.4
