"""Reading image files: one definition for training, export and the device.

What a file becomes, so that all three see the same pixels:

- jpg, png, webp and bmp, recognised by their first bytes; of several frames, the first;
- EXIF orientation is applied;
- grey is repeated into three channels; 16-bit values are scaled to 8 bits, not clipped;
- transparency is composited on white, as a browser or a printer shows it (the colours hidden
  under transparent pixels are arbitrary, so dropping the alpha channel would show noise);
- CMYK becomes RGB by Pillow's conversion, embedded colour profiles are not applied.

Pillow is imported when the first file is read; arrays need none of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable, List, NamedTuple, Optional, Tuple, Union

import numpy as np

from edgecil_runtime.errors import (
    ImageError,
    InputError,
    MemoryLimitError,
    RuntimeFault,
    RuntimeMissing,
)
from edgecil_runtime.memory import decoding_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image as PillowImage

    Pixels = NDArray[np.uint8]

PathLike = Union[str, "os.PathLike[str]"]
MAX_PIXELS = 50_000_000
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_MAGIC_BYTES = 12
_STRIP_PIXELS = 1 << 20  # copied out of Pillow at a time, so that no second whole image exists
_TRANSPARENT_MODES = frozenset({"LA", "PA", "RGBA", "La", "RGBa"})
_TRANSPOSE = {  # EXIF tag 0x0112 -> name in PIL.Image.Transpose
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class Listing(NamedTuple):
    """The images of a folder of class folders: names, and ``(path, index of the name)``."""

    classes: List[str]
    files: List[Tuple[Path, int]]


def read_image(
    path: PathLike, max_pixels: int = MAX_PIXELS, max_bytes: Optional[int] = None
) -> Pixels:
    """Return an image file as uint8 RGB ``(H, W, 3)``; the rules are at the top of this module.

    The size is taken from the file's header and checked before a pixel is decoded. With
    ``max_bytes`` an image is refused whose decoding would take more memory than that.

    Raises:
        ImageError: not a readable jpg, png, webp or bmp, truncated, or above ``max_pixels``.
        MemoryLimitError: decoding would take more than ``max_bytes``.
        RuntimeMissing: Pillow is not installed.
    """
    try:
        with open(path, "rb") as file, _open(file) as image:
            _check_size(image.size, max_pixels, path)
            _check_bytes(image, max_bytes, path)
            image.load()
            upright = _oriented(image)
            return _to_array(_scaled(upright) if _is_deep(upright) else _to_rgb(upright))
    except (RuntimeFault, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(
            f"{os.fspath(path)}: cannot read this image: {reason or type(error).__name__}"
        ) from None


def _open(file: Any) -> PillowImage.Image:
    # The format's own class, not Image.open: that one warns or raises by its own process-wide
    # pixel limit before ours can be checked, and it imports formats that nobody asked for.
    head = file.read(_MAGIC_BYTES)
    file.seek(0)
    try:
        if head[:3] == b"\xff\xd8\xff":
            from PIL import JpegImagePlugin

            opened: Any = JpegImagePlugin.jpeg_factory(file)
        elif head[:8] == b"\x89PNG\r\n\x1a\n":
            from PIL import PngImagePlugin

            opened = PngImagePlugin.PngImageFile(file)
        elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            from PIL import WebPImagePlugin

            opened = WebPImagePlugin.WebPImageFile(file)
        elif head[:2] == b"BM":
            from PIL import BmpImagePlugin

            opened = BmpImagePlugin.BmpImageFile(file)
        else:
            raise ValueError("expected jpg, png, webp or bmp, got " + _described(head))
    except ImportError:
        raise RuntimeMissing(
            "reading image files needs Pillow, which is not installed",
            hint="pip install pillow",
        ) from None
    return opened  # type: ignore[no-any-return]


def _described(head: bytes) -> str:
    return f"a file that begins with {head[:8].hex(' ')}" if head else "an empty file"


def _check_size(size: Tuple[int, int], max_pixels: int, path: PathLike) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{os.fspath(path)}: the image has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(
            f"{os.fspath(path)}: too large: expected at most {max_pixels:,} pixels, "
            f"got {width:,} x {height:,} = {width * height:,}"
        )


def _check_bytes(image: PillowImage.Image, max_bytes: Optional[int], path: PathLike) -> None:
    if max_bytes is None:
        return
    simple = image.mode in ("RGB", "L") and "transparency" not in image.info
    simple = simple and image.format != "WEBP" and "exif" not in image.info
    need = decoding_bytes(*image.size, simple)
    if need > max_bytes:
        width, height = image.size
        raise MemoryLimitError(
            f"{os.fspath(path)}: decoding {width:,} x {height:,} pixels takes {need / 1e6:.1f} MB, "
            f"the memory limit leaves {max_bytes / 1e6:.1f} MB",
            hint=f"raise the limit by {-(-(need - max_bytes) // 10**6)} MB or shrink the image",
        )


def _oriented(image: PillowImage.Image) -> PillowImage.Image:
    try:
        name = _TRANSPOSE.get(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF block does not make the pixels unreadable
        name = None
    if name is None:
        return image
    from PIL import Image

    upright = image.transpose(Image.Transpose[name])
    upright.info = image.info
    return upright


def _is_deep(image: PillowImage.Image) -> bool:
    # Pillow reduces 16-bit colour to 8 bits itself; 16-bit grey keeps its values, in mode
    # "I;16" or (before Pillow 11) "I".
    return image.mode == "I" or image.mode.startswith("I;16")


def _scaled(image: PillowImage.Image) -> PillowImage.Image:
    from PIL import Image

    values = np.asarray(image).clip(0, 65535).astype(np.uint32)
    grey = ((values + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _to_rgb(image: PillowImage.Image) -> PillowImage.Image:
    if image.mode not in _TRANSPARENT_MODES and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    from PIL import Image

    colours = image if image.mode == "RGBA" else image.convert("RGBA")
    page = Image.new("RGB", colours.size, (255, 255, 255))
    page.paste(colours, mask=colours.getchannel("A"))
    return page


def _to_array(image: PillowImage.Image) -> Pixels:
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def check_array(image: Any, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return ``image`` when it is a uint8 array ``(H, W, 3)`` with both sides at least 1.

    Raises:
        InputError: another type, dtype or shape.
        ImageError: more than ``max_pixels`` pixels.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(f"an image must be a path or a uint8 array, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"an image must be a uint8 array (height, width, 3), got {image.dtype} {image.shape}"
        )
    _check_size((image.shape[1], image.shape[0]), max_pixels, "image")
    return image


def resized_shape(height: int, width: int, resize: int) -> Tuple[int, int]:
    """Return the (height, width) in pixels after the shorter side became ``resize``.

    This is the rounding of ONNX ``Resize`` with ``keep_aspect_ratio_policy="not_smaller"``:
    one scale for both sides, computed and multiplied in float32, halves away from zero.
    """
    scale = np.float32(resize) / np.float32(min(height, width))
    return _rounded(scale * np.float32(height)), _rounded(scale * np.float32(width))


def _rounded(value: np.float32) -> int:
    return int(float(value) + 0.5)


def fit_square(image: Pixels, resize: int) -> Pixels:
    """Return the centre ``(resize, resize, 3)`` after the shorter side became ``resize``.

    Antialiased bilinear, offsets rounded down: within one grey level of ONNX ``Resize`` with
    ``antialias=1, exclude_outside=1, keep_aspect_ratio_policy="not_smaller"`` and a centre
    crop. Both sides are scaled by the same factor, as ONNX does; fitting each side to its
    rounded length instead would shift the outer columns by up to half a pixel. An image of
    that size already is returned unchanged.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    tall, wide = resized_shape(height, width, resize)
    top, left = (tall - resize) // 2, (wide - resize) // 2
    if short == resize:
        return image[top : top + resize, left : left + resize]
    from PIL import Image

    factor = short / resize
    box = (
        left * factor,
        top * factor,
        min(float(width), (left + resize) * factor),
        min(float(height), (top + resize) * factor),
    )
    source = Image.fromarray(image)
    return np.array(source.resize((resize, resize), Image.Resampling.BILINEAR, box=box))


def is_image_name(name: str) -> bool:
    """Return whether a file name ends like an image and is not hidden."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def list_images(folder: PathLike) -> Listing:
    """Return the class folders of ``folder``, sorted by name, and their images, sorted by path.

    Images may lie at any depth below their class folder. Hidden files and folders, and files
    that do not end in jpg, jpeg, png, webp or bmp, are passed over.

    Raises:
        InputError: no such folder, no class folder in it, or no image in any of them.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder", hint="give a folder that holds class folders")
    names = sorted(e.name for e in root.iterdir() if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise InputError(
            f"{root}: expected one folder of images per class, got no folder",
            hint=f"move the images to {root}/<class name>/",
        )
    files = [(path, index) for index, name in enumerate(names) for path in _walk(root / name)]
    if not files:
        endings = ", ".join(e[1:] for e in EXTENSIONS)
        raise InputError(f"{root}: no image ({endings}) in its {len(names)} class folders")
    return Listing(names, files)


def _walk(folder: Path) -> Iterable[Path]:
    found: List[Path] = []
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(base, name) for name in names if is_image_name(name)]
    return sorted(found)
