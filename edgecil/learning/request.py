"""What a user asks of one increment, as a value that an interrupted run can be resumed from."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, get_args

from edgecil.errors import UsageError, WorkspaceError
from edgecil.settings import Augment, Preprocess, Stream, Training
from edgecil.workspace import FOREIGN, REQUEST, VersionManifest
from edgecil_runtime.container import write_atomic

DEFAULT_METHOD = "lwm"
AFTER_FOREIGN = {"sigmoid": DEFAULT_METHOD, "softmax": "lwf"}
"""The default method on a model trained elsewhere, by what its outputs mean."""
DEFAULT_PER_CLASS = 20
PRECISIONS = ("auto", "float32", "bfloat16")
WITHOUT_FLAG = ("class_order", "training", "augment", "preprocess")
"""Settings that the command line does not offer."""
_BESIDE = "leave it out, or begin a workspace beside this one: --workspace DIR"


def default_codec(memory_budget: int | None) -> str:
    """Return as what exemplars are stored where it is not said.

    Where bytes are the limit, more images are worth more than every pixel of fewer: JPEG, as
    measured in docs/exemplars.md. Where images are counted, loss gains nothing.
    """
    return "webp-lossless" if memory_budget is None else "jpeg-75"


@dataclass(frozen=True)
class LearnRequest:
    """The settings of ``learn``; None means: as the current version has it, or the default."""

    new_data: str
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    arch: str = "auto"
    image_size: int | None = None
    weights: str | None = None
    memory_budget: int | None = None
    """Bytes that may be kept, container header included."""
    exemplars_per_class: int | None = None
    exemplars_total: int | None = None
    codec: str | None = None
    """As what exemplars are stored; None: as the parent's, or :func:`default_codec`."""
    exemplar_size: int | None = None
    """Side in pixels of a stored exemplar; None: as images are decoded."""
    test_data: str | None = None
    val_fraction: float = 0.0
    skip_bad: bool = False
    update_known: bool = False
    """Whether the new images may be of classes that are known already, too."""
    stream: Stream = "auto"
    """Whether decoded images are read from disk; the result does not depend on it."""
    record_ranges: bool = True
    class_order: tuple[str, ...] | None = None
    """Order of introduction of the new classes; None is alphabetical."""
    training: Training | None = None
    """Schedule and optimiser in full, instead of the method's or the preset's."""
    augment: Augment | None = None
    """Random changes of training images; None: by image size, or the preset's."""
    preprocess: Preprocess | None = None
    """How images enter a new network; None: by image size."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"--val-fraction must be in [0, 1), got {self.val_fraction}")
        for name in (
            "epochs", "batch_size", "image_size", "exemplars_per_class", "exemplar_size",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"--precision must be one of {PRECISIONS}, got {self.precision!r}")
        if self.stream not in get_args(Stream):
            raise UsageError(f"--stream must be one of {get_args(Stream)}, got {self.stream!r}")
        if self.lr is not None and not self.lr > 0:
            raise UsageError(f"--lr must be positive, got {self.lr}")
        limits = (self.memory_budget, self.exemplars_per_class, self.exemplars_total)
        if sum(v is not None for v in limits) > 1:
            raise UsageError(
                "--memory-budget, --exemplars-per-class and --exemplars-total exclude each other"
            )

    @property
    def limits(self) -> dict[str, int | None]:
        """The budget in the words of :class:`edgecil.exemplars.Budget`."""
        return {
            "bytes": self.memory_budget,
            "per_class": self.exemplars_per_class,
            "total": self.exemplars_total,
        }

    def inherited(self, parent: VersionManifest | None) -> Self:
        """Return the request with what was left open taken from the parent version.

        Raises:
            UsageError: it asks for another architecture or image size than the parent has.
        """
        if parent is None:
            limits = self.limits
            if all(v is None for v in limits.values()):
                limits["per_class"] = DEFAULT_PER_CLASS
            codec = self.codec or default_codec(limits["bytes"])
            return self._with(limits, method=self.method or DEFAULT_METHOD, codec=codec)
        self._refuse_other_net(parent)
        same = self.method in (None, parent.method)
        # Another preset brings options of its own.
        keeps = same and self.preset in (None, parent.training["preset"])
        options = {**parent.options, **self.options} if keeps else dict(self.options)
        limits = self.limits
        if all(v is None for v in limits.values()):
            limits = parent.kept["budget"]
        return self._with(
            limits,
            method=self.method or _method_after(parent),
            preset=parent.training["preset"] if keeps else self.preset,
            options=options,
            codec=self.codec or parent.kept["codec"],
            exemplar_size=self.exemplar_size or parent.kept.get("exemplar_size"),
        )

    def _with(self, limits: Mapping[str, int | None], **changes: Any) -> Self:
        return replace(
            self, memory_budget=limits["bytes"], exemplars_per_class=limits["per_class"],
            exemplars_total=limits["total"], **changes,
        )  # fmt: skip

    def _refuse_other_net(self, parent: VersionManifest) -> None:
        arch, size = parent.net["arch"], parent.input.size
        if self.arch not in ("auto", arch):
            raise UsageError(f"the workspace's network is {arch}, not {self.arch}", hint=_BESIDE)
        if self.image_size not in (None, size):
            raise UsageError(
                f"the workspace's images are {size} pixels, not {self.image_size}", hint=_BESIDE
            )
        if self.preprocess not in (None, parent.input):
            raise UsageError(f"the workspace's preprocessing is {parent.input}")
        if self.weights is not None:
            raise UsageError(
                "--weights starts a new workspace; this one has a network already",
                hint=_BESIDE,
            )

    def command(self, *more: str) -> str:
        """Return the command line that asks for the same, and for ``more``.

        What only the library can be asked for is left out, and what ``more`` sets anew.
        """
        anew = {word.partition("=")[0] for flag, word in pairwise(more) if flag == "--set"}
        words = ["edgecil", "learn"]
        for known in fields(self):
            name, value = known.name, getattr(self, known.name)
            flag = "--" + name.replace("_", "-")
            if name == "options":
                kept = {k: v for k, v in value.items() if k not in anew}
                words += [w for k, v in kept.items() for w in ("--set", f"{k}={v}")]
            elif value == known.default or name in WITHOUT_FLAG or flag in more:
                continue
            elif isinstance(value, bool):
                words.append(flag if value else flag.replace("--", "--no-"))
            else:
                words += [flag, str(value)]
        return shlex.join([*words, *more])

    def save(self, folder: Path, **extra: Any) -> None:
        """Write the request, and what else a resume must know, into the run's folder.

        Raises:
            WorkspaceError: the disk is full, or the folder cannot be written.
        """
        text = json.dumps({"request": asdict(self), **extra}, indent=1)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / REQUEST, text.encode())
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise WorkspaceError(f"cannot write to {folder}: {error.strerror}") from None

    @classmethod
    def load(cls, folder: Path) -> tuple[Self, dict[str, Any]]:
        """Return the request of an interrupted run and what was saved beside it.

        Raises:
            WorkspaceError: there is none, or it is damaged.
        """
        path = folder / REQUEST
        if not path.exists():
            raise WorkspaceError(
                "no interrupted run to resume", hint="edgecil learn --new-data dir/"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            values = data.pop("request")
            if values["class_order"] is not None:
                values["class_order"] = tuple(values["class_order"])
            readers: dict[str, Callable[[Any], Any]] = {
                "training": Training.from_json,
                "augment": Augment.from_json,
                "preprocess": Preprocess.from_json,
            }
            for name, read in readers.items():
                if values[name] is not None:
                    values[name] = read(values[name])
            return cls(**values), data
        except (ValueError, KeyError, TypeError) as error:
            raise WorkspaceError(f"{path} is damaged: {error}", hint="use --discard") from None


def _method_after(parent: VersionManifest) -> str:
    return AFTER_FOREIGN[parent.head_kind] if parent.method == FOREIGN else parent.method
