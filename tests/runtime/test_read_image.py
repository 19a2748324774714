"""Every kind of image file gives the pixels that the module promises, or one clear error."""

import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecil_runtime import images
from edgecil_runtime.errors import ImageError, InputError, RuntimeMissing
from edgecil_runtime.images import (
    check_array,
    fit_square,
    list_images,
    read_image,
    resized_shape,
)

HEIGHT, WIDTH = 24, 40


@pytest.fixture
def gradient() -> np.ndarray:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([rows * 10, columns * 6, 255 - columns * 6], axis=-1).astype(np.uint8)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def write_png16(path: Path, values: np.ndarray, extra: bytes = b"") -> None:
    """Write uint16 grey (H, W) or RGB (H, W, 3); Pillow cannot write the latter."""
    colour = 0 if values.ndim == 2 else 2
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp"])
def test_lossless_formats_give_the_exact_pixels(tmp_path, gradient, name):
    path = tmp_path / name
    Image.fromarray(gradient).save(path, lossless=True)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, gradient)
    np.testing.assert_array_equal(read_image(str(path)), gradient)


def test_the_content_decides_not_the_ending(tmp_path, gradient):
    path = tmp_path / "really_a_png.jpg"
    Image.fromarray(gradient).save(path, format="png")
    np.testing.assert_array_equal(read_image(path), gradient)


def test_jpeg_is_close_and_equal_to_pillow(tmp_path, gradient):
    path = tmp_path / "a.jpg"
    Image.fromarray(gradient).save(path, quality=98)
    pixels = read_image(path)
    assert np.abs(pixels.astype(int) - gradient).max() < 12
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))


def test_images_taller_than_one_strip(tmp_path):
    tall = np.random.default_rng(0).integers(0, 256, (1400, 900, 3), dtype=np.uint8)
    Image.fromarray(tall).save(tmp_path / "tall.bmp")
    np.testing.assert_array_equal(read_image(tmp_path / "tall.bmp"), tall)


def test_grey_bilevel_and_palette(tmp_path, gradient):
    grey = gradient[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), grey[..., None].repeat(3, 2))
    Image.fromarray(grey > 100).save(tmp_path / "one.png")
    expected = np.where(grey > 100, 255, 0)[..., None].repeat(3, 2)
    np.testing.assert_array_equal(read_image(tmp_path / "one.png"), expected)
    palette = Image.fromarray(gradient).quantize(16)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "p.png"), np.asarray(palette.convert("RGB"))
    )


def test_alpha_is_composited_on_white(tmp_path, gradient):
    alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    alpha[:, 10:20], alpha[:, 20:] = 128, 255
    for name in ("a.png", "a.webp"):
        Image.fromarray(np.concatenate([gradient, alpha], 2)).save(
            tmp_path / name, lossless=True, exact=True
        )
        pixels = read_image(tmp_path / name).astype(int)
        assert (pixels[:, :10] == 255).all()
        half = gradient[:, 10:20] * (128 / 255) + 255 * (127 / 255)
        assert np.abs(pixels[:, 10:20] - half).max() <= 1
        np.testing.assert_array_equal(pixels[:, 20:], gradient[:, 20:])
    grey_alpha = np.concatenate([gradient[..., :1], alpha], 2)
    Image.fromarray(grey_alpha).save(tmp_path / "la.png")
    pixels = read_image(tmp_path / "la.png")
    assert (pixels[:, :10] == 255).all()
    np.testing.assert_array_equal(pixels[:, 20:, 1], gradient[:, 20:, 0])


def test_transparent_palette_and_colour_key(tmp_path, gradient):
    blocks = np.zeros((HEIGHT, WIDTH), np.uint8)
    blocks[:, 20:] = 1
    image = Image.fromarray(blocks).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, transparency in (("index.png", 0), ("table.png", b"\x00\xff")):
            image.save(tmp_path / name, transparency=transparency)
            pixels = read_image(tmp_path / name)
            assert (pixels[:, :20] == 255).all()
            assert (pixels[:, 20:] == (200, 100, 50)).all()
    key = tuple(int(v) for v in gradient[3, 4])
    Image.fromarray(gradient).save(tmp_path / "key.png", transparency=key)
    pixels = read_image(tmp_path / "key.png")
    assert (pixels[3, 4] == 255).all()
    np.testing.assert_array_equal(pixels[0], gradient[0])


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    write_png16(tmp_path / "grey16.png", values)
    pixels = read_image(tmp_path / "grey16.png").astype(float)
    assert np.abs(pixels[..., 0] - values / 257).max() <= 0.5
    write_png16(tmp_path / "rgb16.png", np.stack([values, values[::-1], values // 2], -1))
    pixels = read_image(tmp_path / "rgb16.png").astype(float)
    assert np.abs(pixels[..., 1] - values[::-1] / 257).max() <= 1
    key = int(values[5, 6])
    write_png16(tmp_path / "key16.png", values, png_chunk(b"tRNS", struct.pack(">H", key)))
    assert (read_image(tmp_path / "key16.png")[5, 6] == 255).all()


def test_cmyk_and_inverted_adobe_cmyk(tmp_path):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red.save(tmp_path / "cmyk.jpg", quality=95)  # Pillow writes the Adobe marker
    pixels = read_image(tmp_path / "cmyk.jpg").astype(int)
    assert np.abs(pixels - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, gradient, orientation):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(gradient).save(path, exif=exif)
    # What the tag means: where row 0 and column 0 of the stored image are shown (EXIF 4.6.4).
    shown = {
        1: gradient,
        2: gradient[:, ::-1],
        3: gradient[::-1, ::-1],
        4: gradient[::-1],
        5: gradient.transpose(1, 0, 2),
        6: gradient.transpose(1, 0, 2)[:, ::-1],
        7: gradient[::-1, ::-1].transpose(1, 0, 2),
        8: gradient.transpose(1, 0, 2)[::-1],
    }[orientation]
    np.testing.assert_array_equal(read_image(path), shown)


def test_alpha_survives_a_rotation(tmp_path, gradient):
    rgba = np.concatenate([gradient, np.zeros((HEIGHT, WIDTH, 1), np.uint8)], 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba).save(tmp_path / "a.png", exif=exif)
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (WIDTH, HEIGHT, 3) and (pixels == 255).all()
    image = Image.fromarray(gradient).quantize(8)
    image.save(tmp_path / "p.png", exif=exif, transparency=int(np.asarray(image)[0, 0]))
    assert (read_image(tmp_path / "p.png")[0, -1] == 255).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_keeps_the_pixels(tmp_path, gradient):
    path = tmp_path / "bad_exif.png"
    Image.fromarray(gradient).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(path), gradient)


@pytest.mark.parametrize("side", [10_000, 30_000])  # Pillow warns from 9,459, raises from 13,378
def test_a_huge_image_is_refused_from_its_header(tmp_path, side):
    path = tmp_path / "huge.png"
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b""))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as caught:
            read_image(path)
    text = str(caught.value)
    assert str(path) in text and "50,000,000" in text and f"{side * side:,}" in text


def test_max_pixels_is_inclusive(tmp_path, gradient):
    path = tmp_path / "a.png"
    Image.fromarray(gradient).save(path)
    assert read_image(path, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError, match="at most 959 pixels"):
        read_image(path, max_pixels=HEIGHT * WIDTH - 1)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp"])
def test_truncated_files_are_named(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for keep in (len(data) // 2, 20, 13, 3, 0):
        path.write_bytes(data[:keep])
        with pytest.raises(ImageError, match=name):
            read_image(path)


def test_other_content_is_refused(tmp_path):
    for name, data in (("t.jpg", b"hello, this is text"), ("g.gif", b"GIF89a" + bytes(20))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match="expected jpg, png, webp or bmp"):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="directory"):
        read_image(tmp_path)


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path, gradient):
    path = tmp_path / "a.png"
    Image.fromarray(gradient).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.png"):
        read_image(path)


def test_arrays_are_checked():
    good = np.zeros((2, 3, 3), np.uint8)
    assert check_array(good) is good
    for bad in (good.astype(float), good[..., :2], good[0], good[:0], [[1]]):
        with pytest.raises(InputError, match="an image must be"):
            check_array(bad)
    with pytest.raises(ImageError, match="too large"):
        check_array(good, max_pixels=5)


def test_fit_square_leaves_the_right_size_alone(gradient):
    square = gradient[:, :HEIGHT]
    np.testing.assert_array_equal(fit_square(square, HEIGHT), square)
    np.testing.assert_array_equal(fit_square(gradient, HEIGHT), gradient[:, 8 : 8 + HEIGHT])


def test_fit_square_equals_the_resize_of_the_graph():
    # Noise is the hardest content: fitting each side to its rounded length is 58 levels off.
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    generator = np.random.default_rng(3)
    for resize in (32, 33, 96):
        node = helper.make_node(
            "Resize", ["image", "", "", "sizes"], ["y"], mode="linear", antialias=1,
            exclude_outside=1, axes=[1, 2], keep_aspect_ratio_policy="not_smaller",
        )  # fmt: skip
        graph = helper.make_graph(
            [node],
            "resize",
            [helper.make_tensor_value_info("image", types.UINT8, [1, "H", "W", 3])],
            [helper.make_tensor_value_info("y", types.UINT8, [1, "h", "w", 3])],
            [helper.make_tensor("sizes", types.INT64, [2], [resize, resize])],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8
        ).SerializeToString()
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        shapes = [(26, 91), (52, 182), (58, 87)]  # here float32 and exact rounding differ for 33
        shapes += [tuple(pair) for pair in generator.integers(7, 260, (25, 2)).tolist()]
        for height, width in shapes:
            image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            whole = session.run(None, {"image": image[None]})[0][0]
            assert whole.shape[:2] == resized_shape(height, width, resize)
            top, left = (whole.shape[0] - resize) // 2, (whole.shape[1] - resize) // 2
            crop = whole[top : top + resize, left : left + resize].astype(int)
            assert np.abs(crop - fit_square(image, resize)).max() <= 1, (height, width, resize)


def test_list_images(tmp_path, gradient):
    for name in ("b/2.png", "b/deep/1.JPG", "a/x.webp", "a/.hidden.png", ".git/y.png", "a/n.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listing = list_images(tmp_path)
    assert listing.classes == ["a", "b"]
    names = [(str(path.relative_to(tmp_path)), index) for path, index in listing.files]
    assert names == [("a/x.webp", 0), ("b/2.png", 1), ("b/deep/1.JPG", 1)]
    with pytest.raises(InputError, match="no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="one folder of images per class"):
        list_images(tmp_path / "b" / "deep")
    (tmp_path / "empty" / "c").mkdir(parents=True)
    with pytest.raises(InputError, match="no image"):
        list_images(tmp_path / "empty")


def test_empty_files_and_images_without_pixels(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ImageError, match="an empty file"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match=r"no pixels \(0 x 5\)"):
        images._check_size((0, 5), 100, "a.png")


def test_an_exif_block_that_cannot_be_parsed_is_passed_over(tmp_path, gradient, monkeypatch):
    def broken(self):
        raise SyntaxError("not a TIFF file")

    Image.fromarray(gradient).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "getexif", broken)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), gradient)


def test_reading_without_pillow_says_what_to_install(tmp_path, gradient, monkeypatch):
    Image.fromarray(gradient).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(RuntimeMissing, match="Pillow"):
        read_image(tmp_path / "a.png")
