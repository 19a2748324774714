"""Real files of every mode and format become the right pixels; bad ones are named."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgecil.data import resident
from edgecil.data.decode import decode, load, split_validation
from edgecil.data.images import ImageSet
from edgecil.data.resident import free_host_bytes, pixel_bytes, place, residence
from edgecil.data.source import scan
from edgecil.errors import DataError, UsageError
from edgecil.settings import CIFAR, Preprocess
from edgecil_runtime.errors import ImageError
from edgecil_runtime.images import read_image

SMALL = Preprocess(8, 8, CIFAR.mean, CIFAR.std)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def plain(path: Path, value: int = 100, edge: int = 8) -> Path:
    return save(path, Image.new("RGB", (edge, edge), (value, value, value)))


def noise(edge: int = 8) -> Image.Image:
    pixels = np.random.default_rng(edge).integers(0, 256, (edge, edge, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def huge(path: Path) -> Path:
    """A PNG of a few bytes whose header claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + check

    side = (30_000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + bytes((8, 2, 0, 0, 0)))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    return path


def truncated(path: Path) -> Path:
    save(path, noise(64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def corrupt(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"this is no image at all")
    return path


def colour(image: Image.Image, path: Path, **options: Any) -> list[int]:
    """The first pixel after a round through a file."""
    pixels = decode([save(path, image, **options)], 8).pixels
    assert pixels.shape == (1, 8, 8, 3)
    assert pixels.dtype == torch.uint8
    return [int(v) for v in pixels[0, 0, 0]]


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "jpg", "JPEG"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    options = {"lossless": True} if suffix == "webp" else {}
    got = colour(image, tmp_path / f"x.{suffix}", **options)
    assert np.abs(np.subtract(got, (200, 100, 50))).max() <= (3 if suffix.startswith("j") else 0)


def test_modes(tmp_path: Path) -> None:
    grey = Image.new("L", (8, 8), 77)
    assert colour(grey, tmp_path / "grey.png") == [77] * 3
    assert colour(Image.new("1", (8, 8), 1), tmp_path / "bits.png") == [255] * 3
    palette = Image.new("RGB", (8, 8), (200, 100, 50)).quantize(4)
    assert colour(palette, tmp_path / "palette.png") == [200, 100, 50]
    deep = Image.fromarray(np.full((8, 8), 0x8080, np.uint16))
    assert colour(deep, tmp_path / "deep.png") == [0x80] * 3
    alpha = Image.new("RGBA", (8, 8), (200, 100, 50, 255))
    assert colour(alpha, tmp_path / "alpha.png") == [200, 100, 50]
    glass = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    assert colour(glass, tmp_path / "glass.png") == [255] * 3
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    red, green, blue = colour(ink, tmp_path / "ink.jpg", quality=100)
    assert red < 10 and green > 240 and blue > 240


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0] = 255  # the upper edge is white
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to see it upright
    turned = decode([save(tmp_path / "x.png", Image.fromarray(pixels), exif=exif)], 8).pixels[0]
    assert turned[:, -1].min() == 255 and turned[:, :-1].max() == 0


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    assert decode([save(tmp_path / "w.png", Image.fromarray(wide))], 10).pixels.min() > 200
    exact = noise(8)
    assert np.array_equal(decode([save(tmp_path / "e.png", exact)], 8).pixels[0], np.asarray(exact))


def test_order_is_kept_for_any_number_of_workers(tmp_path: Path) -> None:
    paths = [plain(tmp_path / f"{i:03d}.bmp", i) for i in range(150)]
    progress: list[tuple[int, int]] = []
    for workers in (1, 4):
        caller: list[int] = []

        def note(done: int, total: int, caller: list[int] = caller) -> None:
            progress.append((done, total))
            caller.append(threading.get_ident())

        decoded = decode(paths, 8, workers, on_progress=note)
        assert decoded.pixels[:, 0, 0, 0].tolist() == list(range(150))
        assert decoded.kept == list(range(150)) and not decoded.skipped
        assert set(caller) == {threading.get_ident()}
    assert progress[-1] == (150, 150)
    assert [p[0] for p in progress[: len(progress) // 2]] == [64, 128, 150]


@pytest.mark.parametrize("break_it", [truncated, corrupt, huge])
def test_a_bad_image_is_named_or_skipped(tmp_path: Path, break_it: Callable[[Path], Path]) -> None:
    paths = [plain(tmp_path / f"{i:03d}.png", i) for i in range(140)]
    for index in (70, 139):
        break_it(paths[index])
    with pytest.raises(DataError, match=r"070\.png") as caught:
        decode(paths, 8, workers=3)
    assert caught.value.hint is not None and "--skip-bad" in caught.value.hint
    assert "\n" not in caught.value.message
    decoded = decode(paths, 8, workers=3, skip_bad=True)
    assert [s.path.name for s in decoded.skipped] == ["070.png", "139.png"]
    assert all(s.path.name in s.reason for s in decoded.skipped)
    assert decoded.kept == [i for i in range(140) if i not in (70, 139)]
    assert decoded.pixels[:, 3, 3, 0].tolist() == decoded.kept


def test_a_bad_image_stops_the_decoding_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = read_image(plain(tmp_path / "good.png"))
    calls = []

    def slow(path: Path, max_pixels: int) -> Any:
        calls.append(path)
        if path.name == "bad.png":
            raise ImageError("bad.png: made up")
        time.sleep(0.001)
        return good

    monkeypatch.setattr("edgecil.data.decode.read_image", slow)
    with pytest.raises(DataError, match="made up"):
        decode([tmp_path / "bad.png"] + [tmp_path / "good.png"] * 3000, 8, workers=1)
    assert len(calls) < 1500


def test_a_huge_image_says_how_large_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="30,000 x 30,000"):
        decode([huge(tmp_path / "x.png")], 8)


def test_an_image_gone_since_the_scan_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png"):
        decode([tmp_path / "gone.png"], 8)


def test_too_many_images_for_the_memory_are_refused_before_reading(tmp_path: Path) -> None:
    count = free_host_bytes() // pixel_bytes(1, 4096) + 1000
    with pytest.raises(DataError) as caught:
        decode([tmp_path / "never-read.png"] * count, 4096)
    assert f"{pixel_bytes(count, 4096):,} bytes" in caught.value.message
    assert "free" in caught.value.message


def test_load_labels_follow_the_images_that_are_left(tmp_path: Path) -> None:
    for name, value in (("a", 10), ("b", 20), ("b", 21), ("c", 30)):
        plain(tmp_path / name / f"{value}.png", value)
    corrupt(tmp_path / "b" / "00.png")
    folder = scan(tmp_path)
    with pytest.raises(DataError, match=r"00\.png"):
        load(folder, SMALL)
    loaded = load(folder, SMALL, skip_bad=True)
    assert loaded.images.pixels[:, 0, 0, 0].tolist() == [10, 20, 21, 30]
    assert loaded.images.labels.tolist() == [0, 1, 1, 2]
    assert loaded.images.labels.dtype == torch.int64
    assert loaded.images.pixels.dtype == torch.uint8
    assert [p.stem for p in loaded.paths] == ["10", "20", "21", "30"]
    assert [s.path.name for s in loaded.skipped] == ["00.png"]


def test_a_class_that_loses_all_its_images_is_an_error(tmp_path: Path) -> None:
    plain(tmp_path / "a" / "1.png")
    corrupt(tmp_path / "b" / "1.png")
    truncated(tmp_path / "b" / "2.png")
    with pytest.raises(DataError, match="no image is left of b:"):
        load(scan(tmp_path), SMALL, skip_bad=True)


def test_held_out_images_are_spread_over_the_classes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])[torch.randperm(63)]
    train, held = split_validation(labels, 0.2, torch.Generator().manual_seed(1))
    assert torch.equal(torch.cat((train, held)).sort().values, torch.arange(63))
    assert torch.equal(train, train.sort().values) and torch.equal(held, held.sort().values)
    assert torch.bincount(labels[held], minlength=4).tolist() == [10, 2, 0, 0]
    again = split_validation(labels, 0.2, torch.Generator().manual_seed(1))
    other = split_validation(labels, 0.2, torch.Generator().manual_seed(2))
    assert torch.equal(held, again[1]) and not torch.equal(held, other[1])


def test_one_image_per_class_always_stays_for_training() -> None:
    labels = torch.tensor([0] * 3 + [1] * 2 + [2])
    train, _ = split_validation(labels, 0.99, torch.Generator())
    assert torch.bincount(labels[train]).tolist() == [1, 1, 1]
    assert len(split_validation(labels, 0.0, torch.Generator())[1]) == 0
    for fraction in (1.0, -0.1):
        with pytest.raises(UsageError):
            split_validation(labels, fraction, torch.Generator())


def test_images_live_on_the_gpu_only_when_they_take_a_quarter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu, cpu = torch.device("cuda:0"), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 9000))
    assert residence(1000, gpu) == gpu
    assert residence(1001, gpu) == cpu
    assert residence(10**15, cpu) == cpu
    images = ImageSet(torch.zeros(100, 2, 2, 3, dtype=torch.uint8), torch.zeros(100).long())
    assert place(images, gpu).pixels.device == cpu


def test_free_memory_counts_the_containers_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = free_host_bytes()
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < free <= total
    monkeypatch.setattr(resident, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_host_bytes() > 10**6  # no limit: the machine's
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_host_bytes() == 4000
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\nfile 400\n")
    assert free_host_bytes() == 4300
    (tmp_path / "memory.current").write_text("9000\n")
    assert free_host_bytes() == 0
