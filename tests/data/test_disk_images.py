"""Images on disk: the same batches as from memory, nothing left behind, and honest refusals."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import toys

from edgecil.data import resident
from edgecil.data.decode import decode, load
from edgecil.data.disk import DiskPixels, PixelFile
from edgecil.data.images import Batch, ImageSet, concat
from edgecil.data.loader import Loader, labelled_batches
from edgecil.data.reading import ReadAhead
from edgecil.data.resident import free_host_bytes, streams
from edgecil.data.source import scan
from edgecil.data.streams import streams as random_streams
from edgecil.errors import DataError, WorkspaceError
from edgecil.settings import Augment, Preprocess

EDGE = 24
INPUT = Preprocess(20, EDGE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SEEDED = random_streams(3, "train")
AUGMENTS = (
    Augment("pad"),
    Augment("resized"),
    Augment("centre", flip=False),
    Augment("pad", brightness=0.3, contrast=0.3),
)


def in_memory(count: int, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, EDGE, EDGE, 3), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % 5)


def on_disk(images: ImageSet, folder: Path) -> ImageSet:
    file = PixelFile(folder, len(images), EDGE)
    for row in reversed(range(len(images))):  # any order will do
        file[row] = images.pixels[row].numpy()
    return ImageSet(DiskPixels([file]), images.labels)


def equal(left: Batch, right: Batch) -> bool:
    pairs = ((getattr(left, n), getattr(right, n)) for n in ("images", "labels", "index", "views"))
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(params=["whole", "part", "joined"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ImageSet, ImageSet]:
    """A set in memory and the same on disk; a part of one; one joined with another in memory."""
    memory, kept = in_memory(50), in_memory(9, seed=1)
    disk = on_disk(memory, tmp_path)
    if request.param == "whole":
        return memory, disk
    rows = torch.tensor([44, 2, 2, 31, 8, 0, 49, 17, 5, 23])
    if request.param == "part":
        return memory.subset(rows), disk.subset(rows)
    joined = concat([kept, disk.subset(rows), kept.subset(torch.tensor([8, 1])), disk])
    assert joined.on_disk
    return concat([kept, memory.subset(rows), kept.subset(torch.tensor([8, 1])), memory]), joined


@pytest.mark.parametrize("augment", AUGMENTS, ids=lambda a: f"{a.crop}-{a.brightness}")
def test_batches_are_those_from_memory_to_the_bit(
    augment: Augment, pair: tuple[ImageSet, ImageSet]
) -> None:
    memory, disk = (Loader(images, INPUT, augment, 8, "cpu") for images in pair)
    assert memory.steps == disk.steps > 1
    for epoch in range(2):
        for step in range(memory.steps):
            assert equal(disk.batch(epoch, step, SEEDED), memory.batch(epoch, step, SEEDED))


def test_batches_asked_for_in_any_order_and_by_any_rank_are_the_same(tmp_path: Path) -> None:
    images = in_memory(50)
    disk = Loader(on_disk(images, tmp_path), INPUT, Augment(), 8, "cpu")
    memory = Loader(images, INPUT, Augment(), 8, "cpu")
    for epoch, step, rank in ((3, 5, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0), (0, 2, 2), (3, 6, 2)):
        ranks = {"rank": rank, "world": 3}
        assert equal(
            disk.batch(epoch, step, SEEDED, **ranks), memory.batch(epoch, step, SEEDED, **ranks)
        )


def test_a_rank_without_an_image_gets_an_empty_batch(tmp_path: Path) -> None:
    images = in_memory(2)
    disk = Loader(on_disk(images, tmp_path), INPUT, Augment(), 8, "cpu")
    memory = Loader(images, INPUT, Augment(), 8, "cpu")
    ranks = {"rank": 0, "world": 3}
    assert equal(disk.batch(0, 0, SEEDED, **ranks), memory.batch(0, 0, SEEDED, **ranks))
    assert disk.batch(0, 0, SEEDED, **ranks).images.shape == (0, 3, 20, 20)


def test_the_batch_in_use_is_not_overwritten_by_the_one_read_ahead(tmp_path: Path) -> None:
    images = in_memory(60)
    read = ReadAhead(on_disk(images, tmp_path).pixels, torch.device("cpu"))
    parts = torch.randperm(60).split(10)
    for rows, following in zip(parts, (*parts[1:], torch.arange(0)), strict=True):
        got = read(rows, following)
        read._pool.submit(int).result()  # what was asked for ahead has been read
        assert torch.equal(got, images.pixels[rows])


@pytest.mark.parametrize("batch_size", [7, 50, 64])
def test_evaluation_batches_are_those_from_memory(tmp_path: Path, batch_size: int) -> None:
    images = in_memory(50)
    pairs = zip(
        labelled_batches(on_disk(images, tmp_path), INPUT, batch_size),
        labelled_batches(images, INPUT, batch_size),
        strict=True,
    )
    for (got, labels), (expected, truth) in pairs:
        assert torch.equal(got, expected)
        assert torch.equal(labels, truth)


def test_an_empty_part_is_empty(tmp_path: Path) -> None:
    none = on_disk(in_memory(3), tmp_path).subset(torch.arange(0))
    assert len(none) == len(none.pixels) == none.pixels.nbytes == 0
    assert list(labelled_batches(none, INPUT, 8)) == []
    assert none.pixels.index_select(0, torch.arange(0)).shape == (0, EDGE, EDGE, 3)


def test_decoding_to_disk_equals_decoding_to_memory(tmp_path: Path) -> None:
    folder = toys.write_folder(tmp_path / "set", range(3), count=5)
    (folder / "class-1" / "002.png").write_bytes(b"no image")
    room = tmp_path / "room"
    room.mkdir()
    found = scan(folder)
    memory = load(found, INPUT, skip_bad=True)
    disk = load(found, INPUT, skip_bad=True, disk=room)
    assert disk.images.on_disk and not memory.images.on_disk
    assert (disk.paths, disk.skipped) == (memory.paths, memory.skipped)
    assert len(disk.images) == 14
    assert torch.equal(disk.images.labels, memory.images.labels)
    assert torch.equal(disk.images.pixels.index_select(0, torch.arange(14)), memory.images.pixels)
    messages = []
    for where in (None, room):
        with pytest.raises(DataError) as caught:
            decode(found.paths, EDGE, disk=where)
        messages.append((caught.value.message, caught.value.hint))
    assert messages[0] == messages[1]
    assert "002.png" in messages[0][0] and "--skip-bad" in messages[0][1]


def test_the_file_has_no_name_and_its_room_is_given_back(tmp_path: Path) -> None:
    images = on_disk(in_memory(50), tmp_path)
    assert list(tmp_path.iterdir()) == []
    handle = images.pixels._parts[0]._file.fileno()
    assert os.fstat(handle).st_size == images.pixels.nbytes == 50 * EDGE * EDGE * 3
    del images
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from edgecil.data.decode import decode\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "decode([Path('nowhere.png')] * 50, 24, disk=Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "DataError: 50 decoded images need 86.4 kB (86,400 bytes) on the disk of" in last
    assert str(tmp_path) in last and "are free: File too large" in last
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_is_an_error_and_no_crash(tmp_path: Path) -> None:
    images = on_disk(in_memory(20), tmp_path)
    loader = Loader(images, INPUT, Augment(), 20, "cpu")
    os.ftruncate(images.pixels._parts[0]._file.fileno(), 10 * EDGE * EDGE * 3)
    # Not a DataError: nothing is wrong with the images, and the run can be resumed.
    with pytest.raises(WorkspaceError, match="fails: got 0 bytes of 1728"):
        loader.batch(0, 0, SEEDED)


def test_images_are_streamed_when_they_take_more_than_half_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resident, "free_host_bytes", lambda: 2000)
    assert not streams(1000, "auto") and streams(1001, "auto")
    assert streams(1, "yes") and not streams(10**6, "no")


def test_the_limits_of_every_control_group_above_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    monkeypatch.setattr(resident, "CGROUP", tmp_path)
    monkeypatch.setattr(resident, "OWN_CGROUPS", own)

    def group(path: str, limit: int, used: int, names: tuple[str, str, str]) -> None:
        folder = tmp_path / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (limit, used, "inactive_file 5"), strict=True):
            (folder / name).write_text(f"{value}\n")

    second = ("memory.max", "memory.current", "memory.stat")
    group("user/task", 900, 100, second)
    group("user", 1000, 600, second)
    own.write_text("0::/user/task\n")
    assert free_host_bytes() == 405
    own.write_text("0::/elsewhere\n")
    assert free_host_bytes() > 10**6
    first = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    group("memory/box", 300, 100, first)
    own.write_text("5:cpu:/box\n4:cpuset,memory:/box/inner\n0::/\n")
    assert free_host_bytes() == 205


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_the_limits_of_the_process_count(kind: str) -> None:
    code = (
        "import resource, sys; from edgecil.data.resident import free_host_bytes\n"
        f"name = {{'RLIMIT_AS': 'VmSize:', 'RLIMIT_DATA': 'VmData:'}}[{kind!r}]\n"
        "used = [int(l.split()[1]) * 1024 for l in open('/proc/self/status') if name in l][0]\n"
        f"resource.setrlimit(resource.{kind}, (used + 90_000_000,) * 2)\n"
        "print(free_host_bytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert 80_000_000 < int(done.stdout) <= 90_000_000
    assert resource.getrlimit(getattr(resource, kind))[0] == resource.RLIM_INFINITY


def test_rows_are_those_of_a_tensor(tmp_path: Path) -> None:
    memory = in_memory(30)
    disk = on_disk(memory, tmp_path).pixels
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 30, 40))
    for chosen in (slice(4, 19), rows, torch.arange(30) % 3 == 1):
        part, expected = disk[chosen], memory.pixels[chosen]
        assert part.shape == tuple(expected.shape)
        assert torch.equal(part.index_select(0, torch.arange(len(part))), expected)
