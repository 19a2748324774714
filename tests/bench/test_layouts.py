"""Data sets as published: written here byte by byte in their own layout, read, and damaged."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecil.bench import layouts
from edgecil.bench.layouts.cifar import cifar100
from edgecil.errors import DataError, UsageError

ROOT = Path(__file__).parents[2]
NAMES = ["orchid", "apple", "bee"]  # labels count, not names
WNIDS = ["n02124075", "n01443537", "n04067472"]
DAMAGES = pytest.mark.parametrize


def picture(path, seed=0, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def names_of(images):
    return {name: [p.name for p in paths] for name, paths in images.items()}


class TestCifar100:
    def write(self, home, per_class=4):
        """Write the binary version: coarse label, fine label, then three planes, row by row."""
        home.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(0)
        pixels = {}
        for part in ("train", "test"):
            labels = generator.permutation(np.repeat(np.arange(3, dtype=np.uint8), per_class))
            pixels[part] = generator.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
            records = [
                bytes([19, label]) + b"".join(image[:, :, c].tobytes() for c in range(3))
                for label, image in zip(labels, pixels[part], strict=True)
            ]
            (home / f"{part}.bin").write_bytes(b"".join(records))
            pixels[part] = (labels, pixels[part])
        (home / "fine_label_names.txt").write_text("\n".join(NAMES) + "\n\n")
        (home / "coarse_label_names.txt").write_text("fish\n" * 20)
        return pixels

    def test_every_pixel_of_every_record_is_in_the_file_of_its_class(self, tmp_path):
        written = self.write(tmp_path / "cifar-100-binary")
        listing = layouts.read("cifar100", tmp_path)
        assert listing.classes == tuple(NAMES)
        for part, images in (("train", listing.train), ("test", listing.test)):
            labels, pixels = written[part]
            seen = []
            for label, name in enumerate(NAMES):
                rows = [int(p.stem) for p in images[name]]
                assert rows == np.flatnonzero(labels == label).tolist()
                seen += rows
                for row, path in zip(rows, images[name], strict=True):
                    assert np.array_equal(np.asarray(Image.open(path)), pixels[row])
            assert sorted(seen) == list(range(12))

    @DAMAGES("given", ["", "cifar-100-binary", "cifar-100-binary/images"])
    def test_one_level_more_or_less_is_found(self, tmp_path, given):
        self.write(tmp_path / "cifar-100-binary")
        (tmp_path / "cifar-100-binary" / "images").mkdir()
        assert layouts.read("cifar100", tmp_path / given).classes == tuple(NAMES)

    def test_where_nothing_can_be_written_it_says_what_to_do(self, tmp_path):
        self.write(tmp_path)
        (tmp_path / "images").write_bytes(b"")
        with pytest.raises(DataError, match="cannot write the images") as refused:
            cifar100(tmp_path)
        assert "copy the data set" in refused.value.hint

    def test_a_stopped_unpacking_goes_on_with_the_class_it_stopped_in(self, tmp_path, monkeypatch):
        self.write(tmp_path)
        save, saved = Image.Image.save, []

        def stop(self, path, **more):
            if len(saved) == 6:
                raise KeyboardInterrupt
            saved.append(path)
            return save(self, path, **more)

        monkeypatch.setattr(Image.Image, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            cifar100(tmp_path)
        monkeypatch.undo()
        whole = tmp_path / "images" / "train" / "orchid"
        before = whole.stat().st_mtime_ns
        assert not (tmp_path / "images" / "train" / "apple").exists()
        listing = cifar100(tmp_path)
        assert whole.stat().st_mtime_ns == before
        assert [len(listing.train[name]) for name in NAMES] == [4, 4, 4]

    def test_two_at_once_both_end_with_whole_classes(self, tmp_path):
        self.write(tmp_path, per_class=100)
        code = (
            "import sys; from pathlib import Path; from edgecil.bench.layouts import read\n"
            "print(sum(map(len, read('cifar100', Path(sys.argv[1])).train.values())))"
        )
        both = [
            subprocess.Popen(
                [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True,
                env={"PYTHONPATH": f"{ROOT}:{ROOT / 'devices'}", "OMP_NUM_THREADS": "1"},
            )
            for _ in range(2)
        ]  # fmt: skip
        assert [process.communicate(timeout=60)[0].strip() for process in both] == ["300", "300"]
        assert not list((tmp_path / "images").rglob(".*"))

    def test_a_truncated_file_is_named(self, tmp_path):
        self.write(tmp_path)
        (tmp_path / "test.bin").write_bytes((tmp_path / "test.bin").read_bytes()[:-1])
        with pytest.raises(DataError, match=r"test\.bin: expected records of 3074 .* truncated"):
            cifar100(tmp_path)

    def test_whole_records_that_are_missing_are_noticed(self, tmp_path):
        self.write(tmp_path)
        (tmp_path / "train.bin").write_bytes((tmp_path / "train.bin").read_bytes()[:-3074])
        with pytest.raises(DataError, match=r"train\.bin: expected as many images of every class"):
            cifar100(tmp_path)

    def test_too_few_names(self, tmp_path):
        self.write(tmp_path)
        (tmp_path / "fine_label_names.txt").write_text("orchid\napple\n")
        with pytest.raises(DataError, match=r"has label 2, .* has 2 names"):
            cifar100(tmp_path)

    def test_a_cache_of_something_else_is_refused(self, tmp_path):
        self.write(tmp_path)
        picture(tmp_path / "images" / "train" / "bee" / "00000.png")
        with pytest.raises(DataError, match="expected 4 images of this data set, got 1"):
            cifar100(tmp_path)

    def test_the_python_version_is_not_opened(self, tmp_path):
        home = tmp_path / "cifar-100-python"
        home.mkdir()
        for name in ("meta", "train", "test"):
            (home / name).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
        with pytest.raises(DataError, match="pickle") as refused:
            cifar100(tmp_path)
        assert "cifar-100-binary.tar.gz" in refused.value.hint

    def test_class_folders_of_any_image_type(self, tmp_path):
        picture(tmp_path / "x" / "train" / "bee" / "0.webp")
        picture(tmp_path / "x" / "test" / "bee" / "1.bmp")
        listing = cifar100(tmp_path)
        assert names_of(listing.train) == {"bee": ["0.webp"]}
        assert names_of(listing.test) == {"bee": ["1.bmp"]}


class TestTinyImagenet:
    @pytest.fixture
    def home(self, tmp_path):
        home = tmp_path / "tiny-imagenet-200"
        rows = []
        for number, name in enumerate(WNIDS):
            for image in range(2):
                picture(home / "train" / name / "images" / f"{name}_{image}.JPEG")
            (home / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t6\t6\n")
            file = f"val_{7 - number}.JPEG"
            picture(home / "val" / "images" / file)
            rows.append(f"{file}\t{name}\t0\t32\t44\t62\n")
        (home / "val" / "val_annotations.txt").write_text("".join(rows))
        (home / "wnids.txt").write_text("\n".join(WNIDS))
        (home / "words.txt").write_text("n00001740\tentity\n")
        return home

    @DAMAGES("given", [".", "..", "train"])
    def test_classes_in_the_order_of_their_list(self, home, given):
        listing = layouts.read("tiny-imagenet", home / given)
        assert listing.classes == tuple(WNIDS)
        assert names_of(listing.train)[WNIDS[1]] == [f"{WNIDS[1]}_{i}.JPEG" for i in (0, 1)]
        assert names_of(listing.test) == {n: [f"val_{7 - i}.JPEG"] for i, n in enumerate(WNIDS)}

    def test_a_missing_image_is_named(self, home):
        (home / "val" / "images" / "val_6.JPEG").unlink()
        with pytest.raises(DataError, match=r"val_6\.JPEG: no such file; 1 that val_annotations"):
            layouts.read("tiny-imagenet", home)

    def test_a_missing_class_folder_is_named(self, home):
        (home / "wnids.txt").write_text("\n".join([*WNIDS, "n09999999"]))
        with pytest.raises(DataError, match="n09999999"):
            layouts.read("tiny-imagenet", home)

    def test_a_class_that_is_not_listed(self, home):
        (home / "wnids.txt").write_text("\n".join(WNIDS[:2]))
        with pytest.raises(DataError, match=f"class {WNIDS[2]} is not in wnids.txt"):
            layouts.read("tiny-imagenet", home)

    def test_annotations_without_columns(self, home):
        (home / "val" / "val_annotations.txt").write_text("val_0.JPEG n01443537 0 0 1 1\n")
        with pytest.raises(DataError, match="line 1: expected 2 columns"):
            layouts.read("tiny-imagenet", home)

    def test_without_validation_images(self, home):
        (home / "val" / "val_annotations.txt").unlink()
        with pytest.raises(DataError, match=r"val_annotations\.txt: No such file"):
            layouts.read("tiny-imagenet", home)


class TestCub200:
    SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross")

    @pytest.fixture
    def home(self, tmp_path):
        home = tmp_path / "CUB_200_2011"
        files = [f"{s}/{s[4:]}_{i:04d}_{i}.jpg" for s in self.SPECIES for i in range(10)]
        for file in files:
            picture(home / "images" / file)
        numbered = list(enumerate(files, start=1))
        (home / "images.txt").write_text("".join(f"{n} {f}\n" for n, f in numbered))
        labels = "".join(f"{n} {1 + self.SPECIES.index(f.split('/')[0])}\n" for n, f in numbered)
        (home / "image_class_labels.txt").write_text(labels)
        (home / "train_test_split.txt").write_text("".join(f"{n} {n % 2}\n" for n, _ in numbered))
        names = "".join(f"{n} {s}\n" for n, s in enumerate(self.SPECIES, start=1))
        (home / "classes.txt").write_text(names)
        return home

    @DAMAGES("given", [".", "..", "images"])
    def test_its_own_split(self, home, given):
        listing = layouts.read("cub200", home / given)
        assert listing.classes == self.SPECIES
        first = [p.name[-5] for p in listing.train[self.SPECIES[0]]]
        assert first == list("02468")  # odd numbers, counted from 1, train
        assert len(listing.test[self.SPECIES[1]]) == 5

    def test_the_other_split_has_every_image_once_and_is_always_the_same(self, home):
        listing = layouts.read("cub200-80-20", home)
        again = layouts.read("cub200-80-20", home)
        for name in self.SPECIES:
            assert len(listing.train[name]) == 8 and len(listing.test[name]) == 2
            every = {*listing.train[name], *listing.test[name]}
            assert len(every) == 10
            assert again.test[name] == listing.test[name]

    @DAMAGES("name", ["image_class_labels.txt", "train_test_split.txt"])
    def test_lists_of_other_lengths(self, home, name):
        text = (home / name).read_text().splitlines()
        (home / name).write_text("\n".join(text[:-1]))
        with pytest.raises(DataError, match=f"{name}: expected the 20 images .* got 19"):
            layouts.read("cub200", home)

    def test_a_missing_image(self, home):
        next((home / "images" / self.SPECIES[1]).iterdir()).unlink()
        with pytest.raises(DataError, match=r"no such file; 1 that images\.txt names"):
            layouts.read("cub200", home)

    def test_a_class_without_training_images(self, home):
        rows = "".join(f"{n} {n > 10:d}\n" for n in range(1, 21))
        (home / "train_test_split.txt").write_text(rows)
        with pytest.raises(DataError, match=f"no train image, the first: {self.SPECIES[0]}"):
            layouts.read("cub200", home)

    def test_a_list_that_is_not_there(self, home):
        (home / "classes.txt").unlink()
        with pytest.raises(DataError, match=r"expected images\.txt, .*classes\.txt"):
            layouts.read("cub200", home)


class TestCaltech101:
    @pytest.fixture
    def root(self, tmp_path):
        for name, count in (("ant", 10), ("BACKGROUND_Google", 5), ("Faces", 21)):
            for number in range(1, count + 1):
                picture(tmp_path / "101_ObjectCategories" / name / f"image_{number:04d}.jpg")
        return tmp_path

    @DAMAGES("given", [".", "101_ObjectCategories"])
    def test_a_fifth_of_every_category_is_for_testing_and_clutter_is_none(self, root, given):
        listing = layouts.read("caltech101", (root / given).resolve())
        assert listing.classes == ("Faces", "ant")
        assert {n: len(p) for n, p in listing.test.items()} == {"ant": 2, "Faces": 4}
        assert not set(listing.train["ant"]) & set(listing.test["ant"])
        assert len(listing.train["ant"]) == 8

    def test_the_split_does_not_depend_on_where_the_images_lie(self, root):
        (root / "a").mkdir()
        (root / "101_ObjectCategories").rename(root / "a" / "101_ObjectCategories")
        moved = layouts.read("caltech101", root)
        first = np.random.RandomState(1993).permutation(10)[:2]
        assert {p.name for p in moved.test["ant"]} == {f"image_{r + 1:04d}.jpg" for r in first}

    def test_a_single_image_cannot_be_split(self, root):
        picture(root / "101_ObjectCategories" / "wrench" / "image_0001.jpg")
        with pytest.raises(DataError, match="wrench: expected images to train and to test on"):
            layouts.read("caltech101", root)


class TestImagenet:
    def write(self, root, *, flat=False):
        """Write class folders; the first validation image is of the third class, and so on."""
        truth = [3, 1, 2, 1, 3, 2]
        for name in WNIDS:
            picture(root / "train" / name / f"{name}_10026.JPEG")
        for number, label in enumerate(truth, start=1):
            folder = root / "val" / ("" if flat else WNIDS[label - 1])
            picture(folder / f"ILSVRC2012_val_{number:08d}.JPEG")
        return truth

    def write_devkit(self, devkit, truth):
        """Write the devkit: 1 to 3 are classes, 4 is a group of them."""
        savemat = pytest.importorskip("scipy.io").savemat
        fields = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
        rows = [(n, w, "word, other", 0) for n, w in enumerate(WNIDS, start=1)]
        synsets = np.array([*rows, (4, "n00001740", "entity", 3)], fields).reshape(-1, 1)
        (devkit / "data").mkdir(parents=True)
        savemat(devkit / "data" / "meta.mat", {"synsets": synsets})
        text = "".join(f"{label}\n" for label in truth)
        (devkit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(text)

    @DAMAGES("given", [".", "..", "train"])
    def test_class_folders_in_order_of_their_ids(self, tmp_path, given):
        self.write(tmp_path / "ILSVRC")
        listing = layouts.read("imagenet", tmp_path / "ILSVRC" / given)
        assert listing.classes == tuple(sorted(WNIDS))
        assert names_of(listing.test)[WNIDS[2]] == [
            f"ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 5)
        ]  # fmt: skip

    @DAMAGES("beside", [True, False])
    def test_flat_validation_images_are_labelled_by_the_devkit(self, tmp_path, beside):
        root = tmp_path / "data"
        devkit = (root if beside else tmp_path) / "ILSVRC2012_devkit_t12"
        self.write_devkit(devkit, self.write(root, flat=True))
        self.write(tmp_path / "sorted")
        flat = layouts.read("imagenet", root)
        assert names_of(flat.test) == names_of(layouts.read("imagenet", tmp_path / "sorted").test)

    def test_the_order_of_the_devkit(self, tmp_path):
        self.write_devkit(tmp_path / "ILSVRC2012_devkit_t12", self.write(tmp_path))
        assert layouts.read("imagenet-devkit", tmp_path).classes == tuple(WNIDS)

    def test_flat_images_without_the_devkit(self, tmp_path):
        self.write(tmp_path, flat=True)
        with pytest.raises(DataError, match="devkit is missing") as refused:
            layouts.read("imagenet", tmp_path)
        assert "ILSVRC2012_devkit_t12.tar.gz" in refused.value.hint

    def test_fewer_images_than_labels(self, tmp_path):
        truth = self.write(tmp_path, flat=True)
        self.write_devkit(tmp_path / "ILSVRC2012_devkit_t12", [*truth, 1])
        with pytest.raises(DataError, match=r"expected 7 images, .* got 6"):
            layouts.read("imagenet", tmp_path)

    def test_a_gap_in_the_numbers(self, tmp_path):
        truth = self.write(tmp_path, flat=True)
        self.write_devkit(tmp_path / "ILSVRC2012_devkit_t12", truth)
        (tmp_path / "val" / "ILSVRC2012_val_00000002.JPEG").rename(
            tmp_path / "val" / "ILSVRC2012_val_00000009.JPEG"
        )
        with pytest.raises(DataError, match="without gaps"):
            layouts.read("imagenet", tmp_path)

    def test_a_damaged_devkit(self, tmp_path):
        self.write_devkit(tmp_path / "ILSVRC2012_devkit_t12", self.write(tmp_path))
        (tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").write_bytes(b"no")
        with pytest.raises(DataError, match=r"meta\.mat is damaged"):
            layouts.read("imagenet-devkit", tmp_path)

    def test_a_class_without_validation_images(self, tmp_path):
        self.write(tmp_path)
        picture(tmp_path / "train" / "n09999999" / "n09999999_1.JPEG")
        with pytest.raises(DataError, match="no test image, the first: n09999999"):
            layouts.read("imagenet", tmp_path)


class TestClassFolders:
    def test_loose_training_images_are_refused(self, tmp_path):
        picture(tmp_path / "train" / "0.png")
        picture(tmp_path / "test" / "bee" / "0.png")
        (tmp_path / "notes").mkdir()
        with pytest.raises(DataError, match="each with class folders"):
            layouts.read("folders", tmp_path)


class TestLinks:
    def test_images_of_one_name_are_all_there_and_none_twice(self, tmp_path):
        names = ("a/001.png", "a/001-2.png", "b/001.png", "b/c/001.png")
        for split in ("train", "test"):
            for number, name in enumerate(names):
                picture(tmp_path / split / "cat" / name, seed=number)
        images = layouts.read("folders", tmp_path).train
        for _ in range(2):  # what is there is right: a stopped run goes on
            folder = layouts.link(images, ["cat"], tmp_path / "links")
            found = [path.resolve() for path in (folder / "cat").iterdir()]
            assert sorted(found) == sorted(path.resolve() for path in images["cat"])

    @DAMAGES("gone", [True, False])
    def test_a_link_to_another_image_is_noticed(self, tmp_path, gone):
        old = picture(tmp_path / "old" / "1.png")
        new = picture(tmp_path / "new" / "1.png")
        layouts.link({"cat": [old]}, ["cat"], tmp_path / "links")
        if gone:
            old.unlink()
        with pytest.raises(DataError, match=r"leads to .*old/1\.png, expected .*new/1\.png"):
            layouts.link({"cat": [new]}, ["cat"], tmp_path / "links")

    def test_one_image_written_in_two_ways_is_one(self, tmp_path):
        path = picture(tmp_path / "data" / "1.png")
        layouts.link({"cat": [path]}, ["cat"], tmp_path / "links")
        other = tmp_path / "links" / ".." / "data" / "1.png"
        layouts.link({"cat": [other]}, ["cat"], tmp_path / "links")


class TestAnyLayout:
    @DAMAGES("name", list(layouts.LAYOUTS))
    def test_another_folder_is_refused_and_says_what_is_expected(self, tmp_path, name):
        (tmp_path / "a" / "notes").mkdir(parents=True)
        with pytest.raises(DataError, match="expected") as refused:
            layouts.read(name, tmp_path / "a")
        assert refused.value.hint

    def test_unknown(self, tmp_path):
        with pytest.raises(UsageError, match="unknown layout 'cifar10'") as refused:
            layouts.read("cifar10", tmp_path)
        assert "cifar100" in refused.value.hint

    def test_no_folder(self, tmp_path):
        with pytest.raises(DataError, match="no such folder"):
            layouts.read("folders", tmp_path / "gone")
