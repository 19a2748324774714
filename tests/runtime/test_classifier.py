"""Predictions, evaluation and self-test on real bundles and image files."""

import json
import math
import mmap
import os
import threading

import numpy as np
import pytest
from PIL import Image

from edgecil_runtime import (
    BundleError,
    Classifier,
    ImageError,
    InputError,
    MemoryLimitError,
    RuntimeMissing,
)
from edgecil_runtime import memory as runtime_memory
from edgecil_runtime.bundle import MODEL, SELFTEST, SelfTest
from edgecil_runtime.images import fit_square, read_image


@pytest.fixture(scope="module")
def classifier(colour):
    return Classifier(colour)


def noisy(channel, shape=(12, 20), seed=0):
    image = np.random.default_rng(seed).integers(0, 120, (*shape, 3), dtype=np.uint8)
    image[..., channel] += 100
    return image


def expected_scores(image):
    """What the colour model computes, by hand in float64."""
    return 2 / 255 * fit_square(image, 8).astype(np.float64).mean((0, 1)) - 1


@pytest.mark.parametrize("shape", [(8, 8), (12, 20), (100, 61), (3, 5), (1, 1)])
def test_scores_are_those_of_the_resized_centre(classifier, shape):
    for channel in range(3):
        image = noisy(channel, shape)
        found = classifier.predict(image)
        assert np.abs(found.scores - expected_scores(image)).max() < 1.1 * 2 / 255
        if min(shape) > 1:
            assert (found.label, found.index) == (("red", "green", "blue")[channel], channel)
        assert found.score == found.scores[found.index] == found.scores.max()
        assert found.scores.dtype == np.float32 and found.scores.shape == (3,)


def test_paths_arrays_views_and_batches_agree(classifier, tmp_path):
    image = noisy(1)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    wide = np.zeros((12, 40, 3), np.uint8)
    wide[:, ::2] = image
    several = [image, str(path), path, wide[:, ::2], read_image(path)]
    results = classifier.predict_batch(several)
    assert len(results) == 5
    for result in results:
        np.testing.assert_array_equal(result.scores, results[0].scores)


def test_read_gives_what_scores_takes(classifier, tmp_path):
    image = noisy(1)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert classifier.read(image) is image
    np.testing.assert_array_equal(classifier.read(tmp_path / "a.png"), image)


def test_labels_and_manifest(classifier):
    assert classifier.labels == ("red", "green", "blue")
    assert classifier.manifest.version == 2


def test_wrong_inputs(classifier):
    for wrong in (np.zeros((4, 4)), np.zeros((3, 4, 4), np.uint8), None, 3, [[1]]):
        with pytest.raises(InputError):
            classifier.predict(wrong)
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        classifier.predict("nowhere.png")
    with pytest.raises(ImageError, match="too elongated"):
        classifier.predict(np.zeros((1, 2_000_000, 3), np.uint8))
    for threads in (0, -1, 1.5, True, "2"):
        with pytest.raises(InputError, match="threads"):
            Classifier("anything", threads=threads)
    for limit in (0, "", "12 parsecs", -5, True, "nan"):
        with pytest.raises(InputError):
            Classifier("anything", memory_limit=limit)


def test_max_pixels_of_the_bundle_holds(tmp_path, toy):
    small = Classifier(toy.colour_bundle(tmp_path, max_pixels=100))
    with pytest.raises(ImageError, match="at most 100 pixels"):
        small.predict(noisy(0))
    Image.fromarray(noisy(0)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="at most 100 pixels"):
        small.predict(tmp_path / "a.png")
    assert small.predict(noisy(0, (10, 10))).label == "red"


def test_a_fixed_input_graph_gives_the_same_answers(tmp_path, toy, classifier):
    fixed = Classifier(toy.colour_bundle(tmp_path / "8", fixed=True))
    cropped = Classifier(toy.colour_bundle(tmp_path / "12", resize=12, fixed=True))
    free = Classifier(toy.colour_bundle(tmp_path / "free", resize=12))
    for shape in ((8, 8), (30, 20), (12, 12)):
        image = noisy(2, shape)
        np.testing.assert_allclose(
            fixed.scores(image), classifier.scores(image), atol=1.1 * 2 / 255
        )
        np.testing.assert_allclose(cropped.scores(image), free.scores(image), atol=1.1 * 2 / 255)


def test_several_classifiers_and_threads(colour, tmp_path, toy):
    first, second = Classifier(colour), Classifier(toy.colour_bundle(tmp_path), threads=2)
    images = [noisy(i % 3, seed=i) for i in range(30)]
    wanted = [first.predict(image).scores for image in images]
    wrong = []

    def work(model):
        for image, scores in zip(images, wanted, strict=True):
            if not np.array_equal(model.predict(image).scores, scores):
                wrong.append(model)

    workers = [threading.Thread(target=work, args=(m,)) for m in (first, second, first, second)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    del first
    assert second.predict(images[0]).label == "red"


@pytest.mark.parametrize("int8", [True, False])
def test_residual_networks_run_in_both_precisions(tmp_path, toy, int8):
    model = Classifier(toy.resnet_bundle(tmp_path, 32, int8), threads=1)
    scores = model.scores(noisy(0, (40, 50)))
    assert scores.shape == (100,) and scores.std() > 0


def test_evaluate_counts(classifier, tmp_path, toy):
    toy.colour_folder(tmp_path, each=4)
    # Two red images among the blue: they count as wrong.
    for i in range(2):
        (tmp_path / "red" / f"{i}.png").rename(tmp_path / "blue" / f"was_red_{i}.png")
    seen = []
    result = classifier.evaluate(tmp_path, on_progress=lambda *step: seen.append(step))
    assert seen == [(i, 12) for i in range(1, 13)]
    np.testing.assert_array_equal(result.confusion, [[2, 0, 0], [0, 4, 0], [2, 0, 4]])
    assert result.n == 12 and result.top1 == 10 / 12 and result.top5 == 1
    assert result.per_class == {"red": 1, "green": 1, "blue": pytest.approx(4 / 6)}
    answer = json.loads(json.dumps(result.to_json()))
    assert answer["old"] == 1 and answer["new"] == pytest.approx(4 / 6)
    assert answer["by_increment"] == [1, pytest.approx(4 / 6)]
    assert answer["latency_ms"]["p50"] > 0
    assert answer["latency_ms"]["p95"] is answer["latency_ms"]["p99"] is None  # of 12 images
    resident = answer["anon_bytes"] + answer["file_bytes"]
    assert 0 < answer["anon_bytes"] < resident <= answer["peak_rss_bytes"] + 1e6


def test_evaluate_top5_and_ties(tmp_path, toy):
    labels = [f"class {i}" for i in range(100)]
    model = Classifier(toy.resnet_bundle(tmp_path, 32, True))
    toy.colour_folder(tmp_path / "set", each=6, names=labels[:9])
    result = model.evaluate(tmp_path / "set")
    hits1 = hits5 = 0
    for row, name in enumerate(labels[:9]):
        for path in sorted((tmp_path / "set" / name).iterdir()):
            order = np.argsort(-model.predict(path).scores, kind="stable")
            hits1 += order[0] == row
            hits5 += row in order[:5]
    assert (result.top1, result.top5) == (hits1 / 54, hits5 / 54)
    assert result.per_class["class 9"] is None


def test_class_folders_must_be_known(classifier, tmp_path, toy):
    toy.colour_folder(tmp_path, names=("red", "green", "purple", "teal"))
    with pytest.raises(InputError, match=r"2 folders are not classes .*: purple, teal"):
        classifier.evaluate(tmp_path)
    assert classifier.evaluate(tmp_path, ignore_unknown=True).n == 8
    for name in ("red", "green"):
        (tmp_path / name).rename(tmp_path / f"not {name}")
    with pytest.raises(InputError, match="no image of a class"):
        classifier.evaluate(tmp_path, ignore_unknown=True)


def test_folder_names_match_after_unicode_normalisation(tmp_path, toy):
    labels = ("Grünfink", "b", "c")
    built = toy.colour_model()
    model = Classifier(toy.make_bundle(tmp_path, built, labels, 8, 8))
    toy.colour_folder(tmp_path / "set", names=("Gru\u0308nfink",))
    assert model.evaluate(tmp_path / "set").per_class["Grünfink"] == 1


def test_bad_images_stop_or_are_skipped(classifier, tmp_path, toy):
    toy.colour_folder(tmp_path, each=2)
    (tmp_path / "green" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(ImageError, match=r"green/0\.png"):
        classifier.evaluate(tmp_path)
    result = classifier.evaluate(tmp_path, skip_bad=True)
    assert (result.n, result.skipped, result.top1) == (5, 1, 1.0)
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="none of its 6 images"):
        classifier.evaluate(tmp_path, skip_bad=True)


def test_an_elongated_image_is_named_by_evaluate(classifier, tmp_path, toy):
    toy.colour_folder(tmp_path, each=1)
    Image.fromarray(np.zeros((1, 1_000_000, 3), np.uint8)).save(tmp_path / "red" / "long.png")
    with pytest.raises(ImageError, match=r"long\.png.*too elongated"):
        classifier.evaluate(tmp_path)


def test_selftest_passes_and_fails(classifier, tmp_path, toy):
    result = classifier.selftest()
    assert result.images == 3 and result.max_difference <= result.tolerance == pytest.approx(1e-5)
    good = toy.colour_selftest()
    scores = good.scores.copy()
    scores[1, 2] += 0.01
    wrong = Classifier(toy.colour_bundle(tmp_path, selftest=SelfTest(good.images, scores, 0.005)))
    with pytest.raises(BundleError, match=r"image 1: a score differs by 0\.01"):
        wrong.selftest()


def test_a_model_that_is_not_what_the_manifest_says(tmp_path, toy):
    built = toy.colour_model()
    cases = {
        "labels": ("ab", {}),
        "input": ("abc", {"input": {"name": "x", "dtype": "uint8", "layout": "NHWC"}}),
        "output": ("abc", {"output": "other"}),
    }
    for name, (labels, changes) in cases.items():
        path = toy.make_bundle(tmp_path / name, built, labels, 8, 8, **changes)
        with pytest.raises(BundleError, match=r"model\.onnx: expected"):
            Classifier(path)
    path = toy.make_bundle(tmp_path / "fixed", built, "abc", 8, 8, fixed_input=True)
    assert Classifier(path).predict(noisy(0, (8, 8))).label == "a"
    for junk in (b"", b"junk", built[0][:-40]):
        path = toy.make_bundle(tmp_path / f"{len(junk)}", (junk, 0, 0), "abc", 8, 8)
        with pytest.raises(BundleError, match=r"cannot load the model|expected"):
            Classifier(path)


def test_scores_that_are_not_numbers_are_refused(tmp_path, toy):
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(toy.colour_model()[0])
    for tensor in model.graph.initializer:
        if tensor.dims == [3, 3, 1, 1]:
            kernel = onnx.numpy_helper.to_array(tensor) * np.float32(math.nan)
            tensor.CopyFrom(onnx.numpy_helper.from_array(kernel, tensor.name))
    path = toy.make_bundle(tmp_path, (model.SerializeToString(), 0, 0), "abc", 8, 8)
    with pytest.raises(BundleError, match="finite scores"):
        Classifier(path).predict(noisy(0))


def test_an_onnxruntime_that_is_too_old(tmp_path, toy):
    requires = {"onnxruntime": "99.1", "opset": 18, "ir": 8}
    with pytest.raises(RuntimeMissing, match=r"needs onnxruntime 99\.1") as caught:
        Classifier(toy.colour_bundle(tmp_path, requires=requires))
    assert caught.value.hint == "pip install 'onnxruntime>=99.1'"


def test_damage_is_found_before_loading(tmp_path, toy):
    path = toy.colour_bundle(tmp_path)
    data = bytearray((path / MODEL).read_bytes())
    data[len(data) // 2] ^= 4
    (path / MODEL).write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        Classifier(path)
    assert SELFTEST in os.listdir(path)


def test_the_limit_is_refused_with_a_breakdown_before_loading(tmp_path, toy, monkeypatch):
    import edgecil_runtime.model as module

    def never(*_):
        raise AssertionError("must not load")

    path = toy.resnet_bundle(tmp_path, 32, False)
    with monkeypatch.context() as patch:
        patch.setattr(module, "create_session", never)
        with pytest.raises(
            MemoryLimitError, match=r"weights 1\.9 MB.*nothing was loaded"
        ) as caught:
            Classifier(path, memory_limit="5MB")
    needed = caught.value.hint.split()[4].rstrip(",")
    assert Classifier(path, memory_limit=needed).plan == "lean"
    assert Classifier(path, memory_limit="200MB").plan == "fast"
    assert Classifier(path).plan == "fast"


def test_images_beyond_what_the_limit_leaves(colour, tmp_path):
    need = Classifier(colour, memory_limit="200MB").need.total
    tight = Classifier(colour, memory_limit=need + 2_000_000)
    Image.fromarray(noisy(0, (400, 500))).save(tmp_path / "small.png")
    Image.fromarray(noisy(0, (600, 500))).save(tmp_path / "large.png")
    Image.fromarray(noisy(0, (400, 500))).save(tmp_path / "small.webp")
    assert tight.predict(tmp_path / "small.png").label == "red"
    for name, took in (("large.png", "2.4 MB"), ("small.webp", "3.2 MB")):
        with pytest.raises(MemoryLimitError, match=f"{name}.*{took}.*leaves 2.0 MB"):
            tight.predict(tmp_path / name)


def test_parse_size():
    parse = runtime_memory.parse_size
    assert parse("96MB") == 96_000_000 and parse("1.5 MiB") == 1_572_864
    assert parse(" 600kB ") == 600_000 and parse(5) == 5
    assert parse("7000000") == 7_000_000
    with pytest.raises(InputError, match="96 bytes") as error:
        parse("96")
    assert error.value.hint == "did you mean 96MB?"


def test_usage_of_this_process():
    before = runtime_memory.usage()
    # Not from the heap, which may have as much to spare.
    block = mmap.mmap(-1, 50_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(50):
        block.write(bytes(1_000_000))
    after = runtime_memory.usage()
    assert 45e6 < after.anonymous - before.anonymous < 60e6
    assert after.peak >= after.resident >= after.anonymous
    assert after.data - before.data > 45e6
    assert after.resident == pytest.approx(after.anonymous + after.file_backed, rel=0.05)
    block.close()
    runtime_memory.trim()
    assert runtime_memory.usage().anonymous < after.anonymous - 45e6
