"""Which bundle exactly: its name, its version, and the hash that fixes all of its bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from edgecil_runtime.bundle import MANIFEST
from edgecil_runtime.hashing import sha256
from edgecil_runtime.images import PathLike
from edgecil_runtime.manifest import MAX_FILE_BYTES, Manifest, check_file_name

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class Revision(NamedTuple):
    """A bundle by name, version and SHA-256 of its manifest, which holds those of its files."""

    name: str
    version: int
    manifest_sha256: str

    @property
    def folder(self) -> str:
        """Name of the bundle's folder."""
        return f"{self.name}-v{self.version}"

    @classmethod
    def of(cls, folder: PathLike, manifest: Manifest) -> Revision:
        """Return the revision of the bundle in ``folder``."""
        return cls(manifest.name, manifest.version, manifest_sha256(folder))

    @classmethod
    def from_json(cls, value: Any) -> Revision:
        """Return the revision that a decoded JSON object describes.

        Raises:
            BundleError: the name is not that of a file.
            ValueError, KeyError, TypeError: another field is missing or wrong.
        """
        digest = value["manifest_sha256"]
        if not isinstance(digest, str) or not _SHA256.match(digest):
            raise ValueError("a hash must have 64 lower-case hex digits")
        return cls(check_file_name(value["name"]), whole_number(value["version"]), digest)


def manifest_sha256(folder: PathLike) -> str:
    """Return the SHA-256 of the manifest in ``folder`` as 64 hex digits."""
    return str(sha256(Path(folder, MANIFEST).read_bytes()).hexdigest())


def whole_number(value: Any) -> int:
    """Return ``value`` when it is a size, an offset or a version.

    Raises:
        ValueError: it is not.
    """
    if type(value) is not int or not 0 <= value <= MAX_FILE_BYTES:
        raise ValueError(f"{value!r} is not a size or a number")
    return value
