"""A workspace that starts from a model trained elsewhere, whose data nobody has."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from edgecil._version import __version__
from edgecil.data.source import folded
from edgecil.errors import DataError, UsageError
from edgecil.learning.request import DEFAULT_PER_CLASS, default_codec
from edgecil.memory.store import Store
from edgecil.model import Model, classifier_bytes, weight_file
from edgecil.nets.build import build
from edgecil.nets.net import NetSpec
from edgecil.nets.pretrained import load_classifier
from edgecil.nets.rules import ArgmaxRule
from edgecil.settings import PRESETS, Preprocess
from edgecil.spelling import nearest
from edgecil.workspace import FOREIGN, WEIGHTS, VersionManifest, Workspace

HeadKind = Literal["softmax", "sigmoid"]


def read_classes(path: Path) -> tuple[str, ...]:
    """Return the class names in a file, in the order of the model's outputs.

    A ``.json`` file holds a list of names, any other one name per line.

    Raises:
        DataError: it cannot be read, or a name is empty, unprintable or there twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except UnicodeDecodeError:
        wanted = "a class name per line, or a JSON list"
        raise DataError(f"{path}: not a text file; expected {wanted}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not readable: {error}"
        raise DataError(f"{path}: {reason}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected a JSON list of class names, got another value")
    names = [name.strip() for name in names]
    if path.suffix != ".json":
        while names and not names[-1]:
            names.pop()
    _check_names(path, names)
    return tuple(names)


def _check_names(path: Path, names: list[str]) -> None:
    if not names:
        raise DataError(f"{path}: no class names in it")
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name or not name.isprintable():
            raise DataError(f"{path}: class {number} has no printable name: {name!r}")
        first = seen.setdefault(folded(name), number)
        if first != number:
            raise DataError(f"{path}: classes {first} and {number} have the same name {name!r}")


def preprocessing(
    preset: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    size: int | None = None,
    resize: int | None = None,
) -> Preprocess:
    """Return how images enter the model: a named preset, or all of mean, std and size.

    ``mean`` and ``std`` are of RGB values in [0, 1]; ``size`` is the side of the network's input
    in pixels, ``resize`` the shorter side before the centre is cut out (default: ``size``).

    Raises:
        UsageError: something is missing, given twice, or out of its range.
    """
    own = {"--mean": mean, "--std": std, "--image-size": size}
    given = [name for name, value in {**own, "--resize": resize}.items() if value is not None]
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(f"no preset {preset!r}", hint=nearest(preset, list(PRESETS)))
        if given:
            raise UsageError(f"--preset {preset} says all of it: leave out {', '.join(given)}")
        return PRESETS[preset]
    if mean is None or std is None or size is None:
        missing = [name for name, value in own.items() if value is None]
        raise UsageError(
            f"how images enter the model is not known: {', '.join(missing)} missing",
            hint="give them as the model was trained, or --preset imagenet",
        )
    if max(*mean, *std) > 1:
        raise UsageError(
            f"mean {mean} and std {std} must be of values in [0, 1]", hint="divide them by 255"
        )
    return Preprocess(size, resize or size, mean, std)


def init(
    workspace: Workspace,
    weights: Path,
    classes: Path,
    arch: str,
    preprocess: Preprocess,
    head: HeadKind = "softmax",
) -> VersionManifest:
    """Return the manifest of version 1, made of a model that was trained elsewhere.

    ``head`` says what its outputs mean: ``softmax`` for a model trained by cross-entropy,
    ``sigmoid`` for one trained with a yes or no for every class.

    Raises:
        EdgecilError: the files do not fit each other, or the workspace has a version already.
    """
    names = read_classes(classes)
    net = build(NetSpec(arch), len(names))
    note = load_classifier(net, weights, str(classes))
    model = Model(net.eval().requires_grad_(False), ArgmaxRule(len(names)), Store(()))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    manifest = _manifest(model, names, preprocess, head, [note, f"SHA-256 of the file: {digest}"])
    with workspace.locked():
        if workspace.exists():
            raise UsageError(
                f"{workspace.root} has version {workspace.current()} already",
                hint="start another workspace with --workspace DIR",
            )
        workspace.refuse_unfinished()
        workspace.commit(manifest, {WEIGHTS: weight_file(model)})
    return workspace.manifest()


def _manifest(
    model: Model, names: tuple[str, ...], preprocess: Preprocess, head: HeadKind, notes: list[str]
) -> VersionManifest:
    # The classes count no images and no bytes here: what later increments add up is theirs.
    training: dict[str, Any] = {
        "preset": None, "new_images": 0, "new_images_per_class": [0] * len(names),
        "new_image_bytes": 0, "images": 0, "seconds": 0.0, "cpu_seconds": 0.0,
        "images_per_second": 0.0, "memory_bytes": {},
    }  # fmt: skip
    budget = {"bytes": None, "per_class": DEFAULT_PER_CLASS, "total": None}
    return VersionManifest(
        version=1,
        parent=None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        method=FOREIGN,
        options={},
        classes=[{"name": name, "increment": 1} for name in names],
        net=model.net.spec.to_json(),
        head_kind=head,
        rule={"kind": model.rule.kind, "score_kind": model.rule.score_kind},
        preprocess=preprocess.to_json(),
        classifier_bytes=classifier_bytes(model),
        kept={"bytes": 0, "fields": [], "codec": default_codec(budget["bytes"]), "budget": budget,
              "exemplars_per_class": None},
        training=training,
        notes=notes,
        edgecil_version=__version__,
    )  # fmt: skip
