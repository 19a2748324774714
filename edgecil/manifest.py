"""What a version says about itself; no torch here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from edgecil.errors import WorkspaceError
from edgecil.settings import Preprocess

SCHEMA = 1
FOREIGN = "foreign"
"""The method of a version that ``init`` made: it was trained elsewhere, nobody knows how."""


@dataclass(frozen=True)
class VersionManifest:
    """What a version says about itself; written once, never changed."""

    version: int
    parent: int | None
    created: str
    """UTC time, ISO 8601."""
    method: str
    options: dict[str, Any]
    classes: list[dict[str, Any]]
    """``{"name", "increment"}`` in order of introduction: the rows of the head."""
    net: dict[str, Any]
    head_kind: str
    rule: dict[str, str]
    """``{"kind", "score_kind"}``."""
    preprocess: dict[str, Any]
    classifier_bytes: int
    kept: dict[str, Any]
    """``{"bytes", "fields": [{"name", "bytes"}], "codec", "budget"}``, measured."""
    training: dict[str, Any]
    """Settings and measurements: epochs, images, seconds, images_per_second, peak memory, ..."""
    test: dict[str, Any] | None = None
    """Accuracy on test images, where there were any; and the folders they came from."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every other file of the version."""
    notes: list[str] = field(default_factory=list)
    forgotten: list[dict[str, Any]] = field(default_factory=list)
    """Kept images that were removed later: what, how many, when, by whom."""
    increments: int | None = None
    """Number of increments so far; None: that of the newest class. An increment that brings images
    of known classes alone adds no class."""
    edgecil_version: str = ""
    schema: int = SCHEMA

    @property
    def groups(self) -> tuple[int, ...]:
        """Number of classes that each increment added."""
        increments = [c["increment"] for c in self.classes]
        return tuple(increments.count(i) for i in range(1, self.increment + 1))

    @property
    def increment(self) -> int:
        """Number of the increment that made this version; 1 is the base."""
        return self.increments or max(int(c["increment"]) for c in self.classes)

    @property
    def names(self) -> list[str]:
        """Class names in order of introduction."""
        return [c["name"] for c in self.classes]

    @property
    def input(self) -> Preprocess:
        """How images enter the network."""
        return Preprocess.from_json(self.preprocess)

    def encode(self) -> bytes:
        """Return the bytes of ``manifest.json``."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the manifest stored at ``path``.

        Raises:
            WorkspaceError: missing, damaged, or written by a newer edgecil.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            schema = int(data["schema"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WorkspaceError(f"{path} is damaged: {error}") from None
        if schema > SCHEMA:
            raise WorkspaceError(
                f"{path} was written by edgecil {data.get('edgecil_version', '?')} "
                f"(schema {schema}, this one reads up to {SCHEMA})",
                hint="pip install --upgrade edgecil",
            )
        try:
            return cls(**data)
        except TypeError as error:
            raise WorkspaceError(f"{path} is damaged: {error}") from None
