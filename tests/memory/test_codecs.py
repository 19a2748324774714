"""Codecs: what decodes, how large it can get, and what happens to damaged bytes."""

import io

import numpy as np
import pytest
from PIL import Image

from edgecil.errors import DataError, UsageError
from edgecil.memory import codecs, pictures
from edgecil.memory.codec import CodecError
from edgecil_runtime import container

LOSSLESS = ("raw", "png", "webp-lossless")
IMAGES = (*LOSSLESS, "jpeg-1", "jpeg-50", "jpeg-75", "jpeg-95", "jpeg-100")


def hard_images(size):
    """Return images ``(N, size, size, 3)`` that compress badly, each in its own way."""
    random = np.random.default_rng(size)
    uniform = random.integers(0, 256, (size, size, 3))
    extremes = random.integers(0, 2, (size, size, 3)) * 255
    grey = np.repeat(random.integers(0, 2, (size, size, 1)) * 255, 3, axis=2)
    palette = random.integers(0, 256, (257, 3))[random.integers(0, 257, (size, size))]
    rows, columns = (axis[..., None] for axis in np.mgrid[:size, :size])
    board = np.repeat((rows + columns) % 2 * 255, 3, axis=2)
    ramp = np.repeat((rows * 7 + columns * 13) % 256, 3, axis=2)
    noisy = np.clip(ramp + random.normal(0, 40, ramp.shape), 0, 255)
    half = np.where(columns < size // 2, uniform, palette)
    coarse = extremes[: size // 2 + 1, : size // 2 + 1].repeat(2, 0).repeat(2, 1)[:size, :size]
    waves = np.repeat(few_frequencies(random, size)[..., None], 3, axis=2)
    images = [uniform, extremes, grey, palette, board, ramp, noisy, half, coarse, waves]
    return np.stack(images).astype(np.uint8)


def few_frequencies(random, size):
    """Return ``(size, size)`` whose 8 x 8 blocks have all their energy in few cosines."""
    steps = (2 * np.arange(8) + 1) * np.pi / 16
    blocks = -(-size // 8)
    image = np.zeros((blocks * 8, blocks * 8))
    for row in range(0, blocks * 8, 8):
        for column in range(0, blocks * 8, 8):
            for u, v in random.integers(0, 4, (3, 2)):
                sign = random.choice([-1, 1])
                wave = sign * np.outer(np.cos(u * steps), np.cos(v * steps))
                image[row : row + 8, column : column + 8] += wave
    return np.where(image > 0, 255, 0)[:size, :size]


def part_bytes(specs):
    return container.layout(specs).data_bytes


def specs_of(parts):
    return {n: (container.dtype_name(a.dtype), a.shape) for n, a in parts.items()}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_codecs_return_the_same_pixels(name):
    images = hard_images(32)
    assert np.array_equal(codecs.get(name).decode(codecs.get(name).encode(images)), images)


@pytest.mark.parametrize("quality", [1, 75, 95])
def test_jpeg_decodes_to_what_a_whole_jpeg_file_decodes_to(quality):
    images = hard_images(24)
    codec = codecs.get(f"jpeg-{quality}")
    for image, stored in zip(images, codec.decode(codec.encode(images)), strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        assert np.array_equal(stored, np.asarray(Image.open(file)))


def test_jpeg_keeps_tables_and_headers_once():
    images = hard_images(32)
    parts = codecs.get("jpeg-95").encode(images)
    whole = 0
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        whole += len(file.getvalue())
    shared = len(parts["head"]) + 2  # and the end-of-image marker
    assert len(parts[""]) == whole - len(images) * shared
    assert shared > 600


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("size", [7, 32, 224])
def test_bound_holds_for_what_compresses_worst(name, size):
    codec = codecs.item_codec(name)
    for image in hard_images(size):
        parts = codec.encode(image[None])
        bound, measured = codec.bound("U8", (1, size, size, 3)), specs_of(parts)
        assert set(bound) == set(measured)
        assert part_bytes(measured) <= part_bytes(bound)
        assert part_bytes(measured) == part_bytes(bound) or not codec.exact
        assert {p: s[0] for p, s in bound.items()} == {p: s[0] for p, s in measured.items()}


@pytest.mark.parametrize("quality", range(1, 101))
def test_jpeg_bound_holds_for_every_quality(quality):
    codec = pictures.jpeg(quality)
    for image in hard_images(16):
        assert len(codec.encode_item(image)) <= part_bytes(codec.bound("U8", (1, 16, 16, 3))) - 2


@pytest.mark.parametrize("name", IMAGES)
def test_least_is_below_photos_like_images_and_below_the_bound(name):
    codec = codecs.get(name)
    least = part_bytes(codec.least("U8", (3, 32, 32, 3)))
    assert least <= part_bytes(specs_of(codec.encode(hard_images(32)[:3])))
    assert least <= part_bytes(codec.bound("U8", (3, 32, 32, 3)))


@pytest.mark.parametrize("name", IMAGES)
def test_items_are_the_array_and_joined_predicts_them(name):
    images = hard_images(32)
    codec = codecs.item_codec(name)
    items = [codec.encode_item(image) for image in images]
    parts = codec.join(items, (32, 32))
    assert codec.split(parts) == items
    assert codec.size(parts) == (32, 32)
    assert specs_of(parts) == codec.joined(len(items), sum(map(len, items)), (32, 32))
    assert all(np.array_equal(parts[p], a) for p, a in codec.encode(images).items())
    few = codec.decode(codec.join(items[:2], (32, 32)))
    assert np.array_equal(few, codec.decode(codec.encode(images))[:2])


@pytest.mark.parametrize("name", IMAGES)
def test_encoding_is_deterministic_and_decoding_can_be_changed(name):
    images = hard_images(16)[:2]
    codec = codecs.get(name)
    once, twice = codec.encode(images), codec.encode(images.copy())
    assert all(once[p].tobytes() == twice[p].tobytes() for p in once)
    codec.decode(once)[:] = 0


def test_images_above_64_kib_get_wider_lengths():
    parts = codecs.get("png").encode(hard_images(224)[:1])
    assert parts["lengths"].dtype == np.uint32
    assert codecs.get("png").encode(hard_images(32)[:1])["lengths"].dtype == np.uint16


@pytest.mark.parametrize("name", ["png", "webp-lossless", "jpeg-95"])
def test_damaged_parts_are_recognised(name):
    codec = codecs.get(name)
    parts = dict(codec.encode(hard_images(16)))
    for broken in (
        {**parts, "": parts[""][:-1]},
        {**parts, "": np.zeros_like(parts[""])} if name != "jpeg-95" else {},  # decodes: grey
        {**parts, "lengths": parts["lengths"] + np.uint16(1)},
        {"": parts[""]},
    ):
        with pytest.raises(CodecError):
            codec.decode(broken)


@pytest.mark.parametrize("name", ["jpg", "jpeg", "jpeg-0", "jpeg-101", "jpeg-095", "zip", "narrow"])
def test_codecs_that_store_no_images(name):
    with pytest.raises(UsageError, match=r"unknown codec|does not store images") as error:
        codecs.item_codec(name)
    known = error.value.hint.partition("there are ")[2].replace(" and ", ", ").split(", ")
    assert len(known) == 4
    for each in known:
        codecs.item_codec(each.partition(" to ")[0])


def write_photo(path, value, size=(16, 16)):
    Image.new("RGB", size, (value, 0, 0)).save(path)
    return path


def test_references_read_the_files_back(tmp_path):
    codec = codecs.item_codec("reference")
    paths = [write_photo(tmp_path / f"{i} é.png", i) for i in range(3)]
    parts = codec.join([codec.encode_item(p) for p in paths], (16, 16))
    assert codec.decode(parts)[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert codec.size(parts) == (16, 16)
    assert part_bytes(specs_of(parts)) <= part_bytes(codec.bound("U8", (3, 16, 16, 3)))
    assert part_bytes(specs_of(parts)) >= part_bytes(codec.least("U8", (3, 16, 16, 3)))


def test_references_are_absolute(tmp_path, monkeypatch):
    write_photo(tmp_path / "a.png", 5)
    monkeypatch.chdir(tmp_path)
    codec = codecs.item_codec("reference")
    parts = codec.join([codec.encode_item("a.png")], (8, 8))
    monkeypatch.chdir("/")
    assert codec.decode(parts).shape == (1, 8, 8, 3)


def test_references_to_missing_and_changed_files_name_them(tmp_path):
    codec = codecs.item_codec("reference")
    path = write_photo(tmp_path / "dog.png", 1)
    parts = codec.join([codec.encode_item(path)], (16, 16))
    write_photo(path, 2)
    with pytest.raises(DataError, match=r"dog\.png: changed since it was learned"):
        codec.decode(parts)
    path.unlink()
    with pytest.raises(DataError, match=r"dog\.png: needed again, but No such file") as error:
        codec.decode(parts)
    assert error.value.hint
    with pytest.raises(DataError, match="dog"):
        codec.encode_item(path)


def test_references_of_very_long_paths_are_refused():
    with pytest.raises(DataError, match="longer than 512 bytes"):
        codecs.item_codec("reference").encode_item("/" + "x/" * 300)
