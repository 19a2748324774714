"""What storage leaves in an image tells nobody whether its class is old or new."""

from __future__ import annotations

import numpy as np
import pytest
import toys

from edgecil.data.disk import DiskPixels, PixelFile
from edgecil.data.images import ImageSet
from edgecil.engine import increment
from edgecil.engine.increment import begin
from edgecil.engine.loop import view_of
from edgecil.memory.codecs import item_codec
from edgecil.memory.fields import IMAGES
from edgecil_runtime.images import fit_square

REPLAYING = ["icarl", "lwf-coreset", "rehearsal", "bic", "eeil", "lucir", "icarl+mnemonics"]


def there_and_back(codec: str, images: ImageSet, side: int = toys.SIDE) -> np.ndarray:
    """Return images as they come back from the codec, stored with so many pixels a side."""
    small = np.stack([fit_square(image, side) for image in images.pixels.numpy()])
    found = item_codec(codec)
    return np.stack([fit_square(i, toys.SIDE) for i in found.decode(found.encode(small))])


def second(method, codec, side=None, on_disk=None):
    """Return context and phases of a second increment, and the new images as they were given."""
    stored = {"codec": codec, "exemplar_size": side}
    first = toys.task(method, (2,), **stored)
    model = increment.train(
        first, toys.sets_of(first, toys.image_set(range(2))), toys.session()
    ).model
    given, new = toys.task(method, (2, 2), model, **stored), toys.image_set((2, 3))
    sets = toys.sets_of(given, new)
    if on_disk is not None:
        file = PixelFile(on_disk, len(new), toys.SIDE)
        for row, image in enumerate(new.pixels.numpy()):
            file[row] = image
        sets["new"] = ImageSet(DiskPixels([file]), new.labels)
    return *begin(given, sets, toys.session()), new


@pytest.mark.parametrize("method", REPLAYING)
def test_every_new_image_that_is_trained_on_has_been_through_the_codec(method):
    ctx, phases, new = second(method, "jpeg-40")
    allowed = {i.tobytes() for i in there_and_back("jpeg-40", new)}
    given = {i.tobytes() for i in new.pixels.numpy()}
    for phase in phases:
        phase.prepare(ctx)
        view = view_of(ctx, phase)
        seen = {i.tobytes() for i in view.subset(view.labels >= 2).pixels.numpy()}
        assert not seen & given
        if phase.name in ("train", "balanced fine-tuning"):
            assert seen and seen <= allowed


def test_what_is_stored_is_encoded_once():
    ctx, _, new = second("icarl", "jpeg-40")
    ctx.shelf.keep(None)
    stored = {i.tobytes() for i in ctx.keeps.read(IMAGES)[ctx.sets["exemplars"].labels >= 2]}
    assert stored and stored < {i.tobytes() for i in there_and_back("jpeg-40", new)}


def test_who_begins_an_increment_again_gets_the_same_images(tmp_path):
    (first,) = toys.learn("icarl", (2,), tmp_path, codec="jpeg-40")
    given = toys.task("icarl", (2, 2), first.model, codec="jpeg-40")
    sets = toys.sets_of(given, toys.image_set((2, 3)))
    once, again = (begin(given, sets, toys.session())[0].sets["new"].pixels for _ in range(2))
    assert np.array_equal(once, again)


@pytest.mark.parametrize("codec", ["webp-lossless", "jpeg-70"])
def test_smaller_exemplars_leave_traces_too(codec):
    ctx, _, new = second("icarl", codec, side=16)
    assert np.array_equal(ctx.sets["new"].pixels.numpy(), there_and_back(codec, new, 16))


@pytest.mark.parametrize("codec", ["raw", "png", "webp-lossless"])
def test_lossless_storage_leaves_the_images_alone(codec):
    ctx, _, _ = second("icarl", codec)
    assert ctx.sets["new"] is ctx.shelf.new


def test_images_of_a_first_increment_stay_as_they_are():
    given, new = toys.task("icarl", (2,), codec="jpeg-40"), toys.image_set(range(2))
    ctx, _ = begin(given, toys.sets_of(given, new), toys.session())
    assert ctx.sets["new"] is new


def test_images_on_disk_stay_there_and_are_the_same(tmp_path):
    ctx, _, new = second("icarl", "jpeg-40", on_disk=tmp_path)
    found = ctx.sets["new"]
    assert found.on_disk and ctx.shelf.new.on_disk
    read = np.empty(tuple(found.pixels.shape), np.uint8)
    found.pixels.read(np.arange(len(found)), read)
    assert np.array_equal(read, there_and_back("jpeg-40", new))
