"""What a folder of images is taken for, and the one clear message when it cannot be learned."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from edgecil.data.source import ImageFolder, align, check_new, fingerprint, scan
from edgecil.errors import DataError


def fill(root: Path, files: dict[str, int] | list[str]) -> Path:
    """Make empty files: scanning does not open them. A number stands for so many images."""
    named = (
        [f"{name}/{i:03d}.png" for name, count in dict.items(files) for i in range(count)]
        if isinstance(files, dict)
        else files
    )
    for name in named:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def message(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        scan(folder)
    assert caught.value.exit_code == 1
    assert "\n" not in caught.value.message
    return caught.value.message


def names(folder: ImageFolder) -> list[tuple[str, str]]:
    return [
        (folder.classes[label], path.relative_to(folder.root / folder.classes[label]).as_posix())
        for path, label in zip(folder.paths, folder.labels, strict=True)
    ]


def test_classes_are_sorted_as_written_and_images_by_path(tmp_path: Path) -> None:
    fill(tmp_path, ["b/2.PNG", "b/10.jpg", "a c/x.jpeg", "Z/y.WebP", "a c/deep/er/z.bmp"])
    folder = scan(tmp_path)
    assert folder.classes == ("Z", "a c", "b")
    assert names(folder) == [
        ("Z", "y.WebP"),
        ("a c", "deep/er/z.bmp"),
        ("a c", "x.jpeg"),
        ("b", "10.jpg"),
        ("b", "2.PNG"),
    ]
    assert folder.counts == (1, 2, 2)
    assert len(folder) == 5
    assert folder.test is None


def test_hidden_files_are_ignored_and_others_reported(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 3, "b": 3})
    fill(tmp_path, ["a/.hidden.png", ".git/x.png", "a/.cache/x.png", "a/Thumbs.db", "b/deep/x.txt"])
    fill(tmp_path, ["loose.png", "labels.csv"])
    folder = scan(tmp_path)
    assert folder.classes == ("a", "b")
    assert folder.counts == (3, 3)
    notes = " | ".join(folder.notes)
    assert "1 image beside the class folders" in notes
    assert "3 files" in notes and "labels.csv" in notes
    assert ".hidden" not in notes and ".git" not in notes


def test_a_clean_folder_needs_no_notes(tmp_path: Path) -> None:
    assert scan(fill(tmp_path, {"a": 2, "b": 9})).notes == ()


def test_missing_folder(tmp_path: Path) -> None:
    assert "no such folder" in message(tmp_path / "gone")


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, ["x.zip"])
    assert "got a file" in message(tmp_path / "x.zip")


def test_no_class_folders(tmp_path: Path) -> None:
    text = message(tmp_path)
    assert "one folder of images per class" in text and "loose" not in text
    fill(tmp_path, ["1.png", "2.jpg"])
    assert "2 images lie loose in it" in message(tmp_path)


def test_empty_classes_are_named(tmp_path: Path) -> None:
    fill(tmp_path, {"cat": 2})
    fill(tmp_path, ["dog/readme.txt", "dog/.hidden.png"])
    assert message(tmp_path).endswith("in class dog")
    (tmp_path / "cow").mkdir()
    assert message(tmp_path).endswith("in classes cow, dog")


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Cat", "cat"),
        ("STRASSE", "straße"),
        (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "CAFÉ")),
    ],
)
def test_names_equal_after_folding_are_both_named(tmp_path: Path, one: str, two: str) -> None:
    fill(tmp_path, {one: 1, two: 1, "other": 1})
    if len(os.listdir(tmp_path)) < 3:
        pytest.skip("this file system folds names itself")
    text = message(tmp_path)
    assert repr(one) in text and repr(two) in text and "other" not in text


def test_unprintable_class_names_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"a\nb": 1})
    assert r"'a\nb'" in message(tmp_path)
    other = tmp_path / "bytes"
    other.mkdir()
    os.mkdir(os.fsencode(other) + b"/\xff")
    assert "cannot be printed" in message(other)


def test_single_images_and_imbalance_are_noted(tmp_path: Path) -> None:
    fill(tmp_path, {"few": 1, "some": 4, "many": 5})
    notes = scan(tmp_path).notes
    assert "only one image in class few" in notes
    assert "imbalanced classes: from 1 image (few) to 5 (many)" in notes
    balanced = fill(tmp_path / "sub", {"a": 2, "b": 9})
    assert scan(balanced).notes == ()


@pytest.mark.parametrize("test", ["val", "test"])
def test_train_beside_a_test_folder(tmp_path: Path, test: str) -> None:
    fill(tmp_path / "train", {"a": 2, "b": 2})
    fill(tmp_path / test, {"b": 1})
    fill(tmp_path / "annotations", ["x.xml"])
    folder = scan(tmp_path)
    assert folder.root == tmp_path / "train"
    assert folder.classes == ("a", "b")
    assert folder.test is not None
    assert folder.test.root == tmp_path / test
    assert names(folder.test) == [("b", "000.png")]
    assert any("annotations/" in note for note in folder.notes)


def test_val_is_preferred_to_test_and_the_user_is_told(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        fill(tmp_path / part, {"a": 1})
    folder = scan(tmp_path)
    assert folder.test is not None and folder.test.root.name == "val"
    assert any("test/" in note for note in folder.notes)


def test_train_alone_is_a_split_only_when_it_holds_folders(tmp_path: Path) -> None:
    fill(tmp_path / "one" / "train", {"a": 1, "b": 1})
    assert scan(tmp_path / "one").classes == ("a", "b")
    fill(tmp_path / "two", {"train": 3})
    assert scan(tmp_path / "two").classes == ("train",)
    # CIFAR-100 has a class of this name.
    fill(tmp_path / "three", {"tiger": 1, "train": 3, "trout": 1})
    assert scan(tmp_path / "three").classes == ("tiger", "train", "trout")


def test_a_split_without_class_folders_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"train": 3, "val": 2})
    assert "3 images lie loose" in message(tmp_path)


def test_an_unreadable_folder_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    fill(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "b").chmod(0)
    try:
        assert "cannot read" in message(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o755)


def test_known_classes_are_refused() -> None:
    check_new(("dog", "cow"), ("cat",))
    with pytest.raises(DataError, match=r"known already: CAT$"):
        check_new(("CAT", "cow"), ("cat", "hen"))
    with pytest.raises(DataError, match="these classes are known already: cat, hen"):
        check_new(("cat", "hen"), ("Hen", "cat"))


def test_align_labels_by_the_given_classes(tmp_path: Path) -> None:
    folder = scan(fill(tmp_path, {"ant": 1, "Bee": 2, "cat": 1}))
    aligned = align(folder, ["cat", "bee", "dog"])
    assert aligned.classes == ("cat", "bee", "dog")
    assert [(p.parent.name, y) for p, y in zip(aligned.paths, aligned.labels, strict=True)] == [
        ("Bee", 1),
        ("Bee", 1),
        ("cat", 0),
    ]
    assert any("not learned: ant" in note for note in aligned.notes)
    assert any(note.endswith("of: dog") for note in aligned.notes)
    with pytest.raises(DataError, match="none of its classes"):
        align(folder, ["fox"])


def test_the_fingerprint_sees_every_change(tmp_path: Path) -> None:
    fill(tmp_path / "x", {"a": 2, "b": 2})
    for path in (tmp_path / "x").rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))
    seen = [fingerprint(scan(tmp_path / "x"))]
    assert len(seen[0]) == 64
    (tmp_path / "x").rename(tmp_path / "y")
    folder = tmp_path / "y"
    assert fingerprint(scan(folder)) == seen[0]

    target = folder / "a" / "000.png"
    os.utime(target, ns=(10**18, 10**18 + 1))
    seen.append(fingerprint(scan(folder)))
    target.write_bytes(b"x")
    os.utime(target, ns=(10**18, 10**18 + 1))
    seen.append(fingerprint(scan(folder)))
    target.rename(folder / "a" / "005.png")
    seen.append(fingerprint(scan(folder)))
    (folder / "a" / "005.png").rename(folder / "b" / "005.png")
    seen.append(fingerprint(scan(folder)))
    fill(folder, ["b/006.png"])
    seen.append(fingerprint(scan(folder)))
    assert len(set(seen)) == len(seen)

    scanned = scan(folder)
    (folder / "b" / "006.png").unlink()
    with pytest.raises(DataError, match=r"006\.png"):
        fingerprint(scanned)
