"""Keeping a workspace: removing old versions, forgetting kept images, renaming a class."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecil._version import __version__
from edgecil.data.source import folded
from edgecil.errors import DataError, UsageError
from edgecil.memory.codecs import item_codec
from edgecil.memory.fields import COUNTS, IMAGES, columns
from edgecil.memory.store import Store
from edgecil.spelling import nearest
from edgecil.workspace import MEMORY, REQUEST, WEIGHTS, VersionManifest, Workspace

DIGEST_BYTES = 32
Pixels = NDArray[np.uint8]
Rows = NDArray[np.bool_]
"""One truth value per kept image: it is to be forgotten."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # an account without a name, as in containers
        return f"user {os.getuid()}"


def unneeded(workspace: Workspace, keep: int = 2) -> dict[int, int]:
    """Return the versions whose files nobody needs, and the bytes that they take.

    Needed are ``keep`` versions from the current one back, and the one that an interrupted run
    continues from.
    """
    if keep < 1:
        raise UsageError(f"--keep must be at least 1, got {keep}: the current version stays")
    needed = set(workspace.lineage(workspace.current())[:keep])
    with contextlib.suppress(OSError, ValueError, KeyError):
        request = json.loads((workspace.run / REQUEST).read_text(encoding="utf-8"))
        needed.add(request["parent"])
    sizes = {
        number: sum(path.stat().st_size for path in _files(workspace, number))
        for number in workspace.versions()
        if number not in needed
    }
    return {number: size for number, size in sizes.items() if size}


def _files(workspace: Workspace, version: int) -> list[Path]:
    paths = [workspace.path(version) / name for name in (WEIGHTS, MEMORY)]
    return [path for path in paths if path.exists()]


def collect(workspace: Workspace, keep: int = 2) -> dict[int, int]:
    """Remove the files of :func:`unneeded` versions and return the bytes freed of each.

    Their manifests stay: numbers are not used again, and reports add up all increments.

    Raises:
        WorkspaceError: there is no workspace, or another process is writing to it.
    """
    workspace.current()
    with workspace.locked():
        found = unneeded(workspace, keep)
        for number in found:
            for path in _files(workspace, number):
                path.unlink()
        return found


def rename(workspace: Workspace, old: str, new: str) -> VersionManifest:
    """Return the manifest of a new version, in which the class ``old`` is called ``new``.

    It comes after the current version, to which a rollback goes, and is no new increment.

    Raises:
        UsageError: there is no such class, or the new name is taken, cannot be printed, or is the
            one that it has.
        WorkspaceError: an interrupted run waits, or the version could not be written.
    """
    workspace.current()
    with workspace.locked():
        workspace.refuse_unfinished()
        before = workspace.manifest()
        row, new = _row_of(before, old), new.strip()
        others = {folded(name) for name in before.names if name != before.names[row]}
        if new == before.names[row]:
            raise UsageError(f"the class is called {new!r} already")
        if not new or not new.isprintable():
            raise UsageError(f"a class cannot be called {new!r}: that is no name")
        if folded(new) in others:
            raise UsageError(f"{new!r} is another class already")
        classes = [dict(entry) for entry in before.classes]
        classes[row]["name"] = new
        note = f"version {before.version} with class {before.names[row]!r} called {new!r}"
        manifest = replace(
            before, version=workspace.next_version(), parent=before.version, created=_now(),
            increments=before.increment, classes=classes,
            notes=[*before.notes, note], edgecil_version=__version__,
        )  # fmt: skip
        files = {name: workspace.read(before.version, name) for name in (WEIGHTS, MEMORY)}
        workspace.commit(manifest, {n: data for n, data in files.items() if data is not None})
        return workspace.manifest()


def _row_of(manifest: VersionManifest, name: str) -> int:
    row = _find(manifest, name)
    if row is None:
        raise UsageError(f"no class {name!r}", hint=nearest(name, manifest.names))
    return row


def _find(manifest: VersionManifest, name: str) -> int | None:
    names = [folded(known) for known in manifest.names]
    return names.index(folded(name)) if folded(name) in names else None


def forget(workspace: Workspace, what: str, *, trial: bool = False) -> dict[int, int]:
    """Remove every kept image of a class, or one image, and return how many by version.

    A ``trial`` removes nothing.

    ``what`` is the name of a class, or else an image file: the kept images that it gives are
    removed from every version, or from none. The class stays in the classifier, with what was
    computed of its images: weights and class means. Every changed version records what was removed.

    Raises:
        UsageError: ``what`` is neither a class nor a file.
        DataError: no version keeps such an image, or one cannot be searched for it, as pixels
            were trained.
        WorkspaceError: an interrupted run waits, or a version is damaged.
    """
    workspace.current()
    with workspace.locked():
        workspace.refuse_unfinished()
        manifests = [workspace.manifest(number) for number in workspace.versions()]
        rows = _class_rows(workspace, manifests, what)
        path = Path(what)
        if not rows and not path.is_file():
            names = sorted({name for m in manifests for name in m.names})
            raise UsageError(f"{what!r} is neither a class nor a file", hint=nearest(what, names))
        if rows:
            subject = f"class {what}"
        else:
            subject = f"image with SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
        changes, counts, unknown = {}, {}, list[int]()
        for manifest in manifests:
            kept = _kept(workspace, manifest)
            if kept is None:
                continue
            if rows:
                gone = _of_class(kept, rows.get(manifest.version))
            else:
                gone, certain = _like(workspace, manifest.version, kept, path)
                if not certain and not gone.any():
                    unknown.append(manifest.version)
            if gone.any():
                counts[manifest.version] = int(gone.sum())
                changes[manifest.version] = _without(manifest, kept, gone, subject)
        if unknown:
            raise DataError(
                f"pixels of the images in version {', '.join(map(str, unknown))} were trained: "
                "they are not known by their files",
                hint=f"to remove all of a class: {workspace.command('edgecil forget CLASS')}",
            )
        if not changes:
            raise DataError(f"no version keeps an image of {what}")
        if not trial:
            workspace.amend(changes)
        return counts


def _class_rows(
    workspace: Workspace, manifests: list[VersionManifest], name: str
) -> Mapping[int, int]:
    """Return the head row of a class by version; it is the same in all that are related.

    An earlier version may know the class by the name that it had before a ``rename``.
    """
    rows = {m.version: row for m in manifests if (row := _find(m, name)) is not None}
    lines = {m.version: set(workspace.lineage(m.version)) for m in manifests}
    for manifest in manifests:
        for known, row in list(rows.items()):
            related = known in lines[manifest.version] or manifest.version in lines[known]
            if related and row < len(manifest.classes):
                rows.setdefault(manifest.version, row)
    return rows


def _kept(workspace: Workspace, manifest: VersionManifest) -> Store | None:
    """Return the kept memory of a version that still has images, else None."""
    from edgecil.versions import fields_of

    if workspace.read(manifest.version, MEMORY) is None:
        return None
    kept = Store.load(workspace.path(manifest.version) / MEMORY, fields_of(manifest))
    return kept if IMAGES in kept else None


def _of_class(kept: Store, row: int | None) -> Rows:
    counts = kept.read(COUNTS)
    owner: Rows = np.repeat(np.arange(len(counts)), counts) == (-1 if row is None else row)
    return owner


def _like(workspace: Workspace, version: int, kept: Store, path: Path) -> tuple[Rows, bool]:
    """Return which kept images of a version are the one in a file, and whether that is certain."""
    if item_codec(kept.field(IMAGES).codec).name == "reference":
        digest = hashlib.sha256(path.read_bytes()).digest()
        return np.array([item[:DIGEST_BYTES] == digest for item in kept.items(IMAGES)], bool), True
    images = kept.read(IMAGES)
    same: Rows = np.zeros(len(images), bool)
    copies, certain = _copies(workspace, version, path)
    for copy in copies:
        same |= (images == copy).all(axis=(1, 2, 3))
    return same, certain


def _copies(workspace: Workspace, version: int, path: Path) -> tuple[list[Pixels], bool]:
    """Return what the image in a file can have become in the kept memory of a version.

    It came with the version or with one before, and was encoded again wherever codec or size
    changed. False beside it: it can be otherwise, as pixels of kept images were trained.
    """
    from edgecil.engine.selection import stored_side
    from edgecil.versions import recipe_of_version
    from edgecil_runtime.images import fit_square, read_image

    decoded = fit_square(read_image(path), workspace.manifest(version).input.resize)
    copies: list[Pixels] = []
    certain, form = True, None
    for number in reversed(workspace.lineage(version)):
        manifest = workspace.manifest(number)
        recipe = recipe_of_version(manifest)
        if recipe is None or recipe.selection is None:
            copies, certain, form = [], True, None  # what it does not keep, nobody after it has
            continue
        (field,) = (f for f in recipe.fields if f.name == IMAGES)
        before, form = form, (field.codec, stored_side(field, manifest.input.resize))
        if form != before:
            copies = [_stored(fit_square(copy, form[1]), form[0]) for copy in (*copies, decoded)]
        certain = certain and recipe.selection.candidates is None
    return copies, certain


def _stored(image: Pixels, codec: str) -> Pixels:
    """Return an image as it decodes from storage; a reference is the image itself."""
    if codec == "reference":
        return image
    known = item_codec(codec)
    size = (image.shape[0], image.shape[1])
    decoded: Pixels = known.decode(known.join([known.encode_item(image)], size))[0]
    return decoded


def _without(
    manifest: VersionManifest, kept: Store, gone: Rows, subject: str
) -> tuple[VersionManifest, bytes]:
    """Return manifest and kept memory of a version without the images ``gone``."""
    stays = np.flatnonzero(~gone)
    counts = kept.read(COUNTS)
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    left = np.array([(~gone[a:b]).sum() for a, b in pairwise(starts)], counts.dtype)
    fresh = Store(kept.fields)
    beside = {item.name for item in columns(kept.fields)}
    for name in kept.names:
        if name not in (IMAGES, COUNTS, *beside):
            fresh.copy(name, kept)
    if len(stays):
        items = kept.items(IMAGES)
        fresh.write_items(IMAGES, [items[i] for i in stays], kept.item_size(IMAGES))
        fresh.write(COUNTS, left)
        for name in beside & set(kept.names):
            fresh.write(name, kept.read(name)[stays])
    report = fresh.report()
    record: dict[str, Any] = {
        "what": subject, "images": int(gone.sum()), "when": _now(), "by": _user(),
    }  # fmt: skip
    changed = replace(
        manifest,
        kept={**manifest.kept, "bytes": report.kept_bytes, "fields": report.fields()},
        forgotten=[*manifest.forgotten, record],
    )
    return changed, fresh.encode()
