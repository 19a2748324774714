"""Interpolated crops and colour changes, against plain per-image computations."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional as F

from edgecil.data.augment import crop, draw, jitter, resized_crop, visible
from edgecil.data.images import ImageSet
from edgecil.data.loader import Loader
from edgecil.data.streams import streams
from edgecil.settings import Augment, Preprocess

RAW = Preprocess(20, 29, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255))
SEEDED = streams(11)


def noise(count: int, edge: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(edge)
    return torch.randint(0, 256, (count, edge, edge, 3), dtype=torch.uint8, generator=generator)


def test_resized_crop_equals_cutting_out_and_interpolating() -> None:
    stored = noise(30, 29).permute(0, 3, 1, 2).double()
    plan = draw(30, Augment("resized", area=(0.05, 1.0)), RAW, SEEDED(0))
    assert torch.unique(plan.views[:, 2]).tolist() == [0, 1]
    for got, image, view in zip(
        resized_crop(stored, plan.views, 20), stored, plan.views, strict=True
    ):
        row, column, flip, height, width = view.tolist()
        crop = image[:, row : row + height, column : column + width]
        expected = F.interpolate(crop[None], (20, 20), mode="bilinear", align_corners=False)[0]
        expected = expected.flip(2) if flip else expected
        assert (got - expected).abs().max() < 1e-9


def test_boxes_lie_inside_and_have_the_asked_area_and_aspect() -> None:
    large = Preprocess(224, 256, RAW.mean, RAW.std)
    plan = draw(4000, Augment("resized", area=(0.25, 0.8)), large, SEEDED(0))
    row, column, _, height, width = plan.views.double().unbind(1)
    assert row.min() >= 0 and column.min() >= 0
    assert (row + height).max() <= 256 and (column + width).max() <= 256
    # Sides are rounded to pixels, hence the small tolerance.
    area, aspect = height * width / 256**2, width / height
    assert area.min() > 0.245 and area.max() < 0.805
    assert aspect.min() > 0.74 and aspect.max() < 1.35
    # Area is uniform but for the few boxes that would not fit, aspect is symmetric in its log.
    assert abs(float(area.mean()) - 0.525) < 0.02
    assert abs(float(aspect.log().mean())) < 0.02
    assert area.min() < 0.26 and area.max() > 0.79


def test_a_box_that_never_fits_becomes_the_whole_image() -> None:
    # 1.5 times the area of the image fits at no aspect ratio.
    plan = draw(50, Augment("resized", area=(1.5, 1.5)), RAW, SEEDED(0))
    whole = torch.tensor([0, 0, 29, 29]).expand(50, 4)
    assert torch.equal(plan.views[:, [0, 1, 3, 4]], whole)


def test_a_resized_crop_never_shows_anything_beyond_the_image() -> None:
    white = ImageSet(torch.full((64, 29, 29, 3), 255, dtype=torch.uint8), torch.zeros(64).long())
    loader = Loader(white, RAW, Augment("resized", area=(0.05, 1.0)), 64, "cpu")
    images = loader.batch(0, 0, SEEDED).images
    assert (images - 255).abs().max() < 1e-3
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not images.requires_grad


def test_visible_marks_exactly_the_padding() -> None:
    white = torch.full((40, 10, 10, 3), 255, dtype=torch.uint8)
    small = Preprocess(8, 10, RAW.mean, RAW.std)
    plan = draw(40, Augment(pad=4), small, SEEDED(0))
    padded = F.pad(white, (0, 0, 4, 4, 4, 4))
    crops = crop(padded[plan.order], plan.views, 8)
    shown = visible(plan.views, 10, 4, 8)
    assert torch.equal(shown[:, 0], (crops[..., 0] == 255).float())
    assert 0 < shown.mean() < 1


def test_jitter_equals_pillows_brightness_and_contrast() -> None:
    pixels = noise(12, 24)
    colour = 0.3 + 1.5 * torch.rand(12, 2, generator=SEEDED("colour"))
    got = jitter(pixels.permute(0, 3, 1, 2).float(), colour, None)
    for result, image, (bright, contrast) in zip(got, pixels, colour.tolist(), strict=True):
        picture = ImageEnhance.Brightness(Image.fromarray(image.numpy())).enhance(bright)
        picture = ImageEnhance.Contrast(picture).enhance(contrast)
        expected = torch.tensor(list(picture.tobytes())).view(24, 24, 3).permute(2, 0, 1)
        # Pillow rounds to whole values after each change.
        assert (result - expected).abs().max() <= 3
        assert result.min() >= 0 and result.max() <= 255


def test_jitter_keeps_padding_black_and_ignores_it_in_the_mean() -> None:
    image = torch.full((1, 3, 6, 6), 100.0)
    shown = torch.ones(1, 1, 6, 6)
    shown[..., :2] = 0
    got = jitter(image * shown, torch.tensor([[1.2, 0.5]]), shown)
    # An even image has no contrast to lose: only brightness acts.
    assert torch.allclose(got, 120 * shown.expand_as(got))


@pytest.mark.parametrize("crop", ["pad", "resized", "centre"])
def test_factor_zero_is_the_plain_image(crop: str) -> None:
    pixels = noise(16, 29)
    images = ImageSet(pixels, torch.zeros(16).long())
    plain = Loader(images, RAW, Augment(crop), 16, "cpu")  # type: ignore[arg-type]
    # So small that it changes nothing visible, yet takes the other path.
    tiny = Augment(crop, brightness=1e-6, contrast=1e-6)  # type: ignore[arg-type]
    jittered = Loader(images, RAW, tiny, 16, "cpu")
    one, two = plain.batch(0, 0, SEEDED), jittered.batch(0, 0, SEEDED)
    assert torch.equal(one.views, two.views)
    assert (one.images - two.images).abs().max() < 0.01
    strong = Augment(crop, brightness=0.5)  # type: ignore[arg-type]
    three = Loader(images, RAW, strong, 16, "cpu").batch(0, 0, SEEDED)
    assert (one.images - three.images).abs().max() > 10
